"""`python -m study.data check PATH`: what it recognises, what it finds, and how it ends."""

from collections.abc import Callable
from pathlib import Path

import pytest

from study.data.__main__ import main
from study.data.check import SHOWN, guess
from tests.study.data import made
from tests.study.data.test_decode import REFUSED
from tests.study.data.test_formats import MAKERS


@pytest.mark.parametrize("name", MAKERS)
def test_a_set_is_recognised_and_found_whole(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = MAKERS[name](tmp_path)
    known = guess(path)
    assert known == ("lsun_church" if name == "lmdb" else name)  # its folder is named as LSUN's
    size = [] if name in ("cifar10", "celeba") else ["--size", "16"]
    assert main(["check", str(path), *size]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{path}: data={known}"
    assert lines[-1] == "every image can be used"
    train = {"imagenet": 24, "cifar10": 50, "celeba": 6}.get(name, 40)
    assert lines[0].startswith(f"  images   {train} to train on")


def test_it_counts_classes_and_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made.imagenet(tmp_path)
    made.write(path, {"train/n01440764/large.JPEG": made.jpeg(1, 300, 200)})
    assert main(["check", str(path)]) == 0
    found = capsys.readouterr().out
    assert "  classes  3, usually 1000\n" in found
    assert "  a class  8 to 9 images, n01440764 to n15075141\n" in found
    assert "  pixels   24 x 20 to 300 x 200\n" in found
    assert "  small    37 images are smaller than 256 and will be enlarged\n" in found


def test_every_image_that_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.flat(tmp_path, 10)
    made.write(tmp_path, {f"{number}.png": content for number, (content, _) in enumerate(REFUSED.values())})
    assert main(["check", str(tmp_path), "--size", "16"]) == 1
    found = capsys.readouterr().out
    assert f"\n{len(REFUSED)} images cannot be used:\n" in found
    for number in range(len(REFUSED)):
        assert f"  {tmp_path}: {number}.png " in found


def test_many_are_counted_and_not_all_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.write(tmp_path, {f"{number:03d}.jpg": b"" for number in range(SHOWN + 7)})
    assert main(["check", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "  and 7 more"
    assert sum("is not an image" in line for line in lines) == SHOWN


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{path}/nothing"], "path='{path}/nothing' is not valid: must be a file or folder that exists"),
        (["{path}"], "path='{path}' is not valid: holds no images"),
        (["{path}", "--as", "imagenet"], "{path} has no class folders such as n01440764"),
        (["{path}", "--as", "imagnet"], "name='imagnet' is not valid"),
        (["{path}", "--as", "digits8"], "name='digits8' is not valid: must be a set on disk"),
        (
            ["{path}/a.png"],
            "path='{path}/a.png' is not valid: must be a folder of images, a .zip or a .tar, not one file",
        ),
        (["{path}/latents"], "train has no latents.json: encoding is not finished"),
        (["{path}", "--size", "0"], "size=0 is not valid: must be 1 or more"),
    ],
)
def test_what_is_no_set_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    if "/a.png" in words[0]:
        made.write(tmp_path, {"a.png": made.jpeg(1)})
    if "/latents" in words[0]:
        made.write(tmp_path, {"latents/train/plan.json": b"{}"})
    assert main(["check", *(word.format(path=tmp_path) for word in words)]) == 2
    printed = capsys.readouterr()
    assert message.format(path=tmp_path) in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_a_set_on_disk_can_be_shown(tmp_path: Path) -> None:
    path, sheet = MAKERS["imagenet"](tmp_path), tmp_path / "sheet.png"
    assert main(["show", "imagenet", "--path", str(path), "--size", "16", "--out", str(sheet)]) == 0
    assert sheet.exists()


def test_encode_is_handed_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["encode", "--help"])
    assert left.value.code == 0
    assert "encode" in capsys.readouterr().out


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "imagenet": lambda path: made.imagenet(path / "ILSVRC/Data/CLS-LOC") and path,
    "folder": lambda path: made.write(path, {"a/1.png": b"", "b/2.png": b""}),
    "lsun_bedroom": lambda path: made.lsun(path, 3, "bedroom_train_lmdb"),
    "celeba": lambda path: made.celeba(path, 2) / "img_align_celeba",
    "webdataset": lambda path: made.webdataset(path / "deep/down", 1, 1) and path,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_guesses(name: str, tmp_path: Path) -> None:
    assert guess(FOLDERS[name](tmp_path)) == name
