import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.functional.uncertainty import (
    expected_entropy,
    mean_log_probs,
    mean_logits,
    mutual_information,
    predictive_entropy,
)


def passes(members: int = 5, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(members, 40, 6, generator=torch.Generator().manual_seed(0), dtype=dtype) * scale


def entropy(probs: Tensor) -> Tensor:
    return torch.distributions.Categorical(probs=probs).entropy()


def test_probabilities_are_averaged_and_not_logits() -> None:
    given = passes()
    torch.testing.assert_close(mean_log_probs(given).exp(), given.softmax(-1).mean(0))
    assert not torch.allclose(mean_log_probs(given).softmax(-1), given.mean(0).softmax(-1), atol=0.05)
    torch.testing.assert_close(mean_log_probs(given).logsumexp(-1), torch.zeros(40, dtype=torch.float64))


def test_mean_logits_keep_answers_and_energy() -> None:
    given = passes()
    torch.testing.assert_close(mean_logits(given).softmax(-1), given.softmax(-1).mean(0))
    torch.testing.assert_close(mean_logits(given).logsumexp(-1), given.logsumexp(-1).mean(0))
    torch.testing.assert_close(mean_logits(given[:1]), given[0])


def test_what_is_unsure_is_unsure_alone_or_together() -> None:
    given = passes()
    torch.testing.assert_close(predictive_entropy(given), entropy(given.softmax(-1).mean(0)))
    torch.testing.assert_close(expected_entropy(given), entropy(given.softmax(-1)).mean(0))
    torch.testing.assert_close(
        predictive_entropy(given), expected_entropy(given) + mutual_information(given), atol=1e-12, rtol=0
    )
    assert (mutual_information(given) > 0).all()


def test_members_that_agree_share_no_information() -> None:
    alike = passes(1).expand(7, 40, 6)
    assert mutual_information(alike).abs().max() < 1e-15
    assert mutual_information(passes(1)).eq(0).all()
    torch.testing.assert_close(predictive_entropy(alike), entropy(passes(1)[0].softmax(-1)))
    torch.testing.assert_close(mean_log_probs(alike), passes(1)[0].log_softmax(-1))


def test_members_that_are_sure_of_different_classes_disagree_all_they_can() -> None:
    sure = torch.eye(4)[:, None] * 200  # member t says class t
    torch.testing.assert_close(mutual_information(sure), torch.tensor([math.log(4)]))
    torch.testing.assert_close(expected_entropy(sure), torch.zeros(1))


def test_order_means_nothing_and_constants_neither() -> None:
    given, order = passes(), torch.tensor([3, 0, 4, 1, 2])
    for score in (predictive_entropy, expected_entropy, mutual_information):
        torch.testing.assert_close(score(given[order]), score(given))
        torch.testing.assert_close(score(given[..., torch.randperm(6)]), score(given))
        torch.testing.assert_close(score(given + torch.randn(5, 40, 1)), score(given))


def test_the_ensemble_is_never_worse_than_its_members_on_average() -> None:
    given, labels = passes(), torch.arange(40) % 6
    together = F.nll_loss(mean_log_probs(given), labels)
    alone = torch.stack([F.cross_entropy(one, labels) for one in given]).mean()
    assert together < alone


def test_sure_answers_are_told_apart_in_float32() -> None:
    """1 - 1e-9 is 1 in float32: entropies subtracted there are 0 for both."""
    slight = torch.tensor([[[21.0, 0, 0]], [[20.0, 0, 0]]])
    more = torch.tensor([[[23.0, 0, 0]], [[18.0, 0, 0]]])
    exact = predictive_entropy(slight.double()) - expected_entropy(slight.double())
    torch.testing.assert_close(mutual_information(slight), exact.float(), rtol=1e-4, atol=0)
    assert 0 < mutual_information(slight) < mutual_information(more)


def test_unsure_answers_that_hardly_differ_are_told_apart_in_float32() -> None:
    """Their entropies are log 3, but for 1e-9."""
    for step in (1e-4, 2e-4):
        given = torch.tensor([[[0.0, 0, 0]], [[step, 0, 0]]])
        expected = step**2 / 8 * (2 / 9)  # half the variance of the logit, by the Fisher matrix: p (1 - p)
        assert mutual_information(given).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wild_logits_give_finite_float32(dtype: torch.dtype) -> None:
    wild = passes(scale=2000.0).to(dtype)
    for result in (mean_log_probs(wild), predictive_entropy(wild), expected_entropy(wild), mutual_information(wild)):
        assert result.dtype == torch.float32
        assert result.isfinite().all()
    assert (mutual_information(wild) >= 0).all()
