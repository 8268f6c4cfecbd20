"""The rows of SLA's table, small: what quarter turns are worth as extra images, as a second task, as joint labels.

Lee, Hwang & Shin 2020 (ICML, arXiv:1910.05872), CIFAR-10 with all labels, in %: SLA+AG 94.50, SLA+SD 93.26, SLA+SI
92.50, baseline 92.39, MT 90.79, DA 90.44 (quoted from memory): turned images that must be of the same class do harm,
and the same images with labels of their own do good. Here Fashion-MNIST, whose clothes stand upright, with 30 labels a
class, 14x14 pixels, a small network and 300 steps; learning rate and schedule are the authors', the batch is 32 where
they have 128. Nothing was tuned. The seed draws the labels, starts the network and makes the views (shifts); all rows
take as many steps, in which all but the baseline see each image four times. The last step counts, on the 10,000 test
images. SLA+AG and SLA+SI are two ways to ask one network.

    python recipes/sla_rows.py --seeds 0 1 2 3 4 --out results/sla_rows.json

Full size, on a GPU: --data cifar10 --pixels 32 --net resnet32 --labels-per-class 5000 --steps 80000 --batch 128
--flip --device cuda.
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from _results import record, summary
from torch import Tensor

from wazuka.augment import Weak
from wazuka.data import draw_labels, open_images
from wazuka.data.streams import Batches, Pool
from wazuka.evaluation import paired_t, wilson
from wazuka.functional.seeds import mix
from wazuka.methods.semi.sla import SLA, SLASettings
from wazuka.nets import Backbone, ConvNet, ResNet
from wazuka.training import Stepper, train

TRAINED = {"baseline": "plain", "DA": "augmented", "MT": "multitask", "SLA": "joint", "SLA+SD": "distilled"}
PAPER = ("SLA+AG", "SLA+SD", "SLA+SI", "baseline", "MT", "DA")  # from best to worst, CIFAR-10


def network(given: argparse.Namespace, channels: int, classes: int) -> Backbone:
    if given.net == "resnet32":
        return ResNet(channels, classes)
    return ConvNet(channels, classes, tuple(given.widths), momentum=0.1)


def learned(mode: str, pool: Pool, classes: int, seed: int, given: argparse.Namespace) -> SLA:
    torch.manual_seed(mix(seed))  # all rows start from the same trunk
    net = network(given, pool.images.shape[1], classes)
    method = SLA(net, classes, SLASettings(labeled_batch=given.batch, mode=mode))  # type: ignore[arg-type]
    method.to(given.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    policies = {"weak": Weak(flip=given.flip, shift=0.125)}
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    batches = Batches(method.streams(), {"labeled": pool}, policies, seed)
    train(method, batches, steppers, total_steps=given.steps, seed=seed)
    method.eval()
    return method


@torch.inference_mode()
def accuracy(method: SLA, images: Tensor, labels: Tensor) -> dict[str, Any]:
    guesses = torch.cat([method.predict(part.float() / 255).argmax(dim=1) for part in images.split(500)])
    return wilson(int((guesses == labels).sum()), len(labels)).to_dict()


def run_seed(seed: int, data: Mapping[str, Any], given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    kept = draw_labels(data["labels"], per_class=given.labels_per_class, seed=seed)
    labels = torch.from_numpy(data["labels"][kept]).to(given.device)
    pool = Pool(torch.from_numpy(np.array(data["images"][kept])).to(given.device), labels)
    rows: dict[str, dict[str, Any]] = {}
    for name, mode in TRAINED.items():
        started = time.perf_counter()
        method = learned(mode, pool, data["classes"], seed, given)
        seconds = round(time.perf_counter() - started, 1)
        if mode != "joint":
            rows[name] = {"accuracy": accuracy(method, *data["test"]), "seconds": seconds}
            continue
        for way, aggregate in (("SLA+SI", False), ("SLA+AG", True)):
            method.settings = dataclasses.replace(method.settings, aggregate=aggregate)
            rows[way] = {"accuracy": accuracy(method, *data["test"]), "seconds": seconds}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--pixels", type=int, default=14)
    parser.add_argument("--net", choices=["convnet", "resnet32"], default="convnet")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32], help="channels of the ConvNet's stages")
    parser.add_argument("--labels-per-class", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--flip", action="store_true", help="mirror images in their views, as the authors do")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out")
    given = parser.parse_args()
    opened = open_images(given.data, size=given.pixels)
    assert opened.test is not None
    test = [torch.from_numpy(np.array(part)).to(given.device) for part in (opened.test.images, opened.test.labels)]
    train_set = opened.train
    data = {"images": train_set.images, "labels": train_set.labels, "classes": train_set.n_classes, "test": test}
    per_seed: dict[int, dict[str, Any]] = {}
    for seed in given.seeds:
        per_seed[seed] = run_seed(seed, data, given)
        words = [f"{name} {100 * row['accuracy']['value']:.1f}" for name, row in per_seed[seed].items()]
        seconds = sum(row["seconds"] for name, row in per_seed[seed].items() if name != "SLA+SI")
        print(f"seed {seed}, %: {'; '.join(words)}; {seconds:.0f} s", flush=True)
    found = {
        name: summary([per_seed[seed][name]["accuracy"]["value"] for seed in given.seeds])
        for name in per_seed[given.seeds[0]]
    }
    order = sorted(found, key=lambda name: -found[name]["mean"]["value"])
    for name in order:
        told = found[name]
        print(f"{name:>10}: mean {100 * told['mean']['value']:.1f} %, worst {100 * told['worst']:.1f} %")
    gains = {}
    if len(given.seeds) > 1:
        pairs = [(name, "baseline") for name in order if name != "baseline"]
        for name, other in [*pairs, ("SLA+AG", "SLA+SI"), ("SLA+SD", "SLA+SI"), ("SLA+SI", "MT"), ("SLA+SI", "DA")]:
            gains[f"{name} over {other}"] = paired_t(found[name]["values"], found[other]["values"]).to_dict()
    if given.out:
        settings = {name: value for name, value in vars(given).items() if name not in ("seeds", "out")}
        record(given.out, data=f"{given.data}, {given.pixels}x{given.pixels} pixels",
               protocol=f"accuracy of the last step on {len(test[1]):,} test images", settings=settings, order=order,
               order_of_the_paper=PAPER, found=found, gains=gains, seeds=given.seeds, per_seed=per_seed)  # fmt: skip


if __name__ == "__main__":
    main()
