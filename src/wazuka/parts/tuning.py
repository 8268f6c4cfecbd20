"""A pre-trained network under a new head: which of its layers learn, how fast, and from when on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wazuka.contract import Optimizer, Pace

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a pre-trained network is tuned. The encoder is all of it below the head.

    head         how the new linear head starts: "zero", all zeros, so that the first step leaves the encoder alone
                 (BiT, Kolesnikov et al. 2020, arXiv:1912.11370, Sec. 3.3); "normal", weights ~ N(0, 0.01^2) and zero
                 biases (BSS's code); "given", the network's own head stays, as after a linear probe (LP-FT, Kumar et
                 al. 2022, arXiv:2202.10054)
    head_rate    the head's learning rate as a multiple of the encoder's
    groups       into which the encoder's layers are cut, bottom to top, of about as many layers each
    rate_decay   each group learns so many times slower than the one above it; ULMFiT (Howard & Ruder 2018,
                 arXiv:1801.06146, Sec. 3.2) has 2.6, also between head and encoder
    unfreezing   share of the run by which all learn: the head from the start, the groups from the top, one after
                 another at even steps (ULMFiT, Sec. 3.3: one an epoch); 0: all from the start
    norms        batch norm in the encoder: "train", by the batch; "frozen", by the running statistics, while gains and
                 shifts learn: for batches of few images; "frozen_all", nothing of it learns
    """

    head: Literal["zero", "normal", "given"] = "zero"
    head_rate: float = 10.0
    groups: int = 3
    rate_decay: float = 1.0
    unfreezing: float = 0.0
    norms: Literal["train", "frozen", "frozen_all"] = "frozen"

    def __post_init__(self) -> None:
        if self.head not in ("zero", "normal", "given"):
            raise ValueError(f'head must be "zero", "normal" or "given", got {self.head!r}')
        if self.norms not in ("train", "frozen", "frozen_all"):
            raise ValueError(f'norms must be "train", "frozen" or "frozen_all", got {self.norms!r}')
        if not self.head_rate > 0 or not self.rate_decay >= 1 or self.groups < 1:
            raise ValueError(
                "head_rate must be above 0, rate_decay and groups at least 1, "
                f"got {self.head_rate}, {self.rate_decay} and {self.groups}"
            )
        if not 0 <= self.unfreezing < 1:
            raise ValueError(f"unfreezing is a share of the run, in [0, 1), got {self.unfreezing}")


class Group(NamedTuple):
    """Layers of the encoder that learn alike: their modules, rate and start as a `Pace` has them."""

    layers: list[nn.Module]
    rate: float
    start: float


class Tuned(nn.Module):
    """A network and the rules by which it is tuned: images (N, C, H, W) in [0, 1] -> (N, classes) logits.

    Its `optimizer` makes any method tune it so, whatever the loss: FixMatchSettings(optimizer=tuned.optimizer(rule)).

    net      has `features(images)`, `feature_size` and a `head` on the features, as every `Backbone`. It is tuned in
             place, and its head is replaced unless it is "given"
    classes  C
    """

    net: Any  # a Backbone, which no part knows

    def __init__(self, net: nn.Module, classes: int, tuning: Tuning):
        super().__init__()
        self.net, self.tuning = net, tuning
        if tuning.head != "given":
            self.net.head = _new_head(self.net, classes, tuning.head)
        for norm in self._norms():
            norm.requires_grad_(tuning.norms != "frozen_all")
        self.train(net.training)

    @property
    def feature_size(self) -> int:
        """D"""
        return int(self.net.feature_size)

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.net.features(images)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """(N, D) features -> (N, C) logits, float32."""
        logits: Tensor = self.net.head(features)
        return logits.float()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    @torch.no_grad()
    def start_head(self, weight: Tensor, bias: Tensor) -> None:
        """Start from a linear probe on the features: weight (C, D), bias (C,)."""
        head = self.net.head
        if weight.shape != head.weight.shape or bias.shape != head.bias.shape:
            raise ValueError(
                f"the head takes a weight of shape {tuple(head.weight.shape)} and a bias of {tuple(head.bias.shape)}, "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        head.weight.copy_(weight)
        head.bias.copy_(bias)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Those below the head that learn, now or later in the run."""
        head = set(self.net.head.parameters())
        return [p for p in self.net.parameters() if p.requires_grad and p not in head]

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.net.head.parameters())

    def optimizer(self, rule: Optimizer) -> Optimizer:
        """`rule`, whose learning rate is that of the encoder's top group, with the pace of each group and the head."""
        paces = [Pace(parameters=tuple(self.head_parameters()), rate=self.tuning.head_rate)]
        for group in self.groups():
            own = [p for layer in group.layers for p in layer.parameters(recurse=False) if p.requires_grad]
            if own:
                paces.append(Pace(parameters=tuple(own), rate=group.rate, start=group.start))
        return replace(rule, paces=tuple(paces))

    def groups(self) -> Iterator[Group]:
        """The encoder's groups, from the top."""
        t, units = self.tuning, list(self._units())
        count = min(t.groups, len(units))
        cuts = [len(units) * number // count for number in range(count + 1)] if count else []
        for depth in range(count):
            taken = units[cuts[count - depth - 1] : cuts[count - depth]]
            layers = [layer for unit in taken for layer in unit]
            yield Group(layers, t.rate_decay**-depth, t.unfreezing * (depth + 1) / count)

    def _units(self) -> Iterator[list[nn.Module]]:
        """Layers that own something that learns, in the order in which the network was built: bottom to top. A norm
        belongs to the layer before it.
        """
        head, unit = set(self.net.head.modules()), list[nn.Module]()
        for layer in self.net.modules():
            learns = any(p.requires_grad for p in layer.parameters(recurse=False))
            if layer in head or not (learns or isinstance(layer, _BatchNorm)):
                continue
            if unit and not isinstance(layer, NORMS):
                yield unit
                unit = []
            unit.append(layer)
        if unit:
            yield unit

    def _norms(self) -> list[nn.Module]:
        head = set(self.net.head.modules())
        return [module for module in self.net.modules() if isinstance(module, _BatchNorm) and module not in head]

    def train(self, mode: bool = True) -> "Tuned":
        super().train(mode)
        if mode and self.tuning.norms != "train":
            for norm in self._norms():
                norm.eval()
        return self

    def wake(self, progress: float) -> None:
        """Call it before a step's passes: the batch norms of a group that rests are in eval mode until it learns."""
        if self.tuning.norms == "train" and self.tuning.unfreezing > 0:
            for group in self.groups():
                for layer in group.layers:
                    if isinstance(layer, _BatchNorm):
                        layer.train(progress >= group.start)


def _new_head(net: Any, classes: int, start: Literal["zero", "normal"]) -> nn.Linear:
    head = nn.Linear(net.feature_size, classes)
    nn.init.normal_(head.weight, std=0.01 if start == "normal" else 0.0)
    nn.init.zeros_(head.bias)
    return head.to(next(net.parameters()))
