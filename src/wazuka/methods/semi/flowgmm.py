"""FlowGMM: an invertible network carries the images to a mixture of Gaussians, one for each class.

Izmailov, Kirichenko, Finzi & Wilson 2020, ICML, arXiv:1912.13025; izmailovpavel/flowgmm (train_semisup_cons.py for
images, the notebook and flowgmm_tabular_new.py for vectors), followed where the paper is silent. Everything comes
from log p(x, y) = log N(f(x); mu_y, Sigma) + log |det df/dx| + log pi_y: an unlabeled image teaches through p(x), a
labeled one through p(x | y) or p(y | x), and the answer is p(y | x).
Vectors learn by likelihood alone; images by FlowGMM-cons, in which a second view says which component the first
belongs to. `consistency_weight=0` leaves that out.
Differs from the code: gradients are clipped by the norm of all together (there: of the weight norm's lengths and of
the rest apart); an odd side gets a black row or column first, which the flow learns like any other; an answer takes
the middle of each gray level (there: a random value). The network is small by default, for two cores;
`FlowGMMSettings.published()` is the authors'.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.prototypes import squared_distances
from wazuka.functional.schedules import linear_ramp
from wazuka.nets.realnvp import ImageRealNVP, VectorRealNVP

LEVELS = 256  # of gray


def component_logs(latents: Tensor, means: Tensor, std: float) -> Tensor:
    """log N(z; mu_c, std^2 I) of every component.

    latents  (N, D)
    means    (C, D)
    std      > 0
    returns  (N, C)  nats
    """
    constant = latents.shape[1] * math.log(std * math.sqrt(2 * math.pi))
    return -squared_distances(latents, means) / (2 * std**2) - constant


def mixture_nll(log_joint: Tensor) -> Tensor:
    """-log p(x), the logsumexp over classes of log p(x, y). (N, C) -> (), nats, mean over N."""
    return -log_joint.logsumexp(dim=1).mean()


def component_nll(log_joint: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """-log p(x | y) = log pi_y - log p(x, y).

    log_joint  (N, C)  log p(x, y), which has the prior in it
    labels     (N,)    int64; no gradient flows into them
    log_prior  (C,)    log pi
    returns    ()      nats, mean over N
    """
    return (log_prior[labels] - log_joint.gather(1, labels[:, None])[:, 0]).mean()


def dequantized(images: Tensor, within: Tensor | float) -> Tensor:
    """Gray levels as points in (0, 1): level k lies between k / 256 and (k + 1) / 256.

    images   (N, C, H, W)  in [0, 1], level / 255
    within   the place between the two, in [0, 1): a draw for each pixel, or one number
    """
    return ((LEVELS - 1) * images + within) / LEVELS


def opposite_means(size: int, distance: float) -> Tensor:
    """(2, size): two components at `distance`, opposite to each other in a random direction (the code for tabular
    data: 7.5 apart).
    """
    mean = F.normalize(torch.randn(size), dim=0) * (distance / 2)
    return torch.stack([mean, -mean])


@dataclass(frozen=True, kw_only=True)
class FlowGMMSettings:
    """Losses, batches and mixture are the authors' for CIFAR-10 with 4,000 labels. Their network and their learning
    rate are beyond a few thousand steps on two cores: what stands here is smaller and faster, see `published`.
    """

    labeled_batch: int = 32           # train_semisup_cons.py: half of 64
    unlabeled_batch: int = 32
    label_weight: float = 3.0         # images: of the cross-entropy, README
    consistency_weight: float = 1.0   # images; 0: plain FlowGMM, and half the work
    ramp: float = 1 / 15              # share of the run in which the latter rises, 100 of 1,501 epochs
    unlabeled_weight: float = 1.0     # vectors: of the unlabeled ones' likelihood; the tabular data's from 0.2 to 10
    radius: float = 1.0               # means are radius * N(0, I); the tabular data's of several classes 0.56
    std: float = 1.0                  # of each component; the tabular data's 1.31
    scales: int = 2                   # images: resolutions of the flow
    blocks: int = 1                   # images: residual blocks of a coupling's network; the authors' 8
    filters: int = 16                 # images: their channels at the first scale; the authors' 64
    couplings: int = 5                # vectors: notebook; the tabular data's 7 or 10
    hidden: int = 512                 # vectors: units of a coupling's network; the tabular data's 256 or 1,024
    dropout: float = 0.0              # vectors; the tabular data's 0.5
    flow: Optimizer = field(          # the authors' lr for CIFAR-10 is 1e-4; decay reaches the weight norm's lengths
        default_factory=lambda: Optimizer(algorithm="adam", lr=1e-3, weight_decay=5e-5, clip=100.0)
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_batch, self.scales, self.filters, self.couplings, self.hidden) < 1:
            raise ValueError("labeled_batch, unlabeled_batch, scales, filters, couplings and hidden must be at least 1")
        if min(self.label_weight, self.consistency_weight, self.unlabeled_weight, self.blocks) < 0:
            raise ValueError("label_weight, consistency_weight, unlabeled_weight and blocks must not be negative")
        if not self.std > 0 or not self.radius > 0:
            raise ValueError(f"std and radius must be above 0, got {self.std} and {self.radius}")
        if not 0 <= self.ramp <= 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"ramp must lie in [0, 1] and dropout in [0, 1), got {self.ramp} and {self.dropout}")

    @classmethod
    def published(cls) -> "FlowGMMSettings":
        """The authors' network and learning rate for CIFAR-10, for 1,501 passes over 4,000 labeled images."""
        return cls(blocks=8, filters=64, flow=Optimizer(algorithm="adam", lr=1e-4, weight_decay=5e-5, clip=100.0))


class FlowGMM(Method):
    """A flow and a mixture that stays as it is.

    shape    (C, H, W): images, in [0, 1]; (D,): vectors, any real numbers, in batches (N, D) with the fields
             `images`, `labels` and `unlabeled`
    classes  C
    means    (classes, D) where the components lie; None: drawn
    """

    means: Tensor
    log_prior: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        settings: FlowGMMSettings | None = None,
        means: Tensor | None = None,
    ):
        super().__init__()
        s = self.settings = settings or FlowGMMSettings()
        self.of_images = len(shape) == 3
        self.flow: VectorRealNVP | ImageRealNVP
        self.margin = (0, 0)  # columns and rows that make sides divisible
        if self.of_images:
            channels, height, width = shape
            fold = 2 ** (s.scales - 1)
            self.margin = (-width % fold, -height % fold)
            padded = (channels, height + self.margin[1], width + self.margin[0])
            self.flow, size = ImageRealNVP(padded, s.scales, s.blocks, s.filters), math.prod(padded)
        elif len(shape) == 1:
            self.flow, size = VectorRealNVP(shape[0], s.couplings, s.hidden, s.dropout), shape[0]
        else:
            raise ValueError(f"shape must be (C, H, W) of images or (D,) of vectors, got {shape}")
        means = s.radius * torch.randn(classes, size) if means is None else means.clone()
        if means.shape != (classes, size):
            raise ValueError(f"means must be ({classes}, {size}), got {tuple(means.shape)}")
        self.register_buffer("means", means)
        self.register_buffer("log_prior", torch.full((classes,), -math.log(classes)))  # pi is uniform

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        view = "weak" if self.of_images else "plain"
        labeled, unlabeled = {"images": view}, {"unlabeled": view}
        if self.of_images and s.consistency_weight > 0:
            labeled, unlabeled = labeled | {"images_again": view}, unlabeled | {"unlabeled_again": view}
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views=labeled, labels="labels"),
            Stream(pool="unlabeled", batch=s.unlabeled_batch, views=unlabeled),
        )

    def players(self) -> dict[Player, Optimizer]:
        return {self: self.settings.flow}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        return self._image_loss(batch, progress) if self.of_images else self._vector_loss(batch)

    def _vector_loss(self, batch: Batch) -> tuple[Tensor, Parts]:
        """-mean log p(x | y) of the labeled, - weight * mean log p(x) of the unlabeled."""
        n = len(batch.images)
        log_joint = self.log_joint(torch.cat([batch.images, batch.unlabeled]))
        supervised = component_nll(log_joint[:n], batch.labels, self.log_prior)
        unlabeled = mixture_nll(log_joint[n:])
        total = supervised + self.settings.unlabeled_weight * unlabeled
        return total, as_tensor_parts(supervised=supervised, unlabeled=unlabeled)

    def _image_loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        """Cross-entropy of the labeled, p(x) of all, and p(x | y) of all with the y of the second view."""
        s, n = self.settings, len(batch.images)
        guesses = self._guess(batch) if s.consistency_weight > 0 else None
        log_joint = self.log_joint(self._drawn(torch.cat([batch.images, batch.unlabeled])))
        supervised = F.cross_entropy(log_joint[:n], batch.labels)  # the determinant cancels in p(y | x)
        mixture = mixture_nll(log_joint)
        total = s.label_weight * supervised + mixture
        parts = {"supervised": supervised, "bits_per_dim": mixture / (self.means.shape[1] * math.log(2))}
        if guesses is not None:
            consistency = component_nll(log_joint, guesses, self.log_prior)
            total = total + s.consistency_weight * linear_ramp(progress, s.ramp) * consistency
            parts["consistency"] = consistency
        return total, as_tensor_parts(**parts)

    @torch.no_grad()
    def _guess(self, batch: Batch) -> Tensor:
        """(N + M,) which component the second views belong to. Batch norm's statistics see them, as in the code."""
        return self.log_joint(self._drawn(torch.cat([batch.images_again, batch.unlabeled_again]))).argmax(dim=1)

    def _drawn(self, images: Tensor) -> Tensor:
        """Dequantized with noise that is new in each pass."""
        images = F.pad(images, (0, self.margin[0], 0, self.margin[1]))
        return dequantized(images, torch.rand(images.shape, device=images.device, dtype=images.dtype))

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y), (N, classes), nats; of images (0, 1) that are dequantized, per gray level. Never in half
        precision: the terms of the determinant are thousands.
        """
        device = x.device.type if x.device.type != "meta" else "cpu"  # the meta device knows no autocast
        with torch.autocast(device, enabled=False):
            latents, log_det = self.flow(x.to(self.means.dtype))
            if self.of_images:
                log_det = log_det - latents.shape[1] * math.log(LEVELS)
            return component_logs(latents, self.means, self.settings.std) + self.log_prior + log_det[:, None]

    def predict(self, images: Tensor) -> Tensor:
        if self.of_images:
            images = dequantized(F.pad(images, (0, self.margin[0], 0, self.margin[1])), 0.5)
        return self.log_joint(images).softmax(dim=1)
