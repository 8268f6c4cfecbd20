import pytest
import torch
import torch.nn.functional as F
from sklearn.semi_supervised import LabelSpreading
from torch import Tensor

from wazuka.functional.graphs import conjugate_gradients, normalized, spread, symmetric_graph
from wazuka.functional.neighbors import nearest
from wazuka.methods.transfer.label_propagation import LabelPropagation, LabelPropagationSettings

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0] + [-1] * 33)
EYE = torch.eye(40, dtype=torch.float64)


def some(count: int = 40, size: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_affinity(features: Tensor, count: int, power: float = 3.0) -> Tensor:
    points = F.normalize(features, dim=1)
    cosines = (points @ points.T).fill_diagonal_(-9)
    near = cosines.argsort(dim=1, descending=True)[:, :count]
    one_sided = torch.zeros_like(cosines).scatter(1, near, 1.0) * cosines.clamp_min(0) ** power
    return one_sided + one_sided.T


def test_the_graph_is_the_dense_one() -> None:
    features = some()
    points = F.normalize(features, dim=1)
    cosines, neighbors = nearest(points, points, 4, same=True)
    graph = symmetric_graph(neighbors, cosines.clamp_min(0) ** 3)
    affinity = dense_affinity(features, 4)
    torch.testing.assert_close(graph.times(EYE), affinity)
    found, scale = normalized(graph)
    roots = affinity.sum(dim=1).rsqrt()
    torch.testing.assert_close(scale[:, 0], roots)
    torch.testing.assert_close(found.times(EYE), roots[:, None] * affinity * roots)


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_it_is_scikit_learns_label_spreading(alpha: float) -> None:
    features = some()
    head = LabelPropagation(3, LabelPropagationSettings(neighbors=4, alpha=alpha, walk=False, tolerance=1e-12))
    probs = head.fit(features, LABELS)
    affinity = dense_affinity(features, 4).numpy()
    theirs = LabelSpreading(kernel=lambda a, b: affinity, alpha=alpha, max_iter=100_000, tol=1e-12)
    theirs.fit(features.numpy(), LABELS.numpy())
    torch.testing.assert_close(probs.double(), torch.tensor(theirs.label_distributions_), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("walk", [True, False])
def test_the_answer_is_the_fixed_point(walk: bool) -> None:
    features = some()
    head = LabelPropagation(3, LabelPropagationSettings(walk=walk, tolerance=1e-12))
    probs = head.fit(features, LABELS)
    affinity = dense_affinity(features, 10)
    degrees = affinity.sum(dim=1)
    spread = affinity / degrees if walk else degrees[:, None].rsqrt() * affinity * degrees.rsqrt()
    given = torch.zeros(40, 3, dtype=torch.float64)
    given[:7] = F.one_hot(LABELS[:7], 3).double()
    solved = 0.01 * torch.linalg.solve(EYE - 0.99 * spread, given)
    torch.testing.assert_close(solved, 0.99 * spread @ solved + 0.01 * given)
    torch.testing.assert_close(probs.double(), solved / solved.sum(dim=1, keepdim=True), atol=1e-6, rtol=1e-5)
    if walk:
        torch.testing.assert_close(solved.sum(dim=0), given.sum(dim=0))  # each label's mass stays what it was
    votes = head.votes  # an unlabeled image is what its neighbors' votes make of it: F = alpha S F there
    again = affinity[7:] @ votes
    torch.testing.assert_close(probs[7:].double(), again / again.sum(dim=1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_new_images_get_the_weighted_vote_of_their_nearest() -> None:
    features, new = some(), some(8, seed=1)
    head = LabelPropagation(3, LabelPropagationSettings(neighbors=4))
    head.fit(features, LABELS)
    cosines = F.normalize(new, dim=1) @ F.normalize(features, dim=1).T
    near = cosines.argsort(dim=1, descending=True)[:, :4]
    weights = torch.zeros_like(cosines).scatter(1, near, 1.0) * cosines.clamp_min(0) ** 3
    votes = weights @ head.votes
    expected = votes / votes.sum(dim=1, keepdim=True)
    torch.testing.assert_close(head.predict(new).double(), expected, atol=1e-6, rtol=1e-5)


def test_with_alpha_zero_a_label_stays_where_it_is() -> None:
    probs = LabelPropagation(3, LabelPropagationSettings(alpha=0.0)).fit(some(), LABELS)
    assert torch.equal(probs[:7], F.one_hot(LABELS[:7], 3).float())
    torch.testing.assert_close(probs[7:], torch.full((33, 3), 1 / 3))


def test_what_no_label_reaches_is_named_nothing() -> None:
    angle = torch.tensor([0.0, 0.1, 0.2, 1.5, 1.6, 1.7, 3.0, 3.1, 3.2])
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.tensor([0, -1, -1, 1, -1, -1, -1, -1, -1])
    head = LabelPropagation(2, LabelPropagationSettings(neighbors=2))
    probs = head.fit(features, labels)
    assert probs.argmax(dim=1)[:6].tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(probs[:6].max(dim=1).values, torch.ones(6))  # islands: nothing comes across
    torch.testing.assert_close(probs[6:], torch.full((3, 2), 0.5))
    torch.testing.assert_close(head.predict(features[7:8]), torch.tensor([[0.5, 0.5]]))
    alone = LabelPropagation(2).fit(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1]))
    assert torch.equal(alone, torch.eye(2))  # nothing joins them, and each keeps its label


def test_labels_follow_the_shape_of_the_data() -> None:
    angle = torch.linspace(0, 3.1, 60)
    moons = torch.cat(
        [torch.stack([angle.cos(), angle.sin()], 1), torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)]
    )
    lifted = F.normalize(torch.cat([moons - moons.mean(dim=0), torch.full((120, 1), 3.0)], dim=1), dim=1)
    labels = torch.full((120,), -1)
    labels[5], labels[70] = 0, 1  # nearest labels would mistake a third
    probs = LabelPropagation(2, LabelPropagationSettings(neighbors=3)).fit(lifted, labels)
    assert torch.equal(probs.argmax(dim=1), torch.tensor([0] * 60 + [1] * 60))


def test_conjugate_gradients_solve_all_columns() -> None:
    matrix = some(30, 30) @ some(30, 30).T + EYE[:30, :30]
    right = some(30, 4, seed=1) * torch.tensor([1.0, 1e-6, 1e4, 0.0])
    found = conjugate_gradients(lambda values: matrix @ values, right, 1e-12)
    torch.testing.assert_close(matrix @ found, right, atol=1e-9, rtol=1e-6)
    products = []
    conjugate_gradients(lambda values: products.append(1) or values, right, 1e-6)
    assert len(products) == 1  # the identity takes one step
    sizes = torch.logspace(0, 4, 8, dtype=torch.float64)[:, None]  # eight eigenvalues: done in eight steps
    found = conjugate_gradients(lambda values: products.append(1) or sizes * values, torch.ones_like(sizes), 1e-8)
    torch.testing.assert_close(found, 1 / sizes)
    assert len(products) < 1 + 16
    rough = conjugate_gradients(lambda values: matrix @ values, right[:, :2], 1e-2)
    miss = (matrix @ rough - right[:, :2]).norm(dim=0) / right[:, :2].norm(dim=0)
    assert (miss < 1.1e-2).all()
    assert (miss > 1e-6).any()


@pytest.mark.parametrize("bad", [{"neighbors": 0}, {"power": 0.0}, {"alpha": 1.0}, {"tolerance": 0.0}])
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        LabelPropagationSettings(**bad)


def test_spreading_is_the_closed_form() -> None:
    features, alpha = some(), 0.9
    points = F.normalize(features, dim=1)
    cosines, neighbors = nearest(points, points, 5, same=True)
    graph, _ = normalized(symmetric_graph(neighbors, cosines.clamp_min(0) ** 3))
    dense = graph.times(EYE)
    given = F.one_hot(LABELS.clamp_min(0), 3).double() * (LABELS >= 0)[:, None]
    expected = (1 - alpha) * torch.linalg.solve(EYE - alpha * dense, given)
    torch.testing.assert_close(spread(graph, given, alpha, tolerance=1e-10), expected, atol=1e-8, rtol=1e-6)
