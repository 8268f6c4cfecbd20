"""DUQ: an image is known where its features lie near a class's centroid, and unknown everywhere else.

van Amersfoort, Smith, Teh & Gal 2020, "Uncertainty Estimation Using a Single Deep Deterministic Neural Network", ICML,
arXiv:2003.02037; y0ast/deterministic-uncertainty-quantification, followed where they differ (the penalty is for the
norm of the gradient; in the paper, for its square). One pass; the largest kernel is the certainty, and `observe` has
its logarithm for a logit, so that max-logit scores by it.
Differs from it: the cross-entropy is taken from the logarithm of the kernel. Theirs, from the kernel itself, has no
gradient for an image whose own centroid is far (kernel below 1e-12), and waits until the centroids have come to it.
Counts begin at what a balanced batch holds (there: 12 or 13 of 12.8, two moons 20 of 32) and have no least value (two
moons there: 1, never reached). Biases and norms don't decay.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Observation, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.precision import without_autocast
from wazuka.functional.processes import mean_over_processes, process_count
from wazuka.functional.schedules import staircase
from wazuka.nets import Backbone, Normalize


def log_kernels(embeddings: Tensor, centroids: Tensor, length_scale: float) -> Tensor:
    """How near each embedding is to its class's centroid: -(mean over E of (z - e)^2) / (2 sigma^2).

    embeddings    (N, E, K)  one for each class
    centroids     (E, K)
    length_scale             sigma, above 0
    returns       (N, K)     log K, at most 0; finite even where the square is not
    """
    distance = (embeddings - centroids).square().mean(dim=1) / (2 * length_scale**2)
    return -distance.clamp_max(torch.finfo(distance.dtype).max)


def kernel_loss(log_kernels: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of every kernel against "is it this class?", from the kernels' logarithms.

    log_kernels  (N, K)  at most 0
    labels       (N,)
    returns      ()      nats, mean over N * K. A wrong class closer than rounding counts as one at that distance
    """
    own = F.one_hot(labels, log_kernels.shape[1]).to(log_kernels.dtype)
    missed = torch.log(-torch.expm1(log_kernels.clamp_max(-torch.finfo(log_kernels.dtype).eps)))  # log(1 - K)
    return -(own * log_kernels + (1 - own) * missed).mean()


def gradient_penalty(gradients: Tensor, one_sided: bool) -> Tensor:
    """How far the sum of kernels is from changing by 1 when the image moves by 1.

    gradients  (N, ...)  of the sum of all classes' kernels, with respect to the image
    one_sided            only what is steeper counts, and linearly: relu(norm - 1), the repository's ablation, which
                         lets features collapse
    returns    ()        mean over N of (norm - 1)^2
    """
    excess = torch.linalg.vector_norm(gradients.flatten(1), dim=1) - 1
    return (excess.relu() if one_sided else excess.square()).mean()


@dataclass(frozen=True, kw_only=True)
class DUQSettings:
    """Defaults: the repository's for CIFAR-10 with ResNet-18 (100 passes); see also `fashion_mnist` and `two_moons`.

    embedding       E, the length of an embedding
    length_scale    sigma; the paper chooses by validation accuracy among 0.05 ... 1
    gradient_penalty  lambda, its weight; 0: none
    one_sided       the ablation, see the function
    decay           gamma of the centroids, in [0, 1]; 1: they stay where they began
    weight_std      of the embeddings' weights at the start; None: Kaiming's normal, as torch counts its fan
    centroid_std    of the centroids at the start
    """

    labeled_batch: int = 128
    view: Literal["plain", "weak", "strong"] = "weak"
    embedding: int = 512
    length_scale: float = 0.1
    gradient_penalty: float = 0.75  # the code's default; its README's example has 0.5
    one_sided: bool = False
    decay: float = 0.999
    weight_std: float | None = None
    centroid_std: float = 0.05
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            lr=0.05, nesterov=False, weight_decay=5e-4, schedule=staircase(0.25, 0.5, 0.75, factor=0.2)
        )
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.embedding) < 1:
            raise ValueError(
                f"labeled_batch and embedding must be at least 1, got {self.labeled_batch} and {self.embedding}"
            )
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if not self.length_scale > 0:
            raise ValueError(f"length_scale must be above 0, got {self.length_scale}")
        if not self.gradient_penalty >= 0:
            raise ValueError(f"gradient_penalty must not be negative, got {self.gradient_penalty}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {self.decay}")
        if not self.centroid_std >= 0 or (self.weight_std is not None and not self.weight_std > 0):
            raise ValueError(
                f"centroid_std must not be negative and weight_std be above 0, got {self.centroid_std} "
                f"and {self.weight_std}"
            )

    @classmethod
    def fashion_mnist(cls) -> "DUQSettings":
        """train_duq_fm.py, 30 passes; the penalty's weight, chosen there by AUROC on NotMNIST, is the paper's."""
        rule = Optimizer(lr=0.05, nesterov=False, weight_decay=1e-4, schedule=staircase(1 / 3, 2 / 3, factor=0.2))
        return cls(view="plain", embedding=256, gradient_penalty=0.05, weight_std=0.05, centroid_std=1.0,
                   optimizer=rule)  # fmt: skip

    @classmethod
    def two_moons(cls) -> "DUQSettings":
        """two_moons.ipynb: 1,500 points, 30 passes, layers of 20."""
        return cls(labeled_batch=64, view="plain", embedding=10, length_scale=0.3, gradient_penalty=1.0, decay=0.99,
                   weight_std=1.0, centroid_std=1.0, optimizer=Optimizer(lr=0.01, nesterov=False, weight_decay=1e-4)
                   )  # fmt: skip


class DUQ(Method):
    """A network, a linear embedding for each class, and a centroid that follows its images' embeddings.

    net      its head is taken off
    classes  K
    """

    counts: Tensor  # (K,)    N, running number of images of a class in a batch
    sums: Tensor    # (E, K)  m, running sum of their embeddings

    def __init__(self, net: Backbone, classes: int, settings: DUQSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or DUQSettings()
        net.head = nn.Identity()
        s = self.settings
        self.weight = nn.Parameter(torch.empty(s.embedding, classes, net.feature_size))
        if s.weight_std is None:
            nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        else:
            nn.init.normal_(self.weight, std=s.weight_std)
        self.register_buffer("counts", torch.full((classes,), s.labeled_batch / classes))
        self.register_buffer("sums", torch.randn(s.embedding, classes) * s.centroid_std * self.counts)

    @property
    def centroids(self) -> Tensor:
        """(E, K); that of a class without any image ends at 0."""
        return self.sums / self.counts.clamp_min(torch.finfo(self.counts.dtype).tiny)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        images = batch.images.detach().requires_grad_(s.gradient_penalty > 0)
        logs = self._log_kernels(self.net.features(images))
        supervised = kernel_loss(logs, batch.labels)
        if s.gradient_penalty == 0:
            return supervised, as_tensor_parts(supervised=supervised)
        # of the image, never of its features: these could collapse behind it; differentiated once more by `backward`
        (slope,) = torch.autograd.grad(logs.exp().sum(), images, create_graph=True)
        penalty = gradient_penalty(slope.to(logs.dtype) * self._pixel_std(), s.one_sided)
        return supervised + s.gradient_penalty * penalty, as_tensor_parts(supervised=supervised, penalty=penalty)

    def moves(self, batch: Batch, progress: float) -> Iterator[tuple[Player, Tensor, Parts]]:
        yield from super().moves(batch, progress)
        self._move_centroids(batch.images, batch.labels)  # by the weights that have just stepped

    @torch.no_grad()
    def _move_centroids(self, images: Tensor, labels: Tensor) -> None:
        """N <- gamma N + (1 - gamma) n and m <- gamma m + (1 - gamma) sum of embeddings, class by class."""
        was_training = self.net.training
        self.net.eval()  # batch norm's running statistics, as for the answers; no dropout
        try:
            embeddings = self._embeddings(self.net.features(images))
        finally:
            self.net.train(was_training)
        own = F.one_hot(labels, len(self.counts)).to(embeddings.dtype)
        sums = torch.cat([torch.einsum("nek,nk->ek", embeddings, own), own.sum(dim=0)[None]])
        total = mean_over_processes(sums) * process_count()
        self.sums.lerp_(total[:-1].to(self.sums.dtype), 1 - self.settings.decay)
        self.counts.lerp_(total[-1].to(self.counts.dtype), 1 - self.settings.decay)

    def _embeddings(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, E, K), never in bfloat16: small differences are divided by sigma squared."""
        with without_autocast(features.device):
            return torch.einsum("nd,ekd->nek", features.to(self.weight.dtype), self.weight)

    def _log_kernels(self, features: Tensor) -> Tensor:
        return log_kernels(self._embeddings(features), self.centroids, self.settings.length_scale)

    def _pixel_std(self) -> Tensor | float:
        """What the network divides pixels by: the penalty is for gradients by normalized pixels, as in the code."""
        normalize = next((module for module in self.net.modules() if isinstance(module, Normalize)), None)
        return 1.0 if normalize is None else normalize.std

    def observe(self, images: Tensor, layers: Iterable[str] | None = ()) -> Observation:
        """As a backbone does. The logits are log kernels: their maximum is DUQ's certainty, and there is no head."""
        seen = self.net.observe(images, layers)
        return replace(seen, logits=self._log_kernels(seen.features).float(), head=None)

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, K) kernels, normalized; how large they are, `observe` tells."""
        return self._log_kernels(self.net.features(images)).float().softmax(dim=1)
