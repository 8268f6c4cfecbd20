import copy

import pytest
import torch
import torch.nn.functional as F

from wazuka.contract import Observation
from wazuka.errors import UserError
from wazuka.methods.uncertainty import knn
from wazuka.methods.uncertainty.knn import KNN, KNNSettings, kth_distance


def seen(features: torch.Tensor, batch: int = 1000):
    return lambda: [Observation(part[:, :1], part) for part in features.split(batch)]


def fitted(features: torch.Tensor, batch: int = 1000, **settings) -> KNN:
    return KNN(KNNSettings(**settings)).fit(seen(features, batch))


def features(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def test_score_is_the_distance_to_the_kth_nearest_of_normalized_features():
    known, new = features(40), features(15, 1)
    all_pairs = torch.cdist(F.normalize(new), F.normalize(known)).sort(dim=1).values
    for neighbors, k in ((0.001, 1), (0.05, 2), (0.1, 4), (0.99, 39)):
        detector = fitted(known, neighbors=neighbors)
        assert detector.k == k
        (observation,) = seen(new)()
        torch.testing.assert_close(detector.score(observation), all_pairs[:, k - 1], rtol=1e-4, atol=1e-5)


def test_length_of_the_features_does_not_count():
    known, (new,) = features(40), seen(features(15, 1))()
    longer = Observation(new.logits, new.features * 9)
    torch.testing.assert_close(fitted(known * torch.rand(40, 1)).score(longer), fitted(known).score(new))


def test_range_of_scores():
    known = torch.eye(6)
    score = fitted(known).score(Observation(torch.zeros(3, 1), torch.stack([known[0], -known[0], known[0] + known[1]])))
    torch.testing.assert_close(score, torch.tensor([0.0, 2**0.5, (2 - 2**0.5) ** 0.5]))
    assert kth_distance(known[:1], -known[:1], 1) == 2
    assert kth_distance(known[:0], known, 1).shape == (0,)


def test_blocks_and_batches_make_no_difference(monkeypatch):
    known, (new,) = features(50), seen(features(21, 1))()
    once = fitted(known)
    score, left_out = once.score(new), once.left_out()
    monkeypatch.setattr(knn, "BLOCK", 120)
    torch.testing.assert_close(once.score(new), score)
    torch.testing.assert_close(once.left_out(), left_out)
    assert torch.equal(fitted(known, batch=7).bank, once.bank)


def test_an_image_is_no_neighbor_of_its_own():
    known = features(20)
    detector = fitted(known, neighbors=0.1)
    pairs = torch.cdist(F.normalize(known), F.normalize(known)).sort(dim=1).values
    torch.testing.assert_close(detector.left_out(), pairs[:, 2], rtol=1e-4, atol=1e-5)  # [0] is itself; k = 2
    assert (detector.left_out() > detector.score(seen(known)()[0])).all()
    assert fitted(known[:1]).left_out().tolist() == [torch.inf]
    twins = fitted(known[:1].repeat(2, 1))
    torch.testing.assert_close(twins.left_out(), torch.zeros(2), atol=1e-3, rtol=0)


def test_a_large_pool_is_thinned_evenly():
    known = torch.cat([torch.ones(100, 1), torch.arange(100)[:, None]], dim=1)
    for batch in (9, 1000):
        detector = fitted(known, batch=batch, bank=25, neighbors=0.1)
        places = (detector.bank[:, 1] / detector.bank[:, 0]).round()
        assert places.tolist() == list(range(3, 100, 4))
        assert detector.k == 3
    assert len(fitted(known, bank=99).bank) == 99
    assert len(fitted(known, bank=100).bank) == 100


def test_loaded_over_an_earlier_fit_and_in_half_precision():
    detector, (new,) = fitted(features(30)), seen(features(9, 1))()
    other = fitted(features(4))
    other.load_state_dict(copy.deepcopy(detector.state_dict()))
    assert torch.equal(other.score(new), detector.score(new))
    half = Observation(new.logits, new.features.to(torch.bfloat16))
    torch.testing.assert_close(detector.score(half), detector.score(new), atol=0.02, rtol=0)
    with pytest.raises(RuntimeError, match="Missing key"):
        KNN().load_state_dict({})


def test_what_is_missing_is_said():
    with pytest.raises(UserError, match="there are none"):
        KNN().fit(lambda: [])
    with pytest.raises(ValueError, match="not fitted"):
        KNN().score(seen(features(3))()[0])
    for bad in ({"neighbors": 0.0}, {"neighbors": 1.0}, {"bank": 1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            KNNSettings(**bad)
