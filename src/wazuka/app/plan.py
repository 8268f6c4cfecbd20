"""What is trained on which images: the network, the views and the settings that `fit` takes when nobody says.

The only place where sizes of images meet numbers of channels and steps. The choices were made on hidden labels of
training images, never on test labels: docs/decisions.md tells which, and what lost.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from wazuka.augment import AffineStrong, Chain, Plain, Policy, RandAugment, Weak
from wazuka.contract import Optimizer
from wazuka.errors import UserError
from wazuka.functional.schedules import rise_and_fall
from wazuka.nets import ConvNet

TINY, SMALL = 12, 40  # pixels a side: scikit-learn's digits have 8, MNIST 28, CIFAR 32


@dataclass(frozen=True)
class Plan:
    """What `fit` takes for images of one size.

    widths    the ConvNet's stages; stride: of its first convolution
    settings  of every method that has them, in place of its paper's; own: of one method alone, by its name
    steps     of training
    """

    widths: tuple[int, ...]
    stride: int
    settings: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]]
    policies: Mapping[str, Policy]
    steps: int

    def settings_for(self, method: str) -> dict[str, Any]:
        """What the method of that name takes in place of its paper's settings, as far as it has them."""
        return {**self.settings, **self.own.get(method, {})}

    def net(self, channels: int, classes: int) -> nn.Module:
        """A fresh network for this plan."""
        # statistics that follow within tens of batches: the papers' 0.001 needs a hundred times our steps
        return ConvNet(channels, classes, self.widths, momentum=0.1, stride=self.stride)

    def describe(self) -> dict[str, Any]:
        """JSON-able: what a run records, and what it must find unchanged when it is resumed."""
        return {
            "net": {"kind": "ConvNet", "widths": list(self.widths), "stride": self.stride},
            "policies": {name: str(policy) for name, policy in self.policies.items()},
            "steps": self.steps,
        }


def plan_for(height: int, width: int, channels: int, flip: bool | None = None) -> Plan:
    """The plan for packed images of that size.

    flip    mirror images in their views; None: photos in color yes, gray images (digits, letters, scans) no

    Raises UserError for images of a single row or column.
    """
    side = min(height, width)
    if side < 2:
        raise UserError(f"Images of {height} x {width} pixels are too small to learn from: take at least 2 a side.")
    flip = channels == 3 if flip is None else flip
    if channels == 1:
        weak: Policy = Weak(flip=flip, shift=0.1, subpixel=True)
        shaken = AffineStrong() if side <= TINY else AffineStrong(rotation=20, scale=0.15, shear=0.2)
        strong: Policy = shaken if not flip else Chain((Weak(flip=True, shift=0.0), shaken))
    else:
        weak = Weak(flip=flip, shift=0.125)
        strong = Chain((weak, RandAugment()))
    widths: tuple[int, ...]
    if side <= TINY:
        widths, stride, steps, ratio = (32, 64), 1, 1000, 6
    elif side <= SMALL:
        widths, stride, steps, ratio = (32, 64, 128), 2, 1500, 6
    else:
        widths, stride, steps, ratio = (32, 64, 128, 256), 2, 1000, 3
    settings = {
        "labeled_batch": 16,
        "unlabeled_ratio": ratio,
        "averaging": 0.99,
        "decay": 0.99,  # of FreeMatch's and SoftMatch's averages
        "optimizer": Optimizer(algorithm="muon", lr=0.02, momentum=0.95, weight_decay=0.02, schedule=rise_and_fall),
    }
    fixmatch: dict[str, Any] = {"alignment": True}
    if channels == 1 and side > TINY:  # measured on MNIST; photos, not measured, keep the paper's hard guesses
        fixmatch |= {"guesser": "average", "temperature": 0.5, "threshold": 0.0}
    elif side > TINY:
        fixmatch |= {"frugal": True}  # a third less time
    own: dict[str, dict[str, Any]] = {
        "fixmatch": fixmatch,
        # a change as large for each pixel as the paper's, which is 3 in all for CIFAR's 3,072 numbers
        "vat": {"epsilon": round(3 * math.sqrt(channels * height * width / 3072), 3)},
        "mixmatch": {"ramp": 0.4},  # the paper's 1/64 of so few steps would be none
        "remixmatch": {"ramp": 0.1, "copies": 2},
    }
    policies: dict[str, Policy] = {"plain": Plain(), "weak": weak, "strong": strong}
    return Plan(widths, stride, settings, own, policies, steps)
