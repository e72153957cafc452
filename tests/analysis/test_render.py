"""Tables as text: digits, bold, escapes; LaTeX by compiling it, HTML by reading it back."""

from __future__ import annotations

import io
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import tables
from analysis.published import published
from analysis.render import cell, html, latex, latex_document, latex_safe, markdown, notes, table, texts, title


@pytest.fixture
def example() -> pd.DataFrame:
    frame = pd.DataFrame(
        {"point": ["a_b", "50 % & more"], "loss": [0.12345, 2.0], "loss ±": [0.0123, np.nan], "n": [3, 1]}
    )
    return table(frame, "Loss | by point", ["A note <here>"], [(0, "loss")], {"n": "d"})


@pytest.mark.parametrize(
    ("value", "reach", "form", "shown"),
    [
        (0.12345, 0.0123, None, "0.123 ±0.012"),
        (118.32, 4.6, None, "118.3 ±4.6"),
        (1234.5, 120.0, None, "1234 ±120"),
        (0.5, 0.0, None, "0.5 ±0"),
        (-0.02, 0.005, "+", "-0.0200 ±0.0050"),
        (0.02, 0.005, "+", "+0.0200 ±0.0050"),
        (0.02, None, "+", "+0.02"),
        (2.13e11, None, ".2e", "2.13e+11"),
        (121.5, None, ".2f", "121.50"),
        (12, None, None, "12"),
        (12.0, None, None, "12"),
        (np.nan, 0.1, None, "–"),
        (None, None, None, "–"),
        (pd.NA, None, None, "–"),
        ("word", None, ".2f", "word"),
        (1e-9, 1e-10, None, "1e-09 ±1e-10"),
    ],
)
def test_cells(value: object, reach: float | None, form: str | None, shown: str) -> None:
    assert cell(value, reach, form) == shown


def test_the_reach_is_one_column_with_its_value(example: pd.DataFrame) -> None:
    assert list(texts(example)) == ["point", "loss", "n"]
    assert list(texts(example)["loss"]) == ["0.123 ±0.012", "2"]


def test_markdown(example: pd.DataFrame) -> None:
    lines = markdown(example).splitlines()
    assert lines[0] == "**Loss | by point**"
    assert lines[2:6] == [
        "| point | loss | n |",
        "| :--- | ---: | ---: |",
        "| a_b | **0.123 ±0.012** | 3 |",
        "| 50 % & more | 2 | 1 |",
    ]
    assert lines[-1] == "A note <here>"


def test_latex(example: pd.DataFrame) -> None:
    text = latex(example)
    assert r"\begin{tabular}{lrr}" in text
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"a\_b & \textbf{0.123 $\pm$0.012} & 3 \\" in text
    assert r"50 \% \& more & 2 & 1 \\" in text
    assert latex_safe("-0.5 LDM-4 1e-05 --3") == "$-$0.5 LDM-4 1e-05 --3"
    assert r"\caption{Loss \textbar{} by point. A note \textless{}here\textgreater{}.}" in text


def test_html_is_read_back_by_pandas_parser(example: pd.DataFrame) -> None:
    from html.parser import HTMLParser

    class Cells(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []
            self.values: list[str] = []

        def handle_data(self, data: str) -> None:
            if data.strip():
                self.found.append(data)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.values += [value or "" for name, value in attrs if name == "data-value"]

    parser = Cells()
    parser.feed(html(example))
    assert parser.found == [
        "Loss | by point", "point", "loss", "n", "a_b", "0.123 ±0.012", "3", "50 % & more", "2", "1", "A note <here>",
    ]  # fmt: skip
    assert parser.values == ["0.12345", "3", "2", "1"]
    assert html(example).count("<b>") == 1


def test_a_table_without_lines_is_its_sentence() -> None:
    frame = table(pd.DataFrame(), "Nothing", ["No run is done."])
    assert "No run is done." in markdown(frame)
    assert "tabular" not in latex(frame)
    assert "<table>" not in html(frame)
    assert (title(frame), notes(frame)) == ("Nothing", ["No run is done."])


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_text_escapes_its_latex_cell(text: str) -> None:
    safe = latex_safe(text)
    for command in ("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"):
        safe = safe.replace(f"\\{command}{{}}", "")
    for letter in "&%$#_{}":
        safe = safe.replace(f"\\{letter}", "")
    safe = safe.replace("$\\pm$", "").replace("$\\times$", "").replace("$\\to$", "").replace("$\\Delta$", "")
    safe = (
        safe.replace("$-$", "")
        .replace("$\\cdot$", "")
        .replace("$\\le$", "")
        .replace("$\\ge$", "")
        .replace("\\textsuperscript{2}", "")
    )
    assert not set(safe) & set("\\&%$#_{}~^<>|")


@cache
def papers() -> tuple[pd.DataFrame, ...]:
    return (
        tables.imagenet(256), tables.imagenet(512), tables.lsun(), tables.celeba_cifar(), tables.dis_imagenet(),
        tables.dit_models(), tables.digitised("hourglass figure"), tables.digitised("model-scaling figure"),
        tables.costs(), tables.totals(), tables.sentences(), tables.layer_costs(), tables.resolution_costs(),
        tables.dis_configurations(),
    )  # fmt: skip


def test_every_table_compiles(tmp_path: Path, example: pd.DataFrame) -> None:
    compiler = shutil.which("tectonic") or shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("needs tectonic or pdflatex")
    everything = "".join(map(chr, range(33, 256))) + "±×→–²Δ·≤≥ and 漢"
    strange = table(pd.DataFrame({everything: [everything.replace("\x7f", "")]}), everything, [everything])
    source = tmp_path / "tables.tex"
    source.write_text(latex_document([*papers(), example, strange, table(pd.DataFrame(), "None", ["Empty."])]))
    flags = ["-interaction=nonstopmode", "-halt-on-error"] if compiler.endswith("pdflatex") else []
    done = subprocess.run([compiler, *flags, source.name], cwd=tmp_path, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000


def test_every_table_survives_csv() -> None:
    for frame in papers():
        back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
        assert list(back) == list(frame)
        assert len(back) == len(frame)


def test_no_paper_table_sets_anything_bold() -> None:
    """One printed number each, no interval: nothing is resolved."""
    for frame in papers():
        assert frame.attrs["bold"] == []
        assert "**" not in markdown(frame).split("\n", 1)[1]


def test_every_imagenet_number_printed_is_in_its_table() -> None:
    for resolution in (256, 512):
        frame = published("DiffuSSM")
        main = frame[(frame["where"] == "main table") & (frame["resolution"] == resolution)]
        shown = tables.imagenet(resolution).set_index(["setting", "model"])
        names = {"images_m": "images, M", "total_gflops": "total GMAC"}
        printed = main[main["value"].notna() & (main["metric"] != "params_m")]
        assert len(printed) > 50 * (resolution == 256)
        for row in printed.itertuples():
            assert shown.loc[(row.setting, row.model), names.get(row.metric, row.metric)] == row.value
        corrected = main[main["corrected"].notna()]
        for row in corrected.itertuples():
            line = shown.loc[(row.setting, f"{row.model}, corrected")]
            assert line[names.get(row.metric, row.metric)] == row.corrected
