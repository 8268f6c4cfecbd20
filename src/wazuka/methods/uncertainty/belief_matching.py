"""Belief matching: learn a distribution over class probabilities, drawn towards a prior as one label allows.

Joo, Chung & Seo 2020, "Being Bayesian about Categorical Probability", ICML, arXiv:2002.07965;
tjoo512/belief-matching-framework (loss.py, cifar_trainer.py). The network's logits are the logarithms of a Dirichlet's
concentrations; their softmax is its mean, so the loss stands in for cross-entropy and nothing else changes.
Differs from it: the divergence keeps its constant and is never negative (there log Gamma(K) is left out: the same
gradient); the coefficient follows from the confidence that shall be attainable, since one that suits ten classes makes
a hundred under-confident; the gradient's norm is clipped to 1 over all parameters together (there: each tensor's).
`unlabeled` is the paper's Pi-model (semi_supervised_learning/lib: pi_model_bm): the divergence from a second view's
Dirichlet, which is fixed; there with coefficient 0.01, Adam 3e-4, and Gaussian noise on the views. Its VAT is left out.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Observation, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.dirichlet import dirichlet_kl, expected_log_prob
from wazuka.functional.schedules import gaussian_ramp, staircase, warmed_up
from wazuka.nets import Backbone
from wazuka.parts.batchnorm import frozen_statistics


def belief_matching_loss(logits: Tensor, labels: Tensor, prior: float, coefficient: float) -> Tensor:
    """-E[log p_y] + coefficient * KL(Dir(exp(logits)) || Dir(prior, ..., prior)), the negated ELBO.

    logits       (N, K)  log concentrations
    labels       (N,)
    prior        beta, above 0: pseudo-counts of each class
    coefficient  lambda, above 0; least at alpha = prior + P(y | x) / lambda
    returns      (N,)    nats, above 0; float32 or better
    """
    target = torch.full_like(logits, math.log(prior))
    losses = coefficient * dirichlet_kl(logits, target) - expected_log_prob(logits, labels)
    return losses.to(torch.promote_types(logits.dtype, torch.float32))


def attainable_confidence(classes: int, prior: float, coefficient: float) -> float:
    """The most that softmax can say of a class once its label is certain: (beta + 1 / lambda) / (K beta + 1 / lambda).

    0.918 for 10 classes at lambda = 0.01, 0.55 at 0.1: the first thing to look at where answers are under-confident.
    """
    return (prior + 1 / coefficient) / (classes * prior + 1 / coefficient)


def coefficient_for(confidence: float, classes: int, prior: float) -> float:
    """The lambda that makes `confidence`, in (1 / K, 1), attainable: (1 - c) / (beta (c K - 1))."""
    if not 1 / classes < confidence < 1:
        raise ValueError(f"with {classes} classes a confidence lies in (1 / {classes}, 1), got {confidence}")
    return (1 - confidence) / (prior * (confidence * classes - 1))


@dataclass(frozen=True, kw_only=True)
class BeliefMatchingSettings:
    """Optimizer: cifar_trainer.py (200 passes). Coefficients there: ResNet-18 0.01 on CIFAR-10 and 0.003 on CIFAR-100,
    ResNet-50 0.003 and 0.001, which cap the confidence at 0.918, 0.773, 0.974 and 0.910.

    target_confidence  what shall be attainable, decides lambda; 0.99 with 10 classes makes 0.0011
    coefficient        lambda itself, in its place
    unlabeled          learn from unlabeled images too
    """

    labeled_batch: int = 128
    unlabeled_ratio: int = 1           # unlabeled images per labeled one
    view: Literal["plain", "weak", "strong"] = "weak"
    prior: float = 1.0                 # beta
    target_confidence: float = 0.99
    coefficient: float | None = None
    unlabeled: bool = False
    consistency_weight: float = 1.0    # hparams.py, pi_model_bm
    ramp: float = 0.4                  # share of the run in which that weight rises: 200,000 of 500,000 steps
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            lr=0.1, nesterov=False, weight_decay=1e-4, clip=1.0, schedule=warmed_up(staircase(0.5, 0.75), passes=200)
        )
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_ratio) < 1:
            raise ValueError("labeled_batch and unlabeled_ratio must be at least 1")
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if not self.prior > 0 or not (self.coefficient is None or self.coefficient > 0):
            raise ValueError(f"prior and coefficient must be above 0, got {self.prior} and {self.coefficient}")
        if not 0 < self.target_confidence < 1:
            raise ValueError(f"target_confidence must lie in (0, 1), got {self.target_confidence}")
        if not self.consistency_weight >= 0:
            raise ValueError(f"consistency_weight must not be negative, got {self.consistency_weight}")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp is a share of the run, in (0, 1], got {self.ramp}")


class BeliefMatching(Method):
    """A network whose logits are log concentrations. Scores of these: `wazuka.functional.dirichlet`.

    net      its last bias rises by log(prior), as in the authors' code: it starts as sure as the prior is
    classes  K
    """

    def __init__(self, net: Backbone, classes: int, settings: BeliefMatchingSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or BeliefMatchingSettings()
        s = self.settings
        chosen = s.coefficient
        self.coefficient = coefficient_for(s.target_confidence, classes, s.prior) if chosen is None else chosen
        if isinstance(bias := getattr(net.head, "bias", None), nn.Parameter):
            with torch.no_grad():
                bias.add_(math.log(s.prior))

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        labeled = Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels")
        if not s.unlabeled:
            return (labeled,)
        pair = {"first": s.view, "second": s.view}
        return labeled, Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=pair)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s, n = self.settings, len(batch.images)
        images = torch.cat([batch.images, batch.first]) if s.unlabeled else batch.images
        logits = self.net(images)  # one batch of both for batch norm, as in the authors' code
        supervised = belief_matching_loss(logits[:n], batch.labels, s.prior, self.coefficient).mean()
        if not s.unlabeled:
            return supervised, as_tensor_parts(supervised=supervised)
        with torch.no_grad(), frozen_statistics(self.net):
            teacher = self.net(torch.cat([batch.images, batch.second]))[n:]
        consistency = dirichlet_kl(logits[n:], teacher).mean().to(supervised.dtype)
        total = supervised + s.consistency_weight * gaussian_ramp(progress, s.ramp) * consistency
        return total, as_tensor_parts(supervised=supervised, consistency=consistency)

    def observe(self, images: Tensor, layers: Iterable[str] | None = ()) -> Observation:
        """As the network does; the logits are log concentrations."""
        return self.net.observe(images, layers)

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, K) mean of the Dirichlet."""
        return self.net(images).softmax(dim=1)
