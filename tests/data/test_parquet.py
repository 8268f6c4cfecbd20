import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wazuka.data import open_images

from .pictures import encoded, picture
from .test_folder import sentence


def write(path, seeds, labels=None, *, names=None, label="label", paths=True, metadata=True, more=None):
    """Pictures in the form Hugging Face writes; `names` are the class names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "bytes": encoded(picture(seed)) if seed is not None else None,
            "path": f"{path.stem}-{i}.png" if paths else None,
        }
        for i, seed in enumerate(seeds)
    ]
    columns = {"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    features = {"image": {"_type": "Image"}}
    if labels is not None:
        columns[label] = pa.array(labels)
        features[label] = {"_type": "ClassLabel", "names": names} if names else {"_type": "Value", "dtype": "int64"}
    for name, (values, feature) in (more or {}).items():
        columns[name] = pa.array(values)
        features[name] = feature
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


def test_one_file(tmp_path):
    path = write(tmp_path / "pets.parquet", range(5), [0, 1, 1, -1, None], names=["cat", "dog"])
    data = open_images(path)
    assert (data.name, data.test, data.classes) == ("pets", None, ("cat", "dog"))
    assert data.train.labels.tolist() == [0, 1, 1, -1, -1]
    assert data.train.names[0] == "pets-0.png"
    for seed, pixels in enumerate(data.train.images):
        np.testing.assert_array_equal(pixels[0], np.asarray(picture(seed)))


def test_shards_and_splits_by_file_name(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1], [0, 1], names=["a", "b"])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", [2, 3], [1, 0], names=["a", "b"])
    write(tmp_path / "data" / "test-00000-of-00001.parquet", [4], [1], names=["a", "b"])
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", [5], [1], names=["a", "b"])
    data = open_images(tmp_path)
    assert data.train.labels.tolist() == [0, 1, 1, 0]
    assert data.test.labels.tolist() == [1]
    np.testing.assert_array_equal(data.test.images[0, 0], np.asarray(picture(4)))
    assert data.notes == ("the split val was left out: it is neither train nor test",)


def test_splits_by_folder_name(tmp_path):
    write(tmp_path / "default" / "train" / "0000.parquet", [0, 1], [0, 1])
    write(tmp_path / "default" / "test" / "0000.parquet", [2], [1])
    data = open_images(tmp_path)
    assert (len(data.train), len(data.test)) == (2, 1)


def test_validation_is_the_test_set_where_there_is_no_other(tmp_path):
    write(tmp_path / "train.parquet", [0, 1], [0, 1])
    write(tmp_path / "valid.parquet", [2], [1])
    assert len(open_images(tmp_path).test) == 1


def test_a_second_start_decodes_nothing_but_sees_a_change(tmp_path):
    path = write(tmp_path / "x.parquet", range(5), [0, 1, 1, 0, 0])
    first = open_images(path)
    again = open_images(path, progress=lambda done, total: pytest.fail("decoded again"))
    np.testing.assert_array_equal(first.train.images, again.train.images)
    write(path, range(1, 6), [0, 1, 1, 0, 0])
    assert open_images(path).fingerprint != first.fingerprint
    write(path, range(1, 6), [1, 0, 1, 0, 0])
    assert open_images(path).train.labels.tolist() == [1, 0, 1, 0, 0]


def test_without_metadata_labels_may_be_numbers_or_names(tmp_path):
    numbers = write(tmp_path / "n.parquet", range(4), [10, 9, 10, -1], label="target", metadata=False)
    assert open_images(numbers).classes == ("9", "10")
    assert open_images(numbers).train.labels.tolist() == [1, 0, 1, -1]
    words = write(tmp_path / "w.parquet", range(4), ["x", "y", None, ""], label="Class", metadata=False)
    assert open_images(words).train.labels.tolist() == [0, 1, -1, -1]


def test_a_bare_binary_column_is_enough(tmp_path):
    pq.write_table(pa.table({"png": [encoded(picture(i)) for i in range(3)]}), tmp_path / "b.parquet")
    data = open_images(tmp_path / "b.parquet")
    assert data.train.names == ("b/000000", "b/000001", "b/000002")
    assert data.classes == ()


def test_paths_to_files_beside_the_table(tmp_path):
    picture(3).save(tmp_path / "p-0.png")
    path = write(tmp_path / "p.parquet", [None], [0])
    np.testing.assert_array_equal(open_images(path).train.images[0, 0], np.asarray(picture(3)))


def test_rows_without_a_picture_are_skipped_and_the_columns_stay_in_step(tmp_path):
    role = {"_type": "ClassLabel", "names": ["s", "q"]}
    more = {"drawer": ([5, 6, 7], {"_type": "Value"}), "role": ([1, 0, 1], role)}
    path = write(tmp_path / "p.parquet", [0, None, 2], [0, 1, 1], names=["a", "b"], paths=False, more=more)
    for _ in range(2):
        data = open_images(path).train
        assert data.names == ("p/000000", "p/000002")
        assert data.labels.tolist() == [0, 1]
        assert data.extras["drawer"].tolist() == [5, 7]
        assert data.extras["role"].tolist() == ["q", "q"]
        assert data.skipped == (("p/000001", "the row holds no image"),)


def test_another_label_column_can_be_named(tmp_path):
    more = {"shape": ([1, 0], {"_type": "ClassLabel", "names": ["round", "square"]})}
    path = write(tmp_path / "p.parquet", [0, 1], [0, 1], names=["a", "b"], more=more)
    assert open_images(path, "shape").classes == ("round", "square")
    assert open_images(path, "shape").train.labels.tolist() == [1, 0]
    assert open_images(path).classes == ("a", "b")
    with sentence('no column "color"; its columns are image, label, shape'):
        open_images(path, "color")


def test_the_same_path_twice_gives_two_names(tmp_path):
    rows = pa.array([{"bytes": encoded(picture(i)), "path": "same.png"} for i in range(2)])
    pq.write_table(pa.table({"image": rows}), tmp_path / "s.parquet")
    assert open_images(tmp_path / "s.parquet").train.names == ("same.png", "s/000001")


def test_mistakes(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with sentence("has no image column, only a"):
        open_images(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with sentence("is not a readable Parquet file"):
        open_images(tmp_path / "b.parquet")
    with sentence("none of the 1 images of n could be read; n/000000: the row holds no image"):
        open_images(write(tmp_path / "n.parquet", [None], paths=False))
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "z.parquet")
    with sentence("holds no image"):
        open_images(tmp_path / "z.parquet")
