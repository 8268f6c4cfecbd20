import torch
from torch.autograd import gradcheck

from wazuka.functional.prototypes import (
    class_means,
    cosine_distances,
    squared_distances,
    squared_distances_of_many,
)


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_prototype_is_the_mean_of_its_class_whatever_the_order_and_number() -> None:
    features, labels = points(6, 4), torch.tensor([2, 0, 2, 1, 0, 2])
    means = class_means(features, labels, classes=4)
    torch.testing.assert_close(means[0], (features[1] + features[4]) / 2)
    assert torch.equal(means[1], features[3])  # one image: the prototype is its embedding, to the last bit
    torch.testing.assert_close(means[2], (features[0] + features[2] + features[5]) / 3)
    assert means[3].eq(0).all()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(class_means(features[order], labels[order], 4), means)


def test_squared_distances_by_hand() -> None:
    found = squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert found.tolist() == [[25.0, 1.0], [0.0, 18.0]]


def test_distances_do_not_cancel_far_from_the_origin() -> None:
    features, prototypes = points(5, 8), points(3, 8, seed=1)
    near = squared_distances(features, prototypes)
    far = squared_distances((features + 1000).float(), (prototypes + 1000).float())
    torch.testing.assert_close(far.double(), near, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(squared_distances((features + 1000).float(), (prototypes + 1000).float()), far)


def test_cosine_distance_is_one_minus_the_cosine() -> None:
    features, prototypes = points(5, 8), points(3, 8, seed=1)
    cosine = torch.cosine_similarity(features[:, None], prototypes[None], dim=2)
    torch.testing.assert_close(cosine_distances(features, prototypes), 1 - cosine)
    torch.testing.assert_close(cosine_distances(7 * features, 0.1 * prototypes), 1 - cosine)  # lengths don't matter


def test_on_the_sphere_the_two_distances_are_one() -> None:
    features, prototypes = (torch.nn.functional.normalize(points(4, 6, seed=s), dim=1) for s in (0, 1))
    torch.testing.assert_close(squared_distances(features, prototypes), 2 * cosine_distances(features, prototypes))


def test_gradients_are_exact_also_where_a_point_meets_its_prototype() -> None:
    features, prototypes = points(3, 4).requires_grad_(), points(2, 4, seed=1)
    prototypes[0] = features[0].detach()
    assert gradcheck(squared_distances, (features, prototypes.requires_grad_()))
    assert gradcheck(lambda x: class_means(x, torch.tensor([1, 0, 1]), 2), (features,))


def test_many_features_get_the_same_distances_without_a_large_table() -> None:
    generator = torch.Generator().manual_seed(3)
    features, prototypes = torch.rand(50, 7, generator=generator), torch.rand(4, 7, generator=generator)
    exact = squared_distances(features.double(), prototypes.double())
    for block in (1, 8, 50, 100):
        found = squared_distances_of_many(features, prototypes, block)
        torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)
    shifted = squared_distances_of_many(features.double() + 1e4, prototypes.double() + 1e4)
    torch.testing.assert_close(shifted, exact, atol=1e-9, rtol=1e-9)  # the origin is theirs: nothing large cancels
    assert (squared_distances_of_many(prototypes, prototypes) >= 0).all()
    assert squared_distances_of_many(features[:0], prototypes).shape == (0, 4)
