import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from wazuka.contract import Batch, Optimizer
from wazuka.functional.consistency import squared_consistency
from wazuka.functional.schedules import gaussian_ramp
from wazuka.methods.semi import ds3l
from wazuka.methods.semi.ds3l import DS3L, DS3LSettings, Weigher, labeled_loss, weighted_mean
from wazuka.nets import ConvNet
from wazuka.training import Stepper, train


def small_method(norm: bool = True, **settings) -> DS3L:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(8)] if norm else []
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), *norms, nn.Tanh(), nn.Linear(8, 3))
    method = DS3L(net, 3, DS3LSettings(**({"inner_lr": 0.5, "hidden": 6} | settings))).double()
    with torch.no_grad():
        for parameter in method.parameters():  # decided networks have gradients worth comparing
            parameter.mul_(3)
    return method


def small_batch(labeled: int = 6, unlabeled: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.rand(n, 1, 2, 2, generator=generator, dtype=torch.float64)  # noqa: E731
    first = draw(unlabeled)
    return Batch(images=draw(labeled), labels=torch.arange(labeled) % 3, first=first, second=first + draw(unlabeled))


def weigher_turn(method: DS3L, batch: Batch, progress: float = 1.0) -> torch.Tensor:
    player, outer, parts = next(method.moves(batch, progress))
    assert player is method.weigher
    assert torch.equal(outer, parts["outer"])
    return outer


def weigher_gradient(method: DS3L, outer: torch.Tensor) -> torch.Tensor:
    gradients = torch.autograd.grad(outer, list(method.weigher.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def looked_through(method: DS3L, batch: Batch, coefficient: float) -> torch.Tensor:
    """L_meta as the authors' code has it: the step keeps its graph, and the gradient flows back through gradients."""
    parameters = dict(method.net.named_parameters())
    supervised, losses, probs = method._passes(method.net, batch)
    weights = method.weigher(probs)
    inner = supervised + coefficient * (weights * losses).sum() / weights.sum()
    gradients = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
    stepped = {
        name: parameter - method.settings.inner_lr * gradient
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }
    return F.cross_entropy(functional_call(method.net, stepped, batch.images), batch.labels)


def test_gradient_through_the_step_equals_finite_differences():
    method, batch, step = small_method(), small_batch(), 1e-5
    exact, measured = weigher_gradient(method, weigher_turn(method, batch)), []
    for parameter in method.weigher.parameters():
        for place in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[place] += sign * step
                values.append(weigher_turn(method, batch).item())
                with torch.no_grad():
                    parameter.view(-1)[place] -= sign * step
            measured.append((values[0] - values[1]) / (2 * step))
    assert exact.abs().max() > 1e-4
    torch.testing.assert_close(exact, torch.tensor(measured, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("progress", [0.3, 1.0])
def test_forward_mode_gives_what_the_double_backward_gives(norm, progress):
    method, batch = small_method(norm, ramp=0.8), small_batch()
    expected = looked_through(method, batch, coefficient=10 * gaussian_ramp(progress, 0.8))
    outer = weigher_turn(method, batch, progress)
    torch.testing.assert_close(outer, expected, rtol=1e-13, atol=0)
    exact = weigher_gradient(method, expected)
    assert exact.abs().max() > 1e-4
    torch.testing.assert_close(weigher_gradient(method, outer), exact, rtol=1e-10, atol=1e-15)


def test_a_convolutional_networks_weigher_gets_the_same_gradient_both_ways():
    torch.manual_seed(3)
    method = DS3L(ConvNet(classes=3, widths=(4, 6)), 3, DS3LSettings(inner_lr=0.1, hidden=5))
    draw = lambda n: torch.rand(n, 1, 8, 8)  # noqa: E731
    batch = Batch(images=draw(6), labels=torch.arange(6) % 3, first=draw(9), second=draw(9))
    expected = weigher_gradient(method, looked_through(method, batch, coefficient=10.0))
    found = weigher_gradient(method, weigher_turn(method, batch))
    assert expected.norm() > 1e-8
    assert (found - expected).norm() < 1e-4 * expected.norm()  # float32, as backbones answer


def test_dropout_is_the_same_in_the_passes_that_are_compared():
    """The gradient belongs to the passes whose step was judged: with other masks it would be another's."""
    method, batch = small_method(norm=False), small_batch()
    method.net.insert(3, nn.Dropout(0.5))
    torch.manual_seed(7)
    supervised, losses, probs = method._passes(method.net, batch)
    torch.manual_seed(7)
    turns = method.moves(batch, progress=1.0)
    _, outer, _ = next(turns)
    weights = method.weigher(probs)
    u = 10 * (weights * losses).sum() / weights.sum()
    names = dict(method.net.named_parameters())
    _, direction = look_again(method, batch, supervised + u)
    slopes = torch.autograd.grad(u, list(names.values()), create_graph=True)
    expected = -0.5 * sum((direction[name] * slope).sum() for name, slope in zip(names, slopes, strict=True))
    torch.testing.assert_close(weigher_gradient(method, outer), weigher_gradient(method, expected))
    *_, (_, total, _) = turns
    torch.testing.assert_close(total, supervised + u)  # and the classifier's turn uses those passes too


def look_again(method: DS3L, batch: Batch, inner: torch.Tensor):
    torch.manual_seed(7)
    method._passes(method.net, batch)  # what was drawn before the look ahead
    return method.look_ahead(batch, inner)


def test_equal_losses_teach_the_weigher_nothing(monkeypatch):
    monkeypatch.setattr(ds3l, "squared_consistency", lambda logits, target: 0 * logits[:, 0] + 0.3)
    method = small_method()
    assert weigher_gradient(method, weigher_turn(method, small_batch())).abs().max() < 1e-15


def test_no_coefficient_no_inner_step_no_lesson():
    for silent in (small_method(consistency_weight=0.0), small_method(inner_lr=0.0)):
        assert weigher_gradient(silent, weigher_turn(silent, small_batch())).eq(0).all()


def test_a_weigher_that_trusts_nothing_leaves_the_labels_alone():
    method, batch = small_method(), small_batch()
    with torch.no_grad():
        method.weigher.layers[2].bias.fill_(-2000.0)  # a sigmoid of exactly 0
    turns = method.moves(batch, progress=1.0)
    assert weigher_gradient(method, next(turns)[1]).isfinite().all()
    _, total, parts = next(turns)
    torch.testing.assert_close(total.detach(), parts["supervised"])


def test_outer_loss_is_the_labeled_loss_of_a_network_that_took_the_step():
    method, batch = small_method(), small_batch()
    stepped = copy.deepcopy(method)
    supervised, losses, probs = stepped._passes(stepped.net, batch)
    weights = stepped.weigher(probs)
    (supervised + 10 * (weights * losses).sum() / weights.sum()).backward()
    torch.optim.SGD(stepped.net.parameters(), lr=0.5).step()
    expected = F.cross_entropy(stepped.net(batch.images), batch.labels)
    torch.testing.assert_close(weigher_turn(method, batch).detach(), expected.detach())


def test_labeled_images_join_the_second_pass_for_batch_norms_sake_alone():
    for norm, sizes in ((True, [16, 16]), (False, [16, 10])):
        method, seen = small_method(norm), []
        method.net.register_forward_hook(lambda net, inputs, output, seen=seen: seen.append(len(output)))
        method._passes(method.net, small_batch())
        assert seen == sizes


def test_looking_ahead_leaves_the_network_alone():
    method, batch = small_method(), small_batch()
    twin = copy.deepcopy(method)
    turns = method.moves(batch, progress=1.0)
    torch.autograd.backward(next(turns)[1], inputs=list(method.weigher.parameters()))  # as the loop does
    twin._passes(twin.net, batch)  # the two passes that the classifier's turn needs move batch norm's statistics
    for name, value in method.net.state_dict().items():
        assert torch.equal(value, twin.net.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in method.net.parameters())


def test_constant_weigher_is_the_pi_model():
    method, batch = small_method(), small_batch()
    for parameter in method.weigher.layers[2].parameters():
        nn.init.zeros_(parameter)  # sigmoid(0) for every image
    pi_model = DS3L(copy.deepcopy(method.net), 3, DS3LSettings(learn_weights=False)).double()
    net = copy.deepcopy(method.net)
    first, second = (F.softmax(net(torch.cat([batch.images, view])), 1) for view in (batch.first, batch.second))
    supervised = -first[:6].log().gather(1, batch.labels[:, None]).sum() / 16
    by_hand = supervised + 10 * F.mse_loss(second[6:], first[6:].detach())
    *_, (player, total, _) = method.moves(batch, progress=1.0)
    turns = list(pi_model.moves(batch, progress=1.0))
    assert [turn[0] for turn in turns] == [pi_model.net]
    assert player is method.net
    torch.testing.assert_close(total, by_hand)
    torch.testing.assert_close(turns[0][1], by_hand)
    assert list(pi_model.players()) == [pi_model.net]
    expected = torch.autograd.grad(by_hand, list(net.parameters()))
    for loss, learner in ((total, method.net), (turns[0][1], pi_model.net)):
        torch.testing.assert_close(torch.autograd.grad(loss, list(learner.parameters())), expected)


def test_network_learns_with_the_weights_after_the_weighers_step():
    method, batch = small_method(), small_batch()
    turns = method.moves(batch, progress=1.0)
    assert next(turns)[0] is method.weigher
    with torch.no_grad():  # the loop steps here: from now on, images are trusted as much as class 0 is likely
        method.weigher.forward = lambda probs: probs[:, 0]
    player, total, parts = next(turns)
    supervised, losses, probs = method._passes(method.net, batch)
    assert player is method.net
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(10, dtype=torch.float64))  # not logits
    torch.testing.assert_close(parts["unlabeled"], (losses * probs[:, 0]).sum() / probs[:, 0].sum())
    torch.testing.assert_close(total, supervised + 10 * parts["unlabeled"])


def test_classifier_does_not_learn_through_the_weights():
    method, batch = small_method(), small_batch()
    *_, (_, total, _) = method.moves(batch, progress=1.0)
    assert torch.autograd.grad(total, list(method.weigher.parameters()), allow_unused=True) == (None,) * 4


def test_consistency_moves_one_pass_only_and_is_bounded():
    logits, target = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True).unbind()
    assert squared_consistency(logits, logits).eq(0).all()
    assert torch.autograd.grad(squared_consistency(logits, target).sum(), target, allow_unused=True) == (None,)
    opposite = squared_consistency(torch.tensor([[99.0, 0, 0, 0]]), torch.tensor([[0, 99.0, 0, 0]]))
    torch.testing.assert_close(opposite, torch.tensor([2 / 4]))


def test_weighted_mean_by_hand_and_without_trust():
    losses = torch.tensor([1.0, 5.0, 9.0])
    torch.testing.assert_close(weighted_mean(losses, torch.tensor([0.5, 0.25, 0.0])), torch.tensor(7 / 3))
    nothing = torch.zeros(3, requires_grad=True)
    result = weighted_mean(losses, nothing)
    assert result == 0
    assert torch.autograd.grad(result, nothing)[0].isfinite().all()


def test_labeled_loss_is_averaged_over_all_images():
    assert labeled_loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), images=8) == pytest.approx(0.693147 / 2)


def test_consistency_weight_rises_as_exp_of_minus_five_to_its_full_height():
    method, batch = small_method(consistency_weight=2.0, ramp=0.5), small_batch()
    for progress, factor in ((0.0, 0.0067379), (0.25, 0.2865048), (0.5, 1.0), (1.0, 1.0)):
        *_, (_, total, parts) = method.moves(batch, progress)
        torch.testing.assert_close(
            total.detach() - parts["supervised"], 2 * factor * parts["unlabeled"], atol=0, rtol=1e-5
        )


def test_labels_stay_with_the_labeled_images():
    labeled, unlabeled = small_method().streams()
    assert (labeled.pool, labeled.labels, unlabeled.pool, unlabeled.labels) == ("labeled", "labels", "unlabeled", None)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_both_players_move_in_the_loop_and_the_dropouts_noise_is_no_trouble(precision):
    torch.manual_seed(0)
    net = ConvNet(classes=3, widths=(8, 8))
    net.layers.append(nn.Dropout(0.5))
    adam = Optimizer(algorithm="adam", lr=1e-2)
    method = DS3L(net, 3, DS3LSettings(weigher=adam, optimizer=adam)).to(memory_format=torch.channels_last)
    before = copy.deepcopy(method.state_dict())
    draw = lambda n: torch.rand(n, 1, 8, 8).contiguous(memory_format=torch.channels_last)  # noqa: E731
    batch = Batch(images=draw(6), labels=torch.arange(6) % 3, first=draw(9), second=draw(9))
    steppers = {player: Stepper(player, settings) for player, settings in method.players().items()}
    losses = []

    def note(progress):
        losses.append(progress.parts["supervised"].item())
        return True

    train(method, lambda step: batch, steppers, total_steps=20, precision=precision, after_step=note)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(parameter, before[name]) for name, parameter in method.named_parameters())
    assert method.net.layers[1].num_batches_tracked == 40  # two passes a step; the look ahead counts none
    probs = method.eval().predict(torch.rand(5, 1, 8, 8))
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(5))


def _one_step(batch: Batch) -> DS3L:
    method = small_method(norm=False, consistency_weight=1000.0)
    sgd = Optimizer(lr=1.0, momentum=0.0)
    steppers = {player: Stepper(player, sgd) for player in method.players()}
    train(method, lambda step: batch, steppers, total_steps=1)
    return method


def _half_a_step(child: int, rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        batch = Batch(**{name: value.chunk(2)[rank] for name, value in vars(small_batch()).items()})
        torch.save(_one_step(batch).state_dict(), f"{folder}/state.{rank}")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_step_as_one_does(tmp_path):
    other = torch.multiprocessing.spawn(_half_a_step, (1, str(tmp_path)), nprocs=1, join=False)
    _half_a_step(0, 0, str(tmp_path))
    while not other.join():
        pass
    whole, started = _one_step(small_batch()).state_dict(), small_method(norm=False).state_dict()
    for name, value in whole.items():
        assert (value - started[name]).abs().max() > 1e-7, name
        for rank in range(2):
            torch.testing.assert_close(torch.load(tmp_path / f"state.{rank}")[name], value, atol=1e-14, rtol=1e-10)


def test_weigher_starts_undecided_between_zero_and_one():
    weights = Weigher(3, 100)(torch.rand(50, 3).softmax(dim=1))
    assert weights.shape == (50,)
    assert ((weights > 0.2) & (weights < 0.8)).all()


@pytest.mark.parametrize(
    "bad", [{"ramp": 0.0}, {"ramp": 1.5}, {"inner_lr": -1.0}, {"consistency_weight": -1.0}, {"hidden": 0}]
)
def test_bad_settings_fail_at_once(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DS3LSettings(**bad)
