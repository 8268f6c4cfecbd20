import os
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from wazuka.explain import metadata_table
from wazuka.explain.metadata import COLUMNS


def save(path, date=None, camera=None, orientation=None, size=(20, 10), changed=1_700_000_039):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if camera:
        exif[0x010F], exif[0x0110] = camera
    if orientation is not None:
        exif[0x0112] = orientation
    if date:
        exif.get_ifd(0x8769)[0x9003] = date
    Image.new("RGB", size, "red").save(path, exif=exif.tobytes())
    os.utime(path, (changed, changed))
    return path


def row(path):
    columns, table = metadata_table([path])
    return dict(zip(columns, table[0], strict=True))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_everything_a_file_tells_is_read(tmp_path, ending):
    path = save(tmp_path / f"IMG_2024-07.{ending}", "2024:05:01 12:30:00", ("Acme", "One"), 6)
    found = row(path)
    assert found["taken"] == datetime(2024, 5, 1, 12, 30, tzinfo=UTC).timestamp()
    assert (found["camera"], found["orientation"]) == (0, 6)
    upright = ending == "tiff"  # Pillow turns these by itself
    assert (found["width"], found["height"]) == ((10, 20) if upright else (20, 10))
    assert found["bytes"] == path.stat().st_size
    assert found["modified"] == 1_699_999_980  # to the minute
    assert (found["number"], found["prefix"], found["folder"]) == (202407, 0, 0)


def test_names_become_numbers_that_say_which_are_alike(tmp_path):
    files = [
        save(tmp_path / "b" / "IMG_3.jpg", camera=("Acme", "Two")),
        save(tmp_path / "a" / "scan-1.jpg", camera=("Acme", "One")),
        save(tmp_path / "a" / "img 2.jpg", camera=("Acme", "Two")),
        save(tmp_path / "a" / "plain.jpg"),
    ]
    columns, table = metadata_table(files)
    assert columns == COLUMNS
    found = dict(zip(columns, table.T, strict=True))
    np.testing.assert_equal(found["camera"], [1, 0, 1, np.nan])
    np.testing.assert_equal(found["folder"], [1, 0, 0, 0])
    np.testing.assert_equal(found["prefix"], [0, 2, 0, 1])
    np.testing.assert_equal(found["number"], [3, 1, 2, np.nan])
    assert np.isnan(found["taken"]).all()


def test_what_a_file_doesnt_tell_is_nan(tmp_path):
    found = row(save(tmp_path / "x.jpg", date="0000:00:00 00:00:00", orientation=0))
    assert np.isnan([found[name] for name in ("taken", "camera", "orientation", "number")]).all()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe1\xff\xff not a photo")
    found = row(tmp_path / "broken.jpg")
    assert np.isnan([found[name] for name in ("width", "height", "taken")]).all()
    assert found["bytes"] == 18
    found = row(tmp_path / "gone_7.jpg")
    assert np.isnan([found[name] for name in ("bytes", "modified", "width")]).all()
    assert found["number"] == 7
    assert metadata_table([])[1].shape == (0, len(COLUMNS))


def test_no_picture_is_decoded(tmp_path, monkeypatch):
    files = [tmp_path / "a.png", save(tmp_path / "b.jpg"), save(tmp_path / "c.png", "2024:05:01 12:30:00")]
    Image.new("RGB", (20, 10)).save(files[0])  # without EXIF, for which Pillow would look at the file's end
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert np.isfinite(metadata_table(files)[1][:, COLUMNS.index("width")]).all()


def test_damaged_exif_leaves_the_size(tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (20, 10)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x87\x69\0\x04" * 9)
    assert row(path)["width"] == 20


def test_long_numbers_stay_in_order(tmp_path):
    one, two = save(tmp_path / "20240501_123456_1.jpg"), save(tmp_path / "20240501_123456_2.jpg")
    assert row(one)["number"] == 202405011234561
    assert row(one)["number"] < row(two)["number"]
    assert row(two)["number"] < row(save(tmp_path / ("9" * 200 + ".jpg")))["number"] < np.inf
