import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wazuka.contract import Stream
from wazuka.data import Dataset, ImageSet
from wazuka.errors import UserError
from wazuka.nets import WideResNet

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
EACH, SIDE = 24, 8
TINY = ("--labels", "40", "--splits", "1", "--steps", "6", "--filters", "2", "--device", "cpu")
FEW = ("--set", "labeled_batch=4", "unlabeled_ratio=2")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr(sys, "argv", [str(RECIPES / "cifar10_wrn.py")])  # what the results say was run
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    import cifar10_wrn

    monkeypatch.setattr(cifar10_wrn, "open_images", lambda *_, **__: tiny_set())
    yield cifar10_wrn
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.benchmark = before[1]


def tiny_set() -> Dataset:
    """Ten classes, each its own gray in noise; file names out of order."""
    chance = np.random.RandomState(0)

    def images(each: int, kind: str) -> ImageSet:
        labels = np.repeat(np.arange(10), each)
        pixels = chance.randint(0, 60, (len(labels), 3, SIDE, SIDE)) + labels[:, None, None, None] * 19
        names = [f"{kind}/{label}/{number:04d}.jpg" for label in range(10) for number in range(each)]
        order = chance.permutation(len(labels))
        return ImageSet(
            images=pixels.astype(np.uint8)[order],
            labels=labels[order],
            classes=tuple("abcdefghij"),
            names=[names[place] for place in order],
        )

    return Dataset("tiny", "here", images(EACH, "train"), images(4, "test"))


def run(recipe: ModuleType, folder: Path, *words: str) -> dict[str, Any]:
    recipe.main([*TINY, "--folder", str(folder), "--out", str(folder / "found.json"), *words, *FEW])
    return json.loads((folder / "found.json").read_text())


def learner(recipe: ModuleType, split: int = 1, labels: int = 40, **more: Any) -> Any:
    given: dict[str, Any] = {
        "method": "fixmatch", "set": [("labeled_batch", "4"), ("unlabeled_ratio", "2")], "strong": "fixmatch",
        "filters": 2, "device": torch.device("cpu"), "precision": torch.float32, "compile": "no", "ahead": 2,
    }  # fmt: skip
    given |= more
    images = recipe.images_of(tiny_set(), False, given["device"])
    return recipe.Learner(Namespace(**given), images, labels, split, 6)


def state_of(folder: Path, split: int = 1) -> dict[str, torch.Tensor]:
    return load_file(folder / "fixmatch-40" / f"{split}.safetensors")


def test_short_runs_shrink_every_clock(recipe: ModuleType) -> None:
    assert [recipe.memory(steps) for steps in (100, 5000, 20_000, 2**20)] == pytest.approx([0.99, 0.99, 0.999, 0.999])
    assert 0.99 < recipe.memory(8000) < recipe.memory(12_000) < 0.999
    assert [recipe.momentum(s) for s in (100, 10_000, 50_000, 2**20)] == pytest.approx([0.1, 0.01, 0.002, 0.001])
    short, full = learner(recipe), None
    assert short.settings.averaging == 0.99
    assert {n.momentum for n in short.method.net.modules() if isinstance(n, torch.nn.BatchNorm2d)} == {0.1}
    full = recipe.Learner(short.given, short.images, 40, 1, 2**20)
    assert full.settings.averaging == 0.999
    assert full.settings.optimizer == short.settings.optimizer  # a function of progress
    assert recipe.Learner(Namespace(**{**vars(short.given), "method": "freematch"}), short.images, 40, 1, 6
                          ).settings.decay == 0.99  # fmt: skip


def test_checkpoints_are_the_papers_share_of_the_run(recipe: ModuleType) -> None:
    assert recipe.checkpoint_steps(2**20)[-20:] == [2**20 - 1024 * back for back in reversed(range(20))]
    assert recipe.checkpoint_steps(51_200)[-20:] == [51_200 - 50 * back for back in reversed(range(20))]
    assert recipe.checkpoint_steps(6) == [1, 2, 3, 4, 5, 6]
    assert len(recipe.checkpoint_steps(10_000)) == 20 + 19


def test_the_last_and_the_median_count_never_the_best(recipe: ModuleType) -> None:
    early, last = dict.fromkeys(range(5, 50), 1.0), dict.fromkeys(range(100, 110), 0.5)
    accuracies = {str(step): value for step, value in (early | last | dict.fromkeys(range(110, 120), 0.6)).items()}
    accuracies["119"] = 0.4
    facts = {"accuracies": dict(reversed(accuracies.items())), "seconds": 30.0, "judging_seconds": 10.0}
    found = recipe.told(facts | {"total_steps": 120, "resumed": 0, "curve": []}, images_per_step=10)
    assert found["last"] == 0.4
    assert found["median_of_last_20"] == 0.5  # of 0.4, ten 0.5 and nine 0.6
    assert found["images_per_second"] == 60.0  # judging is no training


def test_splits_follow_the_papers_rule(recipe: ModuleType) -> None:
    one, same, other = learner(recipe, 1), learner(recipe, 1), learner(recipe, 2)
    labels = one.pools["labeled"].labels
    assert torch.bincount(labels).tolist() == [4] * 10
    assert torch.equal(one.pools["labeled"].images, same.pools["labeled"].images)
    assert not torch.equal(one.pools["labeled"].images, other.pools["labeled"].images)
    assert (one.pools["unlabeled"].labels == -1).all()
    assert len(one.pools["unlabeled"].images) == 10 * EACH  # the labeled ones among them
    # the picture at a class's k-th place by file name, k from the first shuffle of the seed's RandomState
    everything = one.images.unlabeled.images
    place = np.arange(EACH)
    np.random.RandomState(1).shuffle(place)
    expected = everything[:EACH][torch.from_numpy(np.sort(place[:4]))]
    assert torch.equal(one.pools["labeled"].images[:4], expected)
    assert (one.images.labels[:EACH] == 0).all()


def test_a_killed_run_goes_on_to_the_same_end(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(recipe, tmp_path / "whole")
    monkeypatch.setattr(recipe, "SAVE_SECONDS", 0.0)  # after every step
    train = recipe.train

    def killed(*args: Any, after_step: Callable, **more: Any) -> None:
        def fatal(progress: Any) -> bool:
            if progress.step == 4:
                raise KeyboardInterrupt
            return after_step(progress)

        train(*args, after_step=fatal, **more)

    monkeypatch.setattr(recipe, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "parts")
    monkeypatch.setattr(recipe, "train", train)
    parts = run(recipe, tmp_path / "parts")

    one, other = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    before, after = whole["found"]["40"]["per_split"]["1"], parts["found"]["40"]["per_split"]["1"]
    assert before["accuracies"] == after["accuracies"]
    assert before["curve"] == after["curve"]
    assert (before["resumed"], after["resumed"]) == (0, 1)

    again = run(recipe, tmp_path / "parts")  # all done: nothing is trained anew
    assert again["found"]["40"]["per_split"]["1"] == after
    with pytest.raises(UserError, match="other settings or steps"):
        run(recipe, tmp_path / "parts", "--strong", "usb")


def test_what_a_run_writes_down(recipe: ModuleType, tmp_path: Path) -> None:
    found = run(recipe, tmp_path, "--splits", "1", "2", "--predict", "accuracy=0.94")
    assert found["predicted"] == {"accuracy": "0.94"}
    assert found["device"]
    assert found["date"]
    row = found["found"]["40"]
    assert row["steps"] == 6
    assert list(row["per_split"]) == ["1", "2"]
    assert row["measured"]["accuracy_last"]["values"] == [row["per_split"][s]["last"] for s in ("1", "2")]
    assert row["measured"]["images_per_second"] > 0
    assert [point["step"] for point in row["per_split"]["1"]["curve"]] == [1, 2, 3, 4, 5, 6]


def test_minutes_become_steps_once(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--labels", "40", "--splits", "1", "--filters", "2", "--trial", "2", "--minutes", "0.02"]
    words += ["--folder", str(tmp_path), "--device", "cpu", *FEW]
    monkeypatch.setattr(recipe, "steps_within", lambda *_: 7)
    recipe.main(words)
    monkeypatch.setattr(recipe, "steps_within", lambda *_: pytest.fail("measured again"))
    recipe.main(words)


def test_too_few_minutes_are_refused(recipe: ModuleType) -> None:
    made = learner(recipe)
    made.given.minutes, made.given.trial = 1e-6, 2
    with pytest.raises(UserError, match="too few"):
        recipe.steps_within(made.given, made.images, 40)


def test_choosing_judges_by_training_images_that_nothing_learns_from(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "HELD_OUT", 50)
    images = recipe.images_of(tiny_set(), True, torch.device("cpu"))
    shown = {picture.numpy().tobytes() for picture in images.unlabeled.images}
    judged = {picture.numpy().tobytes() for picture in images.judged.images}
    known = {picture.tobytes() for picture in tiny_set().train.images}
    assert len(judged) == 50
    assert shown | judged == known
    assert not shown & judged
    with pytest.raises(SystemExit):
        recipe.main([*TINY, "--hidden"])


def test_compiling_changes_speed_alone(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = learner(recipe)
    plain.run(plain.batches(), 0, 3)
    calls = 0
    compiler = torch.compile

    def counted(function: Callable, mode: str, dynamic: bool) -> Callable:
        assert mode == "reduce-overhead"
        fast = compiler(function, backend="eager", dynamic=dynamic)

        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return fast(*args)

        return call

    monkeypatch.setattr(torch, "compile", counted)
    fused = learner(recipe, compile="reduce-overhead")
    assert list(fused.method.state_dict()) == list(plain.method.state_dict())
    fused.run(fused.batches(), 0, 3)
    assert calls == 3
    for one, other in zip(plain.method.state_dict().values(), fused.method.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    fused.accuracy()
    assert calls == 3  # the averaged copy answers, and is no compiled one


@pytest.mark.parametrize(
    ("method", "strong", "labels"),
    [("fixmatch", "ctaugment", 40), ("fixmatch", "usb", 40), ("mixmatch", "fixmatch", 40),
     ("freematch", "fixmatch", 80), ("flexmatch", "fixmatch", 40), ("mean_teacher", "fixmatch", 40)],
)  # fmt: skip
def test_methods_by_name(recipe: ModuleType, method: str, strong: str, labels: int) -> None:
    made = learner(recipe, method=method, strong=strong, labels=labels)
    with made.ahead() as batches:
        made.run(batches, 0, 2)
    assert 0 <= made.accuracy() <= 1
    assert made.depth == (0 if strong == "ctaugment" else 2)  # its rates change as it learns


def test_settings_follow_the_number_of_labels(recipe: ModuleType) -> None:
    few = [("labeled_batch", "4"), ("unlabeled_ratio", "1")]
    assert learner(recipe, method="remixmatch", set=few).settings.copies == 1
    assert learner(recipe, method="remixmatch", set=few, labels=80).settings.copies == 8
    assert learner(recipe, method="remixmatch", set=[*few, ("copies", "2")]).settings.copies == 2
    with pytest.raises(UserError, match="CTAugment"):
        learner(recipe, method="mean_teacher", strong="ctaugment")


def test_profile_tells_parts_floors_and_rates(recipe: ModuleType, tmp_path: Path) -> None:
    recipe.main([*TINY, "--profile", "--trial", "3", "--out", str(tmp_path / "p.json"), *FEW])
    found = json.loads((tmp_path / "p.json").read_text())["measured"]
    assert {"batch: weak views", "batch: strong views", "forward", "backward", "optimizer step",
            "average, after step"} <= found["parts_ms"].keys()  # fmt: skip
    assert all(part["host_ms"] >= 0 for part in found["parts_ms"].values())
    assert found["floors"]["images_per_step"] == 4 + 2 * 8
    assert set(found["floors"]["training on it"]["floors_ms"]) == {
        "arithmetic", "traffic, operator by operator", "starting operators",
    }  # fmt: skip
    assert found["kernels"]["operators_per_step"] > 100
    assert found["steps_in_10_minutes"] > 0


def test_counted_work_is_the_networks(recipe: ModuleType) -> None:
    from _profile import Work, covered

    with torch.device("meta"):
        net, images = WideResNet(), torch.zeros(10, 3, 32, 32)
    with Work() as forward:
        answer = net(images)
    with Work() as backward:
        answer.sum().backward()
    assert forward.flop / 2 / 10 == pytest.approx(0.214e9, rel=2e-3)  # multiply-adds of an image, the reference's count
    assert backward.flop / forward.flop == pytest.approx(2, rel=0.01)
    with Work() as addition:
        torch.zeros(6, device="meta").add(1)[2:].view(2, 2)
    assert (addition.operators, addition.bytes) == (2, 24 + 2 * 24)
    with torch.device("meta"):
        pool, rows = torch.zeros(1000), torch.zeros(3, dtype=torch.int64)
    with Work() as picking:
        pool.index_select(0, rows)
    assert picking.bytes == 2 * 12
    assert covered([(0, 2), (5, 6), (1, 3), (1, 2)]) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_step_waits(recipe: ModuleType) -> None:
    made = learner(recipe, device=torch.device("cuda"), precision=torch.bfloat16)
    made.run(made.batches(), 0, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with made.ahead() as batches:
            made.run(batches, 3, 6)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_streams_of_the_paper(recipe: ModuleType) -> None:
    made = learner(recipe, set=[])
    assert [(s.pool, s.batch) for s in made.method.streams() if isinstance(s, Stream)] == [
        ("labeled", 64), ("unlabeled", 448),
    ]  # fmt: skip
    assert made.images_per_step == 960
