import math

import pytest
import torch
from torch import Tensor

from wazuka.contract import Batch
from wazuka.methods.semi.fixmatch import FixMatch, FixMatchSettings
from wazuka.methods.semi.flexmatch import FlexMatch, FlexMatchSettings, flexible_mask, learning_effect, recorded
from wazuka.nets import ConvNet

WAYS = [{}, {"frugal": True}, {"joint": False}, {"joint": False, "frugal": True}, {"guesser": "average"}]
POOL = 30


def a_batch(seed: int = 0, labeled: int = 4, unlabeled: int = 8) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(labeled, 1, 8, 8, generator=g),
        labels=torch.randint(0, 3, (labeled,), generator=g),
        weak=torch.rand(unlabeled, 1, 8, 8, generator=g),
        strong=torch.rand(unlabeled, 1, 8, 8, generator=g),
        rows=torch.randperm(POOL, generator=g)[:unlabeled],
    )


def a_net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(1, 3, (4, 8))


def a_method(**settings) -> FlexMatch:
    return FlexMatch(a_net(), 3, POOL, FlexMatchSettings(labeled_batch=4, **settings)).train()


def gradient(method: FlexMatch | FixMatch, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    total, parts = method.loss(batch, 0.0)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(method.net.parameters()))]), parts


def guesses_of(batch: Batch) -> Tensor:
    """What a fresh method guesses from the weak views."""
    with torch.no_grad():
        return a_net().train()(torch.cat([batch.images, batch.strong, batch.weak]))[12:].softmax(dim=1)


# The learning effect


def test_nothing_recorded_is_nothing_learned() -> None:
    for warm_up in (True, False):
        assert torch.equal(learning_effect(torch.full((7,), -1), 3, warm_up), torch.zeros(3))


def test_equal_records_are_all_well_learned() -> None:
    record = torch.tensor([0, 1, 2, 0, 1, 2, -1, -1])
    for warm_up in (True, False):
        assert torch.equal(learning_effect(record, 3, warm_up), torch.ones(3))


def test_warm_up_counts_the_images_without_a_record() -> None:
    record = torch.tensor([-1, 0, -1, 0, 1, -1, -1])
    torch.testing.assert_close(learning_effect(record, 3, True), torch.tensor([2 / 4, 1 / 4, 0.0]))
    torch.testing.assert_close(learning_effect(record, 3, False), torch.tensor([1.0, 1 / 2, 0.0]))
    record[0] = 0  # three of class 0, three without: from here on both are one
    record[2] = 1
    assert torch.equal(learning_effect(record, 3, True), learning_effect(record, 3, False))


# The mask


@pytest.mark.parametrize(
    ("mapping", "half"), [("convex", 1 / 3), ("linear", 1 / 2), ("concave", math.log(1.5) / math.log(2))]
)
def test_each_class_has_the_threshold_of_its_effect(mapping: str, half: float) -> None:
    effect = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    for named, limit in enumerate([0.0, 0.9 * half, 0.9]):
        for confidence in (max(limit - 1e-6, 0.4), limit + 1e-6, 0.999):
            if confidence < 0.4:  # then the class would not be the likeliest
                continue
            guess = torch.full((1, 3), (1 - confidence) / 2, dtype=torch.float64)
            guess[0, named] = confidence
            assert flexible_mask(guess, effect, 0.9, mapping).item() is (confidence >= limit)


def test_where_nothing_is_learned_every_guess_passes() -> None:
    assert flexible_mask(torch.full((4, 3), 1 / 3), torch.zeros(3), 0.95, "convex").all()


# The record


def test_only_sure_guesses_change_the_record() -> None:
    record = torch.tensor([-1, 2, 2, -1, 0])
    after = recorded(record, torch.tensor([1, 0, 2]), torch.tensor([0, -1, -1]))
    assert after.tolist() == [-1, 0, 2, -1, 0]
    assert record.tolist() == [-1, 2, 2, -1, 0]


def test_of_an_image_that_comes_twice_the_later_sure_guess_counts() -> None:
    record = torch.full((3,), -1)
    assert recorded(record, torch.tensor([1, 1, 1]), torch.tensor([2, 0, -1])).tolist() == [-1, 0, -1]
    assert recorded(record, torch.tensor([1, 1, 1]), torch.tensor([-1, 0, 2])).tolist() == [-1, 2, -1]


def test_the_mask_is_read_off_the_record_before_it_changes() -> None:
    batch = a_batch()
    confidence, guess = guesses_of(batch).max(dim=1)
    threshold = float(confidence.median())
    method = a_method(threshold=threshold, unlabeled_weight=0.0)
    _, parts = method.loss(batch, 0.0)
    assert parts["used"] == 1  # nothing was recorded, so all thresholds were 0
    expected, sure = torch.full((POOL,), -1), confidence >= threshold
    assert 0 < sure.sum() < 8
    expected[batch.rows[sure]] = guess[sure]
    assert torch.equal(method.record, expected)
    _, parts = method.loss(batch, 0.0)
    counts = torch.bincount(expected + 1, minlength=4)
    effect = counts[1:] / counts.max()
    used = confidence >= threshold * (effect / (2 - effect))[guess]
    assert parts["used"] == used.float().mean()


def test_the_record_takes_the_fixed_threshold() -> None:
    """A guess that only the flexible threshold lets through teaches, and is not recorded."""
    method = a_method(threshold=0.999)
    _, parts = method.loss(a_batch(), 0.0)
    assert parts["used"] == 1
    assert parts["unlabeled"] > 0
    assert method.record.eq(-1).all()


def test_the_record_is_found_by_row() -> None:
    batch, method = a_batch(), a_method(threshold=0.0)
    method.loss(batch, 0.0)
    assert torch.equal(method.record[batch.rows], guesses_of(batch).argmax(dim=1))
    others = torch.ones(POOL, dtype=torch.bool)
    others[batch.rows] = False
    assert method.record[others].eq(-1).all()


# The whole


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("way", WAYS)
def test_equally_recorded_classes_make_it_fixmatch(way: dict, temperature: float) -> None:
    batch, more = a_batch(), {"temperature": temperature, **way}
    guesses = guesses_of(batch)
    if way.get("guesser") == "average" or way.get("joint") is False:
        with torch.no_grad():
            guesses = a_net().train(way.get("guesser") is None)(batch.weak).softmax(dim=1)
    threshold = float(guesses.amax(dim=1).median())
    fix = FixMatch(a_net(), 3, FixMatchSettings(labeled_batch=4, threshold=threshold, **more)).train()
    flex = a_method(threshold=threshold, **more)
    flex.record.copy_(torch.arange(POOL) % 3)
    (expected, fix_parts), (found, parts) = gradient(fix, batch), gradient(flex, batch)
    assert 0 < fix_parts["used"] < 1
    assert torch.equal(found, expected)
    torch.testing.assert_close(parts, fix_parts, rtol=0, atol=0)


def test_a_class_learned_less_gets_more_images() -> None:
    batch = a_batch()
    guess = guesses_of(batch).argmax(dim=1)
    named = int(guess.mode().values)
    method = a_method(threshold=1.01)  # nothing passes where a class is well learned
    method.record.copy_(torch.full((POOL,), (named + 1) % 3))
    _, parts = method.loss(batch, 0.0)
    assert parts["used"] == (guess != (named + 1) % 3).float().mean()


def test_the_terms_add_up() -> None:
    total, parts = a_method(unlabeled_weight=3.0).loss(a_batch(), 0.0)
    assert parts["unlabeled"] > 0
    torch.testing.assert_close(total.detach(), parts["supervised"] + 3 * parts["unlabeled"])


def test_no_gradient_enters_through_the_guess() -> None:
    batch, method = a_batch(), a_method(temperature=0.5)
    batch.weak.requires_grad_()
    method.eval()  # so that batch norm does not tie the images to each other
    method.loss(batch, 0.0)[0].backward()
    assert batch.weak.grad is None or batch.weak.grad.eq(0).all()


def test_streams_ask_for_rows_and_never_for_unlabeled_labels() -> None:
    labeled, unlabeled = a_method(unlabeled_ratio=7).streams()
    assert (labeled.batch, unlabeled.batch) == (4, 28)
    assert (unlabeled.index, unlabeled.labels) == ("rows", None)


def test_answers_come_from_the_averaged_weights() -> None:
    method, images = a_method(averaging=0.9).eval(), torch.rand(5, 1, 8, 8)
    before = method.predict(images)
    with torch.no_grad():
        method.net.head.weight.add_(1.0)
    assert torch.equal(method.predict(images), before)
    method.after_step()
    assert not torch.equal(method.predict(images), before)


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": -0.1},
        {"mapping": "cubic"},
        {"unlabeled_ratio": 0},
        {"unlabeled_weight": -1.0},
        {"guesser": "teacher"},
        {"temperature": -1.0},
    ],
)
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        FlexMatchSettings(**bad)
