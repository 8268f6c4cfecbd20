"""Every operation of both forms against the authors' formula, applied by Pillow."""

import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from wazuka.augment import RandAugment, randaugment
from wazuka.augment.operations import Change, OperationTable
from wazuka.augment.randaugment import _FIXMATCH, _USB, OPERATIONS, _usb_boxes

AFFINE = Image.Transform.AFFINE


def affine(image, *numbers):
    return image.transform(image.size, AFFINE, numbers)


FIXMATCH = {  # m of 10, sign s; images of 32x32
    "identity": lambda i, m, s: i,
    "autocontrast": lambda i, m, s: ImageOps.autocontrast(i),
    "equalize": lambda i, m, s: ImageOps.equalize(i),
    "rotate": lambda i, m, s: i.rotate(s * int(m * 30 / 10)),
    "solarize": lambda i, m, s: ImageOps.solarize(i, 256 - int(m * 256 / 10)),
    "color": lambda i, m, s: ImageEnhance.Color(i).enhance(float(m) * 1.8 / 10 + 0.1),
    "contrast": lambda i, m, s: ImageEnhance.Contrast(i).enhance(float(m) * 1.8 / 10 + 0.1),
    "brightness": lambda i, m, s: ImageEnhance.Brightness(i).enhance(float(m) * 1.8 / 10 + 0.1),
    "sharpness": lambda i, m, s: ImageEnhance.Sharpness(i).enhance(float(m) * 1.8 / 10 + 0.1),
    "shear_x": lambda i, m, s: affine(i, 1, s * float(m) * 0.3 / 10, 0, 0, 1, 0),
    "shear_y": lambda i, m, s: affine(i, 1, 0, 0, s * float(m) * 0.3 / 10, 1, 0),
    "translate_x": lambda i, m, s: affine(i, 1, 0, s * int(m * 10 / 10), 0, 1, 0),
    "translate_y": lambda i, m, s: affine(i, 1, 0, 0, 0, 1, s * int(m * 10 / 10)),
    "posterize": lambda i, m, s: ImageOps.posterize(i, 4 - int(m * 4 / 10)),
}
USB = FIXMATCH | {  # v in [0, 1)
    "rotate": lambda i, v, s: i.rotate(-30 + 60 * v),
    "solarize": lambda i, v, s: ImageOps.solarize(i, 256 * v),
    "color": lambda i, v, s: ImageEnhance.Color(i).enhance(0.05 + 0.9 * v),
    "contrast": lambda i, v, s: ImageEnhance.Contrast(i).enhance(0.05 + 0.9 * v),
    "brightness": lambda i, v, s: ImageEnhance.Brightness(i).enhance(0.05 + 0.9 * v),
    "sharpness": lambda i, v, s: ImageEnhance.Sharpness(i).enhance(0.05 + 0.9 * v),
    "shear_x": lambda i, v, s: affine(i, 1, -0.3 + 0.6 * v, 0, 0, 1, 0),
    "shear_y": lambda i, v, s: affine(i, 1, 0, 0, -0.3 + 0.6 * v, 1, 0),
    "translate_x": lambda i, v, s: affine(i, 1, 0, (-0.3 + 0.6 * v) * i.width, 0, 1, 0),
    "translate_y": lambda i, v, s: affine(i, 1, 0, 0, 0, 1, (-0.3 + 0.6 * v) * i.height),
    "posterize": lambda i, v, s: ImageOps.posterize(i, max(1, int(4 + 4 * v))),
}


def batched(operation, sign):
    def apply(images, level):
        parameters = torch.stack([level, torch.full_like(level, sign)])[None]
        only = torch.zeros(1, len(images), dtype=torch.int64)
        return OperationTable({"it": operation}).apply(images, only, parameters)

    return apply


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_fixmatch_operations_are_the_authors_on_every_level(name, sign, difference):
    wrong = difference(batched(_FIXMATCH[name], sign), lambda i, m: FIXMATCH[name](i, m, sign), range(1, 10), (32, 32))
    assert wrong.max() == 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_usb_operations_are_the_authors(name, difference):
    levels = [0.0, 0.013, 0.2, 0.37, 0.49, 0.5, 0.61, 0.77, 0.93, 0.999]
    assert difference(batched(_USB[name], 1), lambda i, v: USB[name](i, v, 1), levels, (32, 32)).max() == 0


@pytest.mark.parametrize("policy", [RandAugment(count=1, cutout=0), RandAugment(form="usb", count=1, cutout=0)])
def test_operations_are_drawn_equally_often_and_applied_half_of_the_time(policy, monkeypatch):
    assert set(_FIXMATCH) == set(_USB) == set(OPERATIONS)
    assert len(OPERATIONS) == 14
    for known in (_FIXMATCH, _USB):
        for number, name in enumerate(OPERATIONS):
            monkeypatch.setitem(known, name, Change(lambda x, *_, number=number: x * 0 + number))
    randaugment._table.cache_clear()
    n = 28_000
    seen = policy(torch.full((n, 1, 1, 1), 99, dtype=torch.uint8), torch.Generator().manual_seed(0)).flatten().long()
    randaugment._table.cache_clear()
    counts = seen.bincount(minlength=100)
    assert abs(counts[99] / n - 0.5) < 0.01
    expected = n * 0.5 / 14
    assert ((counts[:14] - expected) ** 2 / expected).sum() < 34.5  # chi-square, 13 degrees of freedom: p > 0.001


def test_two_operations_act_one_after_the_other(monkeypatch):
    monkeypatch.setitem(_FIXMATCH, "rotate", Change(lambda x, *_: x * 2))
    monkeypatch.setitem(_FIXMATCH, "solarize", Change(lambda x, *_: x + 1))
    randaugment._table.cache_clear()
    policy = RandAugment(probability=1, cutout=0, operations=("rotate", "solarize"))
    seen = policy(torch.full((4000, 1, 1, 1), 5, dtype=torch.uint8), torch.Generator().manual_seed(0)).flatten().long()
    randaugment._table.cache_clear()
    counts = seen.bincount(minlength=21) / 4000
    for result in (20, 11, 12, 7):  # double twice; double, add; add, double; add twice
        assert abs(counts[result] - 0.25) < 0.03


def test_levels_are_whole_1_to_9_and_signs_even():
    images = torch.zeros(9000, 1, 1, 64, dtype=torch.uint8)
    images[..., 32] = 255
    policy = RandAugment(count=1, probability=1.0, cutout=0, operations=("translate_x",), fill=0)
    place = policy(images, torch.Generator().manual_seed(0)).flatten(1).argmax(dim=1) - 32
    moves = {2 * sign * m: 1 / 18 for m in range(1, 10) for sign in (-1, 1)}  # 64 wide: 2 pixels a level
    assert set(place.tolist()) == set(moves)
    for move, share in moves.items():
        assert abs((place == move).float().mean() - share) < 0.012


def test_cutout_is_half_the_side_and_usbs_varies():
    images = torch.zeros(3000, 3, 32, 32, dtype=torch.uint8)
    square = RandAugment(count=0)(images, torch.Generator().manual_seed(0)).eq(127)[:, 0]
    assert square.any(dim=2).sum(dim=1).max() == 16
    assert square.any(dim=1).sum(dim=1).max() == 16
    assert square.flatten(1).sum(dim=1).min() == 64  # a center in the corner
    varied = RandAugment(form="usb", count=0)(images, torch.Generator().manual_seed(0)).eq(127)[:, 0]
    assert varied.any(dim=2).sum(dim=1).unique().tolist() == list(range(1, 17))


def test_usb_boxes_are_what_pillow_draws():
    center, share = torch.tensor([[0.0, 0.5], [0.97, 0.2], [0.4, 0.99]]), torch.tensor([0.31, 0.5, 0.123])
    boxes = _usb_boxes(torch.zeros(3, 3, 32, 32), center.double(), share.double())
    for (x, y), v, box in zip((center.double() * 31 + 1).tolist(), (share.double() * 32).tolist(), boxes, strict=True):
        picture = Image.new("L", (32, 32))
        left, top = int(max(0, x - v / 2.0)), int(max(0, y - v / 2.0))
        ImageDraw.Draw(picture).rectangle((left, top, min(32, left + v), min(32, top + v)), 255)
        drawn = picture.getbbox()
        assert drawn == (box[0], box[1], min(box[2], 32), min(box[3], 32))


def test_fill_reaches_the_corners():
    images = torch.full((200, 1, 32, 32), 255, dtype=torch.uint8)
    turned = RandAugment(count=1, probability=1, cutout=0, operations=("rotate",), fill=33)
    assert turned(images, torch.Generator().manual_seed(0))[:, 0, 0, 0].eq(33).float().mean() > 0.8
