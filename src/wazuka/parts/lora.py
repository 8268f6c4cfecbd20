"""Low-rank adapters beside the linear and convolutional layers of a frozen network.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR, arXiv:2106.09685, Eq. 3; for convolutions
as in huggingface/peft (tuners/lora/layer.py). Differs from it in convolutions: the first factor keeps the layer's
dilation and, where there are groups, its groups, so that every adapter can be merged.
"""

import copy
import math
from collections.abc import Collection

import torch
from torch import Tensor, nn


class Adapted(nn.Module):
    """layer(x) + (alpha / rank) up(down(dropout(x))): `layer` is frozen, and `up` starts at 0.

    layer    a Linear or Conv2d; `down` is of its kind, with `rank` outputs, and sees the same windows. Of a grouped
             convolution both factors are grouped, so rank must be a multiple of its groups
    dropout  share of the adapter's inputs that are dropped in training, in [0, 1)
    """

    layer: nn.Linear | nn.Conv2d
    down: nn.Linear | nn.Conv2d
    up: nn.Linear | nn.Conv2d

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, dropout: float):
        super().__init__()
        if not takes_adapter(layer, rank):
            raise ValueError(f"an adapter of rank {rank} needs a Linear, or a Conv2d whose groups divide it")
        self.layer, self.scale, self.dropout = layer.requires_grad_(False), alpha / rank, nn.Dropout(dropout)
        self.down = copy.deepcopy(layer)  # of a subclass too, with a padding of its own
        self.down.register_parameter("bias", None)
        self.down.weight = nn.Parameter(layer.weight.new_empty(rank, *layer.weight.shape[1:]))
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        if isinstance(self.down, nn.Conv2d):
            self.down.out_channels = rank
            self.up = nn.Conv2d(rank, layer.weight.shape[0], 1, groups=self.down.groups, bias=False)
        else:
            self.down.out_features = rank
            self.up = nn.Linear(rank, layer.weight.shape[0], bias=False)
        nn.init.zeros_(self.up.to(layer.weight).weight)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.layer(x) + self.scale * self.up(self.down(self.dropout(x)))
        return added

    @property
    def weight(self) -> Tensor:
        """Of the one layer that does the same, for modules that read their layers' weights (nn.MultiheadAttention)."""
        down, up = self.down.weight, self.up.weight
        groups = self.layer.groups if isinstance(self.layer, nn.Conv2d) else 1
        product = torch.bmm(
            up.reshape(groups, -1, up.shape[1]),            # (G, out / G, rank / G)
            down.reshape(groups, len(down) // groups, -1),  # (G, rank / G, in / G * kernel)
        )
        return self.layer.weight + self.scale * product.reshape(self.layer.weight.shape)

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """The layer with the adapter folded in; it can learn again."""
        self.layer.weight.copy_(self.weight)
        return self.layer.requires_grad_(True)


def takes_adapter(module: nn.Module, rank: int) -> bool:
    """Whether it is a layer that an adapter of that rank fits."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and rank % module.groups == 0)


def add_adapters(net: nn.Module, rank: int, alpha: float, dropout: float, but: Collection[nn.Module] = ()) -> int:
    """Freeze all of `net` and put an adapter beside each layer that takes one, in place; -> how many.

    but   modules that stay as they are, with all that they hold
    """
    net.requires_grad_(False)
    return _adapt(net, rank, alpha, dropout, but)


def _adapt(net: nn.Module, rank: int, alpha: float, dropout: float, but: Collection[nn.Module]) -> int:
    count = 0
    for name, child in list(net.named_children()):
        if child in but:
            child.requires_grad_(True)
        elif takes_adapter(child, rank):
            setattr(net, name, Adapted(child, rank, alpha, dropout))  # type: ignore[arg-type]
            count += 1
        else:
            count += _adapt(child, rank, alpha, dropout, but)
    return count


def merge_adapters(net: nn.Module) -> nn.Module:
    """Fold every adapter into its layer, in place; -> `net`, as it was built, whose outputs are those it had."""
    for name, child in list(net.named_children()):
        if isinstance(child, Adapted):
            setattr(net, name, child.merged())
        else:
            merge_adapters(child)
    return net
