"""CIFAR-10 from 40, 250 or 4,000 labels with WRN-28-2: the papers' protocol, whole, on one GPU, for any method.

Protocol (google-research/fixmatch, Sohn et al. 2020, Sec. 4): five splits, drawn by the seeds 1 to 5 with the rule of
create_split.py; all 50,000 training images are unlabeled images, the labeled among them; weak views are mirrored and
moved by up to 4 pixels, strong ones come from RandAugment and Cutout; 64 labeled images a step. The answer is that of
the averaged weights: reported are the last checkpoint and the median of the last 20, which lie 1/1024 of the run apart
as theirs do. Neither is the best on the test images; nothing is chosen by them.
Differs from it: our images are JPEG-recompressed, so a figure compares with published ones only to about a point. They
are sorted by their files' names; if these count in CIFAR-10's own order, which can't be seen here, the splits are the
papers' very images. The one validation image, which their code takes away, stays.

The papers run 2^20 steps. A shorter run shrinks every clock: cosine and ramps are shares of the run already; the
average's decay rises from 0.99 (5,000 steps and fewer) to 0.999 (20,000 and more), as do the averages of FreeMatch and
SoftMatch; batch norm's statistics remember about a hundredth of the run, 100,000 steps and more as in the paper.
Two settings follow the number of labels: ReMixMatch's for 40 labels are its authors'.

    export WAZUKA_DATA=FOLDER        # holds cifar10/*.parquet; unset: the Hugging Face hub
    python recipes/cifar10_wrn.py --labels 250 --minutes 10 --compile --out results/cifar10_250.json
    python recipes/cifar10_wrn.py --labels 40 250 4000 --steps 1048576 --compile --out results/cifar10_full.json

A run that was killed goes on where its last save was (--folder; every 30 s), given the same command. Settings are
chosen with --hidden, on 5,000 training images that are kept out and whose labels no training sees, with splits from 100
on. For a machine without a network, take the images along in a folder that git ignores:

    mkdir -p .carry/data && cp -r $WAZUKA_DATA/cifar10 .carry/data/      # here: 19 MB
    export WAZUKA_DATA=.carry/data WAZUKA_CACHE=/tmp/wazuka PYTHONPATH=src   # there

A session of half an hour on one GPU, in this order: checks and profiles in one go of at most 10 minutes, then one split
of 250 and one of 40 labels, 9 minutes each. Copy runs/ and the JSON files away after each.

    python -m pytest -q tests/data/test_ahead.py tests/data/test_streams.py tests/recipes
    python recipes/cifar10_wrn.py --profile --ahead 0 --out profile_eager.json          # the parts; which floor binds
    python recipes/cifar10_wrn.py --profile --compile --out profile_compiled.json       # fused, replayed, made ahead
    python recipes/cifar10_wrn.py --profile --compile max-autotune --out profile_tuned.json    # if minutes are left
    python recipes/cifar10_wrn.py --labels 250 --splits 1 --minutes 9 --compile --out cifar10_250.json \
        --predict steps_per_second=220 accuracy=0.93
    python recipes/cifar10_wrn.py --labels 40 --splits 1 --minutes 9 --compile --out cifar10_40.json \
        --predict steps_per_second=220 accuracy=0.88

Predicted for an H200 (790 TFLOP/s, 4.3 TB/s) before any run, from operators counted on a CPU. A step of FixMatch, 960
images: arithmetic 1.23 TFLOP, 1.6 ms; traffic one operator at a time in bfloat16 17 GB, 3.9 ms; starting 440 operators
of training 2.2 ms of the host, and 420 of making the batch (300 on the GPU) 2.1 ms, beside it. So uncompiled traffic
binds: 6 ms, 165 steps/s, 106 minutes for 2^20 steps. Compiled, with batch norm and activation in one pass each, 10 GB:
4.5 ms, 220 steps/s, 80 minutes. A thread that makes batches takes turns with the loop's thread for Python: if "batches
alone" is below twice the rate of training, the views' operators are next (one graph over all images of a step).

In a profile, "idle_share" above a tenth is starting kernels: compile, fewer operators; "traffic" is what fusing saves;
at the "arithmetic" floor only fewer images help (--set frugal=yes, uncompiled, backpropagates through 512 of 960).
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _profile import Device, TimedPolicy, floors_of, kernels, parts_of_step, rate, work_of_step
from _results import circumstances, record, summary
from safetensors import safe_open
from torch import Tensor

from wazuka.app.catalog import build, entry, planned_settings
from wazuka.augment import Chain, CTAugment, Plain, RandAugment, Weak
from wazuka.contract import Method, Player, Stream
from wazuka.data import Dataset, draw_labels, open_images
from wazuka.data.ahead import Ahead
from wazuka.data.streams import Batches, Pool
from wazuka.errors import UserError
from wazuka.functional.seeds import mix
from wazuka.nets import Backbone, WideResNet
from wazuka.training import Progress, Stepper, train
from wazuka.training.checkpoint import load_checkpoint, save_checkpoint

FULL = 2**20  # steps, Sec. 4
CHECKPOINTS = 1024  # in a run: the papers save every 2^16 labeled images
MEDIAN_OF = 20  # last checkpoints
HELD_OUT = 5000  # training images that --hidden judges by
SAVE_SECONDS = 30.0
WARM = 12  # steps before timing: compiled ones are recorded as graphs in the first few
BY_LABELS: dict[tuple[str, int], dict[str, Any]] = {  # runs/ssl/cifar10.sh of google-research/remixmatch
    ("remixmatch", 40): {"copies": 1, "rotation_weight": 2.0, "ramp": 1 / 8},
}


def memory(steps: int) -> float:
    """Decay of averages over steps: 0.99 in a run of up to 5,000 steps, 0.999 from 20,000 on."""
    return 1 - 0.01 * min(1.0, max(0.1, (5000 / steps) ** (math.log(10) / math.log(4))))


def momentum(steps: int) -> float:
    """Batch norm's: statistics over about a hundredth of the run; 0.001 from 100,000 steps on, at most 0.1."""
    return min(0.1, max(0.001, 100 / steps))


def checkpoint_steps(steps: int) -> list[int]:
    """The last 20 checkpoints, and before them one each twentieth of the run for the curve."""
    apart = max(1, steps // CHECKPOINTS)
    last = range(steps, 0, -apart)[:MEDIAN_OF]
    return sorted({*last, *(steps * k // 20 for k in range(1, 20) if steps * k // 20 > 0)})


@dataclass(frozen=True)
class Images:
    """On the device; `judged` are the test images, or training images that were kept out of it."""

    unlabeled: Pool
    judged: Pool
    labels: np.ndarray  # of the unlabeled ones, for drawing splits; no training sees them
    described: str


def images_of(data: Dataset, hidden: bool, device: torch.device) -> Images:
    order = np.argsort(np.array(data.train.names))  # see above
    pixels, labels = data.train.images[order], data.train.labels[order]
    if data.test is None:
        raise UserError(f"{data.source} has no test images, and CIFAR-10 has 10,000; open the whole set.")
    judged = (data.test.images, data.test.labels)
    if hidden:
        chosen = np.random.RandomState(0).permutation(len(labels))
        held_out, kept = np.sort(chosen[:HELD_OUT]), np.sort(chosen[HELD_OUT:])
        judged = (pixels[held_out], labels[held_out])
        pixels, labels = pixels[kept], labels[kept]
    what = f"{HELD_OUT} training images, kept out of training" if hidden else f"{len(judged[1])} test images"
    packed = torch.from_numpy(np.array(pixels)).to(device)
    return Images(
        unlabeled=Pool(packed, torch.full((len(packed),), -1, device=device)),
        judged=Pool(torch.from_numpy(np.array(judged[0])).to(device), torch.from_numpy(judged[1].copy()).to(device)),
        labels=labels,
        described=f"{data.name} (JPEG-recompressed where it is the parquet copy), {data.train.fingerprint}; {what}",
    )


@dataclass
class Learner:
    """One split about to be trained: a method, what steps it, and the batches that it asks for."""

    given: argparse.Namespace
    images: Images
    labels: int
    split: int
    steps: int

    def __post_init__(self) -> None:
        given, item = self.given, entry(self.given.method)
        shorter = {name: memory(self.steps) for name in ("averaging", "decay") if _default(item, name) == 0.999}
        own = BY_LABELS.get((item.name, self.labels), {})
        try:
            self.settings = planned_settings(item, {**shorter, **own}, dict(given.set))
        except TypeError as error:
            raise UserError(f"The settings of {item.name} don't fit: {error}.") from error
        torch.manual_seed(mix(self.split))
        shape = tuple(self.images.unlabeled.images.shape[1:])
        net = WideResNet(shape[0], 10, filters=given.filters, momentum=momentum(self.steps))
        learned = CTAugment() if given.strong == "ctaugment" else None
        self.method: Method = build(
            item, net, 10, self.settings, unlabeled=len(self.images.unlabeled.images), shape=shape, learned=learned
        )
        if learned is not None and not any(module is learned for module in self.method.modules()):
            raise UserError(f"{item.name} can't learn CTAugment's rates; take --strong fixmatch or usb.")
        self.method.to(given.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.steppers: dict[Player, Stepper] = {p: Stepper(p, how) for p, how in self.method.players().items()}
        self.policies = _policies(given.strong, learned)
        drawn = draw_labels(self.images.labels, total=self.labels, seed=self.split, balance="proportional")
        everything, seen = self.images.unlabeled, torch.from_numpy(self.images.labels[drawn])
        rows = torch.from_numpy(drawn).to(given.device)
        self.pools = {"unlabeled": everything, "labeled": Pool(everything.images[rows], seen.to(given.device))}
        self.depth = 0 if learned is not None else given.ahead  # rates change as it learns
        if given.compile != "no":
            self.compile(given.compile)

    def batches(self, wrap: Callable[[str, Any], Any] = lambda name, policy: policy) -> Batches:
        policies = {name: wrap(name, policy) for name, policy in self.policies.items()}
        return Batches(self.method.streams(), self.pools, policies, self.split)

    def ahead(self, stop: int | None = None) -> Ahead:
        return Ahead(self.batches(), self.depth, stop, self.given.device)

    def compile(self, mode: str) -> None:
        """Fuse the networks that learn, and where the device can, replay their kernels as graphs.

        Only the function is replaced: state, names and the averaged copies stay as they are. Two groups of images side
        by side (`frugal`) go through uncompiled.
        """
        torch.compiler.reset()  # or the eighth network finds the list of variants full, and silently runs uncompiled
        for module in self.method.modules():
            if isinstance(module, Backbone) and any(p.requires_grad for p in module.parameters(recurse=True)):
                plain = module.features
                fast = torch.compile(plain, mode=mode, dynamic=False)
                module.features = _for_tensors(fast, plain)  # type: ignore[method-assign]

    @property
    def images_per_step(self) -> int:
        """Views made in a step, which most methods run through the network once."""
        return sum(s.batch * len(s.views) for s in self.method.streams() if isinstance(s, Stream))

    def before_step(self, step: int) -> None:
        if self.given.compile != "no":
            torch.compiler.cudagraph_mark_step_begin()  # what the step before returned may be overwritten

    def run(self, batches: Callable[[int], Any], first: int, stop: int) -> None:
        """Train without looking, for timing."""
        train(
            self.method, batches, self.steppers, first_step=first, total_steps=stop, seed=self.split,
            precision=self.given.precision, before_round=self.before_step,
        )  # fmt: skip

    @torch.no_grad()
    def accuracy(self, chunk: int = 2000) -> float:
        self.method.eval()
        judged, kind, precision = self.images.judged, self.given.device.type, self.given.precision
        right = torch.zeros((), dtype=torch.int64, device=self.given.device)
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            for images, labels in zip(judged.images.split(chunk), judged.labels.split(chunk), strict=True):
                views = (images.float() / 255).contiguous(memory_format=torch.channels_last)
                right += (self.method.predict(views).argmax(dim=1) == labels).sum()
        self.method.train()
        return round(int(right) / len(judged.labels), 6)

    def task(self) -> dict[str, Any]:
        """What a saved state must have been trained as. JSON-able."""
        return {
            "method": self.given.method, "settings": str(self.settings), "labels": self.labels, "split": self.split,
            "net": f"WideResNet(filters={self.given.filters}, momentum={momentum(self.steps)})",
            "strong": self.given.strong, "precision": str(self.given.precision), "images": self.images.described,
        }  # fmt: skip

    def learn(self, path: Path) -> dict[str, Any]:
        """Train the split to its end, from `path` where there is a saved state. -> accuracies and times."""
        facts: dict[str, Any] = {"step": 0, "total_steps": self.steps, "seconds": 0.0, "judging_seconds": 0.0}
        facts |= {"accuracies": {}, "curve": [], "resumed": 0, "task": self.task()}
        if path.exists():
            saved = load_checkpoint(path, self.method, self.steppers)
            if saved["task"] != facts["task"] or saved["total_steps"] != self.steps:
                raise UserError(f"{path} was trained with other settings or steps; give another --folder.")
            facts = {**saved, "resumed": saved["resumed"] + (saved["step"] < self.steps)}
        if facts["step"] >= self.steps:
            return facts
        wanted, first, spent = set(checkpoint_steps(self.steps)), facts["step"], facts["seconds"]
        every = math.ceil(self.steps / 200)
        started = saved_at = time.perf_counter()
        waiting: list[tuple[int, Mapping[str, Tensor]]] = []

        def after_step(progress: Progress) -> bool:
            nonlocal saved_at
            if progress.step % every == 0 or progress.step == self.steps:
                # copies: a replayed graph would write over them
                waiting.append((progress.step, {name: value.clone() for name, value in progress.parts.items()}))
            if progress.step in wanted:
                _wait(self.given.device)
                before = time.perf_counter()
                facts["accuracies"][str(progress.step)] = self.accuracy()
                facts["judging_seconds"] += time.perf_counter() - before
            now = time.perf_counter()
            if progress.step == self.steps or now - saved_at > SAVE_SECONDS:
                facts["curve"] += [{"step": at} | {n: _number(v) for n, v in row.items()} for at, row in waiting]
                waiting.clear()
                facts["step"], facts["seconds"] = progress.step, spent + time.perf_counter() - started
                save_checkpoint(path, self.method, self.steppers, facts)
                saved_at = time.perf_counter()
                told = next(reversed(facts["accuracies"].values()), None)
                rate = (progress.step - first) / (saved_at - started)
                print(f"  {progress.step}/{self.steps} steps, {rate:.1f}/s, accuracy {told}", flush=True)
            return True

        with self.ahead(self.steps) as batches:
            train(
                self.method, batches, self.steppers, first_step=first, total_steps=self.steps, seed=self.split,
                precision=self.given.precision, before_round=self.before_step, after_step=after_step,
            )  # fmt: skip
        return facts


def told(facts: Mapping[str, Any], images_per_step: int) -> dict[str, Any]:
    """A split's result, from what was saved with its last state."""
    ordered = sorted((int(step), value) for step, value in facts["accuracies"].items())
    last = [value for _, value in ordered[-MEDIAN_OF:]]
    training = facts["seconds"] - facts["judging_seconds"]
    return {
        "last": last[-1],
        f"median_of_last_{MEDIAN_OF}": statistics.median(last),
        "seconds": round(facts["seconds"], 1),
        "images_per_second": round(facts["total_steps"] * images_per_step / training, 1),
        "steps_per_second": round(facts["total_steps"] / training, 2),
        "resumed": facts["resumed"],
        "accuracies": dict(ordered),
        "curve": facts["curve"],
    }


def steps_within(given: argparse.Namespace, images: Images, labels: int) -> int:
    """How many steps fit into --minutes for one split, compiling, judging and saving included; from a trial."""
    started = time.perf_counter()
    trial = Learner(given, images, labels, split=0, steps=FULL)
    with trial.ahead() as batches:
        trial.run(batches, 0, WARM)
        _wait(given.device)
        begun = time.perf_counter()
        trial.run(batches, WARM, WARM + given.trial)
        _wait(given.device)
    seconds_per_step = (time.perf_counter() - begun) / given.trial
    trial.accuracy()
    before = time.perf_counter()
    trial.accuracy()
    judging = (time.perf_counter() - before) * (MEDIAN_OF + 20)
    steps = int((60 * given.minutes * 0.97 - (begun - started) - judging) / seconds_per_step)
    if steps < MEDIAN_OF:
        raise UserError(f"{given.minutes} minutes are too few: {MEDIAN_OF} steps do not fit; give more.")
    print(f"{1 / seconds_per_step:.1f} steps/s: {steps} steps in {given.minutes} minutes", flush=True)
    return steps


def run_splits(given: argparse.Namespace, images: Images) -> None:
    found: dict[str, Any] = {}
    for labels in given.labels:
        folder = given.folder / f"{given.method}-{labels}"
        steps = given.steps or _steps_begun(folder) or steps_within(given, images, labels)
        per_split: dict[int, dict[str, Any]] = {}
        for split in given.splits:
            print(f"{given.method}, {labels} labels, split {split}", flush=True)
            learner = Learner(given, images, labels, split, steps)
            facts = learner.learn(folder / f"{split}.safetensors")
            per_split[split] = row = told(facts, learner.images_per_step)
            print(f"  last {row['last']:.4f}, median {row[f'median_of_last_{MEDIAN_OF}']:.4f}, {row['seconds']} s")
            found[str(labels)] = {
                "measured": {
                    "accuracy_last": summary([r["last"] for r in per_split.values()]),
                    "accuracy_median": summary([r[f"median_of_last_{MEDIAN_OF}"] for r in per_split.values()]),
                    "images_per_second": statistics.median(r["images_per_second"] for r in per_split.values()),
                    "minutes": round(max(r["seconds"] for r in per_split.values()) / 60, 2),
                },
                "steps": steps, "settings": str(learner.settings),
                "momentum": momentum(steps), "per_split": per_split,
            }  # fmt: skip
            if given.out:
                record(given.out, data=images.described,
                       protocol=f"last and median of the last {MEDIAN_OF} checkpoints of the averaged weights",
                       method=given.method, strong=given.strong, net=f"WRN, {given.filters} filters",
                       precision=str(given.precision), compile=given.compile, ahead=given.ahead,
                       minutes=given.minutes, predicted=dict(given.predict), found=found)  # fmt: skip


def run_profile(given: argparse.Namespace, images: Images) -> None:
    labels, steps, device = given.labels[0], given.trial, given.device
    plain = Learner(argparse.Namespace(**{**vars(given), "compile": "no"}), images, labels, split=0, steps=FULL)
    plain.run(plain.batches(), 0, 2)
    limits = Device(given.peak, given.bandwidth, given.launch)
    work = work_of_step(plain.method, plain.steppers, plain.batches(), given.precision)
    floors = floors_of(work, limits, plain.images_per_step)
    learner = Learner(given, images, labels, split=0, steps=FULL)
    started = time.perf_counter()
    learner.run(learner.batches(), 0, WARM if given.compile != "no" else 3)
    _wait(device)
    start_seconds = time.perf_counter() - started

    parts = parts_of_step(
        learner.method, learner.steppers,
        lambda clock: learner.batches(lambda name, policy: TimedPolicy(name, policy, clock)),
        given.precision, device, steps, learner.before_step,
    )  # fmt: skip
    plainly = learner.batches()
    alone = rate(lambda first, stop: [plainly(step) for step in range(first, stop)], device, 3, steps)
    in_turn = rate(lambda first, stop: learner.run(plainly, first, stop), device, 3, steps)
    with learner.ahead() as batches:
        beside = rate(lambda first, stop: learner.run(batches, first, stop), device, 3, steps)
        seen = kernels(lambda: learner.run(batches, 0, 5), device, 5)
    n = learner.images_per_step
    rates = {
        "batches alone": alone, "training, batches in turn": in_turn, f"training, {learner.depth} ahead": beside,
    }  # fmt: skip
    found = {
        "floors": floors, "parts_ms": parts, "start_seconds": round(start_seconds, 1), "kernels": seen,
        "steps_per_second": {name: round(value, 2) for name, value in rates.items()},
        "images_per_second": {name: round(value * n, 1) for name, value in rates.items()},
        "share_of_peak": round(work["training on it"].flop * beside / given.peak / 1e12, 4),
        "minutes_for_2^20_steps": round(FULL / beside / 60, 1),
        "steps_in_10_minutes": int(600 * beside),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if given.out:
        record(given.out, method=given.method, labels=labels, compile=given.compile, precision=str(given.precision),
               ahead=learner.depth, settings=str(learner.settings), predicted=dict(given.predict),
               measured=found)  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[250])
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--method", default="fixmatch", help="any that `wazuka methods` lists as semi")
    parser.add_argument("--set", type=_pair, nargs="+", default=[], metavar="NAME=VALUE", help="the method's settings")
    parser.add_argument("--strong", choices=["fixmatch", "usb", "ctaugment"], default="fixmatch", help="strong views")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"of each split; the papers' {FULL} if --minutes is not given")
    length.add_argument("--minutes", type=float, help="for each split, all included; the steps come from a trial")
    parser.add_argument("--filters", type=int, default=32, help="of the first stage; 32 is WRN-28-2")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--compile", nargs="?", const="reduce-overhead", default="no", choices=["no", *_MODES])
    parser.add_argument("--ahead", type=int, default=3, help="batches made ahead by a thread; 0: none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", default="cifar10", help="a set's name or a folder with train and test images")
    parser.add_argument("--hidden", action="store_true", help="judge by training images kept out: to choose settings")
    parser.add_argument("--folder", type=Path, default=Path("runs/cifar10"), help="where states are saved")
    parser.add_argument("--predict", type=_pair, nargs="+", default=[], metavar="NAME=VALUE", help="noted beside")
    parser.add_argument("--out")
    parser.add_argument("--profile", action="store_true", help="time a step's parts instead of training")
    parser.add_argument("--trial", type=int, default=60, help="steps that are timed")
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s; H200 on bfloat16 matrices, measured")
    parser.add_argument("--bandwidth", type=float, default=4.3, help="TB/s; H200, measured copy")
    parser.add_argument("--launch", type=float, default=5.0, help="microseconds of the host to start an operator")
    given = parser.parse_args(words)
    given.steps = given.steps or (None if given.minutes else FULL)
    given.device = torch.device(given.device)
    named = given.precision or ("bfloat16" if given.device.type == "cuda" else "float32")
    given.precision = getattr(torch, named)
    if given.hidden and min(given.splits) < 100:
        parser.error("--hidden is for choosing settings: take --splits from 100 on")
    circumstances()  # what can't be told at the end had better fail now
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    images = images_of(open_images(given.data, size=32, channels=3), given.hidden, given.device)
    (run_profile if given.profile else run_splits)(given, images)


_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def _policies(strong: str, learned: CTAugment | None) -> dict[str, Any]:
    weak = Weak(flip=True)
    policies: dict[str, Any] = {"plain": Plain(), "weak": weak}
    if learned is not None:
        return policies | {"strong": Chain((weak, learned.strong)), "probe": Chain((weak, learned.probe))}
    return policies | {"strong": Chain((weak, RandAugment() if strong == "fixmatch" else RandAugment.usb()))}


def _for_tensors(fast: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: fast(images) if isinstance(images, Tensor) else plain(images)


def _default(item: Any, name: str) -> Any:
    fields = {field.name: field.default for field in dataclasses.fields(item.settings)} if item.settings else {}
    return fields.get(name)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, value


def _steps_begun(folder: Path) -> int | None:
    """The steps of a run that --minutes began in this folder: it goes on with as many."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["facts"])["total_steps"])
    return None


def _number(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
