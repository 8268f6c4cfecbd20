import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wazuka.contract import Batch
from wazuka.functional.consistency import squared_consistency
from wazuka.methods.semi.pi_model import PiModel, PiModelSettings, two_sided_consistency
from wazuka.nets import ConvNet

RISEN = 1.0  # the progress at which the ramp has reached its full height


def a_method(**settings) -> PiModel:
    torch.manual_seed(0)
    return PiModel(ConvNet(1, 3, (4, 8)), PiModelSettings(**settings)).train()


def a_batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    images, first, second = (torch.rand(n, 1, 8, 8, generator=draw) for n in (4, 10, 10))
    return Batch(images=images, labels=torch.arange(4) % 3, first=first, second=second)


def logits_as_images(first: torch.Tensor, second: torch.Tensor) -> Batch:
    """For the network that hands its images through."""
    certain = torch.eye(first.shape[1], dtype=first.dtype)[:1] * 99
    return Batch(images=certain, labels=torch.tensor([0]), first=first, second=second)


@pytest.mark.parametrize("two_sided", [False, True])
def test_loss_and_gradient_by_hand(two_sided: bool) -> None:
    method, batch = a_method(consistency_weight=7.0, two_sided=two_sided), a_batch()
    net = copy.deepcopy(method.net)
    supervised = F.cross_entropy(net(batch.images), batch.labels)
    first, second = net(batch.first).softmax(1), net(batch.second).softmax(1)  # each a batch of its own
    expected = supervised + 7 * F.mse_loss(second, first if two_sided else first.detach())
    total, _ = method.loss(batch, RISEN)
    torch.testing.assert_close(total, expected)
    ours = torch.autograd.grad(total, [*method.net.parameters()])
    torch.testing.assert_close(ours, torch.autograd.grad(expected, [*net.parameters()]))


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_first_view_moves_only_in_the_papers_form(two_sided: bool) -> None:
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    first.requires_grad_(), second.requires_grad_()
    settings = PiModelSettings(two_sided=two_sided, consistency_weight=1.0)
    total, _ = PiModel(nn.Flatten(), settings).train().loss(logits_as_images(first, second), RISEN)
    found = torch.autograd.grad(total, [first, second], allow_unused=True)
    expected = torch.autograd.grad(F.mse_loss(first.softmax(1), second.softmax(1)), [first, second])
    assert (found[0] is not None) == two_sided
    torch.testing.assert_close(found[1], expected[1])
    if two_sided:
        torch.testing.assert_close(found[0], expected[0])


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_fixed_target_costs_no_backward_pass(two_sided: bool) -> None:
    method, learns = a_method(two_sided=two_sided), []
    method.net.register_forward_hook(lambda net, inputs, output: learns.append(output.requires_grad))
    method.loss(a_batch(), RISEN)
    assert learns == [True, two_sided, True]


def test_both_forms_are_one_number_and_at_most_two_over_c() -> None:
    first, second = torch.randn(2, 50, 5).mul(20).unbind()
    both = two_sided_consistency(first, second)
    assert both.shape == (50,)
    torch.testing.assert_close(both, squared_consistency(second, target=first))
    torch.testing.assert_close(both, two_sided_consistency(second, first))
    assert both.min() >= 0
    assert both.max() <= 2 / 5 + 1e-6
    opposite = two_sided_consistency(torch.tensor([[99.0, 0, 0, 0, 0]]), torch.tensor([[0, 0, 99.0, 0, 0]]))
    torch.testing.assert_close(opposite, torch.tensor([2 / 5]))


@pytest.mark.parametrize("two_sided", [False, True])
def test_one_view_twice_is_consistent_unless_the_network_is_noisy(two_sided: bool) -> None:
    batch = a_batch()
    batch.second = batch.first
    method = a_method(two_sided=two_sided)
    total, parts = method.loss(batch, RISEN)
    assert parts["consistency"] == 0
    torch.testing.assert_close(total.detach(), parts["supervised"])
    method.net.layers.append(nn.Dropout(0.5))  # a new mask in each pass is the paper's noise
    assert method.loss(batch, RISEN)[1]["consistency"] > 0


@pytest.mark.parametrize("two_sided", [False, True])
def test_labeled_images_alone_move_the_statistics(two_sided: bool) -> None:
    method, batch = a_method(two_sided=two_sided), a_batch()
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
def test_consistency_weight_rises_along_a_line(ramp: float, progress: float, share: float) -> None:
    total, parts = a_method(ramp=ramp, consistency_weight=30.0).loss(a_batch(), progress)
    assert parts["consistency"] > 0
    torch.testing.assert_close(total.detach(), parts["supervised"] + 30 * share * parts["consistency"])


def test_labels_stay_with_the_labeled_images_and_views_are_drawn_alike() -> None:
    labeled, unlabeled = a_method(labeled_batch=4, unlabeled_ratio=3).streams()
    assert (labeled.pool, labeled.labels, labeled.batch) == ("labeled", "labels", 4)
    assert (unlabeled.pool, unlabeled.labels, unlabeled.batch) == ("unlabeled", None, 12)
    assert (labeled.views, unlabeled.views) == ({"images": "weak"}, {"first": "weak", "second": "weak"})
    labeled, unlabeled = a_method(view="strong").streams()
    assert (labeled.views, unlabeled.views) == ({"images": "strong"}, {"first": "strong", "second": "strong"})


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
        {"labeled_batch": 0}, {"unlabeled_ratio": 0}, {"view": "plain"}, {"consistency_weight": -1.0}, {"ramp": 1.1},
        {"ramp": -0.1}, {"consistency_weight": float("nan")},
    ],
)  # fmt: skip
def test_bad_settings_fail_at_once(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        PiModelSettings(**bad)
