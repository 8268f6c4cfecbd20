import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Optimizer
from wazuka.functional.schedules import cosine
from wazuka.methods.semi.distillation import Distillation, DistillationSettings, distillation_loss
from wazuka.methods.supervised.supervised import Supervised, SupervisedSettings
from wazuka.nets import ConvNet
from wazuka.training import Stepper, train

CLASSES = 3


def some_net(seed: int, widths: tuple[int, ...] = (6,)) -> ConvNet:
    torch.manual_seed(seed)
    net = ConvNet(1, CLASSES, widths, momentum=0.1)
    for _ in range(20):  # statistics of its own, far from those of a batch
        net(torch.rand(8, 1, 8, 8) * 0.5)
    return net


def some_batch(labels: tuple[int, ...] = (0, 1, 2, 0)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.rand(n, 1, 8, 8, generator=generator)  # noqa: E731
    return Batch(images=draw(4), labels=torch.tensor(labels), view=draw(6))


def logits_of(seed: int, n: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, CLASSES, dtype=torch.float64, generator=generator)


# The loss


@pytest.mark.parametrize("t", [0.1, 1.0, 4.0])
def test_loss_and_gradient_in_closed_form(t):
    teacher, student = logits_of(0), logits_of(1).requires_grad_()
    loss = distillation_loss(teacher, student, t)
    goal, said = (teacher / t).softmax(dim=1), (student / t).softmax(dim=1)
    torch.testing.assert_close(loss, t**2 * -(goal * said.log()).sum(dim=1).mean())
    gradient = torch.autograd.grad(loss, student)[0]
    torch.testing.assert_close(gradient, t * (said - goal) / 5)


@pytest.mark.parametrize("t", [0.1, 1.0, 4.0])
def test_who_says_what_the_teacher_says_learns_nothing(t):
    student = logits_of(1).requires_grad_()
    loss = distillation_loss(student.detach() + 7, student, t)  # a constant means nothing
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-15
    goal = (student / t).softmax(dim=1)
    torch.testing.assert_close(loss, t**2 * -(goal * goal.log()).sum(dim=1).mean())  # what is left is entropy


def test_in_the_heat_it_matches_logits():
    """The t^2 keeps the gradient's size: for large t it is that of the squared distance of centered logits over 2 C
    (Hinton et al. 2015, arXiv:1503.02531, Eq. 4).
    """
    teacher, student = logits_of(0), logits_of(1).requires_grad_()
    hot = torch.autograd.grad(distillation_loss(teacher, student, 1e5), student)[0]
    centered = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(hot, centered.detach() / CLASSES / 5, rtol=1e-3, atol=1e-6)


def test_in_the_cold_the_first_guess_is_a_label():
    teacher, student, t = logits_of(0), logits_of(1), 0.01
    hard = F.cross_entropy(student / t, teacher.argmax(dim=1))
    torch.testing.assert_close(distillation_loss(teacher, student, t), t**2 * hard)


def test_a_class_ruled_out_is_no_trouble_and_the_teacher_gets_no_gradient():
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).log().requires_grad_()
    student = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = distillation_loss(teacher, student, 0.5)
    torch.testing.assert_close(loss, 0.25 * (torch.tensor(3.0).log()) / 2)
    assert torch.autograd.grad(loss, teacher, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


# The teacher


def test_the_teacher_is_a_copy_that_nothing_moves():
    """Neither its weights nor its batch norm, whatever mode it came in and however long the student trains."""
    teacher = some_net(0).train()
    before = copy.deepcopy(teacher.state_dict())
    settings = DistillationSettings(teacher_weight=0.5, optimizer=Optimizer(lr=0.1))
    method = Distillation(some_net(1), settings, teacher)
    train(method, lambda step: some_batch(), {method: Stepper(method, settings.optimizer)}, total_steps=5)
    assert method.training
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    assert not any(module.training for module in method.teacher.modules())
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert teacher.training, "the caller's own is left as it was"
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    same = some_net(2)  # a network may teach its next self
    assert all(parameter.requires_grad for parameter in Distillation(same, None, same).net.parameters())


def test_the_teacher_speaks_in_eval_mode_of_each_image_alone():
    teacher = some_net(0)
    method, batch = Distillation(some_net(1), None, teacher).train(), some_batch()
    expected = teacher.eval()(batch.view)
    torch.testing.assert_close(method._told(batch.view), expected)
    torch.testing.assert_close(method._told(batch.view[:1]), expected[:1])
    assert not torch.allclose(teacher.train()(batch.view), expected, atol=1e-3)


def test_a_method_teaches_by_its_answers():
    torch.manual_seed(0)
    trained = Supervised(some_net(0), SupervisedSettings(averaging=0.5))
    with torch.no_grad():
        for parameter in trained.net.parameters():
            parameter.add_(0.1)  # the live weights, which it does not answer with
    method, batch = Distillation(some_net(1), None, trained), some_batch()
    torch.testing.assert_close(method._told(batch.view).softmax(dim=1), trained.eval().predict(batch.view))
    by_logits = Distillation(some_net(1), None, trained.average.net)
    torch.testing.assert_close(method.loss(batch, 0.0)[0], by_logits.loss(batch, 0.0)[0])


# The method


def test_teacher_and_student_see_the_same_view():
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    method = Distillation(some_net(1), None, some_net(0))
    for name, net in (("teacher", method.teacher), ("student", method.net)):
        net.register_forward_hook(lambda module, inputs, output, name=name: seen[name].append(inputs[0]))
    batch = some_batch()
    method.loss(batch, 0.0)
    assert [len(calls) for calls in seen.values()] == [1, 1]
    assert seen["teacher"][0] is seen["student"][0] is batch.view
    assert [dict(stream.views) for stream in method.streams()] == [{"view": "weak"}]


def test_a_student_with_the_teachers_weights_stands_still():
    teacher = some_net(0).eval()
    method = Distillation(copy.deepcopy(teacher), DistillationSettings(temperature=2.0), teacher).eval()
    total, _ = method.loss(some_batch(), 0.0)
    gradients = torch.autograd.grad(total, list(method.net.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-7
    other = Distillation(some_net(1), None, teacher).eval()
    gradients = torch.autograd.grad(other.loss(some_batch(), 0.0)[0], list(other.net.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3


def test_labels_count_what_the_teacher_leaves():
    teacher, batch = some_net(0), some_batch()
    method = Distillation(some_net(1), DistillationSettings(teacher_weight=0.7, temperature=2.0), teacher)
    total, parts = method.loss(batch, 0.0)
    together = copy.deepcopy(method.net)(torch.cat([batch.images, batch.view]))  # batch norm sees both
    supervised = F.cross_entropy(together[:4], batch.labels)
    distilled = distillation_loss(teacher.eval()(batch.view), together[4:], 2.0)
    torch.testing.assert_close(total, 0.3 * supervised + 0.7 * distilled)
    torch.testing.assert_close(parts["supervised"], supervised.detach())
    torch.testing.assert_close(parts["distilled"], distilled.detach())


def test_without_a_supervised_term_no_label_is_asked_for():
    (only,) = Distillation(some_net(1), None, some_net(0)).streams()
    assert (only.pool, only.labels, only.batch) == ("unlabeled", None, 512)
    mixed = DistillationSettings(teacher_weight=0.5, labeled_batch=4, unlabeled_ratio=3)
    labeled, unlabeled = Distillation(some_net(1), mixed, some_net(0)).streams()
    assert (labeled.pool, labeled.labels, labeled.batch) == ("labeled", "labels", 4)
    assert (unlabeled.pool, unlabeled.labels, unlabeled.batch) == ("unlabeled", None, 12)
    losses = [
        Distillation(some_net(1), mixed, some_net(0)).loss(some_batch(labels), 0.0)[1]
        for labels in ((0, 1, 2, 0), (2, 2, 1, 1))
    ]
    assert losses[0]["supervised"] != losses[1]["supervised"]
    assert losses[0]["distilled"] == losses[1]["distilled"]


def test_a_smaller_student_learns_what_the_teacher_says():
    """Not the truth: a teacher that calls everything by the next class's name is followed."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(48) % CLASSES
    images = torch.rand(48, 1, 8, 8, generator=generator) * 0.4
    for label in range(CLASSES):
        images[truth == label, :, 2 * label : 2 * label + 3] += 0.5

    class Wrong(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            bands = torch.stack([images[:, 0, 2 * k : 2 * k + 3].mean(dim=(1, 2)) for k in range(CLASSES)], dim=1)
            return 20 * bands.roll(1, dims=1)

    torch.manual_seed(0)
    settings = DistillationSettings(optimizer=Optimizer(algorithm="adam", lr=1e-2), averaging=0.5)
    method = Distillation(ConvNet(1, CLASSES, (8, 8), momentum=0.1), settings, Wrong())
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, lambda step: Batch(view=images[::2]), steppers, total_steps=40)
    method.eval()
    wanted = (truth[1::2] + 1) % CLASSES
    assert (method.predict(images[1::2]).argmax(dim=1) == wanted).float().mean() > 0.9
    torch.testing.assert_close(method.predict(images), method.average.net(images).softmax(dim=1))


def test_a_student_without_a_teacher_answers_and_cannot_learn():
    method = Distillation(some_net(1)).train().eval()
    torch.testing.assert_close(method.predict(some_batch().view).sum(dim=1), torch.ones(6))
    with pytest.raises(ValueError, match="a student needs a teacher"):
        method.loss(some_batch(), 0.0)
    taught = Distillation(some_net(1), None, some_net(0))
    without = {name: value for name, value in taught.state_dict().items() if not name.startswith("teacher.")}
    assert without.keys() == method.state_dict().keys()
    taught.register_module("teacher", None)
    assert taught.state_dict().keys() == without.keys()
    taught.eval().predict(some_batch().view)


def test_the_defaults_are_the_authors_where_they_say():
    settings = DistillationSettings()
    assert (settings.temperature, settings.teacher_weight, settings.averaging) == (1.0, 1.0, 0.0)
    rule = settings.optimizer
    assert (rule.momentum, rule.nesterov, rule.weight_decay) == (0.9, False, 1e-4)
    assert rule.schedule is cosine


@pytest.mark.parametrize(
    "bad",
    [{"unlabeled_ratio": 0}, {"teacher_weight": 0.0}, {"teacher_weight": 1.1}, {"temperature": 0.0}],
)
def test_bad_settings_fail_at_once(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DistillationSettings(**bad)
