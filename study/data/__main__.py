"""`python -m study.data`: look at the data sets, embedded or on disk."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.denoiser import require_choice
from study.atomic import write_file
from study.command_line import finish
from study.data import COUNTS, SPLITS, DataConfig, ImageSet, Split, dataset, datasets, load
from study.options import data_parser

ENOUGH = 200  # images that surely hold a row of every class; a smaller set is a prefix of the full one
ROWS = 20  # classes of one sheet


def listing() -> str:
    """One line per set."""
    lines = [
        f"{'name':<12}{'size':>8}{'channels':>10}{'classes':>9}{'train':>8}{'held out':>10}{'reference':>11}  dials"
    ]
    for name, offer in datasets().items():
        train, heldout, reference = offer.counts
        size = "any" if offer.any_size else "x".join(map(str, offer.size))
        dials = ", ".join(f"{dial}={value}" for dial in ("texture", "stripe_period") if (value := getattr(offer, dial)))
        line = (
            f"{name:<12}{size:>8}{offer.channels:>10}{offer.classes:>9}{train:>8}{heldout:>10}{reference:>11}  {dials}"
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def contact_sheet(images: ImageSet, columns: int = 12, height: int = 64) -> Tensor:
    """One row per class, enlarged by whole pixels: uint8 (H, W, C)."""
    rows = []
    for label in range(min(max(images.classes, 1), ROWS)):
        row = images.images[images.labels == label][:columns]
        missing = columns - len(row)
        row = torch.cat([row, row.new_zeros((missing, *row.shape[1:]))])
        rows.append(torch.nn.functional.pad(row, (1, 1, 1, 1), value=128))  # (columns, C, h, w)
    sheet = torch.stack(rows).permute(0, 3, 1, 4, 2)  # (rows, h, columns, w, C)
    sheet = sheet.reshape(sheet.shape[0] * sheet.shape[1], -1, sheet.shape[-1])
    scale = max(1, height // images.size[0])
    return sheet.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def show(config: DataConfig, split: Split, out: Path) -> str:
    """Write the contact sheet; say what was written."""
    from PIL import Image

    images = load(config, split).ready(ENOUGH)
    if not isinstance(images, ImageSet):
        raise ValueError(f"{config.name} has no pixels to show")
    sheet = contact_sheet(images)
    picture = Image.fromarray(sheet.squeeze(-1).numpy())
    try:
        write_file(out, lambda temporary: picture.save(temporary, format="PNG", optimize=True))
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}") from error
    return f"{out}: {split} images of {config.name}, one class per row"


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["encode"]:
        from study.latents.command import main as encode  # diffusers takes seconds to import

        return encode(words[1:])
    given = data_parser().parse_args(words)
    return finish(lambda: VERBS[given.verb](given), (ValueError,))


def _list(given: argparse.Namespace) -> int:
    print(listing())
    return 0


def _check(given: argparse.Namespace) -> int:
    """1 if an image cannot be used."""
    from study.data.check import check, report

    lines, wrong = check(given.path, given.name, given.size)
    print(report(lines, wrong))
    return 1 if wrong else 0


def _show(given: argparse.Namespace) -> int:
    offer = dataset(given.name)
    require_choice("split", given.split, SPLITS)
    few = {field: min(ENOUGH, most) for field, most in zip(COUNTS, offer.counts, strict=True)}
    counts: dict[str, Any] = {} if offer.on_disk else few
    config = DataConfig(
        name=given.name,
        seed=given.seed,
        texture=given.texture,
        stripe_period=given.stripe_period,
        path=given.path,
        size=given.size,
        **counts,
    )
    print(show(config, given.split, given.out))
    return 0


VERBS = {"list": _list, "check": _check, "show": _show}


if __name__ == "__main__":
    sys.exit(main())
