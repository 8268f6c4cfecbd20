import json
import os

import numpy as np
import pytest
from PIL import Image

from wazuka.explain import check, shortcut_checks, shortcuts
from wazuka.explain.impoverish import color_features
from wazuka.explain.shortcuts import LEVEL, PHOTOS, Shortcut, looked_at, measure, percent, spelled_out

NAMES = ("oak", "elm", "ash", "fir")


def extract(images):
    """A network that sees 4 x 4 places: the mean color of each."""
    n, channels, height, width = images.shape
    return images.reshape(n, channels, 4, height // 4, 4, width // 4).mean(axis=(3, 5)).reshape(n, -1)


def photos(seed, each=8, classes=4):
    """Noise that says nothing of its label; (N, 3, 32, 32), (N,)."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(classes), each))
    small = generator.integers(60, 196, (len(labels), 3, 8, 8))
    return small.repeat(4, axis=2).repeat(4, axis=3).astype(np.uint8), labels


def checks(images, labels, paths=None, seed=0, classes=NAMES):
    return {one.name: one for one in shortcut_checks(extract, images, labels, classes, paths, seed)}


def save(folder, labels, changed=lambda n: 1_700_000_000 + 86_400 * n, name=lambda n: f"IMG_{n * 37 % 101:04}.jpg"):
    paths = []
    for n in range(len(labels)):
        paths.append(folder / name(n))
        paths[-1].parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(paths[-1])
        os.utime(paths[-1], (changed(n), changed(n)))
    return paths


def test_a_colored_border_for_each_class_is_found():
    images, labels = photos(0)
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])[labels][:, :, None, None]
    images[:, :, :4] = images[:, :, -4:] = colors
    found = checks(images, labels)
    assert list(found) == ["border", "surroundings", "patches", "colors"]
    border = found["border"]
    assert border.found
    assert border.accuracy.value == 1
    assert border.accuracy.low < 0.95
    assert border.chance == 0.25
    assert border.share == 1
    assert border.columns == ()
    assert border.sentence.startswith("The border alone (an eighth on each side) names 100\N{NO-BREAK SPACE}% of the")
    assert "about as many as the whole photos" in border.sentence
    assert found["colors"].found  # it changes the colors, too


def test_an_object_in_the_middle_is_no_shortcut():
    images, labels = photos(1)
    images[:, :, 12:20, 12:20] = 128
    patterns = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]])  # two of four quarters are white
    for image, label in zip(images, labels, strict=True):
        for k, white in enumerate(patterns[label]):
            y, x = 12 + 4 * (k // 2), 12 + 4 * (k % 2)
            image[:, y : y + 4, x : x + 4] = 255 * white
    found = checks(images, labels)
    assert found["patches"].whole > 0.9
    assert not any(one.found for one in found.values())
    assert "no more of the photos right than luck may" in found["border"].sentence
    assert f"More than {percent(found['border'].noticeable)} would have been noticed" in found["border"].sentence


def test_colors_without_places_are_found_and_only_they():
    images, labels = photos(2, each=10)
    # Two shades side by side everywhere, further apart in each class: the mean of every place is the same.
    checkers = 2 * (np.indices((32, 32)).sum(axis=0) % 2) - 1
    images[:] = 128 + checkers * (20 + 25 * labels)[:, None, None, None]
    found = checks(images, labels)
    assert [name for name, one in found.items() if one.found] == ["colors"]
    assert found["colors"].accuracy.value == 1
    assert "more than the whole photos" in found["colors"].sentence


def test_what_survives_disorder_is_texture_and_what_does_not_is_shape():
    images, labels = photos(3, each=10)
    halves = images.copy()  # shape: which half is bright
    for image, label in zip(halves, labels, strict=True):
        image[...] = image // 2
        part = (slice(16), slice(16, 32))[label % 2]
        image[(slice(None), part) if label < 2 else (slice(None), slice(None), part)] += 100
    found = checks(halves, labels)["patches"]
    assert found.whole > 0.9
    assert not found.found
    assert checks((images // 4 + 40 * labels[:, None, None, None]).astype(np.uint8), labels)["patches"].found


def test_a_date_for_each_class_is_found(tmp_path):
    images, labels = photos(4)
    paths = save(tmp_path, labels, changed=lambda n: 1_700_000_000 + 86_400 * int(labels[n]) + 60 * n)
    found = checks(images, labels, paths)
    assert [name for name, one in found.items() if one.found] == ["file"]
    assert found["file"].columns[0] == "modified"
    assert "by when it was last changed" in found["file"].sentence
    assert "copied or sorted" in found["file"].sentence


def test_a_camera_for_each_class_is_found_among_columns_that_say_nothing():
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 8)
    table = generator.normal(size=(32, 5))
    table[:, 1] = np.array([2, 0, 3, 1])[labels]
    table[labels == 2, 1] = np.nan  # unknown is an answer, too
    columns = ["taken", "camera", "width", "bytes", "number"]
    found = check("file", table, labels, columns=columns)
    assert found.columns[0] == "camera"
    assert not {"taken", "width", "bytes", "number"} & set(found.columns)
    assert "by the camera (chance 25" in found.sentence
    assert "every class with every camera" in found.sentence
    table[:, 3] = labels
    both = check("file", table, labels, columns=columns)
    assert {"camera", "bytes"} <= set(both.columns)
    assert "On their own stand out too: " in both.sentence


def test_names_have_no_order():
    labels, camera = np.arange(24) % 2, np.arange(24) % 6  # cameras of both classes, in turn
    assert check("file", camera[:, None], labels, columns=["camera"]).accuracy.value == 1
    assert check("file", camera[:, None], labels, columns=["width"]).accuracy.value < 1


def test_files_that_all_say_the_same_say_nothing(tmp_path):
    images, labels = photos(5)
    found = checks(images, labels, save(tmp_path, labels, changed=lambda n: 1_700_000_000))["file"]
    assert not found.found
    same = check("file", np.full((32, 2), 3.0), labels, columns=["width", "height"])
    assert same.p_value == 1
    assert same.accuracy.value == same.chance


def test_a_name_that_spells_the_label_out_is_no_news(tmp_path):
    labels = np.repeat(np.arange(4), 8)
    images = photos(6)[0]
    paths = save(tmp_path, labels, changed=lambda n: 0, name=lambda n: f"{NAMES[labels[n]].upper()}/{n * 37 % 101}.jpg")
    assert not checks(images, labels, paths)["file"].found
    named = [NAMES[label] for label in labels]
    assert spelled_out(paths, named) == {"folder"}
    longer = [path.with_name(f"big_{name}_1.jpg") for path, name in zip(paths, named, strict=True)]
    assert spelled_out(longer, named) == {"folder", "prefix"}
    assert spelled_out([path.with_name("n01_7.jpg") for path in paths], ["n01"] * 32) == {"prefix", "number"}
    assert spelled_out(paths, ["?"] * 32) == set()
    days = save(tmp_path, labels, changed=lambda n: 0, name=lambda n: f"day {labels[n]}/{n * 37 % 101}.jpg")
    assert checks(images, labels, days)["file"].columns[0] == "folder"


def test_the_best_of_several_columns_is_held_against_lucks_best():
    labels, table = np.repeat(np.arange(4), 6), np.random.default_rng(0).normal(size=(24, 2))
    both = measure(table, labels, 0, ["taken", "bytes"])
    alone = [measure(table[:, [k]], labels, 0, [column]) for k, column in enumerate(("taken", "bytes"))]
    assert (both.by_luck >= np.maximum(alone[0].by_luck, alone[1].by_luck)).all()
    assert both.accuracies[:2].tolist() == [one.accuracies[0] for one in alone]
    assert both.columns == ("taken", "bytes", "all")


def test_false_alarms_are_as_rare_as_promised(monkeypatch):
    monkeypatch.setattr(shortcuts, "DRAWS", 199)
    alarms = []
    for seed in range(60):
        images, labels = photos(100 + seed, each=(4, 6)[seed % 2])
        table = np.random.default_rng(seed).normal(size=(len(labels), 4))
        alarms.append(any(one.found for one in checks(images, labels, seed=seed).values()))
        alarms.append(check("file", table, labels, seed, columns=["taken", "width", "bytes", "number"]).found)
    assert np.mean(alarms) <= LEVEL + 2.6 * (LEVEL * (1 - LEVEL) / len(alarms)) ** 0.5


def test_several_checks_must_each_be_surer():
    images, labels = photos(7)
    features = color_features(images)
    assert checks(images, labels)["colors"].noticeable > check("colors", features, labels).noticeable
    found = checks(np.where(labels[:, None, None, None] > 1, 255 - images // 4, images // 4), labels)
    assert min(one.p_value for one in found.values()) == pytest.approx(4 / 500)  # the surest of four, times four


def test_too_few_labels_are_told_with_how_many_it_takes():
    for each, classes, needed in ((1, 4, 3), (2, 4, 3), (5, 2, 6)):
        images, labels = photos(8, each, classes)
        images[:] = 60 * labels[:, None, None, None]
        for one in checks(images, labels).values():
            assert not one.found
            assert np.isnan([one.accuracy.value, one.p_value, one.noticeable, one.share]).all()
            assert one.sentence == f"Too few labels to check the {one.name}: it takes {needed} a class."
    images, labels = photos(8, each=needed, classes=2)
    images[:] = 60 * labels[:, None, None, None]
    assert checks(images, labels)["colors"].found
    assert "Too few" in check("border", np.zeros((0, 3)), np.zeros(0, dtype=int)).sentence
    assert "Too few" in check("border", np.eye(9), np.zeros(9, dtype=int)).sentence  # a single class


def test_only_labeled_photos_of_classes_with_enough_labels_count():
    images, labels = photos(9)
    images = (images // 4 + 40 * labels[:, None, None, None]).astype(np.uint8)
    extra = np.zeros((40, 3, 32, 32), dtype=np.uint8)
    more = np.concatenate([images, extra]), np.concatenate([labels, np.full(38, -1), [4, 4]])
    one, two = checks(images, labels), checks(*more, classes=(*NAMES, "yew"))
    assert [s.to_dict() for s in one.values()] == [s.to_dict() for s in two.values()]


def test_of_many_photos_some_are_looked_at_evenly():
    labels = np.concatenate([np.repeat([3, 5], 900), np.repeat([7], 50), [8, 8], np.full(100, -1)])
    rows = looked_at(labels, 0)
    assert np.unique(labels[rows], return_counts=True)[1].tolist() == [PHOTOS // 3, PHOTOS // 3, 50]
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() != looked_at(labels, 1).tolist()
    assert len(looked_at(np.arange(3000) % 1000, 0)) <= PHOTOS
    assert len(looked_at(np.full(5, -1), 0)) == 0


def test_the_same_seed_finds_the_same_and_nothing_given_is_changed():
    images, labels = photos(10)
    images.flags.writeable = False
    one, two = shortcut_checks(extract, images, labels, NAMES), shortcut_checks(extract, images, labels, NAMES)
    assert one == two


def test_a_finding_is_written_as_plain_json():
    images, labels = photos(11)
    for shortcut in (*checks(images, labels).values(), check("border", np.zeros((2, 2)), [0, 1])):
        told = json.loads(json.dumps(shortcut.to_dict(), allow_nan=False))
        assert told["found"] is shortcut.found
        assert isinstance(shortcut, Shortcut)


def test_wrong_input_is_told():
    with pytest.raises(ValueError, match="finite"):
        check("border", np.full((12, 2), np.nan), np.arange(12) % 3)
    with pytest.raises(ValueError, match="table of 1 columns"):
        check("file", np.zeros((12, 2)), np.arange(12) % 3, columns=["taken"])
    with pytest.raises(ValueError, match="one length"):
        shortcut_checks(extract, photos(0)[0], [0, 1], NAMES)
    with pytest.raises(ValueError, match="one length"):
        shortcut_checks(extract, *photos(0), NAMES, paths=["a.jpg"])


def test_shares_are_never_rounded_to_all_or_nothing():
    assert [percent(share).replace("\N{NO-BREAK SPACE}", "") for share in (0, 0.001, 0.776, 0.999, 1)] == [
        "0%",
        "1%",
        "78%",
        "99%",
        "100%",
    ]
