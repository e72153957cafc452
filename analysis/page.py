"""One HTML page that needs nothing but itself: style, script and pictures inside, no address outside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import pandas as pd

from analysis import render

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; max-width: 62rem; padding: 0 1rem 4rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 2rem 0 .5rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; border-top: 1px solid #ccc; padding-top: 1.5rem; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
.question { color: #555; font-style: italic; white-space: pre-line; }
.finding { background: #f2f6fa; border-left: 4px solid #0173b2; margin: 1rem 0; padding: .75rem 1rem; }
.finding p { margin: .25rem 0; }
.remark { color: #b03a2e; }
figure { margin: 1.5rem 0; }
figcaption { font-weight: 600; margin-bottom: .25rem; }
figure p, .small { color: #555; font-size: .85rem; margin: .25rem 0; }
.wide { overflow-x: auto; }
.wide img { display: block; max-width: 100%; min-width: min(36rem, 100vw * 1.6); height: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { min-width: 4.5rem; padding: .3rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e3e3e3; }
td.number, th.number { text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; white-space: nowrap; cursor: pointer; user-select: none; }
th[aria-sort=ascending]::after { content: " \\25B2"; font-size: .7em; }
th[aria-sort=descending]::after { content: " \\25BC"; font-size: .7em; }
pre { background: #f6f6f6; padding: .75rem 1rem; overflow-x: auto; font-size: .85rem; }
nav ul { padding-left: 1.25rem; }
"""

SCRIPT = """
for (const table of document.querySelectorAll("figure.table table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        const numbers = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
        return (numbers ? x - y : x.localeCompare(y)) * (down ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""


MOST_LINES = 200  # of a table


def beginning(frame: pd.DataFrame) -> pd.DataFrame:
    """A long table's first lines, with a note that says how many there are."""
    if len(frame) <= MOST_LINES:
        return frame
    first = frame.head(MOST_LINES).copy()
    bold = [(line, name) for line, name in frame.attrs.get("bold", []) if line < MOST_LINES]
    told = [*render.notes(frame), f"The first {MOST_LINES} of {len(frame)} lines."]
    first.attrs = {**frame.attrs, "bold": bold, "notes": told}
    return first


def page(title: str, parts: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def heading(level: int, text: str, anchor: str = "") -> str:
    name = f' id="{escape(anchor, quote=True)}"' if anchor else ""
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def finding(sentences: Sequence[str]) -> str:
    return '<div class="finding">\n' + "\n".join(paragraph(sentence) for sentence in sentences) + "\n</div>"


def picture(png: bytes, told: str) -> str:
    source = base64.b64encode(png).decode()
    image = f'<img alt="{escape(told, quote=True)}" src="data:image/png;base64,{source}">'
    return f'<figure><div class="wide">{image}</div></figure>'


def wide(html: str) -> str:
    """A table that scrolls by itself where the page is narrow."""
    return html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def contents(names: Sequence[tuple[str, str]]) -> str:
    lines = "\n".join(f'<li><a href="#{escape(anchor, quote=True)}">{escape(name)}</a></li>' for anchor, name in names)
    return f"<nav><ul>\n{lines}\n</ul></nav>"
