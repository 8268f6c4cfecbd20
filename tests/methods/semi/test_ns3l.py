import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch
from wazuka.functional.guessing import negative_sampling_loss
from wazuka.methods.semi.ns3l import NS3L, NS3LSettings
from wazuka.nets import ConvNet


def a_batch() -> Batch:
    g = torch.Generator().manual_seed(1)
    draw = lambda n: torch.rand(n, 1, 8, 8, generator=g)  # noqa: E731
    return Batch(images=draw(4), labels=torch.arange(4) % 3, guessing=draw(6), learning=draw(6))


def a_method(**settings) -> NS3L:
    torch.manual_seed(0)
    return NS3L(ConvNet(1, 3, (4, 8), momentum=0.5), 3, NS3LSettings(labeled_batch=4, **settings)).train()


def by_hand(batch: Batch, threshold: float) -> tuple[Tensor, Tensor, nn.Module]:
    """Supervised loss, NS3L's loss and the network they are of."""
    net = a_method().net
    guesses = net(batch.guessing).softmax(dim=1).detach()
    assert 0 < (guesses < threshold).sum() < guesses.numel()
    logits = net(torch.cat([batch.images, batch.learning]))
    negative = negative_sampling_loss(guesses, logits[4:], threshold).sum() / 10  # four labeled images count as zeros
    return F.cross_entropy(logits[:4], batch.labels), negative, net


def test_the_step_by_hand() -> None:
    method, batch = a_method(negative_share=0.9, negative_weight=2.0), a_batch()
    supervised, negative, net = by_hand(batch, threshold=0.3)
    total, parts = method.loss(batch, 1.0)
    torch.testing.assert_close(parts["supervised"], supervised.detach())
    torch.testing.assert_close(parts["unlabeled"], negative.detach())
    torch.testing.assert_close(total, supervised + 2 * negative)
    torch.testing.assert_close(
        torch.autograd.grad(total, list(method.net.parameters())),
        torch.autograd.grad(supervised + 2 * negative, list(net.parameters())),
    )


def test_the_weight_rises_as_exp_of_minus_five_to_its_full_height() -> None:
    method, batch = a_method(negative_share=0.9), a_batch()
    for progress, factor in ((0.0, 0.0067379), (0.2, 0.2865048), (0.4, 1.0), (1.0, 1.0)):
        total, parts = method.loss(batch, progress)
        torch.testing.assert_close(total.detach(), parts["supervised"] + factor * parts["unlabeled"])


def test_where_no_class_is_unlikely_only_the_labels_teach() -> None:
    method, batch = a_method(negative_share=1e-9), a_batch()
    batch.learning.requires_grad_()
    method.eval()  # so that batch norm does not tie the images to each other
    total, parts = method.loss(batch, 1.0)
    assert parts["used"] == 0
    assert parts["unlabeled"].abs() < 1e-7
    torch.testing.assert_close(total.detach(), parts["supervised"])
    assert torch.autograd.grad(total, batch.learning)[0].abs().max() < 1e-8


def test_one_class_left_is_a_pseudo_label() -> None:
    method, batch = a_method(negative_share=0.9, negative_weight=1.0), a_batch()
    with torch.no_grad():
        method.net.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # every guess is class 0
    method.eval()
    logits = method.net(batch.learning)
    _, parts = method.loss(batch, 1.0)
    assert parts["used"] == 1
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64)).detach() * 6 / 10
    torch.testing.assert_close(parts["unlabeled"], expected, atol=1e-7, rtol=1e-4)


def test_only_the_learning_view_learns() -> None:
    method, batch = a_method(negative_share=0.9), a_batch()
    batch.guessing.requires_grad_()
    batch.learning.requires_grad_()
    total, _ = method.loss(batch, 1.0)
    guessing, learning = torch.autograd.grad(total, (batch.guessing, batch.learning), allow_unused=True)
    assert guessing is None
    assert learning.abs().max() > 0


def test_running_statistics_are_of_the_pass_that_learns() -> None:
    method, batch, twin = a_method(), a_batch(), a_method()
    method.loss(batch, 1.0)
    twin.net(torch.cat([batch.images, batch.learning]))
    for (name, mine), theirs in zip(method.net.named_buffers(), twin.net.buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(mine, theirs, msg=name)


def test_under_bfloat16_every_weight_learns_as_in_float32() -> None:
    gradients = []
    for rough in (False, True):
        method = a_method(negative_share=0.9, negative_weight=5.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            total, _ = method.loss(a_batch(), 1.0)
        each = torch.autograd.grad(total, list(method.net.parameters()))
        assert all(gradient.abs().max() > 0 for gradient in each)
        gradients.append(torch.cat([gradient.flatten() for gradient in each]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.9


def test_the_threshold_is_the_papers_for_ten_classes() -> None:
    assert NS3L(ConvNet(), 10).threshold == pytest.approx(0.04)
    assert NS3L(ConvNet(classes=100), 100).threshold == pytest.approx(0.004)


def test_views_are_those_asked_for_and_unlabeled_images_keep_their_labels_to_themselves() -> None:
    labeled, unlabeled = a_method(unlabeled_ratio=3, learn_view="strong").streams()
    assert (labeled.batch, unlabeled.batch) == (4, 12)
    assert (labeled.labels, unlabeled.labels) == ("labels", None)
    assert unlabeled.views == {"guessing": "weak", "learning": "strong"}
    assert a_method().streams()[1].views == {"guessing": "weak", "learning": "weak"}


@pytest.mark.parametrize(
    "bad",
    [
        {"guess_view": "plain"}, {"learn_view": "same"}, {"negative_share": 1.0}, {"negative_share": 0.0},
        {"negative_weight": -1.0}, {"ramp": 0.0}, {"unlabeled_ratio": 0},
    ],
)  # fmt: skip
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        NS3LSettings(**bad)
