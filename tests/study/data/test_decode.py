"""Crops against an independent implementation; every kind of image file loads, or is refused by name."""

import io
import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from study.data.decode import FACE, Crop, DamagedImageError, centre_crop, decode
from tests.study.data.made import encoded, jpeg, picture


def box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def bicubic(x: float, a: float = -0.5) -> float:
    """Keys' kernel with the constant that Pillow uses."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def resampled(line: np.ndarray, length: int, kernel: Callable[[float], float], support: float) -> np.ndarray:
    """Along axis 0, from the definition: every output pixel is a weighted mean of the inputs under a kernel that is
    as wide as the scale demands."""
    scale = line.shape[0] / length
    stretch = max(scale, 1.0)
    weights = np.zeros((length, line.shape[0]))
    for out in range(length):
        centre = (out + 0.5) * scale
        first, last = max(int(centre - support * stretch + 0.5), 0), int(centre + support * stretch + 0.5)
        for i in range(first, min(last, line.shape[0])):
            weights[out, i] = kernel((i + 0.5 - centre) / stretch)
    return np.tensordot(weights / weights.sum(axis=1, keepdims=True), line, axes=1)


def resized(
    pixels: np.ndarray, width: int, height: int, kernel: Callable[[float], float], support: float
) -> np.ndarray:
    """(H, W, C), exactly: without rounding the order of the two passes, which Pillow chooses, makes no difference."""
    rows = resampled(pixels, height, kernel, support)
    return resampled(rows.transpose(1, 0, 2), width, kernel, support).transpose(1, 0, 2)


def adm(pixels: np.ndarray, size: int) -> np.ndarray:
    """ADM's centre crop, on an array (H, W, C)."""
    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resized(pixels, pixels.shape[1] // 2, pixels.shape[0] // 2, box, 0.5)
    scale = size / min(pixels.shape[:2])
    pixels = resized(pixels, round(pixels.shape[1] * scale), round(pixels.shape[0] * scale), bicubic, 2.0)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 70), st.integers(6, 70), st.integers(4, 24), st.integers(0, 99))
def test_the_centre_crop_is_adms(width: int, height: int, size: int, seed: int) -> None:
    """Within Pillow's rounding to bytes, twice in every resize."""
    middling = np.random.default_rng(seed).integers(64, 192, (height, width, 3), dtype=np.uint8)  # nothing is clipped
    ours = np.asarray(centre_crop(Image.fromarray(middling), size)).astype(float)
    theirs = adm(middling.astype(float), size)
    assert ours.shape == (size, size, 3)
    halvings = max(int(math.log2(min(width, height) / size)), 0)
    assert np.abs(ours - theirs).max() < 1.7 + 1.7 * halvings
    assert np.abs(ours - theirs).mean() < 0.6 + 0.5 * halvings  # halves round up


def test_an_image_of_the_size_is_left_alone() -> None:
    image = picture(3, 16, 16)
    np.testing.assert_array_equal(np.asarray(centre_crop(image, 16)), np.asarray(image))


def test_a_centred_square_stays_centred() -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = 200  # the square in the middle
    assert (np.asarray(centre_crop(Image.fromarray(pixels), 16))[:, 1:-1] == 200).all()


def test_the_face_is_cut_as_u_vit_does() -> None:
    """Rows 57 to 184 and columns 25 to 152, halved by a triangle filter."""
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    face = pixels[121 - 64 : 121 + 64, 89 - 64 : 89 + 64].astype(float)
    ours = decode(encoded(Image.fromarray(pixels)), Crop(64, "face"), "a.png").transpose(1, 2, 0)
    assert (FACE[2] - FACE[0], FACE[3] - FACE[1]) == (128, 128)
    assert np.abs(ours - resized(face, 64, 64, triangle, 1.0)).max() <= 1


def gif(frames: int) -> bytes:
    file = io.BytesIO()
    first, *rest = [picture(i).convert("P") for i in range(frames)]
    first.save(file, "GIF", save_all=True, append_images=rest)
    return file.getvalue()


def rgba(alpha: int) -> Image.Image:
    image = picture(1)
    image.putalpha(alpha)
    return image


def deep_png(channels: int) -> bytes:
    """16 bits per channel, by hand: Pillow writes no such colour image."""
    import struct
    import zlib

    rows = np.random.default_rng(0).integers(0, 65536, (20, 24, channels), dtype=np.uint16).astype(">u2")
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 24, 20, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def deep_ppm(kind: bytes, largest: int) -> bytes:
    values = np.random.default_rng(0).integers(0, largest + 1, 20 * 24 * 3)
    wide = values.astype(">u2" if largest > 255 else "u1").tobytes()
    body = wide if kind == b"P6" else b" ".join(str(value).encode() for value in values)
    return kind + b"\n# 24 20 255\n24 20 %d\n" % largest + body


def tiff(bits: int) -> bytes:
    """A colour image in one strip, by hand: Pillow writes none of 16 bits."""
    import struct

    rows = np.random.default_rng(0).integers(0, 1 << bits, (20, 24, 3)).astype("<u2" if bits > 8 else "u1").tobytes()
    entries = [
        (256, 3, 1, 24), (257, 3, 1, 20), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, 20), (279, 4, 1, len(rows)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0"
        + struct.pack("<I", 14 + len(rows))
        + struct.pack("<3H", bits, bits, bits)
        + rows
        + directory
        + bytes(4)
    )


LOADED = {
    "jpeg": jpeg(0),
    "progressive jpeg": encoded(picture(0), "JPEG", progressive=True),
    "png": encoded(picture(0)),
    "webp": encoded(picture(0), "WEBP", lossless=True),
    "bmp": encoded(picture(0), "BMP"),
    "tiff": encoded(picture(0), "TIFF"),
    "one frame of gif": gif(1),
    "opaque rgba": encoded(rgba(255)),
    "palette": encoded(picture(0).convert("P")),
}


@pytest.mark.parametrize("kind", LOADED)
def test_what_loads_looks_as_it_was(kind: str) -> None:
    pixels = decode(LOADED[kind], Crop(16), kind)
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), np.uint8)
    expected = np.asarray(centre_crop(picture(1 if "rgba" in kind else 0), 16)).transpose(2, 0, 1)
    loss = {"jpeg": 8, "progressive jpeg": 8, "one frame of gif": 12, "palette": 12}.get(kind, 0)  # mean, of 255
    assert np.abs(pixels.astype(int) - expected).mean() <= loss


@pytest.mark.parametrize("content", [jpeg(0, mode="L"), encoded(picture(0, mode="L")), encoded(picture(0, mode="1"))])
def test_grey_is_the_same_in_every_channel(content: bytes) -> None:
    pixels = decode(content, Crop(16), "grey")
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(pixels[0], pixels[2])
    assert pixels.std() > 1


@pytest.mark.parametrize("content", [deep_ppm(b"P6", 255), deep_ppm(b"P3", 255), tiff(8)])
def test_the_same_files_with_8_bits_load(content: bytes) -> None:
    expected = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode(content, Crop(20), "flat"), expected[:, 2:22].transpose(2, 0, 1))


def test_cmyk_comes_out_in_its_colours() -> None:
    inks = np.zeros((20, 24, 4), np.uint8)
    inks[..., 0] = 255  # cyan only: no red
    content = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    red, green, blue = decode(content, Crop(16), "cmyk").reshape(3, -1).mean(axis=1)
    assert red < 10
    assert min(green, blue) > 245


BOMB = encoded(Image.new("1", (20_000, 20_000)))  # 50 kB that would become 1.2 GB
REFUSED = {
    "truncated jpeg": (jpeg(0, 200, 200)[:-2000], "is damaged: .*truncated"),
    "truncated png": (encoded(picture(0, 200, 200))[:500], "is damaged: "),
    "corrupt png": (encoded(picture(0, 64, 64)).replace(b"IDAT", b"IDAT\xff\xff", 1), "is damaged: "),
    "text": (b"Not Found", "is not an image: must be one of JPEG, PNG"),
    "nothing": (b"", "is not an image"),
    "html": (b"<html>" * 100, "is not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not an image"),
    "animated gif": (gif(3), "has 3 frames: must be a single image"),
    "16-bit grey png": (deep_png(1), "has more than 8 bits per channel"),
    "16-bit colour png": (deep_png(3), "has more than 8 bits per channel"),
    "16-bit colour ppm": (deep_ppm(b"P6", 65535), "has more than 8 bits per channel"),
    "10-bit colour ppm": (deep_ppm(b"P6", 1023), "has more than 8 bits per channel"),
    "16-bit plain ppm": (deep_ppm(b"P3", 65535), "has more than 8 bits per channel"),
    "16-bit colour tiff": (tiff(16), "has more than 8 bits per channel"),
    "transparent png": (encoded(rgba(100)), "is partly transparent"),
    "small": (encoded(picture(0, 40, 15)), "is 40 x 15: must be at least data.size=16 either way"),
    "bomb": (BOMB, "has more than 178,956,970 pixels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(kind: str) -> None:
    content, message = REFUSED[kind]
    with pytest.raises(DamagedImageError, match=rf"^some/{kind} {message}") as refusal:
        decode(content, Crop(16), f"some/{kind}")
    assert "\n" not in str(refusal.value)
    assert isinstance(refusal.value, ValueError)
    assert isinstance(refusal.value, OSError)


def test_small_images_are_enlarged_where_the_set_has_such() -> None:
    assert decode(encoded(picture(0, 10, 7)), Crop(16, enlarges=True), "small").shape == (3, 16, 16)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 255), st.sampled_from(["jpeg", "png", "webp", "bmp"]))
def test_a_damaged_byte_loads_or_is_refused_by_name(place: int, change: int, kind: str) -> None:
    """Whatever a decoder makes of it, nothing else comes out."""
    content = bytearray(LOADED[kind])
    content[place % len(content)] ^= change
    with suppress(DamagedImageError):
        assert decode(bytes(content), Crop(4, enlarges=True), "damaged").shape == (3, 4, 4)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.sampled_from(["jpeg", "png", "webp"]))
def test_a_cut_file_never_loads_in_silence(share: float, kind: str) -> None:
    content = LOADED[kind]
    cut = content[: int(share * (len(content) - 20))]
    with pytest.raises(DamagedImageError, match=r"^cut is "):
        decode(cut, Crop(16), "cut")
