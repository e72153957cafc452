"""Every notebook, from a clean kernel: as committed, and from rows that are not there; a stale cell is named."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from analysis.notebooks import RESULTS, check, execute, main, notebooks, read, stale
from tests.analysis.synthetic import write_study

ALL = notebooks()
NAMES = [path.stem for path in ALL]


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_outputs_are_as_committed(path: Path) -> None:
    assert check(path) == []


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_it_says_first_where_its_rows_come_from_and_has_outputs(path: Path) -> None:
    notebook = read(path)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert RESULTS.match(first.source)
    assert str(first.source).startswith('RESULTS = "../results/published"  #')
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "not run top to bottom: make notebooks"
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert kinds & {"image/png", "text/html"}


def cells(node: NotebookNode, kind: str) -> list[str]:
    return [
        str(output.data["text/plain"])
        for cell in node.cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {})
    ]


@pytest.mark.parametrize("name", ["03_hourglass", "07_convergence"])
def test_from_an_empty_folder_there_are_sentences(tmp_path: Path, name: str) -> None:
    (path,) = notebooks([name])
    fresh = execute(path, results=tmp_path)
    assert not any(output.output_type == "error" for cell in fresh.cells for output in cell.get("outputs", []))
    assert any("holds no results" in text for text in cells(fresh, "text/html"))


def test_another_path_shows_another_study(tmp_path: Path) -> None:
    write_study(tmp_path, "ablate_P", key="backbone.P")
    (path,) = notebooks(["02"])
    shown = " ".join(cells(execute(path, results=tmp_path), "text/html"))
    assert "P=4" in shown
    assert "worse" in shown


def notebook(text: str, figure: str = "") -> NotebookNode:
    outputs = [new_output("display_data", data={"text/plain": text, "text/html": f"<p>{text}</p>"})]
    if figure:
        outputs.append(new_output("display_data", data={"text/plain": figure, "image/png": "aGk="}))
    return new_notebook(cells=[new_code_cell("show(table)\nshow(figure)", outputs=outputs)])


def test_a_stale_table_or_figure_is_named_with_its_cell() -> None:
    same = notebook("a | 1\nb | 2", "figure: loss [0123]")
    assert list(stale(same, notebook("a | 1\nb | 2", "figure: loss [0123]"))) == []
    (table,) = stale(same, notebook("a | 1\nb | 3", "figure: loss [0123]"))
    assert table == "cell 1 (show(table)): committed 'b | 2', now 'b | 3'"
    (figure,) = stale(same, notebook("a | 1\nb | 2", "figure: loss [4567]"))
    assert "committed 'figure: loss [0123] as image/png', now 'figure: loss [4567] as image/png'" in figure
    (missing,) = stale(notebook("a | 1\nb | 2"), same)
    assert missing == "cell 1 (show(table)): output missing"


def test_an_unknown_notebook_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["99"]) == 2
    assert capsys.readouterr().err.startswith("error: no notebook 99: there are 0")


def test_a_failing_cell_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "12_broken.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell('RESULTS = "../results"\n1 / 0')]), path)
    assert check(path) == ["12_broken.ipynb: ZeroDivisionError: division by zero"]


def test_no_kernel_outlives_its_notebook(tmp_path: Path) -> None:
    path = tmp_path / "12_pid.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("import os\nprint(os.getpid())")]), path)
    (printed,) = execute(path).cells[0].outputs
    with pytest.raises(ProcessLookupError):
        os.kill(int(printed.text), 0)
