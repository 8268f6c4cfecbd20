"""VAT: find the small change of an image that changes its answer most, and learn to stand it; be decided.

Miyato, Maeda, Koyama & Ishii 2018, TPAMI, arXiv:1704.03976; takerum/vat_tf (vat.py, followed where others differ).
Entropy minimization: Grandvalet & Bengio 2004, NIPS. Weights, ramp and optimizer are those of google-research/mixmatch
(vat.py), for WRN-28-2. On top, if asked: NS3L's term (Chen, Shah & Kyrillidis 2020, ICML, arXiv:1911.05166).

Lengths are L2 norms over a whole image in [0, 1]; that code's images lie in [-1, 1], so its 6 is 3 here.
Differs from them:
- the loss is KL(p(x) || p(x + r)), the paper's; mixmatch's, after Oliver et al. 2018, is the other way round;
- xi is not 1e-6: float32 rounds the answer's change to noise there. The passes that the direction is made of run in
  float32 whatever the loop computes in, for bfloat16 does not even see such a change of an image; the adversarial
  pass, whose change is large, runs in the loop's precision;
- a gradient is normalized however small it is; theirs, below 1e-12, becomes a shorter change.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.guessing import negative_sampling_loss, soft_cross_entropy
from wazuka.functional.schedules import linear_ramp
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.batchnorm import frozen_statistics
from wazuka.parts.draws import drawn_again


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)), the local distributional smoothness.

    logits   (N, C)
    target   (N, C)  logits at the images themselves; no gradient flows into them
    returns  (N,)    nats
    """
    log_target = target.detach().log_softmax(dim=1)
    return F.kl_div(logits.log_softmax(dim=1), log_target, reduction="none", log_target=True).sum(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits), with gradient through both its factors: (N, C) -> (N,), nats in [0, log C]."""
    return soft_cross_entropy(logits.softmax(dim=1), logits)


def unit(directions: Tensor) -> Tensor:
    """Each image's direction at L2 norm 1, (N, ...) -> (N, ...); one without any direction stays 0."""
    axes = tuple(range(1, directions.ndim))
    # the largest number to 1 first, for the squares of a sure image's gradient underflow
    largest = directions.abs().amax(dim=axes, keepdim=True).clamp_min(torch.finfo(directions.dtype).tiny)
    directions = directions / largest
    return directions / (1e-6 + directions.square().sum(dim=axes, keepdim=True)).sqrt()


def adversarial_direction(
    answer: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, start: Tensor, xi: float, iterations: int
) -> Tensor:
    """The direction in which the answer changes fastest: power iteration towards the top eigenvector of the Hessian
    of the divergence, which at the image itself is the Fisher matrix (Sec. 3.3).

    The Hessian times d is the divergence's gradient at x + xi d over xi, since at x it is zero.

    answer      (N, ...) -> (N, C) logits
    images      (N, ...)
    logits      (N, C)    answer(images)
    start       (N, ...)  not zero; drawn from N(0, I)
    xi          length of the probing step: larger than rounding, shorter than the answer's bends
    iterations  0 leaves `start`'s direction
    returns     (N, ...)  unit L2 norm; no gradient flows through it, and parameters gather none
    """
    direction = unit(start)
    for _ in range(iterations):
        step = (xi * direction).requires_grad_()
        total = divergence(answer(images + step), logits).sum()
        (gradient,) = torch.autograd.grad(total, step)  # of this input alone: no pass through the weights
        direction = unit(gradient)
    return direction


@dataclass(frozen=True, kw_only=True)
class VATSettings:
    """Defaults: google-research/mixmatch, vat.py, for CIFAR-10 with 32 x 32 x 3 numbers an image. takerum/vat_tf has
    vat_weight and entropy_weight 1, no ramp, 32 labeled and 128 unlabeled images, Adam with lr 0.001.
    """

    labeled_batch: int = 64
    unlabeled_ratio: int = 1       # unlabeled images per labeled one
    epsilon: float = 3.0           # length of the adversarial change; 6 where images lie in [-1, 1]
    xi: float = 0.01               # length of the probing step, see above
    power_iterations: int = 1      # the paper's K, Sec. 3.3
    vat_weight: float = 0.3        # the paper's alpha
    ramp: float = 0.4              # share of the run in which it rises, linearly; so does negative_weight
    entropy_weight: float = 0.06   # never ramped; 0: VAT alone
    negative_weight: float = 0.0   # above 0: adds NS3L's term
    negative_share: float = 0.4    # of 1 / C: a class guessed below it is a negative one (0.04 of 10 classes: ns3l.py)
    averaging: float = 0.999       # decay of the weights used to answer
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(algorithm="adamw", lr=0.002, weight_decay=0.02))

    def __post_init__(self) -> None:
        if self.labeled_batch < 1 or self.unlabeled_ratio < 1:
            raise ValueError("labeled_batch and unlabeled_ratio must be at least 1")
        if not self.epsilon >= 0 or not self.xi > 0:
            raise ValueError(f"epsilon must not be negative and xi above 0, got {self.epsilon} and {self.xi}")
        if self.power_iterations < 0:
            raise ValueError(f"power_iterations must not be negative (0: a random change), got {self.power_iterations}")
        if min(self.vat_weight, self.entropy_weight, self.negative_weight) < 0:
            raise ValueError("vat_weight, entropy_weight and negative_weight must not be negative")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is a share of the run and must lie in [0, 1], got {self.ramp}")
        if not 0 < self.negative_share < 1:
            raise ValueError(f"negative_share must lie in (0, 1), got {self.negative_share}")


class VAT(Method):
    """One network, whose answer must not move where it would move most; answers come from the averaged weights.

    net  images -> (N, classes) logits
    """

    def __init__(self, net: nn.Module, settings: VATSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or VATSettings()
        self.average = AveragedWeights(net, self.settings.averaging)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        views = {"weak": "weak"} | ({"again": "weak"} if s.negative_weight > 0 else {})
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": "weak"}, labels="labels"),
            Stream(pool="unlabeled", batch=s.labeled_batch * s.unlabeled_ratio, views=views),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        # each pass is normalized by its own images; this one alone moves batch norm's statistics, as in both codes
        supervised = F.cross_entropy(self.net(batch.images), batch.labels)
        with frozen_statistics(self.net):
            logits, adversarial = self._here_and_there(batch.weak)
            smoothness = divergence(adversarial, target=logits).mean()
            uncertainty = entropy(logits).mean()
            ramp = linear_ramp(progress, s.ramp)
            total = supervised + ramp * s.vat_weight * smoothness + s.entropy_weight * uncertainty
            parts = as_tensor_parts(supervised=supervised, unlabeled=smoothness, entropy=uncertainty)
            if s.negative_weight > 0:
                # a second view, as NS3L's code has it: the networks it was made for augment in every training pass
                threshold = s.negative_share / logits.shape[1]
                each = negative_sampling_loss(logits.softmax(dim=1), self.net(batch.again), threshold)
                negative = each.sum() / (len(batch.images) + len(each))  # its mean counts the labeled images, as zeros
                total = total + ramp * s.negative_weight * negative
                parts |= as_tensor_parts(negative=negative)
        return total, parts

    def _here_and_there(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the images and at their virtual adversarial neighbors, with the same dropout in all passes."""
        s = self.settings

        def answer(images: Tensor) -> Tensor:
            with drawn_again(images.device):
                return self.net(images)

        start = torch.randn(images.shape, device=images.device, dtype=images.dtype)  # the same in every memory layout
        with without_autocast(images.device):
            with torch.set_grad_enabled(s.entropy_weight > 0):  # the only loss that this pass has
                logits = answer(images)
            direction = adversarial_direction(answer, images, logits.detach(), start, s.xi, s.power_iterations)
        return logits, self.net(images + s.epsilon * direction)  # the last to draw this mask

    def after_step(self) -> None:
        self.average.update(self.net)

    def predict(self, images: Tensor) -> Tensor:
        return self.average(images).softmax(dim=1)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Inside, layers compute in the type of their parameters; for devices that know no autocast, nothing."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
