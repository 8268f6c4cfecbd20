"""SDE-Net: features follow a stochastic differential equation whose noise is small near the training images alone.

Kong, Sun and Zhang 2020, "SDE-Net: Equipping Deep Neural Networks with Uncertainty Estimates", arXiv:2008.10546
(ICML); Lingkai-Kong/SDE-Net, MNIST/sdenet_mnist.py and SVHN/sdenet_svhn.py. The drift learns the classes, through
noise that is scaled by the diffusion; the diffusion learns to tell images from images plus noise. Afterwards the noise
is made 25 or 50 times larger: where the diffusion is all but 0 nothing changes, elsewhere the passes contradict
each other. What it doubts is read from the mean softmax of several passes (MSP of `observe`).
Differs from it: when it answers, an image's noise follows from its pixels and a seed, so that the same image gets the
same answer, whatever stands beside it; weight decay reaches kernels only. The network is nets/sde.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Batch, Method, Observation, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.schedules import staircase
from wazuka.functional.uncertainty import mean_log_probs
from wazuka.nets.sde import SDE, image_sde


@dataclass(frozen=True, kw_only=True)
class SDENetSettings:
    """The authors' for MNIST, 40 passes over it. For SVHN: sigma 1, test_sigma 50, one_noise_channel, learning rates
    0.1 with drops at 1/3 and 2/3 and 0.005 with drops at 1/6 and 1/2, 60 passes, and a diffusion of one layer more.
    """

    labeled_batch: int = 128
    view: Literal["plain", "weak", "strong"] = "plain"
    sigma: float = 20.0              # factor on the diffusion while it learns
    test_sigma: float = 500.0        # and when it answers; too large a one costs accuracy
    passes: int = 10                 # averaged into an answer
    disturbance: float = 2.0         # standard deviation of the noise on images that stand for odd ones
    one_noise_channel: bool = False  # the same noise for all colors
    width: int = 64                  # channels
    seed: int = 0                    # of the noise when it answers
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            lr=0.1, nesterov=False, weight_decay=5e-4, schedule=staircase(0.25, 0.5, 0.75)
        )
    )
    diffusion_optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            lr=0.01, nesterov=False, weight_decay=5e-4, schedule=staircase(0.375, 0.75)
        )
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.passes, self.width) < 1:
            raise ValueError("labeled_batch, passes and width must be at least 1, got "
                             f"{self.labeled_batch}, {self.passes} and {self.width}")  # fmt: skip
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if min(self.sigma, self.test_sigma, self.disturbance) < 0:
            raise ValueError("sigma, test_sigma and disturbance must not be negative, got "
                             f"{self.sigma}, {self.test_sigma} and {self.disturbance}")  # fmt: skip


@torch.no_grad()
def largest_sigma(
    method: "SDENet", images: Tensor, labels: Tensor, sigmas: Sequence[float], loss: float = 0.01
) -> float:
    """The largest noise that costs at most a share `loss` of the accuracy without noise: a diffusion that has not
    learned to be all but 0 at known images bears less than the authors' 500. No odd image is looked at.

    images  (N, C, H, W) float in [0, 1], labeled and not learned from; labels (N,)
    sigmas  to choose among; 0 where all cost more
    """

    def right(sigma: float) -> float:
        passes = method.net.passes(images, sigma, method.settings.passes, method.settings.seed)
        return float((passes.softmax(dim=-1).mean(dim=0).argmax(dim=1) == labels).float().mean())

    least = right(0.0) - loss
    for sigma in sorted(sigmas, reverse=True):
        if right(sigma) >= least - 1e-9:
            return sigma
    return 0.0


class SDENet(Method):
    """A classifier that learns the task and, apart from it, where it knows the inputs.

    classes  C
    shape    (channels, H, W) of the images
    net      another SDE than the authors' for images; it gives (N, classes)
    """

    def __init__(
        self, classes: int, shape: tuple[int, ...], settings: SDENetSettings | None = None, sde: SDE | None = None
    ):
        super().__init__()
        self.settings = settings or SDENetSettings()
        self.net = sde if sde is not None else image_sde(shape[0], classes, self.settings.width)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def players(self) -> dict[Player, Optimizer]:
        return {self.net.learners(): self.settings.optimizer, self.net.diffusion: self.settings.diffusion_optimizer}

    def moves(self, batch: Batch, progress: float) -> Iterator[tuple[Player, Tensor, Parts]]:
        s, net = self.settings, self.net
        task = F.cross_entropy(net(batch.images, s.sigma), batch.labels)
        yield net.learners(), task, as_tensor_parts(supervised=task)
        channels = 1 if s.one_noise_channel else batch.images.shape[1]
        shape = (len(batch.images), channels, *batch.images.shape[2:])
        noise = s.disturbance * torch.randn(shape, device=batch.images.device)
        diffusion = net.diffusion_loss(batch.images, noise)
        yield net.diffusion, diffusion, as_tensor_parts(diffusion=diffusion)

    def passes(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (T, N, classes) logits of noisy passes, at `test_sigma`."""
        s = self.settings
        return self.net.passes(images, s.test_sigma, s.passes, s.seed)

    def novelty(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N,) in (0, 1): the diffusion itself, high for images unlike those it learned from."""
        novelty: Tensor = torch.sigmoid(self.net.diffusion(0.0, self.net.downsample(images)).float()).flatten()
        return novelty

    def observe(self, images: Tensor, layers: Iterable[str] | None = ()) -> Observation:
        """Logits are the log of the passes' mean softmax; features, the first state's mean over the image."""
        if layers is None or list(layers):
            raise ValueError("an SDE-Net has one layer at many times, so that its inner layers can't be told apart")
        passes = self.passes(images)
        start = self.net.downsample(images)
        return Observation(mean_log_probs(passes), start.flatten(2).mean(dim=2).float(), passes=passes)

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, classes) mean of the passes' probabilities."""
        return self.passes(images).softmax(dim=-1).mean(dim=0)
