"""Strong augmentation, images per second: Wazuka's batched tensors against Pillow, image by image, in one run.

Both do what FixMatch's strong view asks for: mirror, reflect-pad by 4 of 32 pixels and crop, two of 14 random
operations with probability 0.5 each, a gray square of half the side. Pillow's side follows FixMatch-pytorch's
`RandAugmentMC`, in one process per core; its workers keep their results, so that nothing is lost to sending images
between processes. A DataLoader does send them, and has a row of its own. Wazuka runs as in training, in one process
with a thread per core; the last row shows it in one process per core. Ways take turns, round by round, so that a busy
machine slows all; the ratio is the median over rounds. Run it on idle cores: threads that wait for a core that
another program holds slow torch far more than they slow Pillow.

    python benchmarks/augment_against_pillow.py [--cores 2] [--rounds 7] [--out results/augment_against_pillow.json]
"""

import argparse
import json
import multiprocessing
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from wazuka.augment import AffineStrong, Chain, CTAugment, Policy, RandAugment, Weak

_AFFINE = Image.Transform.AFFINE
_OPERATIONS: list[Callable[[Image.Image, int], Image.Image]] = [
    lambda image, m: image,
    lambda image, m: ImageOps.autocontrast(image),
    lambda image, m: ImageOps.equalize(image),
    lambda image, m: image.rotate(3 * m * _sign()),
    lambda image, m: ImageOps.solarize(image, 256 - int(25.6 * m)),
    lambda image, m: ImageEnhance.Color(image).enhance(0.1 + 0.18 * m),
    lambda image, m: ImageEnhance.Contrast(image).enhance(0.1 + 0.18 * m),
    lambda image, m: ImageEnhance.Brightness(image).enhance(0.1 + 0.18 * m),
    lambda image, m: ImageEnhance.Sharpness(image).enhance(0.1 + 0.18 * m),
    lambda image, m: image.transform(image.size, _AFFINE, (1, 0.03 * m * _sign(), 0, 0, 1, 0)),
    lambda image, m: image.transform(image.size, _AFFINE, (1, 0, 0, 0.03 * m * _sign(), 1, 0)),
    lambda image, m: image.transform(image.size, _AFFINE, (1, 0, m * _sign(), 0, 1, 0)),
    lambda image, m: image.transform(image.size, _AFFINE, (1, 0, 0, 0, 1, m * _sign())),
    lambda image, m: ImageOps.posterize(image, 4 - int(0.4 * m)),
]


def _sign() -> int:
    return random.choice((-1, 1))


def pillow_strong(pixels: np.ndarray) -> np.ndarray:
    """(32, 32, 3) uint8 -> a strong view of it."""
    image = Image.fromarray(pixels)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padded = Image.fromarray(np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), "reflect"))
    left, top = random.randint(0, 8), random.randint(0, 8)
    image = padded.crop((left, top, left + 32, top + 32))
    for operation in random.choices(_OPERATIONS, k=2):
        level = random.randint(1, 9)
        if random.random() < 0.5:
            image = operation(image, level)
    x, y = (int(max(0, random.uniform(0, 32) - 8)) for _ in range(2))
    image = image.copy()
    ImageDraw.Draw(image).rectangle((x, y, min(31, x + 15), min(31, y + 15)), (127, 127, 127))
    return np.asarray(image)


class PillowSet(torch.utils.data.Dataset[torch.Tensor]):
    """The images as a DataLoader wants them."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(pillow_strong(self.images[row]).copy())


def _batches(policy: Policy, images: torch.Tensor, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(images), batch):
        policy(images[start : start + batch], generator)


def _work(images: np.ndarray, batch: int, ready: Barrier, orders: "multiprocessing.Queue[str]") -> None:
    """A worker: wait for an order, meet the others, augment its share, meet again."""
    torch.set_num_threads(1)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    policy = Chain((Weak(flip=True), RandAugment()))
    while order := orders.get():
        ready.wait()
        if order == "pillow":
            for pixels in images:
                pillow_strong(pixels)
        else:
            _batches(policy, tensors, batch, seed=0)
        ready.wait()


def measure(cores: int, rounds: int, batch: int, count: int) -> dict[str, dict[str, float]]:
    """Images per second of every way, medians over rounds; and the ratios to Pillow of the same round."""
    torch.set_num_threads(cores)
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    weak = Weak(flip=True)
    policies: dict[str, Policy] = {
        "fixmatch": Chain((weak, RandAugment())),
        "fixmatch, usb form": Chain((weak, RandAugment.usb())),
        "ctaugment": Chain((weak, CTAugment().strong)),
        "affine strong": AffineStrong(),
        "weak": weak,
    }
    context = multiprocessing.get_context("fork")
    ready, orders = context.Barrier(cores + 1), context.Queue()
    shares = np.array_split(images, cores)
    workers = [context.Process(target=_work, args=(share, batch, ready, orders), daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    loader = torch.utils.data.DataLoader(
        PillowSet(images), batch_size=batch, num_workers=cores, persistent_workers=True, multiprocessing_context="fork"
    )

    def by_workers(order: str) -> None:
        for _ in workers:
            orders.put(order)
        ready.wait()
        ready.wait()

    ways: dict[str, Callable[[], object]] = {
        "pillow": partial(by_workers, "pillow"),
        "pillow, DataLoader": lambda: [None for _ in loader],
    }
    ways |= {name: partial(_batches, policy, tensors, batch, seed=0) for name, policy in policies.items()}
    ways["fixmatch, processes"] = partial(by_workers, "fixmatch")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    for _ in workers:
        orders.put("")
    rows = {}
    for name, spent in seconds.items():
        ratios = [pillow / own for pillow, own in zip(seconds["pillow"], spent, strict=True)]
        speed = count / statistics.median(spent)
        rows[name] = {"images_per_second": round(speed), "ratio_to_pillow": round(statistics.median(ratios), 2)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=448, help="images per call; FixMatch's unlabeled batch is 448")
    parser.add_argument("--count", type=int, default=4480, help="images per round")
    parser.add_argument("--out", type=Path, help="write the JSON line here too")
    args = parser.parse_args()
    rows = measure(args.cores, args.rounds, args.batch, args.count)
    print(f"32x32x3, {args.cores} cores, batches of {args.batch}; Pillow {PIL.__version__}, torch {torch.__version__}")
    for name, row in rows.items():
        print(f"  {name:22s} {row['images_per_second']:>9,} images/s   {row['ratio_to_pillow']:>7.2f} x Pillow")
    settings = {"cores": args.cores, "batch": args.batch, "rounds": args.rounds, "count": args.count}
    versions = {"pillow": PIL.__version__, "torch": torch.__version__, "python": platform.python_version()}
    line = json.dumps({"benchmark": "augment_against_pillow", "rows": rows, **settings, "versions": versions,
                       "date": datetime.now(UTC).isoformat(timespec="seconds")})  # fmt: skip
    print(line)
    if args.out:
        args.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
