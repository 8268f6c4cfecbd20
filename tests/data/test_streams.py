from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wazuka.augment import AffineStrong, Chain, ColorJitter, Noise, RandAugment, RandomResizedCrop, Weak
from wazuka.augment.ctaugment import CTAugment
from wazuka.contract import Episodes, Stream
from wazuka.data.streams import Batches, Pool
from wazuka.errors import UserError


def pool(n: int = 10) -> Pool:
    return Pool(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous(), torch.arange(n))


def plain(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images


def noisy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, images.shape, generator=generator).to(torch.uint8)


def batches(batch: int = 4, n: int = 10, **more) -> Batches:
    stream = Stream(pool="labeled", batch=batch, views={"a": "plain", "b": "noisy"}, labels="labels", index="index")
    return Batches((stream,), {"labeled": pool(n)}, {"plain": plain, "noisy": noisy}, **({"seed": 0} | more))


def test_every_pass_shows_each_image_once() -> None:
    made = batches(batch=4, n=10)
    rows = torch.cat([made(step).index for step in range(10)])
    for turn in range(4):
        assert sorted(rows[turn * 10 : turn * 10 + 10].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:20].tolist()


def test_a_batch_larger_than_the_pool_chains_passes() -> None:
    rows = batches(batch=25, n=10)(0).index
    assert len(rows) == 25
    assert sorted(rows[:10].tolist()) == sorted(rows[10:20].tolist()) == list(range(10))


def test_views_show_the_same_images_with_their_labels() -> None:
    batch = batches()(3)
    torch.testing.assert_close(batch.a[:, 0, 0, 0] * 255, batch.index.float())
    assert torch.equal(batch.labels, batch.index)
    assert batch.a.dtype == torch.float32
    assert batch.b.max() <= 1


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forward = [batches()(step) for step in range(4)]
    backward = [batches()(step) for step in reversed(range(4))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.b, other.b)
    assert not torch.equal(batches(seed=1)(0).b, forward[0].b)
    assert not torch.equal(forward[0].b, forward[1].b)


def test_processes_share_out_a_batch_without_overlap() -> None:
    whole = batches(batch=6)(1).index
    shares = [batches(batch=6, rank=rank, world=3)(1) for rank in range(3)]
    assert torch.equal(torch.cat([share.index for share in shares]), whole)
    assert not torch.equal(shares[0].b, shares[1].b)
    with pytest.raises(UserError, match="shared evenly"):
        batches(batch=4, world=3)


def test_a_policys_record_comes_with_its_view() -> None:
    def recording(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return images, torch.full((len(images),), 7)

    stream = Stream(pool="labeled", batch=2, views={"probe": "recording"})
    batch = Batches((stream,), {"labeled": pool()}, {"recording": recording}, seed=0)(0)
    assert batch.probe_draw.tolist() == [7, 7]
    assert not hasattr(batch, "labels")


def test_what_is_missing_is_named() -> None:
    stream = Stream(pool="target", batch=2, views={"x": "weak"})
    with pytest.raises(ValueError, match="'target'"):
        Batches((stream,), {"labeled": pool()}, {}, seed=0)
    with pytest.raises(ValueError, match="weak"):
        Batches((stream,), {"target": pool()}, {}, seed=0)
    with pytest.raises(ValueError, match="uint8"):
        Pool(torch.zeros(2, 1, 2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="one label each"):
        Pool(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3))


class Copies(TorchDispatchMode):
    """Whether each copy from the CPU to another device was asked not to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.patient: list[bool] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, given = kwargs or {}, args[0] if args else None
        if function is torch.ops.aten._to_copy.default and given.device.type == "cpu":
            if kwargs.get("device", given.device) != given.device:
                self.patient.append(kwargs.get("non_blocking", False))
        elif isinstance(given, torch.Tensor) and given.device.type != "cpu":
            indices = args[1] if function is torch.ops.aten.index.Tensor else []
            assert all(i is None or i.device == given.device for i in indices), "an index on the CPU is waited for"
        return function(*args, **kwargs)


POLICIES = {
    "weak": Weak(flip=True),
    "subpixel": Weak(subpixel=True),
    "fixmatch": Chain((Weak(), RandAugment())),
    "usb": RandAugment.usb(),
    "affine": AffineStrong(),
    "crop": Chain((RandomResizedCrop(), ColorJitter(blur=0.5))),
    "noise": Noise(),
    "learned": CTAugment().strong,
    "probe": CTAugment().probe,
}


def test_no_batch_waits_for_the_device() -> None:
    # on the meta device nothing can be read back, so whatever would wait for a number fails
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8, device="meta")
    shown = Pool(images, torch.zeros(40, dtype=torch.int64, device="meta"))
    stream = Stream(pool="x", batch=20, views={name: name for name in POLICIES}, labels="labels", index="index")
    make = Batches((stream,), {"x": shown}, POLICIES, seed=0)
    with Copies() as copies:
        batch = make(0)
    assert len(copies.patient) > len(POLICIES)
    assert all(copies.patient)
    assert batch.probe.is_contiguous(memory_format=torch.channels_last)

    known = Pool(images, torch.arange(40) % 4)  # classes are found on the CPU
    make = Batches((Episodes(pool="x", way=3, shot=1, query=2),), {"x": known}, {"plain": plain}, seed=0)
    with Copies() as copies:
        make(0)
    assert copies.patient == [True]


def test_the_networks_precision_does_not_round_gray_levels() -> None:
    stream = Stream(pool="x", batch=8, views={"crop": "crop"})
    images = torch.randint(0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    make = Batches((stream,), {"x": Pool(images, torch.zeros(8))}, POLICIES, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        asked_while_training = make(0).crop
    assert torch.equal(asked_while_training, make(0).crop)


def test_labels_may_lie_elsewhere_than_images() -> None:
    stream = Stream(pool="x", batch=4, views={"image": "plain"}, labels="labels", index="index")
    far = Pool(torch.zeros(10, 1, 2, 2, dtype=torch.uint8, device="meta"), torch.arange(10))
    batch = Batches((stream,), {"x": far}, {"plain": plain}, seed=0)(2)
    assert batch.labels.device.type == "cpu"
    assert batch.index.device.type == "meta"
    assert len(batch.labels.unique()) == 4
