"""Decoded once: what a second start reads, what makes it look again, and what a crash leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wazuka.data import open_images
from wazuka.data.cache import cache_folder
from wazuka.errors import UserError

from .pictures import picture, save

_opened: list[str] | None = None


def _note(event, args):
    if _opened is not None and event == "open":
        _opened.append(str(args[0]))


sys.addaudithook(_note)


class opened_files:
    """The paths opened inside the block, by anyone in this process."""

    def __enter__(self) -> list[str]:
        global _opened
        _opened = []
        return _opened

    def __exit__(self, *_):
        global _opened
        _opened = None


def pack_folders() -> list[Path]:
    return sorted((cache_folder() / "packs").iterdir())


def test_a_second_start_reads_no_picture_and_gives_the_same(photos):
    with opened_files() as seen:
        first = open_images(photos)
    assert sum(path.startswith(str(photos)) and path.endswith(".png") for path in seen) >= 9
    with opened_files() as seen:
        second = open_images(photos, progress=lambda done, total: pytest.fail("decoded again"))
    assert [path for path in seen if path.endswith(".png")] == []
    assert isinstance(second.train.images, np.memmap)
    assert not second.train.images.flags.writeable
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert first.fingerprint == second.fingerprint
    assert first.train.names == second.train.names
    assert first.train.labels.tolist() == second.train.labels.tolist()


def test_skipped_and_notes_are_remembered(photos):
    (photos / "readme.txt").write_text("hi")
    assert open_images(photos).skipped == open_images(photos).skipped == (("readme.txt", "not an image"),)


def test_each_size_has_its_own_pack(photos):
    for size, channels, fit in ((None, None, "crop"), (8, None, "crop"), (8, 3, "crop"), (9, 3, "pad")):
        for _ in range(2):
            images = open_images(photos, size=size, channels=channels, fit=fit).train
            assert images.size == ((size, size) if size else (12, 12))
            assert images.channels == (channels or 1)
    assert len(pack_folders()) == 4


@pytest.mark.parametrize("change", ["content", "same size and time", "new", "gone", "renamed", "mended"])
def test_any_change_is_noticed(photos, change):
    path = photos / "crack" / "b.png"
    bare = photos / "crack" / "raw.pgm"
    bare.write_bytes(b"P5 2 2 255\n" + bytes([1, 2, 3, 4]))
    if change == "mended":
        whole = path.read_bytes()
        path.write_bytes(whole[:40])
    before = open_images(photos)
    if change == "content":
        picture(77).save(path)
    elif change == "same size and time":
        status = os.stat(bare)
        bare.write_bytes(b"P5 2 2 255\n" + bytes([9, 8, 7, 6]))
        os.utime(bare, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "new":
        save(photos / "crack" / "new.png", 78)
    elif change == "gone":
        path.unlink()
    elif change == "renamed":
        path.rename(photos / "fine" / "moved.png")
    else:
        path.write_bytes(whole)
    after = open_images(photos)
    fresh = open_images(photos, cache=False)
    assert after.fingerprint != before.fingerprint
    assert after.train.names == fresh.train.names
    np.testing.assert_array_equal(after.train.images, fresh.train.images)
    assert after.fingerprint == fresh.fingerprint
    assert after.skipped == fresh.skipped


def test_a_change_within_a_tick_of_the_clock_is_noticed(tmp_path):
    """A file system's clock moves in steps of some milliseconds: two writes within one have the same time."""
    save(tmp_path / "b" / "x.png", 1)
    path = tmp_path / "a" / "x.pgm"
    path.parent.mkdir()
    for value in range(8):
        path.write_bytes(b"P5 2 2 255\n" + bytes([value] * 4))
        images = open_images(tmp_path, size=2).train
        assert images.images[images.names.index("a/x.pgm")].max() == value


def test_only_what_is_new_is_decoded(photos):
    open_images(photos)
    save(photos / "crack" / "d.png", 50)
    with opened_files() as seen:
        data = open_images(photos, size=None)
    read = {Path(path).name for path in seen if path.startswith(str(photos)) and path.endswith(".png")}
    assert "d.png" in read
    decoded_again = open_images(photos, cache=False)
    np.testing.assert_array_equal(data.train.images, decoded_again.train.images)
    assert data.fingerprint == decoded_again.fingerprint
    assert len(pack_folders()) == 1, "the pack that was replaced is removed"


def test_unchanged_pictures_come_from_the_earlier_pack(tmp_path, monkeypatch):
    for i in range(200):
        save(tmp_path / f"{i % 2}" / f"{i:03d}.png", i)
    open_images(tmp_path)
    save(tmp_path / "0" / "new.png", 500)
    from wazuka.data import pack

    decoded = []
    real = pack._decode_item
    monkeypatch.setattr(pack, "_decode_item", lambda item, plan: decoded.append(item.name) or real(item, plan))
    assert len(open_images(tmp_path).train) == 201
    assert decoded == ["0/new.png"]


def test_earlier_packs_never_change_the_result(tmp_path):
    """A color picture comes and goes, an odd size comes and goes: always as if decoded afresh."""
    for i in range(4):
        save(tmp_path / f"{i % 2}" / f"{i}.png", i)
    steps = [
        lambda: save(tmp_path / "0" / "color.png", 9, channels=3),
        lambda: (tmp_path / "0" / "color.png").unlink(),
        lambda: save(tmp_path / "0" / "odd.png", 9, size=(20, 30)),
        lambda: save(tmp_path / "0" / "color.png", 10, channels=3),
        lambda: (tmp_path / "0" / "odd.png").unlink(),
    ]
    open_images(tmp_path)
    for step in steps:
        step()
        kept, fresh = open_images(tmp_path), open_images(tmp_path, cache=False)
        np.testing.assert_array_equal(kept.train.images, fresh.train.images)
        assert kept.fingerprint == fresh.fingerprint


def test_the_fingerprint_is_of_the_content_not_of_the_place(photos, tmp_path):
    import shutil

    shutil.copytree(photos, tmp_path / "copy")
    assert open_images(photos).fingerprint == open_images(tmp_path / "copy").fingerprint
    assert len(pack_folders()) == 1, "the same content is stored once"


def test_no_cache_keeps_nothing(photos):
    data = open_images(photos, cache=False)
    assert len(data.train) == 9
    assert not (cache_folder() / "packs").exists()


def test_a_damaged_cache_is_made_again(photos):
    expected = np.array(open_images(photos).train.images)
    for name in ("images.npy", "rows.json"):
        for broken in (b"", b"nonsense", None):
            path = pack_folders()[0] / name
            path.unlink() if broken is None else path.write_bytes(broken)
            np.testing.assert_array_equal(open_images(photos).train.images, expected)
    for path in (cache_folder() / "index").iterdir():
        path.write_bytes(b"[1")
    np.testing.assert_array_equal(open_images(photos).train.images, expected)


def test_a_cache_that_cant_be_written_is_told(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't write the cache of decoded images .* set WAZUKA_CACHE"):
        open_images(photos, cache=tmp_path / "file")


def test_a_full_disk_is_told_and_leaves_nothing(photos, monkeypatch):
    from wazuka.data import pack

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack, "_write_header", full)
    with pytest.raises(UserError, match=r"No space left on device.*: free space there"):
        open_images(photos)
    assert pack_folders() == []


def test_an_interrupt_leaves_nothing(photos):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_images(photos, progress=interrupt)
    assert pack_folders() == []
    assert len(open_images(photos).train) == 9


_CHILD = """
import json, os, signal, sys
from wazuka.data import open_images
def progress(done, total):
    if sys.argv[2] == "kill" and done >= total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
data = open_images(sys.argv[1], progress=progress)
print(json.dumps([data.fingerprint, int(data.train.images.sum()), len(data.train)]))
"""


def child(folder: Path, what: str = "run") -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", _CHILD, str(folder), what], stdout=subprocess.PIPE)


@pytest.fixture
def many(tmp_path) -> Path:
    for i in range(300):
        save(tmp_path / f"{i % 2}" / f"{i}.png", i)
    return tmp_path


def test_kill_9_while_decoding_harms_no_later_start(many):
    killed = child(many, "kill")
    assert killed.wait(60) == -signal.SIGKILL
    assert [path.name.startswith(".making-") for path in pack_folders()] == [True]
    data = open_images(many)
    assert len(data.train) == 300
    np.testing.assert_array_equal(data.train.images, open_images(many, cache=False).train.images)
    rest = next(path for path in pack_folders() if path.name.startswith(".making-"))
    os.utime(rest, (time.time() - 2 * 24 * 3600,) * 2)
    open_images(many, size=5)
    assert not rest.exists(), "what a dead process left is swept up a day later"


def test_several_processes_at_once_agree(many):
    children = [child(many) for _ in range(3)]
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in children]
    assert [process.returncode for process in children] == [0, 0, 0]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][2] == 300
    assert len(pack_folders()) == 1


def test_the_cache_folder_is_found(monkeypatch, tmp_path):
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder() == Path(os.environ["WAZUKA_CACHE"])
    monkeypatch.delenv("WAZUKA_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "wazuka"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "wazuka")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "wazuka"


def test_nothing_in_the_cache_is_pickled(photos, monkeypatch):
    import pickle

    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    open_images(photos)
    open_images(photos)
