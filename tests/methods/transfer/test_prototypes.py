import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.methods.transfer.prototypes import Prototypes, PrototypesSettings


def some(count: int = 30, size: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(count, size, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([2, 0, -1, 1, 0, 2, -1, 1, 1, 2])


def test_it_is_a_softmax_over_squared_distances_to_class_means() -> None:
    features = some(10)
    means = torch.stack([features[label == LABELS].mean(dim=0) for label in range(3)])
    head = Prototypes(3)
    probs = head.fit(features, LABELS)
    torch.testing.assert_close(head.prototypes, means)
    torch.testing.assert_close(probs, (-torch.cdist(features, means) ** 2).softmax(dim=1))
    new = some(4, seed=1)
    linear = 2 * new @ means.T - means.square().sum(dim=1)  # paper, Eq. 8
    torch.testing.assert_close(head.predict(new), linear.softmax(dim=1))


def test_temperature_divides_the_distances() -> None:
    features = some(10)
    plain, cool = Prototypes(3), Prototypes(3, PrototypesSettings(temperature=0.5))
    logs, cooler = plain.fit(features, LABELS).log(), cool.fit(features, LABELS)
    torch.testing.assert_close(cooler, (logs / 0.5).softmax(dim=1))


def test_the_cosine_knows_no_lengths_and_shifts_change_no_distance() -> None:
    features, new = some(10), some(4, seed=1)
    cosine = Prototypes(3, PrototypesSettings(distance="cosine"))
    cosine.fit(features, LABELS)
    expected = F.cosine_similarity(new[:, None], cosine.prototypes, dim=2)
    torch.testing.assert_close(cosine.predict(new), (expected - 1).softmax(dim=1))
    torch.testing.assert_close(cosine.predict(7 * new), cosine.predict(new))
    euclidean, shifted = Prototypes(3), Prototypes(3)
    euclidean.fit(features, LABELS)
    shifted.fit(features + 10, LABELS)
    torch.testing.assert_close(shifted.predict(new + 10), euclidean.predict(new), atol=1e-4, rtol=1e-4)


def test_normalized_features_are_averaged_and_not_scaled_again() -> None:
    features, new = some(10), some(4, seed=1)
    head = Prototypes(3, PrototypesSettings(normalize=True))
    head.fit(features, LABELS)
    torch.testing.assert_close(head.prototypes[0], F.normalize(features[LABELS == 0], dim=1).mean(dim=0))
    assert (head.prototypes.norm(dim=1) < 0.999).all()
    torch.testing.assert_close(head.predict(3 * new), head.predict(new))


def test_one_label_a_class_is_the_prototype_and_unlabeled_images_teach_nothing() -> None:
    features = some(12)
    labels = torch.tensor([0, 1, 2] + [-1] * 9)
    head, alone = Prototypes(3), Prototypes(3)
    head.fit(features, labels)
    alone.fit(features[:3], labels[:3])
    assert torch.equal(head.prototypes, features[:3])
    assert torch.equal(head.prototypes, alone.prototypes)


@pytest.mark.parametrize("bad", [{"distance": "manhattan"}, {"temperature": 0.0}])
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        PrototypesSettings(**bad)
