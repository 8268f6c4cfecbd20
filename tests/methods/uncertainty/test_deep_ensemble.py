import copy

import pytest
import torch
import torch.nn.functional as F

from tests.methods.small import Perceptron
from wazuka.contract import Batch, Optimizer
from wazuka.functional.uncertainty import mutual_information
from wazuka.methods.uncertainty.deep_ensemble import DeepEnsemble, DeepEnsembleSettings, adversarial_images, redrawn
from wazuka.nets import ConvNet
from wazuka.training import Stepper, train


def net() -> ConvNet:
    return ConvNet(1, 4, (8, 8), momentum=0.1)


def a_method(make=net, **changes) -> DeepEnsemble:
    torch.manual_seed(0)
    return DeepEnsemble(make(), DeepEnsembleSettings(labeled_batch=4, **({"members": 3} | changes)))


def a_batch(size: int = 12) -> Batch:
    images = torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images=images, labels=torch.arange(size) % 4)


# Members


def test_members_start_elsewhere_at_the_same_scale() -> None:
    method = a_method()
    for name, first in method.members[0].named_parameters():
        for other in method.members[1:]:
            drawn = dict(other.named_parameters())[name]
            if first.std() == 0:  # biases at 0, norms at 1
                assert torch.equal(drawn, first)
                continue
            assert not torch.allclose(drawn, first, atol=1e-2), name
            correlation = torch.corrcoef(torch.stack([drawn.detach().flatten(), first.detach().flatten()]))[0, 1]
            assert correlation.abs() < 5 / first.numel() ** 0.5, name
            assert drawn.std().item() == pytest.approx(first.std().item(), rel=5 / first.numel() ** 0.5), name


def test_a_factory_makes_every_member_and_nothing_is_redrawn() -> None:
    torch.manual_seed(0)
    method = DeepEnsemble(net, DeepEnsembleSettings(members=3))
    torch.manual_seed(0)
    for member in method.members:
        for ours, theirs in zip(member.parameters(), net().parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_without_redrawing_they_start_where_the_given_network_is() -> None:
    method = a_method(redraw=False)
    for member in method.members:
        for ours, theirs in zip(member.parameters(), method.members[0].parameters(), strict=True):
            assert torch.equal(ours, theirs)
    train(method, lambda step: a_batch(), {p: Stepper(p, rule) for p, rule in method.players().items()}, total_steps=1)
    states = [torch.cat([p.flatten() for p in member.parameters()]) for member in method.members]
    assert not torch.allclose(states[0], states[1]), "they see the same images in the same order"


def test_a_copy_shares_nothing() -> None:
    one = net()
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in redrawn(one).parameters()}


def test_each_member_learns_from_its_own_images_alone() -> None:
    method, batch = a_method(Perceptron), a_batch()
    turns = list(method.moves(batch, 0.0))
    assert [player for player, _, _ in turns] == list(method.members)
    losses = []
    for number, (player, loss, _) in enumerate(turns):
        assert isinstance(player, torch.nn.Module)
        losses.append(F.cross_entropy(player(batch.images[number::3]), batch.labels[number::3]))
        torch.testing.assert_close(loss, losses[-1])
    torch.testing.assert_close(turns[-1][2]["supervised"], torch.stack(losses).mean())


def test_nobody_moves_in_anothers_turn() -> None:
    """With momentum and decay in one optimizer for all, everybody would."""
    rule = Optimizer(lr=0.1, weight_decay=0.5)
    method = a_method(optimizer=rule)
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    assert len(steppers) == 3
    alone = copy.deepcopy(method.members[1])
    stepper = Stepper(alone, rule)
    for number in range(3):
        batch = a_batch()
        batch.images = batch.images.roll(number, 0)
        for player, loss, _ in method.moves(batch, 0.0):
            steppers[player].step(loss, 0.0)
        stepper.step(F.cross_entropy(alone(batch.images[1::3]), batch.labels[1::3]), 0.0)
    for ours, theirs in zip(method.members[1].parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


# Answers


def test_probabilities_are_averaged() -> None:
    method, images = a_method().eval(), a_batch().images
    with torch.no_grad():
        expected = torch.stack([member(images).softmax(1) for member in method.members]).mean(0)
        seen, probs = method.observe(images), method.predict(images)
        logits = torch.stack([member(images) for member in method.members]).mean(0)
    torch.testing.assert_close(probs, expected)
    torch.testing.assert_close(seen.logits.softmax(1), expected)
    assert not torch.allclose(probs, logits.softmax(1), atol=1e-3)
    assert seen.passes is not None
    torch.testing.assert_close(seen.passes.softmax(-1).mean(0), expected)
    assert seen.features.shape == (12, 3 * 8)
    assert (mutual_information(seen.passes) > 0).all()


def test_one_member_is_the_network_itself() -> None:
    torch.manual_seed(0)
    one, images = net(), a_batch().images
    method = DeepEnsemble(one, DeepEnsembleSettings(members=1)).eval()
    with torch.no_grad():
        torch.testing.assert_close(method.predict(images), one(images).softmax(1))
        torch.testing.assert_close(method.observe(images).logits, one(images))


def test_inner_layers_are_all_members() -> None:
    method, images = a_method().eval(), a_batch().images
    seen = method.observe(images, layers=(name for name in ["layers.0"]))
    assert list(seen.activations) == ["0.layers.0", "1.layers.0", "2.layers.0"]
    assert not torch.equal(seen.activations["0.layers.0"], seen.activations["1.layers.0"])
    assert len(method.observe(images, layers=None).activations) == 3 * len(method.members[0].recorded_layers())


# Adversarial training


def test_adversarial_images_are_a_step_uphill() -> None:
    torch.manual_seed(0)
    one, batch = Perceptron(), a_batch()
    changed = adversarial_images(one, batch.images, batch.labels, 0.01)
    assert not changed.requires_grad
    assert all(parameter.grad is None for parameter in one.parameters())
    torch.testing.assert_close((changed - batch.images).abs(), torch.full_like(changed, 0.01))
    before, after = (F.cross_entropy(one(x), batch.labels, reduction="none") for x in (batch.images, changed))
    assert (after > before).all()


def test_adversarial_training_adds_their_loss_and_leaves_batch_norm_alone() -> None:
    method, batch = a_method(adversarial=True).train(), a_batch()
    plain = copy.deepcopy(method.members[0])
    _, loss, _ = next(method.moves(batch, 0.0))
    images, labels = batch.images[::3], batch.labels[::3]
    first = F.cross_entropy(plain(images), labels)
    statistics = [buffer.clone() for buffer in plain.buffers() if buffer.is_floating_point()]
    expected = first + F.cross_entropy(plain(adversarial_images(plain, images, labels, 0.01)), labels)
    torch.testing.assert_close(loss, expected)
    ours = [buffer for buffer in method.members[0].buffers() if buffer.is_floating_point()]
    for mine, theirs in zip(ours, statistics, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("wrong", [{"members": 0}, {"labeled_batch": 0}, {"epsilon": -0.1}, {"view": "odd"}])
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DeepEnsembleSettings(**wrong)
