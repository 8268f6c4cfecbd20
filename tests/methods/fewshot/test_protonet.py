from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Episodes
from wazuka.data.streams import Batches, Pool
from wazuka.errors import UserError
from wazuka.methods.fewshot.protonet import ProtoNet, ProtoNetSettings, episode_loss, prototype_logits
from wazuka.nets import Conv4
from wazuka.training import Stepper, load_checkpoint, save_checkpoint, train


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def a_method(**settings) -> ProtoNet:
    torch.manual_seed(0)
    return ProtoNet(Conv4(width=8), ProtoNetSettings(**({"way": 3, "shot": 2, "query": 4} | settings)))


def a_settled_method(**settings) -> ProtoNet:
    """In eval mode, with running statistics that fit the images: a fresh network's embeddings are all but the same."""
    method = a_method(**settings).train()
    norms = [module for module in method.net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        method.net(images(32))
    return method.eval()


def an_episode(way: int = 3, shot: int = 2, query: int = 4) -> Batch:
    return Batch(support=images(way * shot, 1), query=images(way * query, 2))


def test_it_is_a_linear_classifier() -> None:
    query, prototypes = points(7, 5), points(3, 5, seed=1)
    linear = 2 * query @ prototypes.T - prototypes.square().sum(dim=1)  # paper, Eq. 8: w = 2 c, b = -|c|^2
    logits = prototype_logits(query, prototypes, "euclidean")
    torch.testing.assert_close(logits.softmax(dim=1), linear.softmax(dim=1))
    shared = logits - linear
    torch.testing.assert_close(shared, shared[:, :1].expand_as(shared))  # what is left is the same for all classes


def test_the_loss_of_one_support_image_by_hand() -> None:
    support = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    query = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 0.0], [0.5, 0.0]])  # two of either class
    each = [  # nats: ln(1 + exp(own - other)), squared distances
        torch.tensor(own - other).exp().log1p() for own, other in ((1.0, 5.0), (10.0, 10.0), (0.0, 4.0), (2.25, 0.25))
    ]
    loss, accuracy = episode_loss(support, query, 2, "euclidean")
    torch.testing.assert_close(loss, torch.stack(each).mean())
    assert accuracy == 0.75  # the tie goes to the first class, which is right; the last query lies nearer the other


def test_prototypes_are_class_means_and_classes_lie_together() -> None:
    support, query = points(6, 5), points(12, 5, seed=1)
    means = torch.stack([support[:2].mean(0), support[2:4].mean(0), support[4:].mean(0)])
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    expected = F.cross_entropy(-torch.cdist(query, means) ** 2, labels)
    torch.testing.assert_close(episode_loss(support, query, 3, "euclidean")[0], expected)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_loss_does_not_know_the_order_of_images_or_classes(distance: str) -> None:
    support, query = points(3, 2, 5), points(3, 4, 5, seed=1)

    def loss(support: Tensor, query: Tensor) -> Tensor:
        return episode_loss(support.flatten(0, 1), query.flatten(0, 1), 3, distance)[0]

    before = loss(support, query)
    torch.testing.assert_close(loss(support[:, [1, 0]], query[:, [3, 1, 0, 2]]), before)
    torch.testing.assert_close(loss(support[[2, 0, 1]], query[[2, 0, 1]]), before)
    assert not torch.allclose(loss(support[[2, 0, 1]], query), before)  # but support and query must agree
    torch.testing.assert_close(loss(support.repeat_interleave(3, dim=1), query), before)  # copies teach nothing


def test_moving_and_turning_the_space_changes_nothing_and_its_scale_does() -> None:
    support, query = points(6, 5), points(12, 5, seed=1)
    turn, _ = torch.linalg.qr(points(5, 5, seed=2))
    before = episode_loss(support, query, 3, "euclidean")[0]
    torch.testing.assert_close(episode_loss(support @ turn + 3, query @ turn + 3, 3, "euclidean")[0], before)
    assert not torch.allclose(episode_loss(2 * support, 2 * query, 3, "euclidean")[0], before)
    cosine = episode_loss(support, query, 3, "cosine")[0]
    torch.testing.assert_close(episode_loss(2 * support, 2 * query, 3, "cosine")[0], cosine)


def test_on_the_sphere_the_cosine_has_half_the_euclidean_logits() -> None:
    support, query = (F.normalize(points(n, 5, seed=n), dim=1) for n in (3, 6))
    euclidean, cosine = (prototype_logits(query, support, kind) for kind in ("euclidean", "cosine"))
    torch.testing.assert_close(euclidean, 2 * cosine)


def test_one_point_for_all_is_pure_guessing() -> None:
    point = torch.ones(6, 5)
    assert episode_loss(point, torch.ones(12, 5), 3, "euclidean")[0].item() == pytest.approx(torch.tensor(3.0).log())


def test_support_and_query_both_learn() -> None:
    support, query = points(6, 5).requires_grad_(), points(12, 5, seed=1).requires_grad_()
    loss, accuracy = episode_loss(support, query, 3, "euclidean")
    into_support, into_query = torch.autograd.grad(loss, (support, query))
    assert (into_support.abs().sum(dim=1) > 0).all()
    assert (into_query.abs().sum(dim=1) > 0).all()
    # the loss knows differences alone, so all its forces cancel: a detached side would leave a remainder
    torch.testing.assert_close(into_support.sum(dim=0) + into_query.sum(dim=0), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(into_support[0], into_support[1])  # images of a class pull as one
    assert not accuracy.requires_grad


def test_support_and_query_are_normalized_as_one_batch() -> None:
    method, batch = a_method().train(), an_episode()
    norm = next(module for module in method.net.modules() if isinstance(module, nn.BatchNorm2d))
    norm.momentum = 0.5
    everything = method.net.layers[0](torch.cat([batch.support, batch.query])).detach()
    loss, parts = method.loss(batch, 0.0)
    torch.testing.assert_close(norm.running_mean, 0.5 * everything.mean((0, 2, 3)), atol=1e-6, rtol=1e-4)
    features = a_method().train().net(torch.cat([batch.support, batch.query]))
    torch.testing.assert_close(loss, episode_loss(features[:6], features[6:], 3, "euclidean")[0])
    torch.testing.assert_close(parts["episode"], loss.detach())


def test_the_stream_is_an_episode_of_the_settings() -> None:
    (stream,) = a_method(view="weak").streams()
    assert stream == Episodes(pool="labeled", way=3, shot=2, query=4, policy="weak")


def test_the_default_learning_rate_halves_after_every_fifth() -> None:
    optimizer = ProtoNetSettings().optimizer
    assert (optimizer.algorithm, optimizer.lr, optimizer.weight_decay) == ("adam", 1e-3, 0.0)
    assert [optimizer.schedule(p) for p in (0.0, 0.19, 0.2, 0.99)] == [1, 1, 0.5, 1 / 16]


def test_classify_is_a_softmax_over_distances_to_means_of_embeddings() -> None:
    method = a_settled_method()
    support, query, labels = images(5, 1), images(4, 2), torch.tensor([1, 0, 1, 1, 0])
    with torch.no_grad():
        embedded = method.net(support)
        means = torch.stack([embedded[[1, 4]].mean(0), embedded[[0, 2, 3]].mean(0)])
        expected = (-torch.cdist(method.net(query), means) ** 2).softmax(dim=1)
        probs = method.classify(support, labels, query)
    torch.testing.assert_close(probs, expected, atol=1e-5, rtol=1e-4)
    assert probs[:, 0].std() > 0.1  # or the images would tell nothing
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(method.classify(support[order], labels[order], query), probs)
    torch.testing.assert_close(method.classify(support, 1 - labels, query), probs.flip(1))
    assert len(method.prototypes) == 0  # nothing is kept


def test_a_query_is_answered_alone() -> None:
    method, support, query = a_settled_method(), images(3, 1), images(6, 2)
    together = method.classify(support, torch.arange(3), query)
    alone = torch.cat([method.classify(support, torch.arange(3), one[None]) for one in query])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_an_image_is_taken_for_itself() -> None:
    support = images(3, 1)
    probs = a_settled_method().fit_prototypes(support, torch.arange(3)).predict(support)
    assert probs.argmax(dim=1).tolist() == [0, 1, 2]
    assert probs.shape == (3, 3)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(3))


def test_what_was_fitted_is_what_predict_answers_with() -> None:
    method, support, labels = a_settled_method(distance="cosine"), images(5, 1), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        assert method.fit_prototypes(support, labels) is method
        torch.testing.assert_close(method.predict(images(4)), method.classify(support, labels, images(4)))
        method.classify(support[:2], labels[:2], images(4))
    assert method.prototypes.shape == (3, 8)
    assert not method.prototypes.requires_grad


def test_prototypes_are_saved_with_the_weights(tmp_path) -> None:
    method = a_settled_method().fit_prototypes(images(3, 1), torch.arange(3))
    other = a_method().eval()
    with torch.no_grad():
        other.net.layers[0].weight.zero_()
        other.load_state_dict(method.state_dict())
        assert torch.equal(other.predict(images(4)), method.predict(images(4)))
        save_checkpoint(tmp_path / "it", method, {}, {"step": 0})
        load_checkpoint(tmp_path / "it", again := a_method().eval(), {})
        assert torch.equal(again.predict(images(4)), method.predict(images(4)))
    assert other.prototypes.data_ptr() != method.prototypes.data_ptr()


def test_without_prototypes_predict_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"knows no classes yet.*fit_prototypes"):
        a_method().eval().predict(images(2))


@pytest.mark.parametrize(
    ("n", "labels", "says"),
    [
        (3, [0, 1], "3 images and 2 labels"),
        (0, [], "0 images and 0 labels"),
        (3, [0, 2, 2], "without a gap"),
        (3, [0, 1, -1], "unlabeled"),
        (2, [1, 2], "without a gap"),
    ],
)
def test_a_support_set_that_does_not_fit_is_refused(n: int, labels: list[int], says: str) -> None:
    support, labels = images(n), torch.tensor(labels, dtype=torch.int64)
    method = a_method().eval()
    with pytest.raises(UserError, match=says):
        method.fit_prototypes(support, labels)
    with pytest.raises(UserError, match=says):
        method.classify(support, labels, images(2))
    assert len(method.prototypes) == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda method: method.fit_prototypes(images(2), torch.arange(2)),
        lambda method: method.classify(images(2), torch.arange(2), images(2)),
        lambda method: method.predict(images(2)),
    ],
    ids=["fit_prototypes", "classify", "predict"],
)
def test_in_training_mode_it_gives_no_answers(ask: Callable[[ProtoNet], object]) -> None:
    method = a_method().eval().fit_prototypes(images(2), torch.arange(2)).train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with pytest.raises(UserError, match="eval"):
        ask(method)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize("bad", [{"way": 1}, {"shot": 0}, {"query": 0}, {"distance": "manhattan"}])
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        ProtoNetSettings(**bad)


def test_it_learns_to_tell_apart_images_it_never_saw() -> None:
    # A class is a pattern, and each image hides it under stripes of its own. Patterns are random, so that nothing can
    # be learned for other classes; new images of the same ones are what is asked.
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(20, 1, 1, 16, 16, generator=generator) - 0.5
    stripes = torch.rand(20, 10, 1, 16, 1, generator=generator) - 0.5
    drawn = ((patterns * 0.8 + stripes * 0.4 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    known, new = drawn[:, :6], drawn[:, 6:].float() / 255
    method = a_settled_method(way=8, shot=1, query=3)
    pool = Pool(known.flatten(0, 1), torch.arange(20).repeat_interleave(6))
    batches = Batches(method.streams(), {"labeled": pool}, {"plain": lambda x, g: x}, seed=0)

    def accuracy() -> float:
        method.eval()
        with torch.no_grad():
            probs = method.classify(new[:, 0], torch.arange(20), new[:, 1:].flatten(0, 1))
        return float((probs.argmax(dim=1).view(20, 3) == torch.arange(20)[:, None]).float().mean())

    before = accuracy()
    steppers = {player: Stepper(player, how) for player, how in method.players().items()}
    train(method, batches, steppers, total_steps=160)
    assert before < 0.4
    after = accuracy()
    assert before < 0.35
    assert after > 0.55  # chance: 0.05
