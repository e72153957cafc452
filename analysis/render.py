"""A table as text: Markdown, LaTeX, HTML. Tables are plain frames; what is said about them travels in `attrs`.

`x ±` beside a column `x` is the reach of its interval, and the two are set as one. Only cells that the table
itself names in `attrs["bold"]` are set bold: the best, where statistics tell it from the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

REACH = " ±"
NOTHING = "–"
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # wide tables shrink to the line
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "→": r"$\to$", "–": "--", "²": r"\textsuperscript{2}",
    "Δ": r"$\Delta$", "·": r"$\cdot$", "≤": r"$\le$", "≥": r"$\ge$",
}  # fmt: skip
PREAMBLE = (
    r"\documentclass{article}",
    r"\usepackage[utf8]{inputenc}",
    r"\usepackage[T1]{fontenc}",
    r"\usepackage{booktabs}",
    r"\usepackage{graphicx}",
    r"\begin{document}",
)


def table(
    frame: pd.DataFrame,
    title: str,
    notes: Sequence[str] = (),
    bold: Sequence[tuple[int, str]] = (),
    formats: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The frame with all that is set around it; `bold` names cells by line and column."""
    framed = frame.reset_index(drop=True)
    framed.attrs = {"title": title, "notes": list(notes), "bold": list(bold), "formats": dict(formats or {})}
    return framed


def title(frame: pd.DataFrame) -> str:
    return str(frame.attrs.get("title", ""))


def notes(frame: pd.DataFrame) -> list[str]:
    return list(frame.attrs.get("notes", []))


def texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as it is read, reaches merged into their columns."""
    formats = frame.attrs.get("formats", {})
    columns = {}
    for name in frame:
        if not _is_reach(str(name), frame):
            reaches = frame[f"{name}{REACH}"] if f"{name}{REACH}" in frame else [None] * len(frame)
            pairs = zip(frame[name], reaches, strict=True)
            columns[name] = [cell(value, reach, formats.get(name)) for value, reach in pairs]
    return pd.DataFrame(columns, index=frame.index, dtype=object)


def cell(value: Any, reach: Any = None, form: str | None = None) -> str:
    """A number to the digits its interval supports, or its column asks for (`+`: signed); nothing as a dash."""
    if _absent(value):
        return NOTHING
    if isinstance(value, str):
        return value
    if not _absent(reach):
        return _with_reach(float(value), float(reach), "+" if form == "+" else "")
    if form:
        return format(value, "+.4g" if form == "+" else form)
    return f"{value}" if isinstance(value, int) else f"{float(value):.4g}"


def markdown(frame: pd.DataFrame) -> str:
    """A pipe table under its title, its notes below."""
    shown = _set_bold(texts(frame).map(_markdown_safe), frame, "**{}**")
    lines = []
    if len(shown):
        rules = ["---:" if name in _right(frame) else ":---" for name in shown]
        heads = [_markdown_safe(str(name)) for name in shown]
        lines = [_piped(line) for line in (heads, rules, *shown.itertuples(index=False))]
    return "\n".join([f"**{title(frame)}**", "", *lines, *(f"\n{note}" for note in notes(frame))]) + "\n"


def latex(frame: pd.DataFrame) -> str:
    """A booktabs table environment, for booktabs and graphicx; its notes are part of the caption."""
    shown = _set_bold(texts(frame).map(latex_safe), frame, r"\textbf{{{}}}")
    align = "".join("r" if name in _right(frame) else "l" for name in shown)
    body = [_ampersanded(line) for line in shown.itertuples(index=False)]
    head = [r"\toprule", _ampersanded([latex_safe(str(name)) for name in shown]), r"\midrule"]
    tabular = (
        [FITTED, rf"\begin{{tabular}}{{{align}}}", *head, *body, r"\bottomrule", r"\end{tabular}}"] if body else []
    )
    caption = latex_safe(" ".join([_sentence(title(frame)), *map(_sentence, notes(frame))]))
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize",
        rf"\caption{{{caption}}}",
        r"\smallskip",
        *tabular,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_document(frames: Sequence[pd.DataFrame]) -> str:
    """All of them, ready to be compiled."""
    return "\n".join([*PREAMBLE, *(latex(frame) + r"\clearpage" for frame in frames), r"\end{document}"]) + "\n"


def html(frame: pd.DataFrame) -> str:
    """A figure with caption and table; numbers carry their value for sorting."""
    shown = _set_bold(texts(frame).map(escape), frame, "<b>{}</b>")
    right = [' class="number"' if name in _right(frame) else "" for name in shown]
    heads = [f'<th scope="col"{kind}>{escape(str(name))}</th>' for name, kind in zip(shown, right, strict=True)]
    cells = [
        [f"<td{kind}{_sort_key(value)}>{text}</td>" for value, text in zip(frame[name], shown[name], strict=True)]
        for name, kind in zip(shown, right, strict=True)
    ]
    lines = [f"<tr>{''.join(line)}</tr>" for line in zip(*cells, strict=True)]
    head, body = "".join(heads), "\n".join(lines)
    grid = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n" if lines else ""
    told = "".join(f"<p>{escape(note)}</p>\n" for note in notes(frame))
    return f'<figure class="table">\n<figcaption>{escape(title(frame))}</figcaption>\n{grid}{told}</figure>\n'


def latex_safe(text: str) -> str:
    """Characters with a meaning of their own, and those outside the font, written out; others become `?`."""
    written = "".join(LATEX.get(letter, letter) for letter in text)
    signed = re.sub(r"(?<![\w-])-(?=\d)", "$-$", written)
    return re.sub(r"[^\x20-\x7e\xa0-\xff]", "?", signed)


def _sort_key(value: Any) -> str:
    return f' data-value="{float(value):.12g}"' if _is_number(value) else ""


def _set_bold(shown: pd.DataFrame, frame: pd.DataFrame, form: str) -> pd.DataFrame:
    for place, name in frame.attrs.get("bold", []):
        shown.loc[place, name] = form.format(shown.loc[place, name])
    return shown


def _with_reach(value: float, reach: float, sign: str = "") -> str:
    """Two digits of the reach, and the value to as many places."""
    if not math.isfinite(reach):
        return f"{value:{sign}.4g}"
    places = 1 - math.floor(math.log10(reach)) if reach > 0 else 0
    if reach <= 0 or not -4 <= places <= 8 or abs(value) >= 1e7:
        return f"{value:{sign}.4g} ±{reach:.2g}"
    return f"{value:{sign}.{max(places, 0)}f} ±{reach:.{max(places, 0)}f}"


def _right(frame: pd.DataFrame) -> set[str]:
    """Columns of numbers."""
    return {str(name) for name in frame if pd.api.types.is_numeric_dtype(frame[name])}


def _is_reach(name: str, frame: pd.DataFrame) -> bool:
    return name.endswith(REACH) and name.removesuffix(REACH) in frame


def _absent(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) or value == ""


def _is_number(value: Any) -> bool:
    return not isinstance(value, str) and not _absent(value)


def _markdown_safe(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("\n", " ")


def _piped(line: Sequence[str]) -> str:
    return "| " + " | ".join(line) + " |"


def _ampersanded(line: Sequence[str]) -> str:
    return " & ".join(line) + r" \\"


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."
