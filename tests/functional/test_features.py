import torch

from wazuka.functional.features import centered_unit


def test_centered_features_have_length_one_and_know_no_shift() -> None:
    features = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    center = features.mean(dim=0)
    found = centered_unit(features, center)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(centered_unit(features + 100, center + 100), found)
    torch.testing.assert_close(found * (features - center).norm(dim=1, keepdim=True), features - center)


def test_an_image_at_the_center_has_no_direction() -> None:
    assert centered_unit(torch.ones(1, 3), torch.ones(3)).tolist() == [[0, 0, 0]]
