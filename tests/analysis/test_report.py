"""The report: whole in one file, its words those of the statistics, and a sentence wherever rows are missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.findings import finding, findings
from analysis.report import write_report
from analysis.rows import load_rows
from study.comparison import difference
from study.report import main
from tests.analysis.synthetic import run_name, write_study

VOID = {"meta", "img", "br", "hr", "link", "input"}


class WellFormed(HTMLParser):
    """Every tag closed in turn, every id once, every address inside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids += [given["id"]] if given.get("id") else []  # type: ignore[list-item]
        self.addresses += [value for name in ("src", "href", "action", "data") if (value := given.get(name))]
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def read(page: Path) -> tuple[str, WellFormed]:
    text = page.read_text(encoding="utf-8")
    parser = WellFormed()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    return text, parser


def test_the_page_is_well_formed_needs_nothing_outside_and_is_the_same_twice(tmp_path: Path) -> None:
    folders = [write_study(tmp_path, "ablate_M"), write_study(tmp_path, "ablate_P", seeds=(0,), baseline={})]
    text, parser = read(write_report(folders, tmp_path / "out"))
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in parser.addresses)
    assert {address[1:] for address in parser.addresses if address.startswith("#")} <= set(parser.ids)
    outside = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", outside)
    assert parser.counts["img"] == 2 * 8
    write_report(folders[:1], tmp_path / "again")
    for path in (tmp_path / "again").rglob("ablate_M*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "again")).read_bytes()
    figures = {path.suffix for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {".png", ".svg"}
    assert {path.suffix for path in (tmp_path / "out" / "tables").iterdir()} == {".csv", ".tex"}


def test_the_headline_says_what_the_statistics_say(tmp_path: Path) -> None:
    """Steps of 0.1 against a noise of 0.001: worse, by the paired difference and its reach."""
    rows = load_rows(write_study(tmp_path))
    told = finding(rows, "val_loss")
    exact = difference(rows.study, rows.study.cells[1], rows.metric("val_loss"))
    assert exact is not None
    assert exact.reach is not None
    found = re.search(r"worse than M=1 beyond noise: M=2 by ([0-9.]+) ±([0-9.]+)", told)
    assert found is not None
    assert float(found[1]) == pytest.approx(exact.mean, abs=exact.reach / 10)
    assert float(found[2]) == pytest.approx(exact.reach, rel=0.1)
    assert any("M=2 takes 50% of M=1's" in sentence for sentence in findings(rows))


def test_noise_is_called_noise(tmp_path: Path) -> None:
    told = finding(load_rows(write_study(tmp_path, noise=1.0)), "val_loss")
    assert "within noise of M=1: M=2" in told
    assert "beyond" not in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": (0,)}, "one seed per point cannot tell a difference from noise"),
        ({"baseline": {}}, "names no baseline: differences are left out"),
        ({"values": (1,), "seeds": (0,), "baseline": {}}, "One run of ablate_M is done"),
        ({"protocols": {2: "val-other-11111111"}}, "cannot share an axis"),
        ({"failed": {run_name("ablate_M", 4, s): "diverged" for s in (0, 1, 2)}}, "missing: diverged (3)"),
        (
            {"failed": {run_name("ablate_M", M, s): "out of memory" for M in (1, 2, 4) for s in (0, 1, 2)}},
            "None of the 9 runs of ablate_M has a result: out of memory (9).",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, arguments: Mapping[str, object], sentence: str) -> None:
    text, _ = read(write_report([write_study(tmp_path, **arguments)], tmp_path / "out"))  # type: ignore[arg-type]
    svgs = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("figures/*.svg"))
    assert sentence in text or f"<!-- {sentence} -->" in svgs


def test_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "results")
    assert main(["ablate_M"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == Path("results/ablate_M/report/report.html")
    assert "ablate_M" in read(page)[0]
    assert main(["ablate_Q"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: ablate_Q is no folder of results: give a sweep's folder or its name; results/ has ablate_M\n"
    )
    (tmp_path / "results" / "empty").mkdir()
    assert main(["results/empty"]) == 0
    assert "holds no results" in Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")


def test_hundreds_of_points_make_a_page_of_bounded_size(tmp_path: Path) -> None:
    folder = write_study(tmp_path, values=tuple(range(1, 251)), seeds=(0, 1))
    text, parser = read(write_report([folder], tmp_path / "out"))
    assert parser.counts["tr"] < 1000
    assert "The first 200 of" in text
    lines = (tmp_path / "out/tables/ablate_M-comparison.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 250
