"""What notebooks call: tables and figures as outputs whose text says exactly what is shown, to tell stale ones by.

show(tables.hourglass(rows), points(rows, "val_loss"))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from analysis import render
from analysis.page import beginning
from analysis.style import describe, encode


@dataclass(frozen=True)
class Output:
    """One output in all its forms; the text is what a fresh run is compared by."""

    forms: dict[str, Any]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return self.forms


def show(*things: Figure | pd.DataFrame | str) -> None:
    """Figures as pictures, tables as HTML, sentences as they are."""
    for thing in things:
        display(output(thing))


def output(thing: Figure | pd.DataFrame | str) -> Output:
    if isinstance(thing, Figure):
        return Output({"image/png": encode(thing), "text/plain": describe(thing)})
    if isinstance(thing, str):
        return Output({"text/markdown": thing, "text/plain": thing})
    first = beginning(thing)
    return Output({"text/html": render.html(first), "text/plain": render.markdown(first)})
