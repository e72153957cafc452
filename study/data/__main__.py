"""Look at the data sets: `python -m study.data list`, `python -m study.data show glyphtex32 --out sheet.png`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from study.atomic import write_file
from study.data import SPLITS, DataConfig, ImageSet, Split, dataset, datasets, load

ENOUGH = 200  # images that surely hold a row of every class; a smaller set is a prefix of the full one


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
    picture = Image.fromarray(sheet.squeeze(-1).numpy())
    write_file(out, lambda temporary: picture.save(temporary, format="PNG", optimize=True))
    return f"{out}: {split} images of {config.name}, one class per row"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m study.data", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="the sets, their shapes and default counts")
    sheet = verbs.add_parser("show", help="write a contact sheet, one row per class")
    sheet.add_argument("name")
    sheet.add_argument("--out", type=Path, required=True)
    sheet.add_argument("--split", choices=SPLITS, default="train")
    sheet.add_argument("--seed", type=int, default=0)
    sheet.add_argument("--texture", type=float, help="contrast of the stripes, 0 to 1 (glyphtex)")
    sheet.add_argument("--stripe-period", type=float, help="shortest period in pixels (glyphtex)")
    given = parser.parse_args(arguments)
    if given.verb == "list":
        print(listing())
        return 0
    try:
        few = {split: min(ENOUGH, most) for split, most in zip(SPLITS, dataset(given.name).counts, strict=True)}
        config = DataConfig(
            name=given.name,
            count=few["train"],
            heldout=few["heldout"],
            reference=few["reference"],
            seed=given.seed,
            texture=given.texture,
            stripe_period=given.stripe_period,
        )
        print(show(config, given.split, given.out))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
