import numpy as np
import pytest

from wazuka.data import open_images

from .test_folder import sentence

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (6, 10, 12), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)


def pixels(array, **options):
    return open_images(array, **options).train.images


def test_layouts():
    np.testing.assert_array_equal(pixels(GRAY), GRAY[:, None])
    np.testing.assert_array_equal(pixels(GRAY[..., None]), GRAY[:, None])
    np.testing.assert_array_equal(pixels(COLOR), COLOR.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(pixels(COLOR.transpose(0, 3, 1, 2)), COLOR.transpose(0, 3, 1, 2))


def test_kinds_of_numbers():
    np.testing.assert_array_equal(pixels(GRAY / 255), GRAY[:, None])
    np.testing.assert_array_equal(pixels((GRAY / 255).astype(np.float32)), GRAY[:, None])
    np.testing.assert_array_equal(pixels(GRAY.astype(np.int64)), GRAY[:, None])
    np.testing.assert_array_equal(pixels(GRAY.astype(np.uint16) * 257), GRAY[:, None])
    np.testing.assert_array_equal(pixels(GRAY > 9), (GRAY > 9)[:, None] * np.uint8(255))


def test_alpha_is_laid_over_white():
    image = np.zeros((1, 8, 8, 4), np.uint8)
    image[0, 0, 0] = (200, 100, 0, 255)
    image[0, 0, 1] = (200, 100, 0, 51)
    assert pixels(image)[0, :, 0, :3].T.tolist() == [[200, 100, 0], [244, 224, 204], [255, 255, 255]]


def test_size_and_channels():
    assert pixels(COLOR, size=5, channels=1).shape == (6, 1, 5, 5)
    assert pixels(GRAY, channels=3).shape == (6, 3, 10, 12)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([0, 1, 2, 0, 1, -1], ("0", "1", "2"), [0, 1, 2, 0, 1, -1]),
        ([3, 30, 3, 30, -1, -1], ("3", "30"), [0, 1, 0, 1, -1, -1]),
        (["b", "a", "", None, "b", "a"], ("a", "b"), [1, 0, -1, -1, 1, 0]),
        ([1.0, 2.0, np.nan, 1.0, 2.0, 1.0], ("1", "2"), [0, 1, -1, 0, 1, 0]),
        ([[0], [1], [0], [1], [0], [1]], ("0", "1"), [0, 1, 0, 1, 0, 1]),
        (None, (), [-1] * 6),
    ],
)
def test_labels(labels, classes, numbers):
    train = open_images(GRAY, labels).train
    assert train.classes == classes
    assert train.labels.tolist() == numbers


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(pixels(torch.from_numpy(GRAY)), GRAY[:, None])


def test_the_fingerprint_follows_the_pixels():
    other = GRAY.copy()
    other[0, 0, 0] ^= 1
    assert open_images(GRAY).fingerprint == open_images(GRAY.copy()).fingerprint
    assert open_images(GRAY).fingerprint != open_images(other).fingerprint


def test_files(tmp_path):
    np.save(tmp_path / "x.npy", GRAY)
    assert open_images(tmp_path / "x.npy", [0, 1] * 3).train.labels.tolist() == [0, 1] * 3
    np.savez(tmp_path / "xy.npz", X=GRAY, y=[0, 1] * 3)
    assert open_images(tmp_path / "xy.npz").train.labels.tolist() == [0, 1] * 3
    np.savez(tmp_path / "keras.npz", x_train=GRAY, y_train=[0, 1, 2, 0, 1, 2], x_test=GRAY[:2], y_test=[2, 1])
    data = open_images(tmp_path / "keras.npz")
    assert (data.name, len(data.train), data.test.labels.tolist()) == ("keras", 6, [2, 1])
    np.testing.assert_array_equal(data.test.images[:, 0], GRAY[:2])


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([object()]), allow_pickle=True)
    with sentence("not a readable NumPy file of plain numbers"):
        open_images(tmp_path / "o.npy")


def test_mistakes(tmp_path):
    for array, said in (
        (GRAY * 1.0, r"float images must lie in \[0, 1\], these reach from 0 to 255"),
        (np.full((2, 4, 4), np.nan), r"must lie in \[0, 1\]"),
        (GRAY.astype(int) - 1, r"must lie in 0\.\.\.255"),
        (GRAY[0], "must have the shape"),
        (np.zeros((2, 5, 5, 5), np.uint8), "neither 1, 3 nor 4 channels"),
        (np.zeros((2, 3, 5, 3), np.uint8), "first or last"),
        (np.zeros((0, 5, 5), np.uint8), "no pixel"),
        (np.array([[["a"]]]), "must be numbers"),
    ):
        with sentence(said):
            open_images(array)
    with sentence("6 images but labels of shape"):
        open_images(GRAY, [0, 1])
    with sentence("whole numbers or names"):
        open_images(GRAY, [0.5] * 6)
    np.savez(tmp_path / "n.npz", weights=GRAY)
    with sentence("holds weights, but no array called images"):
        open_images(tmp_path / "n.npz")
