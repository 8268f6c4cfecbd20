"""`wazuka predict` on a folder of JPEG files: photos a second, against what the network alone could do.

A classifier is learned on generated photos; then new ones, which no cache knows, are opened, named and written as CSV,
as the command does it: decoding, packing, hashing, features, the store, sets of classes, oddness. The limit is the
network alone (and its second view of surfaces, where the labels asked for that), in the form `predict` runs it in
(batch norms folded, channels last, bfloat16 where that is native), on the same photos already decoded and in memory.
Both in one run, in turns, the best of --rounds each.

    python benchmarks/predict.py --out results/predict.json
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import wazuka
from wazuka.app.tables import write_predictions


def make(folder: Path, count: int, side: int, seed: int, labeled: bool) -> None:
    """JPEG files of three kinds, smooth color fields with noise; in subfolders by kind where they are labeled."""
    draw = np.random.default_rng(seed)
    kinds = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for number in range(count):
        kind = number % 3
        small = (kinds[kind].astype(int) + draw.integers(-60, 60, (8, 8, 3))).clip(0, 255).astype(np.uint8)
        field = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (field + draw.normal(0, 12, field.shape)).clip(0, 255).astype(np.uint8)
        place = folder / (f"kind-{kind}" if labeled else ".")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{seed}-{number:05}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    try:
        os.environ["WAZUKA_CACHE"] = str(scratch / "cache")
        make(scratch / "known", 45, given.side, 1, labeled=True)
        model: Any = wazuka.fit(scratch / "known", out=scratch / "run", floor=False)
        ours, limit = [], []
        for number in range(given.rounds):
            folder = scratch / f"new-{number}"
            make(folder, given.photos, given.side, 100 + number, labeled=False)
            started = time.perf_counter()
            images = model.open(folder)
            write_predictions(model.named(images), images.skipped, scratch / "named.csv")
            ours.append(given.photos / (time.perf_counter() - started))
            pixels = np.array(images.images)
            started = time.perf_counter()
            for extractor in model.method.extractors:
                extractor(pixels)
            limit.append(given.photos / (time.perf_counter() - started))
            print(f"round {number + 1}: predict {ours[-1]:.1f} photos/s, the network alone {limit[-1]:.1f}", flush=True)
    finally:
        shutil.rmtree(scratch)
    found = {
        "views": len(model.method.extractors), "photos": given.photos, "side": given.side,
        "threads": torch.get_num_threads(),
        "predict, photos/s": round(max(ours), 1), "network alone, photos/s": round(max(limit), 1),
        "share of the limit": round(max(ours) / max(limit), 3), "goal": 0.85,
    }  # fmt: skip
    for name, value in found.items():
        print(f"{name:25s} {value}")
    if given.out:
        sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
        from _results import record

        record(given.out, rounds={"predict": ours, "network": limit}, **found)


if __name__ == "__main__":
    main()
