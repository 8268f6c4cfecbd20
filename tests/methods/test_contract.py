"""What `wazuka.contract` promises, asked of every method, head and detector that `wazuka.methods` holds.

None is named here: see small.py, which finds them and makes them small.
"""

import copy
import dataclasses
import inspect
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.methods.small import (
    CLASSES,
    DETECTORS,
    HEADS,
    METHODS,
    NAMELESS,
    NUMBERS,
    SIDE,
    answering,
    batches_of,
    cases,
    detector_cases,
    detector_of,
    features_of,
    few_labels,
    head_cases,
    head_of,
    images_of,
    run,
    small,
    small_net,
    steppers_of,
)
from wazuka.contract import Detector, Episodes, Method, Observation, Optimizer, Stream, parameters_of
from wazuka.errors import UserError
from wazuka.evaluation.detection import auroc
from wazuka.evaluation.observing import Observer
from wazuka.training import Progress, Stepper, load_checkpoint, save_checkpoint

ALL = METHODS | HEADS | DETECTORS
POOLS = {"labeled", "unlabeled", "source", "target", "odd"}
VIEWS = {"plain", "weak", "strong", "probe"}
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|\b(ICML|ICLR|NeurIPS|NIPS|CVPR|ICCV|ECCV|AAAI|IJCAI|JMLR|TPAMI)\b")

every_method = pytest.mark.parametrize("name", METHODS)
every_detector = pytest.mark.parametrize(
    ("name", "changes"),
    detector_cases(),
    ids=[" ".join([name, *(f"{key}={value}" for key, value in changes.items())]) for name, changes in detector_cases()],
)
every_head = pytest.mark.parametrize("name", HEADS)
every_head_case = pytest.mark.parametrize(
    ("name", "changes"),
    head_cases(),
    ids=[" ".join([name, *(f"{key}={value}" for key, value in changes.items())]) for name, changes in head_cases()],
)
every_case = pytest.mark.parametrize(
    ("name", "changes"),
    cases(),
    ids=[" ".join([name, *(f"{field}={value}" for field, value in changes.items())]) for name, changes in cases()],
)


def equal_states(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def float_images(count: int = 8, seed: int = 7) -> Tensor:
    return images_of(count, seed)[0].float() / 255


# What a file says


def test_the_pilots_are_found() -> None:
    assert len(METHODS) >= 6
    assert len(HEADS) >= 6
    assert len(DETECTORS) >= 1


@pytest.mark.parametrize("name", ALL)
def test_its_file_names_its_source(name: str) -> None:
    told = sys.modules[ALL[name].kind.__module__].__doc__ or ""
    assert told.splitlines()[0].endswith("."), "the first line is a sentence: it stands in `wazuka methods`"
    assert SOURCE.search(told), "name the paper: arXiv number, or where it appeared"
    assert re.search(r"\b(19|20)\d\d\b", told), "and its year"
    assert inspect.getdoc(ALL[name].kind)


@pytest.mark.parametrize("name", ALL)
def test_settings_are_frozen_named_and_complete(name: str) -> None:
    kind, item = ALL[name].settings, ALL[name]
    if kind is None and name in DETECTORS:  # some have nothing to choose
        assert "settings" not in inspect.signature(item.kind.__init__).parameters
        return
    assert kind is not None
    assert kind.__name__ == f"{item.kind.__name__}Settings"
    fields, default = dataclasses.fields(kind), kind()  # every field has a default
    assert fields
    assert all(field.kw_only for field in fields)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(default, fields[0].name, getattr(default, fields[0].name))
    hash(default)
    assert dataclasses.replace(default) == default
    given = inspect.signature(item.kind.__init__).parameters["settings"].default
    assert given is None, "settings=None takes the defaults, which have one home"


# What a method asks for


@every_case
def test_streams_name_known_pools_views_and_fields(name: str, changes: dict[str, Any]) -> None:
    method, taken = small(name, changes=changes), []
    assert method.streams()
    for stream in method.streams():
        assert stream.pool in POOLS
        if isinstance(stream, Episodes):
            assert stream.policy in VIEWS
            taken += ["support", "query"]
            continue
        assert isinstance(stream, Stream)
        assert stream.views, "a stream without a view delivers nothing"
        assert set(stream.views.values()) <= VIEWS
        if stream.pool in NAMELESS:
            assert stream.labels is None, f"the labels of {stream.pool} images are not for learning"
        taken += [*stream.views, *(field for field in (stream.labels, stream.index) if field is not None)]
    assert all(field.isidentifier() for field in taken)
    assert len(set(taken)) == len(taken), "two streams write the same field"


@every_case
def test_players_own_all_that_learns(name: str, changes: dict[str, Any]) -> None:
    method = small(name, changes=changes)
    players = method.players()
    assert all(isinstance(how, Optimizer) for how in players.values())
    inside = set(method.modules())
    for player in players:
        assert set(player if isinstance(player, tuple) else (player,)) <= inside
    owned = [parameter for player in players for parameter in parameters_of(player)]
    learning = {parameter for parameter in method.parameters() if parameter.requires_grad}
    if changes.get("learn_weights") is not False:  # a weigher that is switched off stays as it began
        assert set(owned) == learning, "a parameter that no player owns never learns"
    assert len(owned) == len(set(owned)), "two players step the same parameter"


# What a step does


class Watching:
    """A stepper that looks at what a turn brings and what it moves."""

    def __init__(self, stepper: Stepper, method: Method):
        self.stepper, self.method, self.turns = stepper, method, 0

    def step(self, loss: Tensor, progress: float) -> None:
        assert loss.ndim == 0
        assert loss.dtype == torch.float32
        assert loss.requires_grad
        assert loss.isfinite()
        own = set(self.stepper.parameters)
        others = {name: p.detach().clone() for name, p in self.method.named_parameters() if p not in own}
        gradients = {name: p.grad for name, p in self.method.named_parameters() if p not in own}
        self.stepper.step(loss, progress)
        for name, parameter in self.method.named_parameters():
            if parameter not in own:
                assert torch.equal(parameter, others[name]), f"{name} moved in another player's turn"
                assert parameter.grad is gradients[name], f"{name} got a gradient in another player's turn"
        self.turns += 1


@every_case
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_players_learn_each_in_its_turn(name: str, changes: dict[str, Any], precision: torch.dtype) -> None:
    method = small(name, changes=changes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = copy.deepcopy(method.state_dict())
    watching: dict[Any, Any] = {p: Watching(stepper, method) for p, stepper in steppers_of(method).items()}
    told: list[dict[str, Tensor]] = []

    def note(progress: Progress) -> bool:
        told.append(progress.parts)
        return True

    run(method, watching, steps=4, precision=precision, after_step=note)
    names = {parameter: key for key, parameter in method.named_parameters()}
    for player, watched in watching.items():
        assert watched.turns > 0
        moved = [not torch.equal(p, before[names[p]]) for p in parameters_of(player)]
        assert sum(moved) >= 0.5 * len(moved)  # a bias may have no gradient by symmetry
    assert all(told)
    for parts in told:
        for key, value in parts.items():
            assert not value.requires_grad, f"{key} keeps its graph alive"
            assert value.ndim == 0, key
            assert value.isfinite(), key
    for key, value in method.state_dict().items():
        assert value.dtype == before[key].dtype, key
        assert value.isfinite().all(), key


@every_case
def test_layout_and_bfloat16_change_rounding_and_nothing_else(name: str, changes: dict[str, Any]) -> None:
    def first_losses(format: torch.memory_format, precision: torch.dtype) -> dict[str, float]:
        method = small(name, changes=changes).to(memory_format=format)  # type: ignore[call-overload]
        return run(method, steps=1, precision=precision)[0]

    plain = first_losses(torch.contiguous_format, torch.float32)
    turned = first_losses(torch.channels_last, torch.float32)
    rough = first_losses(torch.channels_last, torch.bfloat16)
    for key, value in plain.items():
        assert turned[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
        if key not in ("accuracy", "used", "told_apart"):  # shares of a few images may flip
            assert rough[key] == pytest.approx(value, rel=0.1, abs=0.02), key


@every_case
def test_same_seed_same_run_whatever_was_drawn_before(name: str, changes: dict[str, Any]) -> None:
    first, again, other = (small(name, changes=changes) for _ in range(3))
    run(first)
    torch.rand(17)
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    run(again)
    equal_states(first, again)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]
    batches = batches_of(other)
    run(other, batches=lambda step: batches(step + 1))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@every_method
@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_ends_as_the_whole_one_bit_for_bit(name: str, stop: int, tmp_path: Path) -> None:
    whole, cut = small(name), small(name)
    last = steppers_of(whole)
    run(whole, last, steps=5)

    steppers = steppers_of(cut)
    run(cut, steppers, steps=5, after_step=lambda progress: progress.step < stop)
    save_checkpoint(tmp_path / "saved", cut, steppers, {"step": stop})

    resumed = small(name, seed=99)
    steppers = steppers_of(resumed)
    facts = load_checkpoint(tmp_path / "saved", resumed, steppers)
    run(resumed, steppers, steps=5, first_step=facts["step"])
    equal_states(whole, resumed)
    for mine, theirs in zip(last.values(), steppers.values(), strict=True):
        ours, others = (stepper.optimizer.state_dict()["state"] for stepper in (mine, theirs))
        assert ours.keys() == others.keys()
        for place, values in ours.items():
            for key, value in values.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(others[place][key])), key
    assert torch.equal(answering(whole).predict(float_images()), answering(resumed).predict(float_images()))


# What it answers


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NUMBERS])
def test_answers_are_probabilities_of_each_image_alone(name: str) -> None:
    method = small(name)
    run(method)
    answering(method)
    before = copy.deepcopy(method.state_dict())
    images = float_images()
    probs = method.predict(images)
    assert probs.shape == (len(images), CLASSES)
    assert probs.dtype == torch.float32
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(images)))
    assert len(probs.round(decimals=4).unique(dim=0)) > 1, "all images get the same answer"
    torch.rand(3)
    assert torch.equal(method.predict(images), probs)
    alone = torch.cat([method.predict(image) for image in images.split(1)])
    torch.testing.assert_close(alone, probs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.predict(images.flip(0)).flip(0), probs, atol=1e-5, rtol=1e-4)
    strided = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(method.predict(strided), probs, atol=1e-5, rtol=1e-4)
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed by asking"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rough = method.predict(images)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.sum(dim=1), torch.ones(len(images)))
    torch.testing.assert_close(rough, probs, atol=0.1, rtol=0)


# What it remembers


def tensors_aside(module: nn.Module) -> list[str]:
    """Tensors that a module keeps where neither saving nor moving finds them."""

    def within(value: Any, place: str) -> list[str]:
        if isinstance(value, Tensor):
            return [place]
        if isinstance(value, dict):
            return [found for key, one in value.items() for found in within(one, f"{place}[{key!r}]")]
        if isinstance(value, list | tuple | set):
            return [found for number, one in enumerate(value) for found in within(one, f"{place}[{number}]")]
        return []

    found = []
    for path, part in module.named_modules():
        own = {key: value for key, value in vars(part).items() if key not in ("_parameters", "_buffers", "_modules")}
        found += [place for key, value in own.items() for place in within(value, f"{path}.{key}".lstrip("."))]
    return found


def test_the_search_for_tensors_aside_finds_them() -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    assert tensors_aside(module) == []
    module[0].queue = {"recent": [torch.zeros(1)]}  # type: ignore[assignment]
    assert tensors_aside(module) == ["0.queue['recent'][0]"]


@every_case
def test_memory_is_parameters_and_buffers(name: str, changes: dict[str, Any]) -> None:
    method = small(name, changes=changes)
    run(method)
    answering(method)
    assert tensors_aside(method) == []
    state = method.state_dict()
    kept = {*dict(method.named_parameters()), *dict(method.named_buffers())}
    assert kept <= set(state), "a buffer that is not persistent is lost in a resumed run"
    floating = {key for key, value in state.items() if value.is_floating_point()}
    moved = copy.deepcopy(method).to(torch.float64).state_dict()
    assert {key for key, value in moved.items() if value.dtype == torch.float64} == floating
    blank = small(name, seed=99, changes=changes)
    blank.load_state_dict(state)
    equal_states(blank, method)
    assert torch.equal(blank.eval().predict(float_images()), method.predict(float_images()))


@every_method
def test_a_step_makes_nothing_elsewhere_and_waits_for_nobody(name: str) -> None:
    """The meta device has shapes and no values: a tensor made on the host does not fit, and `.item()` fails."""
    method = small(name)
    batch = batches_of(method)(0)
    for key, value in vars(batch).items():
        setattr(batch, key, value.to("meta"))
    method.to("meta").train()
    for progress in (0.0, 0.9):
        for player, loss, parts in method.moves(batch, progress):
            torch.autograd.backward(loss, inputs=parameters_of(player))
            assert all(value.device.type == "meta" for value in parts.values())
        method.after_step()
    assert {value.device.type for key, value in [*method.named_parameters(), *method.named_buffers()]} == {"meta"}


@every_case
def test_a_copy_goes_its_own_way(name: str, changes: dict[str, Any]) -> None:
    method = small(name, changes=changes)
    run(method, steps=2)
    twin, before = copy.deepcopy(method), copy.deepcopy(method.state_dict())
    equal_states(twin, method)
    run(twin, steps=2)
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} is shared with the copy"
    run(method, steps=2)
    equal_states(twin, method)


# Heads


def close(one: Tensor, other: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=atol, rtol=1e-3)


def are_probabilities(probs: Tensor, count: int) -> None:
    assert probs.shape == (count, CLASSES)
    assert probs.dtype == torch.float32
    assert not probs.requires_grad
    assert (probs >= 0).all()  # not so where one is not a number
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(count))


@every_head_case
@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("unlabeled", [True, False], ids=["unlabeled", "labels alone"])
def test_a_head_learns_from_few(name: str, changes: dict[str, Any], shots: int, unlabeled: bool) -> None:
    features, truth = features_of(48)
    labels, head = few_labels(truth, shots), head_of(name, **changes)
    kept = torch.full_like(labels, True, dtype=torch.bool) if unlabeled else labels >= 0
    given = features[kept].clone(), labels[kept].clone()
    probs = head.fit(*given)
    assert torch.equal(given[0], features[kept]), "the features were changed"
    assert torch.equal(given[1], labels[kept]), "the labels were changed"
    are_probabilities(probs, int(kept.sum()))
    new, their_classes = features_of(40, seed=1)
    answers = head.predict(new)
    are_probabilities(answers, 40)
    if unlabeled or changes.get("walk") is not False:  # label propagation's own flaw, see there
        assert (probs.argmax(dim=1) == truth[kept]).float().mean() > 0.8
        assert (answers.argmax(dim=1) == their_classes).float().mean() > 0.8
    assert head.predict(new[:0]).shape == (0, CLASSES)


@every_head_case
def test_a_head_answers_for_each_image_alone_and_learns_nothing_by_it(name: str, changes: dict[str, Any]) -> None:
    features, truth = features_of(48)
    head, new = head_of(name, **changes), features_of(12, seed=1)[0]
    head.fit(features, few_labels(truth, 2))
    before, together = copy.deepcopy(head.state_dict()), head.predict(new)
    assert torch.equal(head.predict(new), together)
    close(torch.cat([head.predict(one) for one in new.split(1)]), together)
    close(head.predict(new.flip(0)).flip(0), together)
    close(head.predict(new.T.contiguous().T), together)
    close(head.predict(new.double()), together)
    assert len(together.round(decimals=4).unique(dim=0)) > CLASSES, "all images of a class get the same answer"
    for key, value in head.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed by asking"


@every_head_case
def test_a_heads_answers_are_a_function_of_what_it_was_given(name: str, changes: dict[str, Any]) -> None:
    features, truth = features_of(48)
    labels, new = few_labels(truth, 2), features_of(12, seed=1)[0]
    first, again = head_of(name, **changes), head_of(name, **changes)
    probs = first.fit(features, labels)
    again.fit(*(part[:20] for part in (features_of(48, seed=3)[0], labels)))  # of what it learned before, nothing stays
    torch.manual_seed(17)
    random.seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    assert torch.equal(again.fit(features, labels), probs)
    assert torch.equal(again.predict(new), first.predict(new))
    equal_states(first, again)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]
    with torch.inference_mode():
        assert torch.equal(again.fit(features, labels), probs)
    close(head_of(name, **changes).fit(features.T.contiguous().T, labels), probs)
    close(head_of(name, **changes).fit(features.double(), labels), probs)


@every_head_case
def test_a_head_does_not_know_the_order_of_images(name: str, changes: dict[str, Any]) -> None:
    features, truth = features_of(48)
    labels, new = few_labels(truth, 3), features_of(12, seed=1)[0]
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    head, shuffled = head_of(name, **changes), head_of(name, **changes)
    close(shuffled.fit(features[order], labels[order]), head.fit(features, labels)[order])
    close(shuffled.predict(new), head.predict(new))


@every_head_case
def test_a_head_does_not_know_the_order_of_classes(name: str, changes: dict[str, Any]) -> None:
    """Nor does it take the -1 of an unlabeled image for a class: counted from the end, it would be the last."""
    features, truth = features_of(48)
    labels, new = few_labels(truth, 3), features_of(12, seed=1)[0]
    labels[(labels == 1).nonzero()[1:]] = -1  # one label, others have three
    place = torch.tensor([2, 0, 3, 1])
    renamed = torch.where(labels < 0, -1, place[labels])
    head, other = head_of(name, **changes), head_of(name, **changes)
    close(other.fit(features, renamed)[:, place], head.fit(features, labels))
    close(other.predict(new)[:, place], head.predict(new))


@every_head_case
def test_a_heads_memory_is_its_state(name: str, changes: dict[str, Any]) -> None:
    features, truth = features_of(48)
    head, new = head_of(name, **changes), features_of(12, seed=1)[0]
    head.fit(features, few_labels(truth, 2))
    expected = head.predict(new)
    assert tensors_aside(head) == []
    assert not list(head.parameters())
    assert set(dict(head.named_buffers())) == set(head.state_dict())
    refitted = head_of(name, **changes)
    refitted.fit(features[:30], few_labels(truth, 1)[:30])
    for loaded in (head_of(name, **changes), refitted):
        loaded.load_state_dict(head.state_dict())
        equal_states(loaded, head)
        assert torch.equal(loaded.predict(new), expected)
    refitted.fit(features[:30], few_labels(truth, 1)[:30])
    assert torch.equal(head.predict(new), expected), "the loaded head shares its memory"
    twin = copy.deepcopy(head)
    assert torch.equal(twin.predict(new), expected)
    close(twin.to(torch.float64).predict(new), expected)
    held = nn.ModuleList([head_of(name, **changes)])
    held.load_state_dict(nn.ModuleList([head]).state_dict())
    assert torch.equal(held[0].predict(new), expected)  # type: ignore[operator]


@every_head
def test_an_unfitted_head_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="fit"):
        head_of(name).predict(features_of(8)[0])


@every_head
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda features, labels: (features.half(), labels), "float32"),
        (lambda features, labels: (features.long(), labels), "float32"),
        (lambda features, labels: (features[0], labels), "float32"),
        (lambda features, labels: (features, labels.int()), "int64"),
        (lambda features, labels: (features, labels.float()), "int64"),
        (lambda features, labels: (features, labels[:-1]), "one for each"),
        (lambda features, labels: (features, labels.clamp_min(0) + 1), "0 .. 3"),
        (lambda features, labels: (features, labels - 1), "0 .. 3"),
        (lambda features, labels: (features, torch.where(labels == 3, -1, labels)), r"\[3\]"),
        (lambda features, labels: (features[:0], labels[:0]), "at least one labeled"),
        (lambda features, labels: (features / 0, labels), "not a number"),
    ],
)
def test_what_a_head_cannot_learn_from_is_refused_in_a_sentence(name: str, spoil: Any, says: str) -> None:
    features, truth = features_of(24)
    with pytest.raises(UserError, match=says):
        head_of(name).fit(*spoil(features, few_labels(truth, 2)))


@every_head
def test_what_a_head_cannot_name_is_refused_in_a_sentence(name: str) -> None:
    features, truth = features_of(24)
    head = head_of(name)
    head.fit(features, few_labels(truth, 2))
    with pytest.raises(UserError, match="another network"):
        head.predict(features[:, 1:])
    with pytest.raises(UserError, match="float32"):
        head.predict(features.half())


# Detectors


@pytest.fixture(scope="module")
def known() -> nn.ModuleList:
    """Three networks that know the four quarters."""
    nets = []
    for seed in range(3):
        torch.manual_seed(seed)
        net = small_net()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        images, labels = images_of(64, seed=20 + 30 * seed)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images.float() / 255), labels).backward()
            optimizer.step()
        nets.append(net.eval())
    return nn.ModuleList(nets)


def seen(detector: Detector, nets: nn.ModuleList, images: Tensor) -> Observation:
    """By one network; by all of them where the detector compares answers."""
    one = Observer(nets[0], [detector])(images)
    return dataclasses.replace(one, passes=Observer(nets, [])(images).passes)


def fitted(name: str, nets: nn.ModuleList, changes: dict[str, Any]) -> Detector:
    detector, images = detector_of(name, **changes), float_images(200, seed=21)
    assert detector.fit(lambda: (seen(detector, nets, part) for part in images.split(32))) is detector
    return detector.eval()


def odd_images() -> dict[str, Tensor]:
    noise = torch.rand(60, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(3))
    shuffled = float_images(60, seed=23).flatten(1)[:, order].view(-1, 1, SIDE, SIDE)
    return {"noise": noise, "inverted": 1 - float_images(60, seed=22), "shuffled": shuffled}


@every_detector
def test_high_means_odd(name: str, changes: dict[str, Any], known: nn.ModuleList) -> None:
    detector = fitted(name, known, changes)
    usual = detector.score(seen(detector, known, float_images(60, seed=22)))
    assert usual.shape == (60,)
    assert usual.dtype in (torch.float32, torch.float64)
    assert usual.isfinite().all()
    assert not usual.requires_grad
    found = {}
    for kind, images in odd_images().items():
        odd = detector.score(seen(detector, known, images))
        assert odd.isfinite().all()
        found[kind] = auroc(odd.numpy(), usual.numpy())
    assert min(found.values()) > 0.7, found  # a network may be sure of a dark quarter in light
    assert sum(found.values()) / 3 > 0.88, found


@every_detector
def test_a_score_is_of_one_image_alone_and_changes_nothing(
    name: str, changes: dict[str, Any], known: nn.ModuleList
) -> None:
    detector, images = fitted(name, known, changes), float_images(12, seed=24)
    before, network = copy.deepcopy(detector.state_dict()), copy.deepcopy(known.state_dict())
    together = detector.score(seen(detector, known, images))
    assert torch.equal(detector.score(seen(detector, known, images)), together)
    alone = torch.cat([detector.score(seen(detector, known, image)) for image in images.split(1)])
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-3)
    assert detector.score(seen(detector, known, images[:0])).shape == (0,)
    for key, value in detector.state_dict().items():
        assert torch.equal(value, before[key]), key
    for key, value in known.state_dict().items():
        assert torch.equal(value, network[key]), f"{key} of the network changed"


@every_detector
def test_features_and_logits_may_be_bfloat16(name: str, changes: dict[str, Any], known: nn.ModuleList) -> None:
    detector, images = fitted(name, known, changes), float_images(60, seed=22)
    exact = seen(detector, known, torch.cat([images, odd_images()["noise"]]))
    rough = dataclasses.replace(
        exact,
        logits=exact.logits.bfloat16(),
        features=exact.features.bfloat16(),
        passes=None if exact.passes is None else exact.passes.bfloat16(),
        nudged={nudge: logits.bfloat16() for nudge, logits in exact.nudged.items()},
    )
    scores = detector.score(rough)
    assert scores.dtype in (torch.float32, torch.float64)
    ranks = [one.argsort().argsort().double() for one in (scores, detector.score(exact))]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.98


@every_detector
def test_a_detectors_memory_is_its_state(name: str, changes: dict[str, Any], known: nn.ModuleList) -> None:
    detector, images = fitted(name, known, changes), float_images(12, seed=24)
    expected = detector.score(seen(detector, known, images))
    assert tensors_aside(detector) == []
    assert not [parameter for parameter in detector.parameters() if parameter.requires_grad]
    loaded = detector_of(name, **changes)
    loaded.load_state_dict(detector.state_dict())
    equal_states(loaded, detector)
    assert loaded.wants == detector.wants
    for twin in (loaded, copy.deepcopy(detector), fitted(name, known, changes)):
        assert torch.equal(twin.score(seen(twin, known, images)), expected)
    assert {value.device.type for value in copy.deepcopy(detector).to("meta").state_dict().values()} <= {"meta"}


@every_detector
def test_an_unfitted_detector_says_so_and_one_without_memory_needs_no_fit(
    name: str, changes: dict[str, Any], known: nn.ModuleList
) -> None:
    detector, images = detector_of(name, **changes), float_images()
    if detector.state_dict():
        with pytest.raises(ValueError, match="fit"):
            detector.score(seen(detector, known, images))
    else:
        scores = fitted(name, known, changes).score(seen(detector, known, images))
        assert torch.equal(detector.score(seen(detector, known, images)), scores)


@every_detector
def test_without_known_images_nothing_is_learned(name: str, changes: dict[str, Any]) -> None:
    detector = detector_of(name, **changes)
    if detector.state_dict():
        with pytest.raises(UserError):
            detector.fit(lambda: [])
