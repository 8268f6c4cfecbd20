"""Gram matrices: an image is odd whose channels fire together as they never did for training images of its class.

Sastry & Oore 2020, "Detecting Out-of-Distribution Examples with Gram Matrices", arXiv:1912.12510;
VectorInstitute/gram-ood-detection, followed where they differ: sums of rows of the Gram matrix, not its triangle.
Strong on images from elsewhere; on unknown classes that look alike it is weaker than the softmax's own confidence
(their ResNet, CIFAR-10 against CIFAR-100: AUROC 79.0, against 86.4).
Differs from it: the expected deviations come from held-out training images, not from the test set; a bound of 0 is
guarded by 1e-6 of the layer's scale, not by 1e-6, and a channel that never fired for a class is left out there, for
dividing by nothing would drown all others; in float64, scaled by the image's largest activation, so that tenth powers
neither overflow nor vanish.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wazuka.contract import Detector, Observation, Wants
from wazuka.errors import UserError

GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 spread evenly and in step with nothing


def gram_values(activation: Tensor, powers: int) -> Tensor:
    """How strongly each channel fires together with all channels, for each power p: (sum_d G^p_cd)^(1/p).

    activation  (N, C, ...)          one layer's outputs
    powers                           p = 1 ... powers
    returns     (N, powers, C)       float64; scales with the square of the activations. Roots keep the sign

    G^p = F^p (F^p)^T is never formed: the sum of its row c is F^p_c . sum_d F^p_d.
    """
    x = activation.double().reshape(*activation.shape[:2], activation.shape[2:].numel())
    scale = x.abs().amax(dim=(1, 2), keepdim=True)
    x = x / scale.clamp_min(torch.finfo(x.dtype).tiny)
    power, values, all_channels = torch.ones_like(x), [], x.new_ones(len(x), 1, x.shape[1])
    for p in range(1, powers + 1):
        power *= x
        total = all_channels @ power  # (N, 1, HW); much faster than power.sum(dim=1)
        sums = (power @ total.mT)[:, :, 0]
        values.append(sums.sign() * sums.abs() ** (1 / p))
    return torch.stack(values, dim=1) * scale.square()


def deviation(values: Tensor, low: Tensor, high: Tensor, floor: Tensor) -> Tensor:
    """How far the values of one layer lie outside their ranges, relative to the bound they pass.

    values, low, high  (N, P, C)
    floor              ()         keeps a bound near 0 from dividing by nothing
    returns            (N,)       sum over powers and channels; 0 inside. A range of [0, 0] doesn't count
    """
    below = (low - values).relu() / (low.abs() + floor)
    above = (values - high).relu() / (high.abs() + floor)
    fired = (low != 0) | (high != 0)
    return ((below + above) * fired).sum(dim=(1, 2))


@dataclass(frozen=True, kw_only=True)
class GramSettings:
    """powers: the highest p. held_out: share of the training images that only say how large deviations usually are."""

    powers: int = 10       # the authors' code
    held_out: float = 0.1  # there: of the test images

    def __post_init__(self) -> None:
        if self.powers < 1:
            raise ValueError(f"powers must be at least 1, got {self.powers}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a share of the images, in (0, 1), got {self.held_out}")


class Gram(Detector):
    """Ranges of the Gram values of each layer, power and channel, for each class that the network predicts.

    Observations must hold the inner layers: `net.observe(images, layers=None)`, or `layers=detector.layers` once it is
    fitted. Its memory is buffers that get their shapes from `fit`, or from the state that is loaded.
    """

    low: Tensor       # (K, P, W)  of W channels, all layers side by side
    high: Tensor      # (K, P, W)
    expected: Tensor  # (L,)       mean deviation of held-out images, E_l
    widths: Tensor    # (L,)       channels of each layer
    names: Tensor     # (bytes,)   the layers' names in UTF-8, a line each

    def __init__(self, settings: GramSettings | None = None):
        super().__init__()
        self.settings = settings or GramSettings()
        for name in ("low", "high", "expected"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.register_buffer("widths", torch.empty(0, dtype=torch.int64))
        self.register_buffer("names", torch.empty(0, dtype=torch.uint8))

    @property
    def layers(self) -> list[str]:
        """Names of the layers it was fitted on; empty before."""
        return bytes(self.names.tolist()).decode().splitlines()

    @property
    def wants(self) -> Wants:
        """All inner layers that the network records; once it is fitted, those it was fitted on."""
        return Wants(activations=tuple(self.layers) or None)

    @torch.no_grad()
    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "Gram":
        """Two passes: ranges from most of the training images, then the usual deviations from those held out."""
        self._fit_ranges(observations)
        self.expected = torch.ones_like(self.widths, dtype=torch.float64)
        held_out = [self.deviations(o.of(rows)) for o, rows in self._passing(observations) if rows.any()]
        if not held_out:
            raise UserError("Gram matrices hold out a share of the training images, and there are too few for that.")
        self.expected = torch.cat(held_out).mean(dim=0) + 1e-7  # E_l; 1e-7 is the authors' code's
        return self

    def _passing(self, observations: Callable[[], Iterable[Observation]]) -> Iterator[tuple[Observation, Tensor]]:
        """A fresh pass, and which images (N,) of each batch are held out; that depends on their order alone."""
        start = 0
        for observation in observations():
            places = torch.arange(start + 1, start + len(observation) + 1, dtype=torch.float64)
            start += len(observation)
            yield observation, (places * GOLDEN % 1 < self.settings.held_out).to(observation.logits.device)

    def _fit_ranges(self, observations: Callable[[], Iterable[Observation]]) -> None:
        low = high = None
        for observation, held_out in self._passing(observations):
            layers = observation.activations
            if not layers:
                raise ValueError("Gram matrices need the outputs of inner layers: use net.observe(images, layers=None)")
            values = torch.cat([gram_values(a, self.settings.powers) for a in layers.values()], dim=2)
            if low is None or high is None:
                shape = (observation.logits.shape[1], *values.shape[1:])
                low, high = values.new_full(shape, torch.inf), values.new_full(shape, -torch.inf)
                self.widths = torch.tensor([a.shape[1] for a in layers.values()], device=values.device)
                self.names = torch.tensor(list("\n".join(layers).encode()), dtype=torch.uint8, device=values.device)
            predicted = observation.logits.argmax(dim=1)[~held_out]  # never the label: errors belong to their guess
            values = values[~held_out]  # only now: in another batch, sums would round otherwise
            index = predicted[:, None, None].expand_as(values)
            low.scatter_reduce_(0, index, values, "amin")
            high.scatter_reduce_(0, index, values, "amax")
        if low is None or high is None:
            raise UserError("Gram matrices learn from training images, and there are none.")
        # a class that no training image was taken for gets the range of all
        self.low = torch.where(low.isfinite(), low, low.amin(dim=0))
        self.high = torch.where(high.isfinite(), high, high.amax(dim=0))

    @torch.no_grad()
    def deviations(self, observation: Observation) -> Tensor:
        """(N, L) of each layer, divided by the network's confidence; all 0 for an image that the ranges come from."""
        if not self.layers:
            raise ValueError("this Gram detector is not fitted: call fit, or load a fitted one's state")
        if missing := set(self.layers) - set(observation.activations):
            raise ValueError(f"the observation lacks the layers {sorted(missing)}: use layers=detector.layers")
        confidence, predicted = observation.logits.double().softmax(dim=1).max(dim=1)
        widths, columns = self.widths.tolist(), []
        for name, low, high in zip(self.layers, self.low.split(widths, 2), self.high.split(widths, 2), strict=True):
            values = gram_values(observation.activations[name], self.settings.powers)
            floor = 1e-6 * torch.maximum(low.abs().amax(), high.abs().amax())
            columns.append(deviation(values, low[predicted], high[predicted], floor))
        return torch.stack(columns, dim=1) / confidence[:, None]

    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; sum over layers of the deviation against the expected one. High means odd."""
        return (self.deviations(observation) / self.expected).sum(dim=1).float()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state_dict:  # take the shape of what was fitted
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
