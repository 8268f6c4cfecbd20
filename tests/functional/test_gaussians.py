import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from wazuka.functional.gaussians import gaussian_nll, mixture_moments, positive_variance

DRAW = torch.Generator().manual_seed(0)
MEANS = torch.randn(5, 30, generator=DRAW, dtype=torch.float64)
VARIANCES = torch.rand(5, 30, generator=DRAW, dtype=torch.float64) + 0.1


def test_an_even_mixtures_moments() -> None:
    normal = Normal(MEANS.T, VARIANCES.T.sqrt())
    mixture = MixtureSameFamily(Categorical(torch.ones(30, 5, dtype=torch.float64)), normal)
    mean, variance = mixture_moments(MEANS, VARIANCES)
    torch.testing.assert_close(mean, mixture.mean)
    torch.testing.assert_close(variance, mixture.variance)
    torch.testing.assert_close(variance, (VARIANCES + MEANS.square()).mean(0) - mean.square())  # the paper's form


def test_one_member_is_itself_and_likes_add_no_variance() -> None:
    for members in (1, 4):
        mean, variance = mixture_moments(MEANS[:1].expand(members, 30), VARIANCES[:1].expand(members, 30))
        torch.testing.assert_close(mean, MEANS[0])
        torch.testing.assert_close(variance, VARIANCES[0])


def test_large_means_keep_their_variance_in_float32() -> None:
    _, variance = mixture_moments(torch.tensor([[10_000.0], [10_001.0]]), torch.full((2, 1), 1e-4))
    torch.testing.assert_close(variance, torch.tensor([0.2501]))


def test_likelihood_is_normals() -> None:
    targets = torch.zeros(5, 30, dtype=torch.float64)
    expected = -Normal(MEANS, VARIANCES.sqrt()).log_prob(targets)
    torch.testing.assert_close(gaussian_nll(MEANS, VARIANCES, targets), expected)


def test_a_variance_is_never_nothing() -> None:
    raw = torch.tensor([-1000.0, 0.0, 50.0])
    torch.testing.assert_close(positive_variance(raw), torch.tensor([1e-6, 0.6931482, 50.0]))
