"""Data sets, embedded or on disk. Every module of this package registers itself."""

from importlib import import_module
from pkgutil import iter_modules

from study.data.dataset import (
    COUNTS,
    ON_DISK,
    SPLITS,
    DataConfig,
    Dataset,
    Found,
    Split,
    check_has_path,
    dataset,
    datasets,
    drawn,
    load,
    offered,
    register,
    register_on_disk,
)
from study.data.images import ImageSet, to_float, to_uint8
from study.data.source import Source

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")

__all__ = [
    "COUNTS",
    "ON_DISK",
    "SPLITS",
    "DataConfig",
    "Dataset",
    "Found",
    "ImageSet",
    "Source",
    "Split",
    "check_has_path",
    "dataset",
    "datasets",
    "drawn",
    "load",
    "offered",
    "register",
    "register_on_disk",
    "to_float",
    "to_uint8",
]
