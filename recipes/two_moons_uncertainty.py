"""Two moons: how certain is each method of every place in the plane?

The toy of DUQ (van Amersfoort et al. 2020, arXiv:2003.02037; y0ast/deterministic-uncertainty-quantification,
two_moons.ipynb and two_moons_ensemble.ipynb): 1,500 points with noise 0.1, a perceptron 2-20-20-20, 30 passes in
batches of 64, SGD with DUQ's settings for it, and the same rule for the softmax networks. The certainty is DUQ's
largest kernel, and for all others the largest of the mean probabilities.

What to look for: softmax, and five of it, doubt along one line between the moons alone, and are sure of all the rest
of the plane; DUQ is sure on the moons and nowhere else, and without its gradient penalty also of much that lies far
away; SDE-Net (Kong et al. 2020, arXiv:2008.10546) doubts in a wide wedge about that line and is sure beyond it. An
independent sketch of this check found, mean of 5 seeds, the certainty at places farther than 1 from every training
point: DUQ 0.07 (at worst 0.21), without penalty 0.41, one-sided penalty 0.44, softmax 0.98; 99.8 % of new points named
right.

    python recipes/two_moons_uncertainty.py --seeds 0 1 2 3 4 --out results/two_moons_uncertainty.json \
        --picture docs/two_moons.png

The first seed is drawn.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _results import record, summary
from sklearn.datasets import make_moons
from torch import Tensor, nn

from wazuka.atomic import save_atomic
from wazuka.contract import Batch, Method, Optimizer
from wazuka.functional.seeds import generator_from, mix
from wazuka.methods.supervised.supervised import Supervised, SupervisedSettings
from wazuka.methods.uncertainty.deep_ensemble import DeepEnsemble, DeepEnsembleSettings
from wazuka.methods.uncertainty.duq import DUQ, DUQSettings
from wazuka.methods.uncertainty.sde_net import SDENet, SDENetSettings
from wazuka.nets import Backbone
from wazuka.nets.sde import vector_sde
from wazuka.training import Stepper, train

POINTS, BATCH, PASSES = 1500, 64, 30
TEST, FAR = 1000, 1.0
LEFT, RIGHT, LOW, HIGH = -2.5, 3.5, -3.0, 3.0  # the repository's grid

Certainty = Callable[[Tensor], Tensor]  # (n, 2) points -> (n,) in [0, 1]
Answer = tuple[Certainty, Callable[[Tensor], Tensor]]  # and (n, 2) points -> (n,) classes


class Perceptron(Backbone):
    """2-20-20-20 with ReLU after the first two layers, as the repository has it."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_size = 20
        self.layers = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
        self.head = nn.Linear(20, 2)

    def features(self, images: Tensor) -> Tensor:
        return self.layers(images)


def two_moons(seed: int, n: int) -> tuple[Tensor, Tensor]:
    points, labels = make_moons(n, noise=0.1, random_state=seed)
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


def learned(method: Method, points: Tensor, labels: Tensor, seed: int) -> Method:
    """30 passes; what doesn't fill a batch is left out, as there."""
    steps, size = len(points) // BATCH, method.streams()[0].batch  # type: ignore[union-attr]

    def batches(step: int) -> Batch:
        shuffles = [torch.randperm(len(points), generator=generator_from(seed, step // steps, part))
                    for part in range(size // BATCH)]  # fmt: skip
        rows = torch.stack([order[step % steps * BATCH :][:BATCH] for order in shuffles], dim=1).flatten()
        return Batch(images=points[rows], labels=labels[rows])

    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, batches, steppers, total_steps=PASSES * steps, seed=seed)
    return method.eval()


def by_kernel(settings: DUQSettings) -> Callable[[Tensor, Tensor, int], Answer]:
    def answer(points: Tensor, labels: Tensor, seed: int) -> Answer:
        method = learned(DUQ(Perceptron(), 2, settings), points, labels, seed)
        assert isinstance(method, DUQ)
        return lambda x: method.observe(x).logits.amax(dim=1).exp(), lambda x: method.predict(x).argmax(dim=1)

    return answer


def by_probability(make: Callable[[], Method]) -> Callable[[Tensor, Tensor, int], Answer]:
    def answer(points: Tensor, labels: Tensor, seed: int) -> Answer:
        method = learned(make(), points, labels, seed)
        return lambda x: method.predict(x).amax(dim=1), lambda x: method.predict(x).argmax(dim=1)

    return answer


def by_noise(points: Tensor, labels: Tensor, seed: int) -> Answer:
    """SDE-Net on standardized points; no larger than in a published sketch, and of as many steps as the others."""
    mean, std = points.mean(dim=0), points.std(dim=0)
    rule = Optimizer(lr=0.02, nesterov=False, weight_decay=5e-4)
    settings = SDENetSettings(
        labeled_batch=BATCH, sigma=0.5, test_sigma=4.0, passes=100, optimizer=rule, diffusion_optimizer=rule
    )
    sde = vector_sde(2, 2, width=32, hidden=32, horizon=4.0, steps=6, normalized=True)
    method = learned(SDENet(2, (2, 1, 1), settings, sde), (points - mean) / std, labels, seed)

    def probs(x: Tensor) -> Tensor:
        return torch.cat([method.predict(part) for part in ((x - mean) / std).split(5000)])

    return lambda x: probs(x).amax(dim=1), lambda x: probs(x).argmax(dim=1)


SETTINGS = DUQSettings.two_moons()
RULE = SETTINGS.optimizer

# A method joins by a line here: points, labels, seed -> its certainty and its classes everywhere
CONTENDERS: dict[str, Callable[[Tensor, Tensor, int], Answer]] = {
    "softmax": by_probability(
        lambda: Supervised(Perceptron(), SupervisedSettings(labeled_batch=BATCH, averaging=0.0, optimizer=RULE))
    ),
    "ensemble of 5": by_probability(
        lambda: DeepEnsemble(Perceptron, DeepEnsembleSettings(labeled_batch=BATCH, optimizer=RULE))
    ),
    "SDE-Net": by_noise,
    "DUQ": by_kernel(SETTINGS),
    "DUQ, no penalty": by_kernel(replace(SETTINGS, gradient_penalty=0.0)),
    "DUQ, one-sided": by_kernel(replace(SETTINGS, one_sided=True)),
}
PICTURED = {"softmax": "One softmax network", "ensemble of 5": "Deep ensemble of 5", "SDE-Net": "SDE-Net", "DUQ": "DUQ",
            "DUQ, no penalty": "DUQ without its penalty"}  # fmt: skip
SKETCH = {"softmax": 0.98, "DUQ": 0.07, "DUQ, no penalty": 0.41, "DUQ, one-sided": 0.44}  # far away


def plane(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates (side,), (side,) and all places (side * side, 2), the second coordinate running first."""
    x, y = torch.linspace(LEFT, RIGHT, side), torch.linspace(LOW, HIGH, side)
    return x, y, torch.cartesian_prod(x, y)


def answers(name: str, seed: int) -> Answer:
    points, labels = two_moons(seed, POINTS)
    torch.manual_seed(mix(seed))
    return CONTENDERS[name](points, labels, seed)


@torch.no_grad()
def measured(answer: Answer, seed: int) -> dict[str, float]:
    certainty, classes = answer
    points, (new, truth) = two_moons(seed, POINTS)[0], two_moons(mix(seed, 1) % 2**32, TEST)
    places = plane(100)[2]
    far = places[torch.cdist(places, points).amin(dim=1) > FAR]
    return {
        "accuracy": float((classes(new) == truth).float().mean()),
        "certainty": float(certainty(new).mean()),
        "certainty_far": float(certainty(far).mean()),
    }


# The picture: certainty as a tint, lines of equal certainty, and the training points

COLORS, GRAY, INK = ("#e07b39", "#f4f1e8"), "#5a5e66", "#2b2d33"


@torch.no_grad()
def draw_picture(path: str, seed: int, drawn: dict[str, Answer], found: dict[str, dict[str, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK})
    shown = [name for name in drawn if name in PICTURED]
    figure, row = plt.subplots(1, len(shown), figsize=(4 * len(shown) + 0.9, 4.9), dpi=110, layout="constrained")
    points, labels = two_moons(seed, POINTS)
    x, y, places = plane(300)
    for axis, name in zip(row, shown, strict=True):
        values = drawn[name][0](places).view(len(x), len(y)).T
        if name == "SDE-Net":  # each place has noise of its own
            values = F.avg_pool2d(values[None], 15, stride=1, padding=7, count_include_pad=False)[0]
        tint = axis.imshow(values, origin="lower", extent=(LEFT, RIGHT, LOW, HIGH), cmap="cividis", vmin=0, vmax=1,
                           interpolation="bilinear")  # fmt: skip
        axis.contour(x, y, values, levels=(0.25, 0.5, 0.75), colors="white", linewidths=0.7, alpha=0.8)
        for label, color in enumerate(COLORS):
            chosen = points[labels == label][:250]
            axis.scatter(*chosen.T, s=7, color=color, edgecolor=INK, linewidth=0.25, zorder=3)
        axis.set_title(PICTURED[name], fontsize=13, fontweight="bold", pad=24, color=INK)
        told = f"certain of places far away: {found[name]['certainty_far']:.2f}"
        axis.text(0.5, 1.025, told, transform=axis.transAxes, ha="center", fontsize=10.5, color=GRAY)
        axis.set_xticks([])
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set_visible(False)
    bar = figure.colorbar(tint, ax=row, shrink=0.8, pad=0.015, aspect=25)
    bar.set_label("certainty", color=INK)
    bar.outline.set_visible(False)
    figure.supxlabel(
        "Two moons, 1,500 points (500 drawn). White lines: certainty 0.25, 0.5 and 0.75. Far away: farther than 1 from "
        "every point; there nobody can know.", fontsize=11, color=GRAY,
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, hspace=0.0, wspace=0.01, rect=(0, 0, 1, 0.96))
    save_atomic(path, lambda place: figure.savefig(place, format=Path(path).suffix[1:]))
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--picture")
    parser.add_argument("--out")
    given = parser.parse_args()
    per_seed: dict[int, dict[str, dict[str, float]]] = {}
    for seed in given.seeds:
        started = time.perf_counter()
        drawn = {name: answers(name, seed) for name in CONTENDERS}
        per_seed[seed] = {name: measured(answer, seed) for name, answer in drawn.items()}
        if seed == given.seeds[0] and given.picture:
            draw_picture(given.picture, seed, drawn, per_seed[seed])
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    found: dict[str, Any] = {}
    for name in CONTENDERS:
        rows = [per_seed[seed][name] for seed in given.seeds]
        found[name] = {figure: summary([row[figure] for row in rows]) for figure in rows[0]}
        right, near, far = (found[name][figure]["mean"]["value"] for figure in rows[0])
        sketch = f" (sketch: {SKETCH[name]:.2f})" if name in SKETCH else ""
        print(f"{name:>16}: {100 * right:.1f} % right, certainty {near:.2f} on the moons, {far:.2f} far away{sketch}")
    if given.out:
        record(given.out, data="scikit-learn's two moons, 1,500 points with noise 0.1, 1,000 new ones to test",
               protocol="certainty_far: mean over the places of a 100 x 100 grid farther than 1 from all points",
               settings={"passes": PASSES, "batch": BATCH}, found=found, sketch=SKETCH, seeds=given.seeds,
               per_seed=per_seed)  # fmt: skip


if __name__ == "__main__":
    main()
