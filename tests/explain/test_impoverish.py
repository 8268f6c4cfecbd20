import numpy as np
import pytest

from wazuka.explain import impoverish
from wazuka.explain.impoverish import KINDS, color_features

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (5, 3, 32, 24), dtype=np.uint8)


@pytest.mark.parametrize(("kind", "top", "left"), [("border", 4, 3), ("surroundings", 8, 6)])
def test_what_is_hidden_leaves_no_trace(kind, top, left):
    hidden = np.zeros((32, 24), dtype=bool)
    hidden[top:-top, left:-left] = True
    found = impoverish(IMAGES, kind, 0)
    assert (found[:, :, ~hidden] == IMAGES[:, :, ~hidden]).all()
    kept = IMAGES[:, :, ~hidden].mean(axis=2).round()
    assert (found[:, :, hidden] == kept[:, :, None]).all()
    other = IMAGES.copy()
    other[:, :, hidden] = 7
    assert (impoverish(other, kind, 0) == found).all()


def test_the_given_photos_stay_as_they_are_and_the_form_is_kept():
    given = IMAGES.copy()
    given.flags.writeable = False
    for kind in KINDS:
        found = impoverish(given, kind, 0)
        assert found.dtype == np.uint8
        assert found.shape == IMAGES.shape
        assert (found != IMAGES).any(axis=(1, 2, 3)).all()
        assert impoverish(IMAGES[:0], kind, 0).shape == (0, 3, 32, 24)
        assert impoverish(IMAGES[:, :1, :3, :2], kind, 0).shape == (5, 1, 3, 2)
    assert (given == IMAGES).all()


def tiles(image):
    """The 16 patches of (3, 32, 24), each as bytes."""
    return [image[:, y : y + 8, x : x + 6].tobytes() for y in range(0, 32, 8) for x in range(0, 24, 6)]


def test_patches_change_places_and_nothing_else():
    found = impoverish(IMAGES, "patches", 3)
    for before, after in zip(IMAGES, found, strict=True):
        assert sorted(tiles(before)) == sorted(tiles(after))
    assert (impoverish(IMAGES, "patches", 3) == found).all()
    assert (impoverish(IMAGES, "patches", 4) != found).any()
    orders = [tuple(tiles(a).index(tile) for tile in tiles(b)) for a, b in zip(IMAGES, found, strict=True)]
    assert len(set(orders)) == 5  # another order for each photo


def test_pixels_that_the_grid_cant_divide_stay():
    odd = IMAGES[:, :, :30, :23]  # patches of 7 x 5 leave 2 rows and 3 columns
    found = impoverish(odd, "patches", 0)
    assert (found[:, :, 28:] == odd[:, :, 28:]).all()
    assert (found[:, :, :, 20:] == odd[:, :, :, 20:]).all()
    assert (np.sort(found.reshape(5, -1)) == np.sort(odd.reshape(5, -1))).all()


def test_colors_know_no_place():
    mixed = GENERATOR.permuted(IMAGES.reshape(5, 3, -1).transpose(0, 2, 1), axis=1)  # each channel for itself
    moved = IMAGES.reshape(5, 3, -1)[:, :, GENERATOR.permutation(32 * 24)].reshape(IMAGES.shape)
    found = color_features(IMAGES)
    assert found.shape == (5, 64 + 6)
    np.testing.assert_allclose(color_features(moved), found)
    np.testing.assert_allclose((found[:, :64] ** 2).sum(axis=1), 1)
    assert not np.allclose(color_features(mixed.transpose(0, 2, 1).reshape(IMAGES.shape)), found)  # the joint one does
    assert np.isfinite(color_features(np.full((3, 1, 4, 4), 9, dtype=np.uint8))).all()


def test_colors_are_counted_in_their_bin():
    red = np.zeros((1, 3, 2, 2), dtype=np.uint8)
    red[0, 0, 0] = 255  # half the pixels
    assert color_features(red)[0, [0, 48]] == pytest.approx([0.5**0.5, 0.5**0.5])


def test_wrong_input_is_told():
    with pytest.raises(ValueError, match="border, surroundings, patches"):
        impoverish(IMAGES, "fog", 0)
    with pytest.raises(ValueError, match="uint8"):
        impoverish(IMAGES / 255, "border", 0)
