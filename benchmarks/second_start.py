"""How long until pictures are ready: the first start (decodes) and the second (maps the cache).

    python benchmarks/second_start.py [--images 60000] [--side 28] [--processes] [--keep FOLDER] [--out FILE]

Makes a folder of small PNG files in ten class folders and a Parquet file of the same pictures, opens each in a fresh
process twice with an empty cache, and prints seconds. "ready" is `open_images` alone; "with imports" adds starting
Python's imports of wazuka.data. The exit code is 1 unless every second start is ready in under a second.
--processes also decodes the same files with a pool of processes, to compare with the threads in use. The files have
just been written, so the first start reads them from memory, not from a disk.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

LIMIT = 1.0  # seconds a second start may take

_OPEN = """
import json, sys, time
start = time.perf_counter()
from wazuka.data import open_images
ready = time.perf_counter()
data = open_images(sys.argv[1], cache=sys.argv[2])
end = time.perf_counter()
print(json.dumps({"ready": end - ready, "with imports": end - start, "images": len(data.train),
                  "checksum": int(data.train.images[::997].sum())}))
"""


def encoded(index: int, side: int, kind: str) -> bytes:
    """One picture: smooth random blobs, so that it compresses about as a photo or a digit does."""
    draw = np.random.default_rng(index)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def make_folder(folder: Path, images: int, side: int) -> None:
    for label in range(10):
        (folder / f"class_{label}").mkdir(parents=True)
    for index in range(images):
        (folder / f"class_{index % 10}" / f"{index:06d}.png").write_bytes(encoded(index, side, "PNG"))


def make_parquet(path: Path, images: int, side: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": encoded(index, side, "PNG"), "path": None} for index in range(images)]
    pq.write_table(pa.table({"image": rows, "label": [index % 10 for index in range(images)]}), path)


def start(source: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, "-c", _OPEN, str(source), str(cache)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def decode_files(paths: list[Path]) -> int:
    from wazuka.data.decode import Shape, decode

    return sum(int(decode(path.read_bytes(), Shape(channels=None)).pixels.size) for path in paths)


def processes(folder: Path) -> float:
    """Seconds to decode the folder's files in as many processes as there are processors, starting them included."""
    begin = time.perf_counter()
    paths = sorted(folder.rglob("*.png"))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        sum(pool.map(decode_files, [paths[i : i + 256] for i in range(0, len(paths), 256)]))
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--keep", type=Path, help="make the files here, and leave them for the next time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    slow, found = False, {}
    with tempfile.TemporaryDirectory() as scratch:
        place = options.keep or Path(scratch)
        folder = place / f"png_{options.images}_{options.side}"
        table = place / f"{options.images}_{options.side}.parquet"
        if not folder.exists():
            make_folder(folder, options.images, options.side)
        if not table.exists():
            make_parquet(table, options.images, options.side)
        print(f"{options.images:,} pictures of {options.side} x {options.side}, seconds on {os.cpu_count()} processors")
        print(f"{'source':<22}{'first: ready':>14}{'second: ready':>15}{'with imports':>14}")
        for title, source in (("folder of PNG files", folder), ("Parquet", table)):
            cache = Path(scratch) / f"cache_{source.name}"
            first, second = start(source, cache), start(source, cache)
            assert first["checksum"] == second["checksum"], "the second start has other pixels than the first"
            print(f"{title:<22}{first['ready']:>14.2f}{second['ready']:>15.2f}{second['with imports']:>14.2f}")
            slow |= second["ready"] >= LIMIT
            found[title] = {"first start": first["ready"], "second start": second["ready"]}
        if options.processes:
            print(f"\ndecoding the folder in processes instead of threads: {processes(folder):.2f}")
    if options.out:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
        from _results import record

        record(options.out, images=options.images, side=options.side, seconds=found)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
