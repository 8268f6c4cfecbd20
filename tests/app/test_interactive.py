"""After one more label: the same as learning anew, but for the weights that only cross-validation moves."""

import pytest
import torch

from wazuka.app.interactive import Interactive
from wazuka.errors import UserError
from wazuka.methods.transfer.consensus import Consensus, ConsensusSettings


def clouds(count=240, classes=4, size=24, seed=0):
    """Features >= 0 of overlapping clouds, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, size, generator=generator)
    truth = torch.arange(count) % classes
    return (centers[truth] + 1.1 * torch.randn(count, size, generator=generator)).relu(), truth


def some_labels(truth, each, seed=0):
    labels = torch.full_like(truth, -1)
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))
    for label in truth.unique():
        rows = order[truth[order] == label][:each]
        labels[rows] = label
    return labels


def test_learning_with_cross_validation_is_what_the_head_does():
    features, truth = clouds()
    labels = some_labels(truth, 4)
    head = Consensus(4)
    expected = head.fit(features, labels)
    made = Interactive(features, 4)
    torch.testing.assert_close(made.learn(labels), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(made.head.predict(features), expected, atol=1e-4, rtol=0)


def test_one_more_label_is_learned():
    features, truth = clouds()
    labels = some_labels(truth, 3)
    made = Interactive(features, 4)
    before = made.learn(labels)
    wrong = (before.argmax(dim=1) != truth).nonzero().flatten()
    weights = made.head.stacking.clone()
    labels[wrong[:6]] = truth[wrong[:6]]
    after = made.relearn(labels)
    assert torch.equal(made.head.stacking, weights)  # cross-validation's, untouched
    moved = after.gather(1, truth[:, None]) > before.gather(1, truth[:, None])
    assert moved[wrong[:6]].all()
    anew = Interactive(features, 4)
    anew.learn(labels)
    anew.head.remember(stacking=weights)  # with the same weights, only where the search ended differs
    for _ in range(5):
        after, again = made.relearn(labels), anew.relearn(labels)
    torch.testing.assert_close(after, again, atol=2e-3, rtol=0)


def test_the_search_goes_on_where_it_ended():
    features, truth = clouds()
    labels = some_labels(truth, 4)
    made = Interactive(features, 4)
    learned = made.learn(labels)
    first, second = made.relearn(labels), made.relearn(labels)
    torch.testing.assert_close(first, learned, atol=2e-3, rtol=0)
    torch.testing.assert_close(first, second, atol=2e-3, rtol=0)


def test_a_labeled_photo_beyond_the_pool_joins_it():
    features, truth = clouds(400)
    labels = some_labels(truth, 3)
    made = Interactive(features, 4, pool=100)
    probs = made.learn(labels)
    assert probs.shape == (400, 4)
    outside = ~torch.isin(labels.ge(0).nonzero().flatten(), made._prepared.rows[:100])
    assert outside.any()
    assert len(made._prepared.rows) == 100 + int(outside.sum())
    assert (probs.argmax(dim=1) == truth)[labels < 0].float().mean() > 0.7
    rows = (labels < 0).nonzero().flatten()
    beyond = rows[~torch.isin(rows, made._prepared.rows)][:1]
    odd = (truth[beyond] + 1) % 4  # a label that nothing else suggests
    labels[beyond] = odd
    count = len(made._prepared.rows)
    after = made.relearn(labels)
    assert len(made._prepared.rows) == count + 1
    assert after[beyond, odd] > probs[beyond, odd] + 0.1
    assert len(made.relearn(labels)) == 400
    assert len(made._prepared.rows) == count + 1  # it joins once


def test_those_that_join_are_seen_as_those_that_were_there():
    features, _ = clouds(200)
    head = Consensus(4, ConsensusSettings(pool=200))
    whole = head.prepare(features, torch.full((200,), -1))
    part = whole._replace(
        rows=whole.rows[:150], inputs=whole.inputs[:150],
        views=whole.views._replace(powers=whole.views.powers[:150], directions=whole.views.directions[:150],
                                   extra=whole.views.extra[:150], near=whole.views.near[:150].clamp_max(149),
                                   alike=whole.views.alike[:150]),
    )  # fmt: skip
    joined = head.join(part, torch.arange(150, 200), features[150:])
    torch.testing.assert_close(joined.views.powers, whole.views.powers)
    torch.testing.assert_close(joined.views.directions, whole.views.directions)
    torch.testing.assert_close(joined.inputs, whole.inputs)
    assert joined.rows.tolist() == list(range(200))
    own = joined.views.directions[150:, None] * joined.views.directions[joined.views.near[150:]]
    torch.testing.assert_close(joined.views.alike[150:], own.sum(dim=2))
    assert (joined.views.near[150:] < 150).all()


def test_a_class_without_a_label_is_told():
    features, truth = clouds()
    made = Interactive(features, 4)
    labels = some_labels(truth, 2)
    labels[labels == 3] = -1
    with pytest.raises(UserError, match=r"classes \[3\] have none"):
        made.learn(labels)


def test_another_view_at_the_end_is_learned_too():
    features, truth = clouds(seed=1)
    extra = torch.nn.functional.one_hot(truth, 4) * 3.0 + torch.rand(len(truth), 4)
    blurred = torch.cat([features * 0 + torch.rand(features.shape), extra], dim=1)
    labels = some_labels(truth, 6)
    probs = Interactive(blurred, 4, extra=4).learn(labels)
    assert (probs.argmax(dim=1) == truth).float().mean() > 0.8
