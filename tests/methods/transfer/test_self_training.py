import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.small import CLASSES, batches_of, small, small_net
from wazuka.contract import Batch
from wazuka.functional.guessing import sharpen
from wazuka.methods.transfer.self_training import (
    SelfTraining,
    SelfTrainingSettings,
    certainty,
    class_balance,
    sure_weights,
)
from wazuka.parts.tuning import Tuning

GUESSES = torch.tensor([[0.9, 0.1, 0, 0], [0.25] * 4, [0, 0, 0, 1], [0.6, 0.2, 0.1, 0.1], [0.3, 0.4, 0.2, 0.1]])


def student(guesses: Tensor, **changes: object) -> SelfTraining:
    torch.manual_seed(0)
    settings = SelfTrainingSettings(tuning=Tuning(head="normal"), **changes)  # type: ignore[arg-type]
    return SelfTraining(small_net(), CLASSES, guesses, settings)


def batch(rows: Tensor, labeled: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(4)
    images, unlabeled = (torch.rand(n, 1, 8, 8, generator=generator) for n in (labeled, len(rows)))
    labels = torch.arange(labeled) % CLASSES
    return Batch(images=images, labels=labels, unlabeled=unlabeled.requires_grad_(), rows=rows)


def test_sure_images_share_the_weight_of_the_whole_pool() -> None:
    assert torch.equal(sure_weights(GUESSES, 0.0), torch.ones(5))
    torch.testing.assert_close(sure_weights(GUESSES, 0.6), torch.tensor([5 / 3, 0, 5 / 3, 5 / 3, 0]))
    assert torch.equal(sure_weights(GUESSES[:2], 0.95), torch.zeros(2))


def test_certainty_is_one_minus_the_share_of_the_largest_entropy() -> None:
    sure = certainty(GUESSES)
    assert sure[1] == pytest.approx(0, abs=1e-6)
    assert sure[2] == 1
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert sure[0] == pytest.approx(1 - entropy / math.log(4))
    torch.testing.assert_close(certainty(GUESSES[3:])[0], torch.tensor(1.0))  # divided by the largest
    assert torch.equal(certainty(GUESSES[1:2]), torch.zeros(1))


def test_balanced_every_class_that_was_guessed_counts_alike() -> None:
    weights = torch.tensor([1.0, 1.0, 2.0, 3.0, 0.0])
    guess = torch.tensor([0, 0, 3, 0, 1])  # the likeliest; a tie goes to the first
    assert torch.equal(GUESSES.argmax(dim=1), guess)
    balanced = class_balance(GUESSES, weights)
    assert float(balanced.sum()) == pytest.approx(7)
    of_class = [float(balanced[guess == c].sum()) for c in range(4)]
    assert of_class == pytest.approx([3.5, 0, 0, 3.5])
    assert float(balanced[3] / balanced[0]) == pytest.approx(3)  # within a class as before
    assert torch.equal(class_balance(GUESSES, torch.zeros(5)), torch.zeros(5))


def test_the_loss_is_a_sum_over_images_per_labeled_one() -> None:
    """With sure and true guesses there is no telling labeled and unlabeled images apart."""
    labels = torch.tensor([3, 1, 0, 2, 2, 1])
    method = student(F.one_hot(labels, CLASSES).float(), threshold=1.0, unlabeled_ratio=3)
    b = batch(torch.arange(6))
    logits = method.net(torch.cat([b.images, b.unlabeled]))
    summed = F.cross_entropy(logits, torch.cat([b.labels, labels]), reduction="sum")
    torch.testing.assert_close(method.loss(b, 0.0)[0], summed / 2)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("weighting", ["threshold", "entropy"])
def test_guesses_and_weights_are_those_of_the_rows(weighting: str, balanced: bool) -> None:
    method = student(GUESSES, weighting=weighting, balanced=balanced, threshold=0.5, unlabeled_weight=0.7)
    b = batch(torch.tensor([4, 0, 3, 3, 1, 2]))
    weights = sure_weights(GUESSES, 0.5) if weighting == "threshold" else certainty(GUESSES)
    weights = class_balance(GUESSES, weights) if balanced else weights
    logs = method.net(b.unlabeled).log_softmax(dim=1)
    expected = -(weights[b.rows] * (GUESSES[b.rows] * logs).sum(dim=1)).sum() / 6
    total, parts = method.loss(b, 0.0)
    torch.testing.assert_close(parts["unlabeled"], expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(total.detach(), parts["supervised"] + 5 * 0.7 * parts["unlabeled"])


def test_an_image_that_is_filtered_out_teaches_nothing() -> None:
    method = student(GUESSES, threshold=0.5)
    b = batch(torch.arange(5))
    (gradient,) = torch.autograd.grad(method.loss(b, 0.0)[0], b.unlabeled)
    assert [bool(g.abs().max() > 0) for g in gradient] == [True, False, True, True, False]


def test_guesses_are_sharpened_once_and_at_zero_hardened() -> None:
    torch.testing.assert_close(student(GUESSES, temperature=1.0).guesses, GUESSES)
    torch.testing.assert_close(student(GUESSES, temperature=0.5).guesses, sharpen(GUESSES, 0.5))
    hard = student(GUESSES, temperature=0.0)
    assert torch.equal(hard.guesses, F.one_hot(GUESSES.argmax(dim=1), CLASSES).float())
    torch.testing.assert_close(hard.weights, student(GUESSES).weights)  # how sure: before they are hardened


def test_no_gradient_flows_into_the_guesses() -> None:
    teacher = GUESSES.clone().requires_grad_()
    method = student(teacher)
    assert not method.guesses.requires_grad
    assert not method.weights.requires_grad
    assert {"guesses", "weights"} <= set(method.state_dict())


def test_streams_bring_the_rows_of_the_unlabeled_pool() -> None:
    method = small("self_training")
    labeled, unlabeled = method.streams()
    assert (labeled.pool, unlabeled.pool, unlabeled.index, unlabeled.labels) == ("labeled", "unlabeled", "rows", None)
    assert batches_of(method)(0).rows.shape == (unlabeled.batch,)


def test_wrong_guesses_and_settings_fail_at_once() -> None:
    with pytest.raises(ValueError, match=r"shape \(images, 4\)"):
        student(GUESSES[:, :3])
    for wrong in ({"threshold": 1.1}, {"weighting": "even"}, {"unlabeled_ratio": 0}, {"unlabeled_weight": -1.0},
                  {"temperature": -1.0}, {"view": "odd"}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SelfTrainingSettings(**wrong)  # type: ignore[arg-type]
