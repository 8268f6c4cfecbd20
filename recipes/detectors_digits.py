"""Which score to trust for which odd images? Every detector that needs no training of its own, on digits, near and far.

scikit-learn's digits 0 to 7 are known; the network, the odd images and the detectors' signs are gram_digits'. Two
trainings: by 900 labels, and by 40 of these (5 of each class) with the other images unlabeled, by FixMatch (300 steps,
semi_digits' settings). There each detector is fitted twice: on the 40 labeled images alone, and on all 900, by the
classes that the network predicts. Scores that learn nothing are the same in both. Nothing is fitted to odd images or
chosen by them; ODIN stands there without a nudge and with the authors' commonest, 0.0014.

What to look for: feature-space detectors win far from the known images, logits near them. An independent sketch (3
seeds, other code, a network that may have had no batch norm: --no-norm leaves it out) found the AUROCs in SKETCH.

    python recipes/detectors_digits.py --seeds 0 1 2 3 4 --out results/detectors_digits.json
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _digits import ThreeConvolutions, all_digits, unlabeled
from _results import record, summary
from gram_digits import KNOWN, TRAIN, WIDTHS, learned, odd_images
from semi_digits import COMMON, POLICIES
from torch import Tensor, nn

from wazuka.app.catalog import build, entry, planned_settings
from wazuka.contract import Detector
from wazuka.data.streams import Batches, Pool
from wazuka.evaluation import paired_t, wilson
from wazuka.evaluation.detection import detection
from wazuka.evaluation.observing import fit_all, observe, score_all
from wazuka.functional.seeds import mix
from wazuka.methods.uncertainty.energy import Energy
from wazuka.methods.uncertainty.entropy import Entropy
from wazuka.methods.uncertainty.gram import Gram
from wazuka.methods.uncertainty.knn import KNN, KNNSettings
from wazuka.methods.uncertainty.mahalanobis import Mahalanobis, MahalanobisSettings
from wazuka.methods.uncertainty.max_logit import MaxLogit
from wazuka.methods.uncertainty.msp import MSP
from wazuka.methods.uncertainty.odin import ODIN, ODINSettings
from wazuka.methods.uncertainty.react import ReAct
from wazuka.methods.uncertainty.vim import ViM
from wazuka.training import Stepper, train

SHOTS, STEPS = 5, 300
DETECTORS: dict[str, Callable[[], Detector]] = {
    "MSP": MSP,
    "MaxLogit": MaxLogit,
    "energy": Energy,
    "entropy": Entropy,
    "ODIN": ODIN,
    "ODIN, 0.0014": lambda: ODIN(ODINSettings(size=0.0014)),
    "ReAct": ReAct,
    "Mahalanobis": lambda: Mahalanobis(MahalanobisSettings(normalize=False)),
    "Mahalanobis, normalized": Mahalanobis,
    "Mahalanobis, relative": lambda: Mahalanobis(MahalanobisSettings(relative=True)),
    "KNN": lambda: KNN(KNNSettings(neighbors=10 / TRAIN)),  # the sketch's 10; of 40 images, the nearest
    "ViM": ViM,
    "Gram": Gram,
}
KINDS = ("digits 8 and 9", "noise", "shuffled", "inverted", "mirrored")
SKETCH = {  # AUROC, %, in the order of KINDS
    "MSP": (95.0, 95.0, 95.0, 91.6, 80.8),
    "MaxLogit": (96.7, 98.0, 96.0, 94.1, 81.7),
    "energy": (96.6, 98.1, 95.9, 94.0, 81.6),
    "ReAct": (96.6, 98.1, 95.3, 97.8, 82.0),
    "Mahalanobis": (78.0, 98.2, 97.2, 100.0, 84.0),
    "KNN": (93.6, 96.3, 97.0, 97.7, 84.7),
    "ViM": (90.3, 99.4, 98.6, 100.0, 85.8),
    "Gram": (87.3, 98.0, 98.5, 100.0, 83.7),
}


def split(seed: int) -> tuple[Pool, Pool, Tensor]:
    """Known images to learn from, known ones to test, and unknown digits (float)."""
    images, labels = all_digits()
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels)))
    rows = order[labels[order] < KNOWN]
    learn, test = rows[:TRAIN], rows[TRAIN:]
    unknown = images[labels >= KNOWN].float() / 255
    return Pool(images[learn], labels[learn]), Pool(images[test], labels[test]), unknown


def learned_from_few(pool: Pool, seed: int, steps: int) -> tuple[nn.Module, Tensor]:
    """FixMatch's averaged network, and the rows of the images whose labels it saw."""
    rows = torch.cat([(pool.labels == label).nonzero()[:SHOTS, 0] for label in range(KNOWN)])
    pools = {"labeled": Pool(pool.images[rows], pool.labels[rows]), "unlabeled": unlabeled(pool.images)}
    item = entry("fixmatch")
    torch.manual_seed(mix(seed))
    net = ThreeConvolutions(WIDTHS, KNOWN)
    method = build(item, net, KNOWN, planned_settings(item, COMMON, {}), unlabeled=TRAIN)
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, Batches(method.streams(), pools, POLICIES, seed), steppers, total_steps=steps, seed=seed)
    return method.average.net.eval(), rows  # type: ignore[union-attr, operator]


def detected(net: nn.Module, fitted_on: Tensor, known: Tensor, odd: dict[str, Tensor]) -> dict[str, Any]:
    """kind -> detector -> measures; images are float."""
    detectors = {name: make() for name, make in DETECTORS.items()}
    fit_all(detectors.values(), net, lambda: fitted_on.split(100))
    usual = score_all(detectors, net, known.split(100))
    found: dict[str, Any] = {}
    for kind, images in odd.items():
        strange = score_all(detectors, net, images.split(100))
        found[kind] = {
            name: {
                figure: estimate["value"]
                for figure, estimate in detection(usual[name], strange[name], draws=2).to_dict().items()
                if figure in ("auroc", "fpr95")
            }
            for name in detectors
        }
    return found


def run_seed(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    pool, test, unknown = split(seed)
    known, images = test.images.float() / 255, pool.images.float() / 255
    odd = odd_images(known, unknown, seed)
    started = time.perf_counter()
    net = learned(pool, seed, given)
    few, rows = learned_from_few(pool, seed, given.steps)
    rights = [int((observe(one, known).logits.argmax(dim=1) == test.labels).sum()) for one in (net, few)]
    found = {
        "900 labels": detected(net, images, known, odd),
        "40 labels, fitted on them": detected(few, images[rows], known, odd),
        "40 labels, fitted on all": detected(few, images, known, odd),
    }
    shares = [wilson(right, len(known)).to_dict() for right in rights]
    accuracy = dict(zip(("900 labels", "40 labels"), shares, strict=True))
    return {"accuracy": accuracy, "found": found, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--passes", type=int, default=40, help="over the 900 labeled images")
    parser.add_argument("--steps", type=int, default=STEPS, help="of FixMatch")
    parser.add_argument("--norm", action=argparse.BooleanOptionalAction, default=True, help="batch norm, of the former")
    parser.add_argument("--out")
    given = parser.parse_args()
    per_seed = {}
    for seed in given.seeds:
        per_seed[seed] = one = run_seed(seed, given)
        told = ", ".join(f"{name} {100 * share['value']:.1f} %" for name, share in one["accuracy"].items())
        print(f"seed {seed}: {told} right; {one['seconds']:.0f} s", flush=True)
    every = list(per_seed.values())
    found: dict[str, Any] = {}
    for row in every[0]["found"]:
        print(f"\n{row + ': AUROC, %':33s}" + "".join(f"{kind:>16s}" for kind in KINDS))
        found[row] = {kind: {} for kind in KINDS}
        for name in DETECTORS:
            line = f"{name:33s}"
            for kind in KINDS:
                told = {
                    figure: summary([one["found"][row][kind][name][figure] for one in every])
                    for figure in ("auroc", "fpr95")
                }
                if len(every) > 1 and name != "MSP":
                    msp = [one["found"][row][kind]["MSP"]["auroc"] for one in every]
                    told["over MSP"] = paired_t(told["auroc"]["values"], msp).to_dict()
                found[row][kind][name] = told
                line += f"{100 * told['auroc']['mean']['value']:16.1f}"
            print(line)
    if given.out:
        accuracy = {name: summary([one["accuracy"][name]["value"] for one in every]) for name in every[0]["accuracy"]}
        record(given.out, data="scikit-learn digits; 0 to 7 known",
               protocol="900 training images, the other known ones to test; fpr95: odd images accepted where 95 % of "
               "the known are", settings={"passes": given.passes, "steps": given.steps, "batch_norm": given.norm,
               "shots": SHOTS, "widths": WIDTHS}, accuracy=accuracy, found=found, kinds=KINDS, sketch=SKETCH,
               seeds=given.seeds, per_seed=per_seed)  # fmt: skip


if __name__ == "__main__":
    main()
