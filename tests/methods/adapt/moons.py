"""Two moons, and the same moons turned: a shift that source-only learning loses a fifth of the points to."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wazuka.contract import Batch, Method
from wazuka.nets import Backbone
from wazuka.training import Stepper, train


class Plane(Backbone):
    """A multilayer perceptron on points of the plane."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head, self.feature_size = nn.Linear(64, 2), 64

    def features(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Moons(NamedTuple):
    """600 labeled points, 300 turned ones to adapt to, and 300 more to be tested on."""

    source: Tensor
    labels: Tensor
    target: Tensor
    unseen: Tensor
    truth: Tensor


def turned_moons(seed: int, degrees: float = 30) -> Moons:
    from sklearn.datasets import make_moons

    points, labels = make_moons(1200, noise=0.08, random_state=seed)
    points, labels = torch.from_numpy(points - points.mean(axis=0)).float(), torch.from_numpy(labels)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = points[600:] @ torch.tensor([[cos, sin], [-sin, cos]])
    return Moons(points[:600], labels[:600], turned[:300], turned[300:], labels[900:])


def learn(method: Method, moons: Moons, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def batches(step: int) -> Batch:
        rows, others = (torch.randint(0, n, (64,), generator=generator) for n in (600, 300))
        return Batch(source=moons.source[rows], labels=moons.labels[rows], target=moons.target[others])

    made = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, batches, made, total_steps=steps, seed=seed)
    method.eval()


def accuracy(answer: Callable[[Tensor], Tensor], moons: Moons) -> float:
    """Share of the unseen turned points named right."""
    return (answer(moons.unseen).argmax(dim=1) == moons.truth).float().mean().item()
