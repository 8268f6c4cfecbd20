"""SoftMatch: FixMatch that weighs a guess by how sure it is, in place of using or rejecting it.

Chen et al. 2023, "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning", ICLR,
arXiv:2301.10921; microsoft/Semi-supervised-learning (algorithms/softmatch), followed where the paper is silent.
In a step, first the average guess takes in the batch and aligns its guesses; then mean and variance of the confidence
take in the *aligned* guesses; last they are weighed. What an image is taught is its guess as it was: alignment serves
the weight alone.
The passes and their options are FixMatch's, see parts/passes.py. `frugal` spares the backward pass of the weak views;
apart they have none, and every strong view has a weight, so there it changes nothing.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.guessing import align
from wazuka.functional.processes import mean_over_processes, process_count
from wazuka.functional.schedules import cosine_7_16
from wazuka.functional.weighted_guesses import weighted_guess_loss
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.passes import weak_to_strong


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor, sigmas: float) -> Tensor:
    """What a guess counts: 1 from the mean confidence upwards, below it the flank of a Gaussian.

    confidence  (N,)  in [0, 1]
    mean        ()    mu_t
    variance    ()    sigma_t^2, above 0
    sigmas            > 0: the Gaussian's width is sigma_t / sigmas; without bound, the weight becomes a mask
    returns     (N,)  in [0, 1]
    """
    below = (confidence - mean).clamp_max(0)
    return (-below.square() / (2 * variance / sigmas**2)).exp()


def mean_and_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of the values of all processes; (N,) -> (), ()."""
    mean = mean_over_processes(values.mean())
    count = len(values) * process_count()
    return mean, mean_over_processes((values - mean).square().mean()) * (count / (count - 1))


@dataclass(frozen=True, kw_only=True)
class SoftMatchSettings:
    labeled_batch: int = 64        # B, as FixMatch
    unlabeled_ratio: int = 7       # mu, as FixMatch
    decay: float = 0.999           # m, of the three averages; a run of a few hundred steps wants 0.99
    sigmas: float = 2.0            # n_sigma, the authors' configs
    alignment: bool = True         # uniform alignment, of the weights alone
    unlabeled_weight: float = 1.0  # lambda_u
    guesser: Literal["live", "average"] = "live"  # whose weights guess; "average" needs no joint pass
    temperature: float = 0.0       # 0: hard guesses, as the authors; above: sharpened soft ones
    joint: bool = True             # one forward pass over all views, as the authors' code has it
    frugal: bool = False           # no backward pass through the weak views
    averaging: float = 0.999       # decay of the weights used to answer
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.03, weight_decay=5e-4, schedule=cosine_7_16)  # as FixMatch
    )

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")
        if not self.sigmas > 0:
            raise ValueError(f"sigmas must be above 0, got {self.sigmas}")
        if self.unlabeled_ratio < 1 or self.unlabeled_weight < 0:
            raise ValueError("unlabeled_ratio must be at least 1 and unlabeled_weight not negative")
        if self.labeled_batch * self.unlabeled_ratio < 2:
            raise ValueError("labeled_batch times unlabeled_ratio must be at least 2, for a variance is taken")
        if self.guesser not in ("live", "average"):
            raise ValueError(f'guesser must be "live" or "average", got {self.guesser!r}')
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative (0: hard guesses), got {self.temperature}")


class SoftMatch(Method):
    """One network and three running averages of its guesses; answers come from the averaged weights.

    net      images -> (N, classes) logits
    classes  C
    """

    mean: Tensor
    variance: Tensor
    guessed: Tensor

    def __init__(self, net: nn.Module, classes: int, settings: SoftMatchSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or SoftMatchSettings()
        self.average = AveragedWeights(net, self.settings.averaging)
        self.register_buffer("mean", torch.tensor(1 / classes))   # mu_t
        self.register_buffer("variance", torch.tensor(1.0))       # sigma_t^2
        self.register_buffer("guessed", torch.zeros(classes))     # p_model; zeros until the first batch, then its mean

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        guessed = {"weak": "weak", "strong": "strong"}
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": "weak"}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=guessed),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        live = s.guesser == "live"
        labeled, strong, guesses, weights = weak_to_strong(
            self.net, batch, self._judge,
            joint=s.joint, frugal=s.frugal and s.joint and live, average=None if live else self.average,
        )  # fmt: skip
        supervised = F.cross_entropy(labeled, batch.labels)
        unlabeled = weighted_guess_loss(guesses, strong, weights, s.temperature)
        total = supervised + s.unlabeled_weight * unlabeled
        return total, as_tensor_parts(supervised=supervised, unlabeled=unlabeled, used=weights.mean())

    def _judge(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        guesses = weak.softmax(dim=1)
        confidence = self._aligned(guesses).amax(dim=1)
        mean, variance = mean_and_variance(confidence)
        self.mean.lerp_(mean, 1 - self.settings.decay)
        self.variance.lerp_(variance, 1 - self.settings.decay)
        return guesses, truncated_gaussian(confidence, self.mean, self.variance, self.settings.sigmas)

    def _aligned(self, guesses: Tensor) -> Tensor:
        """The guesses scaled so that all classes are guessed alike on average; this batch counts in the average."""
        if not self.settings.alignment:
            return guesses
        batch = mean_over_processes(guesses.mean(dim=0))
        going_on = self.guessed.lerp(batch, 1 - self.settings.decay)
        self.guessed.copy_(torch.where(self.guessed.sum() > 0, going_on, batch))
        return align(guesses, self.guessed, torch.full_like(self.guessed, 1 / len(self.guessed)))

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
