import math

import numpy as np
import pytest
import torch

from wazuka.contract import Detector, Observation
from wazuka.evaluation.oddness import aside_threshold, left_out_scores, oddness_p_values
from wazuka.methods.uncertainty.knn import KNN, KNNSettings


def seen(features: torch.Tensor) -> Observation:
    return Observation(features[:, :2], features, {"layer": features[:, None]})


def test_too_few_labels_set_nothing_aside():
    aside = aside_threshold(np.arange(18.0), 0.05)
    assert aside.threshold == math.inf
    assert not aside.odd([1e9]).any()
    assert aside.missing == 1
    assert aside.told() == "With 18 labels no rate of false alarms below 5.3 % can be promised; 5 % take 1 more."
    enough = aside_threshold(np.arange(19.0), 0.05)
    assert enough.threshold == 18  # the smallest rate, 1 / 20: odder than all of them
    assert enough.odd([18.0, 18.1]).tolist() == [False, True]
    assert enough.possible
    assert enough.told() == "At most 5 % of the photos of known classes are set aside by mistake (19 labels)."


def test_p_values_say_the_same_as_the_threshold():
    generator = np.random.default_rng(0)
    left_out, new = np.round(generator.normal(size=40), 1), np.round(generator.normal(0.5, 1, 500), 1)
    p_values = oddness_p_values(left_out, new)
    assert p_values.min() >= 1 / 41
    assert p_values.max() <= 1
    for rate in (0.03, 0.05, 0.1, 0.25):
        np.testing.assert_array_equal(aside_threshold(left_out, rate).odd(new), p_values <= rate)
    assert oddness_p_values([1.0, 2.0, 3.0], [3.0, 3.5, 0.0]).tolist() == [0.5, 0.25, 1.0]


@pytest.mark.parametrize(("n", "rate"), [(19, 0.1), (28, 0.1), (12, 0.2)])
def test_known_photos_are_set_aside_no_more_often_than_said(n, rate):
    generator, alarms = torch.Generator().manual_seed(n), []
    for _ in range(150):
        features = torch.randn(n + 50, 3, generator=generator)
        detector = KNN(KNNSettings(neighbors=0.1)).fit(lambda known=features[:n]: [seen(known)])
        aside = aside_threshold(detector.left_out(), rate)
        alarms.append(aside.odd(detector.score(seen(features[n:]))).mean())
    assert np.mean(alarms) <= rate + 3 * np.std(alarms) / math.sqrt(150)
    assert np.mean(alarms) > rate / 3


def test_left_out_scores_fit_on_the_others():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    fitted: list[int] = []

    class Distant(Detector):
        def fit(self, observations):
            self.center = torch.cat([one.features for one in observations()]).mean(dim=0)
            fitted.append(sum(len(one.activations["layer"]) for one in observations()))
            return self

        def score(self, observation):
            return (observation.features - self.center).norm(dim=1)

    scores = left_out_scores(Distant, seen(features))
    assert fitted == [8] * 9
    expected = [(features[i] - features[torch.arange(9) != i].mean(dim=0)).norm().item() for i in range(9)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert left_out_scores(Distant, seen(features).of(torch.arange(9) < 1)).tolist() == [math.inf]


def test_nearest_neighbors_leave_out_at_once_what_others_do_one_by_one():
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    settings = KNNSettings(neighbors=0.1)  # three of 30, and of 29
    at_once = KNN(settings).fit(lambda: [seen(features)]).left_out()
    np.testing.assert_allclose(left_out_scores(lambda: KNN(settings), seen(features)), at_once, rtol=1e-5)
