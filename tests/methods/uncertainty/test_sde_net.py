"""SDE-Net: noise where it should be, gradients where they may be, and doubt far from the data."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_moons
from torch import nn

from wazuka.contract import Batch, Optimizer, parameters_of
from wazuka.evaluation.detection import auroc
from wazuka.functional.uncertainty import mean_log_probs
from wazuka.methods.uncertainty.sde_net import SDENet, SDENetSettings
from wazuka.methods.uncertainty.sde_net_regression import (
    SDENetRegression,
    SDENetRegressionSettings,
    spread_loss,
)
from wazuka.nets.sde import SDE, Timed, image_sde, keys, vector_sde
from wazuka.training import Stepper, train


class Still(nn.Module):
    """A drift that does nothing."""

    def forward(self, time, state):
        return torch.zeros_like(state)


class Constant(nn.Module):
    """A diffusion that says the same of all inputs."""

    def __init__(self, logit=0.0):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, time, state):
        return self.logit.expand(len(state), 1)


def still(logit=0.0, horizon=6.0, steps=6):
    return SDE(nn.Identity(), Still(), Constant(logit), nn.Identity(), horizon, steps)


def images(count=5, seed=0, channels=1, side=12):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def test_without_noise_all_passes_are_the_same_residual_network():
    torch.manual_seed(0)
    net = image_sde(1, 3, width=8, steps=1, horizon=2.0).eval()
    x = images()
    passes = net.passes(x, 0.0, 3, seed=0)
    assert torch.equal(passes[0], passes[1])
    start = net.downsample(x)
    torch.testing.assert_close(net(x, 0.0), net.head(start + 2 * net.drift(0.0, start)))  # one step: one block
    torch.testing.assert_close(passes[0], net(x, 0.0))


def test_times_run_from_the_start_to_the_last_step():
    seen = []

    class Listening(Still):
        def forward(self, time, state):
            seen.append(time)
            return super().forward(time, state)

    sde = SDE(nn.Identity(), Listening(), Constant(), nn.Identity(), horizon=3.0, steps=6)
    sde(torch.zeros(2, 4))
    assert seen == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])


def test_drift_is_integrated_over_the_horizon():
    class Steady(nn.Module):
        def forward(self, time, state):
            return torch.full_like(state, 1 + time)

    sde = SDE(nn.Identity(), Steady(), Constant(), nn.Identity(), horizon=2.0, steps=400)
    torch.testing.assert_close(sde(torch.zeros(1, 3)), torch.full((1, 3), 4.0), atol=0.02, rtol=0)  # 2 + 2^2 / 2


@pytest.mark.parametrize(("logit", "sigma", "horizon"), [(0.0, 1.0, 6.0), (-1.0, 3.0, 2.0)])
def test_noise_adds_up_to_the_horizon_whatever_the_steps(logit, sigma, horizon):
    torch.manual_seed(0)
    scale = sigma * torch.sigmoid(torch.tensor(logit))
    for steps in (1, 7):
        moved = still(logit, horizon, steps)(torch.zeros(60, 500), sigma)
        assert moved.var().item() == pytest.approx(scale.item() ** 2 * horizon, rel=0.03)
        assert abs(moved.mean().item()) < 0.05 * moved.std().item()
        assert abs(moved[:, 0].dot(moved[:, 1]).item() / 60) < 0.5 * moved.var().item()  # each element by itself


def test_the_diffusion_is_asked_once_of_the_first_state():
    asked = []

    class Asking(Constant):
        def forward(self, time, state):
            asked.append((time, state.clone()))
            return super().forward(time, state)

    sde = SDE(nn.Identity(), Still(), Asking(), nn.Identity(), 4.0, 4)
    x = torch.randn(3, 5)
    sde(x, 1.0)
    assert [time for time, _ in asked] == [0.0]
    assert torch.equal(asked[0][1], x)


def test_each_input_has_a_scale_of_its_own():
    class Reading(Constant):
        def forward(self, time, state):
            return torch.where(state.flatten(1).mean(dim=1, keepdim=True) > 0, 9.0, -30.0)

    sde = SDE(nn.Identity(), Still(), Reading(), nn.Identity(), 1.0, 2)
    x = torch.stack([torch.ones(2, 3, 3), -torch.ones(2, 3, 3)])
    moved = (sde(x, 5.0) - x).flatten(1).std(dim=1)
    assert moved[0] > 2
    assert moved[1] < 1e-6


def loud(net):
    """The head starts so small that nothing is heard of the noise."""
    with torch.no_grad():
        net.net.head[-1].weight *= 1000
    return net.eval()


def test_noise_is_normal_and_no_two_inputs_share_it():
    sde, x = still(20.0, 1.0, 4), torch.rand(30, 2000)
    moved = sde.passes(x, 1.0, 3, seed=0) - x  # the diffusion is all but 1
    assert moved.std().item() == pytest.approx(1.0, rel=0.01)
    assert moved.mean().abs() < 0.01
    rows = moved.flatten(0, 1)
    alike = torch.corrcoef(rows) - torch.eye(90)
    assert alike.abs().max() < 0.12  # of 2000 numbers: five standard errors
    assert torch.equal(sde.passes(x, 1.0, 3, seed=0) - x, moved)
    assert not torch.allclose(sde.passes(x, 1.0, 3, seed=1) - x, moved)


def test_an_answer_is_that_of_its_image_alone_and_of_the_seed():
    torch.manual_seed(0)
    net = loud(SDENet(3, (1, 12, 12), SDENetSettings(width=8, passes=4, test_sigma=5.0)))
    x = images()
    together = net.predict(x)
    torch.testing.assert_close(torch.cat([net.predict(one) for one in x.split(1)]), together)
    passes = net.passes(x)
    assert (passes[0] - passes[1]).abs().max() > 1e-3  # they differ
    other = copy.deepcopy(net)
    other.settings = SDENetSettings(width=8, passes=4, test_sigma=5.0, seed=1)
    assert not torch.allclose(other.predict(x), together)
    # probabilities are averaged, and the largest taken then
    torch.testing.assert_close(together, passes.softmax(dim=-1).mean(dim=0))
    seen = net.observe(x)
    torch.testing.assert_close(seen.logits, mean_log_probs(passes))
    torch.testing.assert_close(seen.logits.softmax(dim=1), together)
    assert seen.features.shape == (5, 8)


def test_the_noise_at_test_is_larger_than_in_training():
    settings = SDENetSettings()
    assert settings.test_sigma == 25 * settings.sigma
    net = loud(SDENet(3, (1, 12, 12), SDENetSettings(width=8, sigma=0.0, test_sigma=50.0)))
    x = images()
    assert torch.equal(net.net(x, net.settings.sigma), net.net(x, net.settings.sigma))
    assert net.passes(x).std(dim=0).max() > 1e-4


def losses(net, batch):
    return {id(player): (player, loss) for player, loss, _ in net.moves(batch, 0.3)}


def test_each_loss_teaches_its_own_player():
    torch.manual_seed(0)
    net = SDENet(3, (1, 12, 12), SDENetSettings(width=8, sigma=1.0))
    batch = Batch(images=images(6), labels=torch.arange(6) % 3)
    turns = net.moves(batch, 0.0)
    player, task, _ = next(turns)
    assert set(parameters_of(player)) == set(net.net.parameters()) - set(net.net.diffusion.parameters())
    task.backward()
    assert all(p.grad is not None for p in net.net.diffusion.parameters())  # through the noise, but it does not step
    net.zero_grad()
    player, diffusion, _ = next(turns)
    assert player is net.net.diffusion
    diffusion.backward()
    assert all(p.grad is None for p in parameters_of(net.net.learners()))
    assert all(p.grad is not None for p in net.net.diffusion.parameters())
    assert next(turns, None) is None


def test_the_diffusion_learns_to_say_no_to_inputs_and_yes_to_noise():
    known, odd = torch.tensor([[1.0]]), torch.tensor([[3.0]])

    class Line(nn.Module):
        def forward(self, time, state):
            return state

    sde = SDE(nn.Identity(), Still(), Line(), nn.Identity(), 1.0, 1)
    loss = sde.diffusion_loss(known, odd - known)
    p_known, p_odd = torch.sigmoid(known), torch.sigmoid(odd)
    expected = F.binary_cross_entropy(p_known, torch.zeros(1, 1)) + F.binary_cross_entropy(p_odd, torch.ones(1, 1))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("one", [False, True])
def test_what_stands_for_odd_images_is_noise_on_the_pixels(monkeypatch, one):
    torch.manual_seed(0)
    net = SDENet(3, (3, 12, 12), SDENetSettings(width=8, one_noise_channel=one))
    drawn = []

    def loss(x, noise):
        drawn.append(noise)
        return (x.mean() * 0).requires_grad_()

    monkeypatch.setattr(net.net, "diffusion_loss", loss)
    list(net.moves(Batch(images=images(64, channels=3), labels=torch.zeros(64, dtype=torch.long)), 0.0))
    assert drawn[0].shape == (64, 1 if one else 3, 12, 12)
    assert drawn[0].std().item() == pytest.approx(2.0, rel=0.03)


def test_the_network_is_the_authors():
    net = image_sde(1, 10)
    x = torch.rand(2, 1, 28, 28)
    assert net.downsample(x).shape == (2, 64, 6, 6)
    assert net(x).shape == (2, 10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    drift = [type(layer).__name__ for layer in net.drift.layers]
    assert drift == ["GroupNorm", "ReLU", "WithTime", "GroupNorm", "ReLU", "WithTime", "GroupNorm"]
    # 640 + 65,600 twice, norms 128 each, drift 2 x 37,504, diffusion the same and 65, head 650
    assert sum(p.numel() for p in net.parameters()) == 640 + 2 * 65_600 + 128 * 9 + 4 * 37_504 + 65 + 650
    assert net.head[-1].weight.std().item() == pytest.approx(1e-3, rel=0.1)
    assert not net.drift.layers[2].layer.bias.any()
    assert vector_sde(90, 2)(torch.rand(3, 90)).shape == (3, 2)


def moons(seed, count=1500):
    x, y = make_moons(count, noise=0.1, random_state=seed)
    mean, std = x.mean(axis=0), x.std(axis=0)
    return torch.from_numpy((x - mean) / std).float(), torch.from_numpy(y)


def two_moons(seed, passes=60):
    """The card's small check: an SDE-Net on standardized moons."""
    torch.manual_seed(seed)
    rule = Optimizer(lr=0.02, nesterov=False, weight_decay=5e-4)
    settings = SDENetSettings(sigma=0.5, test_sigma=4.0, optimizer=rule, diffusion_optimizer=rule)
    sde = vector_sde(2, 2, width=32, hidden=32, horizon=4.0, steps=6, normalized=True)
    method = SDENet(2, (2, 1, 1), settings, sde)
    x, y = moons(seed)
    order = [torch.randperm(len(x)) for _ in range(passes)]
    rows = torch.cat([one[: len(x) // 128 * 128].view(-1, 128) for one in order])
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(
        method, lambda step: Batch(images=x[rows[step]], labels=y[rows[step]]), steppers, total_steps=len(rows),
        seed=seed,
    )  # fmt: skip
    return method.eval()


def test_two_moons():
    method = two_moons(1)  # five seeds: 0.76 to 0.87 at 4, 0.27 to 0.47 without noise
    x, y = moons(1000)
    angle = torch.linspace(0, 2 * math.pi, 400)
    circle = 4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    with torch.no_grad():
        assert (method.predict(x).argmax(dim=1) == y).float().mean() > 0.99
        assert method.novelty(circle).mean() > 0.98
        assert method.novelty(x).mean() < 0.35

        def told_apart(sigma):
            passes = [method.net.passes(points, sigma, 10, 0).softmax(dim=-1).mean(dim=0) for points in (x, circle)]
            known, odd = (one.amax(dim=1).numpy() for one in passes)
            return auroc(known, odd)

        assert told_apart(4.0) > 0.8
        assert told_apart(0.0) < 0.5  # without noise it is surer outside than inside


def test_regression_is_sure_where_it_has_seen_numbers():
    torch.manual_seed(0)
    x = torch.randn(2000, 1) * 0.5
    y = torch.sin(3 * x[:, 0]) + 0.1 * torch.randn(2000)
    settings = SDENetRegressionSettings(
        optimizer=Optimizer(algorithm="adam", lr=5e-3, clip=100.0), width=32, hidden=32,
        diffusion_optimizer=Optimizer(lr=0.05, nesterov=False),
    )  # fmt: skip
    method = SDENetRegression((1,), settings)
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 2000, (600, 128), generator=generator)
    train(
        method, lambda step: Batch(images=x[rows[step]], labels=y[rows[step]]), steppers, total_steps=600, seed=0
    )  # fmt: skip
    method.eval()
    with torch.no_grad():
        inside = torch.linspace(-0.8, 0.8, 100)[:, None]
        mean, spread = method.predict(inside).unbind(dim=1)
        assert (mean - torch.sin(3 * inside[:, 0])).square().mean().sqrt() < 0.25
        assert 0.05 < spread.mean() < 0.6
        far = torch.cat([torch.linspace(-8, -5, 50), torch.linspace(5, 8, 50)])[:, None]
        known, odd = -method.unknown(inside), -method.unknown(far)
        assert auroc(known.numpy(), odd.numpy()) > 0.9
        means, spreads = method.passes(inside)
        assert means.shape == spreads.shape == (10, 100)
        torch.testing.assert_close(method.unknown(inside), means.std(dim=0))


def test_the_loss_of_a_number_is_the_gaussians_but_for_a_constant():
    mean, spread, y = torch.randn(9), torch.rand(9) + 0.1, torch.randn(9)
    nats = -torch.distributions.Normal(mean, spread).log_prob(y)
    torch.testing.assert_close(spread_loss(mean, spread, y), 2 * nats - math.log(2 * math.pi))


def test_the_noise_grows_in_the_second_half(monkeypatch):
    method = SDENetRegression((4,), SDENetRegressionSettings(sigma=0.25, late_sigma=0.75, late=0.5))
    seen = []
    forward = method.net.forward
    monkeypatch.setattr(method.net, "forward", lambda x, sigma: seen.append(sigma) or forward(x, sigma))
    batch = Batch(images=torch.randn(8, 4), labels=torch.randn(8))
    for progress in (0.0, 0.49, 0.5, 0.9):
        next(method.moves(batch, progress))
    assert seen == [0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        (SDENetSettings, {"passes": 0}, "passes"),
        (SDENetSettings, {"sigma": -1.0}, "sigma"),
        (SDENetSettings, {"view": "blurred"}, "view"),
        (SDENetRegressionSettings, {"late": 1.5}, "late"),
        (SDENetRegressionSettings, {"hidden": 0}, "hidden"),
        (SDENetRegressionSettings, {"disturbance": -1.0}, "negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, wrong, told):
    with pytest.raises(ValueError, match=told):
        kind(**wrong)


def test_inner_layers_cannot_be_asked_for():
    net = SDENet(3, (1, 12, 12), SDENetSettings(width=8)).eval()
    with pytest.raises(ValueError, match="one layer at many times"):
        net.observe(images(), layers=None)
    with pytest.raises(ValueError, match="steps"):
        still(steps=0)
    assert isinstance(net.net.drift, Timed)


def test_group_norm_survives_images_laid_out_pixel_by_pixel():
    for side in [1, 3] * 10:
        layer = image_sde(1, 3, width=64).drift.layers[0]
        x = torch.rand(4, 64, side, side).to(memory_format=torch.channels_last)
        torch.autograd.backward(layer(x).square().sum(), inputs=list(layer.parameters()))
        groups = x.double().reshape(4, 32, -1)
        spread = (groups.var(dim=2, correction=0, keepdim=True) + 1e-5).sqrt()
        expected = ((groups - groups.mean(dim=2, keepdim=True)) / spread).view(x.shape).float()
        torch.testing.assert_close(layer(x), expected, atol=5e-3 if side == 1 else 1e-5, rtol=0)  # of two numbers


def test_one_gray_level_makes_another_image():
    image = torch.randint(0, 256, (1, 1, 6, 6), generator=torch.Generator().manual_seed(0)).float() / 255
    other = image.clone()
    other[0, 0, 3, 3] += 1 / 255
    assert keys(image) != keys(other)
    assert torch.equal(keys(image), keys(image + 1e-6))
    assert torch.equal(keys(image), keys(image.to(memory_format=torch.channels_last)))
