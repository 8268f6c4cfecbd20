import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wazuka.contract import Batch, Method
from wazuka.methods.semi.mean_teacher import MeanTeacher, MeanTeacherSettings
from wazuka.methods.semi.pi_model import PiModel, PiModelSettings
from wazuka.nets import ConvNet
from wazuka.training import Stepper, train

RISEN = 1.0  # the progress at which the ramp has reached its full height


def a_method(**settings) -> MeanTeacher:
    torch.manual_seed(0)
    return MeanTeacher(ConvNet(1, 3, (4, 8)), MeanTeacherSettings(**settings)).train()


def set_apart(method: MeanTeacher) -> MeanTeacher:
    """A student that has gone elsewhere since its weights were averaged, in its running statistics too."""
    with torch.no_grad():
        for parameter in method.net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        method.net.layers[1].running_mean.add_(2)
    return method


def a_batch(seed: int = 1) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    images, first, second = (torch.rand(n, 1, 8, 8, generator=draw) for n in (4, 10, 10))
    return Batch(images=images, labels=torch.arange(4) % 3, first=first, second=second)


def trained(method: Method, steps: int) -> Method:
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, a_batch, steppers, total_steps=steps)
    return method


def test_loss_and_gradient_by_hand() -> None:
    method, batch = set_apart(a_method(consistency_weight=7.0)), a_batch()
    student, teacher = copy.deepcopy(method.net), copy.deepcopy(method.teacher.net).train()
    supervised = F.cross_entropy(student(batch.images), batch.labels)
    taught = teacher(batch.first).softmax(1)  # by the statistics of this batch
    expected = supervised + 7 * F.mse_loss(student(batch.second).softmax(1), taught)
    total, _ = method.loss(batch, RISEN)
    torch.testing.assert_close(total, expected)
    ours = torch.autograd.grad(total, [*method.net.parameters()])
    torch.testing.assert_close(ours, torch.autograd.grad(expected, [*student.parameters()]))


def test_nothing_flows_into_the_teacher_or_its_view() -> None:
    method, batch = a_method(), a_batch()
    batch.first.requires_grad_()
    total, _ = method.loss(batch, RISEN)
    assert torch.autograd.grad(total, batch.first, allow_unused=True) == (None,)
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_teacher_is_the_average_of_the_weights_before_and_after_the_step() -> None:
    method = a_method(averaging=0.05)
    before = {name: value.clone() for name, value in method.net.named_parameters()}
    trained(method, steps=1)
    after = dict(method.net.named_parameters())
    for name, value in method.teacher.net.named_parameters():
        assert not torch.equal(after[name], before[name])
        torch.testing.assert_close(value, 0.05 * before[name] + 0.95 * after[name], atol=1e-7, rtol=1e-5)


def test_teacher_without_memory_is_the_pi_model() -> None:
    def noisy_net() -> nn.Module:
        torch.manual_seed(0)
        net = ConvNet(1, 3, (4, 8))
        net.layers.append(nn.Dropout(0.3))
        return net

    rule = MeanTeacherSettings().optimizer
    ours = MeanTeacher(noisy_net(), MeanTeacherSettings(consistency_weight=9.0, averaging=0.0))
    pi_model = PiModel(noisy_net(), PiModelSettings(consistency_weight=9.0, averaging=0.0, optimizer=rule))
    states = [trained(method, steps=5).net.state_dict() for method in (ours, pi_model)]
    for name, value in states[0].items():
        if not name.endswith("num_batches_tracked"):  # the Pi-model's own network makes one pass more
            torch.testing.assert_close(value, states[1][name], msg=name)
    remembering = trained(MeanTeacher(noisy_net(), MeanTeacherSettings(consistency_weight=9.0)), steps=5).net
    assert not torch.allclose(remembering.head.weight, states[0]["head.weight"])


def test_only_the_labeled_images_move_the_statistics_which_the_teacher_takes_over() -> None:
    method, batch = a_method(), a_batch()
    norm, taught = method.net.layers[1], method.teacher.net.layers[1]
    norm.momentum = taught.momentum = 0.5
    first = method.net.layers[0](method.net.normalize(batch.images))
    method.loss(batch, RISEN)
    torch.testing.assert_close(norm.running_mean, 0.5 * first.mean((0, 2, 3)))
    assert taught.running_mean.eq(0).all()
    assert norm.momentum == taught.momentum == 0.5
    method.after_step()
    assert torch.equal(taught.running_mean, norm.running_mean)


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


def test_the_teacher_answers_by_its_running_statistics() -> None:
    method, images = set_apart(a_method()), a_batch().images
    expected = copy.deepcopy(method.teacher.net).eval()(images).softmax(1)
    assert torch.equal(method.predict(images), expected)
    method.loss(a_batch(), RISEN)
    assert torch.equal(method.predict(images), expected)


@pytest.mark.parametrize(
    "bad",
    [
        {"labeled_batch": 0}, {"unlabeled_ratio": 0}, {"view": "plain"}, {"consistency_weight": -1.0}, {"ramp": 1.1},
        {"ramp": -0.1}, {"consistency_weight": float("nan")},
    ],
)  # fmt: skip
def test_bad_settings_fail_at_once(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        MeanTeacherSettings(**bad)
