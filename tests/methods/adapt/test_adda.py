import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.adapt.moons import Plane, accuracy, learn, turned_moons
from wazuka.contract import Batch, Method, Optimizer, Stream
from wazuka.data.streams import Batches, Pool
from wazuka.methods.adapt.adda import ADDA, ADDASettings, discriminator, domain_loss
from wazuka.nets import Backbone
from wazuka.training import Stepper, load_checkpoint, save_checkpoint, train

PLAIN = Optimizer(lr=0.1, momentum=0.0)  # a step that can be done by hand
LATE = 0.9                               # progress in the second stage


class Small(Backbone):
    """Four pixels, five features; batch norm and dropout, whose mode and state a frozen encoder must not show."""

    def __init__(self, norm: bool = True, dropout: float = 0.0):
        super().__init__()
        self.layer, self.head, self.feature_size = nn.Linear(4, 5), nn.Linear(5, 3), 5
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def features(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(self.layer(images.flatten(1))).tanh())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))  # in double, which the base class would round


def ready(norm: bool = True, dropout: float = 0.0, **settings) -> ADDA:
    """With random running statistics, so that eval and train mode differ, and a target that has left the source."""
    torch.manual_seed(0)
    given = {"hidden": (6,), "source_optimizer": PLAIN, "target_optimizer": PLAIN, "discriminator_optimizer": PLAIN}
    method = ADDA(Small(norm, dropout), 3, ADDASettings(**(given | settings))).double()
    with torch.no_grad():
        for parameter in method.target.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        if norm:
            for net in (method.source, method.target):
                net.norm.running_mean.normal_()
                net.norm.running_var.uniform_(0.5, 2)
    return method.train()


def images(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_batch(seed: int = 1) -> Batch:
    return Batch(source=images(8, seed), target=images(6, seed + 1), labels=torch.arange(8) % 3)


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(module: nn.Module, before: dict[str, Tensor], parameters_only: bool = False) -> bool:
    names = dict(module.named_parameters()) if parameters_only else module.state_dict()
    return all(torch.equal(module.state_dict()[name], before[name]) for name in names)


def steppers(method: Method) -> dict:
    return {player: Stepper(player, how) for player, how in method.players().items()}


def run(method: Method, steps: int, first: int = 0, stop: int | None = None, made: dict | None = None) -> dict:
    """Steps `first` to `steps`, or as far as `stop`."""
    made = steppers(method) if made is None else made
    train(method, small_batch, made, first_step=first, total_steps=steps, after_step=lambda p: p.step != stop)
    return made


# The loss


def test_source_is_0_target_is_1_and_every_row_counts_once():
    source, target = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.25], [1.0, 3.0], [0.0, 0.0]])
    by_hand = [math.log1p(math.exp(-3)), math.log1p(math.exp(0.25)), math.log1p(math.exp(-2)), math.log(2)]
    assert domain_loss(source, target).item() == pytest.approx(sum(by_hand) / 4)


def test_inverted_labels_are_the_arguments_swapped():
    source, target = torch.randn(5, 2), torch.randn(5, 2)
    flipped = F.cross_entropy(torch.cat([source, target]), torch.tensor([1] * 5 + [0] * 5))
    torch.testing.assert_close(domain_loss(source=target, target=source), flipped)


def test_encoder_wants_to_pass_for_source_and_does_not_merely_undo_the_discriminator():
    method, batch = ready(), small_batch()
    twin = copy.deepcopy(method)
    (player, mapping, _), *_ = method.moves(batch, LATE)
    assert player is method.target
    gradient = torch.autograd.grad(mapping, list(method.target.parameters()))
    logits = twin.discriminator(twin.target.features(batch.target))
    passing = -logits.log_softmax(dim=1)[:, 0].sum() / 14  # over the rows of both domains, as in the released code
    torch.testing.assert_close(gradient, torch.autograd.grad(passing, list(twin.target.parameters())))
    assert max(g.abs().max() for g in gradient) > 1e-3


# Who may move


def test_each_turn_moves_its_player_alone():
    method, turns = ready(), []
    made, modules = steppers(method), (method.source, method.target, method.discriminator)
    moves = method.moves(small_batch(), LATE)
    before = [state(module) for module in modules]
    for player, loss, _ in moves:
        made[player].step(loss, LATE)
        moved = [not same(module, was, parameters_only=True) for module, was in zip(modules, before, strict=True)]
        turns.append((player, moved))
        before = [state(module) for module in modules]
    assert turns == [(method.target, [False, True, False]), (method.discriminator, [False, False, True])]


def test_critics_loss_does_not_reach_the_encoder_nor_either_loss_the_source():
    method = ready()
    (_, mapping, _), (_, loss, _) = list(method.moves(small_batch(), LATE))
    encoders = [*method.source.parameters(), *method.target.parameters()]
    assert all(g is None for g in torch.autograd.grad(loss, encoders, allow_unused=True, retain_graph=True))
    source = list(method.source.parameters())
    assert all(g is None for g in torch.autograd.grad(mapping, source, allow_unused=True, retain_graph=True))


def test_both_losses_are_taken_at_the_parameters_before_either_step():
    method, batch = ready(), small_batch()
    twin = copy.deepcopy(method)
    with torch.no_grad():
        source = twin.source.eval().features(batch.source)
    target = twin.target.features(batch.target)
    critic = list(twin.discriminator.parameters())
    real, fake = twin.discriminator(source), twin.discriminator(target)
    mapping = F.cross_entropy(torch.cat([real, fake]), torch.tensor([1] * 8 + [0] * 6))
    loss = F.cross_entropy(torch.cat([real, fake]), torch.tensor([0] * 8 + [1] * 6))
    of_target = torch.autograd.grad(mapping, list(twin.target.parameters()), retain_graph=True)
    of_critic = torch.autograd.grad(loss, critic)
    found = []
    made = steppers(method)
    for player, value, parts in method.moves(batch, LATE):
        found.append((value.item(), sorted(parts)))
        made[player].step(value, LATE)
    assert found == [
        (pytest.approx(mapping.item()), ["mapping"]),
        (pytest.approx(loss.item()), ["discriminator", "told_apart"]),
    ]
    for now, was, gradient in zip(method.target.parameters(), twin.target.parameters(), of_target, strict=True):
        torch.testing.assert_close(now, was - 0.1 * gradient)
    for now, was, gradient in zip(method.discriminator.parameters(), critic, of_critic, strict=True):
        torch.testing.assert_close(now, was - 0.1 * gradient)


def test_second_stage_leaves_the_source_and_the_classifier_bit_for_bit_statistics_included():
    method = ready(dropout=0.5)
    before, target = state(method.source), state(method.target)
    run(method, steps=10, first=5)
    assert same(method.source, before)
    assert not torch.equal(method.target.norm.running_mean, target["norm.running_mean"])  # the target's are its own


def test_frozen_source_is_seen_without_dropout_and_by_its_running_statistics():
    method, batch = ready(dropout=0.5), small_batch()
    seen = []
    method.discriminator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    list(method.moves(batch, LATE))
    torch.testing.assert_close(seen[0], copy.deepcopy(method.source).eval().features(batch.source))
    assert not torch.allclose(seen[1], copy.deepcopy(method.target).eval().features(batch.target))  # live, by contrast


def test_twin_encoders_on_the_same_images_are_told_apart_by_a_coin():
    method = ready(norm=False)
    method.target.load_state_dict(method.source.state_dict(), strict=False)
    same_images = images(8)
    (_, mapping, _), (_, loss, parts) = list(
        method.moves(Batch(source=same_images, target=same_images, labels=torch.zeros(8).long()), LATE)
    )
    assert parts["told_apart"] == 0.5
    torch.testing.assert_close(mapping, loss)


def test_told_apart_counts_the_right_answers_of_both_domains():
    method = ready(norm=False)
    method.discriminator = nn.Linear(5, 2).double()
    nn.init.zeros_(method.discriminator.weight)
    with torch.no_grad():
        method.discriminator.bias.copy_(torch.tensor([1.0, 0.0]))  # "source", always
    *_, (_, _, parts) = method.moves(small_batch(), LATE)
    assert parts["told_apart"].item() == pytest.approx(8 / 14)


# The stages


class SourceOnly(Method):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def players(self):
        return {self: PLAIN}

    def loss(self, batch, progress):
        return F.cross_entropy(self.net(batch.source), batch.labels), {}


def test_a_source_share_of_1_is_supervised_learning_bit_for_bit():
    method = ready(source_share=1.0, dropout=0.5)
    plain, critic = SourceOnly(copy.deepcopy(method.source)), state(method.discriminator)
    run(method, steps=4)
    run(plain, steps=4)
    assert same(method.source, plain.net.state_dict())
    assert same(method.discriminator, critic)
    method.eval(), plain.eval()
    torch.testing.assert_close(method.predict(images(5)), plain.net(images(5)).softmax(dim=1).float())


@pytest.mark.parametrize("sees", ["features", "logits"])
def test_target_starts_the_second_stage_as_a_copy_of_the_source(sees: str):
    method = ready(discriminator_input=sees)
    run(method, steps=8, stop=4)
    source = method.source.state_dict()
    wanted = {name for name in source if sees == "logits" or not name.startswith("head.")}
    assert set(method.target.state_dict()) == wanted
    assert all(torch.equal(value, source[name]) for name, value in method.target.state_dict().items())
    learned = state(method.source)
    run(method, steps=8, first=4)
    assert same(method.source, learned)
    assert not same(method.target, {name: learned[name] for name in wanted}, parameters_only=True)


def test_stages_begin_when_their_shares_say():
    method = ready(source_share=0.25, head_start=0.25)
    moments = (0.0, 0.24, 0.25, 0.49, 0.5, 1.0)
    players = {p: [player for player, _, _ in method.moves(small_batch(), p)] for p in moments}
    learns, alone, both = [method.source], [method.discriminator], [method.target, method.discriminator]
    assert players == {0.0: learns, 0.24: learns, 0.25: alone, 0.49: alone, 0.5: both, 1.0: both}


def test_head_start_is_the_discriminators_alone():
    method = ready(source_share=0.0, head_start=0.5)
    source, target, critic = state(method.source), state(method.target), state(method.discriminator)
    made = run(method, steps=8, stop=4)
    assert same(method.source, source)
    assert same(method.target, target, parameters_only=True)
    assert not same(method.discriminator, critic)
    run(method, steps=8, first=4, made=made)
    assert not same(method.target, target, parameters_only=True)


def test_a_trained_network_can_skip_the_first_stage():
    method = ready(source_share=0.0)
    assert list(method.players()) == [method.target, method.discriminator]
    assert [player for player, _, _ in method.moves(small_batch(), 0.0)] == [method.target, method.discriminator]
    fresh = ADDA(Small(), 3, ADDASettings(source_share=0.0))
    assert same(fresh.target, fresh.source.state_dict())


@pytest.mark.parametrize("killed", [3, 4, 6])
def test_a_run_killed_before_at_or_after_the_change_of_stage_ends_in_the_same_weights(killed: int, tmp_path):
    adam = {name: Optimizer(algorithm="adam", lr=0.01, momentum=0.5)
            for name in ("source_optimizer", "target_optimizer", "discriminator_optimizer")}  # fmt: skip
    whole, part, again = (ready(dropout=0.5, **adam) for _ in range(3))
    run(whole, steps=8)
    save_checkpoint(tmp_path / "saved", part, run(part, steps=8, stop=killed), {})
    made = steppers(again)
    load_checkpoint(tmp_path / "saved", again, made)
    run(again, steps=8, first=killed, made=made)
    assert same(again, whole.state_dict())


# The parts


def test_discriminator_of_features_shares_the_classifier_and_that_of_logits_brings_another():
    shared, own = ready(), ready(discriminator_input="logits")
    assert (shared.discriminator[0].in_features, own.discriminator[0].in_features) == (5, 3)
    assert not any(name.startswith("head") for name, _ in shared.target.named_parameters())
    list(own.moves(small_batch(), LATE))
    head = own.target.head.weight.detach().clone()
    run(own, steps=8, first=7)
    assert not torch.equal(own.target.head.weight, head)


@pytest.mark.parametrize("sees", ["features", "logits"])
def test_answers_come_from_the_target_encoder(sees: str):
    method = ready(discriminator_input=sees).eval()
    asked = images(5)
    head = method.source.head if sees == "features" else method.target.head
    expected = head(method.target.features(asked)).softmax(dim=1).float()
    torch.testing.assert_close(method.predict(asked), expected)
    assert not torch.allclose(expected, method.source(asked).softmax(dim=1).float())


def test_discriminator_is_the_papers():
    layers = list(discriminator(50, (500, 500), leak=0.0))
    sizes = [(layer.in_features, layer.out_features) for layer in layers[::2]]
    assert sizes == [(50, 500), (500, 500), (500, 2)]
    assert all(isinstance(layer, nn.LeakyReLU) for layer in layers[1::2])
    assert len(layers) == 5
    for layer in layers[::2]:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.eq(0).all()
    below = torch.tensor([-2.0, 3.0])
    assert discriminator(2, (2,), leak=0.0)[1](below).tolist() == [0.0, 3.0]
    assert discriminator(2, (2,), leak=0.1)[1](below).tolist() == pytest.approx([-0.2, 3.0])


def test_settings_are_those_of_the_released_script():
    s = ADDASettings()
    assert (s.batch, s.hidden, s.leak, s.source_share, s.head_start) == (128, (500, 500), 0.0, 0.5, 0.0)
    rules = [(r.algorithm, r.lr, r.momentum, r.beta2, r.weight_decay)
             for r in (s.source_optimizer, s.target_optimizer, s.discriminator_optimizer)]  # fmt: skip
    assert rules == [("adam", 1e-3, 0.9, 0.999, 2.5e-5), *[("adam", 2e-4, 0.5, 0.999, 0.0)] * 2]


def test_it_never_asks_for_the_targets_labels():
    source, target = ready(batch=4, view="weak").streams()
    assert source == Stream(pool="source", batch=4, views={"source": "weak"}, labels="labels")
    assert target == Stream(pool="target", batch=4, views={"target": "weak"})
    pools = {name: Pool(torch.zeros(9, 1, 2, 2, dtype=torch.uint8), torch.zeros(9).long()) for name in
             ("source", "target")}  # fmt: skip
    batch = Batches((source, target), pools, {"weak": lambda images, generator: images}, seed=0)(0)
    assert sorted(vars(batch)) == ["labels", "source", "target"]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"batch": 0}, "batch"),
        ({"hidden": (500, 0)}, "hidden"),
        ({"source_share": -0.1}, "source_share"),
        ({"head_start": -0.1}, "head_start"),
        ({"source_share": 0.6, "head_start": 0.5}, "at most 1"),
        ({"discriminator_input": "pixels"}, "discriminator_input"),
        ({"leak": 1.0}, "leak"),
        ({"leak": -0.1}, "leak"),
    ],
)
def test_bad_settings_fail_at_once(bad: dict, told: str):
    with pytest.raises(ValueError, match=told):
        ADDASettings(**bad)


def test_limits_of_the_settings_are_allowed():
    ADDASettings(source_share=0.0, head_start=1.0, hidden=())
    ADDASettings(source_share=1.0)


# What it is for


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_moons_turned_by_30_degrees_are_told_apart_again(seed: int):
    moons = turned_moons(seed)
    torch.manual_seed(seed)
    method = ADDA(Plane(), 2, ADDASettings(hidden=(128, 128)))
    learn(method, moons, steps=3000, seed=seed)
    assert accuracy(method.source, moons) < 0.9
    assert accuracy(method.predict, moons) >= 0.97
