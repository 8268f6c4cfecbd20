"""Train one method on one set of images: the loop, with curves, checkpoints and a way to stop.

`fit`, `compare`, `demo` and the estimator all come through here.
"""

import copy
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wazuka.app.catalog import Entry, build
from wazuka.app.plan import Plan
from wazuka.app.runs import Run
from wazuka.app.tuned import Start, TunedPlan, under_head
from wazuka.contract import Head, Method, Stream
from wazuka.data import ImageSet
from wazuka.data.streams import Batches, Pool
from wazuka.errors import UserError
from wazuka.functional.seeds import mix
from wazuka.training.checkpoint import load_checkpoint, save_checkpoint
from wazuka.training.loop import Progress, train
from wazuka.training.optimizers import Stepper

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CURVE_POINTS = 200       # rows of losses a stage writes
ACCURACY_POINTS = 20     # times the test images are looked at for the curve; nothing is chosen by it
CURVE_TEST_IMAGES = 1000
IN_MEMORY_BYTES = 2**31  # packed sets up to here are held in memory, or on the GPU; larger ones stay mapped


class Interrupted(Exception):
    """The run was asked to stop, has saved its state, and can be resumed."""


@dataclass(frozen=True)
class Watch:
    """Who looks on while it trains: none of it changes a weight.

    on_step        (stage, step, total steps): a progress bar
    stop           asked after each step; True ends the run, saved
    save_seconds   time between checkpoints
    """

    on_step: Callable[[str, int, int], None] = lambda stage, step, total: None
    stop: Callable[[], bool] = lambda: False
    save_seconds: float = 15.0


@dataclass
class Learner:
    """One method about to be trained on the images of `train_set` (-1: unlabeled).

    teacher  a trained method, for those that learn from one
    start    where the tuning of a pre-trained network begins
    """

    item: Entry
    plan: Plan
    settings: Any
    train_set: ImageSet
    seed: int
    fabric: "Fabric"
    precision: torch.dtype
    teacher: Method | None = None
    start: Start | None = None
    method: Method = field(init=False)

    def __post_init__(self) -> None:
        if issubclass(self.item.kind, Head):
            raise UserError(
                f"{self.item.name} learns on the features of a pre-trained network: use it through `wazuka fit PHOTOS "
                f"--method {self.item.name}`."
            )
        if self.teacher is None and takes_teacher(self.item):
            raise wants_teacher(self.item)
        torch.manual_seed(mix(self.seed))
        net, settings = self.plan.net(self.train_set.channels, self.train_set.n_classes), self.settings
        if isinstance(self.plan, TunedPlan):
            net, settings = under_head(self.item, net, self.train_set.n_classes, settings, self.start)
        try:
            self.method = build(
                self.item, net, self.train_set.n_classes, settings,
                unlabeled=len(self.train_set), shape=tuple(self.train_set.images.shape[1:]), teacher=self.teacher,
                guesses=None if self.start is None else self.start.guesses,
            )  # fmt: skip
            streams = self.method.streams()
        except ValueError as error:  # what a settings dataclass leaves to the parts that are made of it
            raise UserError(f"The settings of {self.item.name} don't fit: {error}.") from error
        self.method = self.method.to(self.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = resident(self.train_set.images, self.fabric.device)
        labels = torch.from_numpy(np.array(self.train_set.labels))
        known = torch.from_numpy(self.train_set.labeled)
        pools = {
            "labeled": Pool(images[known.to(images.device)], labels[known].to(self.fabric.device)),
            "unlabeled": Pool(images, torch.full_like(labels, -1)),
        }
        self.batches = Batches(
            streams, pools, self.plan.policies, self.seed, self.fabric.global_rank, self.fabric.world_size
        )
        self.steppers = {player: Stepper(player, how) for player, how in self.method.players().items()}

    @property
    def images_per_step(self) -> int:
        """Views that pass through the network in a step, over all processes."""
        return sum(stream.batch * len(stream.views) for stream in self.method.streams() if isinstance(stream, Stream))

    def seconds_per_step(self, steps: int = 8) -> float:
        """Measured on a copy, so that the run itself starts from where it would have started."""
        twin = copy.deepcopy(self.method)
        steppers = {player: Stepper(player, how) for player, how in twin.players().items()}
        times: list[float] = []

        def clock(progress: Progress) -> bool:
            if self.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return len(times) < 3 or (len(times) <= steps and times[-1] - times[0] < 3)

        train(twin, self.batches, steppers, total_steps=steps + 4, precision=self.precision, after_step=clock)
        return (times[-1] - times[1]) / (len(times) - 2) if len(times) > 2 else times[-1] - times[0]

    def learn(
        self,
        steps: int,
        stage: str = "final",
        watch: Watch | None = None,
        run: Run | None = None,
        test_set: ImageSet | None = None,
    ) -> float:
        """Train for `steps`; with `run`, save and resume there. Returns the seconds it took, earlier parts included.

        Raises Interrupted after saving when `watch.stop()` says so.
        """
        watch = watch or Watch()
        writer = run if self.fabric.is_global_zero else None
        first, spent = 0, 0.0
        if run is not None and run.checkpoint(stage).exists():
            facts = load_checkpoint(run.checkpoint(stage), self.method, self.steppers)
            if facts["total_steps"] != steps:
                raise UserError(f"{run.folder} was started with {facts['total_steps']} steps; resume it with as many.")
            first, spent = facts["step"], facts["seconds"]
        if writer is not None:  # also without a checkpoint: a run may be killed before its first
            writer.forget_metrics_after(stage, first)
        started = saved = time.perf_counter()
        curve_every, accuracy_every = math.ceil(steps / CURVE_POINTS), math.ceil(steps / ACCURACY_POINTS)
        probe = _curve_set(test_set)

        def after_step(progress: Progress) -> bool:
            nonlocal saved
            now, step = time.perf_counter(), progress.step
            seconds = spent + now - started
            if writer is not None and (step % curve_every == 0 or step == steps):
                row: dict[str, Any] = {"stage": stage, "step": step, "seconds": round(seconds, 3)}
                row |= {name: round(finite(float(value)), 6) for name, value in progress.parts.items()}
                if probe is not None and (step % accuracy_every == 0 or step == steps):
                    row["test_accuracy"] = self._accuracy(probe)
                writer.add_metrics(row)
            stop = self._agreed(watch.stop())
            if writer is not None and step < steps and (stop or now - saved > watch.save_seconds):
                facts = {"step": step, "total_steps": steps, "seconds": seconds}
                save_checkpoint(writer.checkpoint(stage), self.method, self.steppers, facts)
                saved = time.perf_counter()
            watch.on_step(stage, step, steps)
            return not stop or step == steps

        done = train(
            self.method,
            self.batches,
            self.steppers,
            first_step=first,
            total_steps=steps,
            seed=self.seed,
            rank=self.fabric.global_rank,
            precision=self.precision,
            after_step=after_step,
        )
        if not done:
            raise Interrupted
        self.method.eval()
        return spent + time.perf_counter() - started

    def predict(self, images: np.ndarray | Tensor) -> np.ndarray:
        """uint8 (N, C, H, W) -> (N, classes) float32 probabilities."""
        return predict(self.method, images, self.fabric.device, self.precision)

    def _accuracy(self, test_set: ImageSet) -> float:
        self.method.eval()
        guesses = self.predict(test_set.images).argmax(axis=1)
        self.method.train()
        return round(float((guesses == test_set.labels).mean()), 6)

    def _agreed(self, stop: bool) -> bool:
        """Whether any process wants to stop; all must end at the same step, or the others wait for it forever."""
        if self.fabric.world_size == 1:
            return stop
        votes = self.fabric.all_reduce(torch.tensor(float(stop)), reduce_op="sum")
        return bool(torch.as_tensor(votes) > 0)


def takes_teacher(item: Entry) -> bool:
    """Whether a method learns from a teacher: whether its constructor names one."""
    return "teacher" in inspect.signature(item.kind.__init__).parameters


def wants_teacher(item: Entry) -> UserError:
    """What somebody is told who gives it none."""
    return UserError(
        f"{item.name} learns from a teacher: fit it with --teacher RUN, the folder of a finished run on these classes."
    )


@torch.inference_mode()
def predict(
    method: Method,
    images: np.ndarray | Tensor,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    batch: int = 512,
) -> np.ndarray:
    """uint8 (N, C, H, W) -> (N, classes) float32 probabilities, of a method in eval mode."""
    answers = []
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for start in range(0, len(images), batch):
            piece = images[start : start + batch]
            if not isinstance(piece, Tensor):
                piece = torch.from_numpy(np.array(piece))  # a copy, for torch warns of a read-only map
            view = piece.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)
            answers.append(method.predict(view).float().cpu())
    return torch.cat(answers).numpy() if answers else np.zeros((0, 0), np.float32)


def resident(images: np.ndarray, device: torch.device) -> Tensor:
    """Packed images as a tensor: in memory or on the device where they fit, else mapped from the disk."""
    if images.nbytes <= IN_MEMORY_BYTES:
        return torch.from_numpy(np.array(images)).to(device)
    with warnings.catch_warnings():  # a map is read-only, and nobody writes to it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)


def finite(value: float) -> float:
    """A diverged loss as a huge number, which JSON can hold; the curve shows it all the same."""
    return value if math.isfinite(value) else 1e30


def _curve_set(test_set: ImageSet | None) -> ImageSet | None:
    if test_set is None or len(test_set) <= CURVE_TEST_IMAGES:
        return test_set
    every = len(test_set) / CURVE_TEST_IMAGES
    return test_set.subset(np.unique((np.arange(CURVE_TEST_IMAGES) * every).astype(np.int64)))


@contextmanager
def stopping_on_signals() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM ask for a stop at the next step; a second Ctrl-C stops at once."""
    import signal
    import threading

    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
