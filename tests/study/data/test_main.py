"""`python -m study.data`: the listing, the contact sheet, and one line with exit code 2 when asked the impossible."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from study.data import DataConfig, datasets, load
from study.data.__main__ import main


def test_list_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "size", "channels", "classes", "train", "held", "out", "reference", "dials"]
    assert [line.split()[0] for line in lines] == list(datasets())
    digits = next(line for line in lines if line.startswith("digits8"))
    assert digits.split() == ["digits8", "8x8", "1", "10", "1100", "297", "400"]


def test_the_sheet_shows_the_first_images_of_each_class(tmp_path: Path) -> None:
    assert main(["show", "digits8", "--out", str(tmp_path / "sheet.png"), "--split", "heldout"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[::8, ::8]  # 8 pixels enlarged to 64
    assert sheet.shape == (10 * 10, 12 * 10)
    images = load(DataConfig("digits8"), "heldout")
    threes = images.images[images.labels == 3][:, 0].numpy()
    for column in (0, 11):
        tile = sheet[31:39, 10 * column + 1 : 10 * column + 9]
        np.testing.assert_array_equal(tile, threes[column])


def test_dials_reach_the_sheet(tmp_path: Path) -> None:
    for texture in ("0", "1"):
        assert main(["show", "glyphtex32", "--texture", texture, "--out", str(tmp_path / f"{texture}.png")]) == 0
    plain, striped = (np.asarray(Image.open(tmp_path / f"{texture}.png")) for texture in "01")
    assert plain.shape == striped.shape == (10 * 34 * 2, 12 * 34 * 2, 3)
    assert (plain != striped).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["glyph16"], "did you mean 'glyphs16'"),
        (["digits8", "--texture", "1"], "texture=1.0 is not valid"),
        (["digits8", "--seed", "-1"], "seed=-1 is not valid"),
        (["glyphtex32", "--texture", "nan"], "texture=nan is not valid"),
    ],
)
def test_bad_requests_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["show", *arguments, "--out", str(tmp_path / "sheet.png")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, told in ((tmp_path / "missing" / "sheet.png", "No such file or directory"), (tmp_path, "Is a directory")):
        assert main(["show", "digits8", "--out", str(out)]) == 2
        assert capsys.readouterr().err == f"error: --out {out} cannot be written: {told}\n"


def test_importing_the_package_reads_no_data_and_no_slow_library() -> None:
    program = "import sys, study.data; print({'sklearn', 'matplotlib', 'PIL.Image'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
