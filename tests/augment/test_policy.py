import math

import pytest
import torch

from wazuka.augment import (
    AffineStrong,
    Chain,
    ColorJitter,
    CTAugment,
    Noise,
    Plain,
    RandAugment,
    RandomResizedCrop,
    Weak,
)
from wazuka.augment.policy import random_cutout

POLICIES = {
    "plain": Plain(),
    "weak": Weak(flip=True),
    "subpixel": Weak(shift=0.1, subpixel=True, flip=True),
    "affine": AffineStrong(),
    "randaugment": RandAugment(),
    "usb": RandAugment.usb(),
    "chain": Chain((Weak(flip=True), RandAugment())),
    "ctaugment": CTAugment().strong,
    "probe": lambda images, generator: CTAugment().probe(images, generator)[0],
    "crop": RandomResizedCrop(),
    "jitter": ColorJitter(blur=0.5),
    "noise": Noise(),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 24, channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, height, width), generator=seeded(n), dtype=torch.uint8)


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (28, 20)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_keeps_shape_and_input_and_repeats_with_its_seed(name, channels, size):
    policy, images = POLICIES[name], pictures(24, channels, *size)
    before = images.clone()
    changed = policy(images, seeded(3))
    assert torch.equal(images, before)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    assert torch.equal(changed, policy(images, seeded(3)))
    if name != "plain":
        assert not torch.equal(changed, images)
        assert not torch.equal(changed, policy(images, seeded(4)))
    assert policy(images[:0], seeded()).shape == images[:0].shape
    assert policy(images[:1], seeded()).shape == images[:1].shape


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "plain"])
def test_each_image_is_changed_in_its_own_way(name):
    images = pictures(1).expand(32, -1, -1, -1)
    changed = POLICIES[name](images, seeded(1))
    assert len(changed.flatten(1).unique(dim=0)) > 8


@pytest.mark.parametrize("name", POLICIES)
def test_a_draw_moves_the_generator_on(name):
    generator = seeded()
    first, second = POLICIES[name](pictures(), generator), POLICIES[name](pictures(), generator)
    assert torch.equal(first, second) == (name == "plain")


def test_weak_moves_by_every_whole_pixel_equally_often_and_mirrors_half():
    images = torch.zeros(8000, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 4, 3] = 255  # far enough from the border that a reflection does not come back
    at = Weak(flip=True, shift=0.25)(images, seeded()).flatten(1).argmax(dim=1)
    down, column = at // 8 - 4, at % 8
    for move in range(-2, 3):
        assert abs((down == move).float().mean() - 0.2) < 0.02
    # 3 stays within 1..5, its mirror 4 within 2..6: 1 comes from no mirror only, 6 from a mirror only
    assert column.unique().tolist() == [1, 2, 3, 4, 5, 6]
    for end in (1, 6):
        assert abs((column == end).float().mean() - 0.1) < 0.015


def test_weak_without_flip_or_shift_does_nothing_and_lengths_scale_with_the_side():
    images = pictures()
    assert torch.equal(Weak(shift=0)(images, seeded()), images)
    assert torch.equal(Weak(shift=0, subpixel=True)(images, seeded()), images)
    for side, reach in ((32, 4), (96, 12), (8, 1)):
        spot = torch.zeros(3000, 1, side, side, dtype=torch.uint8)
        spot[:, :, side // 2, side // 2] = 1
        row = Weak()(spot, seeded()).flatten(1).argmax(dim=1) // side - side // 2
        assert (row.min().item(), row.max().item()) == (-reach, reach)


def test_subpixel_moves_keep_the_mass_and_stay_in_reach():
    images = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 3:5, 3:5] = 240
    moved = Weak(shift=0.1, subpixel=True)(images, seeded()).float()[:, 0]
    mass = moved.sum(dim=(1, 2))
    assert (mass - 960).abs().max() < 14  # truncated levels
    place = (moved.sum(dim=1) * torch.arange(8)).sum(dim=1) / mass - 3.5
    assert 0.75 < place.max() < 0.85
    assert -0.85 < place.min() < -0.75
    assert abs(place.mean()) < 0.03


def test_subpixel_mirrors_half_exactly():
    images = pictures(400, 3, 9, 12)
    changed = Weak(flip=True, shift=0, subpixel=True)(images, seeded())
    mirrored = changed.eq(images.flip(3)).flatten(1).all(dim=1)
    assert (mirrored | changed.eq(images).flatten(1).all(dim=1)).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.1


def test_affine_strong_at_rest_is_the_identity_and_each_part_acts():
    rest = {"rotation": 0, "scale": 0, "shear": 0, "translation": 0, "contrast": 0, "cutout": 0}
    images = pictures()
    assert torch.equal(AffineStrong(**rest)(images, seeded()), images)
    for part, strength in {"rotation": 30, "scale": 0.2, "shear": 0.3, "translation": 0.2, "contrast": 0.5}.items():
        changed = AffineStrong(**{**rest, part: strength})(images, seeded())
        assert (changed != images).flatten(1).any(dim=1).float().mean() > 0.9, part


def test_cutout_covers_the_asked_square_wherever_its_center_lies():
    images = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    center = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.999, 0.5], [0.25, 0.75]])
    covered = random_cutout(images, center, 0.5).eq(127).flatten(1).sum(dim=1)
    assert covered.tolist() == [256, 64, 144, 256]  # 16x16; clipped to 8x8; to 9x16
    assert torch.equal(random_cutout(images, center, 0.0), images)


def test_random_resized_crops_have_the_asked_areas_and_shapes():
    ramp = torch.arange(64, dtype=torch.uint8)
    images = torch.stack([ramp[None].expand(64, -1), ramp[:, None].expand(-1, 64)])[None].expand(4000, -1, -1, -1)
    policy = RandomResizedCrop(area=(0.25, 1.0), aspect=(0.5, 2.0), flip=True, method="nearest")
    columns, rows = policy(images, seeded()).long().unbind(dim=1)
    first, last = columns[:, 0, 0], columns[:, 0, -1]
    wide, high = (last - first).abs() + 1, rows[:, -1, 0] - rows[:, 0, 0] + 1
    share, shape = wide * high / 64**2, wide / high
    assert share.min() > 0.22
    assert share.max() <= 1
    assert shape.min() > 0.45
    assert shape.max() < 2.2
    assert abs(shape.log().mean()) < 0.03
    assert abs((first > last).float().mean() - 0.5) < 0.03
    whole = RandomResizedCrop(area=(1, 1), aspect=(1, 1), flip=False)
    assert torch.equal(whole(images[:2], seeded()), images[:2])


def test_a_crop_that_never_fits_falls_back_to_the_largest_centered_box():
    image = torch.arange(12, dtype=torch.uint8).expand(1, 1, 4, 12)
    square = RandomResizedCrop(area=(1, 1), aspect=(1, 1), flip=False, method="nearest")(image, seeded())
    assert square[0, 0, 0].tolist() == [4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7]


def test_jitter_changes_the_asked_share_and_can_only_gray():
    images = pictures(400, 3, 6, 6)
    changed = ColorJitter(gray=0, probability=0.8)(images, seeded()).ne(images).flatten(1).any(dim=1)
    assert abs(changed.float().mean() - 0.8) < 0.06
    gray = ColorJitter(gray=1, probability=0)(images, seeded())
    assert gray.eq(gray[:, :1]).all()
    neutral = ColorJitter(brightness=0, contrast=0, saturation=0, hue=0, gray=0, probability=1)
    assert torch.equal(neutral(images, seeded()), images)


def test_a_chain_is_its_links_in_order():
    weak, strong, generator = Weak(), RandAugment(), seeded()
    assert torch.equal(
        Chain((weak, strong))(pictures(), seeded()), strong(weak(pictures(), generator), generator)
    )


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        (Weak, {"shift": 1.0}), (Weak, {"shift": -0.1}), (Weak, {"fill": 256}),
        (AffineStrong, {"scale": 1.0}), (AffineStrong, {"rotation": -1}), (AffineStrong, {"shear": math.nan}),
        (AffineStrong, {"contrast": 1.1}), (AffineStrong, {"cutout": 2}), (AffineStrong, {"translation": 1}),
        (RandomResizedCrop, {"area": (0, 1)}), (RandomResizedCrop, {"aspect": (2, 1)}),
        (RandomResizedCrop, {"method": "cubic"}), (RandomResizedCrop, {"tries": 0}),
        (ColorJitter, {"hue": 0.6}), (ColorJitter, {"brightness": -1}), (ColorJitter, {"gray": 1.5}),
        (Noise, {"std": -1}),
        (RandAugment, {"form": "timm"}), (RandAugment, {"count": -1}), (RandAugment, {"strongest": 11}),
        (RandAugment, {"probability": 1.1}), (RandAugment, {"operations": ("flip",)}),
        (RandAugment, {"operations": ()}), (CTAugment, {"depth": 0}), (CTAugment, {"decay": 1.0}),
        (CTAugment, {"threshold": 2}), (CTAugment, {"strict": "x"}),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(policy, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        policy(**settings)
