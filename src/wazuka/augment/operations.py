"""Giving every image of a batch its own operation, in few kernels.

Images that share an operation go through it together, and operations of one kind share their work: all affine maps
are one gather, all blends one multiplication. An operation gets the images' parameters as columns, each (n,).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wazuka.augment.color import blend
from wazuka.augment.geometry import Size, affine


@dataclass(frozen=True)
class Change:
    """An operation of its own kind. change: images, *columns -> images."""

    change: Callable[..., Tensor]


@dataclass(frozen=True)
class Blend:
    """An operation that is `color.blend`. ends: images, *columns -> (first, second, factor), which broadcast."""

    ends: Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Map:
    """An operation that is `geometry.affine`. maps: (height, width), *columns -> (n, 6)."""

    maps: Callable[..., Tensor]


Operation = Change | Blend | Map
IDENTITY = Change(lambda images, *columns: images)


class OperationTable:
    """Named operations, each known by its position, ready to be applied.

    fill  gray level, 0..255, where a map leaves the image
    """

    def __init__(self, operations: Mapping[str, Operation], fill: int = 0):
        self.names, self.fill = tuple(operations), fill
        kinds = (Change, Blend, Map)
        rank = sorted(range(len(operations)), key=lambda place: kinds.index(type(operations[self.names[place]])))
        self._operations = [operations[self.names[place]] for place in rank]  # operations of one kind are neighbors
        self._place = torch.tensor(rank).argsort()
        self._single = sum(isinstance(operation, Change) for operation in self._operations)
        self._blends = sum(isinstance(operation, Blend) for operation in self._operations)

    def __len__(self) -> int:
        return len(self.names)

    def apply(self, images: Tensor, choices: Tensor, parameters: Tensor) -> Tensor:
        """Image n through the operation at position choices[0, n], then choices[1, n], and so on.

        choices     (T, N) int64 on the CPU, so that nothing waits for the device to learn how many images go where
        parameters  (T, P, N) on the CPU or the images' device
        """
        places = self._place[choices]
        orders = places.argsort(dim=1, stable=True)
        backs = orders.argsort(dim=1)
        # each turn's images come straight from where the turn before left them
        moves = torch.cat([orders[:1], backs[:-1].gather(1, orders[1:]), backs[-1:], orders])
        moves = moves.to(images.device, non_blocking=True)
        columns = parameters.to(images.device, non_blocking=True)
        turns = len(choices)
        for turn in range(turns):
            counts = places[turn].bincount(minlength=len(self)).tolist()
            own = columns[turn].index_select(1, moves[turns + 1 + turn]).split(counts, dim=1)
            images = self._turn(images.index_select(0, moves[turn]).split(counts), own)
        return images.index_select(0, moves[turns])

    def _turn(self, images: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
        """One group of images and its (P, n) parameters for each operation, in their own order -> all images."""
        groups = list(zip(self._operations, images, columns, strict=True))
        middle, last = self._single, self._single + self._blends
        changed = [op.change(group, *own) for op, group, own in groups[:middle] if len(group)]  # type: ignore[union-attr]
        changed += self._blend([entry for entry in groups[middle:last] if len(entry[1])])
        changed += self._map([entry for entry in groups[last:] if len(entry[1])])
        return torch.cat(changed)

    def _blend(self, groups: list) -> list[Tensor]:
        if not groups:
            return []
        first, second, factor = zip(*(op.ends(group, *own) for op, group, own in groups), strict=True)
        shapes = [group.shape for _, group, _ in groups]
        first = torch.cat([end.expand(shape) for end, shape in zip(first, shapes, strict=True)])
        second = torch.cat([end.expand(shape) for end, shape in zip(second, shapes, strict=True)])
        return [blend(first, second, torch.cat(factor))]

    def _map(self, groups: list) -> list[Tensor]:
        if not groups:
            return []
        size: Size = tuple(groups[0][1].shape[2:])
        maps = torch.cat([op.maps(size, *own) for op, _, own in groups])
        return [affine(torch.cat([group for _, group, _ in groups]), maps, fill=self.fill)]
