"""Prototypical networks on the 242 Omniglot characters at hand: 1-shot accuracy on alphabets never trained on.

Goals: 95 % 5-way and 85 % 20-way. The alphabets, split by name before anything was trained: in alphabetical order the
last two are for testing (Sanskrit and Tagalog: 59 characters, 24 % of all, as in Vinyals et al. 2016), the first two
for validation (Balinese and Early Aramaic: 46), the four between for training. Validation chose the number of episodes:
seed 100, 5-way and 20-way, 92.2 and 78.4 % after 1,000, 92.9 and 80.6 % after 2,000; way, queries and shaking were set
beforehand. As in the authors' code the figures come from networks trained anew on training and validation alphabets
together. Every quarter turn of a character is a class of its own, in training and testing; the figures of upright
characters alone stand beside. 1,000 episodes of 1 support and 15 query images a class, as there.
The official one-shot runs (20 tasks of 20 characters of one alphabet, 20 queries each) are answered by the same
networks. Batch norm goes by the running statistics everywhere: no query sees another.
Differs from the paper, for 183 characters are few: images are shaken a little, see SHAKEN; and a run is short.

    python recipes/omniglot_protonet.py --seeds 0 1 2 3 4 --out results/omniglot_protonet.json
    python recipes/omniglot_protonet.py --validate --seeds 100      what the choice was made by
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import record, summary
from torch import Tensor

from wazuka.augment import AffineStrong, Plain
from wazuka.data import open_images
from wazuka.data.streams import Batches, Pool
from wazuka.evaluation import episode_accuracy
from wazuka.functional.seeds import generator_from, mix
from wazuka.methods.fewshot.protonet import ProtoNet, ProtoNetSettings, prototype_logits
from wazuka.nets import Conv4
from wazuka.training import Stepper, train

VALIDATION = ("Balinese", "Early_Aramaic")
TEST = ("Sanskrit", "Tagalog")
DRAWERS = 20
EPISODES, QUERY = 1000, 15
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHAKEN = AffineStrong(rotation=15, scale=0.15, shear=0.15, translation=0.07, contrast=0, cutout=0)


class Characters:
    """All drawings, strokes 1 on 0: images (242, 20, 1, 28, 28) uint8, character after character."""

    def __init__(self) -> None:
        drawings = open_images("omniglot", size=28, channels=1).train
        order = np.argsort(drawings.labels, kind="stable")
        self.images = 255 - torch.from_numpy(drawings.images[order]).unflatten(0, (-1, DRAWERS))
        self.alphabets = drawings.extras["alphabet"][order][::DRAWERS]

    def of(self, alphabets: tuple[str, ...]) -> Tensor:
        return self.images[torch.from_numpy(np.isin(self.alphabets, alphabets))]

    def without(self, alphabets: tuple[str, ...]) -> Tensor:
        return self.images[torch.from_numpy(~np.isin(self.alphabets, alphabets))]


def turned(characters: Tensor) -> Tensor:
    """Every quarter turn of a character is one more: (K, 20, 1, 28, 28) -> (4K, 20, 1, 28, 28)."""
    return torch.cat([characters.rot90(turns, dims=(3, 4)) for turns in range(4)])


def learn(characters: Tensor, seed: int, given: argparse.Namespace) -> ProtoNet:
    settings = ProtoNetSettings(way=given.way, shot=1, query=given.query, view=given.view)
    torch.manual_seed(mix(seed))
    method = ProtoNet(Conv4(), settings).to(memory_format=torch.channels_last)
    classes = turned(characters)
    pool = Pool(classes.flatten(0, 1), torch.arange(len(classes)).repeat_interleave(DRAWERS))
    batches = Batches(method.streams(), {"labeled": pool}, {"plain": Plain(), "shaken": SHAKEN}, seed)
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, batches, steppers, total_steps=given.episodes, seed=seed, precision=PRECISIONS[given.precision])
    method.eval()
    return method


@torch.inference_mode()
def embedded(method: ProtoNet, classes: Tensor) -> Tensor:
    """(K, 20, 1, 28, 28) uint8 -> (K, 20, D); once for all episodes, for by running statistics none sees another."""
    return torch.stack([method.net(drawings.float() / 255) for drawings in classes])


@torch.inference_mode()
def accuracies(features: Tensor, way: int, seed: int) -> list[float]:
    """Share of queries named right in each of 1,000 1-shot episodes; features (K, 20, D)."""
    generator, labels, shares = generator_from(seed, way), torch.arange(way)[:, None], []
    for _ in range(EPISODES):
        classes = torch.randperm(len(features), generator=generator)[:way]
        drawings = torch.rand(way, DRAWERS, generator=generator).argsort(dim=1)[:, : 1 + QUERY]
        drawn = features[classes[:, None], drawings]
        logits = prototype_logits(drawn[:, 1:].flatten(0, 1), drawn[:, 0], "euclidean")
        shares.append(float((logits.argmax(dim=1).view(way, QUERY) == labels).float().mean()))
    return shares


@torch.inference_mode()
def one_shot_runs(method: ProtoNet) -> list[float]:
    """Share named right in each of the 20 official runs."""
    drawings = open_images("omniglot_oneshot", size=28, channels=1).train
    images = (255 - torch.from_numpy(np.array(drawings.images))).float() / 255
    labels, run, role = torch.from_numpy(drawings.labels.copy()), drawings.extras["run"], drawings.extras["role"]
    shares = []
    for number in np.unique(run):
        support, query = (torch.from_numpy((run == number) & (role == part)) for part in ("support", "query"))
        probs = method.classify(images[support], labels[support], images[query])
        shares.append(float((probs.argmax(dim=1) == labels[query]).float().mean()))
    return shares


def measured(method: ProtoNet, characters: Tensor, seed: int, runs: bool) -> dict[str, Any]:
    found = {}
    for kind, classes in (("", turned(characters)), ("upright_", characters)):
        features = embedded(method, classes)
        for way in (5, 20):
            found[f"{kind}{way}_way_1_shot"] = episode_accuracy(accuracies(features, way, seed)).to_dict()
    if runs:
        found["one_shot_runs"] = episode_accuracy(one_shot_runs(method)).to_dict()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--episodes", type=int, default=2000, help="training episodes")
    parser.add_argument("--way", type=int, default=30, help="classes of a training episode")
    parser.add_argument("--query", type=int, default=5)
    parser.add_argument("--view", choices=["plain", "shaken"], default="shaken")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--validate", action="store_true", help="never look at the test alphabets")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    everyone = Characters()
    held_out = VALIDATION if given.validate else TEST
    known = everyone.without(VALIDATION + TEST if given.validate else TEST)
    rows = []
    for seed in given.seeds:
        started = time.perf_counter()
        method = learn(known, seed, given)
        trained = time.perf_counter()
        found = measured(method, everyone.of(held_out), seed, runs=not given.validate)
        done = time.perf_counter()
        rows.append({"seed": seed, "seconds": trained - started, "seconds_testing": done - trained, **found})
        figures = ", ".join(f"{name} {100 * value['value']:.2f}" for name, value in found.items())
        print(f"seed {seed}: {figures}; {trained - started:.0f} s + {done - trained:.0f} s", flush=True)
    names = [name for name, value in rows[0].items() if isinstance(value, dict)]
    table = {name: summary([row[name]["value"] for row in rows]) for name in names}
    for name, over_seeds in table.items():
        mean = over_seeds["mean"]
        reach = "" if mean["high"] is None else f" +- {100 * (mean['high'] - mean['value']):.2f}"
        print(f"{name:22} {100 * mean['value']:.2f}{reach} %, worst seed {100 * over_seeds['worst']:.2f} %")
    if given.out:
        record(
            given.out, data="omniglot, the 242 characters of the small background sets",
            alphabets={"training": sorted({*everyone.alphabets} - {*held_out, *TEST}), "novel": held_out},
            training={"way": given.way, "shot": 1, "query": given.query, "episodes": given.episodes,
                      "view": given.view, "precision": given.precision},
            protocol=f"{EPISODES} episodes a seed, 1 support and {QUERY} query images a class, running statistics of "
                     "batch norm (not transductive); per seed with the interval over episodes, over seeds Student's t",
            **table, seconds=summary([row["seconds"] for row in rows]), per_seed=rows,
        )  # fmt: skip


if __name__ == "__main__":
    main()
