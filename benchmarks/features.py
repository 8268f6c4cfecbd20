"""Features of JPEG files by EfficientNet-Lite0 at 128 pixels: photos a second, against the plain loop.

The plain loop is what one writes first: Pillow opens and resizes, torch runs the network in float32 as it comes, in
batches of 64. Wazuka's path is `fit`'s own: decoding on all processors, batch norms folded, channels last, bfloat16
where it is native, freed memory kept. Both read the same files from the disk's cache and end with features in memory;
Wazuka's also writes its packed images and the store of features. The ratio is of the same run. On a busy machine, run
it with OMP_NUM_THREADS=1 and look at the processor time: threads that wait for each other burn it.

    python benchmarks/features.py --photos 2000 --side 256 --out results/features.json
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wazuka.app.backbones import Extractor, efficientnet_lite0, store_of
from wazuka.data import open_images

SIZE = 128


def make(folder: Path, count: int, side: int) -> None:
    """JPEG files with something in them: smooth color fields and noise, so that they are as large as photos are."""
    generator = np.random.default_rng(0)
    for number in range(count):
        small = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        field = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (field + generator.normal(0, 12, field.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)


def plain(files: list[Path]) -> np.ndarray:
    net, found = efficientnet_lite0(SIZE).net.eval(), []
    with torch.no_grad():
        for at in range(0, len(files), 64):
            batch = []
            for file in files[at : at + 64]:
                with Image.open(file) as image:
                    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                batch.append(torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255)
            found.append(net.features(torch.stack(batch)).numpy())
    return np.concatenate(found)


def ours(folder: Path, cache: Path) -> np.ndarray:
    data = open_images(str(folder), size=SIZE, channels=3, fit="squash", cache=cache, check=False).train
    extractor = Extractor(efficientnet_lite0(SIZE), torch.device("cpu"))
    return store_of(extractor, cache).features(data, extractor).astype(np.float32)


def timed(run: Any) -> tuple[np.ndarray, float, float]:
    """(features, seconds by the clock, seconds of processor time)"""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    made = run()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return made, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "photos", Path(scratch) / "cache"
        folder.mkdir()
        make(folder, given.photos, given.side)
        files = sorted(folder.iterdir())
        slow, slow_seconds, slow_work = timed(lambda: plain(files))
        fast, fast_seconds, fast_work = timed(lambda: ours(folder, cache))
    cosine = (slow * fast).sum(axis=1) / np.linalg.norm(slow, axis=1) / np.linalg.norm(fast, axis=1)
    found = {
        "photos": given.photos, "side": given.side, "threads": torch.get_num_threads(),
        "plain, photos/s": round(given.photos / slow_seconds, 1),
        "wazuka, photos/s": round(given.photos / fast_seconds, 1),
        "ratio": round(slow_seconds / fast_seconds, 2),
        "plain, photos per second of processor time": round(given.photos / slow_work, 1),
        "wazuka, photos per second of processor time": round(given.photos / fast_work, 1),
        "ratio of processor time": round(slow_work / fast_work, 2),
        "cosine, mean": round(float(cosine.mean()), 5), "cosine, least": round(float(cosine.min()), 5),
    }  # fmt: skip
    for name, value in found.items():
        print(f"{name:45s} {value}")
    if given.out:
        import sys

        sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
        from _results import record

        record(given.out, **found)


if __name__ == "__main__":
    main()
