"""Anyone's images: a folder, a zip file, WebDataset shards, an LMDB; and LSUN, which is the last."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from study.data.archives import shards_place, zip_place
from study.data.databases import DATA, lmdb_place
from study.data.dataset import Dataset
from study.data.folders import folder_place
from study.data.listing import Place
from study.data.streamed import register_files

USUAL = (50_000, 2_000, 10_000)  # images to plan with where nothing is known
LSUN = {"church": ("church_outdoor", 126_227), "bedroom": ("bedroom", 3_033_042)}  # its folder's name, images


def lsun_place(category: str, path: Path) -> Place:
    """The training database. LSUN's own validation images are 300, too few to validate or to score with: left alone."""
    folder = path / f"{category}_train_lmdb"
    return lmdb_place(folder if (folder / DATA).is_file() else path)


def _offer(name: str, side: int, classes: int, counts: tuple[int, int, int]) -> Dataset:
    return Dataset(name=name, size=(side, side), channels=3, classes=classes, counts=counts)


register_files(_offer("folder", 64, 0, USUAL), folder_place)
register_files(_offer("zip", 64, 0, USUAL), zip_place)
register_files(_offer("webdataset", 64, 0, USUAL), shards_place)
register_files(_offer("lmdb", 64, 0, USUAL), lmdb_place)
for _name, (_category, _images) in LSUN.items():
    _counts = (_images - 12_000, 2_000, 10_000)
    register_files(_offer(f"lsun_{_name}", 256, 0, _counts), partial(lsun_place, _category), enlarges=True)
