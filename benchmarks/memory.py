"""Does memory stay flat from 10,000 to 1,000,000 photos?

For each size a process of its own: photos of 16 x 16 pixels, generated and mapped from the disk as packed photos are; a
stand-in for a network that makes 1,280 features of each (a fixed random map: what a real one would need is the same for
any number of photos); then what `fit` and `predict` do: the store of features, learning from 40 labels and the
pool, and a CSV of all answers. Told: the largest memory that is the process's own (RssAnon, looked at every 20 ms;
pages of mapped files can be dropped at any time and don't count), over that of 10,000 photos, and seconds.

Once everything stands on the disk, names of photos alone grow with their number.

    python benchmarks/memory.py --out results/memory.json
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
CLASSES, FEATURES, SIDE = 10, 1280, 16


def watched(done: threading.Event, peak: list[int]) -> None:
    while not done.wait(0.02):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak[0] = max(peak[0], next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))


def generated(folder: Path, count: int) -> Any:
    """(N, 3, 16, 16) uint8 of ten kinds, which differ in brightness here and there, as a map; and their kinds."""
    draw, path = np.random.default_rng(0), folder / "photos.npy"
    kinds = draw.integers(0, 256, (CLASSES, 3, SIDE, SIDE))
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, SIDE, SIDE))
    truth = np.arange(count) % CLASSES
    for at in range(0, count, 10_000):
        some = slice(at, min(at + 10_000, count))
        noise = draw.integers(-90, 90, images[some].shape)
        images[some] = (kinds[truth[some]] + noise).clip(0, 255)
    images.flush()
    return np.lib.format.open_memmap(path, "r"), truth


def one(count: int, folder: Path) -> dict[str, Any]:
    from wazuka.app.model import Model
    from wazuka.app.tables import write_predictions
    from wazuka.app.transfer import TOGETHER, Features, FrozenClassifier, learn_apart, pool_of, set_aside
    from wazuka.app.trust import learn_trust
    from wazuka.data import ImageSet
    from wazuka.data.features import FeatureStore
    from wazuka.methods.transfer.consensus import Consensus

    images, truth = generated(folder, count)
    weights = torch.randn(3 * SIDE * SIDE, FEATURES, generator=torch.Generator().manual_seed(0)) / 100

    def network(pixels: np.ndarray) -> np.ndarray:
        return (torch.from_numpy(pixels).flatten(1).float() @ weights).relu().numpy() / 255

    labels = np.full(count, -1)
    for label in range(CLASSES):
        labels[np.flatnonzero(truth == label)[:4]] = label
    names = tuple(str(kind) for kind in range(CLASSES))
    photos = ImageSet(images, labels, names, [f"{number}.jpg" for number in range(count)], fingerprint=f"gen{count}")
    done, peak, started = threading.Event(), [0], time.perf_counter()
    looking = threading.Thread(target=watched, args=(done, peak))
    looking.start()
    store = FeatureStore(folder / "features", FEATURES)
    features = Features((store.features(photos, network),))
    extracted, head = time.perf_counter(), Consensus(CLASSES)
    rows = pool_of(torch.from_numpy(labels), TOGETHER).numpy()
    found = learn_apart(head, features[rows], torch.from_numpy(labels[rows])).found
    set_aside(features, torch.from_numpy(labels), found)
    learned = time.perf_counter()
    right = 0

    class AtHand(FrozenClassifier):
        def features_of(self, images: Any, progress: Any = None) -> Any:
            return features.blocks()

    method = AtHand((), head)
    known = labels >= 0
    method.trust = learn_trust(None, features[np.flatnonzero(known)], names)
    model = Model(method, names, (SIDE, SIDE), 3, "squash", {}, torch.device("cpu"), folder)

    def answers() -> Any:
        nonlocal right
        for place, told in enumerate(model.named(photos)):
            right += told.label == names[truth[place]]
            yield told

    write_predictions(answers(), (), folder / "answers.csv")
    ended = time.perf_counter()
    done.set()
    looking.join()
    return {
        "photos": count, "peak, MiB": round(peak[0] / 1024), "right": round(right / count, 4),
        "seconds": {"features": round(extracted - started, 1), "learning": round(learned - extracted, 1),
                    "naming and writing": round(ended - learned, 1)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--scratch", type=Path, help="a folder with 6 GB to spare; default: the system's own")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(one(given.only, given.scratch)))
        return
    rows = []
    for size in given.sizes:
        folder = Path(tempfile.mkdtemp(dir=given.scratch))
        try:
            words = [sys.executable, __file__, "--only", str(size), "--scratch", str(folder)]
            told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        finally:
            shutil.rmtree(folder)
        rows.append(json.loads(told.strip().splitlines()[-1]))
        print(f"{size:>9,} photos: {rows[-1]['peak, MiB']:,} MiB, {rows[-1]['right']:.1%} right, {rows[-1]['seconds']}",
              flush=True)  # fmt: skip
    growth = round((rows[-1]["peak, MiB"] - rows[0]["peak, MiB"]) * 2**20 / (rows[-1]["photos"] - rows[0]["photos"]))
    print(f"bytes for each photo more: {growth}")
    if given.out:
        sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
        from _results import record

        record(given.out, rows=rows, bytes_per_photo=growth)


if __name__ == "__main__":
    main()
