"""CTAugment: strong augmentation that learns how strong it may be.

Berthelot et al. 2020 (ReMixMatch), arXiv:1911.09785, Sec. 3.2; google-research/fixmatch and google-research/remixmatch,
libml/ctaugment.py. Every operation's strength in [0, 1] is cut into bins, and every bin has a weight: how well the
network recognizes labeled images that were changed that much. Strong views use only bins of high weight.

Two oddities of that code are mended unless `strict` asks for them: its translations are at most 0.3 *pixel*, which
nearest sampling turns into nothing (here: 0.3 of the side), and ReMixMatch's rescale crops at most 0.25 pixel
(FixMatch's, and here: a quarter of the side).
"""

from functools import lru_cache
from typing import Literal

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from wazuka.augment import color, filters, geometry
from wazuka.augment.geometry import around_center, slant, translation
from wazuka.augment.operations import IDENTITY, Blend, Change, Map, Operation, OperationTable
from wazuka.augment.policy import draw
from wazuka.functional.processes import process_count
from wazuka.functional.sending import to_device

BINS: dict[str, tuple[int, ...]] = {  # one number for each parameter
    "autocontrast": (17,), "blur": (17,), "brightness": (17,), "color": (17,), "contrast": (17,), "cutout": (17,),
    "equalize": (17,), "invert": (17,), "identity": (), "posterize": (8,), "rescale": (17, 6), "rotate": (17,),
    "sharpness": (17,), "shear_x": (17,), "shear_y": (17,), "smooth": (17,), "solarize": (17,), "translate_x": (17,),
    "translate_y": (17,),
}  # fmt: skip


def operations(strict: str | None) -> dict[str, Operation]:
    """What each operation does at level v in [0, 1). Columns: v, a second level, and where a square goes."""

    def offset(v: Tensor, side: int) -> Tensor:
        return (2 * v - 1) * 0.3 * (1 if strict else side)

    def rescale(x: Tensor, v: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return geometry.rescale(x, 0.25 * v, (second * 5.99).to(torch.int64), pixels=strict == "remixmatch")

    return {
        "autocontrast": Blend(lambda x, v, *_: (x, color.autocontrast(x), v)),
        "blur": Blend(lambda x, v, *_: (x, filters.blur(x), v)),
        "brightness": Blend(lambda x, v, *_: (color.black(x), x, 0.1 + 1.9 * v)),
        "color": Blend(lambda x, v, *_: (color.luma(x), x, 0.1 + 1.9 * v)),
        "contrast": Blend(lambda x, v, *_: (color.mean_gray(x), x, 0.1 + 1.9 * v)),
        "cutout": Change(_cutout),
        "equalize": Blend(lambda x, v, *_: (x, color.equalize(x), v)),
        "invert": Blend(lambda x, v, *_: (x, color.invert(x), v)),
        "identity": IDENTITY,
        "posterize": Change(lambda x, v, *_: color.posterize(x, 1 + (v * 7.999).floor())),
        "rescale": Change(rescale),
        "rotate": Map(lambda size, v, *_: around_center(size, degrees=((2 * v - 1) * 45).round())),
        "sharpness": Blend(lambda x, v, *_: (filters.smooth(x), x, 0.1 + 1.9 * v)),
        "shear_x": Map(lambda size, v, *_: slant((2 * v - 1) * 0.3, 0 * v)),
        "shear_y": Map(lambda size, v, *_: slant(0 * v, (2 * v - 1) * 0.3)),
        "smooth": Blend(lambda x, v, *_: (x, filters.smooth(x), v)),
        "solarize": Change(lambda x, v, *_: color.solarize(x, (v * 255.999).floor())),
        "translate_x": Map(lambda size, v, *_: translation(offset(v, size[1]), 0 * v)),
        "translate_y": Map(lambda size, v, *_: translation(0 * v, offset(v, size[0]))),
    }


@lru_cache
def _table(strict: str | None) -> OperationTable:
    known = operations(strict)
    return OperationTable({name: known[name] for name in BINS})


def _cutout(images: Tensor, v: Tensor, second: Tensor, across: Tensor, down: Tensor) -> Tensor:
    height, width = images.shape[2:]
    half = (1 + (v * min(height, width) * 0.499).floor().to(torch.int64)) // 2
    x, y = (across * width).to(torch.int64), (down * height).to(torch.int64)
    return geometry.cutout(images, geometry.centered_boxes(x, y, 2 * half))


_MOST_BINS = 17
_PARAMETERS = 2


class CTAugment(nn.Module):
    """The policies `strong` and `probe`, and the only owner of the bins' weights.

    depth      operations applied to each image, drawn with replacement
    threshold  share of the best bin's weight below which a bin is not used, in [0, 1]; the papers' runs use 0.80
    decay      share of a weight that an update keeps, in [0, 1)
    cutout     paint a gray square of half the side over each strong view (FixMatch does, ReMixMatch doesn't)
    strict     None: as the paper means it; "fixmatch" or "remixmatch": with the oddities of that repository
    """

    weights: Tensor  # (operations, 2, 17); a place that no bin has stays at 1 and is never used
    bins: Tensor     # (operations, 2) int64: how many bins each parameter has, 0 where there is no parameter

    def __init__(
        self,
        depth: int = 2,
        threshold: float = 0.80,
        decay: float = 0.99,
        cutout: bool = True,
        strict: Literal["fixmatch", "remixmatch"] | None = None,
    ):
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if not (0 <= threshold <= 1 and 0 <= decay < 1):
            raise ValueError(f"threshold must lie in [0, 1] and decay in [0, 1), got {threshold} and {decay}")
        if strict not in (None, "fixmatch", "remixmatch"):
            raise ValueError(f'strict must be None, "fixmatch" or "remixmatch", got {strict!r}')
        self.depth, self.threshold, self.decay, self.cutout, self.strict = depth, threshold, decay, cutout, strict
        bins = [[*counts, 0, 0][:_PARAMETERS] for counts in BINS.values()]
        self.register_buffer("weights", torch.ones(len(bins), _PARAMETERS, _MOST_BINS))
        self.register_buffer("bins", torch.tensor(bins), persistent=False)

    @torch.no_grad()
    def strong(self, images: Tensor, generator: Generator) -> Tensor:
        """Strong views whose strengths come from the bins that are in use."""
        choice, within, which_bin, where = self._draw(len(images), generator)
        device = images.device
        bins, used = to_device(self.bins, device), to_device(self.probabilities(), device)
        if self.strict == "remixmatch":  # a segment between neighboring bins, with the sum of their weights
            used = used[..., :-1] + used[..., 1:]
            used = used.where(torch.arange(_MOST_BINS - 1, device=device) < bins[..., None] - 1, 0)
            bins = (bins - 1).clamp(min=0)
        cumulative = used.cumsum(dim=2)
        cumulative = cumulative / cumulative[..., -1:]
        numbers = torch.cat([choice[..., None].to(torch.float64), within, which_bin], dim=2)
        numbers = to_device(numbers, device)
        operation, within, which_bin = numbers[..., 0].to(torch.int64), numbers[..., 1:3], numbers[..., 3:5]
        chosen = (which_bin[..., None] >= cumulative[operation]).sum(dim=3)  # an unused bin has no width: never chosen
        levels = (chosen + within) / bins[operation].clamp(min=1)
        images = self._changed(images, choice, levels, where)
        if self.cutout:
            across, down = to_device(draw(generator, 2, len(images)), device)
            images = _cutout(images, torch.ones_like(across), across, across, down)
        return images

    @torch.no_grad()
    def probe(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Views of any strength, to learn the weights from, and what was done to them.

        returns  images; and (N, depth, 3) float64: the operation's number and its two levels in [0, 1)
        """
        choice, levels, _, where = self._draw(len(images), generator)
        record = to_device(torch.cat([choice[..., None].to(levels.dtype), levels], dim=2), images.device)
        return self._changed(images, choice, record[..., 1:], where), record

    @torch.no_grad()
    def update(self, draw: Tensor, proximity: Tensor) -> None:
        """Learn how well probe views were recognized, image by image in the order of the batch.

        draw       (N, depth, 3) as `probe` returned it
        proximity  (N,) in [0, 1]: 1 - half the L1 distance of the averaged network's answer, in eval mode, to the true
                   label's one-hot; which is simply the probability of the true class
        """
        draw, proximity = draw.to(self.weights.device), proximity.to(self.weights.device, torch.float64)
        if process_count() > 1:
            draw, proximity = _from_all_processes(draw), _from_all_processes(proximity)
        operation, levels = draw[..., :1].to(torch.int64), draw[..., 1:].to(torch.float64)
        count = self.bins[operation[..., 0]]                                          # (N, depth, 2)
        place = (levels * count * 0.999).to(torch.int64)
        parameter = torch.arange(_PARAMETERS, device=place.device)
        slots = self.weights.numel()
        slot = (operation * _PARAMETERS + parameter) * _MOST_BINS + place
        slot = torch.where(count > 0, slot, slots).flatten()                          # the last slot collects nothing
        # w <- decay w + (1 - decay) proximity, one after another; a bin met k times keeps decay^k of its weight
        order = slot.argsort(stable=True)
        slot, seen = slot[order], proximity[:, None, None].expand(place.shape).flatten()[order]
        met = torch.zeros(slots + 1, dtype=torch.int64, device=slot.device).scatter_add_(0, slot, torch.ones_like(slot))
        later = met.cumsum(0)[slot] - 1 - torch.arange(len(slot), device=slot.device)  # meetings still to come
        gain = (1 - self.decay) * self.decay ** later.to(torch.float64) * seen
        old = self.weights.flatten().to(torch.float64) * self.decay ** met[:-1].to(torch.float64)
        gained = torch.zeros(slots + 1, dtype=torch.float64, device=slot.device).scatter_add_(0, slot, gain)
        self.weights.copy_((old + gained[:-1]).view_as(self.weights))

    def probabilities(self) -> Tensor:
        """(operations, 2, 17) float64: each bin's weight relative to its parameter's best; 0 where it isn't in use."""
        real = torch.arange(_MOST_BINS, device=self.weights.device) < self.bins[..., None].clamp(min=1)
        raised = (self.weights.to(torch.float64) + (1 - self.decay)) * real
        relative = raised / raised.amax(dim=2, keepdim=True)
        return relative * (relative >= self.threshold)

    def _draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(n, depth) operations, and three times (n, depth, 2) uniform: level, bin, place of a cutout. On the CPU."""
        choice = (draw(generator, n, self.depth) * len(BINS)).to(torch.int64)
        within, which_bin, where = draw(generator, 3, n, self.depth, 2)
        return choice, within, which_bin, where

    def _changed(self, images: Tensor, choice: Tensor, levels: Tensor, where: Tensor) -> Tensor:
        parameters = torch.cat([levels, to_device(where, images.device)], dim=2)  # (N, depth, 4)
        return _table(self.strict).apply(images, choice.mT, parameters.permute(1, 2, 0))


def _from_all_processes(rows: Tensor) -> Tensor:
    """The rows of every process, in the order of their ranks."""
    gathered = [torch.empty_like(rows) for _ in range(process_count())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
