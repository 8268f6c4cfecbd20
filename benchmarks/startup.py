"""How long `wazuka --help` and `import wazuka` take, against the bare interpreter in the same run.

    python benchmarks/startup.py --out results/startup.json

Goals: 0.5 s and 0.3 s. Each is the median of fresh processes, taken in turn so that a slow moment hits all three.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import wazuka": [sys.executable, "-c", "import wazuka"],
    "wazuka --help": [sys.executable, "-m", "wazuka.app.cli", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(11):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first fills disk caches
    bare = medians["python -c pass"]
    for name, seconds in medians.items():
        print(f"{name:<16} {1000 * seconds:6.0f} ms   {seconds / bare:5.1f} times the bare interpreter")
    if given.out:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
        from _results import record  # after the clock: it imports torch

        record(given.out, seconds={name: round(seconds, 4) for name, seconds in medians.items()})


if __name__ == "__main__":
    main()
