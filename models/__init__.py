"""Diffusion backbones behind one contract. Every module of this package registers itself."""

from importlib import import_module
from pkgutil import iter_modules

from models.denoiser import (
    TIME_SCALE,
    Backbone,
    Denoiser,
    DenoiserConfig,
    ParameterGroup,
    backbones,
    build,
    named_config,
    named_sizes,
    register,
    split_name,
)
from models.macs import Macs

for _module in iter_modules(__path__):
    if not _module.ispkg:
        import_module(f"{__name__}.{_module.name}")

__all__ = [
    "TIME_SCALE",
    "Backbone",
    "Denoiser",
    "DenoiserConfig",
    "Macs",
    "ParameterGroup",
    "backbones",
    "build",
    "named_config",
    "named_sizes",
    "register",
    "split_name",
]
