"""The networks of a stochastic differential equation dh = f(h, t) dt + g(h0) dB, and its numerical solution.

Kong, Sun and Zhang 2020, "SDE-Net: Equipping Deep Neural Networks with Uncertainty Estimates", arXiv:2008.10546 (ICML);
Lingkai-Kong/SDE-Net (MNIST/models/sdenet_mnist.py, YearMSD/models/sdenet.py). Group norm and no batch norm: the same
drift serves all steps, and both its ends are normalized, or the state would explode.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.nets.backbone import initialize_he_fan_out

TABLE = 2**20  # standard normal numbers, from anywhere among which an input's noise is read
MULTIPLIER = 6364136223846793005  # Knuth's, of MMIX
STRIDE = 0x9E3779B9               # the golden ratio's share of 2^32


class WithTime(nn.Module):
    """A layer that sees the time as one more channel: (N, C, ...) and a number -> the layer of (N, C + 1, ...)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, time: float, x: Tensor) -> Tensor:
        made: Tensor = self.layer(torch.cat([x, torch.full_like(x[:, :1], time)], dim=1))
        return made


class Timed(nn.Module):
    """Layers in a row, of which those that are `WithTime` see the time."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, time: float, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(time, x) if isinstance(layer, WithTime) else layer(x)
        return x


class SDE(nn.Module):
    """The four parts of an SDE-Net, and the path through them.

    downsample  inputs (N, ...) -> the first state h0 (N, C, ...)
    drift       (time, state) -> its velocity, of the same shape
    diffusion   (time, h0) -> (N, 1) logit of how unlike the known inputs it is; its sigmoid is g in (0, 1)
    head        last state -> (N, outputs)
    horizon     T, the time at the end
    steps       L of the Euler-Maruyama scheme
    """

    def __init__(
        self, downsample: nn.Module, drift: nn.Module, diffusion: nn.Module, head: nn.Module, horizon: float, steps: int
    ):
        super().__init__()
        if steps < 1 or not horizon > 0:
            raise ValueError(f"steps must be at least 1 and horizon be above 0, got {steps} and {horizon}")
        self.downsample, self.drift, self.diffusion, self.head = downsample, drift, diffusion, head
        self.horizon, self.steps = horizon, steps

    def solve(self, start: Tensor, sigma: float, noise: Callable[[int], Tensor]) -> Tensor:
        """The last state, by h <- h + f(h, t) dt + sigma g(h0) sqrt(dt) eps, t = 0, dt, ..., T - dt.

        start    (N, C, ...)  h0
        sigma                 factor on g, which is computed once; 0: no noise is drawn
        noise                 step -> eps, standard normal, that broadcasts to the state
        """
        dt, state = self.horizon / self.steps, start
        scale = sigma * torch.sigmoid(self.diffusion(0.0, start).float()) * math.sqrt(dt) if sigma else None
        if scale is not None:
            scale = scale.view(-1, *[1] * (start.ndim - 1))
        for step in range(self.steps):
            state = state + self.drift(step * dt, state) * dt
            if scale is not None:
                state = state + scale * noise(step)
        return state

    def forward(self, inputs: Tensor, sigma: float = 0.0) -> Tensor:
        """(N, ...) -> (N, outputs) of one path, with noise of its own for each element of the state."""
        start = self.downsample(inputs)
        # drawn in the order of the indices, whatever the layout in memory
        return self.head(self.solve(start, sigma, lambda step: torch.randn(start.shape, device=start.device))).float()

    def passes(self, inputs: Tensor, sigma: float, count: int, seed: int) -> Tensor:
        """(N, ...) -> (T, N, outputs) of `count` paths.

        The noise of an input follows from the input and `seed`, so that its answer depends on nothing else.
        """
        start = self.downsample(inputs)
        table = torch.randn(TABLE + start[0].numel(), generator=torch.Generator().manual_seed(seed)).to(start.device)
        key, made = keys(inputs), []

        def noise(number: int) -> Tensor:
            mixed = (key + number * STRIDE) * MULTIPLIER  # wraps around as int64 does; its high bits depend on all
            places = (mixed >> 40) & (TABLE - 1)
            return table.as_strided((TABLE, start[0].numel()), (1, 1))[places].view(start.shape)

        for path in range(count):
            end = self.solve(start, sigma, lambda step, path=path: noise(path * self.steps + step))  # type: ignore[misc]
            made.append(self.head(end).float())
        return torch.stack(made)

    def diffusion_loss(self, inputs: Tensor, disturbance: Tensor) -> Tensor:
        """Sec. 3.3, the second and third line of Eq. 8: g shall be 0 at inputs and 1 at inputs + disturbance.

        inputs       (N, ...)
        disturbance  broadcasts to them
        returns      ()  nats, the sum of both mean cross-entropies; gradient reaches the diffusion alone
        """
        with torch.no_grad():
            known, odd = self.downsample(inputs), self.downsample(inputs + disturbance)
        known, odd = self.diffusion(0.0, known).float(), self.diffusion(0.0, odd).float()
        return F.softplus(known).mean() + F.softplus(-odd).mean()

    def learners(self) -> tuple[nn.Module, ...]:
        """What learns the task: all but the diffusion."""
        return (self.downsample, self.drift, self.head)


def keys(inputs: Tensor) -> Tensor:
    """(N, ...) float -> (N,) int64 that differ where inputs do by 1/255: sums of whole numbers, the same in any order.
    """
    whole = (inputs.flatten(1) * 255).round().long()
    draw = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (whole.shape[1],), generator=draw).to(whole.device)
    return (whole * weights).sum(dim=1)


class GroupNorm(nn.GroupNorm):
    """As torch's, on rows of pixels: on images laid out with channels last, torch 2.13's backward pass on a CPU ends
    the process where the layer's parameters need gradients and its input does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2)).view(x.shape)


def norm(width: int) -> nn.GroupNorm:
    """The authors' group norm: 32 groups, or as many as there are channels."""
    return GroupNorm(min(32, width), width)


def image_sde(channels: int, classes: int, width: int = 64, horizon: float = 6.0, steps: int = 6) -> SDE:
    """The authors' for images of 28 and 32 pixels (sdenet_mnist.py); width: a multiple of 32, or less than 32."""
    downsample = nn.Sequential(
        nn.Conv2d(channels, width, 3), norm(width), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1),
        norm(width), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1),
    )  # fmt: skip

    def conv() -> WithTime:
        return WithTime(nn.Conv2d(width + 1, width, 3, padding=1))

    drift = Timed(norm(width), nn.ReLU(), conv(), norm(width), nn.ReLU(), conv(), norm(width))
    pooled = [norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    diffusion = Timed(
        norm(width), nn.ReLU(), conv(), norm(width), nn.ReLU(), conv(), *pooled, nn.Linear(width, 1)
    )  # fmt: skip
    head = nn.Sequential(norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return _started(SDE(downsample, drift, diffusion, head, horizon, steps))


def vector_sde(
    inputs: int, outputs: int, width: int = 50, hidden: int = 100, horizon: float = 4.0, steps: int = 4,
    normalized: bool = False,
) -> SDE:  # fmt: skip
    """For vectors: the authors' for YearMSD (YearMSD/models/sdenet.py), whose drift is one layer and sees no time;
    `normalized`: two layers that do, between layer norms, so that few dimensions bear many steps.
    """
    if normalized:
        drift = Timed(
            nn.LayerNorm(width), WithTime(nn.Linear(width + 1, width)), nn.ReLU(), nn.Linear(width, width),
            nn.LayerNorm(width),
        )  # fmt: skip
        diffusion = Timed(WithTime(nn.Linear(width + 1, hidden)), nn.ReLU(), nn.Linear(hidden, 1))
    else:
        drift = Timed(nn.Linear(width, width), nn.ReLU())
        diffusion = Timed(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
    head = nn.Sequential(nn.ReLU(), nn.Linear(width, outputs))
    return SDE(nn.Linear(inputs, width), drift, diffusion, head, horizon, steps)


def _started(sde: SDE) -> SDE:
    """Convolutions by He et al. with fan-out, linear layers ~ N(0, 0.001^2), biases 0."""
    initialize_he_fan_out(sde)
    for module in sde.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1e-3)
            nn.init.zeros_(module.bias)
    return sde
