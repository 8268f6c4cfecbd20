"""What unlabeled points are for: two moons, four labeled points of each, and what VAT makes of the rest."""

import statistics

import pytest
import torch
from sklearn.datasets import make_moons
from torch import Tensor

from tests.methods.adapt.moons import Plane
from wazuka.contract import Batch, Method, Optimizer
from wazuka.methods.semi.vat import VAT, VATSettings
from wazuka.methods.supervised.supervised import Supervised, SupervisedSettings
from wazuka.training import Stepper, train

ADAM = Optimizer(algorithm="adam", lr=0.01)


def labeled_rows(labels: Tensor, each: int, seed: int) -> Tensor:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == label][:each] for label in (0, 1)])


def accuracies(seed: int, steps: int) -> tuple[float, float]:
    """(supervised learning's, VAT's) share of 500 unseen points named right, from one start and the same labels."""
    points, labels = make_moons(1000, noise=0.1, random_state=seed)
    points, labels = torch.from_numpy(points - points.mean(axis=0)).float(), torch.from_numpy(labels)
    rows = labeled_rows(labels[:500], each=4, seed=seed)

    def accuracy(method: Method) -> float:
        generator = torch.Generator().manual_seed(seed)

        def batches(step: int) -> Batch:
            seen = torch.randint(0, 500, (64,), generator=generator)
            return Batch(images=points[rows], labels=labels[rows], weak=points[seen])

        steppers = {player: Stepper(player, how) for player, how in method.players().items()}
        train(method, batches, steppers, total_steps=steps, seed=seed)
        answers = method.eval().predict(points[500:]).argmax(dim=1)
        return (answers == labels[500:]).float().mean().item()

    def net() -> Plane:
        torch.manual_seed(seed)
        return Plane()

    supervised = Supervised(net(), SupervisedSettings(averaging=0.9, optimizer=ADAM))
    # the moons lie half a unit apart: a change of 0.3 crosses no gap
    settings = VATSettings(epsilon=0.3, vat_weight=1.0, entropy_weight=0.1, averaging=0.9, optimizer=ADAM)
    return accuracy(supervised), accuracy(VAT(net(), settings))


def test_vat_learns_from_unlabeled_points_what_eight_labels_do_not_tell() -> None:
    supervised, vat = accuracies(seed=100, steps=150)
    assert vat > 0.93
    assert vat > supervised + 0.05


@pytest.mark.slow
def test_vat_gains_for_whichever_eight_points_are_labeled() -> None:
    supervised, vat = zip(*(accuracies(seed, steps=400) for seed in range(100, 110)), strict=True)
    assert statistics.median(vat) > 0.98
    assert statistics.mean(vat) > statistics.mean(supervised) + 0.08
    assert sum(ours > floor for floor, ours in zip(supervised, vat, strict=True)) >= 8  # some draws of labels mislead
