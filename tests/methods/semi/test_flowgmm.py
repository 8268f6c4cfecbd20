import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Optimizer
from wazuka.methods.semi.flowgmm import (
    FlowGMM,
    FlowGMMSettings,
    component_logs,
    component_nll,
    dequantized,
    mixture_nll,
    opposite_means,
)
from wazuka.training import Stepper, train

RISING = 0.5  # share of the run in which the consistency weight rises, and half of it is where the tests look


def of_vectors(**settings) -> FlowGMM:
    torch.manual_seed(0)
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.5], [0.0, 3.0]])
    return FlowGMM((2,), 3, FlowGMMSettings(**({"couplings": 3, "hidden": 16} | settings)), means=means)


def of_images(shape=(1, 4, 4), **settings) -> FlowGMM:
    torch.manual_seed(0)
    few = {"filters": 4, "radius": 0.3, "ramp": RISING}
    return FlowGMM(shape, 3, FlowGMMSettings(**(few | settings))).double()


def images_of(count: int, seed: int = 1, shape=(1, 4, 4)) -> Tensor:
    levels = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed))
    return levels.double() / 255


def image_batch(again: int = 0) -> Batch:
    """5 labeled and 7 unlabeled images; the second views are other images, shifted by `again` seeds."""
    return Batch(
        images=images_of(5, 1), images_again=images_of(5, 11 + again), labels=torch.tensor([0, 1, 2, 0, 1]),
        unlabeled=images_of(7, 2), unlabeled_again=images_of(7, 12 + again),
    )  # fmt: skip


def passes_of(method: FlowGMM) -> list[tuple[Tensor, Tensor]]:
    """(input, latents) of each pass through the flow from now on."""
    seen: list[tuple[Tensor, Tensor]] = []
    method.flow.register_forward_hook(lambda module, inputs, outputs: seen.append((inputs[0], outputs[0])))
    return seen


# Densities


def test_components_are_gaussians() -> None:
    latents, means = torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    for std in (1.0, 1.31):
        gaussians = [torch.distributions.MultivariateNormal(m, std**2 * torch.eye(3).double()) for m in means]
        expected = torch.stack([gaussian.log_prob(latents) for gaussian in gaussians], dim=1)
        torch.testing.assert_close(component_logs(latents, means, std), expected)


def plane(reach: float = 14.0, side: int = 401) -> tuple[Tensor, float]:
    """A grid over the plane, and the area of a cell."""
    line = torch.linspace(-reach, reach, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line), float((line[1] - line[0]) ** 2)


def test_the_flow_carries_the_mixture_to_a_density_that_sums_to_one() -> None:
    method = of_vectors().double().eval()
    with torch.no_grad():
        for coupling in method.flow.couplings:
            coupling.net[-1].weight.mul_(4)  # bent enough that a wrong determinant shows
        points, cell = plane()
        log_joint = method.log_joint(points)
        assert method.flow(points)[1].std() > 0.1
    assert float(log_joint.logsumexp(dim=1).exp().sum() * cell) == pytest.approx(1.0, rel=2e-3)
    assert (log_joint.exp().sum(dim=0) * cell).tolist() == pytest.approx([1 / 3] * 3, rel=5e-3)


def test_a_likelihood_given_the_label_has_no_prior_in_it() -> None:
    log_prior = torch.tensor([0.7, 0.2, 0.1]).double().log()
    components = torch.randn(4, 3, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 2])
    found = component_nll(components + log_prior, labels, log_prior)
    torch.testing.assert_close(found, -components[torch.arange(4), labels].mean())


def test_cross_entropy_and_mixture_make_the_joint_likelihood() -> None:
    log_joint, labels = torch.randn(9, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    labeled, rest = log_joint[:4], log_joint[4:]
    joint = -labeled.gather(1, labels[:, None]).sum() + 5 * mixture_nll(rest)
    torch.testing.assert_close(F.cross_entropy(labeled, labels, reduction="sum") + 9 * mixture_nll(log_joint), joint)


def test_images_are_measured_per_gray_level() -> None:
    method, images = of_images().eval(), images_of(3)
    x = dequantized(images, 0.5)
    latents, log_det = method.flow(x)
    components = component_logs(latents, method.means, 1.0)
    expected = components - math.log(3) + log_det[:, None] - 16 * math.log(256)
    torch.testing.assert_close(method.log_joint(x), expected)


# The answer


def test_at_the_mean_of_a_class_the_answer_is_that_class() -> None:
    for method in (of_vectors().eval(), of_images((1, 8, 8), radius=1.0).eval()):
        with torch.no_grad():
            x = method.flow.inverse(method.means)
            if method.of_images:
                x = (x * 256 - 0.5) / 255  # back from the middle of the gray level
        assert method.predict(x).argmax(dim=1).tolist() == [0, 1, 2]


def test_an_answer_is_bayes_rule_without_the_determinant() -> None:
    method, images = of_images().eval(), images_of(3)
    latents, _ = method.flow(dequantized(images, 0.5))
    expected = (-(latents[:, None] - method.means).square().sum(dim=2) / 2).softmax(dim=1)
    torch.testing.assert_close(method.predict(images), expected)


def test_an_answer_takes_the_middle_of_each_gray_level_and_draws_nothing() -> None:
    method, images = of_images().eval(), images_of(3)
    seen, before = passes_of(method), torch.get_rng_state()
    method.predict(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(seen[0][0], ((255 * images).round() + 0.5) / 256)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (5, 6), (4, 7)])
def test_odd_sides_get_a_black_margin(height: int, width: int) -> None:
    shape, down, across = (2, height, width), height + height % 2, width + width % 2
    method, images = of_images(shape, consistency_weight=0.0), images_of(6, shape=shape)
    assert method.means.shape == (3, 2 * down * across)
    seen = passes_of(method)
    assert method.eval().predict(images).shape == (6, 3)
    method.train()
    method.loss(Batch(images=images[:2], labels=torch.tensor([0, 1]), unlabeled=images[2:]), 0.0)
    for x, _ in seen:
        assert x.shape == (6, 2, down, across)
        torch.testing.assert_close((256 * x[:, :, :height, :width]).floor(), (255 * images).round())
        assert (256 * x[:, :, height:]).floor().eq(0).all()
        assert (256 * x[:, :, :, width:]).floor().eq(0).all()


def test_even_sides_stay() -> None:
    assert of_images((1, 8, 6)).means.shape == (3, 48)
    assert of_images((1, 6, 10), scales=3).means.shape == (3, 8 * 12)


# The loss of images


def test_the_loss_of_images_is_the_authors() -> None:
    method, batch = of_images(label_weight=3.0, consistency_weight=2.0), image_batch()
    seen = passes_of(method)
    total, parts = method.loss(batch, progress=RISING / 4)  # a quarter of the consistency weight
    (second, second_latents), (first, latents) = seen
    guesses = (second_latents[:, None] - method.means).square().sum(dim=2).argmin(dim=1)
    assert len(guesses.unique()) > 1
    levels = lambda x: (256 * x).floor() / 255  # noqa: E731
    torch.testing.assert_close(levels(first), torch.cat([batch.images, batch.unlabeled]))
    torch.testing.assert_close(levels(second), torch.cat([batch.images_again, batch.unlabeled_again]))

    _, log_det = method.flow(first)  # in train mode: normalized by the same batch
    components = -(latents[:, None] - method.means).square().sum(dim=2) / 2 - 8 * math.log(2 * math.pi)
    density = log_det - 16 * math.log(256)
    supervised = F.cross_entropy(components[:5], batch.labels)
    mixture = -(components.exp().mean(dim=1).log() + density).mean()
    consistency = -(components[torch.arange(12), guesses] + density).mean()
    torch.testing.assert_close(total, 3 * supervised + mixture + 2 * 0.25 * consistency)
    torch.testing.assert_close(parts["supervised"], supervised)
    torch.testing.assert_close(parts["consistency"], consistency)
    torch.testing.assert_close(parts["bits_per_dim"], mixture / 16 / math.log(2))


def test_guesses_come_from_the_second_views_and_without_a_gradient() -> None:
    def told(batch: Batch) -> dict[str, float]:
        method = of_images()
        torch.manual_seed(5)
        seen = passes_of(method)
        _, parts = method.loss(batch, 0.5)
        assert [latents.requires_grad for _, latents in seen] == [False, True]
        return {name: float(value) for name, value in parts.items()}

    one, other = told(image_batch()), told(image_batch(again=100))
    assert one["consistency"] != other["consistency"]
    assert one["supervised"] == other["supervised"]
    assert one["bits_per_dim"] == other["bits_per_dim"]


def test_noise_is_new_in_each_pass_and_fills_the_gray_level() -> None:
    method, images = of_images(), images_of(12)
    batch = Batch(images=images[:5], images_again=images[:5], labels=torch.zeros(5, dtype=torch.int64),
                  unlabeled=images[5:], unlabeled_again=images[5:])  # fmt: skip
    seen = passes_of(method)
    torch.manual_seed(3)
    method.loss(batch, 0.5)
    method.loss(batch, 0.5)
    torch.manual_seed(3)
    method.loss(batch, 0.5)
    inputs = [x for x, _ in seen]
    noise = [256 * x - (255 * images).round() for x in inputs]
    for draw in noise:
        assert draw.min() >= -1e-9
        assert draw.max() < 1
        assert abs(float(draw.mean()) - 0.5) < 0.1
        assert draw.std() > 0.2
    for place, one in enumerate(inputs[:4]):
        assert all(not torch.equal(one, other) for other in inputs[place + 1 : 4])
    assert torch.equal(inputs[0], inputs[4])  # the global generator's, and no other's
    assert torch.equal(inputs[1], inputs[5])
    assert len(noise[0].unique()) == noise[0].numel()


def test_without_consistency_one_view_is_asked_for_and_one_pass_made() -> None:
    method = of_images(consistency_weight=0.0, label_weight=2.0)
    assert [dict(stream.views) for stream in method.streams()] == [{"images": "weak"}, {"unlabeled": "weak"}]
    seen, batch = passes_of(method), image_batch()
    total, parts = method.loss(Batch(images=batch.images, labels=batch.labels, unlabeled=batch.unlabeled), 0.0)
    assert len(seen) == 1
    torch.testing.assert_close(total.detach(), 2 * parts["supervised"] + parts["bits_per_dim"] * 16 * math.log(2))
    labeled, unlabeled = of_images().streams()
    assert (*labeled.views, *unlabeled.views) == ("images", "images_again", "unlabeled", "unlabeled_again")
    assert (labeled.labels, unlabeled.labels) == ("labels", None)


def test_consistency_rises_in_a_line_and_stays() -> None:
    def weight(progress: float) -> float:
        method = of_images()
        torch.manual_seed(1)
        total, parts = method.loss(image_batch(), progress)
        mixture = parts["bits_per_dim"] * 16 * math.log(2)
        return float((total.detach() - 3 * parts["supervised"] - mixture) / parts["consistency"])

    assert [weight(p) for p in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([0, 0.5, 1, 1])


def test_it_is_never_computed_in_half_precision() -> None:
    def told() -> tuple[Tensor, Tensor]:
        method = of_images().float()
        seen = passes_of(method)
        torch.manual_seed(1)
        batch = image_batch()
        halves = {name: v.float() if v.is_floating_point() else v for name, v in vars(batch).items()}
        total, _ = method.loss(Batch(**halves), 0.5)
        assert all(latents.dtype == torch.float32 for _, latents in seen)
        return total, method.eval().predict(images_of(3).float())

    exact = told()
    with torch.autocast("cpu", torch.bfloat16):
        rough = told()
    assert torch.equal(exact[0], rough[0])
    assert torch.equal(exact[1], rough[1])


def test_weight_decay_reaches_the_lengths_of_weight_norm_and_gradients_are_clipped() -> None:
    method = FlowGMM((1, 4, 4), 3)
    stepper = Stepper(method, method.players()[method])
    decaying, resting = stepper.optimizer.param_groups
    names = {parameter: name.rsplit(".", 1)[1] for name, parameter in method.named_parameters()}
    assert {names[p] for p in decaying["params"]} == {"length", "scale"}
    assert {names[p] for p in resting["params"]} == {"direction", "bias", "weight"}
    assert (decaying["weight_decay"], resting["weight_decay"]) == (5e-5, 0.0)
    assert stepper.settings.clip == 100.0


# The loss of vectors


def test_the_loss_of_vectors_is_the_joint_likelihood() -> None:
    method = of_vectors(unlabeled_weight=0.3, std=1.31).double()
    points = torch.randn(9, 2, dtype=torch.float64)
    batch = Batch(images=points[:4], labels=torch.tensor([2, 0, 1, 1]), unlabeled=points[4:])
    total, parts = method.loss(batch, 0.5)
    latents, log_det = method.flow(points)
    components = component_logs(latents, method.means, 1.31)
    supervised = -(components[torch.arange(4), batch.labels] + log_det[:4]).mean()
    unlabeled = -((components[4:].exp() / 3).sum(dim=1).log() + log_det[4:]).mean()
    torch.testing.assert_close(total, supervised + 0.3 * unlabeled)
    torch.testing.assert_close(parts["supervised"], supervised)
    torch.testing.assert_close(parts["unlabeled"], unlabeled)


def test_vectors_come_as_they_are() -> None:
    method, points = of_vectors().eval(), torch.tensor([[-300.0, 700.0], [0.1, 0.2]])
    seen, before = passes_of(method), torch.get_rng_state()
    method.predict(points)
    method.loss(Batch(images=points, labels=torch.tensor([0, 1]), unlabeled=points), 0.0)
    assert torch.equal(seen[0][0], points)
    assert torch.equal(seen[1][0], torch.cat([points, points]))
    assert torch.equal(torch.get_rng_state(), before)
    assert [set(stream.views.values()) for stream in method.streams()] == [{"plain"}, {"plain"}]


def test_dropout_reaches_the_flow() -> None:
    def share(**settings) -> set[float]:
        return {module.p for module in of_vectors(**settings).modules() if isinstance(module, nn.Dropout)}

    assert share() == {0.0}
    assert share(dropout=0.5) == {0.5}


def test_one_label_each_is_enough_where_density_tells_the_classes_apart() -> None:
    """Two bars side by side; the labeled points lie at opposite ends, each nearer to most of the other bar's points
    on its side.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    along, across = torch.rand(200, generator=generator) * 4 - 2, torch.randn(200, generator=generator) * 0.08
    points = torch.stack([along, across + torch.where(labels == 0, -0.5, 0.5)], dim=1)
    known = torch.tensor([[-1.6, -0.5], [1.6, 0.5]])
    nearest = torch.cdist(points, known).argmin(dim=1)
    assert (nearest == labels).float().mean() < 0.7

    torch.manual_seed(0)
    rule = Optimizer(algorithm="adam", lr=2e-3)
    settings = FlowGMMSettings(couplings=4, hidden=32, flow=rule)
    method = FlowGMM((2,), 2, settings, means=torch.tensor([[0.0, -3.0], [0.0, 3.0]]))
    batch = Batch(images=known, labels=torch.tensor([0, 1]), unlabeled=points)
    train(method, lambda step: batch, {method: Stepper(method, rule)}, total_steps=150)
    answers = method.eval().predict(points).argmax(dim=1)
    assert (answers == labels).float().mean() > 0.97


# The mixture


def test_the_mixture_stays_as_it_was_drawn() -> None:
    method = of_images()
    assert {name for name, _ in method.named_parameters() if not name.startswith("flow.")} == set()
    torch.testing.assert_close(method.log_prior.exp(), torch.full((3,), 1 / 3).double())
    before = method.means.clone()
    train(method, lambda step: image_batch(), {method: Stepper(method, method.settings.flow)}, total_steps=2)
    assert torch.equal(method.means, before)


def test_means_are_drawn_at_the_radius_or_given() -> None:
    torch.manual_seed(0)
    assert FlowGMM((1, 16, 16), 10, FlowGMMSettings(filters=1, radius=0.56)).means.std() == pytest.approx(0.56, 0.05)
    given = torch.randn(3, 2)
    method = FlowGMM((2,), 3, FlowGMMSettings(hidden=4), means=given)
    given.zero_()
    assert method.means.abs().min() > 0, "the mixture shares memory with its caller"
    with pytest.raises(ValueError, match="means must be"):
        FlowGMM((2,), 3, FlowGMMSettings(hidden=4), means=torch.zeros(2, 2))


def test_opposite_means_lie_at_their_distance() -> None:
    means = opposite_means(5, 7.5)
    torch.testing.assert_close(means[0], -means[1])
    torch.testing.assert_close((means[0] - means[1]).norm(), torch.tensor(7.5))


@pytest.mark.parametrize("shape", [(), (8, 8), (1, 1, 8, 8)])
def test_shapes_are_of_vectors_or_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape must be"):
        FlowGMM(shape, 3)


# Settings


def test_the_published_network_is_a_setting() -> None:
    published = FlowGMMSettings.published()
    assert (published.scales, published.blocks, published.filters) == (2, 8, 64)
    assert (published.flow.lr, published.flow.weight_decay, published.flow.clip) == (1e-4, 5e-5, 100.0)
    assert (published.label_weight, published.consistency_weight) == (3.0, 1.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"labeled_batch": 0}, {"unlabeled_batch": 0}, {"scales": 0}, {"filters": 0}, {"couplings": 0}, {"hidden": 0},
        {"label_weight": -1.0}, {"consistency_weight": -1.0}, {"unlabeled_weight": -1.0}, {"blocks": -1},
        {"std": 0.0}, {"radius": 0.0}, {"ramp": 1.5}, {"ramp": -0.1}, {"dropout": 1.0}, {"std": float("nan")},
    ],
)  # fmt: skip
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"must"):
        FlowGMMSettings(**bad)
