import pytest
import torch
from torch import Tensor

from tests.methods.small import batches_of, small
from wazuka.methods.transfer.bss import BSS, BSSSettings, spectral_shrinkage


def features(rows: int = 6, columns: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (5, 5)])
def test_they_are_the_smallest_singular_values_of_the_features_uncentered(shape: tuple[int, int]) -> None:
    f = features(*shape)
    squares = torch.linalg.svdvals(f).square().flip(0)
    for smallest in (1, 2, 5):
        torch.testing.assert_close(spectral_shrinkage(f, smallest), squares[:smallest].sum())


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_all_of_them_are_the_square_norm(shape: tuple[int, int]) -> None:
    f = features(*shape)
    torch.testing.assert_close(spectral_shrinkage(f, 6), f.square().sum())
    torch.testing.assert_close(spectral_shrinkage(f, 99), f.square().sum())


def test_two_equal_rows_leave_nothing_to_shrink() -> None:
    f = features()
    f[1] = f[0]
    assert 0 <= float(spectral_shrinkage(f, 1)) < 1e-12
    assert 0 <= float(spectral_shrinkage(f.float(), 1)) < 1e-4
    assert float(spectral_shrinkage(f, 2)) > 0.1


@pytest.mark.parametrize("smallest", [1, 3])
def test_the_gradient_is_that_of_finite_differences(smallest: int) -> None:
    f = features().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spectral_shrinkage(x, smallest), [f], atol=1e-4)


def test_the_gradient_is_finite_where_singular_values_coincide() -> None:
    """Orthonormal rows: all are 1, and the gradient through the singular vectors of an SVD divides by zero."""
    f = torch.eye(4, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(spectral_shrinkage(f, 2), f)
    assert gradient.isfinite().all()
    assert float((gradient * f).sum().detach()) == pytest.approx(2 * 2)  # of a square: Euler's theorem


def test_autocast_rounds_no_product() -> None:
    f = features().float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = spectral_shrinkage(f, 1)
    torch.testing.assert_close(inside, torch.linalg.svdvals(f)[-1].square(), atol=0, rtol=1e-4)
    assert spectral_shrinkage(f.bfloat16(), 1).dtype == torch.float32


def test_it_is_added_to_the_loss_of_the_labels() -> None:
    method = small("bss", changes={"shrinkage_weight": 0.5, "smallest": 2})
    assert isinstance(method, BSS)
    batch = batches_of(method)(0)
    total, parts = method.train().loss(batch, 0.0)
    torch.testing.assert_close(total.detach(), parts["supervised"] + 0.5 * parts["shrinkage"])
    expected = spectral_shrinkage(method.net.features(batch.images), 2)
    torch.testing.assert_close(parts["shrinkage"], expected.detach())
    gradients = torch.autograd.grad(total - parts["supervised"], method.net.encoder_parameters(), allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("wrong", [{"shrinkage_weight": -1.0}, {"smallest": 0}, {"view": "odd"}])
def test_wrong_settings_fail_at_once(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BSSSettings(**wrong)
