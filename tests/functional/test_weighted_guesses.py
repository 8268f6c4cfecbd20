import torch
import torch.nn.functional as F

from wazuka.functional.guessing import confident_guess_loss, sharpened_guess_loss
from wazuka.functional.weighted_guesses import weighted_guess_loss


def some(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    guesses = (3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)).softmax(dim=1)
    return guesses, torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()


def test_a_mask_gives_fixmatchs_loss_hard_and_soft() -> None:
    guesses, strong = some()
    for threshold in (0.0, 0.7, 1.1):
        mask = guesses.amax(dim=1) >= threshold
        assert threshold != 0.7 or 0 < mask.sum() < 6
        hard = weighted_guess_loss(guesses, strong, mask, temperature=0.0)
        torch.testing.assert_close(hard, confident_guess_loss(guesses, strong, threshold)[0])
        soft = weighted_guess_loss(guesses, strong, mask, temperature=0.5)
        torch.testing.assert_close(soft, sharpened_guess_loss(guesses, strong, threshold, 0.5)[0])


def test_weights_scale_each_image_and_are_not_normalized() -> None:
    guesses, strong = some()
    weights = torch.tensor([0.5, 0.0, 0.25, 1.0, 0.125, 0.0], dtype=torch.float64)
    loss = weighted_guess_loss(guesses, strong, weights, temperature=0.0)
    each = F.cross_entropy(strong, guesses.argmax(dim=1), reduction="none")
    torch.testing.assert_close(loss, (weights * each).sum() / 6)
    gradient = torch.autograd.grad(loss, strong)[0]
    assert gradient[[1, 5]].eq(0).all()
    assert gradient[[0, 2, 3, 4]].ne(0).all()


def test_neither_guesses_nor_weights_get_a_gradient() -> None:
    guesses, strong = some()
    guesses, weights = guesses.requires_grad_(), torch.full((6,), 0.5, dtype=torch.float64, requires_grad=True)
    for temperature in (0.0, 0.5):
        loss = weighted_guess_loss(guesses, strong, weights, temperature)
        assert torch.autograd.grad(loss, [guesses, weights], allow_unused=True) == (None, None)
