import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wazuka.data import open_images
from wazuka.errors import UserError

from .pictures import encoded, picture, save


def labels_by_name(images) -> dict[str, str | None]:
    named = {-1: None} | dict(enumerate(images.classes))
    return {name: named[label] for name, label in zip(images.names, images.labels.tolist(), strict=True)}


def test_subfolders_are_classes_and_the_rest_is_unlabeled(photos):
    data = open_images(photos)
    assert data.name == "photos"
    assert data.test is None
    assert data.classes == ("crack", "fine")
    assert labels_by_name(data.train) == {
        **{f"crack/{x}.png": "crack" for x in "abc"},
        **{f"fine/{x}.png": "fine" for x in "abc"},
        **{"unlabeled/u.png": None, "unlabeled/deep/v.png": None, "loose.png": None},
    }
    for name, pixels in zip(data.train.names, data.train.images, strict=True):
        np.testing.assert_array_equal(pixels[0], np.asarray(Image.open(photos / name)))


def test_classes_may_have_subfolders_and_are_sorted_by_number(tmp_path):
    for i, name in enumerate(("10", "9", "1")):
        save(tmp_path / name / "lot 1" / "x.png", i)
    data = open_images(tmp_path)
    assert data.classes == ("1", "9", "10")
    assert data.train.n_labeled == 3


def test_a_test_folder_is_held_out(photos):
    save(photos / "test" / "crack" / "t.png", 20)
    save(photos / "test" / "fine" / "t.png", 21)
    data = open_images(photos)
    assert labels_by_name(data.test) == {"test/crack/t.png": "crack", "test/fine/t.png": "fine"}
    assert len(data.train) == 9
    assert not any(name.startswith("test/") for name in data.train.names)


@pytest.mark.parametrize("held", ["test", "val"])
def test_train_and_test_folders(tmp_path, held):
    for i, name in enumerate((f"{held}/a/1", f"{held}/b/2", "train/a/3", "train/b/4", "train/unlabeled/5")):
        save(tmp_path / f"{name}.png", i)
    save(tmp_path / "unlabeled" / "6.png", 6)
    save(tmp_path / "masks" / "7.png", 7)
    data = open_images(tmp_path)
    assert labels_by_name(data.test) == {f"{held}/a/1.png": "a", f"{held}/b/2.png": "b"}
    assert labels_by_name(data.train) == {
        **{"train/a/3.png": "a", "train/b/4.png": "b", "train/unlabeled/5.png": None, "unlabeled/6.png": None},
    }
    assert "masks/: its file was left out" in data.notes[0]


def test_loose_files_alone_are_all_unlabeled(tmp_path):
    save(tmp_path / "a.png", 0)
    data = open_images(tmp_path)
    assert data.classes == ()
    assert data.train.labels.tolist() == [-1]


def test_a_folder_called_test_alone_is_all_there_is(tmp_path):
    save(tmp_path / "test" / "a.png", 0)
    save(tmp_path / "test" / "b.png", 1)
    assert len(open_images(tmp_path, check=False).train) == 2


def test_what_cant_be_read_is_listed_and_the_rest_goes_on(photos, monkeypatch):
    whole = encoded(picture(30, (64, 64), 3))
    (photos / "crack" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (photos / "crack" / "empty.png").write_bytes(b"")
    (photos / "notes.txt").write_text("blue: cracked")
    (photos / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(17 << 20))
    os.symlink(photos / "nowhere.png", photos / "fine" / "link.png")
    os.mkfifo(photos / "fine" / "pipe.png")
    (photos / "locked.png").write_bytes(encoded(picture(31)))
    read = Path.read_bytes

    def guarded(path: Path) -> bytes:  # tests may run as root, whom no file mode stops
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    data = open_images(photos)
    assert len(data.train) == 9
    assert dict(data.skipped) == {
        "crack/truncated.png": "truncated: the file ends too early",
        "crack/empty.png": "an empty file",
        "notes.txt": "not an image",
        "film.mp4": "not an image",
        "fine/link.png": "a link to a file that is not there",
        "fine/pipe.png": "not a regular file",
        "locked.png": "can't be read: permission denied",
    }


def test_a_folder_that_cant_be_entered_is_listed(photos, monkeypatch):
    scan = os.scandir

    def guarded(path):
        if str(path).endswith("unlabeled"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    data = open_images(photos)
    assert data.skipped == (("unlabeled", "a folder that can't be read: Permission denied"),)
    assert len(data.train) == 7


def test_a_folder_that_is_locked_itself_says_so(photos, monkeypatch):
    def locked(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", locked)
    with sentence("holds no image; .*photos: a folder that can't be read: Permission denied"):
        open_images(photos)


def test_leftovers_of_file_managers_are_passed_over_in_silence(photos):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden/x.png", "__MACOSX/crack/._a.png", "crack/._a.png"):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0junk")
    data = open_images(photos)
    assert (len(data.train), data.skipped, data.classes) == (9, (), ("crack", "fine"))


def test_links_are_followed_but_not_round_a_loop(photos, tmp_path):
    elsewhere = save(tmp_path / "elsewhere" / "e.png", 40).parent
    os.symlink(photos, photos / "unlabeled" / "loop")
    os.symlink(elsewhere, photos / "unlabeled" / "more")
    names = []
    done = threading.Thread(target=lambda: names.extend(open_images(photos).train.names), daemon=True)
    done.start()
    done.join(20)
    assert not done.is_alive(), "a loop of links hangs"
    assert "unlabeled/more/e.png" in names
    assert len(names) == 10


def test_names_in_any_script_and_bytes_that_are_none(tmp_path):
    save(tmp_path / "ひび割れ" / "写真 1.png", 0)
    save(tmp_path / "čisté" / "ø.png", 1)
    broken = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(broken, "wb") as file:
            file.write(encoded(picture(2)))
    except OSError:
        pytest.skip("this file system takes text only")
    for _ in range(2):  # decoded, then from the cache
        data = open_images(tmp_path)
        assert set(data.classes) == {"ひび割れ", "čisté"}
        assert "ひび割れ/写真 1.png" in data.train.names
        assert len(data.train) == 3
        for name in data.train.names:
            name.encode()  # anything can be printed and written to a report


def test_sets_of_one_small_size_keep_it_and_others_become_64(tmp_path):
    save(tmp_path / "a" / "1.png", 0, (30, 96))
    save(tmp_path / "b" / "2.png", 1, (30, 96))
    assert open_images(tmp_path).train.size == (30, 96)
    assert open_images(tmp_path, size=(8, 9)).train.size == (8, 9)
    assert open_images(tmp_path, size=16).train.size == (16, 16)
    save(tmp_path / "b" / "3.png", 2, (97, 96))
    assert open_images(tmp_path).train.size == (64, 64)


def test_sets_of_one_large_size_become_64(tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}" / "x.png", i, (97, 97))
    assert open_images(tmp_path).train.size == (64, 64)


@pytest.mark.parametrize("odd", [{"size": (13, 12)}, {"channels": 3}])
def test_one_odd_picture_far_down_the_line_changes_the_plan_for_all(tmp_path, odd):
    for i in range(300):  # the look at a sample misses number 299
        save(tmp_path / f"{i % 2}" / f"{i:03d}.png", i)
    alone = open_images(tmp_path)
    assert alone.train.images.shape == (300, 1, 12, 12)
    save(tmp_path / "1" / "299.png", 299, **odd)
    data = open_images(tmp_path)
    assert data.train.images.shape[1:] == ((1, 64, 64) if "size" in odd else (3, 12, 12))
    assert len(data.train) == 300
    again = open_images(tmp_path, cache=False)
    np.testing.assert_array_equal(data.train.images, again.train.images)
    assert data.fingerprint == again.fingerprint


def test_gray_pictures_in_a_color_set_have_three_equal_planes(tmp_path):
    save(tmp_path / "a" / "gray.png", 0)
    save(tmp_path / "b" / "color.png", 1, channels=3)
    images = open_images(tmp_path).train.images
    assert images.shape == (2, 3, 12, 12)
    assert (images[0] == images[0][:1]).all()
    assert open_images(tmp_path, channels=1).train.channels == 1


def test_animations_are_noted(photos):
    frames = [picture(i, channels=3) for i in range(3)]
    frames[0].save(photos / "crack" / "z.gif", save_all=True, append_images=frames[1:])
    for _ in range(2):
        assert open_images(photos).notes == ("crack/z.gif: an animation, of which the first frame is used",)


def test_progress_counts_to_the_end(photos):
    calls = []
    open_images(photos, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (9, 9)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_single_files_and_lists_of_files(photos):
    one = open_images(photos / "loose.png")
    np.testing.assert_array_equal(one.train.images[0, 0], np.asarray(Image.open(photos / "loose.png")))
    several = open_images([photos / "loose.png", photos / "crack" / "a.png"])
    assert [Path(name).name for name in several.train.names] == ["loose.png", "a.png"]
    with pytest.raises(UserError, match="given twice"):
        open_images([photos / "loose.png"] * 2)
    (photos / "loose.png").write_text("no image")
    with pytest.raises(UserError, match=r"loose\.png could not be read as an image: it is not an image"):
        open_images(photos / "loose.png")


# --- one clear sentence for each mistake


def sentence(pattern: str):
    """A UserError of one sentence: no line break, and the text asked for."""
    return pytest.raises(UserError, match=rf"(?s)^(?!.*\n).*{pattern}")


def test_class_without_image(photos):
    (photos / "rust").mkdir()
    with sentence(f'class "rust" has no image: add some to {re.escape(str(photos / "rust"))}, or remove that folder'):
        open_images(photos)
    assert open_images(photos, check=False).classes == ("crack", "fine")


def test_class_whose_images_cant_be_read(photos):
    (photos / "rust").mkdir()
    (photos / "rust" / "a.png").write_bytes(b"")
    with sentence('class "rust" has no image that can be read'):
        open_images(photos)


def test_single_class(tmp_path):
    save(tmp_path / "crack" / "a.png", 0)
    with sentence('only one class, "crack", but learning needs at least two'):
        open_images(tmp_path)
    assert open_images(tmp_path, check=False).classes == ("crack",)


def test_class_that_is_only_tested(photos):
    save(photos / "test" / "rust" / "a.png", 50)
    with sentence('class "rust" has no example to learn from'):
        open_images(photos)


def test_no_image_at_all(tmp_path):
    with sentence("holds no image"):
        open_images(tmp_path)
    (tmp_path / "readme.md").write_text("soon")
    (tmp_path / "zero.png").write_bytes(b"")
    with sentence("none of the 2 files in .* could be read as an image; readme.md: not an image"):
        open_images(tmp_path)


def test_missing_path_offers_what_is_like_it(photos):
    with sentence(re.escape(f"did you mean {photos}?")):
        open_images(photos.parent / "photo")
    with sentence("no folder, file or data set minst; did you mean mnist"):
        open_images("minst")
    with sentence("known names are"):
        open_images("/nowhere/at/all")
    with sentence("empty"):
        open_images("")
