import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from wazuka.data import find_duplicates, open_images
from wazuka.data.cache import Source, open_pack
from wazuka.data.decode import Shape
from wazuka.data.named import _dataset, hub_source, known_names

from .pictures import encoded, picture
from .test_folder import sentence
from .test_parquet import write

PUBLIC = Path(os.environ.get("WAZUKA_DATA", ""))


def public(name: str):
    """Skip unless the public set lies in $WAZUKA_DATA."""
    there = "WAZUKA_DATA" in os.environ and (PUBLIC / name).is_dir()
    return pytest.mark.skipif(not there, reason=f"needs {name} in the folder that WAZUKA_DATA names")


def test_digits_are_split_once_and_for_ever():
    data = open_images("digits")
    assert (len(data.train), len(data.test)) == (1297, 500)
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images.max() == 255
    assert data.classes == tuple("0123456789")
    assert not set(data.train.names) & set(data.test.names)
    assert hashlib.sha256(data.test.images.tobytes()).hexdigest().startswith("053abea8")
    assert find_duplicates(data) == []


def test_digits_in_another_shape():
    data = open_images("digits", size=16, channels=3)
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (3, 16, 16)


def test_a_local_folder_of_public_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("WAZUKA_DATA", str(tmp_path))
    for i, domain in enumerate(("photo", "sketch")):
        write(tmp_path / "pets" / f"{domain}-00000-of-00001.parquet", [i, i + 5], [0, 1], names=["cat", "dog"])
    assert "pets" in known_names()
    both = open_images("pets")
    assert (both.name, len(both.train), both.test) == ("pets", 4, None)
    one = open_images("pets/sketch")
    assert (one.name, len(one.train)) == ("pets/sketch", 2)
    np.testing.assert_array_equal(one.train.images[0, 0], np.asarray(picture(1)))
    assert one.train.names[0].startswith("sketch")
    with sentence("pets/clipart has no split clipart; it has photo, sketch"):
        open_images("pets/clipart")
    with sentence("did you mean pets"):
        open_images("petz")
    with sentence("pets has its own labels"):
        open_images("pets", {"a": "b"})


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    picture(0, (20, 20)).save(tmp_path / "digits" / "x.png")
    assert len(open_images("digits").train) == 1


def test_a_set_that_is_nowhere_is_told_with_both_remedies(monkeypatch):
    monkeypatch.delenv("WAZUKA_DATA", raising=False)
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "datasets" else real(name, *rest)
    )
    with sentence(r"svhn is not on this machine: set WAZUKA_DATA to a folder .* pip install 'wazuka\[hub\]'"):
        open_images("svhn")


def test_the_datasets_library_gives_the_same_as_parquet(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
    names = ["cat", "dog"]
    features = datasets.Features(
        {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=names), "lot": datasets.Value("string")}
    )
    splits = {
        split: datasets.Dataset.from_dict(
            {
                "img": [{"bytes": encoded(picture(seed)), "path": f"{seed}.png"} for seed in seeds],
                "fine_label": [seed % 2 for seed in seeds],
                "lot": [f"lot {seed}" for seed in seeds],
            },
            features=features,
        )
        for split, seeds in (("train", range(5)), ("test", range(5, 8)))
    }
    data = _dataset(open_pack(hub_source(splits, "hub x", "hub", "fine_label"), Shape()), "x", "hub x")
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert data.test.labels.tolist() == [1, 0, 1]
    assert data.train.extras["lot"].tolist() == [f"lot {seed}" for seed in range(5)]
    np.testing.assert_array_equal(data.test.images[0, 0], np.asarray(picture(5)))


def test_a_downloaded_set_is_opened_from_the_cache_without_the_library(monkeypatch):
    """Once decoded, neither the library nor a network is asked."""
    from wazuka.data.cache import Table
    from wazuka.data.pack import Item

    table = Table({"label": np.array([0, 1])}, {"classes": ["a", "b"], "splits": {"train": 2}})
    items = [Item(f"{i}", encoded(picture(i))) for i in range(2)]
    place = "hub ufldl-stanford/svhn cropped_digits split=None labels=label"
    open_pack(Source(place, "hub", 2, lambda: items, table=lambda rows: table), Shape())
    monkeypatch.delenv("WAZUKA_DATA", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert open_images("svhn").train.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes"),
    [
        pytest.param("usps", 7291, 2007, (1, 16, 16), 10, marks=public("usps")),
        pytest.param("mnist_m", 3000, 1500, (3, 32, 32), 10, marks=public("mnist_m")),
        pytest.param("omniglot_oneshot", 800, None, (1, 64, 64), 20, marks=public("omniglot_oneshot")),
        pytest.param("pacs/sketch", 1250, None, (1, 64, 64), 7, marks=public("pacs")),
        pytest.param("magnetic_tile", 949, 395, (1, 64, 64), 6, marks=public("magnetic_tile")),
    ],
)
def test_public_sets(name, train, test, shape, classes):
    data = open_images(name)
    assert len(data.train) == train
    assert (len(data.test) if data.test is not None else None) == test
    assert data.train.images.shape[1:] == shape
    assert len(data.classes) == classes
    assert data.train.n_labeled == train
    assert data.skipped == ()


@public("omniglot_oneshot")
def test_omniglot_runs_have_their_columns():
    images = open_images("omniglot_oneshot", size=28).train
    assert set(images.extras["role"]) == {"support", "query"}
    assert sorted(set(images.extras["run"].tolist())) == list(range(1, 21))
    first = images.subset((images.extras["run"] == 1) & (images.extras["role"] == "support"))
    assert sorted(first.labels.tolist()) == list(range(20))


@public("magnetic_tile")
def test_magnetic_tile_groups_do_not_cross_the_line():
    data = open_images("magnetic_tile")
    assert not set(data.train.extras["group"]) & set(data.test.extras["group"])
