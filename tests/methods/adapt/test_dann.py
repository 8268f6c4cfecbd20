import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.adapt.moons import Plane, accuracy, learn, turned_moons
from wazuka.contract import Batch, Method, Optimizer, Stream
from wazuka.functional.schedules import annealed
from wazuka.methods.adapt.dann import DANN, DANNSettings, domain_head, domain_loss, reverse_gradient
from wazuka.nets import Backbone
from wazuka.training import Stepper, train

PLAIN = Optimizer(lr=0.1, momentum=0.0)


class Small(Backbone):
    def __init__(self, norm: bool = False):
        super().__init__()
        self.layer, self.head, self.feature_size = nn.Linear(4, 5), nn.Linear(5, 3), 5
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()

    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.layer(images.flatten(1))).tanh()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))  # in double, which the base class would round


def ready(norm: bool = False, **settings) -> DANN:
    torch.manual_seed(0)
    method = DANN(Small(norm), DANNSettings(**({"hidden": (6,), "optimizer": PLAIN} | settings)))
    return method.double().train()


def images(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_batch(seed: int = 1) -> Batch:
    return Batch(source=images(8, seed), target=images(6, seed + 1), labels=torch.arange(8) % 3)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = list(module.parameters())
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)) if parameters else []


def lambda_of(progress: float, steepness: float = 10.0) -> float:
    return 2 / (1 + math.exp(-steepness * progress)) - 1


# The reversal


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5])
def test_reversal_is_the_identity_forward_and_minus_lambda_backward(strength: float):
    features = torch.randn(4, 5, requires_grad=True)
    out = reverse_gradient(features, strength)
    assert torch.equal(out, features)
    above = torch.randn(4, 5)
    assert torch.equal(torch.autograd.grad(out, features, above)[0], -strength * above)


def test_strength_rises_as_the_paper_says():
    method = ready()
    assert method.strength(0.0) == 0.0
    assert [method.strength(p) for p in (0.1, 0.5, 1.0)] == pytest.approx([lambda_of(p) for p in (0.1, 0.5, 1.0)])
    assert method.strength(0.1) == pytest.approx(0.46211715726)
    slow, weak = ready(reversal_steepness=20.0), ready(reversal_limit=0.1)
    assert slow.strength(0.05) == pytest.approx(method.strength(0.1))
    assert weak.strength(0.3) == pytest.approx(0.1 * method.strength(0.3))


# The loss


def test_source_is_1_target_is_0_and_each_domain_is_averaged_by_itself():
    source, target = torch.tensor([2.0]), torch.tensor([0.5, 1.0, -3.0])
    by_hand = math.log1p(math.exp(-2)) + sum(math.log1p(math.exp(x)) for x in (0.5, 1.0, -3.0)) / 3
    assert domain_loss(source, target).item() == pytest.approx(by_hand)
    assert domain_loss(torch.zeros(5), torch.zeros(2)).item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.7])
def test_head_descends_with_full_weight_and_features_ascend_with_lambda(joint: bool, norm: bool, progress: float):
    method, batch = ready(norm, joint=joint), small_batch()
    twin = copy.deepcopy(method)
    total, parts = method.loss(batch, progress)
    if joint:
        source, target = twin.net.features(torch.cat([batch.source, batch.target])).split([8, 6])
    else:
        source, target = twin.net.features(batch.source), twin.net.features(batch.target)
    supervised = F.cross_entropy(twin.net.head(source), batch.labels)
    real, fake = twin.domain_head(source)[:, 0], twin.domain_head(target)[:, 0]
    domain = -F.logsigmoid(real).mean() - F.logsigmoid(-fake).mean()
    assert total.item() == pytest.approx((supervised + domain).item(), rel=1e-6)
    assert parts["supervised"].item() == pytest.approx(supervised.item(), rel=1e-6)
    assert parts["domain"].item() == pytest.approx(domain.item(), rel=1e-6)
    close = {"atol": 1e-7, "rtol": 1e-5}  # the losses are taken in float32
    torch.testing.assert_close(gradients(total, method.domain_head), gradients(domain, twin.domain_head), **close)
    torch.testing.assert_close(gradients(total, method.net.head), gradients(supervised, twin.net.head), **close)
    for layer in ("layer", "norm"):
        down, up = (gradients(loss, getattr(twin.net, layer)) for loss in (supervised, domain))
        expected = [d - lambda_of(progress) * u for d, u in zip(down, up, strict=True)]
        torch.testing.assert_close(gradients(total, getattr(method.net, layer)), expected, **close)


@pytest.mark.parametrize("joint", [True, False])
def test_without_reversal_the_encoders_gradient_is_that_of_the_labels_bit_for_bit(joint: bool):
    method, batch = ready(reversal_limit=0.0, joint=joint), small_batch()
    total, _ = method.loss(batch, 0.8)
    shown = torch.cat([batch.source, batch.target]) if joint else batch.source  # as many rows: the same rounding
    supervised = F.cross_entropy(method.net.head(method.net.features(shown)[:8]).float(), batch.labels)
    for found, expected in zip(gradients(total, method.net), gradients(supervised, method.net), strict=True):
        assert torch.equal(found, expected)
    assert all(gradient.abs().max() > 0 for gradient in gradients(total, method.domain_head))  # the head looks on


class SourceOnly(Method):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def players(self):
        return {self: PLAIN}

    def loss(self, batch, progress):
        return F.cross_entropy(self.net(batch.source).float(), batch.labels), {}


def run(method: Method, steps: int = 4) -> Method:
    made = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, lambda step: small_batch(step), made, total_steps=steps)
    return method


def test_a_run_without_reversal_is_source_only_bit_for_bit():
    method = ready(reversal_limit=0.0, joint=False)
    plain, head = SourceOnly(copy.deepcopy(method.net)), copy.deepcopy(method.domain_head.state_dict())
    run(method), run(plain)
    assert all(torch.equal(a, b) for a, b in zip(method.net.parameters(), plain.net.parameters(), strict=True))
    assert not torch.equal(method.domain_head[0].weight, head["0.weight"])


def test_reversal_changes_what_is_learned():
    plain, reversed_ = run(ready(reversal_limit=0.0, joint=False)), run(ready(joint=False))
    assert not torch.equal(plain.net.layer.weight, reversed_.net.layer.weight)


def test_domain_weight_scales_the_heads_learning_and_the_features_ascent():
    whole, half, batch = ready(), ready(domain_weight=0.5), small_batch()
    off = ready(domain_weight=0.0)
    losses = [method.loss(batch, 0.5)[0] for method in (whole, half, off)]
    heads = [gradients(loss, m.domain_head) for loss, m in zip(losses, (whole, half, off), strict=True)]
    torch.testing.assert_close(heads[1], [g / 2 for g in heads[0]])
    layers = [gradients(loss, m.net.layer) for loss, m in zip(losses, (whole, half, off), strict=True)]
    between = [(a + b) / 2 for a, b in zip(layers[0], layers[2], strict=True)]
    torch.testing.assert_close(layers[1], between, atol=1e-9, rtol=1e-6)


def test_labels_are_those_of_the_source_rows_and_target_images_have_none():
    batch = small_batch()
    other = Batch(source=batch.source, target=images(6, 77), labels=batch.labels)
    relabeled = Batch(source=batch.source, target=batch.target, labels=(batch.labels + 1) % 3)
    method = ready()
    supervised = [method.loss(b, 0.5)[1]["supervised"].item() for b in (batch, other, relabeled)]
    assert supervised[0] == pytest.approx(supervised[1], abs=1e-7)
    assert supervised[0] != pytest.approx(supervised[2], abs=1e-3)


def test_told_apart_counts_the_right_answers_of_both_domains():
    method = ready()
    method.domain_head = nn.Linear(5, 1).double()
    nn.init.zeros_(method.domain_head.weight)
    nn.init.ones_(method.domain_head.bias)  # "source", always
    assert method.loss(small_batch(), 0.5)[1]["told_apart"].item() == pytest.approx(8 / 14)
    nn.init.constant_(method.domain_head.bias, -1.0)
    assert method.loss(small_batch(), 0.5)[1]["told_apart"].item() == pytest.approx(6 / 14)


def test_batch_norm_sees_both_domains_at_once_or_one_after_the_other():
    together, apart, batch = ready(norm=True), ready(norm=True, joint=False), small_batch()
    out = together.net.layer(torch.cat([batch.source, batch.target]).flatten(1))
    together.loss(batch, 0.0), apart.loss(batch, 0.0)
    assert (together.net.norm.num_batches_tracked, apart.net.norm.num_batches_tracked) == (1, 2)
    torch.testing.assert_close(together.net.norm.running_mean, 0.1 * out.mean(dim=0))
    torch.testing.assert_close(apart.net.norm.running_mean, 0.09 * out[:8].mean(dim=0) + 0.1 * out[8:].mean(dim=0))


# The parts


def test_domain_head_has_the_layers_asked_for():
    def kinds(head):
        return [(type(layer).__name__, getattr(layer, "out_features", None)) for layer in head]

    assert kinds(domain_head(7, (100,), norm=False)) == [("Linear", 100), ("ReLU", None), ("Linear", 1)]
    assert kinds(domain_head(7, (), norm=False)) == [("Linear", 1)]
    two = [("Linear", 1024), ("BatchNorm1d", None), ("ReLU", None)] * 2
    assert kinds(domain_head(7, (1024, 1024), norm=True)) == [*two, ("Linear", 1)]
    assert domain_head(7, (4, 3), norm=False)(torch.zeros(2, 7)).shape == (2, 1)


def test_one_player_steps_on_everything_once():
    method = ready()
    before = copy.deepcopy(method.state_dict())
    assert list(method.players()) == [method]
    run(method, steps=1)
    assert not any(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_answers_are_the_labels_heads():
    method = ready(norm=True).eval()
    torch.testing.assert_close(method.predict(images(5)), method.net(images(5)).softmax(dim=1))


def test_settings_are_the_papers():
    s = DANNSettings()
    assert (s.batch, s.hidden, s.reversal_steepness, s.reversal_limit, s.domain_weight) == (64, (100,), 10.0, 1.0, 1.0)
    rule = s.optimizer
    assert (rule.algorithm, rule.lr, rule.momentum, rule.nesterov, rule.weight_decay) == ("sgd", 0.01, 0.9, False, 0.0)
    assert rule.schedule is annealed
    assert rule.schedule(1.0) == pytest.approx(11**-0.75)


def test_it_never_asks_for_the_targets_labels():
    assert ready(batch=4, view="weak").streams() == (
        Stream(pool="source", batch=4, views={"source": "weak"}, labels="labels"),
        Stream(pool="target", batch=4, views={"target": "weak"}),
    )


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"batch": 0}, "batch"),
        ({"hidden": (0,)}, "hidden"),
        ({"reversal_steepness": -1.0}, "reversal_steepness"),
        ({"reversal_limit": -0.5}, "reversal_limit"),
        ({"domain_weight": -1.0}, "domain_weight"),
    ],
)
def test_bad_settings_fail_at_once(bad: dict, told: str):
    with pytest.raises(ValueError, match=told):
        DANNSettings(**bad)


# What it is for


@pytest.mark.slow
def test_on_two_moons_turned_by_30_degrees_it_does_not_fall_behind_source_only():
    rule = Optimizer(algorithm="adam", lr=1e-3)
    gains = []
    for seed in range(5):
        moons, found = turned_moons(seed), []
        for limit in (1.0, 0.0):
            torch.manual_seed(seed)
            method = DANN(Plane(), DANNSettings(hidden=(128, 128), reversal_limit=limit, optimizer=rule))
            learn(method, moons, steps=1500, seed=seed)
            found.append(accuracy(method.predict, moons))
        gains.append(found[0] - found[1])
    assert sum(gains) / 5 >= 0  # of the mean: a single seed may lose
