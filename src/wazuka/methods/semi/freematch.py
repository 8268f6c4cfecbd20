"""FreeMatch: FixMatch whose thresholds follow what the network is sure of, with a term against favorite classes.

Wang et al. 2023, "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR, arXiv:2205.07246;
TorchSSL/TorchSSL (models/freematch_entropy), with which the paper's figures were made, and
microsoft/Semi-supervised-learning (algorithms/freematch), followed where the paper is silent.
All three averages take in a batch before its mask is made. The fairness term (Eq. 11) is a *negative* cross-entropy:
it is at most 0, and learning makes it more so, which takes from the classes that are guessed most to the others.
Differs from the code: under several processes the fairness term, too, is of the whole batch. Its weight is 0.01 in
the code of the paper's figures, for all data sets, and 0.001 in the later repository; the paper names 0.01 to 0.05.
The passes and their options are FixMatch's, see parts/passes.py.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.processes import mean_over_processes
from wazuka.functional.schedules import cosine_7_16
from wazuka.functional.weighted_guesses import weighted_guess_loss
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.passes import weak_to_strong


def adaptive_mask(guesses: Tensor, threshold: Tensor, expected: Tensor) -> Tensor:
    """Which guesses reach the threshold of the class they name: tau_t, less for classes that are guessed less.

    guesses    (N, C)  probabilities
    threshold  ()      tau_t, in [0, 1]: of the class that is guessed most
    expected   (C,)    p~_t, the average guess
    returns    (N,)    bool
    """
    confidence, guess = guesses.max(dim=1)
    return confidence >= threshold * (expected / expected.max())[guess]


def fairness_loss(strong: Tensor, used: Tensor, expected: Tensor, histogram: Tensor) -> Tensor:
    """Sum of P log Q (Eq. 11): the average guess P beside Q, that of this batch's strong views.

    strong     (N, C)  logits
    used       (N,)    bool: only these views count
    expected   (C,)    p~_t, the average guess
    histogram  (C,)    h~_t, the average share of each class among the likeliest ones
    returns    ()      nats, at most 0; 0 where no view is used

    P is p~/h~ and Q is p/h of the strong views, both scaled to sum to 1; a class without a share has no part in its
    sum. So a class that is often the likeliest, and then surely so, weighs no more than one that rarely is.
    """
    counts = used[:, None].to(strong.dtype)
    probs = strong.softmax(dim=1)
    likeliest = F.one_hot(strong.argmax(dim=1), strong.shape[1]).to(strong.dtype)
    mean, shares = mean_over_processes(torch.stack([(counts * probs).mean(dim=0), (counts * likeliest).mean(dim=0)]))
    share = _sum_to_one(mean * _inverse(shares.detach()))
    target = _sum_to_one(expected * _inverse(histogram))
    return torch.where(shares.sum() > 0, (target * (share + 1e-12).log()).sum(), 0.0)


def _inverse(shares: Tensor) -> Tensor:
    """1 / x, and 0 for 0."""
    inverse = 1 / shares
    return torch.where(inverse.isinf(), 0.0, inverse)


def _sum_to_one(values: Tensor) -> Tensor:
    total = values.sum()
    return values / (total + (total == 0))


@dataclass(frozen=True, kw_only=True)
class FreeMatchSettings:
    labeled_batch: int = 64         # B, as FixMatch
    unlabeled_ratio: int = 7        # mu, as FixMatch
    decay: float = 0.999            # lambda, of the three averages; a run of a few hundred steps wants 0.99
    lowest_threshold: float = 0.0   # tau_t never falls below
    highest_threshold: float = 1.0  # nor rises above; 0.95 for SVHN, configs of the later repository
    unlabeled_weight: float = 1.0   # w_u
    fairness_weight: float = 0.01   # w_f; see above
    guesser: Literal["live", "average"] = "live"  # whose weights guess; "average" needs no joint pass
    temperature: float = 0.0        # 0: hard guesses, as the authors; above: sharpened soft ones
    joint: bool = True              # one forward pass over all views, as the authors' code has it
    frugal: bool = False            # no backward pass through images without a loss
    averaging: float = 0.999        # decay of the weights used to answer
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.03, weight_decay=5e-4, schedule=cosine_7_16)  # as FixMatch
    )

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")
        if not 0 <= self.lowest_threshold <= self.highest_threshold:
            raise ValueError(
                "lowest_threshold must not be negative nor above highest_threshold, "
                f"got {self.lowest_threshold} and {self.highest_threshold}"
            )
        if self.unlabeled_ratio < 1 or self.unlabeled_weight < 0 or self.fairness_weight < 0:
            raise ValueError("unlabeled_ratio must be at least 1, unlabeled_weight and fairness_weight not negative")
        if self.guesser not in ("live", "average"):
            raise ValueError(f'guesser must be "live" or "average", got {self.guesser!r}')
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative (0: hard guesses), got {self.temperature}")


class FreeMatch(Method):
    """One network and three running averages of its guesses; answers come from the averaged weights.

    net      images -> (N, classes) logits
    classes  C
    """

    threshold: Tensor
    expected: Tensor
    histogram: Tensor

    def __init__(self, net: nn.Module, classes: int, settings: FreeMatchSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or FreeMatchSettings()
        self.average = AveragedWeights(net, self.settings.averaging)
        self.register_buffer("threshold", torch.tensor(1 / classes))                  # tau_t
        self.register_buffer("expected", torch.full((classes,), 1 / classes))   # p~_t
        self.register_buffer("histogram", torch.full((classes,), 1 / classes))  # h~_t

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        guessed = {"weak": "weak", "strong": "strong"}
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": "weak"}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=guessed),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        labeled, strong, guesses, used = weak_to_strong(
            self.net, batch, self._judge,
            joint=s.joint, frugal=s.frugal, average=self.average if s.guesser == "average" else None,
        )  # fmt: skip
        supervised = F.cross_entropy(labeled, batch.labels)
        unlabeled = weighted_guess_loss(guesses, strong, used, s.temperature)
        fairness = fairness_loss(strong, used, self.expected, self.histogram)
        total = supervised + s.unlabeled_weight * unlabeled + s.fairness_weight * fairness
        return total, as_tensor_parts(
            supervised=supervised, unlabeled=unlabeled, fairness=fairness, used=used.float().mean(),
            threshold=self.threshold.clone(),
        )  # fmt: skip

    def _judge(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        guesses = weak.softmax(dim=1)
        self._take_in(guesses)  # before the mask of the same step
        return guesses, adaptive_mask(guesses, self.threshold, self.expected)

    def _take_in(self, guesses: Tensor) -> None:
        s, (confidence, guess) = self.settings, guesses.max(dim=1)
        likeliest = F.one_hot(guess, guesses.shape[1]).to(guesses.dtype)
        self.threshold.lerp_(mean_over_processes(confidence.mean()), 1 - s.decay)
        self.threshold.clamp_(s.lowest_threshold, s.highest_threshold)
        self.expected.lerp_(mean_over_processes(guesses.mean(dim=0)), 1 - s.decay)
        self.histogram.lerp_(mean_over_processes(likeliest.mean(dim=0)), 1 - s.decay)

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)
