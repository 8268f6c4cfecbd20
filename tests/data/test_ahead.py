import gc
import threading
import time

import pytest
import torch
from torch import nn

from tests.methods.small import batches_of, run, small
from wazuka.augment import Chain, RandAugment, Weak
from wazuka.contract import Batch, Stream
from wazuka.data.ahead import Ahead
from wazuka.data.streams import Batches, Pool


def colored(device: str = "cpu", n: int = 50) -> Batches:
    images = torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pool = Pool(images.to(device), torch.arange(n, device=device) % 5)
    streams = (
        Stream(pool="labeled", batch=4, views={"images": "weak"}, labels="labels", index="index"),
        Stream(pool="unlabeled", batch=12, views={"weak": "weak", "strong": "strong"}),
    )
    weak = Weak(flip=True)
    return Batches(
        streams, {"labeled": pool, "unlabeled": pool}, {"weak": weak, "strong": Chain((weak, RandAugment()))}, seed=0
    )


def assert_same(one: Batch, other: Batch) -> None:
    assert vars(one).keys() == vars(other).keys()
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(other, name)), name
        assert value.stride() == getattr(other, name).stride(), name


def makers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wazuka-batches"]


def test_batches_are_the_same_in_turn_and_after_jumps() -> None:
    plain = colored()
    with Ahead(colored(), depth=3) as ahead:
        for step in (0, 1, 2, 3, 9, 10, 4, 4, 5):
            assert_same(ahead(step), plain(step))


def test_training_ends_in_the_same_weights() -> None:
    plain, hurried = small("fixmatch"), small("fixmatch")
    run(plain)
    with Ahead(batches_of(hurried), stop=4) as ahead:
        run(hurried, batches=ahead)
    for one, other in zip(plain.state_dict().values(), hurried.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_callers_precision_does_not_reach_the_views() -> None:
    with torch.autocast("cpu", torch.bfloat16), Ahead(colored()) as ahead:
        assert_same(ahead(0), colored()(0))


class Counting:
    """Batches that say which steps they were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, step: int) -> Batch:
        self.asked.append(step)
        return Batch(step=step)

    def settled(self) -> list[int]:
        """What was asked for, once nothing more comes."""
        before = -1
        while before != len(self.asked):
            before = len(self.asked)
            time.sleep(0.05)
        return self.asked


def test_no_more_than_depth_wait_and_none_past_the_end() -> None:
    made = Counting()
    with Ahead(made, depth=2, stop=5) as ahead:
        assert ahead(0).step == 0
        assert made.settled() == [0, 1, 2]
        assert [ahead(step).step for step in (1, 2, 3, 4)] == [1, 2, 3, 4]
        assert made.settled() == [0, 1, 2, 3, 4]
        assert ahead(5).step == 5  # made when it is asked for


def test_they_are_made_while_the_caller_does_something_else() -> None:
    begun = threading.Event()

    def batches(step: int) -> Batch:
        if step == 1:
            begun.set()
        return Batch()

    with Ahead(batches) as ahead:
        ahead(0)
        assert begun.wait(10)


def test_without_depth_there_is_no_thread() -> None:
    made = Counting()
    ahead = Ahead(made, depth=0)
    assert ahead(3).step == 3
    assert made.asked == [3]
    assert not makers()
    with pytest.raises(ValueError, match="depth"):
        Ahead(made, depth=-1)


def failing(step: int) -> Batch:
    if step == 2:
        raise ZeroDivisionError("step 2")
    return Batch(step=step)


def test_an_error_is_raised_at_its_step_and_again_when_asked_again() -> None:
    ahead = Ahead(failing, depth=4)
    assert [ahead(0).step, ahead(1).step] == [0, 1]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="step 2"):
            ahead(2)
        assert not makers()
    assert ahead(3).step == 3
    ahead.close()


def test_the_thread_ends_when_closed_left_or_forgotten() -> None:
    ahead = Ahead(colored())
    ahead(0)
    assert len(makers()) == 1
    ahead.close()
    ahead.close()
    assert not makers()

    with pytest.raises(ZeroDivisionError), Ahead(colored()) as ahead:
        1 / (len(ahead(0).labels) - 4)
    assert not makers()

    ahead = Ahead(colored())
    ahead(0)
    del ahead
    gc.collect()
    assert not makers()


def test_closing_waits_for_a_batch_that_is_being_made() -> None:
    started, done = threading.Event(), []

    def slow(step: int) -> Batch:
        if step == 1:
            started.set()
            time.sleep(0.1)
            done.append(step)
        return Batch()

    ahead = Ahead(slow)
    ahead(0)
    started.wait(10)
    ahead.close()
    assert done == [1]  # nothing runs on behind the caller's back


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_batches_in_time_and_the_host_never_waits() -> None:
    plain, busy = colored("cuda"), torch.randn(4096, 4096, device="cuda")
    net = nn.Conv2d(3, 8, 3).cuda()
    expected = [(plain(step), net(plain(step).strong)) for step in range(20)]
    torch.cuda.synchronize()
    with Ahead(plain, depth=2, device="cuda") as ahead:
        for step, (batch, answer) in enumerate(expected):
            busy @= busy * 1e-3  # keeps the caller's stream behind the thread's
            made = ahead(step)
            assert torch.equal(net(made.strong), answer)
            assert_same(made, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            plain(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
