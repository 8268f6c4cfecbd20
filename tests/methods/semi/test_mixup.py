import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Batch
from wazuka.functional.guessing import soft_cross_entropy
from wazuka.methods.semi.mixup import MixUp, MixUpSettings, mixed_with_reversed
from wazuka.nets import ConvNet


def a_method(**settings) -> MixUp:
    torch.manual_seed(0)
    return MixUp(ConvNet(1, 3, (4, 8)), 3, MixUpSettings(**settings)).train()


def a_batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    images, unlabeled = (torch.rand(n, 1, 8, 8, generator=draw) for n in (6, 10))
    return Batch(images=images, labels=torch.arange(6) % 3, unlabeled=unlabeled)


def seen_by_the_network(method: MixUp, batch: Batch) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """What the network was shown, pass by pass; the loss and its parts."""
    seen: list[Tensor] = []
    hook = method.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].clone()))
    total, parts = method.loss(batch, 0.5)
    hook.remove()
    return seen, total, parts


def kept(mixed: Tensor, images: Tensor) -> Tensor:
    """(N,) how much of itself each image kept when it was mixed with its mirror place."""
    apart = (images - images.flip(0)).flatten(1)
    shares = (mixed - images.flip(0)).flatten(1) / apart
    told = apart.abs() > 0.05  # elsewhere rounding speaks
    weights = torch.stack([share[where].median() for share, where in zip(shares, told, strict=True)])
    rebuilt = weights[:, None, None, None] * images + (1 - weights)[:, None, None, None] * images.flip(0)
    torch.testing.assert_close(mixed, rebuilt, atol=1e-5, rtol=0)
    return weights


def test_mixing_by_hand_and_at_its_ends() -> None:
    images, targets = torch.rand(3, 1, 2, 2), torch.rand(3, 4).softmax(1)
    mixed, labels = mixed_with_reversed(images, targets, torch.tensor([0.9, 0.3, 0.6]))
    torch.testing.assert_close(mixed[0], 0.9 * images[0] + 0.1 * images[2])
    torch.testing.assert_close(mixed[1], images[1])
    torch.testing.assert_close(labels[2], 0.6 * targets[2] + 0.4 * targets[0])
    torch.testing.assert_close(labels.sum(1), torch.ones(3))
    for weight, expected in ((1.0, (images, targets)), (0.0, (images.flip(0), targets.flip(0)))):
        assert torch.equal(mixed_with_reversed(images, targets, torch.full((3,), weight))[0], expected[0])
        assert torch.equal(mixed_with_reversed(images, targets, torch.full((3,), weight))[1], expected[1])


def test_the_mixed_label_is_the_papers_two_terms() -> None:
    labels, logits, weights = torch.tensor([0, 2, 1, 1]), torch.randn(4, 3), torch.rand(4)
    _, targets = mixed_with_reversed(torch.rand(4, 1, 2, 2), F.one_hot(labels, 3).float(), weights)
    own, other = (F.cross_entropy(logits, which, reduction="none") for which in (labels, labels.flip(0)))
    expected = weights * own + (1 - weights) * other
    torch.testing.assert_close(soft_cross_entropy(targets, logits), expected, atol=1e-6, rtol=1e-6)


def test_loss_and_gradient_by_hand() -> None:
    method, batch = a_method(), a_batch()
    net = copy.deepcopy(method.net)
    (labeled, bare, mixed), total, parts = seen_by_the_network(method, batch)
    assert torch.equal(bare, batch.unlabeled)
    _, labels = mixed_with_reversed(batch.images, F.one_hot(batch.labels, 3).float(), kept(labeled, batch.images))
    guesses = net(batch.unlabeled).softmax(1).detach()  # by this batch's statistics; neither sharpened nor moved
    _, guessed = mixed_with_reversed(batch.unlabeled, guesses, kept(mixed, batch.unlabeled))
    supervised = -(labels * net(labeled).log_softmax(1)).sum(1).mean()
    unlabeled = -(guessed * net(mixed).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(parts["supervised"], supervised.detach())
    torch.testing.assert_close(parts["unlabeled"], unlabeled.detach())
    torch.testing.assert_close(total, supervised + unlabeled)
    ours = torch.autograd.grad(total, [*method.net.parameters()])
    theirs = torch.autograd.grad(supervised + unlabeled, [*net.parameters()])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_each_image_draws_its_own_weight_and_keeps_at_least_half() -> None:
    method, batch = a_method(alpha=0.75), a_batch()
    drawn = []
    for step in range(20):
        torch.manual_seed(step)
        (labeled, _, mixed), *_ = seen_by_the_network(method, batch)
        drawn += [kept(labeled, batch.images), kept(mixed, batch.unlabeled)]
    weights = torch.cat(drawn)
    assert weights.min() >= 0.5 - 1e-4
    assert weights.max() <= 1 + 1e-4
    assert len(weights.round(decimals=3).unique()) > 100  # not one a batch
    assert not torch.allclose(drawn[0], drawn[1][:6], atol=1e-3)  # labeled and unlabeled images draw apart
    # the larger of w and 1 - w, with w ~ Beta(3/4, 3/4), has mean 0.783
    assert weights.mean() == pytest.approx(0.783, abs=0.03)


@pytest.mark.parametrize(("alpha", "weight"), [(1e-4, 1.0), (1e7, 0.5)])
def test_alpha_reaches_the_weights(alpha: float, weight: float) -> None:
    (labeled, _, mixed), *_ = seen_by_the_network(a_method(alpha=alpha), batch := a_batch())
    for weights in (kept(labeled, batch.images), kept(mixed, batch.unlabeled)):
        torch.testing.assert_close(weights, torch.full_like(weights, weight), atol=1e-2, rtol=0)


def test_draws_follow_the_global_generator() -> None:
    method, losses = a_method(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(method.loss(a_batch(), 0.5)[0].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("labels_alone", [False, True])
def test_labeled_images_alone_move_the_statistics(labels_alone: bool) -> None:
    method, batch = a_method(labels_alone=labels_alone), a_batch()
    norm = method.net.layers[1]
    norm.momentum = 0.5
    (labeled, *_), *_ = seen_by_the_network(method, batch)
    first = method.net.layers[0](method.net.normalize(labeled))
    torch.testing.assert_close(norm.running_mean, 0.5 * first.mean((0, 2, 3)))
    assert norm.momentum == 0.5


def test_labels_alone_need_no_other_images() -> None:
    method, batch = a_method(labels_alone=True, labeled_batch=6), a_batch()
    del batch.unlabeled
    (labeled,), total, parts = seen_by_the_network(method, batch)
    assert set(parts) == {"supervised"}
    torch.testing.assert_close(total.detach(), parts["supervised"])
    assert kept(labeled, batch.images).min() >= 0.5 - 1e-4
    assert [stream.pool for stream in method.streams()] == ["labeled"]


def test_labels_stay_with_the_labeled_images() -> None:
    labeled, unlabeled = a_method(labeled_batch=4, unlabeled_ratio=3).streams()
    assert (labeled.pool, labeled.labels, labeled.batch) == ("labeled", "labels", 4)
    assert (unlabeled.pool, unlabeled.labels, unlabeled.batch) == ("unlabeled", None, 12)
    assert (labeled.views, unlabeled.views) == ({"images": "weak"}, {"unlabeled": "weak"})
    labeled, unlabeled = a_method(view="strong").streams()
    assert (labeled.views, unlabeled.views) == ({"images": "strong"}, {"unlabeled": "strong"})


def test_the_averaged_weights_answer() -> None:
    method, images = a_method(averaging=0.05), a_batch().images
    before = method.predict(images)
    old = method.net.head.weight.detach().clone()
    with torch.no_grad():
        method.net.head.weight.add_(1.0)
    assert torch.equal(method.predict(images), before)
    method.after_step()
    torch.testing.assert_close(method.average.net.head.weight, old + 0.95)
    torch.testing.assert_close(method.predict(images), method.average.net(images).softmax(1))


@pytest.mark.parametrize(
    "bad",
    [{"labeled_batch": 0}, {"unlabeled_ratio": 0}, {"view": "plain"}, {"alpha": 0.0}, {"alpha": float("nan")}],
)
def test_bad_settings_fail_at_once(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        MixUpSettings(**bad)
