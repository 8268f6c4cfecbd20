import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wazuka.data import ImageSet, draw_from_json, draw_labels, draw_to_json, folds, holdout, make_draw
from wazuka.data.draws import proportional_counts
from wazuka.errors import UserError

SVHN = np.array([4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659])
LABELS = np.random.RandomState(1).permutation(np.repeat(np.arange(5), [30, 20, 20, 15, 15]))


def image_set(labels: np.ndarray) -> ImageSet:
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    return ImageSet(images, labels, tuple("abcde"), tuple(f"{i}.png" for i in range(len(labels))))


@pytest.mark.parametrize(
    ("total", "expected"),
    [(40, [3, 7, 6, 4, 4, 4, 3, 3, 3, 3]), (250, [17, 47, 36, 29, 25, 24, 20, 19, 17, 16])],
)
def test_svhn_counts_are_those_of_the_published_splits(total, expected):
    assert proportional_counts(SVHN, total).tolist() == expected
    drawn = draw_labels(np.repeat(np.arange(10), SVHN), total=total, seed=1, balance="proportional")
    assert np.bincount(np.repeat(np.arange(10), SVHN)[drawn]).tolist() == expected


def test_a_draw_is_the_one_of_create_split():
    """The loop of google-research/remixmatch's scripts/create_split.py, word for word but for the file handling."""
    seed, size = 3, 23
    class_data = [list(np.flatnonzero(c == LABELS)) for c in range(5)]
    counts = np.array([len(data) for data in class_data])
    np.random.seed(seed)
    for c in range(5):
        np.random.shuffle(class_data[c])
    train_stats = counts / counts.max()
    npos, label = np.zeros(5, np.int64), []
    for _ in range(size):
        c = np.argmax(train_stats - npos / max(npos.max(), 1))
        label.append(class_data[c][npos[c]])
        npos[c] += 1
    assert draw_labels(LABELS, total=size, seed=seed, balance="proportional").tolist() == sorted(label)


def test_proportional_is_equal_where_classes_are():
    assert proportional_counts(np.full(10, 5000), 40).tolist() == [4] * 10
    labels = np.repeat(np.arange(10), 50)
    for seed in range(3):
        np.testing.assert_array_equal(
            draw_labels(labels, total=40, seed=seed, balance="proportional"),
            draw_labels(labels, per_class=4, seed=seed),
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 14))
def test_equal_draws(seed, n):
    drawn = draw_labels(LABELS, per_class=n, seed=seed)
    assert np.bincount(LABELS[drawn]).tolist() == [n] * 5
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, draw_labels(LABELS, total=5 * n, seed=seed))
    assert set(drawn) < set(draw_labels(LABELS, per_class=n + 1, seed=seed)), "more labels keep those that were there"


def test_a_seed_means_the_same_images_for_ever():
    assert draw_labels(LABELS, per_class=2, seed=7).tolist() == [0, 12, 20, 22, 46, 47, 60, 79, 85, 88]
    assert draw_labels(LABELS, per_class=2, seed=8).tolist() != draw_labels(LABELS, per_class=2, seed=7).tolist()


def test_all_images_of_a_class_have_the_same_chance():
    labels = np.repeat([0, 1], [5, 7])
    times = np.zeros(12)
    for seed in range(800):
        times[draw_labels(labels, per_class=2, seed=seed)] += 1
    np.testing.assert_allclose(times[:5] / 800, 2 / 5, atol=0.06)
    np.testing.assert_allclose(times[5:] / 800, 2 / 7, atol=0.06)


def test_unlabeled_images_are_never_drawn():
    labels = np.where(np.arange(100) % 2, LABELS, -1)
    assert (labels[draw_labels(labels, per_class=3, seed=0)] >= 0).all()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"per_class": 16}, 'class "d" has 15 labeled images, too few to draw 16'),
        ({"total": 12}, "12 labels can't be shared out equally among 5 classes: take 10 or 15"),
        ({"total": 3}, "take 5, or draw proportionally"),
        ({"per_class": 0}, "at least 1"),
        ({}, "either how many labels per class, or how many in all"),
        ({"per_class": 1, "total": 5}, "either how many"),
        ({"per_class": 1, "balance": "fair"}, "balance must be"),
    ],
)
def test_mistakes_in_draws(asked, said):
    with pytest.raises(UserError, match=said):
        make_draw(image_set(LABELS), seed=0, **asked)


def test_a_class_without_labels_cant_be_drawn_from():
    with pytest.raises(UserError, match='class "e" has 0 labeled images'):
        make_draw(image_set(np.where(LABELS == 4, -1, LABELS)), per_class=1, seed=0)
    with pytest.raises(UserError, match="no labels to draw from"):
        draw_labels(np.full(5, -1), per_class=1, seed=0)


# --- saved draws


def test_a_draw_goes_through_json_and_applies_by_name():
    images = image_set(LABELS)
    draw = make_draw(images, per_class=2, seed=5)
    text = draw_to_json(draw)
    stored = json.loads(text)
    assert (stored["rule"], stored["seed"], len(stored["images"])) == ("2 per class, equal", 5, 10)
    assert stored["images"][0] == {"index": int(draw.indices[0]), "name": draw.names[0], "label": draw.labels[0]}
    back = draw_from_json(text)
    np.testing.assert_array_equal(back.indices, draw.indices)
    expected = images.keep_labels(draw.indices)
    np.testing.assert_array_equal(back.apply(images).labels, expected.labels)
    order = np.random.RandomState(0).permutation(len(images))
    np.testing.assert_array_equal(back.apply(images.subset(order)).labels, expected.labels[order])


def test_a_draw_that_does_not_fit_is_refused():
    images = image_set(LABELS)
    draw = make_draw(images, per_class=2, seed=5)
    with pytest.raises(UserError, match=f"1 images of the saved draw are not here, {draw.names[0]} among them"):
        draw.apply(images.subset(np.setdiff1d(np.arange(100), draw.indices[:1])))
    with pytest.raises(UserError, match="draw anew"):
        draw.apply(images.with_labels((LABELS + 1) % 5))
    for text in ("", "[]", "{}", '{"format": "other"}', draw_to_json(draw).replace('"seed"', '"sed"')):
        with pytest.raises(UserError, match="not a saved draw"):
            draw_from_json(text)


# --- held-out sets


@pytest.mark.parametrize("size", [20, 0.2])
def test_holdout_is_stratified_and_leaves_the_unlabeled(size):
    labels = np.concatenate([LABELS, np.full(30, -1)])
    stay, held = holdout(labels, size, seed=0)
    assert sorted([*stay, *held]) == list(range(130))
    assert np.bincount(labels[held]).tolist() == [6, 4, 4, 3, 3]
    assert set(range(100, 130)) <= set(stay)
    np.testing.assert_array_equal(held, holdout(labels, size, seed=0)[1])
    assert held.tolist() != holdout(labels, size, seed=1)[1].tolist()


def test_holdout_keeps_groups_together_and_drops_their_unlabeled():
    groups = np.arange(100) // 2
    labels = LABELS.copy()
    labels[1::2] = -1  # each group has one labeled and one unlabeled image
    stay, held = holdout(labels, 0.25, seed=0, groups=groups)
    assert not set(groups[stay]) & set(groups[held])
    assert (labels[held] >= 0).all()
    assert len(stay) + 2 * len(held) == 100
    assert 8 <= len(held) <= 17


def test_folds_hold_out_every_label_once():
    labels = np.concatenate([LABELS, np.full(10, -1)])
    for groups in (None, np.arange(110) % 37):
        made = folds(labels, 5, seed=0, groups=groups)
        assert sorted(np.concatenate([held for _, held in made])) == list(range(100))
        for stay, held in made:
            assert not set(stay) & set(held)
            if groups is None:
                assert np.bincount(labels[held]).tolist() == [6, 4, 4, 3, 3]
                assert len(stay) + len(held) == 110
            else:
                assert not set(groups[stay]) & set(groups[held])


@pytest.mark.parametrize("size", [0, 100, 2, 98, 1.0])
def test_a_holdout_that_cant_be(size):
    with pytest.raises(UserError, match="can't hold out"):
        holdout(LABELS, size, seed=0)


def test_folds_that_cant_be():
    with pytest.raises(UserError, match="at least 16 labels, one has 15"):
        folds(LABELS, 16, seed=0)
    with pytest.raises(UserError, match="can't make 5 folds of 3 groups"):
        folds(LABELS, 5, seed=0, groups=np.arange(100) % 3)
    with pytest.raises(UserError, match="at least"):
        folds(np.array([0, 1, -1]), 2, seed=0)
