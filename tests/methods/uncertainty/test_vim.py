import copy

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor, nn

from wazuka.contract import Observation
from wazuka.errors import UserError
from wazuka.methods.uncertainty.energy import Energy
from wazuka.methods.uncertainty.vim import ViM, ViMSettings, authors_dimensions

D, C = 12, 4


def head(bias: bool = True, size: int = D, constant: float = 0.0) -> nn.Linear:
    torch.manual_seed(3)
    layer = nn.Linear(size, C, bias=bias)
    if bias:
        nn.init.constant_(layer.bias, 2.0 + constant)
    return layer


def features(n: int = 80, seed: int = 0, size: int = D) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) * torch.linspace(3, 0.2, size) + 1


def seen(features: Tensor, layer: nn.Module) -> Observation:
    with torch.no_grad():
        return Observation(layer(features.float()), features, head=layer)


def fitted(known: Tensor, layer: nn.Module, batch: int = 1000, **settings) -> ViM:
    return ViM(ViMSettings(**settings)).fit(lambda: [seen(part, layer) for part in known.split(batch)])


def authors(known: Tensor, new: Tensor, layer: nn.Linear, dimensions: int) -> np.ndarray:
    """benchmark.py, with eigh for eig and the sign turned."""
    w, b = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    known, new = known.double().numpy(), new.double().numpy()
    u = -np.linalg.pinv(w) @ b
    values, vectors = np.linalg.eigh(EmpiricalCovariance(assume_centered=True).fit(known - u).covariance_)
    rest = vectors.T[np.argsort(values * -1)[dimensions:]].T
    alpha = (known @ w.T + b).max(axis=-1).mean() / np.linalg.norm((known - u) @ rest, axis=-1).mean()
    return np.linalg.norm((new - u) @ rest, axis=-1) * alpha - logsumexp(new @ w.T + b, axis=-1)


@pytest.mark.parametrize("dimensions", [0, 1, D // 2, D - 1])
def test_score_is_the_authors(dimensions):
    known, new, layer = features(), features(20, 1), head()
    score = fitted(known, layer, batch=9, dimensions=dimensions).score(seen(new, layer))
    np.testing.assert_allclose(score.numpy(), authors(known, new, layer, dimensions), rtol=1e-4, atol=1e-4)
    by_rule = fitted(known, layer).score(seen(new, layer))
    np.testing.assert_allclose(by_rule.numpy(), authors(known, new, layer, D // 2), rtol=1e-4, atol=1e-4)


def test_with_all_dimensions_it_is_the_energy():
    known, new = features(), seen(features(20, 1), head())
    torch.testing.assert_close(fitted(known, head(), dimensions=D).score(new), Energy().score(new))
    torch.testing.assert_close(fitted(known, head(), dimensions=D + 5).score(new), Energy().score(new))


def test_the_scale_matches_the_mean_virtual_to_the_mean_largest_logit():
    known, layer = features(), head()
    detector, observation = fitted(known, layer, batch=11), seen(known, layer)
    virtual = detector.score(observation) + observation.logits.logsumexp(dim=1)
    torch.testing.assert_close(virtual.mean(), observation.logits.amax(dim=1).mean(), rtol=1e-5, atol=1e-5)


def test_the_origin_is_where_the_logits_are_nothing():
    layer = head()
    detector = fitted(features(), layer)
    assert layer(detector.origin).abs().max() < 1e-5
    torch.testing.assert_close(detector.residual.T @ detector.residual, torch.eye(D - D // 2), atol=1e-5, rtol=0)
    assert fitted(features(), head(bias=False)).origin.abs().max() == 0


def test_high_means_odd():
    known, layer = features(), head()
    known[:, -4:] = 0
    aside = known.clone()
    aside[:, -4:] += 5  # where no known image is
    layer.weight.data[:, -4:] = 0  # and the logits don't see it
    detector = fitted(known, layer)
    assert torch.equal(seen(aside, layer).logits, seen(known, layer).logits)
    assert (detector.score(seen(aside, layer)) > detector.score(seen(known, layer)) + 1).all()
    lower = Observation(seen(known, layer).logits - 3, known)
    torch.testing.assert_close(detector.score(lower), detector.score(seen(known, layer)) + 3)


def test_the_authors_dimensions():
    assert [authors_dimensions(d) for d in (64, 512, 767, 768, 1280, 2047, 2048, 4096)] == [
        32, 256, 383, 512, 512, 512, 1000, 1000
    ]  # fmt: skip


@pytest.mark.parametrize(("n", "kept"), [(1, 0), (2, 1), (9, 6), (15, 10), (30, 20), (60, 32)])
def test_with_few_images_something_is_left_to_measure_by(n, kept):
    layer = head(size=64)
    detector = fitted(features(n, size=64), layer)
    assert detector.residual.shape == (64, 64 - kept)
    assert 0 < detector.scale < 100
    known, new = (detector.score(seen(features(n, seed, size=64), layer)) for seed in (0, 1))
    assert new.isfinite().all()
    assert known.isfinite().all()


def test_features_that_never_vary_take_no_place_in_the_principal_space():
    known, layer = features(), head(bias=False)
    known[:, 3:] = 0
    assert fitted(known, layer).residual.shape == (D, D - 2)
    assert fitted(known, layer).scale < 1e3
    with pytest.raises(UserError, match="vary in 3"):
        fitted(known, layer, dimensions=3)


def test_a_constant_in_all_logits_does_not_turn_the_sign():
    """The authors' scale is the mean largest logit's, and a softmax leaves that free."""
    known, new = features(), features(20, 1)
    low = seen(known, head(constant=-300.0))
    assert low.logits.amax(dim=1).mean() < 0
    assert fitted(known, head(constant=-300.0)).scale > 0
    far = new * 30
    detector = fitted(known, head(constant=-300.0))
    virtual = [detector.score(one) + one.logits.logsumexp(1) for one in (seen(new, head()), seen(far, head()))]
    assert (virtual[1] > virtual[0]).float().mean() > 0.9


def test_bfloat16_features():
    known, layer = features().bfloat16(), head()
    score = fitted(known, layer).score(seen(known, layer))
    torch.testing.assert_close(score, fitted(known.float(), layer).score(seen(known.float(), layer)))


def test_it_is_saved_whole():
    detector, new = fitted(features(), head()), seen(features(20, 1), head())
    other = fitted(features(30, 5), head(), dimensions=2)
    other.load_state_dict(copy.deepcopy(detector.state_dict()))
    assert torch.equal(other.score(new), detector.score(new))


def test_what_is_missing_is_said():
    known = features()
    with pytest.raises(ValueError, match=r"ViM needs a network whose last layer is linear.*there is none"):
        ViM().fit(lambda: [Observation(known, known)])
    with pytest.raises(ValueError, match="there is a Sequential"):
        ViM().fit(lambda: [seen(known, nn.Sequential(head()))])
    with pytest.raises(UserError, match="there are none"):
        ViM().fit(lambda: [])
    with pytest.raises(ValueError, match="not fitted"):
        ViM().score(Observation(known, known))
    with pytest.raises(ValueError, match="dimensions"):
        ViMSettings(dimensions=-1)
