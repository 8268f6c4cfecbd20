import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from wazuka.evaluation import evaluate
from wazuka.evaluation.probes import features, linear_probe, neighbor_probe, neighbors_for


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order], y[order]


def test_plain_neighbors_agree_with_scikit_learn(digits):
    x, y = digits
    ours = neighbor_probe(x[:1200], y[:1200], x[1200:], 10, k=5).argmax(1)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    theirs = KNeighborsClassifier(5).fit(unit[:1200], y[:1200]).predict(unit[1200:])  # on the sphere: same neighbors
    assert (ours == theirs).mean() > 0.995  # they differ in ties alone
    assert (ours == y[1200:]).mean() == pytest.approx(0.982, abs=0.012)  # the card's raw-pixel row


def test_weighted_vote_by_hand():
    train = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    votes = neighbor_probe(train, [0, 1, 1], np.array([[2.0, 0.0]]), 3, k=200, temperature=0.1)
    weights = np.exp(np.array([1, 0, 1 / np.sqrt(2)]) / 0.1)
    np.testing.assert_allclose(votes[0], [weights[0], weights[1] + weights[2], 0] / weights.sum(), rtol=1e-5)
    for nearer, other in ((0, 1), (1, 0)):  # a tie of the plain vote goes to the nearer class
        near = neighbor_probe(train, [nearer, other, other], np.array([[2.0, 0.1]]), 3, k=2)
        assert near[0, :2] == pytest.approx([0.5, 0.5], abs=1e-5)
        assert near.argmax() == nearer


def test_neighbors_do_not_care_for_length_or_batches(digits):
    x, y = digits
    once = neighbor_probe(x[:500], y[:500], x[500:700], 10, k=20, temperature=0.1)
    lengths = np.random.default_rng(0).uniform(0.1, 10, (len(x), 1))
    again = neighbor_probe((x * lengths)[:500], y[:500], x[500:700], 10, k=20, temperature=0.1, batch=7)
    np.testing.assert_allclose(once, again, atol=1e-4)
    np.testing.assert_allclose(once.sum(1), 1)
    evaluate(once, y[500:700], [str(d) for d in range(10)], draws=50)


def test_cold_temperature_does_not_overflow():
    votes = neighbor_probe(np.eye(2), [0, 1], np.eye(2), 2, k=2, temperature=1e-3)
    np.testing.assert_allclose(votes, np.eye(2), atol=1e-6)


def test_number_of_neighbors():
    assert neighbors_for(50_000, 10) == 200
    assert neighbors_for(1200, 10) == 24
    assert neighbors_for(40, 10) == 1
    with pytest.raises(ValueError, match="temperature"):
        neighbor_probe(np.eye(2), [0, 1], np.eye(2), 2, k=0)
    with pytest.raises(ValueError, match="labels"):
        neighbor_probe(np.eye(2), [0, 2], np.eye(2), 2, k=1)


def test_linear_probe_reaches_the_cards_row(digits):
    x, y = digits
    probe = linear_probe(x[:1200], y[:1200], 10, strengths=(1e-2, 1.0))
    probs = probe.predict(x[1200:])
    np.testing.assert_allclose(probs.sum(1), 1)
    assert (probs.argmax(1) == y[1200:]).mean() == pytest.approx(0.968, abs=0.015)  # card: 97.3 %, one split
    assert probe.strength in (1e-2, 1.0)


def test_linear_probe_ignores_scale_and_offset_of_a_feature(digits):
    x, y = digits
    few = x[:200]
    a = linear_probe(few, y[:200], 10, strengths=(0.1,)).predict(x[200:300])
    b = linear_probe(few * 1000 + 7, y[:200], 10, strengths=(0.1,)).predict(x[200:300] * 1000 + 7)
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_validation_chooses_the_strength():
    generator = np.random.default_rng(0)
    y = np.arange(60) % 2
    noise = generator.normal(size=(60, 200))
    noise[:, 0] += 1.5 * y
    weak = linear_probe(noise, y, 2)
    assert weak.validation[weak.strength] == max(weak.validation.values())
    assert set(weak.validation) == {1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2}
    assert weak.strength < 1  # one useful feature among 200: a strong penalty is right


def test_linear_probe_with_one_label_a_class_or_a_missing_class():
    x = np.eye(3)
    alone = linear_probe(x, [0, 2, 3], 5)
    assert alone.validation == {}
    probs = alone.predict(x)
    assert probs.shape == (3, 5)
    assert probs.argmax(1).tolist() == [0, 2, 3]
    assert (probs[:, [1, 4]] == 0).all()
    mixed = linear_probe(np.array([[0.0], [0.1], [1], [1.1], [5]]), [0, 0, 1, 1, 2], 3)
    assert mixed.validation[mixed.strength] == 1
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(x, [1, 1, 1], 3)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.frozen = nn.BatchNorm2d(1).eval()
        self.sizes = []

    def forward(self, images):
        assert not self.training
        assert not self.norm.training
        self.sizes.append(len(images))
        return self.norm(images)


def test_features_come_in_batches_from_a_network_in_eval_mode():
    images = torch.arange(5 * 4, dtype=torch.uint8).view(5, 1, 2, 2)
    net = Counting()
    net.frozen.eval()
    found = features(net, images, batch=2)
    assert net.sizes == [2, 2, 1]
    torch.testing.assert_close(found, images.flatten(1) / 255 / (1 + 1e-5) ** 0.5)
    assert net.training
    assert net.norm.training
    assert not net.frozen.training  # each module gets its own mode back
    assert net.norm.num_batches_tracked == 0
    assert not found.requires_grad
    assert not found.is_inference()
    floats = features(lambda x: x, images.numpy().astype(np.float32) / 255)
    torch.testing.assert_close(floats, images.flatten(1) / 255)
    with pytest.raises(ValueError, match="no image"):
        features(net, images[:0])
