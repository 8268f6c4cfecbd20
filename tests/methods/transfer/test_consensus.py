"""Consensus: what its parts must do, on small made-up features. The contract tests ask of it what they ask of all."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from wazuka.functional.linear import fit_linear, logistic, stacked, with_shares
from wazuka.methods.transfer import consensus as module
from wazuka.methods.transfer.consensus import (
    Consensus,
    ConsensusSettings,
    discriminant,
    first_mix,
    interpolated,
    mixed,
    pool_of,
    roots,
    turns,
    weights_for,
    whitening,
)

CLASSES = 3


def clusters(each=40, classes=CLASSES, size=20, apart=6.0, seed=0, counts=None):
    """Positive features in clusters, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(torch.tensor(counts or [each] * classes))
    centers = apart * torch.rand(classes, size, generator=generator)
    features = (centers[labels] + torch.randn(len(labels), size, generator=generator)).abs()
    order = torch.randperm(len(labels), generator=generator)
    return features[order], labels[order]


def few(labels, each):
    kept = torch.full_like(labels, -1)
    for label in labels.unique():
        kept[(labels == label).nonzero().flatten()[:each]] = label
    return kept


def accuracy(probs, truth, labels):
    return float((probs.argmax(dim=1) == truth)[labels < 0].float().mean())


@pytest.mark.parametrize("each", [1, 2, 5])
def test_clusters_are_found_from_a_label_each(each):
    features, truth = clusters()
    labels = few(truth, each)
    head = Consensus(CLASSES)
    assert accuracy(head.fit(features, labels), truth, labels) > 0.97
    fresh, answers = clusters(seed=0)
    assert float((head.predict(fresh).argmax(dim=1) == answers).float().mean()) > 0.97


def test_the_pool_helps_where_its_clusters_are_the_classes():
    features, truth = clusters(apart=3.5, each=100)
    labels = few(truth, 1)
    alone = logistic(roots(features), labels, CLASSES, penalty=1e-3)
    assert accuracy(Consensus(CLASSES).fit(features, labels), truth, labels) > accuracy(alone, truth, labels) + 0.05


def test_labels_against_the_clusters_are_heard():
    """Classes that cut across the clusters: cross-validation must see that the pool misleads."""
    features, _ = clusters(each=120, classes=2, apart=8)
    truth = (features[:, 0] > features[:, 0].median()).long()
    features[:, 0] *= 3
    labels = few(truth, 16)
    head = Consensus(2)
    head.fit(features, labels)
    weights = head.stacking
    assert weights[0] > weights[1], "logistic regression counts more than spreading"


def test_an_extra_view_counts_only_where_it_tells_something():
    features, truth = clusters(apart=0.0, each=60)       # tells nothing
    telling = truth[:, None].float() * 5 + torch.randn(len(truth), 2, generator=torch.Generator().manual_seed(1)) / 3
    labels = few(truth, 6)
    head = Consensus(CLASSES, extra=2)
    assert accuracy(head.fit(torch.cat([features, telling], dim=1), labels), truth, labels) > 0.9
    assert len(head.stacking) == 5
    good, truth = clusters(each=60)
    labels, noise = few(truth, 6), torch.randn(len(good), 2, generator=torch.Generator().manual_seed(2))
    probs = Consensus(CLASSES, extra=2).fit(torch.cat([good, noise], dim=1), labels)
    assert accuracy(probs, truth, labels) > 0.97


def test_shares_of_the_pool_are_found():
    features, truth = clusters(counts=[200, 20, 20], apart=4)
    labels = few(truth, 5)
    head = Consensus(CLASSES)
    assert accuracy(head.fit(features, labels), truth, labels) > 0.95
    assert float(head.pool_shares[0]) > 0.5
    assert float(head.pool_shares.sum()) == pytest.approx(1, abs=1e-5)


def test_more_photos_than_the_pool_are_named_all():
    features, truth = clusters(each=100)
    labels = few(truth, 3)
    head = Consensus(CLASSES, ConsensusSettings(pool=60))
    assert accuracy(head.fit(features, labels), truth, labels) > 0.97
    chosen = pool_of(labels, 60)
    assert len(chosen) == 60
    assert set((labels >= 0).nonzero().flatten().tolist()) <= set(chosen.tolist())
    assert torch.equal(pool_of(labels, 300), torch.arange(300))


def test_labels_of_one_class_alone_may_be_single():
    features, truth = clusters()
    labels = few(truth, 4)
    single = (truth == 0) & (labels >= 0)
    labels[single.nonzero().flatten()[1:]] = -1
    assert accuracy(Consensus(CLASSES).fit(features, labels), truth, labels) > 0.97


def test_what_is_kept_names_alike_alone_and_in_company():
    features, truth = clusters()
    head = Consensus(CLASSES)
    probs = head.fit(features, few(truth, 2))
    torch.testing.assert_close(head.predict(features[7:8]), probs[7:8])


# The parts


def test_roots_have_length_one_and_keep_signs():
    values = torch.tensor([[4.0, 0.0, -9.0]])
    made = roots(values)
    torch.testing.assert_close(made, F.normalize(torch.tensor([[2.0, 0.0, -3.0]]), dim=1), atol=1e-3, rtol=0)
    assert float(made.norm()) == pytest.approx(1)


def test_whitening_goes_half_the_way():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 3, generator=generator) * torch.tensor([4.0, 2.0, 1.0])
    made = (values - values.mean(dim=0)) @ whitening(values - values.mean(dim=0), 3)
    torch.testing.assert_close(made.std(dim=0), torch.tensor([2.0, 2**0.5, 1.0]), atol=0.05, rtol=0)
    assert float((made.T @ made / len(made) - torch.diag(made.var(dim=0))).abs().max()) < 0.02


def test_logistic_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    features, truth = clusters(size=50, apart=1.0)
    labels = few(truth, 4)
    known = labels >= 0
    made = logistic(features.double(), labels, CLASSES, penalty=0.05)
    # the mean over n labels plus penalty |W|^2 is C = 1 / (2 n penalty) there
    theirs = LogisticRegression(C=1 / (2 * int(known.sum()) * 0.05), tol=1e-10, max_iter=5000)
    theirs.fit(features[known].double().numpy(), labels[known].numpy())
    expected = torch.from_numpy(theirs.predict_proba(features.double().numpy()))
    torch.testing.assert_close(made.double(), expected, atol=2e-3, rtol=0)


def test_each_class_weighs_the_same():
    """Doubling the labels of one class changes nothing."""
    features, truth = clusters(size=6, apart=1.0, each=10)
    labels = few(truth, 3)
    again = (labels == 1).nonzero().flatten()
    both = torch.cat([features, features[again]]), torch.cat([labels, labels[again]])
    once, twice = (logistic(f, y, CLASSES, penalty=0.01) for f, y in ((features, labels), both))
    torch.testing.assert_close(twice[: len(once)], once, atol=1e-3, rtol=0)


def test_soft_labels_are_learned_as_hard_ones_are():
    features, truth = clusters(size=5)
    weight, bias = fit_linear(features, F.one_hot(truth).float(), penalty=1e-2, steps=200)
    inputs = (features @ weight + bias).log_softmax(dim=1)
    weight = weight.requires_grad_()
    loss = F.cross_entropy(features @ weight + bias, truth) + 1e-2 * weight.square().sum()
    assert float(torch.autograd.grad(loss, weight)[0].abs().max()) < 1e-3, "the gradient is zero at the minimum"
    assert inputs.shape == (len(truth), CLASSES)


def test_stacking_follows_the_labels_as_far_as_the_hold_lets_it():
    truth = torch.arange(60) % CLASSES
    right = F.one_hot(truth, CLASSES).float() * 2
    answers = torch.stack([right.log_softmax(dim=1), right.roll(1, dims=1).log_softmax(dim=1)])  # one right, one wrong
    start = torch.tensor([0.5, 0.5])
    free, held = stacked(answers, truth, start, hold=0.1), stacked(answers, truth, start, hold=1e6)
    assert free[0] > 0.6
    assert free[1] < 0.4
    torch.testing.assert_close(held, start, atol=1e-3, rtol=0)


def test_estimated_shares_are_saerens():
    """Perfect answers: the shares are the counts; held without limit: the center; and the update is Bayes' rule."""
    truth = torch.tensor([0] * 30 + [1] * 10)
    sure = F.one_hot(truth, 2).float().clamp(1e-6, 1)
    center, everyone = torch.tensor([0.5, 0.5]), torch.ones(40, dtype=torch.bool)
    _, found = with_shares(sure, everyone, center, strength=0.0)
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25]), atol=1e-3, rtol=0)
    _, held = with_shares(sure, everyone, center, strength=1e9)
    torch.testing.assert_close(held, center, atol=1e-3, rtol=0)
    unsure = torch.tensor([[0.5, 0.5]] * 3 + [[0.9, 0.1]] * 40)
    moved, found = with_shares(unsure, torch.ones(43, dtype=torch.bool), center, strength=0.0)
    torch.testing.assert_close(moved[0], found, atol=1e-5, rtol=0)
    same, kept = with_shares(sure, torch.zeros(40, dtype=torch.bool), center, strength=0.0)
    assert torch.equal(same, sure)
    assert torch.equal(kept, center)


def test_the_mixture_holds_labels_and_is_held_to_its_start():
    features, truth = clusters()
    labels = few(truth, 2)
    known = labels >= 0
    given = F.one_hot(labels.clamp_min(0), CLASSES).float() * known[:, None]
    start = torch.full((len(truth), CLASSES), 1 / CLASSES)
    found = discriminant(features, torch.where(known[:, None], given, start), given, known, hold=0.0)
    assert accuracy(found, truth, labels) > 0.97
    torch.testing.assert_close(discriminant(features, start, given, known, hold=1.0), start, atol=1e-5, rtol=0)


def test_a_mix_of_one_is_itself():
    probs = torch.tensor([[0.7, 0.2, 0.1]])
    torch.testing.assert_close(mixed(probs, probs.flip(1), (1.0, 0.0)), probs)
    torch.testing.assert_close(mixed(probs, probs, (0.5, 0.5)), probs)


def test_labels_take_turns_whatever_their_order():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    order = torch.tensor([3.0, 1.0, 2.0, 0.0, 5.0, 4.0])
    assert turns(labels, order, 2).tolist() == [1, 1, 0, 0, 1, 0]
    shuffled = torch.tensor([5, 2, 0, 4, 1, 3])
    assert turns(labels[shuffled], order[shuffled], 2).tolist() == turns(labels, order, 2)[shuffled].tolist()


def test_weights_between_the_entries():
    assert interpolated(1, module.WEIGHTS) == module.WEIGHTS[0][1]
    assert interpolated(4, module.WEIGHTS) == pytest.approx(module.WEIGHTS[1][1])
    assert interpolated(500, module.WEIGHTS) == module.WEIGHTS[-1][1]
    half = interpolated(2, module.WEIGHTS)
    assert half == pytest.approx([(a + b) / 2 for a, b in zip(*(row for _, row in module.WEIGHTS[:2]), strict=True)])
    assert first_mix(1) == (0.15, 0.85)
    assert weights_for(4, 5)[4] == 0
    assert len(weights_for(4, 4)) == 4


@pytest.mark.parametrize("wrong", [{"pool": 0}, {"folds": 1}, {"alpha": 1.0}, {"hold": -1.0}, {"kept": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match="must"):
        dataclasses.replace(ConsensusSettings(), **wrong)


def test_with_all_labels_the_mixture_is_linear_discriminant_analysis():
    """Labels hold in every round, however much the densities disagree: a third of them is wrong here."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, truth = clusters(each=30, size=6, apart=2.0)
    labels = torch.where(torch.arange(len(truth)) % 3 == 0, truth.roll(1), truth)
    labels = torch.cat([(labels == label).nonzero().flatten()[:20] for label in range(CLASSES)])  # as many of each
    features, labels = features[labels].double(), torch.arange(CLASSES).repeat_interleave(20)
    given = F.one_hot(labels, CLASSES).double()
    everyone, start = torch.ones(len(labels), dtype=torch.bool), torch.full((len(labels), CLASSES), 1 / CLASSES)
    found = discriminant(features, start.double(), given, everyone, hold=0.0, shrink=0.3)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(features.numpy(), labels.numpy())
    torch.testing.assert_close(found, torch.from_numpy(theirs.predict_proba(features.numpy())), atol=2e-3, rtol=0)
