import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.methods.transfer.simpleshot import SimpleShot, SimpleShotSettings


def some(count: int = 30, size: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(count, size, generator=torch.Generator().manual_seed(seed)) + 1


ONE_EACH = torch.tensor([0, 1, 2] + [-1] * 27)
FEW = torch.tensor([0, 1, 2, 0, 1, 2, 0] + [-1] * 23)


def test_features_are_centered_then_scaled_then_averaged() -> None:
    features, new = some(), some(6, seed=1)
    head = SimpleShot(3)
    probs = head.fit(features, FEW)
    center = features.mean(dim=0)  # of labeled and unlabeled
    scaled = F.normalize(features - center, dim=1)
    means = torch.stack([scaled[label == FEW].mean(dim=0) for label in range(3)])
    torch.testing.assert_close(head.prototypes, means)
    assert (means.norm(dim=1) < 0.999).all()  # not scaled again
    torch.testing.assert_close(probs, (-torch.cdist(scaled, means) ** 2 / 0.1).softmax(dim=1), atol=1e-5, rtol=1e-4)
    scaled = F.normalize(new - center, dim=1)
    expected = (-torch.cdist(scaled, means) ** 2 / 0.1).softmax(dim=1)
    torch.testing.assert_close(head.predict(new), expected, atol=1e-5, rtol=1e-4)


def test_a_shift_of_all_features_changes_nothing() -> None:
    features, new = some().double(), some(6, seed=1).double()
    head, shifted = SimpleShot(3), SimpleShot(3)
    torch.testing.assert_close(shifted.fit(features + 9, FEW), head.fit(features, FEW), atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted.predict(new + 9), head.predict(new), atol=1e-5, rtol=0)
    l2n = SimpleShotSettings(transform="L2N")
    head, shifted = SimpleShot(3, l2n), SimpleShot(3, l2n)
    assert not torch.allclose(shifted.fit(features + 9, FEW), head.fit(features, FEW), atol=1e-3)


@pytest.mark.parametrize("transform", ["L2N", "CL2N"])
def test_one_label_a_class_makes_it_the_nearest_neighbor_by_cosine(transform: str) -> None:
    features = some()
    probs = SimpleShot(3, SimpleShotSettings(transform=transform)).fit(features, ONE_EACH)
    own = features - features.mean(dim=0) if transform == "CL2N" else features
    cosines = F.cosine_similarity(own[:, None], own[:3], dim=2)
    assert torch.equal(probs.argmax(dim=1), cosines.argmax(dim=1))


def test_untouched_features_are_taken_by_their_distance() -> None:
    features = some()
    probs = SimpleShot(3, SimpleShotSettings(transform="UN")).fit(features, ONE_EACH)
    expected = (-torch.cdist(features, features[:3]) ** 2 / 0.1).softmax(dim=1)
    torch.testing.assert_close(probs, expected, atol=1e-5, rtol=1e-4)


def test_unlabeled_images_move_the_center_and_nothing_else() -> None:
    features, new = some(), some(6, seed=1)
    for transform, moves in (("CL2N", True), ("L2N", False), ("UN", False)):
        settings = SimpleShotSettings(transform=transform)
        head, alone = SimpleShot(3, settings), SimpleShot(3, settings)
        head.fit(features, FEW)
        alone.fit(features[:7], FEW[:7])
        assert torch.allclose(head.predict(new), alone.predict(new)) != moves


@pytest.mark.parametrize("bad", [{"transform": "CN"}, {"temperature": -1.0}])
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        SimpleShotSettings(**bad)
