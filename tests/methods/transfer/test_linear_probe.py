import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from wazuka.methods.transfer.linear_probe import (
    GRID,
    LinearProbe,
    LinearProbeSettings,
    dealt_folds,
    logistic_regression,
    reduced,
)


def some(count: int = 40, size: int = 60, seed: int = 0) -> Tensor:
    return torch.rand(count, size, generator=torch.Generator().manual_seed(seed)) * 3


def few(count: int, classes: int, each: int) -> Tensor:
    return torch.arange(count).remainder(classes).where(torch.arange(count) < classes * each, -1)


def classes_apart(count: int, size: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    truth = torch.arange(count) % 3
    return torch.eye(3).repeat(1, size // 3)[truth] + noise * some(count, size, seed), truth


@pytest.mark.parametrize("size", [8, 60])  # fewer and more features than labels
@pytest.mark.parametrize("scaling", ["length", "standardize"])
@pytest.mark.parametrize("regularization", [1e-2, 1.0, 1e2])
def test_it_is_scikit_learns_logistic_regression(size: int, scaling: str, regularization: float) -> None:
    features, labels = some(size=size), few(40, 3, 7)
    labels[20] = 2  # and classes that differ in number
    head = LinearProbe(3, LinearProbeSettings(regularization=regularization, scaling=scaling))
    probs = head.fit(features, labels)
    given, rows = labels.numpy() >= 0, features.double().numpy()
    if scaling == "length":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    else:
        rows = (rows - rows[given].mean(axis=0)) / rows[given].std(axis=0)
    model = LogisticRegression(C=1 / regularization, tol=1e-12, max_iter=100_000).fit(rows[given], labels[given])
    np.testing.assert_allclose(probs.numpy(), model.predict_proba(rows), atol=2e-4)
    scale = 1 if scaling == "length" else features[given].double().std(dim=0, correction=0)
    np.testing.assert_allclose((head.weight * scale).numpy(), model.coef_, atol=1e-3 * np.abs(model.coef_).max())
    assert float(head.regularization) == pytest.approx(regularization)


def test_the_gradient_rests_at_the_optimum_of_each_fold() -> None:
    inputs, labels = some(24, 6).double() - 1.5, torch.arange(24) % 4
    used = torch.stack([torch.ones(24), (torch.arange(24) % 3 != 0).float()], dim=1).double()
    weights = logistic_regression(inputs, labels, used, torch.zeros(7, 2, 4).double(), 0.5, 1e-9).requires_grad_()
    for fold in range(2):
        kept = used[:, fold] > 0
        logits = inputs[kept] @ weights[:-1, fold] + weights[-1, fold]
        loss = torch.nn.functional.cross_entropy(logits, labels[kept], reduction="sum")
        loss = loss + 0.25 * weights[:-1, fold].square().sum()
        assert torch.autograd.grad(loss, weights)[0].abs().max() < 1e-6
    alone = logistic_regression(inputs, labels, used[:, :1], some(7, 4)[:, None].double(), 0.5, 1e-9)[:, 0]
    alone[-1] -= alone[-1].mean()  # a bias that all classes share changes nothing, and stays where it started
    torch.testing.assert_close(alone, weights[:, 0].detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5), (6, 6)])
def test_the_reduction_keeps_all_products(shape: tuple[int, int]) -> None:
    inputs = some(*shape).double()
    inputs = inputs - inputs.mean(dim=0)
    coordinates, axes = reduced(inputs)
    assert coordinates.shape == (shape[0], min(shape))
    torch.testing.assert_close(coordinates, inputs @ axes)
    torch.testing.assert_close(coordinates @ axes.T, inputs)
    torch.testing.assert_close(axes.T @ axes, torch.eye(min(shape), dtype=torch.float64))
    gram = coordinates.T @ coordinates
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-8, rtol=0)


def test_unlabeled_images_teach_nothing() -> None:
    features, labels = some(), few(40, 3, 4)
    head, alone = LinearProbe(3), LinearProbe(3)
    head.fit(features, labels)
    alone.fit(features[labels >= 0], labels[labels >= 0])
    assert torch.equal(head.weight, alone.weight)
    assert torch.equal(head.bias, alone.bias)


def test_a_constant_feature_does_no_harm() -> None:
    features, labels = some(), few(40, 3, 4)
    standardize = LinearProbeSettings(scaling="standardize", regularization=1.0)
    plain = LinearProbe(3, standardize).fit(features, labels)
    with_constant = LinearProbe(3, standardize).fit(torch.cat([features, torch.full((40, 1), 7.1)], dim=1), labels)
    torch.testing.assert_close(with_constant, plain, atol=1e-4, rtol=0)


def test_features_that_tell_little_are_held_shorter() -> None:
    standardize = LinearProbeSettings(scaling="standardize")
    chosen = []
    for noise in (0.1, 3.0):
        features, truth = classes_apart(60, 30, noise)
        head = LinearProbe(3, standardize)
        head.fit(features, truth.where(torch.arange(60) < 30, -1))
        chosen.append(float(head.regularization))
    assert chosen[0] < chosen[1]
    assert chosen[0] > 2 * GRID[-1]  # weaker ones fit even better, but by too little to count


def test_the_choice_is_that_of_scikit_learn_on_the_same_folds() -> None:
    features, truth = classes_apart(21, 9, 1.5)
    head = LinearProbe(3, LinearProbeSettings(scaling="standardize", folds=3))
    head.fit(features, truth)
    rows = features.double().numpy()
    rows, names = (rows - rows.mean(axis=0)) / rows.std(axis=0), truth.numpy()
    fold = dealt_folds(reduced(torch.tensor(rows))[0], truth, 3).numpy()
    losses = {}
    for penalty in GRID:
        logs = 0.0
        for out in range(3):
            model = LogisticRegression(C=1 / penalty, max_iter=10_000, tol=1e-8)
            model.fit(rows[fold != out], names[fold != out])
            held = names[fold == out]
            logs -= model.predict_log_proba(rows[fold == out])[np.arange(len(held)), held].sum()
        losses[penalty] = logs / 21
    best = max(penalty for penalty in GRID if losses[penalty] <= min(losses.values()) + 0.01)
    assert float(head.regularization) == pytest.approx(best)
    assert best not in (GRID[0], GRID[-1])


def test_folds_are_stratified_and_do_not_know_the_order() -> None:
    inputs, labels = some(23, 7), torch.tensor([0] * 10 + [1] * 7 + [2] * 4 + [3] * 1 + [4] * 1)
    fold = dealt_folds(inputs, labels, 5)
    assert fold[21:].tolist() == [-1, -1]
    for label, count in ((0, 10), (1, 7), (2, 4)):
        sizes = fold[labels == label].bincount(minlength=5)
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    assert torch.equal(dealt_folds(inputs[order], labels[order], 5), fold[order])
    renamed = torch.tensor([3, 1, 4, 0, 2])[labels]
    assert torch.equal(dealt_folds(inputs, renamed, 5), fold)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1, 2]])
def test_where_nothing_can_be_held_out_the_fallback_is_taken(labels: list[int]) -> None:
    head = LinearProbe(3, LinearProbeSettings(fallback=3.0))
    head.fit(some(len(labels)), torch.tensor(labels))
    assert float(head.regularization) == 3.0
    given = LinearProbe(3, LinearProbeSettings(regularization=3.0)).fit(some(len(labels)), torch.tensor(labels))
    assert torch.equal(given, head.predict(some(len(labels))))


@pytest.mark.parametrize("bad", [{"regularization": 0.0}, {"scaling": "none"}, {"folds": 1}, {"fallback": 0.0}])
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        LinearProbeSettings(**bad)
