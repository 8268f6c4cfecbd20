import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.augment import CTAugment
from wazuka.augment.mixing import mixing_weights
from wazuka.contract import Batch
from wazuka.errors import UserError
from wazuka.functional.schedules import linear_ramp
from wazuka.methods.semi import remixmatch
from wazuka.methods.semi.remixmatch import ReMixMatch, ReMixMatchSettings, one_turn_each
from wazuka.nets import Backbone

CLASSES, SIDE = 3, 4
P_MODEL, P_DATA = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])


class Small(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.feature_size = 8
        self.hidden, self.norm = nn.Linear(SIDE * SIDE, 8), nn.BatchNorm1d(8, momentum=0.5)
        self.head = nn.Linear(8, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.hidden(images.flatten(1))).tanh()


def a_batch(labeled: int = 8, unlabeled: int = 8, copies: int = 2, kind: str = "strong") -> Batch:
    generator = torch.Generator().manual_seed(1)
    names = ["weak", *(f"{kind}_{copy}" for copy in range(1, copies + 1))]
    views = {name: torch.rand(unlabeled, 1, SIDE, SIDE, generator=generator) for name in names}
    images = torch.rand(labeled, 1, SIDE, SIDE, generator=generator)
    return Batch(images=images, labels=torch.arange(labeled) % CLASSES, **views)


def a_method(learned: CTAugment | None = None, **settings) -> ReMixMatch:
    torch.manual_seed(0)
    net = Small()
    with torch.no_grad():
        net.head.weight.mul_(4)
    method = ReMixMatch(net, CLASSES, ReMixMatchSettings(**({"labeled_batch": 8, "copies": 2} | settings)), learned)
    method.guessed.rows.copy_(P_MODEL.expand_as(method.guessed.rows))  # alignment has something to do
    method.prior.value.copy_(P_DATA)
    return method.train()


def loss_of(method: ReMixMatch, batch: Batch, progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(7)
    return method.loss(batch, progress)


def gradient_of(method: ReMixMatch, loss: Tensor) -> Tensor:
    parameters = [p for p in method.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, materialize_grads=True)])


def raw_guess(method: ReMixMatch, *views: Tensor) -> Tensor:
    momentum, method.net.norm.momentum = method.net.norm.momentum, 0.0
    with torch.no_grad():
        probs = sum(method.net(view).softmax(1) for view in views) / len(views)
    method.net.norm.momentum = momentum
    return probs


def target_from(probs: Tensor, alignment: bool = True) -> Tensor:
    """First aligned, then sharpened with T = 1/2."""
    probs = probs * (P_DATA / P_MODEL) if alignment else probs
    probs = probs / probs.sum(1, keepdim=True)
    return probs.square() / probs.square().sum(1, keepdim=True)


def by_hand(
    method: ReMixMatch, batch: Batch, target: Tensor, kind: str = "strong", squared: bool = False
) -> dict[str, Tensor]:
    """The authors' remixmatch_no_cta.py, list by list, for two copies of 8 images: each loss by itself."""
    net, norm = method.net, method.net.norm
    first, second = getattr(batch, f"{kind}_1"), getattr(batch, f"{kind}_2")
    torch.manual_seed(7)
    norm.momentum = 0.0
    premix = F.cross_entropy(net(first), target)
    turned = torch.stack([torch.rot90(image, i % 4, dims=(1, 2)) for i, image in enumerate(first)])
    rotation = 0.0 * premix
    if method.rotation is not None:
        rotation = F.cross_entropy(method.rotation(net.features(turned)), torch.arange(8) % 4)
    images = torch.cat([batch.images, batch.weak, first, second])
    labels = torch.cat([F.one_hot(batch.labels, CLASSES).float(), target, target, target])
    w = mixing_weights(len(images), 0.75, torch.default_generator, keep_first=True)
    other = torch.randperm(len(images))
    images = w.view(-1, 1, 1, 1) * images + (1 - w).view(-1, 1, 1, 1) * images[other]
    labels = w[:, None] * labels + (1 - w)[:, None] * labels[other]

    def interleave(parts: list[list[Tensor]]) -> list[list[Tensor]]:
        for i in range(1, 4):
            parts[0][i], parts[i][i] = parts[i][i], parts[0][i]
        return parts

    outputs = []
    for number, part in enumerate(interleave([list(part.split(2)) for part in images.split(8)])):
        norm.momentum = 0.5 if number == 3 else 0.0
        outputs.append(list(net(torch.cat(part)).split(2)))
    norm.momentum = 0.5
    x, *rest = (torch.cat(part) for part in interleave(outputs))
    logits = torch.cat(rest)
    supervised = F.cross_entropy(x, labels[:8])
    unlabeled = F.mse_loss(logits.softmax(1), labels[8:]) if squared else F.cross_entropy(logits, labels[8:])
    return {"supervised": supervised, "unlabeled": unlabeled, "premix": premix, "rotation": rotation}


@pytest.mark.parametrize("progress", [0.0, 1 / 128, 1.0])
def test_it_is_the_authors_algorithm(progress: float) -> None:
    batch, method, twin = a_batch(), a_method(), a_method()
    loss, parts = loss_of(method, batch, progress)
    found = by_hand(twin, batch, target_from(raw_guess(twin, batch.weak)))
    for name, value in found.items():
        torch.testing.assert_close(parts[name], value.detach(), atol=1e-5, rtol=1e-4, msg=name)
    ramp = linear_ramp(progress, 1 / 64)
    total = found["supervised"] + ramp * (1.5 * found["unlabeled"] + 0.5 * found["premix"]) + 0.5 * found["rotation"]
    torch.testing.assert_close(loss, total, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient_of(method, loss), gradient_of(twin, total), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(method.net.norm.running_mean, twin.net.norm.running_mean)
    torch.testing.assert_close(method.net.norm.running_var, twin.net.norm.running_var)


# Each part can be switched off, and nothing else changes


def test_without_the_premix_loss() -> None:
    batch, method = a_batch(), a_method(premix_weight=0.0)
    loss, parts = loss_of(method, batch)
    assert "premix" not in parts
    twin = a_method()
    found = by_hand(twin, batch, target_from(raw_guess(twin, batch.weak)))
    total = found["supervised"] + 1.5 * found["unlabeled"] + 0.5 * found["rotation"]
    torch.testing.assert_close(loss, total, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient_of(method, loss), gradient_of(twin, total), atol=1e-5, rtol=1e-3)


def test_without_rotations_there_is_no_head_for_them() -> None:
    batch, method = a_batch(), a_method(rotation_weight=0.0)
    loss, parts = loss_of(method, batch)
    assert "rotation" not in parts
    assert method.rotation is None
    found = by_hand(method, batch, target_from(raw_guess(method, batch.weak)))
    torch.testing.assert_close(loss, found["supervised"] + 1.5 * found["unlabeled"] + 0.5 * found["premix"])
    wide = Batch(**{name: v.reshape(8, 1, 2, 8) if v.ndim == 4 else v for name, v in vars(batch).items()})
    loss_of(method, wide)
    with pytest.raises(UserError, match="2x8 pixels"):  # with rotations, what is not square is told so
        loss_of(a_method(), wide)


def test_without_alignment_the_means_are_not_looked_at() -> None:
    batch, method, twin = a_batch(), a_method(alignment=False), a_method()
    _, parts = loss_of(method, batch)
    found = by_hand(twin, batch, target_from(raw_guess(twin, batch.weak), alignment=False))
    torch.testing.assert_close(parts["unlabeled"], found["unlabeled"].detach())
    torch.testing.assert_close(method.guessed.value, P_MODEL)
    torch.testing.assert_close(method.prior.value, P_DATA)


def test_without_anchoring_all_views_are_weak_and_their_mean_guesses() -> None:
    batch, method, twin = a_batch(kind="weak"), a_method(anchoring=False), a_method()
    labeled, unlabeled = method.streams()
    assert labeled.views == {"images": "weak"}
    assert unlabeled.views == {"weak": "weak", "weak_1": "weak", "weak_2": "weak"}
    raw = raw_guess(twin, batch.weak, batch.weak_1, batch.weak_2)
    loss, parts = loss_of(method, batch)
    found = by_hand(twin, batch, target_from(raw), kind="weak")
    for name, value in found.items():
        torch.testing.assert_close(parts[name], value.detach(), atol=1e-5, rtol=1e-4, msg=name)
    total = found["supervised"] + 1.5 * found["unlabeled"] + 0.5 * found["premix"] + 0.5 * found["rotation"]
    torch.testing.assert_close(gradient_of(method, loss), gradient_of(twin, total), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(method.guessed.rows[0], raw.mean(0))


def test_the_squared_loss_is_a_mean_over_images_and_classes() -> None:
    batch, method, twin = a_batch(), a_method(unlabeled_loss="squared", unlabeled_weight=75.0), a_method()
    loss, parts = loss_of(method, batch)
    found = by_hand(twin, batch, target_from(raw_guess(twin, batch.weak)), squared=True)
    torch.testing.assert_close(parts["unlabeled"], found["unlabeled"].detach())
    total = found["supervised"] + 75 * found["unlabeled"] + 0.5 * found["premix"] + 0.5 * found["rotation"]
    torch.testing.assert_close(loss, total)


# Alignment


def test_alignment_reads_before_and_remembers_the_raw_guess_after() -> None:
    batch, method = a_batch(), a_method()
    raw = raw_guess(a_method(), batch.weak)
    loss_of(method, batch)
    torch.testing.assert_close(method.guessed.rows[0], raw.mean(0))  # neither aligned nor sharpened
    truth = F.one_hot(batch.labels, CLASSES).float().mean(0)
    torch.testing.assert_close(method.prior.value, 0.999 * P_DATA + 0.001 * truth)


def test_guesses_that_equal_the_models_mean_become_the_prior() -> None:
    method = a_method(temperature=1.0)
    logits = P_MODEL.log().expand(8, CLASSES)
    guess = method._guess([logits], F.one_hot(torch.arange(8) % CLASSES, CLASSES).float())
    torch.testing.assert_close(guess, P_DATA.expand(8, CLASSES), atol=1e-5, rtol=1e-4)


def test_equal_means_change_nothing() -> None:
    method = a_method(temperature=1.0)
    method.prior.value.copy_(P_MODEL)
    logits = torch.randn(8, CLASSES)
    guess = method._guess([logits], F.one_hot(torch.arange(8) % CLASSES, CLASSES).float())
    torch.testing.assert_close(guess, logits.softmax(1))


# Views


def test_every_copy_is_a_view_of_its_own() -> None:
    labeled, unlabeled = a_method(copies=3).streams()
    assert labeled.views == {"images": "strong"}
    assert unlabeled.views == {"weak": "weak", "strong_1": "strong", "strong_2": "strong", "strong_3": "strong"}
    assert unlabeled.labels is None
    assert (labeled.batch, unlabeled.batch) == (8, 8)


@pytest.mark.parametrize(("settings", "passes"), [({}, 7), ({"premix_weight": 0.0, "rotation_weight": 0.0}, 5)])
def test_no_pass_is_wasted(settings: dict, passes: int) -> None:
    method, seen = a_method(**settings), []
    method.net.norm.register_forward_hook(lambda module, images, output: seen.append(output.requires_grad))
    loss_of(method, a_batch())
    assert len(seen) == passes  # weak, first copy, four mixed ones, rotations
    assert seen.count(False) == 1  # the weak view's alone has no gradient


def test_the_guess_is_the_same_for_all_views_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}
    real = remixmatch.mixup

    def watched(images: Tensor, targets: Tensor, partners: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        seen.update(images=images, targets=targets, weights=weights)
        return real(images, targets, partners, weights)

    monkeypatch.setattr(remixmatch, "mixup", watched)
    batch = a_batch()
    loss_of(a_method(), batch)
    labeled, weak, first, second = seen["targets"].split(8)
    assert torch.equal(labeled.argmax(1), batch.labels)
    assert torch.equal(weak, first)
    assert torch.equal(weak, second)
    assert torch.equal(seen["images"], torch.cat([batch.images, batch.weak, batch.strong_1, batch.strong_2]))
    assert (seen["weights"] >= 0.5).all()


def test_batches_of_unequal_and_uneven_size_work() -> None:
    method = a_method(labeled_batch=5, unlabeled_ratio=2, copies=1)
    loss, _ = loss_of(method, a_batch(labeled=5, unlabeled=10, copies=1))
    assert loss.isfinite()


# Rotations


@pytest.mark.parametrize("count", [1, 3, 8, 10])
def test_images_are_turned_in_turn(count: int) -> None:
    images = torch.rand(count, 2, 5, 5).to(memory_format=torch.channels_last)
    turned, turns = one_turn_each(images)
    assert turns.tolist() == [i % 4 for i in range(count)]
    for image, upright, times in zip(turned, images, turns.tolist(), strict=True):
        assert torch.equal(image, torch.rot90(upright, times, dims=(1, 2)))
    assert turned.stride() == images.stride()


def test_a_constant_image_looks_the_same_from_all_sides() -> None:
    method = a_method()
    turned, _ = one_turn_each(torch.full((4, 1, SIDE, SIDE), 0.3))
    method.eval()
    assert method.rotation is not None
    logits = method.rotation(method.net.features(turned))
    torch.testing.assert_close(logits, logits[:1].expand(4, 4))


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(UserError, match="4x5 pixels"):
        one_turn_each(torch.rand(8, 1, 4, 5))


# Learned augmentation


def test_ctaugment_learns_from_the_averaged_networks_answer_to_the_probe() -> None:
    learned = CTAugment()
    method = a_method(learned)
    assert method.streams()[0].views == {"images": "strong", "probe": "probe"}
    batch = a_batch()
    probe, batch.probe_draw = learned.probe((batch.images * 255).to(torch.uint8), torch.Generator().manual_seed(0))
    batch.probe = probe.float() / 255
    with torch.no_grad():
        method.net.head.weight.neg_()  # the live network is elsewhere
    truth = method.predict(batch.probe).gather(1, batch.labels[:, None])[:, 0]
    seen = {}
    learned.update = lambda draw, proximity: seen.update(draw=draw, proximity=proximity)
    loss, _ = loss_of(method, batch)
    torch.testing.assert_close(seen["proximity"], truth)
    assert seen["draw"] is batch.probe_draw
    batch.probe = torch.zeros_like(batch.probe)
    torch.testing.assert_close(loss_of(method, batch)[0], loss, atol=1e-2, rtol=1e-2)  # no loss is taken on the probe


def test_without_anchoring_there_is_no_augmentation_to_learn() -> None:
    method = a_method(CTAugment(), anchoring=False)
    assert "probe" not in method.streams()[0].views


def test_answers_come_from_the_averaged_weights() -> None:
    method, images = a_method(averaging=0.9), torch.rand(5, 1, SIDE, SIDE)
    method.eval()
    before = method.predict(images)
    with torch.no_grad():
        method.net.head.weight.add_(torch.randn(CLASSES, 8))
    assert torch.equal(method.predict(images), before)
    method.after_step()
    assert not torch.equal(method.predict(images), before)


@pytest.mark.parametrize(
    "bad",
    [
        {"labeled_batch": 0}, {"copies": 0}, {"temperature": 0.0}, {"alpha": 0.0}, {"unlabeled_weight": -1.0},
        {"premix_weight": -1.0}, {"rotation_weight": -1.0}, {"ramp": 1.5}, {"unlabeled_loss": "hinge"},
    ],
)  # fmt: skip
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        ReMixMatchSettings(**bad)
