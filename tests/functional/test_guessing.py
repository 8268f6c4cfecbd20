import torch
import torch.nn.functional as F

from wazuka.functional.guessing import (
    align,
    confident_guess_loss,
    negative_sampling_loss,
    sharpen,
    sharpened_guess_loss,
    soft_cross_entropy,
)


def some_probs(n: int = 6, classes: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def test_unsure_image_teaches_nothing_yet_counts_in_the_mean() -> None:
    weak = torch.tensor([[9.0, 0.0], [0.1, 0.0]], dtype=torch.float64).softmax(1)  # sure, unsure
    strong = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    loss, used = confident_guess_loss(weak, strong, threshold=0.95)
    torch.testing.assert_close(loss, F.cross_entropy(strong[:1], torch.tensor([0])) / 2)
    assert torch.autograd.grad(loss, strong)[0][1].eq(0).all()
    assert used == 0.5


def test_no_gradient_reaches_the_guess() -> None:
    weak = torch.randn(5, 3, requires_grad=True)
    strong = torch.randn(5, 3, requires_grad=True)
    loss, _ = confident_guess_loss(weak.softmax(1), strong, threshold=0.0)
    loss.backward()
    assert weak.grad is None
    assert strong.grad is not None


def test_threshold_above_one_uses_nothing_and_zero_uses_all() -> None:
    guesses, strong = some_probs(), torch.randn(6, 4, dtype=torch.float64)
    assert confident_guess_loss(guesses, strong, 1.01)[0] == 0
    everything = F.cross_entropy(strong, guesses.argmax(1))
    torch.testing.assert_close(confident_guess_loss(guesses, strong, 0.0)[0], everything)


def test_uniform_means_leave_guesses_alone() -> None:
    guesses, uniform = some_probs(), torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(align(guesses, uniform, uniform), guesses)
    same = some_probs(1)[0]
    torch.testing.assert_close(align(guesses, same, same), guesses)


def test_guesses_equal_to_the_model_mean_become_the_prior() -> None:
    mean, prior = some_probs(1, seed=1)[0], some_probs(1, seed=2)[0]
    aligned = align(mean.expand(6, 4), mean, prior)
    torch.testing.assert_close(aligned, prior.expand(6, 4), atol=1e-4, rtol=0)  # up to the 1e-6 terms


def test_alignment_moves_the_mean_towards_the_prior() -> None:
    guesses = some_probs(500)
    skewed = guesses * torch.tensor([4.0, 1.0, 1.0, 1.0])
    skewed = skewed / skewed.sum(1, keepdim=True)
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    before = (skewed.mean(0) - uniform).abs().max()
    after = (align(skewed, skewed.mean(0), uniform).mean(0) - uniform).abs().max()
    assert after < before / 3


def test_soft_cross_entropy_of_one_hot_targets_is_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    soft = soft_cross_entropy(F.one_hot(labels, 3).float(), logits)
    torch.testing.assert_close(soft, F.cross_entropy(logits, labels, reduction="none"))


def test_sharpening_by_one_changes_nothing_and_towards_zero_takes_the_largest() -> None:
    guesses = some_probs()
    torch.testing.assert_close(sharpen(guesses, 1.0), guesses)
    torch.testing.assert_close(sharpen(guesses, 1e-3), F.one_hot(guesses.argmax(1), 4).double())
    squared = guesses**2 / (guesses**2).sum(1, keepdim=True)
    torch.testing.assert_close(sharpen(guesses, 0.5), squared)


def test_sharpening_survives_certainty_and_half_precision() -> None:
    certain = torch.tensor([[1.0, 0.0], [1e-4, 1 - 1e-4]], dtype=torch.bfloat16)
    sharp = sharpen(certain, 0.5)
    assert sharp.dtype == torch.float32
    torch.testing.assert_close(sharp.sum(1), torch.ones(2))
    assert sharp[1, 0] > 0


def test_a_sharpened_guess_tends_to_a_hard_one() -> None:
    guesses, strong = some_probs(), torch.randn(6, 4, dtype=torch.float64)
    threshold = float(guesses.amax(1).median())
    hard, used = confident_guess_loss(guesses, strong, threshold)
    soft, also_used = sharpened_guess_loss(guesses, strong, threshold, 1e-4)
    torch.testing.assert_close(soft, hard)
    assert 0 < used < 1
    assert also_used == used


def test_a_soft_guess_keeps_what_is_open_and_gets_no_gradient() -> None:
    guesses = torch.tensor([[0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    strong = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    loss, _ = sharpened_guess_loss(guesses, strong, 0.0, 0.5)
    loss.backward()
    assert guesses.grad is None
    torch.testing.assert_close(strong.grad, torch.zeros(1, 2, dtype=torch.float64))  # an even guess pulls nowhere


def test_no_negatives_no_loss_and_no_gradient() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    loss = negative_sampling_loss(some_probs(), logits, threshold=1e-9)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-15, rtol=0)
    assert torch.autograd.grad(loss.sum(), logits)[0].abs().max() < 1e-15


def test_all_negative_but_one_is_a_label() -> None:
    guesses, logits = torch.tensor([[0.9, 0.05, 0.05]]), torch.randn(1, 3, dtype=torch.float64)
    loss = negative_sampling_loss(guesses, logits, threshold=0.1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([0]), reduction="none"))


def test_mass_moves_from_negatives_to_all_others_in_proportion() -> None:
    """dL/dlogit is p on negatives and -p S / (1 - S) elsewhere, S being the negatives' probability together."""
    guesses, threshold = some_probs(seed=3), 0.15
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(negative_sampling_loss(guesses, logits, threshold).sum(), logits)[0]
    probs, negative = logits.detach().softmax(dim=1), guesses < threshold
    assert 0 < negative.sum() < negative.numel()
    share = (probs * negative).sum(dim=1, keepdim=True)
    torch.testing.assert_close(gradient, torch.where(negative, probs, -probs * share / (1 - share)))


def test_negatives_keep_no_gradient_and_the_loss_is_bounded() -> None:
    raw = torch.randn(5, 3, requires_grad=True)
    logits = torch.tensor([[99.0, 0.0, -99.0]]).repeat(5, 1).requires_grad_()
    loss = negative_sampling_loss(raw.softmax(1) * 0 + torch.tensor([0.01, 0.01, 0.98]), logits, threshold=0.2)
    assert torch.autograd.grad(loss.sum(), raw, allow_unused=True, retain_graph=True) == (None,)
    assert loss.max() <= 18.43
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()
