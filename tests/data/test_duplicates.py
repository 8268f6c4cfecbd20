import shutil

import numpy as np
from PIL import Image

from wazuka.data import describe_duplicates, find_duplicates, open_images

from .pictures import encoded, picture, save


def test_none_among_different_pictures(photos):
    assert find_duplicates(open_images(photos)) == []
    assert describe_duplicates([]) == []


def test_copies_are_found_on_both_sides_of_every_line(photos):
    shutil.copy(photos / "crack" / "a.png", photos / "unlabeled" / "copy of a.png")
    Image.open(photos / "crack" / "b.png").save(photos / "crack" / "b.bmp")  # other bytes, same pixels
    save(photos / "test" / "fine" / "t.png", 40)
    shutil.copy(photos / "test" / "fine" / "t.png", photos / "loose copy.png")
    shutil.copy(photos / "fine" / "c.png", photos / "crack" / "wrong.png")
    found = find_duplicates(open_images(photos))
    assert [(group.names, group.places, group.labels) for group in found] == [
        (("crack/wrong.png", "fine/c.png"), ("labeled", "labeled"), ("crack", "fine")),
        (("loose copy.png", "test/fine/t.png"), ("unlabeled", "test"), (None, "fine")),
        (("crack/a.png", "unlabeled/copy of a.png"), ("labeled", "unlabeled"), ("crack", None)),
        (("crack/b.bmp", "crack/b.png"), ("labeled", "labeled"), ("crack", "crack")),
    ]
    assert [group.conflicts for group in found] == [True, False, False, False]
    assert [group.leaks for group in found] == [False, True, False, False]
    assert describe_duplicates(found) == [
        '1 picture has more than one label, for example crack/wrong.png ("crack"), fine/c.png ("fine"): '
        "at least one of them is wrong.",
        "1 test image is also among the training images, for example loose copy.png = test/fine/t.png: "
        "the accuracy may look better than it is.",
        "1 picture is both labeled and unlabeled, for example crack/a.png = unlabeled/copy of a.png: "
        "harmless, but its label is known.",
        "2 pictures occur more than once in one place, for example crack/wrong.png = fine/c.png.",
    ]


def test_one_pixel_makes_a_difference(photos):
    pixels = np.asarray(picture(0)).copy()
    pixels[3, 4] ^= 1
    (photos / "crack" / "almost.png").write_bytes(encoded(Image.fromarray(pixels)))
    assert find_duplicates(open_images(photos)) == []
