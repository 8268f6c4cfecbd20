import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.small import images_of
from wazuka.contract import Batch
from wazuka.functional.guessing import negative_sampling_loss
from wazuka.methods.semi.vat import VAT, VATSettings, adversarial_direction, divergence, entropy, unit
from wazuka.nets import ConvNet


def a_batch(unlabeled: int = 6, channels: int = 1) -> Batch:
    g = torch.Generator().manual_seed(1)
    draw = lambda n: torch.rand(n, channels, 8, 8, generator=g)  # noqa: E731
    return Batch(images=draw(4), labels=torch.arange(4) % 3, weak=draw(unlabeled), again=draw(unlabeled))


def a_net(channels: int = 1) -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(channels, 3, (4, 8), momentum=0.5)


def a_method(net: nn.Module | None = None, **settings) -> VAT:
    return VAT(net or a_net(), VATSettings(labeled_batch=4, **settings)).train()


def loss_of(method: VAT, batch: Batch, progress: float = 1.0, seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    return method.loss(batch, progress)


def gradient_of(method: VAT, batch: Batch, seed: int = 3) -> Tensor:
    total, _ = loss_of(method, batch, seed=seed)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(method.net.parameters()))])


def linear_softmax() -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A model, 50 inputs, and each one's Fisher matrix W' (diag p - p p') W, (50, 6, 6)."""
    g = torch.Generator().manual_seed(2)
    weight, images = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((4, 6), (50, 6)))
    probs = (images @ weight.T).softmax(dim=1)
    fisher = weight.T @ (probs.diag_embed() - probs[:, :, None] * probs[:, None, :]) @ weight
    return lambda x: x @ weight.to(x.dtype).T, images, fisher


def cosines(found: Tensor, expected: Tensor) -> Tensor:
    return F.cosine_similarity(found.flatten(1).double(), expected.flatten(1).double(), dim=1, eps=1e-300)


# The direction


def test_power_iteration_finds_the_top_eigenvector_of_the_fisher_matrix() -> None:
    answer, images, fisher = linear_softmax()
    start = torch.randn(images.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = adversarial_direction(answer, images, answer(images), start, xi=1e-5, iterations=200)
    top = torch.linalg.eigh(fisher).eigenvectors[:, :, -1]
    assert cosines(found, top).abs().min() > 0.9999


def test_one_iteration_is_the_fisher_matrix_times_the_start() -> None:
    answer, images, fisher = linear_softmax()
    start = torch.randn(images.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = adversarial_direction(answer, images, answer(images), start, xi=1e-5, iterations=1)
    expected = (fisher @ start[:, :, None])[:, :, 0]
    assert cosines(found, expected).min() > 1 - 1e-8
    torch.testing.assert_close(found.norm(dim=1), torch.ones(50, dtype=torch.float64), atol=1e-6, rtol=0)


def test_float32_finds_it_with_our_xi_and_not_with_the_papers() -> None:
    answer, images, fisher = linear_softmax()
    start = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    top = torch.linalg.eigh(fisher).eigenvectors[:, :, -1]
    single, exact = images.float(), adversarial_direction(answer, images, answer(images), start.double(), 1e-5, 5)
    assert cosines(exact, top).abs().mean() > 0.98  # five iterations are not enough everywhere
    ours, theirs = (
        adversarial_direction(answer, single, answer(single), start, xi, 5) for xi in (VATSettings().xi, 1e-6)
    )
    assert cosines(ours, exact).mean() > 0.999
    assert cosines(theirs, exact).mean() < 0.95


def test_no_iteration_leaves_the_start_and_the_answer_is_not_asked() -> None:
    start = torch.randn(3, 1, 4, 4)
    assert torch.equal(adversarial_direction(nn.Identity(), start, start, start, 0.01, 0), unit(start))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e15])
def test_directions_have_length_one_however_small(size: float) -> None:
    directions = unit(torch.randn(5, 3, 4, 4) * size)
    torch.testing.assert_close(directions.flatten(1).norm(dim=1), torch.ones(5), atol=1e-3, rtol=0)
    assert unit(torch.zeros(2, 3)).eq(0).all()


@pytest.fixture(scope="module")
def trained() -> ConvNet:
    """A network that knows the four quarters, in noise that leaves it unsure."""
    torch.manual_seed(0)
    net, images, labels = ConvNet(1, 4, (8, 16), momentum=0.1), *noisy_images(seed=5)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def noisy_images(seed: int) -> tuple[Tensor, Tensor]:
    images, labels = images_of(128, seed=seed)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed + 1))
    return images / 255 + 0.3 * noise, labels


def test_the_adversarial_change_hurts_more_than_a_random_one_of_its_length(trained: ConvNet) -> None:
    images, labels = noisy_images(seed=50)
    logits, (start, other) = trained(images), torch.randn(2, *images.shape, generator=torch.Generator().manual_seed(1))
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.8
    for epsilon in (0.3, 1.0):
        direction = adversarial_direction(trained, images, logits, start, VATSettings().xi, 1)
        directions = (direction, unit(other), unit(start))
        adversarial, *random = (divergence(trained(images + epsilon * d), logits) for d in directions)
        for one in random:
            assert (adversarial >= one).float().mean() > 0.95


# The two losses


def test_divergence_is_the_papers_direction_and_moves_one_side_only() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0, 0.0, 0.0], [2.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    p, q = target.detach().softmax(1), logits.detach().softmax(1)
    loss = divergence(logits, target)
    torch.testing.assert_close(loss.detach(), (p * (p / q).log()).sum(1))
    assert loss[1] == 0
    mine, other = torch.autograd.grad(loss.sum(), (logits, target), allow_unused=True)
    torch.testing.assert_close(mine, q - p)
    assert other is None


def test_divergence_of_very_sure_answers_is_finite() -> None:
    logits = torch.tensor([[300.0, 0.0], [-300.0, 0.0]], requires_grad=True)
    loss = divergence(logits, logits.flip(0))
    torch.testing.assert_close(loss.detach(), torch.tensor([300.0, 300.0]))
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


def test_entropy_by_hand_and_its_gradient_flows_through_both_factors() -> None:
    torch.testing.assert_close(entropy(torch.zeros(1, 5)), torch.tensor([math.log(5)]))
    assert entropy(torch.tensor([[200.0, 0.0, 0.0]])) == 0
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    value, p = entropy(logits), logits.detach().softmax(1)
    expected = -p * (p.log() + value.detach()[:, None])
    torch.testing.assert_close(torch.autograd.grad(value.sum(), logits)[0], expected)


# The step


def test_total_is_the_weighted_sum_and_only_the_entropy_is_not_ramped() -> None:
    method, batch = a_method(negative_weight=2.0, negative_share=0.9), a_batch()
    for progress, ramp in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (1.0, 1.0)):
        total, parts = loss_of(method, batch, progress)
        ramped = ramp * (0.3 * parts["unlabeled"] + 2 * parts["negative"])
        torch.testing.assert_close(total.detach(), parts["supervised"] + 0.06 * parts["entropy"] + ramped)
        assert min(parts["unlabeled"], parts["entropy"], parts["negative"]) > 1e-4


class Watching(nn.Module):
    """A network that keeps what it was shown, and in which type its layers computed."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.shown, self.types = net, [], []
        next(m for m in net.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
            lambda module, inputs, output: self.types.append(output.dtype)
        )

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images.detach())
        return self.net(images)


def test_the_change_has_the_length_and_direction_asked_for_and_the_probing_step_its_length() -> None:
    method = a_method(Watching(a_net()), epsilon=1.5, xi=0.02, power_iterations=2)
    batch = a_batch()
    loss_of(method, batch)
    labeled, clean, *moved = method.net.shown
    assert torch.equal(labeled, batch.images)
    assert torch.equal(clean, batch.weak)
    assert len(moved) == 3
    for images, length in zip(moved, (0.02, 0.02, 1.5), strict=True):
        found = (images - batch.weak).flatten(1).norm(dim=1)
        torch.testing.assert_close(found, torch.full((6,), length), atol=0, rtol=1e-3)
    torch.manual_seed(3)
    start, net = torch.randn(batch.weak.shape), a_net()
    direction = adversarial_direction(net, batch.weak, net(batch.weak), start, 0.02, 2)
    torch.testing.assert_close(moved[2], batch.weak + 1.5 * direction)


def test_under_bfloat16_the_direction_is_float32s_and_the_adversarial_pass_is_not() -> None:
    rough, exact = a_method(Watching(a_net())), a_method(Watching(a_net()))
    loss_of(exact, a_batch())
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = loss_of(rough, a_batch())
    bfloat16, float32 = torch.bfloat16, torch.float32
    assert rough.net.types == [bfloat16, float32, float32, bfloat16]
    assert torch.equal(rough.net.shown[3], exact.net.shown[3])
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(total, list(rough.net.parameters())))
    with torch.autocast("cpu", torch.bfloat16):
        assert F.cosine_similarity(gradient_of(rough, a_batch()), gradient_of(exact, a_batch()), dim=0) > 0.98


def test_all_three_passes_see_one_dropout_mask_and_later_ones_another() -> None:
    class Recording(nn.Dropout):
        def forward(self, inputs: Tensor) -> Tensor:
            output = super().forward(inputs)
            self.masks = [*getattr(self, "masks", []), output == 0]
            return output

    dropout = Recording(0.5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), dropout, nn.Linear(32, 3))
    method = a_method(net, epsilon=0.0, negative_weight=1.0)
    torch.manual_seed(7)
    _, parts = method.loss(a_batch(), 1.0)
    assert parts["unlabeled"] == 0  # the same mask and the same statistics: nothing has moved
    method.loss(a_batch(), 1.0)
    first, again, second = dropout.masks[1:4], dropout.masks[4], dropout.masks[6:9]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    assert torch.equal(second[0], second[2])
    assert not torch.equal(first[0], again)
    assert not torch.equal(first[0], second[0])


def test_running_statistics_are_of_the_labeled_pass_and_all_passes_are_normalized_by_their_batch() -> None:
    method, twin = a_method(negative_weight=1.0), a_method()
    loss_of(method, a_batch())
    twin.net(a_batch().images)
    for (name, mine), theirs in zip(method.net.named_buffers(), twin.net.buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(mine, theirs, msg=name)
    _, parts = loss_of(a_method(), a_batch())
    expected = entropy(a_net()(a_batch().weak)).mean()
    torch.testing.assert_close(parts["entropy"], expected.detach())


@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
def test_gradients_reach_the_adversarial_pass_and_by_the_entropy_alone_the_clean_one(entropy_weight: float) -> None:
    method, batch = a_method(entropy_weight=entropy_weight), a_batch()
    total, _ = loss_of(method, batch)
    assert all(p.grad is None for p in method.parameters())
    # by hand: the change and the target are numbers
    twin = a_method(Watching(a_net()))
    loss_of(twin, a_batch())
    adversarial = twin.net.shown[3]
    net = a_net()
    expected = F.cross_entropy(net(batch.images), batch.labels)
    clean = net(batch.weak)
    target = clean.softmax(1).detach()
    expected = expected + 0.3 * F.kl_div(net(adversarial).log_softmax(1), target, reduction="batchmean")
    expected = expected + entropy_weight * entropy(clean).mean()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(
        torch.autograd.grad(total, list(method.net.parameters())), torch.autograd.grad(expected, list(net.parameters()))
    )


def test_without_entropy_the_clean_pass_is_only_looked_at() -> None:
    _, both = loss_of(a_method(), a_batch())
    total, parts = loss_of(a_method(entropy_weight=0.0), a_batch())
    torch.testing.assert_close(parts, both)
    torch.testing.assert_close(total.detach(), parts["supervised"] + 0.3 * parts["unlabeled"])


def test_negatives_come_from_the_clean_pass_and_the_second_view_learns_them() -> None:
    method, batch = a_method(negative_weight=1.0, negative_share=0.9), a_batch()
    net = a_net()
    guesses = net(batch.weak).softmax(1)
    each = negative_sampling_loss(guesses, net(batch.again), 0.3)
    assert 0 < (guesses < 0.3).sum() < guesses.numel()
    total, parts = loss_of(method, batch)
    torch.testing.assert_close(parts["negative"], each.sum().detach() / 10)  # of four labeled and six unlabeled images
    batch.again.requires_grad_()
    total, _ = loss_of(method, batch)
    assert torch.autograd.grad(total, batch.again)[0].abs().max() > 0
    assert "again" not in a_method().streams()[1].views
    assert "again" in method.streams()[1].views
    assert "negative" not in loss_of(a_method(), batch)[1]


def test_colors_in_another_memory_layout_get_the_same_change() -> None:
    batch = a_batch(channels=3)
    totals = []
    for layout in (torch.contiguous_format, torch.channels_last):
        turned = Batch(**{k: v.contiguous(memory_format=layout) if v.ndim == 4 else v for k, v in vars(batch).items()})
        totals.append(loss_of(a_method(a_net(3)), turned)[0])
    torch.testing.assert_close(totals[0], totals[1], atol=1e-5, rtol=1e-5)


def test_streams_never_ask_for_the_labels_of_unlabeled_images() -> None:
    labeled, unlabeled = a_method(unlabeled_ratio=3).streams()
    assert (labeled.batch, unlabeled.batch) == (4, 12)
    assert (labeled.labels, unlabeled.labels) == ("labels", None)
    assert (labeled.views, unlabeled.views) == ({"images": "weak"}, {"weak": "weak"})


@pytest.mark.parametrize(
    "bad",
    [
        {"epsilon": -1.0}, {"xi": 0.0}, {"power_iterations": -1}, {"vat_weight": -0.1}, {"entropy_weight": -0.1},
        {"negative_weight": -1.0}, {"ramp": 1.1}, {"negative_share": 1.0}, {"unlabeled_ratio": 0},
    ],
)  # fmt: skip
def test_bad_settings_fail_at_once(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        VATSettings(**bad)
