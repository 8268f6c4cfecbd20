"""RealNVP: an invertible network whose Jacobian's determinant costs nothing, for vectors and for images.

Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803, as FlowGMM's authors build it (izmailovpavel/flowgmm,
flow_ssl/realnvp, after chrischute/real-nvp). Every part is a flow: `forward(x) -> (z, log_det)` with log_det (N,) =
log |det dz/dx|, and `inverse(z) -> x`. With their weights it gives their latents and determinants to rounding. Differs
from their code in one place: the logit transform's inverse is its inverse (theirs is a bare sigmoid).

Image networks contain batch norm. In train mode an image's z depends on its batch; ask for densities, answers and
inverses in eval mode.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQUASH = 0.9  # gray values are drawn into (0.05, 0.95) before their logit


class Coupling(nn.Module):
    """Half of x stays and says how the other half is scaled and shifted: y = (x + t) * exp(s), log_det = sum of s.

    net    what stays -> s and t, one behind the other along dimension 1
    scale  how far tanh lets s go, learned for each channel or feature; the shape that broadcasts over s
    """

    def __init__(self, net: nn.Module, scale: Tensor):
        super().__init__()
        self.net, self.scale = net, nn.Parameter(scale)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What stays, what changes."""
        raise NotImplementedError

    def join(self, kept: Tensor, changed: Tensor) -> Tensor:
        raise NotImplementedError

    def scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.net(kept).chunk(2, dim=1)
        return self.scale * scale.tanh(), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self.split(x)
        s, t = self.scale_and_shift(kept)
        return self.join(kept, (changed + t) * s.exp()), s.flatten(1).sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        kept, changed = self.split(y)
        s, t = self.scale_and_shift(kept)
        return self.join(kept, changed * (-s).exp() - t)


class MaskedCoupling(Coupling):
    """Which entries stay is a mask of zeros and ones, (1, D) or (1, 1, H, W); the network sees zeros in place of
    the others.
    """

    mask: Tensor

    def __init__(self, net: nn.Module, scale: Tensor, mask: Tensor):
        super().__init__(net, scale)
        self.register_buffer("mask", mask)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.mask, x * (1 - self.mask)

    def join(self, kept: Tensor, changed: Tensor) -> Tensor:
        return kept + changed  # each is zero where the other is not

    def scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        s, t = super().scale_and_shift(kept)
        return s * (1 - self.mask), t * (1 - self.mask)


class ChannelCoupling(Coupling):
    """The second half of the channels stays; with `turned`, the first."""

    def __init__(self, net: nn.Module, scale: Tensor, turned: bool):
        super().__init__(net, scale)
        self.turned = turned

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=1)
        return (first, second) if self.turned else (second, first)

    def join(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([kept, changed] if self.turned else [changed, kept], dim=1)


class Chain(nn.ModuleList):
    """Flows one after the other."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for flow in self:
            x, more = flow(x)
            log_det = log_det + more
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        for flow in reversed(self):
            z = flow.inverse(z)  # type: ignore[operator]
        return z


class VectorRealNVP(nn.Module):
    """Vectors (N, D) -> latents (N, D). The couplings keep the first and the second half of the features in turn.

    hidden   units of both hidden layers of each coupling's network
    dropout  share of the first hidden layer that is dropped in training
    """

    def __init__(self, size: int, couplings: int, hidden: int, dropout: float):
        super().__init__()
        if size < 2:
            raise ValueError(f"a coupling needs two features, one to stay and one to change, got {size}")
        self.couplings = Chain()
        for odd in _in_turn(couplings):
            net = nn.Sequential(
                nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout),
                nn.Linear(hidden, hidden), nn.ReLU(),
                nn.Linear(hidden, 2 * size),
            )  # fmt: skip
            first = torch.arange(size)[None] < size // 2
            self.couplings.append(MaskedCoupling(net, torch.ones(1, size), (first ^ odd).float()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.couplings(x)

    def inverse(self, z: Tensor) -> Tensor:
        return self.couplings.inverse(z)


class Logit(nn.Module):
    """(0, 1) -> (-2.94, 2.94): the logit of x drawn together to (0.05, 0.95), where it is steep nowhere."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = (SQUASH * (2 * x - 1) + 1) / 2
        log_p, log_q = p.log(), torch.log1p(-p)
        return log_p - log_q, (math.log(SQUASH) - log_p - log_q).flatten(1).sum(dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        return ((2 * z.sigmoid() - 1) / SQUASH + 1) / 2


class ImageRealNVP(nn.Module):
    """Images (N, C, H, W) in (0, 1) -> latents (N, C * H * W).

    Each scale: three couplings on a checkerboard, 2x2 pixels folded into channels, three couplings on channels, and
    half of the channels leave for the latents. The last scale: four on a checkerboard.

    shape    (C, H, W), H and W divisible by 2 ** (scales - 1)
    scales   resolutions; the authors take 2
    blocks   residual blocks of each coupling's network; the authors take 8
    filters  their channels at the first scale, doubled where pixels are folded; the authors take 64
    """

    def __init__(self, shape: tuple[int, int, int], scales: int, blocks: int, filters: int):
        super().__init__()
        channels, height, width = shape
        if height % 2 ** (scales - 1) or width % 2 ** (scales - 1):
            raise ValueError(
                f"sides must be divisible by {2 ** (scales - 1)} for {scales} scales, got {height} x {width}"
            )
        self.logit = Logit()
        self.before, self.after = nn.ModuleList(), nn.ModuleList()  # the folding of pixels
        self.shapes: list[tuple[int, int, int]] = []  # of what leaves at each scale
        for scale in range(scales):
            last = scale == scales - 1
            size, number = (channels, height, width), 4 if last else 3
            self.before.append(Chain(_checkerboard(size, blocks, filters, odd) for odd in _in_turn(number)))
            if not last:
                height, width = height // 2, width // 2
                wide = 4 * channels
                self.after.append(Chain(_channels(wide, blocks, 2 * filters, odd) for odd in _in_turn(3)))
                channels, filters = 2 * channels, 2 * filters
            self.shapes.append((channels, height, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self.logit(x)
        latents = []
        for scale, before in enumerate(self.before):
            x, more = before(x)
            log_det = log_det + more
            if scale < len(self.after):
                x, more = self.after[scale](F.pixel_unshuffle(x, 2))
                log_det = log_det + more
                x, leaving = x.chunk(2, dim=1)
                latents.append(leaving)
        return torch.cat([latent.flatten(1) for latent in [*latents, x]], dim=1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = [part.unflatten(1, shape) for part, shape in zip(z.split(sizes, dim=1), self.shapes, strict=True)]
        x = self.before[-1].inverse(parts.pop())  # type: ignore[operator]
        for before, after in zip(reversed(self.before[:-1]), reversed(self.after), strict=True):
            folded = after.inverse(torch.cat([x, parts.pop()], dim=1))  # type: ignore[operator]
            x = before.inverse(F.pixel_shuffle(folded, 2))  # type: ignore[operator]
        return self.logit.inverse(x)


class WeightNormConv(nn.Module):
    """A convolution whose kernel is a learned length times a learned direction (Salimans & Kingma 2016,
    arXiv:1602.07868), for each output channel; padded to keep the image's size.

    The direction is kept as a vector: weight decay reaches kernels alone, and of these the authors decay the lengths
    only. A direction has no length that could matter.
    """

    def __init__(self, inputs: int, outputs: int, side: int, bias: bool = True):
        super().__init__()
        start = nn.Conv2d(inputs, outputs, side, bias=bias)  # torch's way to begin
        self.shape, self.padding = start.weight.shape, side // 2
        self.direction = nn.Parameter(start.weight.detach().flatten())
        self.length = nn.Parameter(start.weight.detach().flatten(1).norm(dim=1)[:, None, None, None])
        self.bias = nn.Parameter(start.bias.detach()) if start.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        direction = F.normalize(self.direction.view(len(self.length), -1), dim=1).view(self.shape)
        return F.conv2d(x, self.length * direction, self.bias, padding=self.padding)


class Block(nn.Module):
    """Pre-activation residual block."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), WeightNormConv(width, width, 3, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(), WeightNormConv(width, width, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class SkipSumNet(nn.Module):
    """A coupling's network: residual blocks, and the sum of a 1x1 convolution of what leaves each of them.

    gain  on the normalized input: 2 where half of it is masked to zero
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, width: int, gain: float):
        super().__init__()
        self.gain = gain
        self.norm = nn.BatchNorm2d(inputs)
        self.enter = WeightNormConv(2 * inputs, width, 3)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightNormConv(width, width, 1) for _ in range(blocks + 1))
        self.leave = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), WeightNormConv(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.gain * self.norm(x)
        x = self.enter(torch.cat([x, -x], dim=1).relu())
        total = self.skips[0](x)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            x = block(x)
            total = total + skip(x)
        return self.leave(total)


def _in_turn(number: int) -> list[bool]:
    return [place % 2 == 1 for place in range(number)]


def _checkerboard(shape: tuple[int, int, int], blocks: int, width: int, odd: bool) -> MaskedCoupling:
    """The pixel at the top left changes; with `odd` it stays."""
    channels, rows, columns = shape
    board = (torch.arange(rows)[:, None] + torch.arange(columns) + odd) % 2
    net = SkipSumNet(channels, 2 * channels, blocks, width, gain=2.0)
    return MaskedCoupling(net, torch.ones(channels, 1, 1), board.float()[None, None])


def _channels(channels: int, blocks: int, width: int, odd: bool) -> ChannelCoupling:
    half = channels // 2
    return ChannelCoupling(SkipSumNet(half, channels, blocks, width, gain=1.0), torch.ones(half, 1, 1), turned=odd)
