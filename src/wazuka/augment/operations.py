"""Giving every image of a batch its own operation, in few kernels.

Images that share an operation go through it together, and operations of one kind share their work: all affine maps
are one gather, all blends one multiplication. An operation gets the images' parameters as columns, each (n,).
Parameters that come on the CPU become maps and factors there: a GPU would spend more time on starting that handful of
numbers' arithmetic than on the pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wazuka.augment.color import blend
from wazuka.augment.geometry import affine, size_of
from wazuka.functional.sending import to_device


@dataclass(frozen=True)
class Change:
    """An operation of its own kind. change: images, *columns on their device -> images."""

    change: Callable[..., Tensor]


@dataclass(frozen=True)
class Blend:
    """An operation that is `color.blend`. ends: images, *columns -> (first, second, factor), which broadcast; the
    factor may stay where the columns are.
    """

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
        kinds: tuple[type, ...] = (Change, Blend, Map)
        rank = sorted(range(len(operations)), key=lambda place: kinds.index(type(operations[self.names[place]])))
        self._operations = [operations[self.names[place]] for place in rank]  # operations of one kind are neighbors
        self._place = torch.tensor(rank).argsort()

    def __len__(self) -> int:
        return len(self.names)

    def apply(self, images: Tensor, choices: Tensor, parameters: Tensor) -> Tensor:
        """Image n through the operation at position choices[0, n], then choices[1, n], and so on.

        choices     (T, N) int64 on the CPU, so that nothing waits for the device to learn how many images go where
        parameters  (T, P, N) on the CPU or the images' device
        """
        if len(images) == 0 or len(choices) == 0:
            return images
        places = self._place[choices]
        orders = places.argsort(dim=1, stable=True)
        backs = orders.argsort(dim=1)
        # each turn's images come straight from where the turn before left them
        moves = torch.cat([orders[:1], backs[:-1].gather(1, orders[1:]), backs[-1:], orders])
        moves = to_device(moves, images.device)
        turns = len(choices)
        order = moves[-turns:] if parameters.device == moves.device else orders
        given = parameters.gather(2, order[:, None].expand_as(parameters))
        columns = to_device(given, images.device)
        for turn in range(turns):
            counts = places[turn].bincount(minlength=len(self)).tolist()
            own = [place.split_with_sizes(counts, dim=1) for place in (columns[turn], given[turn])]
            images = self._turn(images.index_select(0, moves[turn]).split_with_sizes(counts), *own)
        return images.index_select(0, moves[turns])

    def _turn(self, images: Sequence[Tensor], columns: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
        """One group of images and its (P, n) parameters for each operation, in their own order -> all images.

        columns, given  the same numbers on the images' device, and where the caller had them
        """
        changed, ends, maps, mapped = [], [], [], []
        for operation, group, near, own in zip(self._operations, images, columns, given, strict=True):
            if len(group) == 0:
                continue
            if isinstance(operation, Change):
                changed.append(operation.change(group, *near))
            elif isinstance(operation, Blend):
                first, second, factor = operation.ends(group, *own)
                ends.append((first.expand(group.shape), second.expand(group.shape), factor))
            else:
                maps.append(operation.maps(size_of(group), *own))
                mapped.append(group)
        if ends:
            first, second, factor = (torch.cat(parts) for parts in zip(*ends, strict=True))
            changed.append(blend(first, second, to_device(factor, first.device)))
        if maps:
            changed.append(affine(torch.cat(mapped), torch.cat(maps), fill=self.fill))
        return torch.cat(changed)
