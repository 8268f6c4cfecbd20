"""RandAugment as FixMatch uses it: a few random operations of random strength, then a gray square.

Cubuk et al. 2020, arXiv:1909.13719, in the form of FixMatch (Sohn et al. 2020, arXiv:2001.07685, Sec. 2.3, App. E;
google-research/fixmatch, libml/augment.py and third_party/auto_augment/augmentations.py). Two forms are in use:

- "fixmatch": 2 operations, each with probability 0.5, strength a whole number 1..9 of 10; cutout of half the side.
  Posterize keeps 4 bits or fewer, enhancers run from 0.28 to 1.72. Empty corners become gray, as there.
- "usb": TorchSSL's and USB's (microsoft/Semi-supervised-learning, semilearn/datasets/augmentation/randaugment.py):
  3 operations, always, continuous strength; cutout of a random side up to half. Posterize keeps 4 to 7 bits, enhancers
  only weaken (0.05 to 0.95), the ends of Solarize reach black-is-white. Empty corners become black.

Neither includes the weak view (mirroring and moving) that both papers' code applies first: put `Weak` before it.
Differs from the code: "fixmatch" translations are shares of the side (10 pixels of 32); the square is gray 127 in both,
where USB has (125, 123, 114); an empty corner that a later operation changes is not set back to gray.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Generator, Tensor

from wazuka.augment import color, filters, geometry
from wazuka.augment.geometry import around_center, slant, translation
from wazuka.augment.operations import IDENTITY, Blend, Change, Map, Operation, OperationTable
from wazuka.augment.policy import draw, random_cutout
from wazuka.functional.sending import to_device


def _pixels(level: Tensor, side: int) -> Tensor:
    """`level` pixels of 32, as whole pixels of `side`."""
    return (level * side / 32).round()


_COMMON: dict[str, Operation] = {
    "identity": IDENTITY,
    "autocontrast": Change(lambda x, *_: color.autocontrast(x)),
    "equalize": Change(lambda x, *_: color.equalize(x)),
}

# level m in 1..9 of 10, sign -1 or 1; whole-number parameters are cut off as Python's int() does
_FIXMATCH: dict[str, Operation] = _COMMON | {
    "rotate": Map(lambda size, m, sign: around_center(size, degrees=3 * sign * m)),
    "solarize": Change(lambda x, m, sign: color.solarize(x, 256 - (m * 256 / 10).floor())),
    "color": Blend(lambda x, m, sign: (color.luma(x), x, m * 1.8 / 10 + 0.1)),
    "contrast": Blend(lambda x, m, sign: (color.mean_gray(x), x, m * 1.8 / 10 + 0.1)),
    "brightness": Blend(lambda x, m, sign: (color.black(x), x, m * 1.8 / 10 + 0.1)),
    "sharpness": Blend(lambda x, m, sign: (filters.smooth(x), x, m * 1.8 / 10 + 0.1)),
    "shear_x": Map(lambda size, m, sign: slant(sign * m * 0.3 / 10, 0 * m)),
    "translate_x": Map(lambda size, m, sign: translation(sign * _pixels(m, size[1]), 0 * m)),
    "translate_y": Map(lambda size, m, sign: translation(0 * m, sign * _pixels(m, size[0]))),
    "posterize": Change(lambda x, m, sign: color.posterize(x, 4 - (m * 4 / 10).floor())),
    "shear_y": Map(lambda size, m, sign: slant(0 * m, sign * m * 0.3 / 10)),
}

# level v in [0, 1), spread over both directions where an operation has two; the sign goes unused
_USB: dict[str, Operation] = _COMMON | {
    "rotate": Map(lambda size, v, _: around_center(size, degrees=60 * v - 30)),
    "solarize": Change(lambda x, v, _: color.solarize(x, 256 * v)),
    "color": Blend(lambda x, v, _: (color.luma(x), x, 0.05 + 0.9 * v)),
    "contrast": Blend(lambda x, v, _: (color.mean_gray(x), x, 0.05 + 0.9 * v)),
    "brightness": Blend(lambda x, v, _: (color.black(x), x, 0.05 + 0.9 * v)),
    "sharpness": Blend(lambda x, v, _: (filters.smooth(x), x, 0.05 + 0.9 * v)),
    "shear_x": Map(lambda size, v, _: slant(0.6 * v - 0.3, 0 * v)),
    "translate_x": Map(lambda size, v, _: translation((0.6 * v - 0.3) * size[1], 0 * v)),
    "translate_y": Map(lambda size, v, _: translation(0 * v, (0.6 * v - 0.3) * size[0])),
    "posterize": Change(lambda x, v, _: color.posterize(x, (4 + 4 * v).floor())),
    "shear_y": Map(lambda size, v, _: slant(0 * v, 0.6 * v - 0.3)),
}
OPERATIONS = tuple(_FIXMATCH)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Random operations on each image, drawn with replacement, then a gray square.

    form         "fixmatch" or "usb": the ranges above, and how strength and the square's side are drawn
    count        operations drawn for each image
    probability  that a drawn operation is applied
    strongest    largest level m of the "fixmatch" form, 1..10; "usb" has none
    cutout       side of the square as a share of the shorter side (fixmatch), or the largest such share (usb); 0: none
    fill         gray level, 0..255, where an operation leaves the image
    operations   the names to draw from; leave out those that change what your classes mean
    """

    form: Literal["fixmatch", "usb"] = "fixmatch"
    count: int = 2
    probability: float = 0.5
    strongest: int = 9
    cutout: float = 0.5
    fill: int = 127
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        if self.form not in ("fixmatch", "usb"):
            raise ValueError(f'form must be "fixmatch" or "usb", got {self.form!r}')
        if self.count < 0 or not 1 <= self.strongest <= 10:
            raise ValueError(f"count must be 0 or more and strongest 1..10, got {self.count} and {self.strongest}")
        if not (0 <= self.probability <= 1 and 0 <= self.cutout <= 1 and 0 <= self.fill <= 255):
            raise ValueError("probability and cutout must lie in [0, 1] and fill in 0..255")
        if unknown := sorted(set(self.operations) - set(OPERATIONS)):
            raise ValueError(f"operations must come from {OPERATIONS}, got {unknown}")
        if not self.operations:
            raise ValueError("operations must name at least one; count=0 applies none")

    @classmethod
    def usb(cls) -> "RandAugment":
        """The settings of TorchSSL and USB."""
        return cls(form="usb", count=3, probability=1.0, fill=0)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        which, level, sign, chance = draw(generator, 4, self.count, n)
        choices = (which * len(self.operations)).to(torch.int64)
        choices = torch.where(chance < self.probability, choices, len(self.operations))
        if self.form == "fixmatch":
            level = 1 + (level * self.strongest).floor()
        table = _table(self.form, self.operations, self.fill)
        images = table.apply(images, choices, torch.stack([level, torch.where(sign < 0.5, -1.0, 1.0)], dim=1))
        center, share = draw(generator, n, 2), draw(generator, n)
        if self.form == "fixmatch":
            return random_cutout(images, to_device(center, images.device), self.cutout)
        boxes = to_device(_usb_boxes(images, center, share * self.cutout), images.device)
        return geometry.cutout(images, boxes)


@lru_cache
def _table(form: str, operations: tuple[str, ...], fill: int) -> OperationTable:
    known = _FIXMATCH if form == "fixmatch" else _USB
    return OperationTable({name: known[name] for name in operations} | {"skip": IDENTITY}, fill)


def _usb_boxes(images: Tensor, center: Tensor, share: Tensor) -> Tensor:
    """(N, 4) boxes of USB's Cutout: the center may lie anywhere, the last row and column are painted too."""
    sides = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float64)
    size = (share * images.shape[3])[:, None]
    start = (center * (sides - 1) + 1 - size / 2).clamp(min=0).floor()  # numpy's uniform(w) lies between 1 and w
    stop = torch.minimum(start + size, sides).floor() + 1
    return torch.cat([start, torch.where(size > 0, stop, start)], dim=1).to(torch.int64)
