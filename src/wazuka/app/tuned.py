"""Tuning a pre-trained network from `fit`: what learns, on which views, and where it begins.

It begins at what `consensus` makes of the frozen features: the new head is the linear classifier that learned the
consensus's answers (LP-FT, Kumar et al. 2022, arXiv:2202.10054, with a better probe), self-training takes these answers
as its guesses, and `fit` keeps the frozen classifier where cross-validation says that tuning did not pay.
"""

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.app.backbones import Pretrained
from wazuka.app.catalog import Entry
from wazuka.app.plan import Plan
from wazuka.augment import Chain, Plain, Policy, RandAugment, Weak
from wazuka.contract import Optimizer
from wazuka.functional.schedules import rise_and_fall
from wazuka.nets import Backbone, EfficientNetLite0
from wazuka.parts.tuning import Tuned, Tuning

RESHAPES = ("sla",)  # it gives the network a head for more answers than classes
SIDE_ON_CPU = 128  # pixels: a third of the work of 224
STEPS = 150


class Tunable(Backbone):
    """A copy of a pre-trained network that may learn: images of any size, gray or RGB, brought to the backbone's."""

    def __init__(self, backbone: Pretrained, classes: int):
        super().__init__()
        net = copy.deepcopy(backbone.net)
        if isinstance(net, Backbone):
            net.head = nn.Identity()  # of other classes; nothing passes through it
        self.net, self.size, self.feature_size = net.requires_grad_(True), backbone.size, backbone.feature_size
        self.head = nn.Linear(self.feature_size, classes)

    def features(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        made: Tensor = self.net.features(images) if isinstance(self.net, Backbone) else self.net(images)
        return made


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    weight, bias  (C, D) and (C,) of the head
    guesses       (N, C) probabilities of all images of the training set
    """

    weight: Tensor
    bias: Tensor
    guesses: Tensor


@dataclass(frozen=True, eq=False)
class TunedPlan(Plan):
    """As `Plan`, for a pre-trained network."""

    backbone: Pretrained

    def net(self, channels: int, classes: int) -> nn.Module:
        return Tunable(self.backbone, classes)

    def describe(self) -> dict[str, Any]:
        net = {"kind": "tuned", "backbone": self.backbone.name, "size": self.backbone.size, "key": self.backbone.key()}
        return super().describe() | {"net": net}


def tuned_plan(backbone: Pretrained, flip: bool | None, channels: int) -> TunedPlan:
    """The plan for tuning it."""
    flip = channels == 3 if flip is None else flip
    weak = Weak(flip=flip, shift=0.125)
    policies: Mapping[str, Policy] = {"plain": Plain(), "weak": weak, "strong": Chain((weak, RandAugment()))}
    rule = Optimizer(algorithm="adamw", lr=1e-4, weight_decay=0.01, schedule=rise_and_fall)
    settings = {
        "labeled_batch": 16,
        "unlabeled_ratio": 3,
        "averaging": 0.99,
        "decay": 0.99,
        "tuning": Tuning(head="given", head_rate=1.0),
        "optimizer": rule,
    }
    own: dict[str, dict[str, Any]] = {
        "fixmatch": {"alignment": True},
        "l2_sp": {"optimizer": dataclasses.replace(rule, weight_decay=0.0)},  # its own decay takes that place
    }
    return TunedPlan((), 0, settings, own, policies, STEPS, backbone)


def as_tuned(backbone: Pretrained, device: torch.device) -> Pretrained:
    """The network at the size it is tuned at: its own, or fewer pixels on a CPU where it can look at fewer."""
    if device.type != "cpu" or not isinstance(backbone.net, EfficientNetLite0):
        return backbone
    return dataclasses.replace(backbone, size=min(backbone.size, SIDE_ON_CPU))


def tunes(item: Entry) -> bool:
    """Whether the method learns with a network that it is given, and under the head it has there."""
    return item.name not in RESHAPES and "net" in inspect.signature(item.kind.__init__).parameters


def under_head(item: Entry, net: nn.Module, classes: int, settings: Any, start: Start | None) -> tuple[nn.Module, Any]:
    """The network with its head started, and the method's settings, in the form that the method takes them.

    Methods of transfer tune a network by themselves; any other gets it with the optimizer that tunes.
    """
    assert isinstance(net, Tunable)
    if start is not None:
        with torch.no_grad():
            assert isinstance(net.head, nn.Linear)
            net.head.weight.copy_(start.weight)
            net.head.bias.copy_(start.bias)
    if item.setting == "transfer":
        return net, settings
    tuned = Tuned(net, classes, Tuning(head="given", head_rate=1.0))
    if any(field.name == "optimizer" for field in dataclasses.fields(settings)):
        settings = dataclasses.replace(settings, optimizer=tuned.optimizer(settings.optimizer))
    return tuned, settings
