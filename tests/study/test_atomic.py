"""Writers of one file, wherever they run, never touch what another has in hand."""

from pathlib import Path

import pytest

from study.atomic import remove_leftovers, write_file, write_text


def test_writers_with_the_same_process_id_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two containers, or on two machines, every first process is number 1."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    file = tmp_path / "state.json"

    def write(temporary: Path) -> None:
        temporary.write_text("mine")
        write_text(file, "the other's")  # begun and done while we are at it
        assert temporary.read_text() == "mine"

    write_file(file, write)
    assert file.read_text() == "mine"
    assert [left.name for left in tmp_path.iterdir()] == ["state.json"]


def test_what_a_killed_writer_leaves_is_found(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    left: list[Path] = []

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        left.append(temporary.rename(tmp_path / f"{temporary.name}.kept"))
        temporary.write_text("")

    write_file(file, write)
    (killed,) = (one.rename(one.with_suffix("")) for one in left)  # as it lay when the writer was killed
    assert killed in set(tmp_path.glob(f".{file.name}.*.tmp"))
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [file]
