"""From packed images to batches: which images come when, and in which views.

Batch number `step` is a pure function of (seed, step, process): nothing is remembered between steps, so a run that
was killed needs only the number of its last step to go on with the very same images.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from wazuka.contract import Batch, Episodes, Stream
from wazuka.errors import UserError
from wazuka.functional.seeds import generator_from
from wazuka.functional.sending import to_device

Policy = Callable[[Tensor, torch.Generator], "Tensor | tuple[Tensor, Tensor]"]


@dataclass(frozen=True)
class Pool:
    """Images that a stream draws from, on the device where they are augmented.

    images  (N, C, H, W) uint8
    labels  (N,) int64, -1 where unknown
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"a pool's images must be uint8 (N, C, H, W), got {self.images.dtype} {self.images.shape}")
        if len(self.images) == 0 or len(self.images) != len(self.labels):
            raise ValueError(f"a pool needs images and one label each, got {len(self.images)} and {len(self.labels)}")


def _full_precision(device: str) -> AbstractContextManager:
    """The loop asks for batches where a network may compute in bfloat16, which would round gray levels."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class Batches:
    """Makes the batch of any step.

    streams   what the method asked for
    pools     name -> Pool
    policies  name -> policy; a policy may return (images, draw), and `draw` becomes the batch's NAME_draw
    seed      decides order and augmentation
    rank, world   this process and how many there are; a stream's batch is shared out evenly
    dtype     of the views, float32 (or bfloat16 to halve the traffic)
    """

    def __init__(
        self,
        streams: tuple[Stream | Episodes, ...],
        pools: Mapping[str, Pool],
        policies: Mapping[str, Policy],
        seed: int,
        rank: int = 0,
        world: int = 1,
        dtype: torch.dtype = torch.float32,
    ):
        for stream in streams:
            if stream.pool not in pools:
                raise ValueError(f"the method asks for {stream.pool!r} images, but only {sorted(pools)} are given")
            wanted = {stream.policy} if isinstance(stream, Episodes) else set(stream.views.values())
            if missing := wanted - set(policies):
                raise ValueError(f"the method asks for the views {sorted(missing)}, but only {sorted(policies)} exist")
            if isinstance(stream, Stream) and stream.batch % world:
                raise UserError(f"A batch of {stream.batch} can't be shared evenly by {world} processes.")
        self.streams, self.pools, self.policies = streams, pools, policies
        self.seed, self.rank, self.world, self.dtype = seed, rank, world, dtype
        self._orders: dict[tuple[str, int], Tensor] = {}
        self._rows_by_class: dict[str, list[Tensor]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of `step` (0, 1, ...) for this process."""
        batch = Batch()
        for number, stream in enumerate(self.streams):
            pool = self.pools[stream.pool]
            if isinstance(stream, Episodes):
                generator = generator_from(self.seed, self.rank, step, number)
                rows = to_device(self._episode(stream, generator), pool.images.device)
                images = self._view(stream.policy, pool.images.index_select(0, rows), generator)[0]
                batch.support, batch.query = images.split([stream.way * stream.shot, stream.way * stream.query])
                continue
            chosen = self._rows(stream, step)
            rows = to_device(chosen, pool.images.device)
            images = pool.images.index_select(0, rows)
            for place, (name, policy) in enumerate(stream.views.items()):
                view, draw = self._view(policy, images, generator_from(self.seed, self.rank, step, number, place))
                setattr(batch, name, view)
                if draw is not None:
                    setattr(batch, f"{name}_draw", draw)
            if stream.labels is not None:
                own = rows if pool.labels.device == rows.device else to_device(chosen, pool.labels.device)
                setattr(batch, stream.labels, pool.labels.index_select(0, own))
            if stream.index is not None:
                setattr(batch, stream.index, rows)
        return batch

    def _view(self, policy: str, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        with _full_precision(images.device.type):
            made = self.policies[policy](images, generator)
        images, draw = made if isinstance(made, tuple) else (made, None)
        view = images.to(self.dtype).div_(255)
        return view.contiguous(memory_format=torch.channels_last), draw

    def _rows(self, stream: Stream, step: int) -> Tensor:
        """This process's rows of the pool: a slice of an endless chain of shuffled passes."""
        size, share = len(self.pools[stream.pool].images), stream.batch // self.world
        start = step * stream.batch + self.rank * share
        rows = []
        while share > 0:
            turn, offset = divmod(start, size)
            piece = self._order(stream.pool, turn, size)[offset : offset + share]
            rows.append(piece)
            start, share = start + len(piece), share - len(piece)
        return torch.cat(rows)

    def _order(self, pool: str, turn: int, size: int) -> Tensor:
        if (pool, turn) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != pool or key[1] >= turn - 1}
            self._orders[pool, turn] = torch.randperm(size, generator=generator_from(self.seed, turn, *pool.encode()))
        return self._orders[pool, turn]

    def _episode(self, stream: Episodes, generator: torch.Generator) -> Tensor:
        """Rows of one episode, class-major: all support, then all query."""
        if stream.pool not in self._rows_by_class:
            labels = self.pools[stream.pool].labels.cpu()
            rows = [torch.nonzero(labels == label).flatten() for label in labels[labels >= 0].unique().tolist()]
            self._rows_by_class[stream.pool] = [r for r in rows if len(r) >= stream.shot + stream.query]
        classes = self._rows_by_class[stream.pool]
        if len(classes) < stream.way:
            raise UserError(
                f"A {stream.way}-way episode needs {stream.way} classes of at least {stream.shot + stream.query} "
                f"images, but the {stream.pool} images hold {len(classes)}; lower way, shot or query."
            )
        drawn = []
        for which in torch.randperm(len(classes), generator=generator)[: stream.way].tolist():
            order = torch.randperm(len(classes[which]), generator=generator)[: stream.shot + stream.query]
            drawn.append(classes[which][order])
        table = torch.stack(drawn)
        return torch.cat([table[:, : stream.shot].flatten(), table[:, stream.shot :].flatten()])
