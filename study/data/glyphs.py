"""Digits set in the twelve DejaVu faces that matplotlib bundles, jittered: class-conditional, any number of them.

`glyphtex` adds colours and strokes filled with fine stripes whose direction tells the class, so that
detail inside a patch stays informative at every resolution. Grey levels may differ by one between
FreeType versions: what a run saw is its `ImageSet.sha256`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from study.data.dataset import DataConfig, Dataset, Split, register, stream
from study.data.images import to_uint8

CHARACTERS = "0123456789"
STYLES = {"Sans": "Oblique", "SansMono": "Oblique", "Serif": "Italic"}
FACES = [
    f"DejaVu{family}{style}"
    for family, slant in STYLES.items()
    for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
]
SIDES = (16, 32, 64)
COUNTS = {16: (20_000, 1_000, 5_000), 32: (20_000, 1_000, 5_000), 64: (10_000, 1_000, 5_000)}
TEMPLATE = 48  # pixels along a template's side
BLOCK = 256  # images rendered at once, always: rounding never depends on how many were asked for
DRAWS = 16  # uniform numbers per image: 0-5 place the glyph, 6-13 paint it


@register(
    *[
        Dataset(name=f"glyphs{side}", size=(side, side), channels=1, classes=len(CHARACTERS), counts=COUNTS[side])
        for side in SIDES
    ]
)
def draw_glyphs(offer: Dataset, config: DataConfig, split: Split) -> tuple[Tensor, Tensor]:
    """White on black; the same shapes at every size."""
    labels, blocks = _blocks(config, split)
    images = [F.avg_pool2d(ink(label, u, 2 * offer.size[0]), 2) for label, u in blocks]
    return to_uint8(torch.cat(images)[: len(labels)] * 2 - 1), labels


@register(
    *[
        Dataset(
            name=f"glyphtex{side}",
            size=(side, side),
            channels=3,
            classes=len(CHARACTERS),
            counts=COUNTS[side],
            texture=0.9,
            stripe_period=2.0,
        )
        for side in SIDES[1:]
    ]
)
def draw_textured_glyphs(offer: Dataset, config: DataConfig, split: Split) -> tuple[Tensor, Tensor]:
    """The glyphs of the plain set in two colours; the paper shows through the strokes as stripes."""
    labels, blocks = _blocks(config, split)
    images = []
    for label, u in blocks:
        cover = ink(label, u, 2 * offer.size[0]) * stripes(label, u, 2 * offer.size[0], config)
        paper, pen = 0.45 * u[:, 6:9, None, None], 1 - 0.45 * u[:, 9:12, None, None]
        images.append(to_uint8((paper + (pen - paper) * F.avg_pool2d(cover, 2)) * 2 - 1))
    return torch.cat(images)[: len(labels)], labels


def _blocks(config: DataConfig, split: Split) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Labels in turn, one of each class in every ten, and (labels, uniform numbers) in whole blocks."""
    count = config.images(split)
    whole = math.ceil(count / BLOCK) * BLOCK
    labels = torch.arange(whole) % len(CHARACTERS)
    uniform = torch.from_numpy(stream(config.seed, split).random((whole, DRAWS), dtype=np.float32))
    return labels[:count], list(zip(labels.split(BLOCK), uniform.split(BLOCK), strict=True))


def ink(labels: Tensor, u: Tensor, side: int) -> Tensor:
    """Coverage in [0, 1], (B, 1, side, side), of glyphs in a random face, turned, sheared, scaled and moved."""
    face = (u[:, 0] * len(FACES)).long()
    turn, shear = (u[:, 1] - 0.5) * math.radians(30), (u[:, 2] - 0.5) * 0.3
    zoom = 1.05 + 0.4 * u[:, 3]  # template lengths per image length
    x, y = pixel_centres(side)
    x, y = x - 0.2 * (u[:, 4, None, None] - 0.5), y - 0.2 * (u[:, 5, None, None] - 0.5)
    cos, sin = (zoom * turn.cos())[:, None, None], (zoom * turn.sin())[:, None, None]
    across, down = cos * x + sin * y, cos * y - sin * x
    grid = torch.stack([across + shear[:, None, None] * down, down], dim=-1)
    return F.grid_sample(templates()[labels * len(FACES) + face], grid, align_corners=False)


def stripes(labels: Tensor, u: Tensor, side: int, config: DataConfig) -> Tensor:
    """Transmission in [1 - texture, 1], (B, 1, side, side): sine stripes, one direction per class."""
    assert config.texture is not None
    assert config.stripe_period is not None
    angle = (math.pi * labels / len(CHARACTERS))[:, None, None]
    period = (config.stripe_period * (1 + u[:, 12]))[:, None, None]  # in pixels of the image
    x, y = pixel_centres(side)
    along = (angle.cos() * x + angle.sin() * y) * (side / 4)  # [-1, 1] spans side / 2 pixels of the image
    wave = torch.sin(2 * math.pi * (along / period + u[:, 13, None, None]))
    return (1 - config.texture * (0.5 - 0.5 * wave))[:, None]


def pixel_centres(side: int) -> tuple[Tensor, Tensor]:
    """x (1, 1, side) and y (1, side, 1) over [-1, 1]."""
    centres = (torch.arange(side) + 0.5) * (2 / side) - 1
    return centres[None, None, :], centres[None, :, None]


@lru_cache
def templates() -> Tensor:
    """Every character in every face, (characters * faces, 1, 48, 48) in [0, 1], its ink centred."""
    from matplotlib import get_data_path  # slow imports, for this set only
    from PIL import Image, ImageDraw, ImageFont

    fonts = Path(get_data_path()) / "fonts" / "ttf"
    drawn = []
    for character in CHARACTERS:
        for face in FACES:
            font = ImageFont.truetype(fonts / f"{face}.ttf", size=round(0.9 * TEMPLATE))
            left, top, right, bottom = font.getbbox(character)
            canvas = Image.new("L", (TEMPLATE, TEMPLATE))
            corner = ((TEMPLATE - left - right) / 2, (TEMPLATE - top - bottom) / 2)
            ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
            drawn.append(np.asarray(canvas))
    return torch.from_numpy(np.stack(drawn)).float()[:, None] / 255
