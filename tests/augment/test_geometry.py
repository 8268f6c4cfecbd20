import pytest
import torch
from PIL import Image, ImageOps

from wazuka.augment import geometry

AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR
NUMBERS = torch.linspace(-1, 1, 41, dtype=torch.float64)
SIZES = [(32, 32), (32, 27), (8, 8)]


def translate(image, p, **kind):
    return image.transform(image.size, AFFINE, (1, 0, p, 0, 1, -p), **kind)


def shear_x(image, p, **kind):
    return image.transform(image.size, AFFINE, (1, p, 0, 0, 1, 0), **kind)


def shear_y(image, p, **kind):
    return image.transform(image.size, AFFINE, (1, 0, 0, p, 1, 0), **kind)


def slant(images, p, *kind):
    return geometry.affine(images, geometry.around_center(geometry.size_of(images), shear=p), *kind)


def pillow_slant(image, p, **kind):
    return image.transform(image.size, AFFINE, (1, -p, p * image.height / 2, 0, 1, 0), **kind)


def scale(image, p, **kind):
    x, y = image.width / 2, image.height / 2
    return image.transform(image.size, AFFINE, (1 / p, 0, x - x / p, 0, 1 / p, y - y / p), **kind)


OPERATIONS = {
    "rotate": (geometry.rotate, lambda image, p, **kind: image.rotate(p, **kind), NUMBERS * 180),
    "scale": (geometry.scale, scale, 1.27 + 0.91 * NUMBERS),
    "slant": (slant, pillow_slant, NUMBERS * 0.51),
    "translate": (lambda x, p, *a: geometry.translate(x, p, -p, *a), translate, NUMBERS * 9),
    "shear_x": (lambda x, p, *a: geometry.shear(x, p, 0 * p, *a), shear_x, NUMBERS * 0.51),
    "shear_y": (lambda x, p, *a: geometry.shear(x, 0 * p, p, *a), shear_y, NUMBERS * 0.51),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_nearest_maps_give_pillows_pixels(name, size, difference):
    ours, pillow, parameters = OPERATIONS[name]
    assert difference(ours, pillow, parameters.tolist(), size).max() == 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_bilinear_maps_are_within_one_level_of_pillows(name, difference):
    ours, pillow, parameters = OPERATIONS[name]
    wrong = difference(
        lambda x, p: ours(x, p, "bilinear"),
        lambda image, p: pillow(image, p, resample=BILINEAR),
        (parameters * 0.97 + 0.0137).tolist(),  # no sample within float32's error of the border
    )
    assert wrong.max() <= 1
    assert (wrong > 0).float().mean() < 0.01


@pytest.mark.parametrize("resample", ["nearest", "bilinear"])
def test_an_identity_map_changes_nothing_and_fill_appears_outside(resample):
    images = torch.randint(0, 256, (3, 3, 9, 11), dtype=torch.uint8)
    still = torch.zeros(3)
    assert torch.equal(geometry.translate(images, still, still, resample), images)
    moved = geometry.translate(images, still + 2, still - 1, resample, fill=200)
    assert torch.equal(moved[:, :, 1:, :-2], images[:, :, :-1, 2:])
    assert moved[:, :, :1].eq(200).all()
    assert moved[..., -2:].eq(200).all()


def test_one_map_of_everything_equals_its_steps():
    images = torch.zeros(1, 1, 65, 65, dtype=torch.uint8)
    images[:, :, 20:45, 28:37] = 255
    ones = torch.ones(1, dtype=torch.float64)
    degrees, factor, right, down = ones * 37, ones * 1.3, ones * 6, ones * -4
    maps = geometry.around_center((65, 65), degrees=degrees, factor=factor, shear=0.2 * ones, right=right, down=down)
    at_once = geometry.affine(images, maps, "bilinear")
    steps = geometry.scale(images, factor, "bilinear")
    steps = geometry.affine(steps, geometry.around_center((65, 65), shear=0.2 * ones), "bilinear")
    steps = geometry.translate(geometry.rotate(steps, degrees, "bilinear"), -right, -down, "bilinear")
    assert (at_once.float() - steps.float()).abs().mean() < 2.5  # each step blurs the edges a little
    assert at_once.float().mean() > 20


def test_flips_are_pillows_and_choose_their_images(difference):
    mirrored = difference(lambda x, p: geometry.flip(x, p > 0), lambda i, p: ImageOps.mirror(i) if p else i, [0, 1] * 4)
    assert mirrored.max() == 0
    turned = difference(
        lambda x, p: geometry.flip(x, p < 0, p > 0), lambda i, p: ImageOps.flip(i) if p else i, [0, 1] * 4
    )
    assert turned.max() == 0


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (4, -4), (-3, 1), (1, 4)])
def test_a_reflected_shift_is_a_crop_of_the_reflected_image(down, right, flipped):
    images = torch.randint(0, 256, (2, 3, 10, 7), dtype=torch.uint8)
    source = images.flip(3) if flipped else images
    padded = torch.nn.functional.pad(source.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    expected = padded[:, :, 4 - down : 14 - down, 4 - right : 11 - right]
    shifted = geometry.reflected_shift(images, *torch.tensor([[down] * 2, [right] * 2]), torch.tensor([flipped] * 2))
    assert torch.equal(shifted, expected)


def test_images_shift_one_by_one_and_a_single_row_survives():
    images = torch.randint(0, 256, (3, 1, 6, 6), dtype=torch.uint8)
    down, right = torch.tensor([0, 2, -1]), torch.tensor([1, 0, 3])
    together = geometry.reflected_shift(images, down, right)
    alone = [geometry.reflected_shift(images[n : n + 1], down[n : n + 1], right[n : n + 1]) for n in range(3)]
    assert torch.equal(together, torch.cat(alone))
    row = images[:, :, :1]
    assert torch.equal(geometry.reflected_shift(row, torch.tensor([3, 0, 1]), torch.zeros(3, dtype=torch.int64)), row)


RESIZE = dict(zip(geometry.FILTERS, (1, 3, 2, 4, 5, 0), strict=True))  # the numbers of Pillow's Image.Resampling


@pytest.mark.parametrize("name", geometry.FILTERS)
def test_rescale_is_pillows_crop_and_resize(name, difference):
    def ours(images, margin):
        return geometry.rescale(images, margin, torch.full((len(images),), geometry.FILTERS.index(name)))

    def pillow(image, p):
        width, height = image.size
        box = (p * width, p * height, width * (1 - p), height * (1 - p))
        return image.crop(box).resize(image.size, RESIZE[name])

    margins = [0.0, 0.03, 0.05, 0.08, 0.11, 0.14, 0.2, 0.25]
    wrong = difference(ours, pillow, margins, (32, 31))  # 31 is prime: no sample falls between two pixels, a tie
    assert wrong.max() <= (0 if name in ("nearest", "box") else 1)
    assert (wrong > 0).float().mean() < 0.03


def test_a_crop_may_differ_for_each_image_and_in_its_method():
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 16, 16], [2, 3, 9, 12], [0, 0, 1, 1], [15, 15, 16, 16], [4, 0, 12, 16], [1, 1, 3, 9]])
    methods = torch.arange(6)
    mixed = geometry.resized_crop(images, boxes, methods)
    for n, name in enumerate(geometry.FILTERS):
        assert torch.equal(mixed[n : n + 1], geometry.resized_crop(images[n : n + 1], boxes[n : n + 1], name))
    assert torch.equal(mixed[0], images[0])
    assert mixed[2].eq(images[2, :, :1, :1]).all()  # one pixel fills the image


def test_cutout_paints_exactly_its_box_and_is_clipped():
    images = torch.zeros(3, 2, 6, 5, dtype=torch.uint8)
    painted = geometry.cutout(images, torch.tensor([[1, 2, 3, 4], [-4, -4, 2, 1], [2, 2, 2, 5]]), fill=9)
    expected = images.clone()
    expected[0, :, 2:4, 1:3] = 9
    expected[1, :, :1, :2] = 9
    assert torch.equal(painted, expected)
    boxes = geometry.centered_boxes(torch.tensor([3]), torch.tensor([2]), torch.tensor([4]))
    assert boxes.tolist() == [[1, 0, 5, 4]]
