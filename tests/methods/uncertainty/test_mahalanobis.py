import copy

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage

from wazuka.contract import Observation
from wazuka.errors import UserError
from wazuka.methods.uncertainty import mahalanobis
from wazuka.methods.uncertainty.mahalanobis import Mahalanobis, MahalanobisSettings, shrinkage, whitening


def known(n: int = 60, d: int = 8, seed: int = 0) -> Observation:
    """Three classes whose first three features say which; features are of unequal spread."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    features = torch.randn(n, d, generator=generator) * torch.linspace(0.5, 3, d)
    features[torch.arange(n), labels] += 9
    return Observation(torch.eye(3)[labels], features)


def batches(observation: Observation, size: int = 1000):
    parts = zip(observation.logits.split(size), observation.features.split(size), strict=True)
    observations = [Observation(logits, features) for logits, features in parts]
    return lambda: observations


def fitted(observation: Observation, size: int = 1000, **settings) -> Mahalanobis:
    return Mahalanobis(MahalanobisSettings(**settings)).fit(batches(observation, size))


def centered(observation: Observation) -> torch.Tensor:
    x, labels = observation.features.double(), observation.logits.argmax(dim=1)
    return x - torch.stack([x[labels == label].mean(dim=0) for label in range(3)])[labels]


@pytest.mark.parametrize(("n", "d"), [(60, 8), (12, 40), (6, 200)])
def test_covariance_is_ledoit_and_wolfs(n, d):
    x = centered(known(n, d))
    scatter, fourth = x.T @ x, x.square().sum(dim=1).square().sum()
    share = shrinkage(scatter, fourth, n)
    assert share == pytest.approx(ledoit_wolf_shrinkage(x.numpy(), assume_centered=True))
    whiten = whitening(x.split(7))
    precision = LedoitWolf(assume_centered=True).fit(x.numpy()).precision_
    np.testing.assert_allclose((whiten.T @ whiten).numpy(), precision, rtol=1e-4, atol=1e-6 * precision.max())
    assert torch.equal(whiten, whiten.tril())


def test_shrinkage_fades_and_never_leaves_its_range():
    shares = [float(shrinkage(x.T @ x, x.square().sum(dim=1).square().sum(), len(x)))
              for x in (centered(known(n)) for n in (6, 60, 600, 6000))]  # fmt: skip
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.01
    assert shrinkage(torch.eye(3) * 5, torch.tensor(99.0), 5) == 1  # nothing but the identity to be seen


def test_score_is_the_least_distance_to_a_class_mean():
    seen, new = known(), known(20, seed=1)
    x, labels = seen.features.double(), seen.logits.argmax(dim=1)
    precision = torch.tensor(LedoitWolf(assume_centered=True).fit(centered(seen).numpy()).precision_)
    to_means = [new.features.double() - x[labels == label].mean(dim=0) for label in range(3)]
    expected = torch.stack([((d @ precision) * d).sum(dim=1) for d in to_means]).amin(dim=0)
    torch.testing.assert_close(fitted(seen, normalize=False).score(new), expected.float(), rtol=1e-4, atol=1e-4)


def test_relative_takes_the_background_away():
    seen, new = known(), known(20, seed=1)
    x = seen.features.double()
    precision = torch.tensor(LedoitWolf(assume_centered=True).fit((x - x.mean(dim=0)).numpy()).precision_)
    d = new.features.double() - x.mean(dim=0)
    background = ((d @ precision) * d).sum(dim=1).float()
    plain, relative = (fitted(seen, normalize=False, relative=on).score(new) for on in (False, True))
    torch.testing.assert_close(relative, plain - background, rtol=1e-4, atol=1e-3)


def test_one_class_and_equal_spread_give_squared_distances():
    x = torch.cat([torch.eye(4), -torch.eye(4)])  # covariance I / 4, exactly
    detector = fitted(Observation(torch.zeros(8, 1), x), normalize=False)
    new = torch.randn(5, 4)
    torch.testing.assert_close(detector.score(Observation(torch.zeros(5, 1), new)), 4 * new.square().sum(dim=1))


def test_turning_the_features_changes_nothing_and_length_only_where_it_should():
    seen, new = known(), known(20, seed=1)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    longer = Observation(new.logits, new.features * 3)
    for normalize in (True, False):
        detector = fitted(seen, normalize=normalize)
        turned = fitted(Observation(seen.logits, seen.features @ turn), normalize=normalize)
        score = turned.score(Observation(new.logits, new.features @ turn))
        torch.testing.assert_close(score, detector.score(new), rtol=1e-3, atol=1e-3)
        assert torch.allclose(detector.score(longer), detector.score(new), rtol=1e-3) == normalize
    shifted = fitted(Observation(seen.logits, seen.features + 1e3), normalize=False)
    score = shifted.score(Observation(new.logits, new.features + 1e3))
    torch.testing.assert_close(score, fitted(seen, normalize=False).score(new), rtol=1e-2, atol=1e-2)


def test_classes_are_those_predicted_and_one_never_predicted_is_near_to_nothing():
    seen = known()
    wider = Observation(torch.cat([seen.logits, torch.full((60, 1), -9.0)], dim=1), seen.features)
    new = Observation(torch.zeros(5, 4), torch.zeros(5, 8))  # at the mean that a class without images would have
    assert fitted(wider, normalize=False).means.shape == (3, 8)
    torch.testing.assert_close(fitted(wider, normalize=False).score(new), fitted(seen, normalize=False).score(new))


@pytest.mark.parametrize("relative", [False, True])
def test_batches_blocks_and_a_second_fit_make_no_difference(relative, monkeypatch):
    seen, new = known(), known(20, seed=1)
    once = fitted(seen, relative=relative)
    again = fitted(known(30, 5, seed=3), relative=not relative)
    again.settings = once.settings
    again.fit(batches(seen, 7))
    monkeypatch.setattr(mahalanobis, "BLOCK", 6)
    torch.testing.assert_close(again.score(new), once.score(new), rtol=1e-4, atol=1e-4)


def test_fewer_images_than_features_and_features_that_never_vary():
    few = known(12, 300)
    few.features[:, 7] = 2.0
    for settings in ({}, {"relative": True}, {"normalize": False}):
        detector = fitted(few, **settings)
        assert detector.score(known(20, 300, seed=1)).isfinite().all()
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # which Ledoit and Wolf would not shrink at all
    two = fitted(Observation(torch.zeros(2, 1), opposite))
    along, aside = two.score(Observation(torch.zeros(2, 1), torch.eye(2)))
    assert aside > 1e5 * along > 0
    single = fitted(Observation(torch.eye(3), torch.randn(3, 5)))  # one image of each class: nothing varies within
    assert torch.equal(single.whiten, torch.eye(5).double())


def test_it_is_saved_whole_and_loaded_over_an_earlier_fit():
    detector, new = fitted(known(), relative=True), known(20, seed=1)
    other = fitted(known(30, 5), relative=False)
    other.load_state_dict(copy.deepcopy(detector.state_dict()))
    assert torch.equal(other.score(new), detector.score(new))
    with pytest.raises(RuntimeError, match="Missing key"):
        Mahalanobis().load_state_dict({})


def test_what_is_missing_is_said():
    with pytest.raises(UserError, match="takes two"):
        Mahalanobis().fit(lambda: [])
    with pytest.raises(UserError, match="takes two"):
        fitted(known(1))
    with pytest.raises(ValueError, match="not fitted"):
        Mahalanobis().score(known())
