"""DANN: features that name the class and cannot name the domain, by reversing the domain head's gradient.

Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand & Lempitsky 2016, JMLR 17(59), arXiv:1505.07818.
Section numbers are that paper's. Source = 1 and target = 0.
Differs from it: the domain head sees what enters the last linear layer, for any network; the paper's digits networks
branch after the last convolution. Images are scaled by the network's own first layer, not mean-subtracted here.
Options follow thuml/Transfer-Learning-Library where it departs: it halves the domain loss (`domain_weight=0.5`),
its strength reaches only 0.46 after 1,000 of 20,000 steps (`reversal_steepness=20`), its head is (1024, 1024) with
batch norm, and it adds weight decay 1e-3.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.schedules import annealed, sigmoid_ramp
from wazuka.nets import Backbone


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(features: Tensor, strength: float) -> Tensor:
    """The identity, whose gradient is -strength times what comes from above. Any shape.

    Eq. 16 and 17, with lambda inside as in the 2015 paper (arXiv:1409.7495): the head's own loss keeps its full weight.
    """
    reversed_: Tensor = _Reversal.apply(features, strength)
    return reversed_


def domain_loss(source: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of telling the domains apart, source = 1 and target = 0.

    source   (N,)  the domain head's logits
    target   (M,)
    returns  ()    nats: the mean over the source plus the mean over the target; 2 ln 2 for a head that can't tell
    """
    return F.softplus(-source).mean() + F.softplus(target).mean()


@dataclass(frozen=True, kw_only=True)
class DANNSettings:
    """Defaults are the paper's for digits (Sec. 5.2); its head for SVHN is (1024, 1024).

    reversal_steepness   of the rise of lambda, the strength of the reversed gradient, over the run
    reversal_limit       what lambda rises to; 0: the features learn from the labels alone while the head looks on
    domain_weight        on the whole domain loss, hence on the head's own learning too
    joint                one pass over both domains, which batch norm then normalizes together; else a pass for each
    """

    batch: int = 64  # of each domain, Sec. 5.2.2
    view: str = "plain"
    hidden: tuple[int, ...] = (100,)
    head_norm: bool = False
    reversal_steepness: float = 10.0  # gamma, Sec. 5.2.2
    reversal_limit: float = 1.0
    domain_weight: float = 1.0
    joint: bool = True
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.01, momentum=0.9, nesterov=False, schedule=annealed)  # Sec. 5.2.2
    )

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.hidden, default=1) < 1:
            raise ValueError(f"batch and every hidden layer must be at least 1, got {self.batch} and {self.hidden}")
        if min(self.reversal_steepness, self.reversal_limit, self.domain_weight) < 0:
            raise ValueError(
                "reversal_steepness, reversal_limit and domain_weight must not be negative, "
                f"got {self.reversal_steepness}, {self.reversal_limit} and {self.domain_weight}"
            )


def domain_head(inputs: int, hidden: tuple[int, ...], norm: bool) -> nn.Sequential:
    """(N, inputs) -> (N, 1) logits."""
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], 1))


class DANN(Method):
    """One network and a domain head, one loss, one step: the head descends, the features ascend with weight lambda."""

    def __init__(self, net: Backbone, settings: DANNSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or DANNSettings()
        self.domain_head = domain_head(net.feature_size, self.settings.hidden, self.settings.head_norm)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (
            Stream(pool="source", batch=s.batch, views={"source": s.view}, labels="labels"),
            Stream(pool="target", batch=s.batch, views={"target": s.view}),
        )

    def strength(self, progress: float) -> float:
        """lambda_p (Eq. 14 of the 2015 paper, Sec. 5.2.2): 0 at the start: the head learns before it is heeded."""
        return self.settings.reversal_limit * sigmoid_ramp(progress, self.settings.reversal_steepness)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        n = len(batch.source)
        if self.settings.joint:
            features = self.net.features(torch.cat([batch.source, batch.target]))
        else:
            features = torch.cat([self.net.features(batch.source), self.net.features(batch.target)])
        supervised = F.cross_entropy(self.net.head(features[:n]).float(), batch.labels)
        domains = self.domain_head(reverse_gradient(features, self.strength(progress))).float()[:, 0]
        domain = domain_loss(domains[:n], domains[n:])
        told_apart = torch.cat([domains[:n] > 0, domains[n:] < 0]).float().mean()
        total = supervised + self.settings.domain_weight * domain
        return total, as_tensor_parts(supervised=supervised, domain=domain, told_apart=told_apart)

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)
