from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wazuka.contract import Batch, Method, Optimizer, Stream
from wazuka.data.streams import Batches, Pool
from wazuka.errors import UserError
from wazuka.functional.schedules import cosine
from wazuka.training import Stepper, load_checkpoint, save_checkpoint, train


class Regression(Method):
    """Least squares, so that a step can be done by hand."""

    def __init__(self, optimizer: Optimizer):
        super().__init__()
        self.layer, self.optimizer, self.dropout = nn.Linear(4, 1), optimizer, nn.Dropout(0.5)

    def players(self):
        return {self: self.optimizer}

    def streams(self):
        return (Stream(pool="labeled", batch=4, views={"images": "plain"}),)

    def loss(self, batch, progress):
        out = self.layer(self.dropout(batch.images.flatten(1)))
        return F.mse_loss(out, torch.ones_like(out)), {"error": out.detach().mean()}


class Game(Method):
    """Two players; the second must see the first one's new weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.seen = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), []

    def players(self):
        rule = Optimizer(lr=0.1, momentum=0.0)
        return {self.first: rule, self.second: rule}

    def moves(self, batch, progress):
        x = torch.ones(1, 1)
        yield self.first, (self.second(self.first(x))).sum(), {}
        self.seen.append(float(self.first.weight.detach()))
        yield self.second, (self.second(self.first(x))).sum(), {}


def pool() -> dict[str, Pool]:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 1, 2, 2), generator=g).to(torch.uint8)
    return {"labeled": Pool(images, torch.zeros(10, dtype=torch.int64))}


def ready(optimizer: Optimizer | None = None) -> tuple[Regression, Batches, dict]:
    torch.manual_seed(0)
    method = Regression(optimizer or Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01))
    batches = Batches(method.streams(), pool(), {"plain": lambda images, generator: images}, seed=3)
    return method, batches, {p: Stepper(p, o) for p, o in method.players().items()}


def test_each_player_steps_on_its_own_loss_in_its_turn() -> None:
    game = Game()
    with torch.no_grad():
        game.first.weight.fill_(2.0)
        game.second.weight.fill_(3.0)
    train(game, lambda step: Batch(), {p: Stepper(p, o) for p, o in game.players().items()}, total_steps=1)
    first = 2.0 - 0.1 * 3.0
    assert game.seen == [pytest.approx(first)]
    assert game.first.weight.item() == pytest.approx(first)  # the second turn's gradient never reached it
    assert game.second.weight.item() == pytest.approx(3.0 - 0.1 * first)


def test_the_second_turn_sees_new_weights_under_autocast_too() -> None:
    game = Game()
    with torch.no_grad():
        game.first.weight.fill_(2.0)
        game.second.weight.fill_(4.0)
    steppers = {p: Stepper(p, o) for p, o in game.players().items()}
    train(game, lambda step: Batch(), steppers, total_steps=1, precision=torch.bfloat16)
    assert game.second.weight.item() == pytest.approx(4.0 - 0.1 * 1.6, abs=2e-3)  # 2.0 if cached weights were used


def test_the_schedule_sets_the_rate_and_kernels_alone_decay() -> None:
    method, batches, steppers = ready(Optimizer(lr=0.1, momentum=0.0, weight_decay=0.5, schedule=cosine))
    method.dropout.p = 0.0
    weight, bias = method.layer.weight.detach().clone(), method.layer.bias.detach().clone()
    expected = []
    train(method, batches, steppers, total_steps=2, after_step=lambda p: expected.append(1) or len(expected) < 1)
    copy = nn.Linear(4, 1)
    copy.load_state_dict({"weight": weight, "bias": bias})
    loss = F.mse_loss(copy(batches(0).images.flatten(1)), torch.ones(4, 1))
    to_weight, to_bias = torch.autograd.grad(loss, [copy.weight, copy.bias])
    torch.testing.assert_close(method.layer.weight, weight - 0.1 * (to_weight + 0.5 * weight))
    torch.testing.assert_close(method.layer.bias, bias - 0.1 * to_bias)
    train(method, batches, steppers, first_step=1, total_steps=2)
    assert steppers[method].optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("algorithm", ["sgd", "adam", "adamw"])
def test_a_resumed_run_ends_in_the_same_weights_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    rule = Optimizer(algorithm=algorithm, lr=0.05, weight_decay=0.01, schedule=cosine)
    whole, batches, steppers = ready(rule)
    assert train(whole, batches, steppers, total_steps=12, seed=5)

    part, batches, steppers = ready(rule)
    assert not train(part, batches, steppers, total_steps=12, seed=5, after_step=lambda p: p.step < 7)
    save_checkpoint(tmp_path / "saved", part, steppers, {"step": 7})

    torch.manual_seed(99)
    again = Regression(rule)
    steppers = {p: Stepper(p, o) for p, o in again.players().items()}
    facts = load_checkpoint(tmp_path / "saved", again, steppers)
    assert facts == {"step": 7}
    train(again, batches, steppers, first_step=7, total_steps=12, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_dropout_is_new_each_step_and_the_same_for_the_same_seed() -> None:
    def masks(seed: int) -> list[float]:
        method, batches, steppers = ready(Optimizer(lr=0.0))
        found: list[float] = []
        train(method, lambda s: batches(0), steppers, total_steps=3, seed=seed,
              after_step=lambda p: found.append(float(p.parts["error"])) or True)  # fmt: skip
        return found

    assert masks(1) == masks(1)
    assert len(set(masks(1))) == 3
    assert masks(1) != masks(2)


def test_a_damaged_or_foreign_checkpoint_is_told_in_a_sentence(tmp_path: Path) -> None:
    method, _, steppers = ready()
    save_checkpoint(tmp_path / "saved", method, steppers, {"step": 1})
    content = (tmp_path / "saved").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="delete that file"):
        load_checkpoint(tmp_path / "cut", method, steppers)
    other = Game()
    with pytest.raises(UserError, match="another method"):
        load_checkpoint(tmp_path / "saved", other, {})


def test_a_player_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        Stepper(nn.ReLU(), Optimizer(lr=0.1))


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"lr": 0.1, "momentum": 1.0}, {"lr": 0.1, "algorithm": "lbfgs"}])
def test_bad_optimizer_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"must"):
        Optimizer(**bad)
