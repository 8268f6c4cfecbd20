import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Optimizer
from wazuka.methods.semi.sla import (
    SLA,
    SLASettings,
    TwoHeads,
    aggregated,
    joint_labels,
    self_distillation_loss,
    tenths,
    transformed,
)
from wazuka.nets import Backbone, ConvNet
from wazuka.training import Stepper, train

CLASSES = 3
MODES = ("joint", "distilled", "multitask", "augmented", "plain")
EVERY = [(turns, colors) for turns in (1, 2, 4) for colors in (1, 3, 6)]
every_transformation = pytest.mark.parametrize(("turns", "colors"), EVERY)


class Little(Backbone):
    """No batch norm: what it says of an image does not depend on the others."""

    def __init__(self, classes: int = CLASSES, size: int = 3 * 4 * 4):
        super().__init__()
        self.feature_size = 6
        self.hidden, self.head = nn.Linear(size, 6), nn.Linear(6, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.hidden(images.flatten(1)).tanh()


class Symmetric(Little):
    """Sees the brightness alone, which no turn and no exchange of colors changes."""

    def features(self, images: Tensor) -> Tensor:
        return self.hidden(images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images).flatten(1)).tanh()


def some(n: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 4, 4, generator=generator), torch.arange(n) % CLASSES


def batch() -> Batch:
    images, labels = some()
    return Batch(images=images, labels=labels)


def method(net: type[Backbone] = Little, **settings) -> SLA:
    torch.manual_seed(0)
    made = SLA(net(), CLASSES, SLASettings(**settings))
    with torch.no_grad():
        for parameter in made.parameters():  # decided networks
            parameter.mul_(2)
    made.after_step()  # the weights that answer follow
    return made.eval()


# The transformations


@every_transformation
def test_copies_are_all_different_and_the_first_is_the_image(turns, colors):
    images, _ = some(2)
    copies = list(transformed(images, turns, colors))
    assert len(copies) == turns * colors == SLASettings(turns=turns, colors=colors).copies
    assert torch.equal(copies[0], images)
    for one, other in itertools.combinations(copies, 2):
        assert not torch.equal(one, other)
    for one in copies:  # pixels are moved, never made
        assert torch.equal(one.flatten(1).sort().values, images.flatten(1).sort().values)


def test_the_order_is_the_authors():
    """augmentations.py: rotation, rotation2, color_perm, color_perm3, and the pairs with the turn outside."""
    images, _ = some(2)

    def colored(x, *order):
        return x[:, list(order)]

    turned = [torch.rot90(images, k, (2, 3)) for k in range(4)]
    color3 = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    color6 = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    expected = {
        (4, 1): turned,
        (2, 1): [turned[0], turned[2]],
        (1, 6): [colored(images, *order) for order in color6],
        (1, 3): [colored(images, *order) for order in color3],
        (2, 3): [colored(x, *order) for x in (turned[0], turned[2]) for order in color3],
        (4, 3): [colored(x, *order) for x in turned for order in color3],
        (4, 6): [colored(x, *order) for x in turned for order in color6],
    }
    for (turns, colors), goal in expected.items():
        for one, other in zip(transformed(images, turns, colors), goal, strict=True):
            assert torch.equal(one, other)
    corner = torch.zeros(1, 3, 4, 4)
    corner[..., 0, 3] = 1  # upper right
    assert list(transformed(corner, 4, 1))[1][..., 0, 0].eq(1).all(), "counterclockwise: now upper left"


# Joint labels and what is made of them


def test_joint_labels_are_class_times_m_plus_copy():
    assert joint_labels(torch.tensor([2, 0]), 4).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    assert joint_labels(torch.tensor([2, 0]), 1).tolist() == [2, 0]


def test_aggregated_by_hand():
    logits = torch.randn(5 * 4, CLASSES * 4, dtype=torch.float64)
    found = aggregated(logits, 4)
    assert found.shape == (5, CLASSES)
    for image, label in itertools.product(range(5), range(CLASSES)):
        mean = sum(logits[image * 4 + j, label * 4 + j] for j in range(4)) / 4
        torch.testing.assert_close(found[image, label], mean)


def test_copies_in_another_order_agree_on_the_same():
    logits, order = torch.randn(2 * 4, CLASSES * 4), torch.tensor([2, 0, 3, 1])
    shuffled = logits.view(2, 4, CLASSES, 4)[:, order][..., order].reshape(2 * 4, CLASSES * 4)
    torch.testing.assert_close(aggregated(shuffled, 4), aggregated(logits, 4))


@pytest.mark.parametrize(("turns", "colors"), [(4, 1), (1, 6), (2, 3)])
def test_a_network_blind_to_the_transformations_aggregates_the_columns_of_one_copy(turns, colors):
    """Its copies say all the same, so the mean over copies is the mean over the columns of a single one."""
    images, m = some()[0], turns * colors
    made = method(Symmetric, turns=turns, colors=colors)
    expected = made.net(images).view(5, CLASSES, m).mean(dim=2).softmax(dim=1)
    torch.testing.assert_close(made.predict(images), expected)


@pytest.mark.parametrize(("turns", "colors"), [(4, 1), (1, 3), (4, 6)])
def test_answers_are_those_of_the_joint_logits(turns, colors):
    images, m = some()[0], turns * colors
    copies = torch.stack(list(transformed(images, turns, colors)), dim=1).flatten(0, 1)
    together = method(turns=turns, colors=colors)
    torch.testing.assert_close(together.predict(images), aggregated(together.net(copies), m).softmax(dim=1))
    single = method(turns=turns, colors=colors, aggregate=False)
    expected = single.net(images).view(5, CLASSES, m)[:, :, 0].softmax(dim=1)
    torch.testing.assert_close(single.predict(images), expected)
    assert not torch.allclose(together.predict(images), single.predict(images), atol=1e-3)
    joint = single.net(images).softmax(dim=1).view(5, CLASSES, m).sum(dim=2)
    torch.testing.assert_close(joint.sum(dim=1), torch.ones(5))  # summed over j it is a distribution over classes


def test_single_inference_asks_the_network_once_and_aggregation_m_times():
    for settings, times in (({"aggregate": False}, 1), ({}, 4), ({"mode": "distilled"}, 1), ({"turns": 2}, 2)):
        made, seen = method(**settings), []
        made.average.net.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(inputs[0])))
        made.predict(some()[0])
        assert seen == [5] * times


# The losses


def test_one_copy_is_plain_cross_entropy():
    images, labels = some()
    made = method(turns=1)
    expected = F.cross_entropy(made.net(images), labels)
    torch.testing.assert_close(made.loss(batch(), 0.0)[0], expected)
    assert torch.equal(made.predict(images), method(turns=1, aggregate=False).predict(images))
    plain, augmented = method(mode="plain"), method(mode="augmented", turns=1)
    assert torch.equal(plain.loss(batch(), 0.0)[0], augmented.loss(batch(), 0.0)[0])


@pytest.mark.parametrize("summed", [False, True])
def test_joint_loss_by_hand(summed):
    (images, labels), made = some(), method(summed=summed)
    total, parts = made.loss(batch(), 0.0)
    by_hand = []
    for (image, label), turn in itertools.product(zip(images, labels, strict=True), range(4)):
        logits = made.net(torch.rot90(image, turn, (1, 2))[None])
        by_hand.append(-logits.log_softmax(dim=1)[0, label * 4 + turn])
    expected = torch.stack(by_hand).mean() * (4 if summed else 1)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(parts["joint"], expected.detach())


def test_multitask_is_the_joint_loss_under_a_constraint():
    """With a joint logit that is the sum of the class's and the transformation's, SLA is MT (Sec. 2.2)."""
    images, labels = some()
    made = method(mode="multitask")
    copies = torch.stack(list(transformed(images, 4, 1)), dim=1).flatten(0, 1)
    classes, kinds = made.net(copies)
    constrained = (classes[:, :, None] + kinds[:, None, :]).flatten(1)
    expected = F.cross_entropy(constrained, joint_labels(labels, 4))
    total, parts = made.loss(batch(), 0.0)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(total.detach(), parts["supervised"] + parts["transformation"])


def test_augmentation_gives_each_copy_the_class():
    (images, labels), made = some(), method(mode="augmented")
    by_copy = [F.cross_entropy(made.net(torch.rot90(images, turn, (2, 3))), labels) for turn in range(4)]
    torch.testing.assert_close(made.loss(batch(), 0.0)[0], sum(by_copy) / 4)


def test_the_plain_rows_loss_sees_the_images_alone():
    (images, labels), made = some(), method(mode="plain")
    torch.testing.assert_close(made.loss(batch(), 0.0)[0], F.cross_entropy(made.net(images), labels))


@pytest.mark.parametrize(("temperature", "summed"), [(1.0, False), (2.5, True)])
def test_self_distillation_by_hand(temperature, summed):
    (images, labels), made = some(), method(mode="distilled", temperature=temperature, summed=summed)
    copies = torch.stack(list(transformed(images, 4, 1)), dim=1).flatten(0, 1)
    joint = made.net(copies)[1]
    alone = made.net(images)[0]  # the untouched images
    goal, said = (aggregated(joint, 4) / temperature).softmax(dim=1), (alone / temperature).log_softmax(dim=1)
    divergence = (goal * (goal.log() - said)).sum(dim=1).mean() * temperature**2
    supervised, of_all = F.cross_entropy(alone, labels), F.cross_entropy(joint, joint_labels(labels, 4))
    total, parts = made.loss(batch(), 0.0)
    torch.testing.assert_close(parts["distilled"], divergence.detach())
    torch.testing.assert_close(parts["supervised"], supervised.detach())
    torch.testing.assert_close(total, of_all * (4 if summed else 1) + supervised + divergence)


def test_the_teacher_of_the_self_distillation_is_not_taught_by_it():
    teacher, student = torch.randn(2, 5, CLASSES, dtype=torch.float64, requires_grad=True).unbind()
    loss = self_distillation_loss(teacher, student, temperature=2.0)
    assert torch.autograd.grad(loss, teacher, allow_unused=True, retain_graph=True) == (None,)
    gradient = torch.autograd.grad(loss, student)[0]
    torch.testing.assert_close(gradient, 2.0 * ((student / 2).softmax(1) - (teacher / 2).softmax(1)).detach() / 5)
    same = self_distillation_loss(student, student, temperature=2.0)
    assert same == 0
    assert torch.autograd.grad(same, student)[0].abs().max() < 1e-15
    made = method(mode="distilled")
    total, _ = made.loss(batch(), 0.0)
    copies = torch.stack(list(transformed(some()[0], 4, 1)), dim=1).flatten(0, 1)
    joint = F.cross_entropy(made.net(copies)[1], joint_labels(some()[1], 4))
    head = list(made.net.other.parameters())  # the joint head learns from the joint loss alone
    torch.testing.assert_close(
        torch.autograd.grad(total, head, retain_graph=True), torch.autograd.grad(joint, head), atol=1e-7, rtol=1e-5
    )


# The method


@pytest.mark.parametrize(
    ("settings", "outputs"),
    [
        ({"mode": "joint"}, [12]),
        ({"mode": "joint", "colors": 6}, [72]),
        ({"mode": "distilled", "colors": 3}, [CLASSES, 36]),
        ({"mode": "multitask"}, [CLASSES, 4]),
        ({"mode": "augmented"}, [CLASSES]),
        ({"mode": "plain"}, [CLASSES]),
    ],
)
def test_heads_have_as_many_outputs_as_the_labels_need_and_none_is_idle(settings, outputs):
    made = method(**settings)
    heads = [made.net.net.head, made.net.other] if isinstance(made.net, TwoHeads) else [made.net.head]
    assert [head.out_features for head in heads] == outputs
    total, _ = made.loss(batch(), 0.0)
    learning = [parameter for parameter in made.parameters() if parameter.requires_grad]
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(total, learning))


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_sees_all_copies_in_one_pass(mode):
    torch.manual_seed(0)
    made = SLA(ConvNet(3, CLASSES, (4,), momentum=1.0), CLASSES, SLASettings(mode=mode))
    images, labels = some()
    passes = []
    norm = next(module for module in made.net.modules() if isinstance(module, nn.BatchNorm2d))
    norm.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0]))
    made.train().loss(Batch(images=images, labels=labels), 0.0)
    assert [len(inputs) for inputs in passes] == [5 if mode == "plain" else 20]
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, passes[0].mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_answers_come_from_the_averaged_weights_of_all_heads(mode, averaging):
    images = some()[0]
    made = SLA(Little(), CLASSES, SLASettings(mode=mode, averaging=averaging))
    rule = Optimizer(lr=0.5, momentum=0.0)
    train(made, lambda step: batch(), {made: Stepper(made, rule)}, total_steps=3)
    live = copy.deepcopy(made)
    live.average.net.load_state_dict(made.net.state_dict())
    assert torch.allclose(made.predict(images), live.predict(images)) == (averaging == 0.0)


@pytest.mark.parametrize("mode", MODES)
def test_it_learns_turned_colors_in_the_loop(mode):
    """Which color, and which side is bright: after some steps every row of the paper names the colors."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % CLASSES
    images = torch.rand(60, 3, 8, 8, generator=generator) * 0.4
    images[torch.arange(60), labels, :4] += 0.5
    torch.manual_seed(0)
    settings = SLASettings(mode=mode, optimizer=Optimizer(algorithm="adam", lr=1e-2))
    made = SLA(ConvNet(3, CLASSES, (8, 8), momentum=0.1), CLASSES, settings)
    steppers = {player: Stepper(player, how) for player, how in made.players().items()}
    train(made, lambda step: Batch(images=images[::2], labels=labels[::2]), steppers, total_steps=25)
    made.eval()
    assert (made.predict(images[1::2]).argmax(dim=1) == labels[1::2]).float().mean() > 0.9


def test_it_asks_for_labeled_images_alone():
    (stream,) = method(labeled_batch=7, view="strong").streams()
    assert (stream.pool, stream.batch, stream.labels) == ("labeled", 7, "labels")
    assert dict(stream.views) == {"images": "strong"}


def test_the_learning_rate_falls_to_a_tenth_twice():
    assert [tenths(p) for p in (0.0, 0.49, 0.5, 0.74)] == pytest.approx([1, 1, 0.1, 0.1])
    assert [tenths(p) for p in (0.75, 1.0)] == pytest.approx([0.01, 0.01])
    rule = SLASettings().optimizer
    assert (rule.lr, rule.momentum, rule.nesterov, rule.weight_decay) == (0.1, 0.9, False, 1e-4)
    assert rule.schedule is tenths


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"turns": 3}, "turns must be 1, 2 or 4"),
        ({"colors": 2}, "colors 1, 3 or 6"),
        ({"mode": "both"}, "mode must be one of joint, distilled"),
        ({"view": "plain"}, "view must be one of weak, strong"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_settings_fail_at_once(bad, message):
    with pytest.raises(ValueError, match=message):
        SLASettings(**bad)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (3, 8, 9), "four turns need square images, and these are 8x9 pixels; set turns=2"),
        ({"colors": 3}, (1, 8, 8), "colors=3 permutes 3 channels, and the images have 1; set colors=1"),
        ({"colors": 6, "turns": 2}, (4, 8, 8), "the images have 4"),
    ],
)
def test_images_that_cannot_be_transformed_are_told_at_once(settings, shape, message):
    with pytest.raises(ValueError, match=message):
        SLA(Little(), CLASSES, SLASettings(**settings), shape=shape)
    SLA(Little(), CLASSES, SLASettings(**settings))  # who does not say the shape is not asked
    SLA(Little(), CLASSES, SLASettings(**settings, mode="plain"), shape=shape)
    SLA(Little(), CLASSES, SLASettings(turns=2), shape=shape)
