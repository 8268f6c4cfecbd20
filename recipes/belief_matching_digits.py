"""Belief matching against softmax: who knows how sure to be, from 150 labeled digits?

scikit-learn's digits, 150 labeled ones drawn by the seed, the other 1,647 to test; a perceptron with two hidden layers
of 128, Adam 2e-3, 300 passes, no augmentation, the last step counts. All methods start from the same network. Nothing
is chosen by test labels: belief matching's coefficient is its default, for an attainable confidence of 0.99, and on
both sides of it the values of an independent sketch of this check stand as they are.

What to look for (Joo, Chung & Seo 2020, arXiv:2002.07965, report an ECE two to four times smaller than softmax's on
CIFAR): a lower NLL and AURC than softmax's where the coefficient suits ten classes, and answers far too modest where it
does not, as `attainable_confidence` foretells: any coefficient calibrates nothing. The sketch found, mean of 5 seeds,
ECE / NLL / AURC: softmax 0.043 / 0.348 / 0.0115, coefficient 0.001 0.035 / 0.238 / 0.0072, ECE 0.153 at 0.01 and 0.483
at 0.1; five softmax networks together ECE 0.028, NLL 0.284; MC dropout (0.3, 30 passes) ECE 0.018, NLL 0.253.

    python recipes/belief_matching_digits.py --seeds 0 1 2 3 4 --out results/belief_matching_digits.json
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _digits import all_digits
from _results import record, summary
from torch import Tensor, nn

from wazuka.augment import Plain
from wazuka.contract import Method, Optimizer
from wazuka.data.streams import Batches, Pool
from wazuka.evaluation import evaluate, paired_t
from wazuka.evaluation.detection import aurc
from wazuka.functional.seeds import mix
from wazuka.methods.supervised.supervised import Supervised, SupervisedSettings
from wazuka.methods.uncertainty.belief_matching import (
    BeliefMatching,
    BeliefMatchingSettings,
    attainable_confidence,
    coefficient_for,
)
from wazuka.methods.uncertainty.deep_ensemble import DeepEnsemble, DeepEnsembleSettings
from wazuka.methods.uncertainty.mc_dropout import MCDropout, MCDropoutSettings
from wazuka.nets import Backbone, Normalize
from wazuka.training import Stepper, train

LABELS, BATCH, CLASSES = 150, 50, 10
RULE = Optimizer(algorithm="adam", lr=2e-3)
FIGURES = ("accuracy", "ece", "nll", "aurc")


class Perceptron(Backbone):
    """Two hidden layers of 128, ReLU; with dropout after each, if asked for."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.normalize, self.feature_size, layers = Normalize((0.0,), (1.0,)), 128, []
        for inputs in (64, 128):
            layers += [nn.Linear(inputs, 128), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(128, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        return self.layers(self.normalize(images).flatten(1))


def softmax() -> Method:
    return Supervised(Perceptron(), SupervisedSettings(labeled_batch=BATCH, view="weak", averaging=0.0, optimizer=RULE))


def belief_matching(coefficient: float | None) -> Method:
    settings = BeliefMatchingSettings(labeled_batch=BATCH, view="plain", coefficient=coefficient, optimizer=RULE)
    return BeliefMatching(Perceptron(), CLASSES, settings)


CONTENDERS: dict[str, Callable[[], Method]] = {
    "softmax": softmax,
    "belief matching": lambda: belief_matching(None),
    "belief matching, 0.001": lambda: belief_matching(0.001),
    "belief matching, 0.01": lambda: belief_matching(0.01),
    "belief matching, 0.1": lambda: belief_matching(0.1),
    "ensemble of 5": lambda: DeepEnsemble(
        Perceptron, DeepEnsembleSettings(labeled_batch=BATCH, view="plain", optimizer=RULE)
    ),
    "MC dropout": lambda: MCDropout(
        Perceptron(dropout=0.3), MCDropoutSettings(labeled_batch=BATCH, view="plain", passes=30, optimizer=RULE)
    ),
}
COEFFICIENTS = {"belief matching": coefficient_for(0.99, CLASSES, 1.0), "belief matching, 0.001": 0.001,
                "belief matching, 0.01": 0.01, "belief matching, 0.1": 0.1}  # fmt: skip


def learned(make: Callable[[], Method], pool: Pool, seed: int, passes: int) -> Method:
    torch.manual_seed(mix(seed))
    method = make()
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    batches = Batches(method.streams(), {"labeled": pool}, {"weak": Plain(), "plain": Plain()}, seed)
    train(method, batches, steppers, total_steps=passes * LABELS // BATCH, seed=seed)
    return method.eval()


def run_seed(seed: int, passes: int) -> dict[str, dict[str, float]]:
    images, labels = all_digits()
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels)))
    known, new = order[:LABELS], order[LABELS:]
    truth, found = labels[new].numpy(), {}
    for name, make in CONTENDERS.items():
        method = learned(make, Pool(images[known], labels[known]), seed, passes)
        with torch.no_grad():
            probs = method.predict(images[new].float() / 255).double().numpy()
        told = evaluate(probs, truth, [str(digit) for digit in range(CLASSES)], draws=20)
        found[name] = {
            **{figure: getattr(told, figure).value for figure in ("accuracy", "ece", "nll")},
            "aurc": aurc(probs.max(axis=1), probs.argmax(axis=1) == truth),
            "confidence": float(probs.max(axis=1).mean()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--out")
    given = parser.parse_args()
    per_seed: dict[int, dict[str, dict[str, float]]] = {}
    for seed in given.seeds:
        started = time.perf_counter()
        per_seed[seed] = run_seed(seed, given.passes)
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    found: dict[str, Any] = {}
    for name in CONTENDERS:
        values = {figure: [per_seed[seed][name][figure] for seed in given.seeds] for figure in (*FIGURES, "confidence")}
        found[name] = {figure: summary(column) for figure, column in values.items()}
        if name in COEFFICIENTS:
            cap = attainable_confidence(CLASSES, 1.0, COEFFICIENTS[name])
            found[name] |= {"coefficient": COEFFICIENTS[name], "attainable_confidence": cap}
        if name != "softmax" and len(given.seeds) > 1:
            found[name]["over_softmax"] = {
                figure: paired_t(values[figure], found["softmax"][figure]["values"]).to_dict() for figure in FIGURES
            }
        accuracy, ece, nll, area = (found[name][figure]["mean"]["value"] for figure in FIGURES)
        print(f"{name:>23}: {100 * accuracy:.1f} % right, ECE {ece:.3f}, NLL {nll:.3f}, AURC {area:.4f}")
    if given.out:
        record(given.out, data="scikit-learn digits, 150 labeled, 1,647 to test",
               protocol="two hidden layers of 128, Adam 2e-3, batches of 50; ECE of 15 bins, NLL in nats",
               settings={"passes": given.passes, "labels": LABELS}, found=found, seeds=given.seeds,
               per_seed=per_seed)  # fmt: skip


if __name__ == "__main__":
    main()
