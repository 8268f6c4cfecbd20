import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wazuka.augment import CTAugment
from wazuka.contract import Batch
from wazuka.methods.semi.fixmatch import FixMatch, FixMatchSettings
from wazuka.nets import ConvNet


def a_batch(seed: int = 0, labeled: int = 4, unlabeled: int = 8) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(labeled, 1, 8, 8, generator=g),
        labels=torch.randint(0, 3, (labeled,), generator=g),
        weak=torch.rand(unlabeled, 1, 8, 8, generator=g),
        strong=torch.rand(unlabeled, 1, 8, 8, generator=g),
    )


def a_method(learned: CTAugment | None = None, **settings) -> FixMatch:
    torch.manual_seed(0)
    return FixMatch(ConvNet(1, 3, (4, 8)), 3, FixMatchSettings(labeled_batch=4, **settings), learned).train()


def test_threshold_above_one_is_supervised_learning() -> None:
    method, batch = a_method(threshold=1.01), a_batch()
    loss, parts = method.loss(batch, 0.0)
    assert parts["unlabeled"] == 0
    assert parts["used"] == 0
    torch.testing.assert_close(loss.detach(), parts["supervised"])


def test_threshold_zero_uses_every_image() -> None:
    method, batch = a_method(threshold=0.0), a_batch()
    _, parts = method.loss(batch, 0.0)
    assert parts["used"] == 1
    method = a_method(threshold=0.0)
    logits = method.net(torch.cat([batch.images, batch.strong, batch.weak]))
    expected = F.cross_entropy(logits[4:12], logits[12:].argmax(1))
    torch.testing.assert_close(parts["unlabeled"], expected.detach())


def test_rejected_images_count_in_the_mean() -> None:
    batch = a_batch()
    method = a_method(threshold=0.0)
    with torch.no_grad():
        logits = method.net(torch.cat([batch.images, batch.strong, batch.weak]))
    confidence, guess = logits[12:].softmax(1).max(1)
    threshold = float(confidence.sort().values[-3:].min())  # three pass
    _, parts = a_method(threshold=threshold).loss(batch, 0.0)
    each = F.cross_entropy(logits[4:12], guess, reduction="none") * (confidence >= threshold)
    torch.testing.assert_close(parts["unlabeled"], each.sum() / 8)
    assert parts["used"] == 3 / 8


def test_the_weight_scales_only_the_unlabeled_term() -> None:
    batch = a_batch()
    _, one = a_method(threshold=0.0, unlabeled_weight=1.0).loss(batch, 0.0)
    total, _ = a_method(threshold=0.0, unlabeled_weight=3.0).loss(batch, 0.0)
    torch.testing.assert_close(total.detach(), one["supervised"] + 3 * one["unlabeled"])


def test_no_gradient_enters_through_the_guess() -> None:
    batch = a_batch()
    batch.weak.requires_grad_()
    method = a_method(threshold=0.0)
    method.eval()  # so that batch norm does not tie the images to each other
    method.loss(batch, 0.0)[0].backward()
    assert batch.weak.grad is None or batch.weak.grad.eq(0).all()


def test_one_pass_moves_the_statistics_once() -> None:
    for settings in ({}, {"frugal": True}, {"joint": False}):
        method = a_method(**settings)
        norm = next(m for m in method.net.modules() if isinstance(m, nn.BatchNorm2d))
        norm.momentum = 0.5
        batch = a_batch()
        views = [batch.images, batch.strong] + ([] if settings == {"joint": False} else [batch.weak])
        first = method.net.layers[0](method.net.normalize(torch.cat(views)))
        method.loss(batch, 0.0)
        torch.testing.assert_close(norm.running_mean, 0.5 * first.mean((0, 2, 3)), atol=1e-6, rtol=1e-4)


def test_alignment_is_read_before_and_updated_after() -> None:
    batch = a_batch()
    plain, aligned = a_method(threshold=0.0), a_method(threshold=0.0, alignment=True)
    # uniform means at the start leave the guesses alone
    torch.testing.assert_close(plain.loss(batch, 0.0)[0], aligned.loss(batch, 0.0)[0])
    expected = F.one_hot(batch.labels, 3).float().mean(0) * 0.001 + 0.999 / 3
    torch.testing.assert_close(aligned.prior.value, expected)
    row = aligned.guessed.rows[0]
    assert row.sum() == pytest.approx(1)
    assert not torch.allclose(row, torch.full((3,), 1 / 3))  # raw guesses, not aligned ones, are remembered
    with torch.no_grad():
        fresh = a_method()
        weak = fresh.net(torch.cat([batch.images, batch.strong, batch.weak]))[12:]
    torch.testing.assert_close(row, weak.softmax(1).mean(0))


def test_answers_come_from_the_averaged_weights() -> None:
    method = a_method(averaging=0.9)
    images = torch.rand(5, 1, 8, 8)
    method.eval()
    before = method.predict(images)
    torch.testing.assert_close(before.sum(1), torch.ones(5))
    with torch.no_grad():
        method.net.head.weight.add_(1.0)
    assert torch.equal(method.predict(images), before)
    method.after_step()
    assert not torch.equal(method.predict(images), before)


def test_the_average_never_steps() -> None:
    method = a_method()
    ((player, _),) = method.players().items()
    stepping = {id(p) for p in player.parameters() if p.requires_grad}
    assert stepping == {id(p) for p in method.net.parameters()}


def test_streams_ask_for_mu_times_the_labeled_batch() -> None:
    labeled, unlabeled = a_method(unlabeled_ratio=7).streams()
    assert (labeled.batch, unlabeled.batch) == (4, 28)
    assert unlabeled.labels is None
    assert labeled.views == {"images": "weak"}


def test_ctaugment_learns_from_the_averaged_networks_answer() -> None:
    learned = CTAugment()
    method = a_method(learned)
    assert method.streams()[0].views["probe"] == "probe"
    batch = a_batch()
    generator = torch.Generator().manual_seed(0)
    images = (batch.images * 255).to(torch.uint8)
    probe, batch.probe_draw = learned.probe(images, generator)
    batch.probe = probe.float() / 255
    truth = method.predict(batch.probe).gather(1, batch.labels[:, None])[:, 0]
    seen = {}
    learned.update = lambda draw, proximity: seen.update(draw=draw, proximity=proximity)
    method.loss(batch, 0.0)
    torch.testing.assert_close(seen["proximity"], truth)
    assert seen["draw"] is batch.probe_draw


def test_the_average_guesses_when_asked() -> None:
    batch = a_batch()
    method = a_method(threshold=0.0, guesser="average")
    with torch.no_grad():
        guess = method.average(batch.weak).argmax(1)
        method.net.head.weight.neg_()  # what the live weights would say now is something else
    logits = method.net(torch.cat([batch.images, batch.strong]))
    _, parts = method.loss(batch, 0.0)
    torch.testing.assert_close(parts["unlabeled"], F.cross_entropy(logits[4:], guess).detach())


def test_an_average_that_guesses_stays_as_it_is() -> None:
    method, batch = a_method(threshold=0.0, guesser="average", temperature=0.5), a_batch()
    before = {name: value.clone() for name, value in method.average.net.state_dict().items()}
    method.loss(batch, 0.0)[0].backward()
    for name, value in method.average.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in method.average.parameters())


def test_a_temperature_learns_the_sharpened_aligned_guess() -> None:
    batch = a_batch()
    method = a_method(threshold=0.0, temperature=0.5, alignment=True, joint=False)
    with torch.no_grad():
        method.guessed.rows.copy_(torch.tensor([0.6, 0.2, 0.2]).expand_as(method.guessed.rows))
        twin = a_method()
        weak = twin.net(batch.weak).softmax(1)
        strong = twin.net(torch.cat([batch.images, batch.strong]))[4:]
    aligned = weak / torch.tensor([0.6, 0.2, 0.2])
    sharp = (aligned / aligned.sum(1, keepdim=True)).square()
    sharp = sharp / sharp.sum(1, keepdim=True)
    _, parts = method.loss(batch, 0.0)
    torch.testing.assert_close(parts["unlabeled"], F.cross_entropy(strong, sharp), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": -0.1},
        {"unlabeled_ratio": 0},
        {"unlabeled_weight": -1.0},
        {"guesser": "teacher"},
        {"temperature": -1.0},
    ],
)
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        FixMatchSettings(**bad)
