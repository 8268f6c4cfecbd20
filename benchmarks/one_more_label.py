"""After one more label: how long until 50,000 photos have fresh guesses? The goal is half a second.

CIFAR-10's training images as photos (a named set, see docs/data.md), their features at hand; four labels a class, then
one by one. It must sit under a page where someone labels. Beside it, in the same run: learning everything anew, and
scikit-learn's LogisticRegression on the labeled features alone, which has no use for the other 50,000 but naming them.

    python benchmarks/one_more_label.py --out results/one_more_label.json
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from wazuka.app.backbones import Extractor, efficientnet_lite0, store_of
from wazuka.app.interactive import Interactive
from wazuka.data import open_images
from wazuka.methods.transfer.consensus import Consensus

GOAL = 0.5  # seconds


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    made = run()
    return made, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="pixels that the network looks at")
    parser.add_argument("--more", type=int, default=20, help="labels that come one by one")
    parser.add_argument("--pool", type=int, nargs="+", default=[5000, 10000, 20000])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    photos = open_images("cifar10").train
    extractor = Extractor(efficientnet_lite0(given.size), torch.device("cpu"))
    features = torch.from_numpy(np.asarray(store_of(extractor).features(photos, extractor), dtype=np.float32))
    truth = torch.from_numpy(photos.labels.copy())
    classes, draw = photos.n_classes, np.random.default_rng(100)
    labels = torch.full_like(truth, -1)
    for label in range(classes):
        labels[draw.choice((truth == label).nonzero().flatten().numpy(), 4, replace=False)] = label
    coming = draw.choice((labels < 0).nonzero().flatten().numpy(), given.more, replace=False)

    def right(probs: Tensor) -> float:
        return round(float((probs.argmax(dim=1) == truth)[labels < 0].float().mean()), 4)

    found: dict[str, Any] = {"photos": len(photos), "classes": classes, "goal, seconds": GOAL, "pools": {}}
    start = labels.clone()
    for pool in given.pool:
        labels = start.clone()
        at_hand, preparing = timed(lambda pool=pool: Interactive(features, classes, pool=pool))
        probs, seconds = at_hand.learn(labels), []
        for row in coming:
            labels[row] = truth[row]
            probs, each = timed(lambda at_hand=at_hand, labels=labels: at_hand.relearn(labels))
            seconds.append(each)
        again, whole = timed(lambda at_hand=at_hand, labels=labels: at_hand.learn(labels))
        found["pools"][pool] = {
            "seconds after a label, median": round(float(np.median(seconds)), 3),
            "seconds after a label, worst": round(max(seconds), 3),
            "seconds with cross-validation": round(whole, 2),
            "seconds once, to prepare": round(preparing, 2),
            "right after the last label": right(probs),
            "right with cross-validation": right(again),
            "guesses that are the same": round(float((probs.argmax(1) == again.argmax(1)).float().mean()), 4),
        }
        print(f"pool of {pool:,}")
        for name, value in found["pools"][pool].items():
            print(f"  {name:35s} {value}")
    anew, found["seconds anew"] = timed(lambda: Consensus(classes).fit(features, labels))
    known = (labels >= 0).numpy()
    plain, found["seconds of LogisticRegression"] = timed(
        lambda: LogisticRegression(max_iter=1000).fit(features[known], labels[known]).predict(features.numpy())
    )
    found["right anew"] = right(anew)
    found["right with LogisticRegression"] = round(float((plain == truth.numpy())[~known].mean()), 4)
    found["ratio of learning anew to one more label"] = round(
        found["seconds anew"] / found["pools"][given.pool[0]]["seconds after a label, median"], 1
    )
    for name, value in found.items():
        if name != "pools":
            print(f"{name:37s} {value if not isinstance(value, float) else round(value, 3)}")
    if given.out:
        sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
        from _results import record

        record(given.out, **found)


if __name__ == "__main__":
    main()
