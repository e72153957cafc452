"""From an image file's bytes to the square of pixels that is trained on, or one line that says what is wrong."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # at run time only where an image is opened
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none that runs another program
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
DEEP_MODES = ("I", "F")  # 32-bit integers and floats; 16 bits are I;16 and its like
DEPTH = 24  # place in a PNG of its bits per channel: after signature, the header's length and type, width and height
BITS = 258  # TIFF's tag of bits per channel
ALIGNED = (178, 218)  # width and height of CelebA's aligned images
FACE = (25, 57, 153, 185)  # left, top, right, bottom: 128 pixels around (89, 121), as U-ViT and DiS crop them


Rule = Literal["centre", "face"]


class DamagedImageError(OSError, ValueError):
    """An image that cannot be used; the message names it. Bad input before training, a storage failure during it."""


@dataclass(frozen=True)
class Crop:
    """Which square of an image is used, at which size."""

    size: int  # pixels along a side
    rule: Rule = "centre"
    enlarges: bool = False  # smaller images, instead of refusing them

    def __call__(self, image: Image.Image) -> Image.Image:
        return face_crop(image, self.size) if self.rule == "face" else centre_crop(image, self.size)

    def check(self, width: int, height: int) -> None:
        if self.rule == "face" and (width, height) != ALIGNED:
            raise ValueError(f"is {width} x {height}: must be {ALIGNED[0]} x {ALIGNED[1]}, as CelebA's aligned images")
        if min(width, height) < self.size and not self.enlarges:
            raise ValueError(f"is {width} x {height}: must be at least data.size={self.size} either way")


def decode(content: bytes, crop: Crop, name: str) -> NDArray[np.uint8]:
    """RGB (3, size, size) of an image file's bytes; `name` is for messages."""
    try:
        with opened(content) as image:
            crop.check(*image.size)
            pixels = np.asarray(crop(in_colour(image, content)))
    except Exception as error:  # decoders raise what they like on damaged input
        raise DamagedImageError(f"{name} {reason(error)}") from error
    return pixels.transpose(2, 0, 1)


def opened(content: bytes) -> Image.Image:
    """The image, its header read and nothing else; too many pixels to be sane are refused."""
    from PIL import Image

    return Image.open(io.BytesIO(content), formats=FORMATS)


def in_colour(image: Image.Image, content: bytes) -> Image.Image:
    """8-bit RGB: grey is repeated, CMYK and palettes are converted, and what would lose something is refused."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"has {frames} frames: must be a single image")
    if is_deep(image, content):
        raise ValueError("has more than 8 bits per channel: must have 8")
    image.load()
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        raise ValueError("is partly transparent: must be opaque")
    return image if image.mode == "RGB" else image.convert("RGB")


def is_deep(image: Image.Image, content: bytes) -> bool:
    """More than 8 bits per channel, before anything is loaded: of colour, Pillow drops the lower half in silence."""
    if image.format == "PNG":
        return content[DEPTH] > 8
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(BITS, ())
        if max(bits if isinstance(bits, tuple) else (bits,), default=1) > 8:
            return True
    if image.format == "PPM":
        arguments = [tile[3] for tile in getattr(image, "tile", ())]  # of its decoder: (mode, largest value) or a mode
        if any(isinstance(given, tuple) and given[-1] > 255 for given in arguments):
            return True
    return image.mode in DEEP_MODES or image.mode.startswith("I;")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's rule, which DiT and its successors share: halve by boxes while twice as large, bicubic to size, crop."""
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def face_crop(image: Image.Image, size: int) -> Image.Image:
    """CelebA's face, as U-ViT and DiS cut it out."""
    from PIL.Image import Resampling

    return image.crop(FACE).resize((size, size), Resampling.BILINEAR)


def reason(error: Exception) -> str:
    """Why an image is unusable, to follow its name."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"is not an image: must be one of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: must have fewer"
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    said = first.startswith(("is ", "has "))
    return first if said else f"is damaged: {first}"
