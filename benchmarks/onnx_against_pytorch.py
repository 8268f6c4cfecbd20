"""Does ONNX Runtime answer as PyTorch does? A classifier of photos, exported whole, on 1,000 real photos.

`consensus` learns a public set of photos (see docs/data.md) with so many labels a class; its export takes uint8 photos
and holds resizing, normalization, network, head and calibration. Told: how many of 1,000 photos that it did not learn
from get the same name from both in float32, the largest difference of a probability, and photos a second of both.

    python benchmarks/onnx_against_pytorch.py --out results/onnx_against_pytorch.json
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wazuka
from wazuka.app.export import as_pytorch, export
from wazuka.app.learn import predict


def main() -> None:
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="tiny_imagenet_100")
    parser.add_argument("--labels-per-class", type=int, default=4)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model: Any = wazuka.fit(
            given.set, labels_per_class=given.labels_per_class, out=Path(scratch) / "run", floor=False
        )
        photos = wazuka.images(given.set, size=model.size, channels=model.channels, fit=model.fit)
        part = photos.test if photos.test is not None else photos.train
        rows = np.unique(np.linspace(0, len(part) - 1, given.photos).round().astype(int))
        images = np.asarray(part.images[rows])
        path = Path(scratch) / "model.onnx"
        export(Path(scratch) / "run", path, 50)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        started = time.perf_counter()
        theirs = np.concatenate([
            session.run(["probabilities"], {"images": images[at : at + 50]})[0] for at in range(0, len(images), 50)
        ])  # fmt: skip
        onnx_seconds, twin = time.perf_counter() - started, as_pytorch(model.method)
        started = time.perf_counter()
        ours = predict(twin, images, torch.device("cpu"), batch=50)
        torch_seconds = time.perf_counter() - started
        size = path.stat().st_size
    same = int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    found = {
        "set": given.set, "photos": len(images), "classes": ours.shape[1], "same name": same,
        "largest difference of a probability": float(np.abs(ours - theirs).max()), "goal": "all, and 0.001",
        "ONNX Runtime, photos/s": round(len(images) / onnx_seconds, 1),
        "PyTorch in float32, photos/s": round(len(images) / torch_seconds, 1), "MiB": round(size / 2**20, 1),
        "onnxruntime": onnxruntime.__version__,
    }  # fmt: skip
    for name, value in found.items():
        print(f"{name:37s} {value}")
    if given.out:
        sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
        from _results import record

        record(given.out, **found)


if __name__ == "__main__":
    main()
