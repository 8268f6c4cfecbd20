import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.methods.small import small_net
from wazuka.contract import Batch, Observation, Optimizer
from wazuka.evaluation.detection import auroc
from wazuka.methods.uncertainty.energy import Energy
from wazuka.methods.uncertainty.energy_fine_tune import EnergyFineTune, EnergyFineTuneSettings, energy_hinges
from wazuka.nets import ConvNet


def with_energy(energy: float, n: int = 1) -> torch.Tensor:
    """(n, 3) logits of that energy."""
    return torch.log_softmax(torch.randn(n, 3, dtype=torch.float64), dim=1) - energy


def test_energies_on_their_side_of_the_margin_cost_nothing():
    known, odd = energy_hinges(with_energy(-24.0), with_energy(-4.0), -23, -5)
    assert known == odd == 0


def test_energies_beyond_their_margin_cost_the_square_of_the_way():
    known, odd = energy_hinges(with_energy(-20.0), with_energy(-12.0), -23, -5)
    torch.testing.assert_close(known, torch.tensor(9.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(odd, torch.tensor(49.0), atol=1e-4, rtol=0)


def test_each_is_a_mean_over_its_own_images():
    known, odd = energy_hinges(
        torch.cat([with_energy(-20.0), with_energy(-30.0, 2)]),
        torch.cat([with_energy(-12.0), with_energy(0.0, 6)]),
        -23,
        -5,
    )
    torch.testing.assert_close(known, torch.tensor(9 / 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(odd, torch.tensor(49 / 7), atol=1e-4, rtol=0)


def test_gradients_lower_the_energy_of_known_and_raise_that_of_odd_images():
    known, odd = with_energy(-14.0).requires_grad_(), with_energy(-14.0).requires_grad_()
    sum(energy_hinges(known, odd, -23, -5)).backward()
    assert (known.grad < 0).all()  # a step against it raises the logits
    assert (odd.grad > 0).all()


def test_the_loss_is_made_of_its_parts_and_of_no_label_of_an_odd_image():
    torch.manual_seed(0)
    settings = EnergyFineTuneSettings(energy_weight=0.3, margin_in=-3.0, margin_out=-0.5)  # both are broken at first
    method = EnergyFineTune(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), settings)
    batch = Batch(images=torch.rand(5, 1, 2, 2), labels=torch.tensor([0, 1, 2, 0, 1]), odd=torch.rand(7, 1, 2, 2))
    total, parts = method.loss(batch, 0.0)
    logits, odd = method.net(batch.images), method.net(batch.odd)
    known_cost, odd_cost = energy_hinges(logits, odd, -3.0, -0.5)
    assert min(known_cost, odd_cost) > 0.01
    torch.testing.assert_close(total, F.cross_entropy(logits, batch.labels) + 0.3 * (known_cost + odd_cost))
    assert set(parts) == {"supervised", "known", "odd"}
    labeled, other = method.streams()
    assert (labeled.batch, other.batch, other.pool, other.labels) == (128, 256, "odd", None)
    assert (EnergyFineTuneSettings().margin_in, EnergyFineTuneSettings().margin_out) == (-23, -5)
    rule = EnergyFineTuneSettings().optimizer
    assert (rule.lr, rule.momentum, rule.nesterov, rule.weight_decay) == (0.001, 0.9, True, 5e-4)
    assert rule.schedule(1.0) == pytest.approx(0)


def test_energies_move_apart_and_classes_stay():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(120) % 2
    images = torch.rand(120, 1, 8, 8, generator=generator) * 0.4 + 0.6 * labels[:, None, None, None]
    odd = torch.rand(120, 1, 8, 8, generator=generator)
    odd[:, :, ::2] = 0  # stripes
    net = ConvNet(classes=2, widths=(8, 8))

    def learn(loss, steps, lr):
        optimizer = torch.optim.Adam(net.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    def told():
        net.eval()
        with torch.no_grad():
            seen = [Energy().score(Observation(logits, logits)).numpy() for logits in (net(images), net(odd))]
            right = (net(images).argmax(dim=1) == labels).float().mean()
        net.train()
        return auroc(seen[1], seen[0]), seen[0].mean(), seen[1].mean(), float(right)

    learn(lambda: F.cross_entropy(net(images), labels), 15, 1e-2)
    _, *energies, _ = told()
    settings = EnergyFineTuneSettings(margin_in=-15.0, margin_out=0.0)
    method = EnergyFineTune(net, settings)
    learn(lambda: method.loss(Batch(images=images, labels=labels, odd=odd), 0.0)[0], 60, 1e-2)
    found, known_mean, odd_mean, right = told()
    assert found > 0.99
    assert odd_mean - known_mean > energies[1] - energies[0] + 0.5
    assert right == 1


def test_settings_are_checked():
    for wrong, says in (
        ({"margin_in": -5.0}, "margin_in"),
        ({"odd_batch": 0}, "odd_batch"),
        ({"view": "strong"}, "view"),
        ({"energy_weight": -0.1}, "energy_weight"),
    ):
        with pytest.raises(ValueError, match=says):
            EnergyFineTuneSettings(**wrong)
    rule = Optimizer(lr=0.01)
    assert EnergyFineTune(small_net(), EnergyFineTuneSettings(optimizer=rule)).players().popitem()[1] is rule
