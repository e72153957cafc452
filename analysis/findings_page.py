"""The figures of docs/findings.md, taken out of the notebook that drew them.

    python -m analysis.findings_page

A figure is named by what its cell loads and by its place among the cell's pictures.
Exit codes: 0 written, 1 the notebook has no such picture.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nbformat import NotebookNode

from analysis.notebooks import notebooks, read
from study.atomic import write_file

IMAGES = Path(__file__).parents[1] / "docs" / "img"
NOTEBOOK = "12"
FIGURES: Mapping[str, tuple[str, int]] = {
    "findings_ratio.png": ('/ablate_M"', 1),
    "findings_patches.png": ('/ablate_MP"', 1),
    "findings_reading.png": ('/hourglass_reading"', 0),
    "findings_backbones.png": ('/backbones"', 0),
    "findings_data.png": ('/convergence"', 0),
}


def pictures(notebook: NotebookNode, loads: str) -> list[bytes]:
    """The pictures of the cell that loads a sweep, in order."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and loads in cell.source]
    outputs = [output for cell in cells[:1] for output in cell.outputs]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def write_figures(folder: Path = IMAGES) -> list[Path]:
    (path,) = notebooks([NOTEBOOK])
    notebook = read(path)
    written = []
    for name, (loads, place) in FIGURES.items():
        found = pictures(notebook, loads)
        if place >= len(found):
            raise ValueError(f"{path.name}: the cell that loads {loads} has {len(found)} pictures, not {place + 1}")
        write_file(folder / name, partial(Path.write_bytes, data=found[place]))
        written.append(folder / name)
    return written


def main() -> int:
    try:
        print("\n".join(map(str, write_figures())))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
