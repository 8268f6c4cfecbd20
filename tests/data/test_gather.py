import os
from pathlib import Path

import pytest

from wazuka.data import open_images
from wazuka.data.decode import Shape
from wazuka.data.gather import gather, is_mixed, names_in, open_gathered
from wazuka.errors import UserError

from .pictures import save

SMALL = Shape((4, 4), 1)
CRACKS = ["photos/crack/a.png", "photos/crack/b.png", "photos/crack/c.png"]
FINE = ["photos/fine/a.png", "photos/fine/b.png", "photos/fine/c.png"]


@pytest.fixture(autouse=True)
def here(photos, monkeypatch):
    """The folder around photos/ is the working folder."""
    monkeypatch.chdir(photos.parent)


def named(*given, listed=()) -> list[str]:
    return gather(given, listed).names


def test_folders_files_and_patterns_keep_the_order_they_are_given_in():
    assert named("photos/fine", "photos/loose.png", "photos/crack/[ab].png") == [
        *FINE, "photos/loose.png", "photos/crack/a.png", "photos/crack/b.png"
    ]  # fmt: skip
    assert named("photos/c*") == CRACKS  # a pattern that finds a folder
    assert named("photos/**/[uv].png") == ["photos/unlabeled/deep/v.png", "photos/unlabeled/u.png"]
    assert named("photos/*.png") == ["photos/loose.png"]
    assert len(named("**")) == len(named(Path("photos"))) == 9


def test_a_file_under_several_spellings_is_one(tmp_path):
    (tmp_path / "link").symlink_to("photos/crack", target_is_directory=True)
    spellings = ["photos/crack", "photos/crack/a.png", "./photos/crack/b.png", tmp_path / "photos" / "crack" / "c.png",
                 "photos/fine/../crack/a.png", "link", "photos/crack/*"]  # fmt: skip
    assert named(*spellings, listed=["photos/crack/a.png", "photos/crack"]) == CRACKS
    assert named("link", "photos/crack") == ["link/a.png", "link/b.png", "link/c.png"]  # the first name stands
    assert gather([], ["gone.png", "./gone.png"]).left == [("gone.png", "not there (No such file or directory)")]


def test_files_of_one_name_in_two_places_are_two(tmp_path, monkeypatch):
    save(tmp_path / "loose.png", seed=30)
    monkeypatch.chdir("photos")
    assert named("loose.png", "../loose.png", str(tmp_path / "loose.png")) == ["loose.png", "../loose.png"]
    Path("alias.png").symlink_to("loose.png")  # a name of its own, and asked for by it
    assert named("loose.png", "alias.png") == ["loose.png", "alias.png"]


def test_a_path_goes_before_a_pattern(photos):
    save(photos / "odd" / "IMG[1].png", seed=20)
    save(photos / "odd" / "IMG1.png", seed=21)
    assert named("photos/odd/IMG[1].png") == ["photos/odd/IMG[1].png"]
    assert named("photos/odd/IMG[!2].png") == ["photos/odd/IMG1.png"]
    assert not is_mixed("photos/odd/IMG[1].png")
    assert is_mixed("photos/odd/*")
    assert not is_mixed("photos")
    assert not is_mixed([])
    assert not is_mixed([[0, 1]])
    assert is_mixed(["photos"])


def test_what_a_list_names_is_never_a_pattern(photos):
    save(photos / "odd" / "IMG1.png", seed=21)
    found = gather([], ["photos/odd/IMG[1].png", "photos/odd"])
    assert found.names == ["photos/odd/IMG1.png"]
    assert [name for name, _ in found.left] == ["photos/odd/IMG[1].png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["photos", "nowhere.png"], "there is no folder, file or data set nowhere.png"),
        (["photos", "digits"], "there is no folder, file or data set digits"),
        (["photos", "empty"], "empty holds no image"),
        (["photos/*.tif"], r"no file matches photos/\*\.tif$"),
        (["photos/*/?.PNG"], r"no file matches photos/\*/\?\.PNG; \*\.png would"),
        (["photos", ""], "a name among those of the images is empty"),
        (["~nobody-of-this-name/x.png", "photos"], "there is no folder, file or data set ~nobody"),
    ],
)
def test_what_finds_nothing_is_told(given, message):
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message):
        gather(given)


def test_the_home_of_nobody_is_told_where_it_stands_alone_too():
    with pytest.raises(UserError, match="there is no folder, file or data set ~nobody"):
        open_images("~nobody-of-this-name/x.png")


def test_images_come_as_from_each_folder_alone(photos):
    whole = open_images("photos", size=4, channels=1, cache=False).train
    by_name = {f"photos/{name}": image.tolist() for name, image in zip(whole.names, whole.images, strict=True)}
    (photos / "crack" / "broken.png").write_bytes(b"no picture")
    data = open_gathered(
        ["photos/fine", "photos/crack"], ["photos/loose.png", "gone.png", "x" * 5000], SMALL, cache=False
    )
    assert list(data.train.names) == [*FINE, *CRACKS, "photos/loose.png"]
    assert [image.tolist() for image in data.train.images] == [by_name[name] for name in data.train.names]
    assert data.train.n_labeled == 0
    assert data.test is None
    reasons = dict(data.skipped)
    assert list(reasons) == ["photos/crack/broken.png", "gone.png", "x" * 5000]
    assert "not an image" in reasons["photos/crack/broken.png"]
    assert "not there" in reasons["gone.png"]
    assert "too long" in reasons["x" * 5000]


def test_links_to_nowhere_and_forbidden_folders_keep_a_row(photos):
    (photos / "link.png").symlink_to("nowhere.png")
    data = open_gathered(["photos/link.png", "photos/loose.png"], [], SMALL, cache=False)
    assert data.skipped == (("photos/link.png", "a link to a file that is not there"),)
    if os.geteuid():  # root may enter
        (photos / "fine").chmod(0)
        try:
            reasons = dict(open_gathered(["photos"], ["photos/fine/a.png"], SMALL, cache=False).skipped)
        finally:
            (photos / "fine").chmod(0o755)
        assert "Permission denied" in reasons["photos/fine"]
        assert "Permission denied" in reasons["photos/fine/a.png"]


def test_a_folder_that_may_not_be_entered_is_not_called_empty(monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(UserError, match=r"^photos holds no image; it is a folder that can.t be read"):
        gather(["photos", "photos"])


def test_a_file_of_many_images_among_others_is_told_in_its_row(photos):
    (photos / "more.npz").write_bytes(b"")
    (photos / "crack" / "train.PARQUET").write_bytes(b"")
    data = open_gathered(["photos/*"], [], SMALL, cache=False)
    assert [(name, "given alone" in reason) for name, reason in data.skipped] == [
        ("photos/crack/train.PARQUET", True), ("photos/more.npz", True)
    ]  # fmt: skip
    assert len(data.train) == 9


@pytest.mark.parametrize(
    ("given", "listed", "message"),
    [
        ([], ["a.png"], "^a.png could not be read as an image: it is not there"),
        ([], ["a.png", "b.png"], "^none of 2 files could be read as an image; a.png: not there"),
        (["note.txt"], [], "^note.txt could not be read as an image: it is not an image$"),
        (["note.txt"], ["a.png"], "^none of 2 files could be read as an image; note.txt: not an image$"),
        ([], ["empty"], "^all that was given holds no image$"),
        (["em*"], [], r"^em\* holds no image$"),
    ],
)
def test_nothing_to_be_read_is_told(given, listed, message):
    Path("empty").mkdir()
    Path("note.txt").write_text("not a photo at all")
    with pytest.raises(UserError, match=message):
        open_gathered(given, listed, SMALL, cache=False)


def test_a_new_photo_costs_its_own_decoding_and_the_old_pack_goes(photos, monkeypatch):
    import wazuka.data.pack as pack

    decoded = []
    decode = pack.decode
    monkeypatch.setattr(pack, "decode", lambda data, shape: decoded.append(1) or decode(data, shape))

    def look() -> int:
        decoded.clear()
        assert len(open_gathered(["photos/*"], ["photos"], SMALL).train) == len(named("photos"))
        assert len(list(Path(os.environ["WAZUKA_CACHE"], "packs").iterdir())) == 1
        return len(decoded)

    assert look() == 9
    assert look() == 0
    save(photos / "crack" / "d.png", seed=40)
    assert look() == 1


def test_the_same_words_in_another_folder_are_other_files(tmp_path, monkeypatch):
    for number in (1, 2):
        save(tmp_path / str(number) / "x.png", seed=number)
        monkeypatch.chdir(tmp_path / str(number))
        open_gathered(["*.png"], [], SMALL)
    assert len(list(Path(os.environ["WAZUKA_CACHE"], "packs").iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.png\nb c .png\n", ["a.png", "b c .png"]),
        (b"a.png\r\n\r\nb.png", ["a.png", "b.png"]),
        (b"\xef\xbb\xbfa.png\n", ["a.png"]),
        ("schräg.png\n".encode(), ["schräg.png"]),
        ("\ufeffschräg.png\r\n".encode("utf-16-le"), ["schräg.png"]),
        (b"a.png\0", ["a.png"]),
        (b"a\nb.png\0\0 c.png\r\0", ["a\nb.png", " c.png\r"]),
        (b"caf\xe9.png\n", [os.fsdecode(b"caf\xe9.png")]),
        (b"", []),
        (b" \n\r\n", []),
    ],
)
def test_names_out_of_a_list(content, names):
    assert names_in(content) == names


def test_an_image_is_no_list(photos):
    with pytest.raises(UserError, match='standard input holds an image, but "-" stands for a list'):
        names_in((photos / "loose.png").read_bytes())
