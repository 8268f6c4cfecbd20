"""Batches made before they are asked for, by a thread of their own.

On a GPU the thread also has a stream of its own: views of the steps to come are made beside the step that trains, and
the host starts their kernels while the loop's thread starts others.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from wazuka.contract import Batch

Made = tuple[int, Batch | BaseException, "torch.cuda.Event | None"]


class Ahead:
    """The same batches as `batches`, made ahead: `Ahead(batches)(step)` is `batches(step)`.

    Steps are meant to be asked for in turn; after a jump the thread begins anew there. An error while a batch is made
    is raised where that batch is asked for. Close it, or use it in a `with`, to end the thread.

    batches  step -> batch: a function of the step alone, called by the thread. Where making a batch reads what training
             changes (CTAugment's rates), `depth` must be 0
    depth    how many batches may wait; 0: each is made when it is asked for, without a thread
    stop     the thread makes no batch of this step or later; None: it knows no end
    device   where batches are made
    """

    def __init__(
        self,
        batches: Callable[[int], Batch],
        depth: int = 2,
        stop: int | None = None,
        device: torch.device | str = "cpu",
    ):
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}")
        self.batches, self.depth, self.stop, self.device = batches, depth, stop, torch.device(device)
        self._maker: _Maker | None = None

    def __call__(self, step: int) -> Batch:
        """The batch of `step`, in the caller's stream."""
        if self.depth == 0 or (self.stop is not None and step >= self.stop):
            self.close()
            return self.batches(step)
        if self._maker is None or self._maker.next_step != step:
            self.close()
            self._maker = _Maker(self.batches, step, self.depth, self.stop, self.device)
        try:
            return self._maker.take()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the thread, if there is one, and forget what it has made. It may be used again afterwards."""
        if self._maker is not None:
            self._maker.finish()
            self._maker = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Maker:
    """One thread that makes batches from `first` on; `room` counts how many it may still begin."""

    def __init__(self, batches: Callable[[int], Batch], first: int, depth: int, stop: int | None, device: torch.device):
        self.next_step = first
        self._made: SimpleQueue[Made] = SimpleQueue()
        self._room, halt = threading.Semaphore(depth), threading.Event()
        side = torch.cuda.Stream(device) if device.type == "cuda" else None
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(device))  # the pools may still be on their way
        # the thread knows nothing of this object, so that it ends when this is forgotten without being closed
        work = (batches, first, stop, side, self._made, self._room, halt)
        thread = threading.Thread(target=_make, args=work, name="wazuka-batches", daemon=True)
        self.finish = weakref.finalize(self, _finish, thread, self._room, halt)
        thread.start()

    def take(self) -> Batch:
        step, made, ready = self._made.get()
        assert step == self.next_step
        if isinstance(made, BaseException):
            raise made
        self._room.release()
        self.next_step += 1
        if ready is not None:
            _hand_over(made, ready)
        return made


def _make(
    batches: Callable[[int], Batch],
    step: int,
    stop: int | None,
    side: "torch.cuda.Stream | None",
    made: "SimpleQueue[Made]",
    room: threading.Semaphore,
    halt: threading.Event,
) -> None:
    while stop is None or step < stop:
        room.acquire()
        if halt.is_set():
            return
        try:
            with _within(side):
                batch = batches(step)
                ready = side.record_event() if side is not None else None
        except BaseException as error:  # whatever it is, the caller must hear of it
            made.put((step, error, None))
            return
        made.put((step, batch, ready))
        del batch  # or the newest would be held here while the thread waits for room
        step += 1


def _finish(thread: threading.Thread, room: threading.Semaphore, halt: threading.Event) -> None:
    halt.set()
    room.release()
    if thread is not threading.current_thread():  # which may be the one to collect what was forgotten
        thread.join()


def _within(stream: "torch.cuda.Stream | None") -> AbstractContextManager[Any]:
    return torch.cuda.stream(stream) if stream is not None else nullcontext()


def _hand_over(batch: Batch, ready: "torch.cuda.Event") -> None:
    """From the thread's stream to the caller's: it waits there, not here, and memory isn't reused before it is done."""
    for value in vars(batch).values():
        if isinstance(value, Tensor) and value.is_cuda:
            stream = torch.cuda.current_stream(value.device)
            stream.wait_event(ready)
            value.record_stream(stream)
