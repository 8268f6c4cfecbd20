"""MSP, MaxLogit, energy, entropy and disagreement: scores of nothing but the network's answer."""

import math

import pytest
import torch
from torch import Tensor

from wazuka.contract import Detector, Observation
from wazuka.methods.uncertainty.disagreement import Disagreement, DisagreementSettings
from wazuka.methods.uncertainty.energy import Energy, EnergySettings, free_energy
from wazuka.methods.uncertainty.entropy import Entropy
from wazuka.methods.uncertainty.max_logit import MaxLogit
from wazuka.methods.uncertainty.msp import MSP

LOGITS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3
MEASURES = ("mutual_information", "entropy", "confidence")


def seen(logits: Tensor, passes: Tensor | None = None) -> Observation:
    return Observation(logits, logits, passes=passes)


def score(detector: Detector, logits: Tensor) -> Tensor:
    return detector.score(seen(logits))


def disagreement(measure: str, passes: Tensor) -> Tensor:
    detector = Disagreement(DisagreementSettings(measure=measure))  # type: ignore[arg-type]
    return detector.score(seen(passes[0], passes))


def test_scores_by_their_definitions():
    probs = LOGITS.double().softmax(dim=1)
    torch.testing.assert_close(score(MSP(), LOGITS), (1 - probs.amax(dim=1)).float())
    torch.testing.assert_close(score(MaxLogit(), LOGITS), -LOGITS.amax(dim=1))
    torch.testing.assert_close(score(Energy(), LOGITS), -LOGITS.exp().sum(dim=1).log())
    torch.testing.assert_close(score(Entropy(), LOGITS), -(probs * probs.log()).sum(dim=1).float())
    at_two = score(Energy(EnergySettings(temperature=2.0)), LOGITS)
    torch.testing.assert_close(at_two, -2 * (LOGITS / 2).exp().sum(dim=1).log())


@pytest.mark.parametrize("detector", [MSP(), MaxLogit(), Energy(), Entropy()], ids=lambda one: type(one).__name__)
def test_high_means_odd(detector):
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.9, 0.8]])
    assert score(detector, unsure) > score(detector, sure)


@pytest.mark.parametrize("measure", MEASURES)
def test_high_means_odd_where_passes_contradict(measure):
    agreeing = torch.tensor([[[6.0, 0.0]], [[6.0, 0.0]]])
    contradicting = torch.tensor([[[6.0, 0.0]], [[0.0, 6.0]]])
    assert disagreement(measure, contradicting) > disagreement(measure, agreeing) + 0.4


def test_msp_ranks_where_the_probability_rounds_to_one():
    sure = torch.tensor([[40.0, 0.0], [60.0, 0.0], [20.0, 0.0]])
    scores = score(MSP(), sure)
    assert scores.argsort().tolist() == [1, 0, 2]
    torch.testing.assert_close(scores[0], torch.tensor(math.exp(-40)))
    assert score(MSP(), torch.zeros(1, 4)) == 0.75


def test_energy_of_a_constant_in_all_logits_moves_as_it_does_and_msp_stays():
    moved = LOGITS + 7
    torch.testing.assert_close(score(Energy(), moved), score(Energy(), LOGITS) - 7)
    torch.testing.assert_close(score(MaxLogit(), moved), score(MaxLogit(), LOGITS) - 7)
    for detector in (MSP(), Entropy()):
        torch.testing.assert_close(score(detector, moved), score(detector, LOGITS))
    # log MSP = max z - logsumexp z
    logs = (1 - score(MSP(), LOGITS).double()).log().float()
    torch.testing.assert_close(logs, score(Energy(), LOGITS) - score(MaxLogit(), LOGITS), atol=1e-5, rtol=1e-4)


def test_a_cold_energy_is_the_largest_logit_and_none_lies_above():
    torch.testing.assert_close(free_energy(LOGITS, 1e-3), -LOGITS.amax(dim=1), atol=1e-3, rtol=0)
    assert (free_energy(LOGITS, 1.0) <= -LOGITS.amax(dim=1)).all()
    assert score(Energy(), torch.tensor([[300.0, 299.0]])).isfinite().all()
    with pytest.raises(ValueError, match="above 0"):
        EnergySettings(temperature=0)


def test_entropy_runs_from_nothing_to_log_c():
    torch.testing.assert_close(score(Entropy(), torch.zeros(1, 5)), torch.tensor([math.log(5)]))
    assert score(Entropy(), torch.tensor([[1e4, 0.0]])) == 0
    assert score(Entropy(), torch.tensor([[0.0, -torch.inf]])) == 0


def test_disagreement_by_its_definition():
    passes = torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(1)) * 3
    probs = passes.double().softmax(dim=2)
    mean = probs.mean(dim=0)
    total, own = -(mean * mean.log()).sum(dim=1), -(probs * probs.log()).sum(dim=2).mean(dim=0)
    torch.testing.assert_close(disagreement("entropy", passes), total.float())
    torch.testing.assert_close(disagreement("mutual_information", passes), (total - own).float())
    torch.testing.assert_close(disagreement("confidence", passes), (1 - mean.amax(dim=1)).float())
    assert (disagreement("mutual_information", passes) > 0).all()


def test_passes_that_agree_know_all_there_is_to_know():
    passes = LOGITS.expand(3, -1, -1)
    assert disagreement("mutual_information", passes).abs().max() < 1e-6
    torch.testing.assert_close(disagreement("entropy", passes), score(Entropy(), LOGITS))
    torch.testing.assert_close(disagreement("confidence", passes), score(MSP(), LOGITS))
    constants = torch.tensor([0.0, 5.0, -9.0])[:, None, None]  # which no probability tells
    assert disagreement("mutual_information", passes + constants).abs().max() < 1e-6
    assert disagreement("mutual_information", LOGITS[None]).abs().max() < 1e-6  # one member


def test_an_ambiguous_image_is_unsure_and_not_disputed():
    ambiguous, disputed = torch.zeros(2, 1, 2), torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]])
    torch.testing.assert_close(disagreement("entropy", ambiguous), disagreement("entropy", disputed))
    assert disagreement("mutual_information", ambiguous) == 0
    torch.testing.assert_close(
        disagreement("mutual_information", disputed), torch.tensor([math.log(2)]), atol=2e-3, rtol=0
    )


def test_a_single_pass_has_nothing_to_disagree_with():
    with pytest.raises(ValueError, match="several passes"):
        Disagreement().score(seen(LOGITS))
    with pytest.raises(ValueError, match="measure"):
        DisagreementSettings(measure="variance")  # type: ignore[arg-type]
