"""Embedded data sets, drawn or read without a download. Every module of this package registers itself."""

from importlib import import_module
from pkgutil import iter_modules

from study.data.dataset import SPLITS, DataConfig, Dataset, Split, dataset, datasets, load, register
from study.data.images import ImageSet, to_float, to_uint8

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SPLITS",
    "DataConfig",
    "Dataset",
    "ImageSet",
    "Split",
    "dataset",
    "datasets",
    "load",
    "register",
    "to_float",
    "to_uint8",
]
