import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch
from wazuka.functional.guessing import negative_sampling_loss
from wazuka.methods.semi.pseudo_label import PseudoLabel, PseudoLabelSettings
from wazuka.nets import ConvNet

RISEN = 1.0  # the progress at which every ramp has reached its full height


def a_method(**settings) -> PseudoLabel:
    """Its threshold lies in the middle of what its new network is sure of."""
    torch.manual_seed(0)
    return PseudoLabel(ConvNet(1, 3, (4, 8)), 3, PseudoLabelSettings(**({"threshold": 0.387} | settings))).train()


def a_batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    images, unlabeled, again = (torch.rand(n, 1, 8, 8, generator=draw) for n in (4, 10, 10))
    return Batch(images=images, labels=torch.arange(4) % 3, unlabeled=unlabeled, again=again)


def logits_as_images(unlabeled: list[list[float]], again: list[list[float]] | None = None) -> Batch:
    """For the network that hands its images through: one certain labeled image and the logits one wants."""
    classes = len(unlabeled[0])
    given = [torch.tensor(rows, dtype=torch.float64, requires_grad=True) for rows in (unlabeled, again or unlabeled)]
    certain = torch.tensor([[99.0] + [0.0] * (classes - 1)], dtype=torch.float64)
    return Batch(images=certain, labels=torch.tensor([0]), unlabeled=given[0], again=given[1])


def handing_through(classes: int, **settings) -> PseudoLabel:
    return PseudoLabel(nn.Flatten(), classes, PseudoLabelSettings(**settings)).train()


def gradient(loss: Tensor, to: Tensor) -> Tensor:
    return torch.autograd.grad(loss, to, retain_graph=True, materialize_grads=True)[0]


def test_loss_and_gradient_by_hand() -> None:
    method, batch = a_method(unlabeled_weight=3.0), a_batch()
    net = copy.deepcopy(method.net)
    supervised = F.cross_entropy(net(batch.images), batch.labels)
    logits = net(batch.unlabeled)  # a batch of its own
    confidence, guess = logits.detach().softmax(1).max(1)
    sure = confidence >= 0.387
    assert 0 < sure.sum() < 10
    expected = supervised + 3 * (F.cross_entropy(logits, guess, reduction="none") * sure).sum() / 10
    total, parts = method.loss(batch, RISEN)
    torch.testing.assert_close(total, expected)
    assert parts["used"] == sure.float().mean()
    ours, theirs = (torch.autograd.grad(*pair) for pair in ((total, [*method.net.parameters()]),
                                                             (expected, [*net.parameters()])))  # fmt: skip
    torch.testing.assert_close(ours, theirs)


def test_only_sure_images_pull_each_towards_its_guess() -> None:
    batch = logits_as_images([[4.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 5.0]])  # sure, unsure, sure
    total, _ = handing_through(3, threshold=0.9).loss(batch, RISEN)
    expected = (batch.unlabeled.softmax(1) - F.one_hot(torch.tensor([0, 0, 2]))) / 3  # (p - onehot) / N
    expected = expected * torch.tensor([[1], [0], [1]])
    torch.testing.assert_close(gradient(total, batch.unlabeled), expected.detach())


def test_labeled_images_alone_move_the_statistics() -> None:
    method, batch = a_method(negative_weight=1.0), a_batch()
    norm = method.net.layers[1]
    norm.momentum = 0.5
    first = method.net.layers[0](method.net.normalize(batch.images))
    method.loss(batch, RISEN)
    torch.testing.assert_close(norm.running_mean, 0.5 * first.mean((0, 2, 3)))
    assert norm.momentum == 0.5


@pytest.mark.parametrize(
    ("ramp", "progress", "share"),
    [(0.4, 0.0, 0.0), (0.4, 0.1, 0.25), (0.4, 0.4, 1.0), (0.4, 0.9, 1.0), (0.0, 0.0, 1.0)],
)
def test_both_unlabeled_losses_rise_along_a_line(ramp: float, progress: float, share: float) -> None:
    method = a_method(ramp=ramp, unlabeled_weight=2.0, negative_weight=5.0, negative_share=0.9)
    total, parts = method.loss(a_batch(), progress)
    assert min(parts["unlabeled"], parts["negative"]) > 0
    expected = parts["supervised"] + share * (2 * parts["unlabeled"] + 5 * parts["negative"])
    torch.testing.assert_close(total.detach(), expected)


def test_negative_loss_by_hand_is_a_mean_over_labeled_images_too() -> None:
    method, batch = a_method(negative_weight=1.0, negative_share=0.8), a_batch()
    net = copy.deepcopy(method.net)
    guesses, second = net(batch.unlabeled).softmax(1), net(batch.again).softmax(1)
    negatives = guesses < 0.8 / 3
    assert 0 < negatives.sum() < 30
    expected = -(1 - (negatives * second).sum(1)).log().sum() / 14  # 4 labeled, 10 unlabeled
    torch.testing.assert_close(method.loss(batch, RISEN)[1]["negative"], expected.detach())


def test_negative_loss_moves_the_second_view_alone_and_takes_no_side() -> None:
    batch = logits_as_images([[2.0, 2.0, -3.0]], again=[[0.5, 0.2, 0.1]])
    method = handing_through(3, threshold=1.1, negative_weight=1.0)
    total, _ = method.loss(batch, RISEN)
    assert gradient(total, batch.unlabeled).eq(0).all()
    moved = gradient(total, batch.again) * 2  # one labeled and one unlabeled image
    p = batch.again.detach().softmax(1)[0]
    torch.testing.assert_close(moved[0], torch.stack([-p[0] * p[2] / (1 - p[2]), -p[1] * p[2] / (1 - p[2]), p[2]]))


def test_all_classes_but_one_negative_is_the_cross_entropy_of_that_one() -> None:
    batch = logits_as_images([[3.0, 0.0, 0.0]], again=[[0.3, 0.2, 0.1]])
    _, parts = handing_through(3, negative_weight=1.0).loss(batch, RISEN)
    torch.testing.assert_close(2 * parts["negative"], F.cross_entropy(batch.again, torch.tensor([0])).detach())


def test_no_negative_class_no_loss() -> None:
    batch = logits_as_images([[0.3, 0.2, 0.1]], again=[[0.3, 0.2, 9.0]])
    total, parts = handing_through(3, threshold=1.1, negative_weight=1.0).loss(batch, RISEN)
    assert parts["negative"] == 0
    assert gradient(total, batch.again).abs().max() < 1e-15


def test_the_threshold_of_negatives_shrinks_with_the_number_of_classes() -> None:
    for classes in (2, 10):
        batch = logits_as_images([[0.0] * classes])
        probs = torch.full((1, classes), 1.0)
        probs[0, 0] = 0.4 - 0.01  # of 1 / C: just below
        probs[0, -1] += 1 - 0.39
        batch.unlabeled = (probs / classes).log()
        parts = handing_through(classes, negative_weight=1.0).loss(batch, RISEN)[1]
        expected = negative_sampling_loss(probs / classes, batch.again, 0.4 / classes).sum() / 2
        assert expected > 0
        torch.testing.assert_close(parts["negative"], expected.detach(), check_dtype=False)


def test_it_asks_for_the_second_view_only_when_needed_and_never_for_labels() -> None:
    labeled, unlabeled = a_method(labeled_batch=4, unlabeled_ratio=3).streams()
    assert (labeled.pool, labeled.labels, labeled.batch) == ("labeled", "labels", 4)
    assert (unlabeled.pool, unlabeled.labels, unlabeled.batch) == ("unlabeled", None, 12)
    assert (labeled.views, unlabeled.views) == ({"images": "weak"}, {"unlabeled": "weak"})
    labeled, unlabeled = a_method(view="strong", negative_weight=0.1).streams()
    assert (labeled.views, unlabeled.views) == ({"images": "strong"}, {"unlabeled": "strong", "again": "strong"})


def test_without_the_negative_loss_there_is_no_second_pass() -> None:
    method, batch = a_method(), a_batch()
    del batch.again
    assert set(method.loss(batch, RISEN)[1]) == {"supervised", "unlabeled", "used"}


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
    [
        {"labeled_batch": 0}, {"unlabeled_ratio": 0}, {"view": "plain"}, {"threshold": -0.1}, {"ramp": 1.1},
        {"unlabeled_weight": -1.0}, {"negative_weight": -1.0}, {"negative_share": 0.0}, {"negative_share": 1.0},
        {"threshold": float("nan")}, {"negative_weight": float("nan")},
    ],
)  # fmt: skip
def test_bad_settings_fail_at_once(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        PseudoLabelSettings(**bad)
