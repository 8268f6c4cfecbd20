import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from wazuka.augment import color

FACTORS = [0.0, 0.1, 0.28, 0.5, 0.77, 0.999, 1.0, 1.001, 1.18, 1.72, 2.0, 3.3]
OPERATIONS = {
    "brightness": (color.brightness, lambda i, p: ImageEnhance.Brightness(i).enhance(p), FACTORS),
    "contrast": (color.contrast, lambda i, p: ImageEnhance.Contrast(i).enhance(p), FACTORS),
    "color": (color.color, lambda i, p: ImageEnhance.Color(i).enhance(p), FACTORS),
    "invert": (lambda x, p: color.invert(x), lambda i, p: ImageOps.invert(i), [0.0] * 5),
    "solarize": (color.solarize, ImageOps.solarize, [0, 0.3, 1, 25.6, 128, 200.5, 254, 255, 255.2, 256]),
    "posterize": (color.posterize, lambda i, p: ImageOps.posterize(i, int(p)), [1, 2, 3, 4, 5, 6, 7, 8]),
    "autocontrast": (lambda x, p: color.autocontrast(x), lambda i, p: ImageOps.autocontrast(i), [0.0] * 20),
    "equalize": (lambda x, p: color.equalize(x), lambda i, p: ImageOps.equalize(i), [0.0] * 20),
    "gray": (lambda x, p: color.gray(x), lambda i, p: i.convert("L").convert(i.mode), [0.0] * 5),
}


@pytest.mark.parametrize("size", [(32, 27), (8, 8), (3, 90)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_level_is_pillows(name, size, difference):
    assert difference(*OPERATIONS[name], size).max() == 0


def test_blend_is_pillows_within_and_beyond_its_ends(difference):
    turned = difference(
        lambda x, p: color.blend(x, color.invert(x), p),
        lambda i, p: Image.blend(i, ImageOps.invert(i), p),
        [-0.5, 0.0, 0.13, 0.5, 0.9, 1.0, 1.6],
    )
    assert turned.max() == 0


def test_autocontrast_agrees_on_every_range_of_levels():
    ramp = torch.arange(256, dtype=torch.uint8)
    for low, high in [(0, 255), (1, 255), (10, 200), (100, 101), (7, 7), (31, 137)]:
        image = ramp.clamp(low, high).view(1, 1, 16, 16)
        expected = list(ImageOps.autocontrast(Image.fromarray(image[0, 0].numpy())).tobytes())
        assert color.autocontrast(image).flatten().tolist() == expected


def test_equalize_clips_the_levels_that_pillow_clips():
    # 270 pixels beside the brightest: steps of one pixel, so that the table would run past 255
    image = torch.cat([torch.arange(250), torch.full((20,), 249), torch.full((18,), 255)]).to(torch.uint8)
    image = image.view(1, 1, 16, 18)
    expected = list(ImageOps.equalize(Image.fromarray(image[0, 0].numpy())).tobytes())
    assert color.equalize(image).flatten().tolist() == expected


def test_the_neutral_parameter_changes_nothing():
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    one = torch.ones(2)
    for operation in (color.brightness, color.contrast, color.color):
        assert torch.equal(operation(images, one), images)
    assert torch.equal(color.solarize(images, 256 * one), images)
    assert torch.equal(color.posterize(images, 8 * one), images)
    assert torch.equal(color.hue(images, 0 * one), images)
    assert color.posterize(images, 0 * one).eq(0).all()
    assert torch.equal(color.invert(color.invert(images)), images)


def test_gray_images_have_no_color_to_change():
    images = torch.randint(0, 256, (2, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(color.color(images, torch.tensor([0.0, 3.0])), images)
    assert torch.equal(color.hue(images, torch.tensor([0.3, -0.5])), images)
    rgb = images.expand(-1, 3, -1, -1)
    assert torch.equal(color.hue(rgb, torch.tensor([0.3, -0.5])), rgb)


def test_hue_turns_the_circle():
    red, green, blue = torch.eye(3).mul(200).to(torch.uint8).view(3, 3, 1, 1)
    images = torch.stack([red, green, blue])
    third = torch.full((3,), 1 / 3)
    assert torch.equal(color.hue(images, third), torch.stack([green, blue, red]))
    assert torch.equal(color.hue(images, -third), torch.stack([blue, red, green]))
    yellow = torch.tensor([200, 200, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert torch.equal(color.hue(red[None], torch.tensor([1 / 6])), yellow)
    photo = torch.randint(0, 256, (4, 3, 9, 9), dtype=torch.uint8)
    turn = torch.tensor([0.1, -0.3, 0.5, 0.01])
    back = color.hue(color.hue(photo, turn), -turn)
    assert (back.int() - photo.int()).abs().max() <= 3  # rounded twice


def test_hue_is_near_pillows_eight_bit_hue():
    photo = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    hsv = Image.fromarray(photo[0].movedim(0, 2).numpy()).convert("HSV")
    hue, saturation, value = hsv.split()
    turned = Image.merge("HSV", (hue.point(lambda h: (h + 51) % 256), saturation, value)).convert("RGB")
    expected = torch.frombuffer(bytearray(turned.tobytes()), dtype=torch.uint8).view(40, 40, 3).movedim(2, 0)
    wrong = (color.hue(photo, torch.tensor([51 / 255]))[0].int() - expected.int()).abs().float()
    assert wrong.mean() < 3
    assert wrong.max() <= 12


def test_each_image_gets_its_own_parameter():
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    parameters = {
        color.brightness: [0.1, 0.5, 1.5, 1.0],
        color.contrast: [0.1, 0.5, 1.5, 1.0],
        color.color: [0.0, 0.5, 1.9, 1.0],
        color.solarize: [0.0, 50.0, 200.0, 256.0],
        color.posterize: [1.0, 2.0, 5.0, 8.0],
        color.hue: [0.1, -0.4, 0.0, 0.5],
    }
    for operation, values in parameters.items():
        together = operation(images, torch.tensor(values))
        alone = [operation(images[n : n + 1], torch.tensor(values[n : n + 1])) for n in range(4)]
        assert torch.equal(together, torch.cat(alone)), operation.__name__
