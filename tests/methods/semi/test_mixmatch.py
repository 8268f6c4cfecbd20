import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.augment.mixing import mixing_weights
from wazuka.contract import Batch
from wazuka.methods.semi import mixmatch
from wazuka.methods.semi.mixmatch import MixMatch, MixMatchSettings

CLASSES = 3


def a_batch(labeled: int = 6, unlabeled: int = 6, views: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = {f"weak_{view}": torch.rand(unlabeled, 1, 4, 4, generator=generator) for view in range(1, views + 1)}
    labeled_images = torch.rand(labeled, 1, 4, 4, generator=generator)
    return Batch(images=labeled_images, labels=torch.arange(labeled) % CLASSES, **images)


def a_method(norm: bool = True, **settings) -> MixMatch:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(8, momentum=0.5)] if norm else []
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), *norms, nn.Tanh(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        net[-1].weight.mul_(4)  # decided guesses, so that sharpening one by one differs from sharpening the mean
    return MixMatch(net, CLASSES, MixMatchSettings(labeled_batch=6, **settings)).train()


def loss_of(method: MixMatch, batch: Batch, progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(7)
    return method.loss(batch, progress)


def gradient_of(method: MixMatch, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(method.net.parameters()))])


def sharp(probs: Tensor) -> Tensor:
    """T = 1/2."""
    return probs.square() / probs.square().sum(1, keepdim=True)


def by_hand(method: MixMatch, batch: Batch, ramp: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The authors' mixmatch.py, list by list, for two views: total, supervised, unlabeled."""
    net, norm = method.net, method.net[2]
    torch.manual_seed(7)
    norm.momentum = 0.0
    with torch.no_grad():
        guess = sharp((net(batch.weak_1).softmax(1) + net(batch.weak_2).softmax(1)) / 2)
    images = torch.cat([batch.images, batch.weak_1, batch.weak_2])
    labels = torch.cat([F.one_hot(batch.labels, CLASSES).float(), guess, guess])
    w = mixing_weights(len(images), 0.75, torch.default_generator, keep_first=True)
    other = torch.randperm(len(images))
    images = w.view(-1, 1, 1, 1) * images + (1 - w).view(-1, 1, 1, 1) * images[other]
    labels = w[:, None] * labels + (1 - w)[:, None] * labels[other]
    x, u, v = (list(part.split(2)) for part in images.split(6))
    x[1], u[1] = u[1], x[1]
    x[2], v[2] = v[2], x[2]
    outputs = []
    for number, part in enumerate((x, u, v)):
        norm.momentum = 0.5 if number == 0 else 0.0
        outputs.append(list(net(torch.cat(part)).split(2)))
    norm.momentum = 0.5
    x, u, v = outputs
    x[1], u[1] = u[1], x[1]
    x[2], v[2] = v[2], x[2]
    supervised = F.cross_entropy(torch.cat(x), labels[:6])
    unlabeled = F.mse_loss(torch.cat([*u, *v]).softmax(1), labels[6:])
    return supervised + ramp * 75 * unlabeled, supervised, unlabeled


def test_it_is_the_authors_algorithm() -> None:
    batch, method, twin = a_batch(), a_method(), a_method()
    loss, parts = loss_of(method, batch)
    total, supervised, unlabeled = by_hand(twin, batch)
    torch.testing.assert_close(parts["supervised"], supervised.detach())
    torch.testing.assert_close(parts["unlabeled"], unlabeled.detach())
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(gradient_of(method, loss), gradient_of(twin, total), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.net[2].running_mean, twin.net[2].running_mean)
    torch.testing.assert_close(method.net[2].running_var, twin.net[2].running_var)


@pytest.mark.parametrize(("progress", "ramp"), [(0.0, 0.0), (1 / 128, 0.5), (0.5, 1.0)])
def test_the_unlabeled_weight_rises_linearly_over_a_64th_of_the_run(progress: float, ramp: float) -> None:
    loss, _ = loss_of(a_method(), a_batch(), progress)
    torch.testing.assert_close(loss, by_hand(a_method(), a_batch(), ramp)[0])


def test_unmixed_and_without_unlabeled_loss_it_is_supervised_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixmatch, "mixing_weights", lambda count, *_, **__: torch.ones(count))
    method, batch = a_method(norm=False, unlabeled_weight=0.0), a_batch()
    loss, _ = loss_of(method, batch)
    expected = F.cross_entropy(method.net(batch.images), batch.labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_of(method, loss), gradient_of(method, expected))


def test_the_order_of_the_views_does_not_matter_to_the_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixmatch, "mixing_weights", lambda count, *_, **__: torch.ones(count))
    batch = a_batch()
    swapped = Batch(**{**vars(batch), "weak_1": batch.weak_2, "weak_2": batch.weak_1})
    one, other = a_method(norm=False), a_method(norm=False)
    torch.testing.assert_close(loss_of(one, batch)[1]["unlabeled"], loss_of(other, swapped)[1]["unlabeled"])


def test_labeled_and_unlabeled_images_mix_with_each_other_and_keep_most_of_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Tensor] = {}

    def watched(images: Tensor, targets: Tensor, partners: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        seen.update(partners=partners, weights=weights, targets=targets)
        return mixmatch_mixup(images, targets, partners, weights)

    mixmatch_mixup = mixmatch.mixup
    monkeypatch.setattr(mixmatch, "mixup", watched)
    method, batch = a_method(), a_batch()
    crossed = 0
    for seed in range(5):
        torch.manual_seed(seed)
        method.loss(batch, 1.0)
        assert torch.equal(seen["partners"].sort().values, torch.arange(18))
        assert seen["weights"].shape == (18,)
        assert len(seen["weights"].unique()) > 10  # a weight for each image
        assert (seen["weights"] >= 0.5).all()
        torch.testing.assert_close(seen["targets"].sum(1), torch.ones(18))
        assert torch.equal(seen["targets"][6:12], seen["targets"][12:])  # one guess for both views
        crossed += int((seen["partners"][:6] >= 6).sum())
    assert crossed > 5


def test_no_gradient_enters_through_the_guess() -> None:
    method, batch = a_method(), a_batch()
    guessing = []
    method.net.register_forward_hook(lambda net, images, logits: guessing.append(logits))
    loss_of(method, batch)
    assert [logits.requires_grad for logits in guessing] == [False, False, True, True, True]


@pytest.mark.parametrize("views", [1, 3])
def test_there_may_be_any_number_of_views(views: int) -> None:
    method = a_method(views=views)
    assert method.streams()[1].views == {f"weak_{view}": "weak" for view in range(1, views + 1)}
    passes = []
    method.net.register_forward_hook(lambda net, images, logits: passes.append(len(logits)))
    loss_of(method, a_batch(views=views))
    assert passes == [6] * (views + views + 1)


def test_more_unlabeled_images_make_larger_passes_and_not_more() -> None:
    method = a_method(unlabeled_ratio=2)
    assert [stream.batch for stream in method.streams()] == [6, 12]
    passes = []
    method.net.register_forward_hook(lambda net, images, logits: passes.append(len(logits)))
    loss_of(method, a_batch(unlabeled=12))
    assert passes == [12, 12, 10, 10, 10]


def test_the_unlabeled_stream_never_sees_a_label() -> None:
    labeled, unlabeled = a_method().streams()
    assert (labeled.pool, labeled.labels, labeled.views) == ("labeled", "labels", {"images": "weak"})
    assert (unlabeled.pool, unlabeled.labels) == ("unlabeled", None)


def test_negatives_are_learned_on_the_views_as_they_are() -> None:
    batch, weight, share = a_batch(), 3.0, 0.5
    plain, plain_parts = loss_of(a_method(), batch)
    method = a_method(negative_weight=weight, negative_share=share)
    loss, parts = loss_of(method, batch)
    torch.testing.assert_close(parts["unlabeled"], plain_parts["unlabeled"])

    twin = a_method()
    first, second = (twin.net(view).softmax(1) for view in (batch.weak_1, batch.weak_2))
    guess = ((first + second) / 2).detach()
    negatives = guess < share / CLASSES
    assert negatives.any()
    assert not torch.equal(negatives, sharp(guess) < share / CLASSES), "nothing to tell apart"
    left = torch.cat([(probs * ~negatives).sum(1) for probs in (first, second)])
    negative = -left.log().mean()
    torch.testing.assert_close(parts["negative"], negative.detach())
    torch.testing.assert_close(loss, plain + weight * negative)
    base = a_method()
    expected = gradient_of(base, loss_of(base, batch)[0]) + weight * gradient_of(twin, negative)
    torch.testing.assert_close(gradient_of(method, loss), expected, atol=1e-5, rtol=1e-4)


def test_negatives_are_ramped_and_cost_no_pass() -> None:
    method = a_method(negative_weight=3.0, negative_share=0.8)
    passes = []
    method.net.register_forward_hook(lambda net, images, logits: passes.append(len(logits)))
    loss, parts = loss_of(method, a_batch(), progress=0.0)
    assert len(passes) == 5
    assert parts["negative"] > 0
    torch.testing.assert_close(loss.detach(), parts["supervised"])
    norm = method.net[2]
    plain = a_method()
    loss_of(plain, a_batch())
    torch.testing.assert_close(norm.running_mean, plain.net[2].running_mean)


def test_answers_come_from_the_averaged_weights() -> None:
    method, images = a_method(averaging=0.9), torch.rand(5, 1, 4, 4)
    method.eval()
    before = method.predict(images)
    with torch.no_grad():
        method.net[-1].weight.add_(torch.randn(CLASSES, 8))
    assert torch.equal(method.predict(images), before)
    method.after_step()
    assert not torch.equal(method.predict(images), before)


@pytest.mark.parametrize(
    "bad",
    [
        {"labeled_batch": 0}, {"views": 0}, {"temperature": 0.0}, {"alpha": 0.0}, {"unlabeled_weight": -1.0},
        {"negative_weight": -1.0}, {"ramp": 1.5}, {"negative_share": 1.0}, {"negative_share": 0.0},
    ],
)  # fmt: skip
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        MixMatchSettings(**bad)
