"""The same frozen network's scores through pytorch-ood beside ours: equal where the definition is; if not, why.

The network is gram_digits' (digits 0 to 7 known, 900 training images, batch norm); all known test images and all odd
ones are scored. Both sign conventions are the same: high means odd. Ours go through one `fit_all` and `score_all`;
pytorch-ood gets the same images, features, and the classes that the network predicts, for an Observation holds no
labels. Agreement is the largest difference over the standard deviation of their scores (goal: 1e-4), where a known
factor is allowed for as said; theirs computes in float64 where it can, so that what is seen is the definition.
Where definitions differ, the rank correlation stands beside the reason.

Set it up in an environment of its own, for pytorch-ood is no dependency: `pip install -e . pytorch-ood`, or put a
folder made by `pip install --no-deps --target FOLDER pytorch-ood` on PYTHONPATH (it imports torchvision for data sets
and networks that are not used here; where that can't be had, an empty stand-in module on the path serves).

    PYTHONPATH=FOLDER python benchmarks/detectors_against_pytorch_ood.py \
        --out results/detectors_against_pytorch_ood.json
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from _digits import ThreeConvolutions, all_digits
from _results import record
from gram_digits import KNOWN, TRAIN, learned, odd_images

from wazuka.contract import Detector, Observation
from wazuka.data.streams import Pool
from wazuka.evaluation.observing import fit_all, observe, score_all
from wazuka.methods.uncertainty import gram, mahalanobis
from wazuka.methods.uncertainty.energy import Energy
from wazuka.methods.uncertainty.entropy import Entropy
from wazuka.methods.uncertainty.gram import Gram, GramSettings
from wazuka.methods.uncertainty.knn import KNN, KNNSettings
from wazuka.methods.uncertainty.mahalanobis import Mahalanobis, MahalanobisSettings
from wazuka.methods.uncertainty.max_logit import MaxLogit
from wazuka.methods.uncertainty.msp import MSP
from wazuka.methods.uncertainty.odin import ODIN, ODINSettings
from wazuka.methods.uncertainty.react import ReAct
from wazuka.methods.uncertainty.vim import ViM

GOAL = 1e-4
POWERS = 5  # theirs fits in float32 and without a scale: tenth powers lose what we keep
OURS: dict[str, Callable[[], Detector]] = {
    "MSP": MSP,
    "MaxLogit": MaxLogit,
    "energy": Energy,
    "entropy": Entropy,
    "ODIN, no nudge": ODIN,
    "ODIN, 0.0014": lambda: ODIN(ODINSettings(size=0.0014)),
    "ODIN, 0.02": lambda: ODIN(ODINSettings(size=0.02)),
    "ReAct": ReAct,
    "ViM": ViM,
    "KNN": lambda: KNN(KNNSettings(neighbors=50 / TRAIN)),
    "Mahalanobis": lambda: Mahalanobis(MahalanobisSettings(normalize=False)),
    "Mahalanobis, unshrunk": lambda: Mahalanobis(MahalanobisSettings(normalize=False)),
    "relative Mahalanobis": lambda: Mahalanobis(MahalanobisSettings(normalize=False, relative=True)),
    "relative Mahalanobis, unshrunk": lambda: Mahalanobis(MahalanobisSettings(normalize=False, relative=True)),
    "Gram, own bounds": lambda: Gram(GramSettings(powers=POWERS)),
}
WHY = {
    "MSP": "1 + theirs, which is minus the largest probability",
    "ODIN, no nudge": "1 + theirs",
    "ODIN, 0.0014": "1 + theirs; our networks normalize inside, so their norm_std is None",
    "ODIN, 0.02": "1 + theirs",
    "KNN": "k = 50 of 900 known images; our k is a share of them",
    "Mahalanobis": "differs: we shrink the covariance (Ledoit and Wolf), they add 1e-6 to the scatter's diagonal",
    "Mahalanobis, unshrunk": "theirs times 2 n: half the square, under the scatter, which isn't divided by n; ours "
    "with their covariance",
    "relative Mahalanobis": "differs: both covariances are shrunk",
    "relative Mahalanobis, unshrunk": "theirs times n: under the scatters, which aren't divided by n; ours with "
    "their covariances",
    "Gram, own bounds": "differs: other images are held out, at random; ours divides by the network's confidence; "
    "a bound near 0 is guarded by 1e-6 of the layer's scale, theirs by 1e-6, so that a channel that never fired "
    "outweighs all",
    "Gram, same bounds and guard": "theirs, given our bounds and expected deviations, over the confidence; ours with "
    "their guard",
}
OFFSET = {"MSP": 1.0, "ODIN, no nudge": 1.0, "ODIN, 0.0014": 1.0, "ODIN, 0.02": 1.0}
FACTOR = {"Mahalanobis, unshrunk": 2.0 * TRAIN, "relative Mahalanobis, unshrunk": 1.0 * TRAIN}


def unshrunk(batches: Iterable[Tensor]) -> Tensor:
    """`mahalanobis.whitening` by their covariance."""
    x = torch.cat(list(batches))
    scatter = x.mT @ x + 1e-6 * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.inv(torch.linalg.cholesky(scatter / len(x)))


def guarded_their_way(values: Tensor, low: Tensor, high: Tensor, floor: Tensor) -> Tensor:
    """`gram.deviation` with 1e-6 added to each bound, whatever its sign and its layer's scale."""
    below, above = (low - values).relu() / (low + 1e-6).abs(), (values - high).relu() / (high + 1e-6).abs()
    return (below + above).sum(dim=(1, 2))


def ours(net: ThreeConvolutions, known: Tensor, new: Tensor) -> tuple[dict[str, Tensor], dict[str, Detector]]:
    detectors = {name: make() for name, make in OURS.items()}
    plain = {name: one for name, one in detectors.items() if "unshrunk" not in name}
    fit_all(plain.values(), net, lambda: known.split(100))
    with patch.object(mahalanobis, "whitening", unshrunk):
        fit_all([one for name, one in detectors.items() if "unshrunk" in name], net, lambda: known.split(100))
    scores = score_all(detectors, net, new.split(100))
    with patch.object(gram, "deviation", guarded_their_way):
        own = {"Gram, same bounds and guard": detectors["Gram, own bounds"]}
        return scores | score_all(own, net, new.split(100)), detectors


@contextmanager
def in_float64() -> Iterator[None]:
    """Their arithmetic as exact as ours, so that what differs is the definition."""
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(Tensor, "float", Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


class InFloat32(nn.Module):
    """The frozen network itself, with float64 logits."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).double()


def theirs(net: ThreeConvolutions, known: Tensor, new: Tensor, fitted: dict[str, Detector]) -> dict[str, Tensor]:
    import pytorch_ood.detector as theirs

    torch.manual_seed(0)  # of their Gram's held-out images
    seen, asked = observe(net, known), observe(net, new, layers=None)
    features, new_features, logits = seen.features.double(), asked.features.double(), asked.logits.double()
    classes = seen.logits.argmax(dim=1)
    assert len(classes.unique()) == KNOWN
    found = {
        "MSP": theirs.MaxSoftmax.score(logits),
        "MaxLogit": theirs.MaxLogit.score(logits),
        "energy": theirs.EnergyBased.score(logits),
        "entropy": theirs.Entropy.score(logits),
        "ODIN, no nudge": theirs.ODIN(InFloat32(net), eps=0.0).predict(new),
        "ODIN, 0.0014": theirs.ODIN(InFloat32(net), eps=0.0014).predict(new),
        "ODIN, 0.02": theirs.ODIN(InFloat32(net), eps=0.02).predict(new),
    }
    with in_float64():
        head = nn.Linear(*reversed(net.head.weight.shape))
        head.load_state_dict(net.head.state_dict())
        react = theirs.ReAct(backbone=net.features, head=head).fit_feature_maps(features, classes)
        vim = theirs.ViM(None, d=features.shape[1] // 2, w=head.weight, b=head.bias).fit_features(features, classes)
        knn = theirs.KNN(None, k=50).fit_features(features, classes)
        found["ReAct"] = react.predict_feature_maps(new_features)
        found["ViM"], found["KNN"] = (one.predict_features(new_features) for one in (vim, knn))
        for ours, kind in (("Mahalanobis", theirs.Mahalanobis), ("relative Mahalanobis", theirs.RMD)):
            scores = kind(None).fit_features(features, classes).predict_features(new_features)
            found[ours] = found[f"{ours}, unshrunk"] = scores
    return found | gram_of_theirs(net, known, classes, asked, fitted["Gram, own bounds"])


def gram_of_theirs(
    net: ThreeConvolutions, known: Tensor, classes: Tensor, asked: Observation, own: Detector
) -> dict[str, Tensor]:
    """With bounds of their own, and with ours."""
    import pytorch_ood.detector as theirs

    one, two, three = net.blocks
    layers = [nn.Sequential(net.normalize, one[0]), one[1], one[2], *two, nn.Sequential(net.pool, three[0]), *three[1:]]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.head)
    detector = theirs.Gram(head, layers, KNOWN, list(range(1, POWERS + 1)))
    detector.fit(DataLoader(TensorDataset(known, classes), batch_size=100))
    logits, activations = asked.logits.double(), [layer.double() for layer in asked.activations.values()]
    found = {"Gram, own bounds": detector.predict_structured(logits, activations)}
    assert isinstance(own, Gram)
    detector.feature_min, detector.feature_max = (
        [[layer[:, power] for power in range(POWERS)] for layer in bounds.split(own.widths.tolist(), 2)]
        for bounds in (own.low, own.high)
    )
    detector.layer_norm = own.expected
    deviations = detector.predict_structured(logits, activations)
    found["Gram, same bounds and guard"] = deviations / logits.softmax(dim=1).amax(dim=1)
    return found


def compared(mine: Tensor, other: Tensor, factor: float, offset: float) -> dict[str, float]:
    a, b = mine.double().numpy(), other.detach().double().numpy() * factor + offset
    return {
        "largest difference over spread": float(np.abs(a - b).max() / b.std()),
        "median difference over spread": float(np.median(np.abs(a - b)) / b.std()),
        "rank correlation": float(spearmanr(a, b).statistic),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", type=int, default=40)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.norm = True
    images, labels = all_digits()
    rows = torch.from_numpy(np.random.RandomState(given.seed).permutation(len(labels)))
    rows = rows[labels[rows] < KNOWN]
    net = learned(Pool(images[rows[:TRAIN]], labels[rows[:TRAIN]]), given.seed, given)
    known, usual = images[rows[:TRAIN]].float() / 255, images[rows[TRAIN:]].float() / 255
    new = torch.cat([usual, *odd_images(usual, images[labels >= KNOWN].float() / 255, given.seed).values()])
    scores, detectors = ours(net, known, new)
    others = theirs(net, known, new, detectors)
    import pytorch_ood

    found: dict[str, Any] = {}
    for name, other in others.items():
        one = compared(scores[name], other, FACTOR.get(name, 1.0), OFFSET.get(name, 0.0))
        found[name] = {**one, "why": WHY.get(name, "")}
        largest = one["largest difference over spread"]
        agrees = "agrees" if largest <= GOAL else "      "
        print(f"{name:31s} {largest:8.1e}  ranks {one['rank correlation']:.4f}  {agrees}  {WHY.get(name, '')}")
    if given.out:
        record(given.out, data="scikit-learn digits; 0 to 7 known", images=len(new), goal=GOAL, found=found,
               seed=given.seed, pytorch_ood=pytorch_ood.__version__)  # fmt: skip


if __name__ == "__main__":
    main()
