"""Ten detectors fitted and scored from one look at each image, against the dearest of them alone.

The network is a WideResNet-28-2 with random weights, the images are noise of 32x32 pixels: neither changes what a
pass costs. Each detector alone and all ten together go through the same `fit_all` and `score_all`; ODIN nudges
(0.0014). Beside the clock stands what the ten would cost one after the other. On a busy machine, run it with
OMP_NUM_THREADS=1 and look at the processor time.

    python benchmarks/detectors.py --known 2000 --new 1000 --out results/detectors.json
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wazuka.contract import Detector
from wazuka.evaluation.observing import fit_all, observe, score_all
from wazuka.methods.uncertainty.energy import Energy
from wazuka.methods.uncertainty.gram import Gram
from wazuka.methods.uncertainty.knn import KNN
from wazuka.methods.uncertainty.mahalanobis import Mahalanobis, MahalanobisSettings
from wazuka.methods.uncertainty.max_logit import MaxLogit
from wazuka.methods.uncertainty.msp import MSP
from wazuka.methods.uncertainty.odin import ODIN, ODINSettings
from wazuka.methods.uncertainty.react import ReAct
from wazuka.methods.uncertainty.vim import ViM
from wazuka.nets import WideResNet

DETECTORS: dict[str, Callable[[], Detector]] = {
    "MSP": MSP,
    "MaxLogit": MaxLogit,
    "energy": Energy,
    "ODIN": lambda: ODIN(ODINSettings(size=0.0014)),
    "Mahalanobis": Mahalanobis,
    "relative Mahalanobis": lambda: Mahalanobis(MahalanobisSettings(relative=True)),
    "KNN": KNN,
    "ViM": ViM,
    "ReAct": ReAct,
    "Gram": Gram,
}
GOAL = 1.3


def cost(names: list[str], net: nn.Module, known: Tensor, new: Tensor, batch: int) -> tuple[float, float]:
    """Seconds by the clock and of processor time, for fitting these on `known` and scoring `new`."""
    detectors = {name: DETECTORS[name]() for name in names}
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    fit_all(detectors.values(), net, lambda: known.split(batch))
    found = score_all(detectors, net, new.split(batch))
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    assert all(scores.isfinite().all() and len(scores) == len(new) for scores in found.values())
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, default=2000)
    parser.add_argument("--new", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many counts")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    net = WideResNet(classes=10).eval()
    known, new = torch.rand(given.known, 3, 32, 32), torch.rand(given.new, 3, 32, 32)
    observe(net, known[: given.batch])  # the first pass of a process is slower
    sets = {**{name: [name] for name in DETECTORS}, "all ten": list(DETECTORS)}
    counts: dict[str, list[tuple[float, float]]] = {name: [] for name in sets}
    for _ in range(given.repeats):  # in turn, for a machine is not equally busy all the time
        for name, names in sets.items():
            counts[name].append(cost(names, net, known, new, given.batch))
    runs: dict[str, Any] = {}
    for name, count in counts.items():
        clock, work = (min(times) for times in zip(*count, strict=True))
        runs[name] = {"seconds": round(clock, 2), "processor": round(work, 2)}
        print(f"{name:22s} {clock:8.2f} s, {work:8.2f} s of processor time")
    alone = [runs[name] for name in DETECTORS]
    ratios = {
        f"{what}, {of}": round(runs["all ten"][unit] / whole([run[unit] for run in alone]), 3)
        for what, unit in (("by the clock", "seconds"), ("by processor time", "processor"))
        for of, whole in (("of the dearest alone", max), ("of one after the other", sum))
    }
    for name, ratio in ratios.items():
        print(f"all ten, {name}: {ratio}")
    print(f"goal: below {GOAL} of the dearest alone")
    if given.out:
        import sys

        sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
        from _results import record

        record(given.out, known=given.known, new=given.new, batch=given.batch, runs=runs, ratios=ratios, goal=GOAL)


if __name__ == "__main__":
    main()
