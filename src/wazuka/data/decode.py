"""One encoded picture in, one small array out. Every odd kind of file that people have comes through here.

What is done, in order:
- the header is read; a picture beyond MAX_PIXELS is refused before a pixel is decoded
- a JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size (Pillow's draft mode, at least twice the
  size wanted, so that quality does not suffer)
- pixels become gray or RGB at 8 bits: palettes are looked up, CMYK and LAB are converted, transparent pixels are laid
  over white, 16-bit gray is divided by 257 (white stays white)
- the picture is resized with antialiasing, then turned upright as its EXIF or XMP orientation says
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from wazuka.errors import UserError

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: half a gigabyte once decoded
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Named one by one: the rest of Pillow's list runs other programs on the file (EPS) or accepts almost any bytes (TGA).
_FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000"),
    *("ICO", "ICNS", "PCX", "SGI", "DDS", "PSD", "QOI"),
)


class Unreadable(Exception):
    """This picture can't be used; the text is the reason, for a person."""


class Picture(NamedTuple):
    """pixels (C, H, W) uint8; native (H, W) of the upright picture in the file; remark: what a person should know."""

    pixels: np.ndarray
    native: tuple[int, int]
    remark: str


@dataclass(frozen=True)
class Shape:
    """How all pictures of a set are made alike; None means: decided from the pictures.

    size       (height, width) in pixels
    channels   1 gray, 3 RGB
    fit        what happens to another aspect ratio: "crop" scales to cover the size and cuts the center out,
               "pad" scales to fit inside and fills with black, "squash" stretches
    common     pixels a side where no size is given and the pictures share no small one
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    fit: str = "crop"
    common: int = 64

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= side <= 4096 for side in self.size):
            raise UserError(f"size must lie between 1 and 4096 pixels, got {self.size[0]} x {self.size[1]}")
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1 (gray) or 3 (RGB), got {self.channels}")
        if not 1 <= self.common <= 4096:
            raise UserError(f"common must lie between 1 and 4096 pixels, got {self.common}")
        if self.fit not in ("crop", "pad", "squash"):
            raise UserError(f'fit must be "crop", "pad" or "squash", got "{self.fit}"')


def measure(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright picture, from the header alone; raises Unreadable."""
    with _opened(data) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def decode(data: bytes, shape: Shape) -> Picture:
    """Decode one file's bytes to `shape`; raises Unreadable.

    Where shape.size is None the picture keeps its size; where shape.channels is None it comes back as one plane if it
    is gray (also when stored as RGB with three equal planes) and as three if not.
    """
    with _opened(data) as image:
        remark = "an animation, of which the first frame is used" if _animated(image) else ""
        turn = _orientation(image)
        width, height = image.size
        native = (width, height) if turn >= 5 else (height, width)
        size = shape.size
        if size is not None and turn >= 5:
            size = size[::-1]  # resized first, turned after: few pixels turn faster than many
        try:
            if size is not None and image.format in ("JPEG", "MPO"):
                scale = 2 * _scale(image.size, size, shape.fit)
                image.draft(None, (round(width * scale) + 1, round(height * scale) + 1))
            image.load()
            plain, dark = _plain(image)
        except MemoryError:
            raise Unreadable(f"too large for this machine's memory: {width} x {height} pixels") from None
        except Exception as error:  # a decoder fed with damaged bytes may raise anything
            raise Unreadable(_reason(error)) from None
    if size is not None:
        plain = _resized(plain, size, shape.fit)
    if turn in _TURNS:
        plain = plain.transpose(_TURNS[turn])
    if shape.channels is not None:
        plain = plain.convert("L" if shape.channels == 1 else "RGB")
    return Picture(_planes(plain, shape.channels), native, remark or dark)


def resize(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    """(C, H, W) uint8 -> the size of `shape`, with the rule that files are resized by."""
    if shape.size is None or pixels.shape[1:] == shape.size:
        return pixels
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return _planes(_resized(image, shape.size, shape.fit), len(pixels))


@cache
def _formats() -> tuple[str, ...]:
    Image.init()  # loads the plugins, some of which (AVIF) not every Pillow has
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise Unreadable("an empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        raise Unreadable(_unidentified(data)) from None
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels, as a decompression bomb would have") from None
    except Exception as error:  # a parser fed with damaged bytes may raise anything
        raise Unreadable(_reason(error)) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise Unreadable(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,} (a decompression bomb?)")
    return image


def _unidentified(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim"):
        return "a HEIC photo, which Pillow can't read: export it as JPEG"
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*"):
        if data.startswith(start):
            return "a damaged image: its header can't be read"
    return "not an image"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError) or "unexpected end" in text.lower():
        return "truncated: the file ends too early"
    return f"a damaged image: {text}"


def _animated(image: Image.Image) -> bool:
    # Phones store a second, smaller photo in an MPO and scanners several pages in a TIFF; only the former is no news.
    if image.format in ("MPO", "JPEG", "ICO", "ICNS", "PSD"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns these by itself, pixels and size
        return 1
    try:
        turn = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block must not cost the picture
        return 1
    return turn if turn in _TURNS else 1


def _plain(image: Image.Image) -> tuple[Image.Image, str]:
    """Any Pillow mode -> an "L" or "RGB" image, and a remark if a person should look at it."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image, ""
    if mode == "1":
        return image.convert("L"), ""
    if mode.startswith("I") or mode == "F":
        values, remark = _eight_bits(np.asarray(image), mode)
        return Image.fromarray(values), remark
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        color = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        plain = Image.alpha_composite(white, color).convert("RGB")
        return (plain.getchannel(0) if mode in ("L", "LA", "La") else plain), ""
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None  # it is None only when asked to work in place
        return converted, ""
    return image.convert("RGB"), ""


def _eight_bits(values: np.ndarray, mode: str) -> tuple[np.ndarray, str]:
    """Gray of 16 or 32 bits or float -> uint8, by a rule that is the same for every picture where that is possible."""
    if mode == "F":
        finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(finite.min()), float(finite.max())
        if low >= 0 and high <= 1:
            return np.round(finite * 255).astype(np.uint8), ""
        if low >= 0 and high <= 255:
            return np.round(finite).astype(np.uint8), ""
        stretched = (finite - low) / (high - low) * 255
        return np.round(stretched).astype(np.uint8), f"float values {low:g} to {high:g} were stretched to 0...255"
    wide = values.astype(np.int64)
    high = int(wide.max())
    if mode == "I" and high > 65535:  # 32 bits
        return (wide.clip(0, 2**32 - 1) >> 24).astype(np.uint8), ""
    if mode == "I" and high <= 255:
        return wide.clip(0).astype(np.uint8), ""
    dark = f"16 bits a pixel, of which only 0...{high} are used: it comes out dark" if high < 4096 else ""
    return ((wide.clip(0) + 128) // 257).astype(np.uint8), dark


def _scale(native: tuple[int, int], size: tuple[int, int], fit: str) -> float:
    """How much a (width, height) picture is scaled to reach `size` (height, width)."""
    across, down = size[1] / native[0], size[0] / native[1]
    return min(across, down) if fit == "pad" else max(across, down)


def _resized(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    height, width = size
    if image.size == (width, height):
        return image
    bicubic = Image.Resampling.BICUBIC
    if fit == "squash":
        return image.resize((width, height), bicubic, reducing_gap=3.0)
    scale = _scale(image.size, size, fit)
    if fit == "pad":
        inside = (min(width, max(1, round(image.width * scale))), min(height, max(1, round(image.height * scale))))
        canvas = Image.new(image.mode, (width, height))
        small = image.resize(inside, bicubic, reducing_gap=3.0)
        canvas.paste(small, ((width - inside[0]) // 2, (height - inside[1]) // 2))
        return canvas
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    if scale == 1:  # whole pixels, so that a plain cut does not blur
        left, top = int(left), int(top)
        return image.crop((left, top, left + width, top + height))
    right, bottom = min(left + width / scale, image.width), min(top + height / scale, image.height)
    box = (max(left, 0.0), max(top, 0.0), right, bottom)
    return image.resize((width, height), bicubic, box=box, reducing_gap=3.0)


def _planes(image: Image.Image, channels: int | None) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels[None]
    if channels is None and (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all():
        return pixels[None, ..., 0]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
