"""Features are extracted once; new photos cost only themselves; a kill costs no more than a block."""

import numpy as np
import pytest

from wazuka.data import ImageSet
from wazuka.data import features as module
from wazuka.data.features import FeatureStore
from wazuka.errors import UserError

SIZE = 5


def images(count, seed=0, fingerprint=""):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    return ImageSet(pixels, np.full(count, -1), ("a",), [f"{seed}-{i}" for i in range(count)], fingerprint=fingerprint)


class Counting:
    """An extractor that says how many images it was given."""

    def __init__(self, fail_at=None):
        self.seen, self.fail_at = 0, fail_at

    def __call__(self, block):
        if self.fail_at is not None and self.seen + len(block) > self.fail_at:
            raise KeyboardInterrupt
        self.seen += len(block)
        return block.reshape(len(block), -1)[:, :SIZE].astype(np.float32)


def expected(given):
    return given.images.reshape(len(given), -1)[:, :SIZE].astype(np.float16)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "net", SIZE)


@pytest.mark.parametrize("fingerprint", ["", "abc"])
def test_the_second_time_costs_nothing(store, fingerprint):
    given, extract = images(30, fingerprint=fingerprint), Counting()
    np.testing.assert_array_equal(store.features(given, extract), expected(given))
    assert extract.seen == 30
    np.testing.assert_array_equal(FeatureStore(store.folder, SIZE).features(given, extract), expected(given))
    assert extract.seen == 30


def test_new_photos_cost_only_themselves(store):
    old, new, extract = images(20), images(7, seed=1), Counting()
    store.features(old, extract)
    both = ImageSet(np.concatenate([new.images, old.images]), np.full(27, -1), ("a",), [str(i) for i in range(27)])
    np.testing.assert_array_equal(store.features(both, extract), expected(both))
    assert extract.seen == 27


def test_a_photo_that_is_there_twice_is_extracted_once(store):
    one, extract = images(1), Counting()
    twice = one.subset([0, 0, 0])
    np.testing.assert_array_equal(store.features(twice, extract), expected(twice))
    assert extract.seen == 1


def test_the_same_bytes_in_another_shape_are_another_photo(store):
    wide = np.zeros((1, 3, 2, 8), np.uint8)
    tall = wide.reshape(1, 3, 8, 2)
    extract = Counting()
    for pixels in (wide, tall):
        store.features(ImageSet(pixels, np.array([-1]), ("a",), ["x"]), extract)
    assert extract.seen == 2


def test_a_kill_costs_a_block(store, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 4)
    given = images(10, fingerprint="f")
    with pytest.raises(KeyboardInterrupt):
        store.features(given, Counting(fail_at=8))
    extract = Counting()
    np.testing.assert_array_equal(store.features(given, extract), expected(given))
    assert extract.seen == 2


@pytest.mark.parametrize(("ending", "bytes_"), [("features", 3), ("digests", 5)])
def test_a_torn_tail_is_left_out(store, ending, bytes_):
    given = images(6)
    store.features(given, Counting())
    path = next(store.folder.glob(f"*.{ending}"))
    path.write_bytes(path.read_bytes()[:-bytes_])
    extract = Counting()
    np.testing.assert_array_equal(FeatureStore(store.folder, SIZE).features(given, extract), expected(given))
    assert extract.seen == 1


def test_a_set_whose_rows_were_deleted_is_made_again(store):
    given = images(6, fingerprint="f")
    store.features(given, Counting())
    for path in store.folder.glob("*.features"):
        path.unlink()
    for path in store.folder.glob("*.digests"):
        path.unlink()
    extract = Counting()
    np.testing.assert_array_equal(store.features(given, extract), expected(given))
    assert extract.seen == 6


def test_large_sets_come_as_a_map(store, monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 10)
    given = images(9, fingerprint="f")
    made = store.features(given, Counting())
    assert isinstance(made, np.memmap) or isinstance(made.base, np.memmap)
    np.testing.assert_array_equal(made, expected(given))
    np.testing.assert_array_equal(store.features(given, Counting(fail_at=0)), expected(given))


def test_progress_counts_what_is_new(store, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 4)
    told = []
    store.features(images(6), Counting(), lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't keep features in .*WAZUKA_CACHE"):
        FeatureStore(tmp_path / "file" / "net", SIZE).features(images(1), Counting())
