import numpy as np
import pytest

from wazuka.data import Dataset, ImageSet, Skipped, require_labels
from wazuka.data.imageset import luma
from wazuka.errors import UserError

from .pictures import picture


def make(n: int = 6, channels: int = 1, labels=None, classes=("a", "b")) -> ImageSet:
    images = np.random.default_rng(0).integers(0, 256, (n, channels, 4, 5), dtype=np.uint8)
    labels = np.arange(n) % 3 - 1 if labels is None else np.asarray(labels)
    names = tuple(f"{i}.png" for i in range(n))
    extras = {"group": np.array([f"g{i}" for i in range(n)])}
    return ImageSet(images, labels, classes, names, (Skipped("x", "empty"),), fingerprint="f", extras=extras)


def test_says_what_it_holds():
    images = make()
    assert repr(images) == "ImageSet(6 images of 1x4x5, 2 classes, 4 labeled, 1 skipped)"
    assert (len(images), images.n_classes, images.n_labeled, images.channels, images.size) == (6, 2, 4, 1, (4, 5))
    assert images.labeled.tolist() == [1, 2, 4, 5]
    assert images.unlabeled.tolist() == [0, 3]
    assert images.class_counts().tolist() == [2, 2]


def test_subset_takes_everything_along():
    images = make()
    for indices in ([4, 0, 5], np.array([4, 0, 5])):
        part = images.subset(indices)
        np.testing.assert_array_equal(part.images, images.images[[4, 0, 5]])
        assert part.labels.tolist() == images.labels[[4, 0, 5]].tolist()
        assert part.names == ("4.png", "0.png", "5.png")
        assert part.extras["group"].tolist() == ["g4", "g0", "g5"]
        assert part.fingerprint != images.fingerprint
    assert images.subset(images.labels == 0).names == ("1.png", "4.png")
    assert len(images.subset([])) == 0


def test_subset_of_neighbors_is_a_view_and_of_all_the_same_data():
    images = make()
    assert np.shares_memory(images.subset([2, 3, 4]).images, images.images)
    assert not np.shares_memory(images.subset([2, 4]).images, images.images)
    assert images.subset(range(6)).fingerprint == images.fingerprint
    with pytest.raises(IndexError):
        images.subset([6])
    with pytest.raises(IndexError):
        images.subset([-1])


def test_keep_labels_hides_the_others():
    assert make().keep_labels([1, 5]).labels.tolist() == [-1, 0, -1, -1, -1, 1]


def test_labels_can_be_changed_by_making_a_new_set_only():
    images = make()
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 1
    other = images.with_labels(np.full(6, 2), classes=("a", "b", "c"))
    assert other.n_classes == 3
    assert images.labels.tolist() == [-1, 0, 1, -1, 0, 1]


def test_channels_are_pillows():
    color = picture(0, (9, 8), 3)
    array = np.asarray(color).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(luma(array)[0, 0], np.asarray(color.convert("L")))
    gray = make(channels=3).with_channels(1)
    assert gray.images.shape == (6, 1, 4, 5)
    back = gray.with_channels(3)
    np.testing.assert_array_equal(back.images, np.repeat(gray.images, 3, axis=1))
    assert len({gray.fingerprint, back.fingerprint, "f"}) == 3


def test_wrong_pieces_are_refused():
    good = make()
    for change in (
        {"images": good.images.astype(np.float32)},
        {"images": good.images[:, :, 0]},
        {"images": np.zeros((6, 2, 4, 4), np.uint8)},
        {"labels": np.zeros(5, np.int64)},
        {"labels": np.full(6, 2)},
        {"labels": np.full(6, -2)},
        {"names": ("a",)},
        {"extras": {"group": np.zeros(2)}},
    ):
        pieces = {"images": good.images, "labels": good.labels, "classes": good.classes, "names": good.names} | change
        with pytest.raises(ValueError, match=r"must|but|entries"):
            ImageSet(**pieces)


def test_dataset_holds_the_two_sides_together():
    train = make()
    data = Dataset("x", "y", train, make(3))
    assert data.classes == ("a", "b")
    assert len(data.skipped) == 2
    assert data.fingerprint != Dataset("x", "y", train).fingerprint
    assert data.with_channels(3).test.channels == 3
    with pytest.raises(ValueError, match="same classes"):
        Dataset("x", "y", train, make(classes=("a", "c")))
    with pytest.raises(ValueError, match="differ"):
        Dataset("x", "y", train, make(channels=3))


def test_learning_needs_two_classes():
    require_labels(Dataset("x", "y", make()))
    with pytest.raises(UserError, match="no labels: put the images"):
        require_labels(Dataset("x", "y", make(labels=[-1] * 6)))
    with pytest.raises(UserError, match="labels of 1 class, but learning needs at least 2"):
        require_labels(Dataset("x", "y", make(labels=[0] * 6)))
