"""Look at the data sets: `python -m study.data list`, `python -m study.data show glyphtex32 --out sheet.png`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from study.data import SPLITS, DataConfig, ImageSet, Split, datasets, load


def listing() -> str:
    """One line per set."""
    lines = [
        f"{'name':<12}{'size':>8}{'channels':>10}{'classes':>9}{'train':>8}{'held out':>10}{'reference':>11}  dials"
    ]
    for name, offer in datasets().items():
        train, heldout, reference = offer.counts
        size = "x".join(map(str, offer.size))
        dials = ", ".join(f"{dial}={value}" for dial in ("texture", "stripe_period") if (value := getattr(offer, dial)))
        line = (
            f"{name:<12}{size:>8}{offer.channels:>10}{offer.classes:>9}{train:>8}{heldout:>10}{reference:>11}  {dials}"
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def contact_sheet(images: ImageSet, columns: int = 12, height: int = 64) -> Tensor:
    """One row per class, enlarged by whole pixels: uint8 (H, W, C)."""
    rows = []
    for label in range(images.classes):
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

    images = load(config, split)
    sheet = contact_sheet(images)
    Image.fromarray(sheet.squeeze(-1).numpy()).save(out, format="PNG", optimize=True)
    return f"{out}: {len(images)} {split} images of {config.name}, sha256 {images.sha256[:12]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m study.data", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="the sets, their shapes and default counts")
    sheet = verbs.add_parser("show", help="write a contact sheet, one row per class")
    sheet.add_argument("name")
    sheet.add_argument("--out", type=Path, required=True)
    sheet.add_argument("--split", choices=SPLITS, default="train")
    for dial, kind in (("seed", int), ("texture", float), ("stripe-period", float)):
        sheet.add_argument(f"--{dial}", type=kind)
    given = parser.parse_args(arguments)
    if given.verb == "list":
        print(listing())
        return 0
    try:
        config = DataConfig(given.name, seed=given.seed or 0, texture=given.texture, stripe_period=given.stripe_period)
        print(show(config, given.split, given.out))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
