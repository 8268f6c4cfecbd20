"""One FixMatch step, end to end, against the code most people would use: images per second, as ratios in one run.

    python benchmarks/fixmatch_step.py [--peer FOLDER] [--only TEXT ...] [--rounds 5] [--out FILE] [--compiled]

A step is 16 labeled images and 48 unlabeled ones in two views, 32x32x3, through WRN-28-2: draw, augment (mirror, move;
RandAugment as USB has it for the strong view), forward, backward, optimizer step, averaged weights. All rows run in
one process and take turns, so that a busy machine slows all of them alike; medians are compared.

What the settings of FixMatch named in the rows change, and what that cost where it was measured: docs/decisions.md.
With `joint=False, frugal=True` a step's work depends on how many guesses are sure; rows state the share.

The peer is microsoft/Semi-supervised-learning (USB), its own `train_step`, network, loaders and hooks, driven as its
`train` drives them with the settings of its fixmatch_cifar10_40 file:

    git clone https://github.com/microsoft/Semi-supervised-learning FOLDER

It needs nothing else here: where torchvision, timm, transformers and its other needs are absent, stand-ins below are
imported in their place (written for this file; RandAugment is the peer's own). What is changed in it: `.cuda()` does
nothing, and its timer, which asks a GPU, is left out. Its three loader processes fill their queues while other rows
have their turn, which flatters the peer by up to its time for data, 4 % of a step.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import random
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from wazuka.augment import Chain, RandAugment, Weak
from wazuka.data.streams import Batches, Pool
from wazuka.methods.semi.fixmatch import FixMatch, FixMatchSettings
from wazuka.nets import WideResNet
from wazuka.training import Stepper, train

LABELED, RATIO, CLASSES = 16, 3, 10
IMAGES_A_STEP = LABELED * (1 + 2 * RATIO)


@dataclass(frozen=True)
class Row:
    """A way to make a step, and what it changes in the mathematics."""

    name: str
    change: str
    step: Callable[[], None]


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Smooth random pictures, uint8 (count, 3, 32, 32), and labels in turn: speed does not depend on what is seen."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    images = F.interpolate(coarse, 32, mode="bilinear").to(torch.uint8)
    return images, torch.arange(count) % CLASSES


class SureOf(FixMatch):
    """FixMatch whose guesses are sure for a given share of the images, whatever the untrained network says."""

    def __init__(self, share: float, settings: FixMatchSettings):
        super().__init__(WideResNet(), CLASSES, settings)
        self.share = share

    @torch.no_grad()
    def _guess(self, weak: Tensor, labels: Tensor) -> Tensor:
        probs = super()._guess(weak, labels)
        sure = torch.arange(len(probs)) % 48 < round(self.share * 48)
        return torch.where(sure[:, None], F.one_hot(probs.argmax(dim=1), CLASSES).float(), 1 / CLASSES)


def ours(
    name: str,
    change: str,
    precision: torch.dtype = torch.bfloat16,
    layout: torch.memory_format = torch.channels_last,
    sure: float = 1.0,
    compiled: bool = False,
    **settings: bool,
) -> Row:
    images, labels = pictures(5000)
    torch.manual_seed(0)
    method = SureOf(sure, FixMatchSettings(labeled_batch=LABELED, unlabeled_ratio=RATIO, **settings))
    method = method.to(memory_format=layout)
    if compiled:
        method.net.compile()
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    weak = Weak(flip=True)
    batches = Batches(
        method.streams(),
        {"labeled": Pool(images[:40], labels[:40]), "unlabeled": Pool(images, labels)},
        {"weak": weak, "strong": Chain((weak, RandAugment.usb()))},
        seed=0,
    )
    done = 0

    def step() -> None:
        nonlocal done
        train(method, batches, steppers, first_step=done, total_steps=done + 1, precision=precision)
        done += 1

    return Row(name, change, step)


def our_rows(compiled: bool) -> list[Row]:
    plain, packed = torch.contiguous_format, torch.channels_last
    rows = [
        ours("float32, NCHW", "nothing", torch.float32, plain),
        ours("float32", "nothing", torch.float32, packed),
        ours("bfloat16", "rounding"),
        ours("bfloat16, frugal", "rounding; the statistics' gradient is estimated", frugal=True),
        ours("bfloat16, apart", "rounding; weak views are normalized apart", joint=False),
    ]
    for share in (1.0, 0.5, 0.25, 0.0):
        name = f"bfloat16, apart and frugal, {share:.0%} sure"
        rows.append(ours(name, "rounding; apart; estimated", sure=share, joint=False, frugal=True))
    if compiled:
        rows.append(ours("bfloat16, compiled", "rounding", compiled=True))
        change = "rounding; weak views are normalized apart"
        rows.append(ours("bfloat16, apart and compiled", change, compiled=True, joint=False))
    return rows


# --- the peer ---------------------------------------------------------------------------------------------------------


class Compose:
    def __init__(self, transforms: list[Callable]):
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    def __init__(self, size: int):
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        if min(image.size) == self.size:
            return image
        factor = self.size / min(image.size)
        sides = (round(image.width * factor), round(image.height * factor))
        return image.resize(sides, Image.Resampling.BILINEAR)


class RandomCrop:
    """A random square of the image after its border was reflected outwards."""

    def __init__(self, size: int, padding: int, padding_mode: str):
        assert padding_mode == "reflect"
        self.size, self.padding = size, padding

    def __call__(self, image: Image.Image) -> Image.Image:
        border = (self.padding, self.padding)
        padded = Image.fromarray(np.pad(np.asarray(image), (border, border, (0, 0)), mode="reflect"))
        left, top = random.randint(0, padded.width - self.size), random.randint(0, padded.height - self.size)
        return padded.crop((left, top, left + self.size, top + self.size))


class RandomHorizontalFlip:
    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if random.random() < 0.5 else image


class ToTensor:
    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


class Normalize:
    def __init__(self, mean: list[float], std: list[float]):
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        return image.sub(self.mean).div_(self.std)


class CIFAR10:
    """The benchmark's pictures in the form of torchvision's data set."""

    def __init__(self, root: str, train: bool, download: bool):
        images, labels = pictures(5000 if train else 100)
        self.data, self.targets = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()


class Anything(type):
    """A class whose every attribute is another such class: enough to import code that is never called."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class AnyModule(types.ModuleType):
    __path__ = ()  # type: ignore[assignment]

    def __getattr__(self, name: str) -> type:
        if name.startswith("__") or name == "InterpolationMode":  # the peer has a way to do without the latter
            raise AttributeError(name)
        return Anything(name, (), {})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `AnyModule` in place of what the peer imports and a FixMatch step never calls."""

    def __init__(self, packages: set[str]):
        self.packages = packages

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        absent = name.split(".")[0] in self.packages or name == "torch.utils.tensorboard"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = AnyModule(spec.name)
        if spec.name == "torchvision.transforms":
            for stand_in in (Compose, Resize, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize):
                setattr(module, stand_in.__name__, stand_in)
        elif spec.name == "torchvision.datasets":
            module.CIFAR10 = CIFAR10  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def peer(folder: Path, workers: int) -> Row:
    """USB's FixMatch with 16 labeled images a step; `workers` as its num_workers, of which it starts three times."""
    needs = [
        "torchvision",
        "torchaudio",
        "transformers",
        "timm",
        "skimage",
        "progress",
        "ruamel",
        "wandb",
        "aim",
        "tqdm",
    ]
    # torchvision always: its compiled part rarely fits torch's build, and its CIFAR10 would download
    absent = {name for name in needs if name == "torchvision" or importlib.util.find_spec(name) is None}
    sys.meta_path.insert(0, StandIns(absent))
    sys.path.insert(0, str(folder))
    Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]
    from semilearn import get_algorithm, get_net_builder  # type: ignore[import-not-found]

    steps = 1_000_000
    settings = argparse.Namespace(
        algorithm="fixmatch", hard_label=True, T=0.5, p_cutoff=0.95, ulb_loss_ratio=1.0, uratio=RATIO,
        batch_size=LABELED, eval_batch_size=256, num_workers=workers, train_sampler="RandomSampler",
        dataset="cifar10", data_dir="unused", num_classes=CLASSES, num_labels=40, ulb_num_labels=None,
        lb_imb_ratio=1, ulb_imb_ratio=1, include_lb_to_ulb=True, img_size=32, crop_ratio=0.875,
        net="wrn_28_2", net_from_name=False, use_pretrain=False, pretrain_path="", use_cat=True, amp=False, clip_grad=0,
        optim="SGD", lr=0.03, momentum=0.9, weight_decay=5e-4, layer_decay=1.0, num_warmup_iter=0, ema_m=0.999,
        epoch=1, num_train_iter=steps, num_eval_iter=steps, num_log_iter=steps,
        save_dir="unused", save_name="unused", resume=False, use_tensorboard=False, use_wandb=False, use_aim=False,
        seed=0, gpu=None, rank=0, world_size=1, distributed=False, multiprocessing_distributed=False,
    )  # fmt: skip
    algorithm = get_algorithm(settings, get_net_builder(settings.net, settings.net_from_name), None, None)
    del algorithm.hooks_dict["TimerHook"]
    algorithm.model.train()
    algorithm.epoch = 0
    algorithm.call_hook("before_run")
    algorithm.call_hook("before_train_epoch")
    loaders: Iterator | None = None

    def step() -> None:  # the body of AlgorithmBase.train's inner loop
        nonlocal loaders
        if loaders is None:
            loaders = zip(algorithm.loader_dict["train_lb"], algorithm.loader_dict["train_ulb"], strict=False)
        labeled, unlabeled = next(loaders)
        algorithm.call_hook("before_train_step")
        batch = algorithm.process_batch(**labeled, **unlabeled)
        algorithm.out_dict, algorithm.log_dict = algorithm.train_step(**batch)
        algorithm.call_hook("after_train_step")
        algorithm.it += 1

    kind = f"its {3 * workers} loader processes" if workers else "loading in the same process"
    return Row(f"peer, {kind}", "USB's own code, float32", step)


# --- timing -----------------------------------------------------------------------------------------------------------


def measure(rows: list[Row], rounds: int, block: int) -> dict[str, list[float]]:
    """Seconds of every timed step. Rows take turns: each time one step untimed, then `block` timed."""
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    for turn in range(rounds + 1):
        for row in rows:
            row.step()
            for _ in range(block if turn else 1):
                start = time.perf_counter()
                row.step()
                if turn:  # the first round warms up
                    seconds[row.name].append(time.perf_counter() - start)
    return seconds


def table(rows: list[Row], seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Per row: milliseconds (median, and fastest), images per second and ratio to the first row by the median."""
    first = statistics.median(seconds[rows[0].name])
    lines = []
    for row in rows:
        middle = statistics.median(seconds[row.name])
        lines.append(
            {
                "row": row.name,
                "ms": round(middle * 1e3, 1),
                "fastest_ms": round(min(seconds[row.name]) * 1e3, 1),
                "images_per_second": round(IMAGES_A_STEP / middle, 1),
                "ratio": round(first / middle, 3),
                "changes": row.change,
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a clone of microsoft/Semi-supervised-learning")
    parser.add_argument("--peer-workers", type=int, default=1, help="its num_workers (default: its own, 1)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=3, help="timed steps in a row's turn")
    parser.add_argument("--only", nargs="+", help="time these rows of ours alone")
    parser.add_argument("--compiled", action="store_true", help="also a row with torch.compile; needs a C++ compiler")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for row in our_rows(options.compiled) if not options.only or row.name in options.only]
    if options.peer:
        rows.insert(0, peer(options.peer, options.peer_workers))
    lines = table(rows, measure(rows, options.rounds, options.block))
    print(f"{'':40}{'ms':>6}{'fastest':>9}{'images/s':>10}{'ratio':>7}  changes in the mathematics")
    for line in lines:
        print(
            f"{line['row']:40}{line['ms']:6.0f}{line['fastest_ms']:9.0f}{line['images_per_second']:10.0f}"
            f"{line['ratio']:7.2f}  {line['changes']}"
        )
    if options.out:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
        from _results import record

        record(options.out, rows=lines)


if __name__ == "__main__":
    main()
