import pytest
import torch
from torch import Tensor

from wazuka.contract import Batch
from wazuka.methods.semi.fixmatch import FixMatch, FixMatchSettings
from wazuka.methods.semi.freematch import FreeMatch, FreeMatchSettings, adaptive_mask, fairness_loss
from wazuka.nets import ConvNet

WAYS = [{}, {"frugal": True}, {"joint": False}, {"joint": False, "frugal": True}, {"guesser": "average"}]
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)


def a_batch(seed: int = 0, labeled: int = 4, unlabeled: int = 8) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(labeled, 1, 8, 8, generator=g),
        labels=torch.randint(0, 3, (labeled,), generator=g),
        weak=torch.rand(unlabeled, 1, 8, 8, generator=g),
        strong=torch.rand(unlabeled, 1, 8, 8, generator=g),
    )


def a_net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(1, 3, (4, 8))


def a_method(**settings) -> FreeMatch:
    return FreeMatch(a_net(), 3, FreeMatchSettings(labeled_batch=4, **settings)).train()


def gradient(method: FreeMatch | FixMatch, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    total, parts = method.loss(batch, 0.0)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(method.net.parameters()))]), parts


def logits_of(*rows: list[float]) -> Tensor:
    """Logits of these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


# The thresholds


def test_averages_start_even() -> None:
    method = a_method()
    torch.testing.assert_close(method.threshold, torch.tensor(1 / 3))
    torch.testing.assert_close(method.expected, torch.full((3,), 1 / 3))
    torch.testing.assert_close(method.histogram, torch.full((3,), 1 / 3))


def test_the_threshold_approaches_a_steady_confidence_geometrically() -> None:
    method = a_method(decay=0.9).double()
    weak = logits_of([0.8, 0.1, 0.1], [0.1, 0.1, 0.8])
    for step in range(1, 6):
        with torch.no_grad():
            method._judge(weak)
        torch.testing.assert_close(0.8 - method.threshold, torch.tensor(0.8 - 1 / 3).double() * 0.9**step)
    torch.testing.assert_close(method.expected, 0.9**5 / 3 + (1 - 0.9**5) * weak.exp().mean(dim=0))
    torch.testing.assert_close(method.histogram, 0.9**5 / 3 + (1 - 0.9**5) * torch.tensor([0.5, 0, 0.5]).double())


def test_all_averages_take_in_the_batch_before_its_mask() -> None:
    method = a_method(decay=0.0).double()  # decay 0: the averages are the batch's own
    weak = logits_of([0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.1, 0.5, 0.4])
    with torch.no_grad():
        guesses, used = method._judge(weak)
    torch.testing.assert_close(guesses, weak.exp())
    # tau 2/3; p~ (1.6, 0.85, 0.55)/3, so the threshold is 2/3 for class 0 and 2/3 * 0.85/1.6 = 0.354 for class 1
    assert used.tolist() == [True, False, True]


def test_a_class_guessed_less_has_a_lower_threshold() -> None:
    guesses = logits_of([0.59, 0.21, 0.2], [0.61, 0.2, 0.19], [0.36, 0.39, 0.25], [0.39, 0.41, 0.2]).exp()
    expected = torch.tensor([0.5, 1 / 3, 1 / 6], dtype=torch.float64)  # 0.6 for class 0, 0.4 for class 1
    used = adaptive_mask(guesses, torch.tensor(0.6).double(), expected)
    assert used.tolist() == [False, True, False, True]


def test_the_threshold_stays_between_its_bounds() -> None:
    weak = logits_of([0.98, 0.01, 0.01])
    method = a_method(decay=0.5, highest_threshold=0.5).double()
    with torch.no_grad():
        method._judge(weak)
        assert method.threshold == 0.5
        method._judge(logits_of([0.34, 0.33, 0.33]))  # the bound is remembered, not the value above it
    torch.testing.assert_close(method.threshold, torch.tensor(0.42).double())
    method = a_method(lowest_threshold=0.9).double()
    with torch.no_grad():
        method._judge(weak)
    assert method.threshold == 0.9


# The fairness term


def test_fairness_in_closed_form() -> None:
    strong = logits_of([0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.01, 0.01, 0.98])
    used = torch.tensor([True, True, True, False])
    expected = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    histogram = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64)
    p = torch.tensor([0.5 / 0.6, 0.3 / 0.4, 0.0]).double()
    q = torch.tensor([1.4 / 2, 1.0 / 1, 0.0]).double()  # class 2 is never the likeliest of a used view
    p, q = p / p.sum(), q / q.sum()
    loss = fairness_loss(strong, used, expected, histogram)
    torch.testing.assert_close(loss, (p[:2] * q[:2].log()).sum())
    assert loss < 0


def test_learning_it_takes_from_the_classes_expected_most() -> None:
    strong = logits_of([0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]).requires_grad_()
    expected = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    loss = fairness_loss(strong, torch.ones(3, dtype=torch.bool), expected, UNIFORM)
    step = torch.autograd.grad(loss, strong)[0]
    mean = (strong - 0.1 * step).softmax(dim=1).mean(dim=0)
    assert mean[0] < 1 / 3 < mean[1]
    torch.testing.assert_close(mean[1], mean[2])


def test_fairness_does_not_know_the_classes_names() -> None:
    generator = torch.Generator().manual_seed(0)
    strong, expected = torch.randn(9, 3, generator=generator), torch.tensor([0.5, 0.3, 0.2])
    used, order = torch.arange(9) % 3 > 0, torch.tensor([2, 0, 1])
    loss = fairness_loss(strong, used, expected, expected.flip(0))
    torch.testing.assert_close(fairness_loss(strong[:, order], used, expected[order], expected.flip(0)[order]), loss)


def test_fairness_is_of_the_used_views_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    used = torch.tensor([True, False, True, True, False, True])
    loss = fairness_loss(strong, used, UNIFORM, UNIFORM)
    torch.testing.assert_close(loss, fairness_loss(strong[used], used[used], UNIFORM, UNIFORM))
    gradient = torch.autograd.grad(loss, strong)[0]
    assert gradient[~used].eq(0).all()
    assert gradient[used].abs().sum(dim=1).gt(0).all()


def test_no_used_view_no_fairness_and_no_nan() -> None:
    strong = torch.randn(4, 3, requires_grad=True)
    loss = fairness_loss(strong, torch.zeros(4, dtype=torch.bool), torch.full((3,), 1 / 3), torch.full((3,), 1 / 3))
    assert loss == 0
    assert torch.autograd.grad(loss, strong)[0].eq(0).all()


def test_one_class_alone_is_finite() -> None:
    strong = logits_of([0.6, 0.2, 0.2], [0.7, 0.2, 0.1]).requires_grad_()
    loss = fairness_loss(strong, torch.ones(2, dtype=torch.bool), UNIFORM, UNIFORM)
    torch.testing.assert_close(loss, torch.tensor(1e-12).double().log() * 2 / 3)  # as the code has it
    assert torch.autograd.grad(loss, strong)[0].isfinite().all()


# The whole


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("way", WAYS)
def test_with_a_fixed_threshold_and_no_fairness_it_is_fixmatch(way: dict, temperature: float) -> None:
    batch, more = a_batch(), {"temperature": temperature, **way}
    with torch.no_grad():
        if way.get("guesser") == "average" or way.get("joint") is False:
            weak = a_net().train(way.get("guesser") is None)(batch.weak)
        else:
            weak = a_net().train()(torch.cat([batch.images, batch.strong, batch.weak]))[12:]
    threshold = float(weak.softmax(dim=1).amax(dim=1).median())
    fix = FixMatch(a_net(), 3, FixMatchSettings(labeled_batch=4, threshold=threshold, **more)).train()
    bounds = {"lowest_threshold": threshold, "highest_threshold": threshold}
    free = a_method(**bounds, fairness_weight=0.0, decay=1 - 1e-7, **more)  # p~ stays even
    (expected, fix_parts), (found, parts) = gradient(fix, batch), gradient(free, batch)
    assert 0 < fix_parts["used"] < 1
    torch.testing.assert_close(found, expected)
    for name, value in fix_parts.items():
        torch.testing.assert_close(parts[name], value)


@pytest.mark.parametrize("way", WAYS)
def test_the_terms_add_up_and_no_gradient_enters_through_the_guess(way: dict) -> None:
    batch = a_batch()
    batch.weak.requires_grad_()
    method = a_method(unlabeled_weight=0.7, fairness_weight=0.3, temperature=0.5, **way)
    method.eval()  # so that batch norm does not tie the images to each other
    total, parts = method.loss(batch, 0.0)
    expected = parts["supervised"] + 0.7 * parts["unlabeled"] + 0.3 * parts["fairness"]
    torch.testing.assert_close(total.detach(), expected)
    assert parts["fairness"] < 0
    total.backward()
    assert batch.weak.grad is None or batch.weak.grad.eq(0).all()


def test_the_fairness_term_reads_strong_views_used_ones_and_the_averages() -> None:
    batch, method = a_batch(), a_method(decay=0.5)
    with torch.no_grad():
        logits = a_net().train()(torch.cat([batch.images, batch.strong, batch.weak]))
    strong, weak = logits[4:12], logits[12:].softmax(dim=1)
    _, parts = method.loss(batch, 0.0)
    expected = 0.5 / 3 + 0.5 * weak.mean(dim=0)
    threshold = 0.5 / 3 + 0.5 * weak.amax(dim=1).mean()
    used = weak.amax(dim=1) >= threshold * (expected / expected.max())[weak.argmax(dim=1)]
    histogram = 0.5 / 3 + 0.5 * torch.bincount(weak.argmax(dim=1), minlength=3) / 8
    assert 0 < used.sum() < 8
    assert parts["used"] == used.float().mean()
    torch.testing.assert_close(parts["threshold"], threshold)
    torch.testing.assert_close(parts["fairness"], fairness_loss(strong, used, expected, histogram))


def test_the_reported_threshold_is_a_copy() -> None:
    method = a_method(decay=0.5)
    _, parts = method.loss(a_batch(), 0.0)
    before = parts["threshold"].clone()
    method.loss(a_batch(1), 0.0)
    assert torch.equal(parts["threshold"], before)


def test_answers_come_from_the_averaged_weights() -> None:
    method, images = a_method(averaging=0.9).eval(), torch.rand(5, 1, 8, 8)
    before = method.predict(images)
    with torch.no_grad():
        method.net.head.weight.add_(1.0)
    assert torch.equal(method.predict(images), before)
    method.after_step()
    assert not torch.equal(method.predict(images), before)


@pytest.mark.parametrize(
    "bad",
    [
        {"decay": 1.0},
        {"lowest_threshold": 0.9, "highest_threshold": 0.5},
        {"lowest_threshold": -0.1},
        {"unlabeled_ratio": 0},
        {"unlabeled_weight": -1.0},
        {"fairness_weight": -1.0},
        {"guesser": "teacher"},
        {"temperature": -1.0},
    ],
)
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        FreeMatchSettings(**bad)
