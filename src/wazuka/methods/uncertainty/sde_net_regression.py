"""SDE-Net for numbers: a mean and a spread for each input, and passes that part where inputs are unknown.

Kong, Sun and Zhang 2020, arXiv:2008.10546 (ICML), Sec. 4.3; Lingkai-Kong/SDE-Net, YearMSD/SDE_regression.py: Gaussian
log-likelihood without its factor 1/2, softplus + 0.001 for the spread, more noise in the second half of the training.
How unknown an input is, is the standard deviation of the passes' means (their test_detection_sde.py).
Differs from it: clipping sees the gradients that step alone, where theirs counts those of the diffusion too; and as
sde_net.py does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.schedules import staircase
from wazuka.nets.sde import SDE, vector_sde

LEAST_SPREAD = 1e-3


def spread_loss(mean: Tensor, spread: Tensor, targets: Tensor) -> Tensor:
    """(N,) each: log spread^2 + (target - mean)^2 / spread^2, twice the Gaussian's nats but for a constant."""
    return 2 * spread.log() + ((targets - mean) / spread).square()


@dataclass(frozen=True, kw_only=True)
class SDENetRegressionSettings:
    """The authors' for YearMSD, 60 passes; inputs and targets standardized."""

    labeled_batch: int = 128
    sigma: float = 0.1         # factor on the diffusion in the first part of the run
    late_sigma: float = 0.5    # then, and when it answers
    late: float = 0.5          # share of the run at which that begins
    passes: int = 10
    disturbance: float = 2.0
    width: int = 50
    hidden: int = 100          # of the diffusion
    seed: int = 0
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            lr=1e-4, nesterov=False, weight_decay=5e-4, schedule=staircase(1 / 3), clip=100.0
        )
    )
    diffusion_optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.01, nesterov=False, weight_decay=5e-4)
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.passes, self.width, self.hidden) < 1:
            raise ValueError("labeled_batch, passes, width and hidden must be at least 1, got "
                             f"{self.labeled_batch}, {self.passes}, {self.width} and {self.hidden}")  # fmt: skip
        if min(self.sigma, self.late_sigma, self.disturbance) < 0:
            raise ValueError("sigma, late_sigma and disturbance must not be negative, got "
                             f"{self.sigma}, {self.late_sigma} and {self.disturbance}")  # fmt: skip
        if not 0 <= self.late <= 1:
            raise ValueError(f"late is a share of the run, in [0, 1], got {self.late}")


class SDENetRegression(Method):
    """Inputs may be images or vectors; the batch's `labels` are the numbers to learn, float (N,).

    shape  of an input; it is flattened
    sde    another SDE than the authors'; it gives (N, 2), the mean and what softplus makes the spread of
    """

    def __init__(
        self, shape: tuple[int, ...], settings: SDENetRegressionSettings | None = None, sde: SDE | None = None
    ):
        super().__init__()
        self.settings = s = settings or SDENetRegressionSettings()
        inputs = torch.Size(shape).numel()
        self.net = sde if sde is not None else vector_sde(inputs, 2, s.width, s.hidden)

    def streams(self) -> tuple[Stream, ...]:
        batch = self.settings.labeled_batch
        return (Stream(pool="labeled", batch=batch, views={"images": "plain"}, labels="labels"),)

    def players(self) -> dict[Player, Optimizer]:
        return {self.net.learners(): self.settings.optimizer, self.net.diffusion: self.settings.diffusion_optimizer}

    def moves(self, batch: Batch, progress: float) -> Iterator[tuple[Player, Tensor, Parts]]:
        s, net, inputs = self.settings, self.net, batch.images.flatten(1)
        mean, spread = _told(net(inputs, s.sigma if progress < s.late else s.late_sigma))
        task = spread_loss(mean, spread, batch.labels.float()).mean()
        yield net.learners(), task, as_tensor_parts(supervised=task)
        diffusion = net.diffusion_loss(inputs, s.disturbance * torch.randn(inputs.shape, device=inputs.device))
        yield net.diffusion, diffusion, as_tensor_parts(diffusion=diffusion)

    def passes(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(N, ...) -> means (T, N) and spreads (T, N) of noisy passes, in units of the targets."""
        s = self.settings
        mean, spread = _told(self.net.passes(inputs.flatten(1), s.late_sigma, s.passes, s.seed))
        return mean, spread

    def unknown(self, inputs: Tensor) -> Tensor:
        """(N, ...) -> (N,) standard deviation of the passes' means: high where the inputs are unlike known ones."""
        return self.passes(inputs)[0].std(dim=0)

    def predict(self, images: Tensor) -> Tensor:
        """(N, ...) -> (N, 2): the mean over passes, and the standard deviation of what a number may be, noise in the
        data and what is not known together (that of the mixture of the passes' Gaussians).
        """
        mean, spread = self.passes(images)
        return torch.stack([mean.mean(dim=0), (spread.square().mean(0) + mean.var(0, correction=0)).sqrt()], dim=1)


def _told(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2) -> mean and spread, (...) each."""
    return outputs[..., 0], F.softplus(outputs[..., 1]) + LEAST_SPREAD
