from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.functional.neighbors import nearest
from wazuka.methods.transfer.laplacian_shot import (
    LaplacianShot,
    LaplacianShotSettings,
    agreement,
    bound_updates,
    rectified,
)
from wazuka.methods.transfer.simpleshot import SimpleShot

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0] + [-1] * 33)


def some(count: int = 40, size: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(features: Tensor, center: Tensor) -> Tensor:
    return F.normalize(features - center, dim=1)


def energy(probs: Tensor, unary: Tensor, affinity: Tensor, weight: float) -> Tensor:
    return (probs * probs.log() + unary * probs - weight * (affinity @ probs) * probs).sum()


def test_without_neighbors_say_it_is_simpleshot() -> None:
    features, new = some(), some(9, seed=1)
    for settings in (
        LaplacianShotSettings(rectify=False, neighbor_weight=0.0),
        LaplacianShotSettings(rectify=False, neighbor_weight=1e-9),
    ):
        head, plain = LaplacianShot(3, settings), SimpleShot(3)
        named = plain.fit(features, LABELS).argmax(dim=1)
        assert torch.equal(head.fit(features, LABELS).argmax(dim=1), named)
        assert torch.equal(head.predict(new).argmax(dim=1), plain.predict(new).argmax(dim=1))
        torch.testing.assert_close(head.predict(new), (plain.predict(new).log() * 0.1).softmax(dim=1))


def test_updates_are_the_papers_on_a_dense_one_sided_graph() -> None:
    points, prototypes = unit(some(), some().mean(dim=0)), some(3, seed=1)
    unary = torch.cdist(points, prototypes) ** 2
    neighbors = nearest(points, points, 2, same=True)[1]
    affinity = torch.zeros(40, 40, dtype=torch.float64).scatter(1, neighbors, 1.0)
    assert (affinity.sum(dim=1) == 2).all()
    assert not torch.equal(affinity, affinity.T)
    torch.testing.assert_close(agreement(some(40, 3), neighbors), affinity @ some(40, 3))
    probs = (-unary).softmax(dim=1)
    for _ in range(3):  # three updates are made before the first look at the energy
        probs = (-unary + 0.7 * affinity @ probs).softmax(dim=1)
    torch.testing.assert_close(bound_updates(unary, neighbors, 0.7, 3), probs)
    for _ in range(200):
        probs = (-unary + 0.7 * affinity @ probs).softmax(dim=1)
    torch.testing.assert_close(bound_updates(unary, neighbors, 0.7, 200), probs, atol=1e-3, rtol=0)


def test_the_energy_falls_on_a_symmetric_graph() -> None:
    # pairs that name each other, and themselves: W is symmetric and has no negative eigenvalue
    neighbors = torch.tensor([[row, row ^ 1] for row in range(40)])
    affinity = torch.zeros(40, 40, dtype=torch.float64).scatter(1, neighbors, 1.0)
    unary = 3 * some(40, 3)
    found = [energy(bound_updates(unary, neighbors, 1.5, n), unary, affinity, 1.5) for n in range(1, 12)]
    assert all(after <= before + 1e-12 for before, after in pairwise(found))
    assert found[-1] < found[0] - 0.1


def test_it_stops_when_the_energy_rests() -> None:
    calls = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(function.__name__)
            return super().__torch_function__(function, types, args, kwargs or {})

    neighbors = nearest(some(), some(), 2, same=True)[1]
    bound_updates((9 * some(40, 3)).as_subclass(Watched), neighbors, 0.1, 1000)
    assert 3 <= calls.count("softmax") - 1 < 15


def test_rectified_prototypes_by_hand() -> None:
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    items = torch.tensor([[2.0, 0.0], [3.0, 1.0], [0.0, 1.0]])
    cosines = F.cosine_similarity(items[:, None], prototypes, dim=2)
    weights = (10 * cosines).softmax(dim=1)
    expected = torch.stack(
        [(weights[0, 0] * items[0] + weights[1, 0] * items[1]) / 2, weights[2, 1] * items[2], prototypes[2]]
    )
    torch.testing.assert_close(rectified(prototypes, items, 10.0), expected)


@pytest.mark.parametrize("rectify", [True, False])
def test_fit_from_the_definitions(rectify: bool) -> None:
    features = some()
    head = LaplacianShot(3, LaplacianShotSettings(rectify=rectify, update_limit=3))
    probs = head.fit(features, LABELS)
    center = features.mean(dim=0)
    support, queries = unit(features[:7], center), unit(features[7:], center)
    prototypes = torch.stack([support[LABELS[:7] == label].mean(dim=0) for label in range(3)])
    if rectify:
        queries = queries + support.mean(dim=0) - queries.mean(dim=0)
        prototypes = rectified(prototypes, torch.cat([support, queries]), 10.0)
    unary = torch.cdist(queries, prototypes) ** 2
    order = torch.cdist(queries, queries).argsort(dim=1)
    affinity = torch.zeros(33, 33, dtype=torch.float64).scatter(1, order[:, 1:3], 1.0)
    answers = (-unary).softmax(dim=1)
    for _ in range(3):
        answers = (-unary + 0.7 * affinity @ answers).softmax(dim=1)
    torch.testing.assert_close(probs[7:].double(), answers, atol=1e-6, rtol=1e-5)

    new = some(6, seed=1)  # one update against the nearest queries' answers
    points = unit(new, center)
    near = torch.cdist(points, unit(features[7:], center)).argsort(dim=1)[:, :2]
    shifted = points + (support.mean(dim=0) - unit(features[7:], center).mean(dim=0) if rectify else 0)
    logits = 0.7 * answers[near].sum(dim=1) - torch.cdist(shifted, prototypes) ** 2
    torch.testing.assert_close(head.predict(new).double(), logits.softmax(dim=1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(probs[:7], head.predict(features[:7]))


def test_copies_are_neighbors_of_each_other() -> None:
    features = torch.cat([some(), some()[7:]])
    labels = torch.cat([LABELS, LABELS[7:]])
    head = LaplacianShot(3, LaplacianShotSettings(neighbors=1, rectify=False))
    probs = head.fit(features, labels)
    torch.testing.assert_close(probs[7:40], probs[40:])
    unary = torch.cdist(head.bank, head.prototypes) ** 2
    rested = probs[7:].double()
    torch.testing.assert_close(rested, (0.7 * rested - unary).softmax(dim=1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("bad", [{"neighbors": 0}, {"neighbor_weight": -0.1}, {"update_limit": 0}, {"sharpness": -1.0}])
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        LaplacianShotSettings(**bad)
