"""Where a training step's time goes, and what it could be at best.

Three floors stand beside what is measured: the multiplications at the device's peak; the bytes that each operator
reads and writes, one operator at a time, at its bandwidth (fused operators move less); and the host's time to start
every operator. The largest names what to work on next.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from wazuka.contract import Batch, Method, Player
from wazuka.training import Stepper, train

Policy = Callable[[Tensor, torch.Generator], Any]


@dataclass(frozen=True)
class Device:
    """What it can do at best: TFLOP/s in the precision used, TB/s, and the host's microseconds to start an operator."""

    peak: float
    bandwidth: float
    launch: float


class Work(TorchDispatchMode):
    """Counts what runs inside: operators that compute or copy, floating-point operations, bytes read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.flop, self.bytes = 0, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if function.is_view or function._overloadpacket.__name__ in ("empty", "empty_like", "empty_strided", "detach"):
            return out
        self.operators += 1
        if function._overloadpacket in flop_registry:
            self.flop += flop_registry[function._overloadpacket](*args, **kwargs, out_val=out)
        picks = function._overloadpacket.__name__ in ("index_select", "index", "gather")  # these read what they return
        touched = tree_leaves((out, out)) if picks else {id(x): x for x in tree_leaves((args, kwargs, out))}.values()
        # a tensor changed in place counts once: a little too low
        self.bytes += sum(x.numel() * x.element_size() for x in touched if isinstance(x, Tensor))
        return out

    def floors(self, device: Device) -> dict[str, float]:
        """Milliseconds."""
        return {
            "arithmetic": self.flop / device.peak / 1e9,
            "traffic, operator by operator": self.bytes / device.bandwidth / 1e9,
            "starting operators": self.operators * device.launch / 1e3,
        }


def work_of_step(
    method: Method, steppers: dict[Player, Stepper], batches: Callable[[int], Batch], precision: torch.dtype
) -> dict[str, Work]:
    """What making a batch takes, and what training on it takes. The method moves on by one step."""
    made: list[Batch] = []

    def making(step: int) -> Batch:
        return made[0]

    with Work() as making_work:
        made.append(batches(0))
    with Work() as training_work:
        train(method, making, steppers, total_steps=1, precision=precision)
    return {"making a batch": making_work, "training on it": training_work}


class Clock:
    """Marks the end of each part, on the host and, by events, on the device: its time includes waiting for the host."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, float, Any]] = []

    def mark(self, part: str) -> None:
        event = None
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self.marks.append((part, time.perf_counter(), event))

    def medians(self, steps: int) -> dict[str, dict[str, float]]:
        """Part -> milliseconds a step on host and device: the median over marks, times how often a step has it."""
        if self.cuda:
            torch.cuda.synchronize()
        host: dict[str, list[float]] = {}
        device: dict[str, list[float]] = {}
        for (_, before, begin), (part, now, end) in zip(self.marks, self.marks[1:], strict=False):
            host.setdefault(part, []).append((now - before) * 1e3)
            device.setdefault(part, []).append(begin.elapsed_time(end) if self.cuda else (now - before) * 1e3)
        return {
            part: {
                "host_ms": round(statistics.median(host[part]) * len(host[part]) / steps, 3),
                "device_ms": round(statistics.median(device[part]) * len(device[part]) / steps, 3),
            }
            for part in host
        }


class TimedPolicy:
    def __init__(self, name: str, policy: Policy, clock: Clock):
        self.name, self.policy, self.clock = name, policy, clock

    def __call__(self, images: Tensor, generator: torch.Generator) -> Any:
        self.clock.mark("batch: picking, to float")
        made = self.policy(images, generator)
        self.clock.mark(f"batch: {self.name} views")
        return made


class TimedStepper:
    def __init__(self, stepper: Stepper, clock: Clock):
        self.stepper, self.clock = stepper, clock

    def step(self, loss: Tensor, progress: float) -> None:
        self.clock.mark("forward")
        hooks = (
            self.stepper.optimizer.register_step_pre_hook(lambda *_: self.clock.mark("backward")),
            self.stepper.optimizer.register_step_post_hook(lambda *_: self.clock.mark("optimizer step")),
        )
        try:
            self.stepper.step(loss, progress)
        finally:
            for hook in hooks:
                hook.remove()


def parts_of_step(
    method: Method,
    steppers: dict[Player, Stepper],
    batches: Callable[[Clock], Callable[[int], Batch]],
    precision: torch.dtype,
    device: torch.device,
    steps: int,
    before_step: Callable[[int], None],
) -> dict[str, dict[str, float]]:
    """Milliseconds of every part of the loop itself, after three steps to warm up.

    batches   clock -> step -> batch, with each policy a `TimedPolicy`
    """
    clock = Clock(device)
    make, own = batches(clock), method.after_step

    def making(step: int) -> Batch:
        if step == 3:
            clock.marks.clear()
        clock.mark("loop")
        batch = make(step)
        clock.mark("batch: picking, to float")
        return batch

    def after_step() -> None:
        own()
        clock.mark("average, after step")

    timed: dict[Any, Any] = {player: TimedStepper(stepper, clock) for player, stepper in steppers.items()}
    method.after_step = after_step  # type: ignore[method-assign]
    try:
        train(method, making, timed, total_steps=steps + 3, precision=precision, before_round=before_step)
    finally:
        del method.after_step
    return clock.medians(steps)


def rate(run: Callable[[int, int], Any], device: torch.device, warm: int, steps: int) -> float:
    """Steps a second of `run(first, stop)`, after `warm` steps."""
    run(0, warm)
    started = _now(device)
    run(warm, warm + steps)
    return steps / (_now(device) - started)


def kernels(run: Callable[[], None], device: torch.device, steps: int) -> dict[str, Any]:
    """How many kernels a step starts, the share of time in which none runs, and which take the longest.

    On the CPU operators stand for kernels; there is no idle share.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as record:
        started = _now(device)
        run()
        seconds = _now(device) - started
    on_gpu = device.type == "cuda"
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    spans = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in record.events()
        if event.device_type == wanted and (on_gpu or event.name.startswith("aten::"))
    ]
    longest: dict[str, list[float]] = {}
    for average in record.key_averages():
        spent = average.self_device_time_total if on_gpu else average.self_cpu_time_total
        if average.device_type == wanted and spent > 0:
            longest.setdefault(average.key[:100], []).append(spent / steps / 1e3)
    told = sorted(((sum(spent), name) for name, spent in longest.items()), reverse=True)[:15]
    found: dict[str, Any] = {
        "kernels_per_step" if on_gpu else "operators_per_step": round(len(spans) / steps, 1),
        "step_ms_under_profiler": round(seconds / steps * 1e3, 3),
        "longest_ms": {name: round(spent, 4) for spent, name in told},
    }
    if on_gpu:
        busy = covered(span[:2] for span in spans) / 1e6
        found["busy_ms"] = round(busy / steps * 1e3, 3)
        found["idle_share"] = round(max(0.0, 1 - busy / seconds), 4)
    return found


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: kernels of two streams overlap."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def floors_of(work: dict[str, Work], device: Device, images: int) -> dict[str, Any]:
    """For JSON: counts and floors of a step, and what the floors allow in steps a second."""
    told: dict[str, Any] = {"assumed": {**asdict(device), "units": "TFLOP/s, TB/s, microseconds"}}
    for name, counted in work.items():
        floors = {floor: round(ms, 3) for floor, ms in counted.floors(device).items()}
        told[name] = {
            "operators": counted.operators,
            "gflop": round(counted.flop / 1e9, 2),
            "gigabytes": round(counted.bytes / 1e9, 3),
            "floors_ms": floors,
        }
    training = work["training on it"]
    told["images_per_step"] = images
    told["gflop_per_image"] = round(training.flop / images / 1e9, 4)
    return told


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
