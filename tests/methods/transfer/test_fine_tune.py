import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.methods.small import batches_of, run, small, steppers_of
from wazuka.contract import Batch, Optimizer
from wazuka.methods.transfer.fine_tune import FineTune, FineTuneSettings
from wazuka.parts.tuning import Tuning
from wazuka.training import Progress, load_checkpoint, save_checkpoint

FROM_THE_TOP = [{"layers.7", "layers.8", "layers.10", "layers.11"}, {"layers.3", "layers.4"}, {"layers.0", "layers.1"}]
FAST = Optimizer(lr=0.05, weight_decay=0.1)


def tuned(optimizer: Optimizer = FAST, label_smoothing: float = 0.0, **tuning: object) -> FineTune:
    changes = {"tuning": Tuning(**tuning), "optimizer": optimizer, "label_smoothing": label_smoothing}  # type: ignore[arg-type]
    method = small("fine_tune", changes=changes)
    assert isinstance(method, FineTune)
    return method


def test_a_head_of_zeros_makes_the_encoders_first_gradient_exactly_zero() -> None:
    method = tuned(head="zero")
    batch = batches_of(method)(0)
    loss, _ = method.train().loss(batch, 0.0)
    assert float(loss.detach()) == pytest.approx(math.log(4))
    for gradient in torch.autograd.grad(loss, method.net.encoder_parameters(), retain_graph=True):
        assert gradient.eq(0).all()
    weight, bias = torch.autograd.grad(loss, method.net.head_parameters())
    assert weight.abs().max() > 0
    torch.testing.assert_close(bias, 1 / 4 - F.one_hot(batch.labels, 4).float().mean(dim=0))


@pytest.mark.parametrize("norms", ["train", "frozen"])
def test_at_each_stage_exactly_the_layers_that_are_awake_change(norms: str) -> None:
    """Parameters and, where norms look at the batch, their statistics; all others stay bit for bit."""
    method = tuned(head="normal", norms=norms, groups=3, unfreezing=0.6)
    state = {name: value.clone() for name, value in method.net.net.state_dict().items()}
    stages: list[set[str]] = []

    def look(progress: Progress) -> bool:
        now = method.net.net.state_dict()
        stages.append({name for name, value in now.items() if not torch.equal(value, state[name])})
        state.update({name: value.clone() for name, value in now.items()})
        return True

    run(method, steps=10, after_step=look)
    awake = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    for changed, groups in zip(stages, awake, strict=True):
        layers = {"head"}.union(*FROM_THE_TOP[:groups])
        own = {name for name in state if name.rpartition(".")[0] in layers}
        statistics = {name for name in own if "running" in name or "tracked" in name}
        assert changed == (own if norms == "train" else own - statistics)


def test_each_group_takes_steps_of_its_own_length() -> None:
    rule = Optimizer(lr=0.1, momentum=0.0)
    method = tuned(rule, head="normal", head_rate=5.0, groups=3, rate_decay=2.6)
    before = {name: p.detach().clone() for name, p in method.net.net.named_parameters()}
    steppers = steppers_of(method)
    (stepper,) = steppers.values()
    run(method, steppers, steps=1)
    assert set(stepper.learning) == set(method.parameters())
    for name, p in method.net.net.named_parameters():
        layer = name.rpartition(".")[0]
        rate = 5.0 if layer == "head" else 2.6 ** -next(i for i, group in enumerate(FROM_THE_TOP) if layer in group)
        assert p.grad is not None
        torch.testing.assert_close(before[name] - p.detach(), 0.1 * rate * p.grad, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize(("norms", "statistics", "affine"), [("train", 1, 1), ("frozen", 0, 1), ("frozen_all", 0, 0)])
def test_what_moves_in_batch_norm(norms: str, statistics: bool, affine: bool) -> None:
    method = tuned(head="normal", norms=norms)
    before = {name: value.clone() for name, value in method.net.net.state_dict().items()}
    run(method)
    for name, value in method.net.net.state_dict().items():
        if name.rpartition(".")[0] in {"layers.1", "layers.4", "layers.8", "layers.11"}:
            moves = affine if name.endswith(("weight", "bias")) else statistics
            assert torch.equal(value, before[name]) != moves, name


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_a_run_that_was_cut_while_layers_rested_ends_as_the_whole_one(algorithm: str, tmp_path: Path) -> None:
    rule = Optimizer(algorithm=algorithm, lr=0.01, weight_decay=0.1)  # type: ignore[arg-type]
    whole, cut, resumed = (tuned(rule, head="normal", norms="train", unfreezing=0.6) for _ in range(3))
    run(whole, steps=10)
    steppers = steppers_of(cut)
    run(cut, steppers, steps=10, after_step=lambda progress: progress.step < 5)
    save_checkpoint(tmp_path / "saved", cut, steppers, {"step": 5})
    steppers = steppers_of(resumed)
    load_checkpoint(tmp_path / "saved", resumed, steppers)
    run(resumed, steppers, steps=10, first_step=5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_it_begins_from_a_linear_probe() -> None:
    method = tuned(head="given").eval()
    weight, bias, images = torch.randn(4, 8), torch.randn(4), torch.rand(3, 1, 8, 8)
    method.start_head(weight, bias)
    expected = (method.net.features(images) @ weight.T + bias).softmax(dim=1)
    torch.testing.assert_close(method.predict(images), expected)


def test_label_smoothing_spreads_a_share_of_each_label_over_all_classes() -> None:
    plain, smooth = tuned(head="normal"), tuned(head="normal", label_smoothing=0.3)
    batch = batches_of(plain)(0)
    logs = plain.net(batch.images).log_softmax(dim=1)
    hard, _ = plain.loss(batch, 0.0)
    torch.testing.assert_close(hard, F.nll_loss(logs, batch.labels))
    torch.testing.assert_close(smooth.loss(batch, 0.0)[0], 0.7 * hard - 0.3 * logs.mean())


def test_only_the_labels_of_the_labeled_pool_are_asked_for() -> None:
    (stream,) = FineTune(tuned().net.net, 4).streams()
    assert (stream.pool, stream.batch, stream.labels) == ("labeled", 48, "labels")
    assert tuned().loss(Batch(images=torch.rand(2, 1, 8, 8), labels=torch.tensor([0, 3])), 0.0)[0].isfinite()


@pytest.mark.parametrize("wrong", [{"view": "odd"}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}])
def test_wrong_settings_fail_at_once(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FineTuneSettings(**wrong)
