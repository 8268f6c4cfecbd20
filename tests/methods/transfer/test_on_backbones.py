"""Semi-supervised methods on a pre-trained network: as it is, and tuned."""

import torch
import torch.nn.functional as F

from tests.methods.small import CLASSES, images_of, run, small_net
from wazuka.contract import Optimizer
from wazuka.methods.semi.fixmatch import FixMatch, FixMatchSettings
from wazuka.nets import ConvNet
from wazuka.parts.tuning import Tuned, Tuning
from wazuka.training import Stepper


def pretrained() -> ConvNet:
    """It knows the four quarters, by other names."""
    torch.manual_seed(0)
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    images, labels = images_of(32, seed=20)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(net(images.float() / 255), (labels + 1) % CLASSES).backward()
        optimizer.step()
    return net.eval()


def accuracy(method: FixMatch) -> float:
    images, labels = images_of(40, seed=30)
    return float((method.eval().predict(images.float() / 255).argmax(dim=1) == labels).float().mean())


def settings(optimizer: Optimizer) -> FixMatchSettings:
    return FixMatchSettings(labeled_batch=8, unlabeled_ratio=2, threshold=0.8, averaging=0.5, optimizer=optimizer)


def test_fixmatch_trains_a_pretrained_backbone_as_it_is() -> None:
    net = pretrained()
    net.head = torch.nn.Linear(net.feature_size, CLASSES)
    method = FixMatch(net, CLASSES, settings(Optimizer(lr=0.05)))
    before = accuracy(method)
    told = run(method, steps=30)
    assert accuracy(method) >= max(0.9, before)
    assert max(step["used"] for step in told) > 0.5
    assert any(step["unlabeled"] > 0 for step in told)


def test_fixmatch_tunes_it_by_the_rules_of_tuning() -> None:
    tuned = Tuned(pretrained(), CLASSES, Tuning(head_rate=10.0, groups=2, rate_decay=3.0, norms="frozen"))
    method = FixMatch(tuned, CLASSES, settings(tuned.optimizer(Optimizer(lr=0.01, momentum=0.0))))
    before = {name: value.clone() for name, value in tuned.net.state_dict().items()}
    rates: set[float] = set()

    def look(progress: object) -> bool:
        (stepper,) = steppers.values()
        rates.update(round(group["lr"] / 0.01, 3) for group in stepper.optimizer.param_groups if group["params"])
        return True

    steppers = {player: Stepper(player, rule) for player, rule in method.players().items()}
    run(method, steppers, steps=1, after_step=look)
    assert rates == {10.0, 1.0, 0.333}
    run(method, steps=30)
    assert accuracy(method) >= 0.9
    for name, value in tuned.net.state_dict().items():
        if "running" in name:
            assert torch.equal(value, before[name]), f"{name} moved"
    assert not torch.equal(tuned.net.layers[0].weight, before["layers.0.weight"])
