"""Every odd kind of file, made for real by Pillow, against what a person would see."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from wazuka.data.decode import Shape, Unreadable, decode, measure, resize
from wazuka.errors import UserError

from .pictures import encoded, picture

NATIVE = Shape()


def pixels(data: bytes, shape: Shape = NATIVE) -> np.ndarray:
    return decode(data, shape).pixels


def test_gray_and_color_come_out_exactly():
    gray, color = picture(0, (5, 7)), picture(1, (5, 7), 3)
    np.testing.assert_array_equal(pixels(encoded(gray)), np.asarray(gray)[None])
    np.testing.assert_array_equal(pixels(encoded(color)), np.asarray(color).transpose(2, 0, 1))


def test_gray_stored_as_rgb_is_one_plane_unless_three_are_wanted():
    gray = picture(0)
    data = encoded(gray.convert("RGB"))
    np.testing.assert_array_equal(pixels(data), np.asarray(gray)[None])
    np.testing.assert_array_equal(pixels(data, Shape(channels=3)), np.repeat(np.asarray(gray)[None], 3, axis=0))


def test_color_is_turned_gray_as_pillow_does():
    color = picture(0, channels=3)
    np.testing.assert_array_equal(pixels(encoded(color), Shape(channels=1))[0], np.asarray(color.convert("L")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [None, (8, 8), (6, 10)])
def test_exif_orientation_is_undone_in_every_format(kind, orientation, size):
    image = Image.new("L", (40, 24), 40)
    image.paste(240, (0, 0, 20, 12))  # a bright corner shows which way is up
    image.paste(140, (20, 0, 40, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = encoded(image, kind, exif=exif, **options)
    upright = image.copy()
    upright.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(upright)
    got = decode(data, Shape(size=size, fit="squash"))
    assert got.native == (upright.height, upright.width)
    expected = pixels(encoded(upright), Shape(size=size, fit="squash"))
    assert got.pixels.shape == expected.shape
    assert np.abs(got.pixels.astype(int) - expected).max() <= 12  # JPEG rounds
    assert measure(data) == (upright.height, upright.width)


def test_cmyk_jpeg_has_the_colors_a_viewer_shows():
    for color in ((255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)):
        data = encoded(Image.new("RGB", (16, 16), color).convert("CMYK"), "JPEG", quality=100)
        assert Image.open(io.BytesIO(data)).mode == "CMYK"
        shown = pixels(data, Shape(channels=3))[:, 8, 8]
        np.testing.assert_allclose(shown, color, atol=6)


def test_palette_is_looked_up():
    color = picture(0, channels=3).quantize(16)
    np.testing.assert_array_equal(pixels(encoded(color)), np.asarray(color.convert("RGB")).transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels(encoded(color, "GIF")), np.asarray(color.convert("RGB")).transpose(2, 0, 1))


def test_transparent_palette_entries_become_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (2, 0, 4, 4))
    for data in (encoded(image, "PNG", transparency=0), encoded(image, "GIF", transparency=0)):
        got = pixels(data)
        assert got[:, 0, 0].tolist() == [255, 255, 255]
        assert got[:, 0, 3].tolist() == [200, 100, 50]


def test_alpha_is_laid_over_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51)])
    got = pixels(encoded(image))
    assert got[:, 0, 0].tolist() == [200, 100, 0]
    assert got[:, 0, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(got[:, 0, 2], np.array([200, 100, 0]) * 0.2 + 255 * 0.8, atol=1)


def test_gray_with_alpha_stays_gray_over_white():
    image = Image.new("LA", (2, 1))
    image.putdata([(90, 255), (90, 0)])
    assert pixels(encoded(image)).tolist() == [[[90, 255]]]


def test_gray_with_a_transparent_value_stays_gray():
    image = Image.fromarray(np.array([[10, 90]], dtype=np.uint8))
    assert pixels(encoded(image, transparency=10)).tolist() == [[[255, 90]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(values), kind)).tolist() == [[[0, 1, 128, 255]]]


def test_big_endian_sixteen_bit_tiff():
    values = np.array([[0, 257, 32768, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (4, 1), values.tobytes())
    assert pixels(encoded(image, "TIFF")).tolist() == [[[0, 1, 128, 255]]]


def test_twelve_bits_in_sixteen_are_told():
    got = decode(encoded(Image.fromarray(np.array([[0, 4095]], dtype=np.uint16))), NATIVE)
    assert got.pixels.tolist() == [[[0, 16]]]
    assert "comes out dark" in got.remark


def test_thirty_two_bit_integers():
    assert pixels(encoded(Image.fromarray(np.array([[0, 2**31 - 1]], dtype=np.int32)), "TIFF")).tolist() == [[[0, 127]]]
    assert pixels(encoded(Image.fromarray(np.array([[0, 255]], dtype=np.int32)), "TIFF")).tolist() == [[[0, 255]]]
    assert pixels(encoded(Image.fromarray(np.array([[-5, 65535]], dtype=np.int32)), "TIFF")).tolist() == [[[0, 255]]]


@pytest.mark.parametrize(
    ("values", "expected", "told"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255], False),
        ([0.0, 100.4, 255.0], [0, 100, 255], False),
        ([-1.0, 0.0, 1.0], [0, 128, 255], True),
        ([0.0, np.nan, 1.0], [0, 0, 255], False),
    ],
)
def test_float_tiff(values, expected, told):
    got = decode(encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"), NATIVE)
    assert got.pixels.tolist() == [[expected]]
    assert ("stretched" in got.remark) == told


def test_one_bit():
    image = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8)).convert("1")
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        assert pixels(encoded(image, kind)).tolist() == [[[0, 255, 255]]]


def test_lab_tiff_becomes_rgb():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = Image.new("RGB", (4, 4), (200, 40, 60))
    data = encoded(ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB")), "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "LAB"
    np.testing.assert_allclose(pixels(data)[:, 1, 1], (200, 40, 60), atol=4)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame_and_a_remark(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    got = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), NATIVE)
    assert got.pixels[:, 4, 4].tolist() == [255, 0, 0]
    assert "first frame" in got.remark


@pytest.mark.parametrize("kind", ["BMP", "PPM", "JPEG2000", "ICO", "TGA"])
def test_other_formats(kind):
    image = picture(0, (16, 16), 3)
    data = encoded(image, kind)
    if kind == "TGA":  # it has no mark of its own, so text could pass for it
        with pytest.raises(Unreadable, match="not an image"):
            decode(data, NATIVE)
    else:
        np.testing.assert_array_equal(pixels(data), np.asarray(image).transpose(2, 0, 1))


def test_postscript_is_never_run():
    data = encoded(picture(0, channels=3), "EPS")
    with pytest.raises(Unreadable, match="not an image"):
        decode(data, NATIVE)


# --- what can't be read


def test_empty_and_foreign_files_say_so():
    with pytest.raises(Unreadable, match="an empty file"):
        decode(b"", NATIVE)
    for data in (b"hello, this is a text", b"%PDF-1.7 ...", bytes(1000), b"\0" + np.random.bytes(999)):
        with pytest.raises(Unreadable, match="not an image"):
            decode(data, NATIVE)
    with pytest.raises(Unreadable, match="HEIC"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), NATIVE)
    with pytest.raises(Unreadable, match=r"damaged|truncated"):
        decode(b"\x89PNG\r\n\x1a\n" + b"nonsense" * 9, NATIVE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_files_are_refused_whatever_the_format(kind, share):
    data = encoded(picture(0, (64, 64), 3), kind)
    with pytest.raises(Unreadable, match=r"truncated|damaged|not an image"):
        decode(data[: int(len(data) * share)], NATIVE)


def test_truncation_is_called_truncation():
    data = encoded(picture(0, (64, 64), 3), "JPEG")
    with pytest.raises(Unreadable, match=r"^truncated: the file ends too early$"):
        decode(data[: len(data) // 2], NATIVE)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bytes_never_raise_anything_but_unreadable():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "ICO", "PPM"):
        data = encoded(picture(0, (24, 24), 3), kind)
        for _ in range(40):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 8):
                broken[place] = rng.integers(0, 256)
            with contextlib.suppress(Unreadable):
                decode(bytes(broken), Shape((16, 16)))


def test_decompression_bomb_is_refused_from_its_header():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (13_500, 60_000):  # above our limit, and far above Pillow's
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        with pytest.raises(Unreadable, match="pixels"):
            decode(data, NATIVE)
        with pytest.raises(Unreadable, match="pixels"):
            measure(data)


# --- size


def test_crop_takes_the_middle_of_the_long_side():
    image = Image.new("L", (90, 30), 0)
    image.paste(200, (30, 0, 60, 30))  # the middle third is bright, and nothing else may be left
    got = pixels(encoded(image), Shape((10, 10)))
    assert got.shape == (1, 10, 10)
    assert got[:, :, 1:-1].min() >= 195


def test_a_crop_without_scaling_does_not_blur():
    image = picture(0, (12, 20))
    np.testing.assert_array_equal(pixels(encoded(image), Shape((12, 12)))[0], np.asarray(image)[:, 4:16])


def test_pad_keeps_everything_and_fills_with_black():
    got = pixels(encoded(Image.new("L", (40, 20), 200)), Shape((20, 20), fit="pad"))[0]
    assert (got[5:15] == 200).all()
    assert (got[:5] == 0).all()
    assert (got[15:] == 0).all()


def test_squash_keeps_everything_and_stretches():
    image = Image.new("L", (40, 20), 50)
    image.paste(200, (20, 0, 40, 20))
    got = pixels(encoded(image), Shape((20, 20), fit="squash"))[0]
    assert (got[:, :8] == 50).all()
    assert (got[:, 12:] == 200).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_needles_and_dots_have_every_shape(kind, fit):
    for size in ((1, 3000), (3000, 1), (1, 1), (2, 5)):
        got = pixels(encoded(Image.new("L", size[::-1], 120), kind), Shape((64, 48), fit=fit))
        assert got.shape == (1, 64, 48)
        assert 118 <= got.max() <= 122
        assert fit == "pad" or got.min() >= 118


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255  # by nearest neighbor this would come out black or white
    got = pixels(encoded(Image.fromarray(stripes)), Shape((16, 16)))
    np.testing.assert_allclose(got[:, 2:-2, 2:-2], 127.5, atol=3)


def test_jpeg_decoded_small_looks_like_jpeg_decoded_whole():
    smooth = picture(0, (9, 9), 3).resize((900, 700), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=95)
    whole = encoded(Image.open(io.BytesIO(data)))
    for fit in ("crop", "pad", "squash"):
        shape = Shape((64, 64), fit=fit)
        assert np.abs(pixels(data, shape).astype(int) - pixels(whole, shape)).max() <= 4


def test_arrays_are_resized_by_the_rule_for_files():
    image = picture(0, (40, 30), 3)
    shape = Shape((16, 16))
    np.testing.assert_array_equal(
        resize(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)), shape), pixels(encoded(image), shape)
    )


def test_impossible_shapes_are_told():
    for bad in ({"size": (0, 5)}, {"size": (5, 9999)}, {"channels": 2}, {"fit": "zoom"}):
        with pytest.raises(UserError, match="must"):
            Shape(**bad)
