"""The table of the small benchmark, from our own training, against that of an independent sketch."""

import statistics
from argparse import Namespace
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TOLERANCE = 6.0  # points of AUROC; the spread over seeds is 0.5 to 3


@pytest.mark.slow
def test_detectors_find_what_the_sketch_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sketch's network had no batch norm, to judge by its softmax row, which ours meets within a point then.

    Held from below: Mahalanobis is far above it near the known digits (90 against 78), because its covariance is
    shrunk. ReAct lies lower on noise and inverted digits (90, against 98), where pytorch-ood, on our network, gives
    the same scores to 1e-6: it is the network's doing, and not held.
    """
    monkeypatch.syspath_prepend(str(RECIPES))
    import detectors_digits as recipe

    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in recipe.KINDS}
    for seed in (100, 101, 102):
        pool, test, unknown = recipe.split(seed)
        known = test.images.float() / 255
        net = recipe.learned(pool, seed, Namespace(norm=False, passes=40))
        odd = recipe.odd_images(known, unknown, seed)
        for kind, row in recipe.detected(net, pool.images.float() / 255, known, odd).items():
            for name, told in row.items():
                found[kind].setdefault(name, []).append(100 * told["auroc"])
    means = {kind: {name: statistics.mean(values) for name, values in row.items()} for kind, row in found.items()}
    for name, sketch in recipe.SKETCH.items():
        for kind, expected in zip(recipe.KINDS, sketch, strict=True):
            if name == "MSP":
                assert means[kind][name] == pytest.approx(expected, abs=TOLERANCE / 2), kind
            elif (name, kind) not in {("ReAct", "noise"), ("ReAct", "inverted")}:
                assert means[kind][name] > expected - TOLERANCE, (name, kind)
    logits, features = ("MSP", "MaxLogit", "energy"), ("Mahalanobis", "KNN", "ViM", "Gram")
    for kind in ("noise", "shuffled", "inverted"):  # far from what is known, features tell more than logits
        assert min(means[kind][name] for name in features) > max(means[kind][name] for name in logits), kind
    near = means["digits 8 and 9"]
    assert statistics.mean(near[name] for name in logits) > statistics.mean(near[name] for name in features)
