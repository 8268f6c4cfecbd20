import math

import pytest
import torch
from torch import Tensor

from wazuka.contract import Batch
from wazuka.methods.semi.fixmatch import FixMatch, FixMatchSettings
from wazuka.methods.semi.softmatch import SoftMatch, SoftMatchSettings, mean_and_variance, truncated_gaussian
from wazuka.nets import ConvNet

WAYS = [{}, {"frugal": True}, {"joint": False}, {"joint": False, "frugal": True}, {"guesser": "average"}]


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


def a_method(**settings) -> SoftMatch:
    return SoftMatch(a_net(), 3, SoftMatchSettings(labeled_batch=4, **settings)).train()


def gradient(method: SoftMatch | FixMatch, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    total, parts = method.loss(batch, 0.0)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(method.net.parameters()))]), parts


def logits_of(*rows: list[float]) -> Tensor:
    """Logits of these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


@torch.no_grad()
def judged(method: SoftMatch, weak: Tensor) -> tuple[Tensor, Tensor]:
    return method._judge(weak)


# The weight


def test_from_the_mean_upwards_a_guess_counts_fully_and_below_it_by_the_gaussian() -> None:
    mean, variance = torch.tensor([0.6, 0.04], dtype=torch.float64)
    confidence = torch.tensor([0.6, 0.61, 1.0, 0.5, 0.2], dtype=torch.float64)
    weights = truncated_gaussian(confidence, mean, variance, 2.0)
    assert weights[:3].eq(1).all()
    # the width is 0.2 / 2 = 0.1: one and four widths below
    torch.testing.assert_close(weights[3:], torch.tensor([math.exp(-0.5), math.exp(-8)]).double())


def test_a_narrow_gaussian_is_a_mask() -> None:
    confidence = torch.linspace(0.3, 1, 50)
    weights = truncated_gaussian(confidence, torch.tensor(0.7), torch.tensor(0.01), 1e6)
    assert torch.equal(weights, (confidence >= 0.7).float())


def test_the_variance_is_unbiased() -> None:
    values = torch.tensor([0.2, 0.9, 0.4, 0.7], dtype=torch.float64)
    mean, variance = mean_and_variance(values)
    torch.testing.assert_close(mean, values.mean())
    torch.testing.assert_close(variance, values.var())


# The averages


def test_each_average_takes_in_the_batch_before_the_next_is_made() -> None:
    method = a_method(decay=0.9).double()
    assert (method.mean, method.variance) == (torch.tensor(1 / 3), 1)
    mean, variance, average = 1 / 3, 1.0, None
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        weak = torch.randn(6, 3, generator=generator, dtype=torch.float64) + torch.tensor([1.0, 0.0, -1.0])
        q = weak.softmax(dim=1)
        average = q.mean(dim=0) if average is None else 0.9 * average + 0.1 * q.mean(dim=0)
        aligned = q * (1 / 3 + 1e-6) / (average + 1e-6)
        confidence = (aligned / aligned.sum(dim=1, keepdim=True)).amax(dim=1)
        mean = 0.9 * mean + 0.1 * confidence.mean()
        variance = 0.9 * variance + 0.1 * confidence.var()
        guesses, weights = judged(method, weak)
        torch.testing.assert_close(guesses, q)
        torch.testing.assert_close(method.guessed, average)
        torch.testing.assert_close(method.mean, mean, atol=1e-7, rtol=0)  # 1/3 began as float32
        torch.testing.assert_close(method.variance, variance)
        below = (confidence - mean).clamp_max(0)
        torch.testing.assert_close(weights, (-below.square() * 4 / (2 * variance)).exp(), atol=1e-7, rtol=0)


def test_the_first_batch_makes_the_average_guess_whole() -> None:
    method = a_method().double()
    weak = logits_of([0.8, 0.1, 0.1], [0.6, 0.3, 0.1])
    judged(method, weak)
    torch.testing.assert_close(method.guessed, torch.tensor([0.7, 0.2, 0.1]).double())
    judged(method, logits_of([0.1, 0.1, 0.8], [0.1, 0.1, 0.8]))
    torch.testing.assert_close(method.guessed, torch.tensor([0.6994, 0.1999, 0.1007]).double())


def test_alignment_serves_the_weight_alone() -> None:
    """Class 0 is guessed so often that alignment overturns weak guesses of it; they are learned all the same."""
    method = a_method().double()
    with torch.no_grad():
        method.guessed.copy_(torch.tensor([0.9, 0.05, 0.05]))
        method.mean.fill_(0.99)
        method.variance.fill_(0.1)
    guesses, weights = judged(method, logits_of([0.5, 0.3, 0.2], [0.98, 0.01, 0.01]))
    assert guesses.argmax(dim=1).tolist() == [0, 0]
    aligned = torch.tensor([0.5 / 0.9, 6.0, 4.0])
    plain = a_method(alignment=False).double()
    with torch.no_grad():
        plain.mean.fill_(0.99)
        plain.variance.fill_(0.1)
    _, unaligned = judged(plain, logits_of([0.5, 0.3, 0.2], [0.98, 0.01, 0.01]))
    assert float((aligned / aligned.sum()).argmax()) == 1
    assert weights[0] > unaligned[0]  # aligned, class 1 is surer than class 0 was
    assert weights[1] < unaligned[1]
    assert plain.guessed.eq(0).all()


# The whole


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("way", WAYS)
def test_without_bound_on_sigmas_it_is_fixmatch_at_the_mean(way: dict, temperature: float) -> None:
    batch, more = a_batch(), {"temperature": temperature, **way}
    soft = a_method(sigmas=1e9, alignment=False, decay=0.0, **more)  # decay 0: the mean of the batch itself
    found, parts = gradient(soft, batch)
    if way.get("joint") is False:
        more["frugal"] = False  # every strong view has a weight, so none looks on
    fix = FixMatch(a_net(), 3, FixMatchSettings(labeled_batch=4, threshold=float(soft.mean), **more)).train()
    expected, fix_parts = gradient(fix, batch)
    assert 0 < fix_parts["used"] < 1
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts, fix_parts)


def test_weighed_guesses_are_averaged_over_all_images() -> None:
    batch = a_batch()
    with torch.no_grad():
        logits = a_net().train()(torch.cat([batch.images, batch.strong, batch.weak]))
        twin = a_method(decay=0.0)
        _, weights = judged(twin, logits[12:])
    assert weights.min() < 0.9 < weights.max()
    each = torch.nn.functional.cross_entropy(logits[4:12], logits[12:].argmax(dim=1), reduction="none")
    total, parts = a_method(decay=0.0, unlabeled_weight=3.0).loss(batch, 0.0)
    torch.testing.assert_close(parts["unlabeled"], (weights * each).sum() / 8)
    torch.testing.assert_close(parts["used"], weights.mean())
    torch.testing.assert_close(total.detach(), parts["supervised"] + 3 * parts["unlabeled"])


@pytest.mark.parametrize("way", WAYS)
def test_no_gradient_enters_through_guess_or_weight(way: dict) -> None:
    batch, method = a_batch(), a_method(temperature=0.5, **way)
    batch.weak.requires_grad_()
    method.eval()  # so that batch norm does not tie the images to each other
    method.loss(batch, 0.0)[0].backward()
    assert batch.weak.grad is None or batch.weak.grad.eq(0).all()


@pytest.mark.parametrize("more", [{"joint": False}, {"guesser": "average"}])
def test_apart_frugal_neither_waits_nor_reorders(more: dict) -> None:
    batch = a_batch()
    exact, parts = gradient(a_method(**more), batch)
    frugal, frugal_parts = gradient(a_method(frugal=True, **more), batch)
    assert torch.equal(frugal, exact)
    assert torch.equal(frugal_parts["unlabeled"], parts["unlabeled"])
    far = Batch(**{name: value.to("meta") for name, value in vars(batch).items()})
    a_method(frugal=True, **more).to("meta").loss(far, 0.0)[0].backward()


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
        {"sigmas": 0.0},
        {"unlabeled_ratio": 0},
        {"unlabeled_weight": -1.0},
        {"labeled_batch": 1, "unlabeled_ratio": 1},
        {"guesser": "teacher"},
        {"temperature": -1.0},
    ],
)
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        SoftMatchSettings(**bad)
