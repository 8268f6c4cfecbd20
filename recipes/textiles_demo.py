"""The textiles demo from nothing: how long until 2,000 photos of cloth are learned from 30 labels, and how well?

`wazuka demo textiles` in a process of its own, with an empty cache: imports, decoding, features, surfaces, learning,
cross-validation, the classifier of the labels alone, the report. The goals: 90 % of 600 held-out photos, an interval of
the expected accuracy that holds the truth, 3 minutes on two cores.

    python recipes/textiles_demo.py --out results/textiles_demo.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _results import record

START = "from wazuka.app.cli import main; main(['demo', 'textiles', '--seed', '{seed}', '--out', {out!r}])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            run, started = Path(scratch) / "run", time.perf_counter()
            words = [sys.executable, "-c", START.format(seed=seed, out=str(run))]
            environment = {**os.environ, "WAZUKA_CACHE": str(Path(scratch) / "cache")}
            subprocess.run(words, check=True, capture_output=True, env=environment)
            seconds = time.perf_counter() - started
            metrics = json.loads((run / "metrics.json").read_text())
        told = metrics["estimate"]
        rows.append({
            "seed": seed, "seconds": round(seconds, 1), "accuracy": metrics["test_accuracy"],
            "interval": metrics["test_accuracy_interval"], "photos": metrics["n_test"],
            "expected": told["value"], "expected_interval": [told["low"], told["high"]],
        })  # fmt: skip
        expected = f"{100 * told['value']:.1f} % ({100 * told['low']:.1f} to {100 * told['high']:.1f})"
        print(f"seed {seed}: {100 * rows[-1]['accuracy']:.1f} % in {seconds:.0f} s; expected {expected}", flush=True)
    if given.out:
        record(given.out, rows=rows, goal={"accuracy": 0.9, "seconds": 180})


if __name__ == "__main__":
    main()
