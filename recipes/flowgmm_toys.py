"""FlowGMM on points in the plane: a handful of labels, and density says where the classes end.

The authors' toys and settings (Izmailov et al. 2020, arXiv:1912.13025; the notebook synthetic.ipynb and
flow_ssl/data/toy_datasets.py): 1,000 points of which 10 to 19 have a label, five couplings with two hidden layers of
512, each step all labeled points and as many unlabeled ones, drawn anew; Adam 1e-4 with weight decay 1e-2 on biases
too, a tenth of the rate from half of the run on and a hundredth from 80 %. Their loss is the mean over both kinds of
points, ours the sum of the two means, hence a decay of 2e-2: from the same start and batches, the steps are the same
to rounding. There one set of labels, chosen by hand; here the seed draws points, labels and the network's start.
The number is the accuracy on the 981 to 990 unlabeled points of the set, to which the flow was fitted without their
labels; beside it, on 1,000 new points, and what the nearest labeled point says. The last step counts.

What to look for: an independent sketch of this check, with five random labels for each class, found over five seeds
a median of 100 % on the moons (97.6 on average: one seed in five fails) and of 95.3 % on the circles (69 to 99). At
least 98 and 92 are asked for here; the circles come with the authors' 7 and 4 labels and with the sketch's 5 and 5.
No figure was published; the paper shows pictures.

    python recipes/flowgmm_toys.py --seeds 0 1 2 3 4 --out results/flowgmm_toys.json \
        --picture docs/flowgmm_toys.png

Interrupted, it goes on where it was.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _results import record, summary
from _toys import circles, draw_labels, gaussians, pinwheel, two_moons
from safetensors.torch import load_file, save_file
from torch import Tensor

from wazuka.atomic import save_atomic, write_atomic
from wazuka.contract import Batch, Optimizer
from wazuka.functional.seeds import generator_from, mix
from wazuka.methods.semi.flowgmm import FlowGMM, FlowGMMSettings
from wazuka.training import Stepper, train

POINTS = 1000


def ring(classes: int, radius: float) -> Tensor:
    """(classes, 2) means on a circle, the first on the right."""
    angles = torch.arange(classes) * (2 * math.pi / classes)
    return radius * torch.stack([angles.cos(), angles.sin()], dim=1)


@dataclass(frozen=True)
class Toy:
    """draw: (seed, n) -> points, labels. labels: how many of each class. least: median accuracy asked for."""

    draw: Callable[[int, int], tuple[Tensor, Tensor]]
    labels: Sequence[int]
    steps: int
    means: Tensor
    least: float | None = None


TOYS = {
    "two moons": Toy(two_moons, (5, 5), 2001, torch.tensor([[-3.5, -3.5], [3.5, 3.5]]), 0.98),
    "two circles": Toy(circles, (7, 4), 5001, ring(2, 3.5), 0.92),
    "eight Gaussians": Toy(gaussians, (6, 6, 7), 5001, ring(3, 5.5)),
    "pinwheel": Toy(pinwheel, (3, 2, 3, 2, 3), 5001, ring(5, 5.5)),
    "two circles, five each": Toy(circles, (5, 5), 5001, ring(2, 3.5), 0.92),  # as the sketch had it
}
PICTURED = tuple(TOYS)[:4]


def falling(progress: float) -> float:
    """A tenth after half of the run, a hundredth after 80 % of it."""
    return 1.0 if progress <= 0.5 else 0.1 if progress <= 0.8 else 0.01


def blank(toy: Toy, seed: int) -> FlowGMM:
    rule = Optimizer(algorithm="adam", lr=1e-4, weight_decay=2e-2, schedule=falling)
    torch.manual_seed(mix(seed))
    return FlowGMM((2,), len(toy.means), FlowGMMSettings(couplings=5, hidden=512, flow=rule), means=toy.means)


def learned(toy: Toy, seed: int) -> FlowGMM:
    method = blank(toy, seed)
    points, labels = toy.draw(seed, POINTS)
    rows = draw_labels(labels, toy.labels, seed)
    others = unlabeled(rows)

    def batches(step: int) -> Batch:
        drawn = torch.randint(len(others), (len(rows),), generator=generator_from(seed, step))
        return Batch(images=points[rows], labels=labels[rows], unlabeled=points[others[drawn]])

    stepper = Stepper(method, method.settings.flow)
    for group in stepper.optimizer.param_groups:  # there biases decay as well
        group["weight_decay"] = method.settings.flow.weight_decay
    train(method, batches, {method: stepper}, total_steps=toy.steps, seed=seed)
    return method.eval()


def unlabeled(rows: Tensor) -> Tensor:
    hidden = torch.ones(POINTS, dtype=torch.bool)
    hidden[rows] = False
    return hidden.nonzero()[:, 0]


@torch.no_grad()
def measured(method: FlowGMM, toy: Toy, seed: int) -> dict[str, float]:
    points, labels = toy.draw(seed, POINTS)
    rows = draw_labels(labels, toy.labels, seed)
    others = unlabeled(rows)
    fresh, truth = toy.draw(mix(seed, 1) % 2**32, POINTS)
    right = method.predict(points).argmax(dim=1) == labels
    nearest = labels[rows][torch.cdist(points[others], points[rows]).argmin(dim=1)]
    latents, _ = method.flow(points)
    return {
        "accuracy": float(right[others].float().mean()),
        "new_points": float((method.predict(fresh).argmax(dim=1) == truth).float().mean()),
        "nearest_label": float((nearest == labels[others]).float().mean()),
        "labeled_points": float(right[rows].float().mean()),
        "inverse_error": float((method.flow.inverse(latents) - points).abs().max()),
    }


def run(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """What was found, from the folder where it was found before."""
    toy, place = TOYS[name], folder / f"{name.replace(' ', '_')}_{seed}"
    if not place.with_suffix(".json").exists():
        started = time.perf_counter()
        method = learned(toy, seed)
        found = {**measured(method, toy, seed), "seconds": round(time.perf_counter() - started, 1)}
        folder.mkdir(parents=True, exist_ok=True)
        save_atomic(place.with_suffix(".safetensors"), lambda path: save_file(method.flow.state_dict(), path))
        write_atomic(place.with_suffix(".json"), json.dumps(found))
    return json.loads(place.with_suffix(".json").read_text())


def trained(name: str, seed: int, folder: Path) -> FlowGMM:
    method = blank(TOYS[name], seed).eval()
    method.flow.load_state_dict(load_file(folder / f"{name.replace(' ', '_')}_{seed}.safetensors"))
    return method


# The picture: above, what was learned from; below, where the flow carries it


COLORS = ("#2f6db3", "#e07b39", "#3f9b6c", "#9b59b0", "#c2a01e")
GRAY, INK = "#8b8f96", "#2b2d33"


@torch.no_grad()
def draw_picture(path: str, seed: int, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK})
    figure, axes = plt.subplots(2, len(PICTURED), figsize=(4 * len(PICTURED), 8.8), dpi=110, layout="constrained")
    for column, name in enumerate(PICTURED):
        toy = TOYS[name]
        method, found = trained(name, seed, folder), run(name, seed, folder)
        points, labels = toy.draw(seed, POINTS)
        rows = draw_labels(labels, toy.labels, seed)
        latents, _ = method.flow(points)
        above, below = axes[:, column]
        _regions(above, points, method.log_joint)
        above.scatter(*points[unlabeled(rows)].T, s=7, color=GRAY, alpha=0.75, linewidth=0, zorder=3)
        _labeled(above, points[rows], labels[rows])
        above.set_title(f"{name}, {len(rows)} labels", fontsize=13, fontweight="bold", pad=24, color=INK)
        told = f"{100 * found['accuracy']:.1f} % of the others named right"
        above.text(0.5, 1.025, told, transform=above.transAxes, ha="center", fontsize=10.5, color="#5a5e66")
        _components(below, latents, method)
        below.scatter(*latents.T, s=7, color=[COLORS[label] for label in labels], alpha=0.8, linewidth=0, zorder=3)
        _labeled(below, latents[rows], labels[rows])
    rows_show = ("the points, and what the flow says of the plane", "the same points, carried to the mixture")
    for axis, words in zip(axes[:, 0], rows_show, strict=True):
        axis.set_ylabel(words, fontsize=11.5, labelpad=10, color=INK)
    figure.supxlabel(
        "Large: labeled. Small: unlabeled; below, their color is the truth, which no training saw. "
        "Thin lines: equal density. Circles: one, two and three standard deviations of a class.",
        fontsize=11, color="#5a5e66",
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, hspace=0.0, wspace=0.02)
    save_atomic(path, lambda place: figure.savefig(place, format=Path(path).suffix[1:]))
    plt.close(figure)


def _plane(points: Tensor, side: int = 260) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates (side,), (side,) and all places (side * side, 2) of a square that holds the points."""
    middle, reach = (points.amax(0) + points.amin(0)) / 2, float((points.amax(0) - points.amin(0)).max()) * 0.58
    x, y = (torch.linspace(float(m) - reach, float(m) + reach, side) for m in middle)
    return x, y, torch.cartesian_prod(x, y)


def _regions(axis: Any, points: Tensor, log_joint: Callable[[Tensor], Tensor]) -> None:
    """The answer everywhere as a tint, its borders as white lines, and lines of equal density."""
    x, y, places = _plane(points)
    joint = log_joint(places)
    _tints(axis, x, y, joint)
    density = joint.logsumexp(dim=1).view(len(x), len(y)).T
    steps = log_joint(points).logsumexp(dim=1).quantile(torch.tensor([0.02, 0.3, 0.7]))
    axis.contour(x, y, density, levels=sorted({float(step) for step in steps}), colors=INK, linewidths=0.6, alpha=0.45,
                 linestyles="solid", zorder=2)  # fmt: skip
    _bare(axis, x, y)


def _components(axis: Any, latents: Tensor, method: FlowGMM) -> None:
    """The mixture: one, two and three standard deviations around each mean."""
    from matplotlib.patches import Circle

    from wazuka.methods.semi.flowgmm import component_logs

    x, y, places = _plane(torch.cat([latents, method.means - 3, method.means + 3]))
    _tints(axis, x, y, component_logs(places, method.means, method.settings.std))
    for mean, color in zip(method.means.tolist(), COLORS, strict=False):
        for deviations in (1, 2, 3):
            axis.add_patch(Circle(mean, deviations * method.settings.std, fill=False, color=color, linewidth=0.9,
                                  alpha=0.75, zorder=2))  # fmt: skip
    _bare(axis, x, y)


def _tints(axis: Any, x: Tensor, y: Tensor, joint: Tensor) -> None:
    from matplotlib.colors import to_rgb

    colors = torch.tensor([to_rgb(color) for color in COLORS[: joint.shape[1]]])
    pale = 1 - 0.3 * (1 - colors)
    picture = (joint.softmax(dim=1) @ pale).view(len(x), len(y), 3).transpose(0, 1)
    extent = (float(x[0]), float(x[-1]), float(y[0]), float(y[-1]))
    axis.imshow(picture.clamp(0, 1).numpy(), origin="lower", extent=extent, interpolation="bilinear", zorder=0)
    for label in range(joint.shape[1]):
        others = [other for other in range(joint.shape[1]) if other != label]
        lead = (joint[:, label] - joint[:, others].amax(dim=1)).view(len(x), len(y)).T
        axis.contour(x, y, lead, levels=[0.0], colors="white", linewidths=1.6, zorder=1)


def _labeled(axis: Any, points: Tensor, labels: Tensor) -> None:
    axis.scatter(*points.T, s=88, color=[COLORS[label] for label in labels], edgecolor="white", linewidth=1.5, zorder=4)
    axis.scatter(*points.T, s=124, color="none", edgecolor=INK, linewidth=0.8, zorder=5)


def _bare(axis: Any, x: Tensor, y: Tensor) -> None:
    axis.set(xlim=(float(x[0]), float(x[-1])), ylim=(float(y[0]), float(y[-1])), xticks=[], yticks=[], aspect="equal")
    for spine in axis.spines.values():
        spine.set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/flowgmm_toys"), help="where finished ones are kept")
    parser.add_argument("--out")
    parser.add_argument("--picture", help="of the first seed, .png or .svg")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    per_seed: dict[str, Any] = {}
    for name, toy in TOYS.items():
        per_seed[name] = [run(name, seed, given.runs) for seed in given.seeds]
        accuracy = summary([row["accuracy"] for row in per_seed[name]])
        found[name] = {
            "accuracy": accuracy,
            "new_points": summary([row["new_points"] for row in per_seed[name]]),
            "nearest_label": summary([row["nearest_label"] for row in per_seed[name]]),
            "asked_for": toy.least,
            "reached": None if toy.least is None else accuracy["median"] >= toy.least,
        }
        words = " ".join(f"{100 * row['accuracy']:.1f}" for row in per_seed[name])
        nearest = found[name]["nearest_label"]["mean"]["value"]
        print(f"{name}, %: {words}; median {100 * accuracy['median']:.1f}; the nearest label: {100 * nearest:.1f}")
    if given.picture:
        draw_picture(given.picture, given.seeds[0], given.runs)
    if given.out:
        record(given.out, data="two moons, two circles, eight Gaussians, pinwheel: 1,000 points",
               protocol="accuracy of the last step on the unlabeled points of the set that was learned from",
               settings={name: {"labels": list(toy.labels), "steps": toy.steps} for name, toy in TOYS.items()},
               found=found, seeds=given.seeds, per_seed=per_seed)  # fmt: skip


if __name__ == "__main__":
    main()
