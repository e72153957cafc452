"""From words on a command line to a config: hydra composes presets and overrides, `from_dict` judges the result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from models import named_sizes, split_name
from study import presets
from study.config import RunConfig, dictated_by_data, from_dict, process_name
from study.data import DataConfig, datasets
from study.strict import ConfigError, nearest, to_tree

DEFAULTS = {
    "backbone": "dit-tiny",
    "data": "digits8",
    "process": "cosine",
    "train": "quick",
    "sample": "grid",
    "score": "none",
    "machine": "default",
    "log": "default",
}


def resolve(overrides: Sequence[str]) -> RunConfig:
    """The run that overrides such as `backbone=dit-s/2 train.lr=1e-4` mean; one-line errors."""
    return from_dict(compose_tree(overrides))


def compose_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """Presets and overrides merged into a plain tree, not yet checked."""
    _register()
    words = [_checked(override).input_line or "" for override in _parse(overrides)]
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            composed = compose("run", overrides=words)
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def options(group: str) -> dict[str, Any]:
    """Every preset of a group by name, as plain trees."""
    groups: dict[str, dict[str, Any]] = {
        "backbone": {name: _backbone_option(name) for name in named_sizes()},
        "data": {name: to_tree(DataConfig(name=name)) for name in datasets()},
        "process": {name: _process_option(name) for name in presets.PROCESS},
        "train": {name: to_tree(preset) for name, preset in presets.TRAIN.items()},
        "sample": {name: to_tree(preset) for name, preset in presets.SAMPLE.items()},
        "score": {name: to_tree(preset) for name, preset in presets.SCORE.items()},
        "machine": {name: to_tree(preset) for name, preset in presets.MACHINE.items()},
        "log": {name: to_tree(preset) for name, preset in presets.LOG.items()},
    }
    return groups[group]


@cache
def _register() -> None:
    store = ConfigStore.instance()
    for group in DEFAULTS:
        for name, tree in options(group).items():
            folder, _, leaf = f"{group}/{name}".rpartition("/")  # dit-s/2 is option 2 of the folder dit-s
            store.store(group=folder, name=leaf, node=tree, package=group)
    seeds = {"data": None, "noise": None, "init": None}  # null: the run's seed
    root = {"defaults": ["_self_", *({group: name} for group, name in DEFAULTS.items())]}
    store.store(name="run", node={**root, "seed": 0, "seeds": seeds, "results": "results"})


def _backbone_option(name: str) -> dict[str, Any]:
    """The named size without what data and process dictate."""
    backbone, size = split_name(name)
    dictated = dictated_by_data(DataConfig(), learns_variance=False)
    fields = {key: value for key, value in to_tree(backbone.sizes[size]).items() if key not in dictated}
    return {"name": backbone.name, **fields}


def _process_option(name: str) -> dict[str, Any]:
    preset = presets.PROCESS[name]
    return {"name": process_name(preset), **to_tree(preset)}


def _parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's grammar; a plain `key=value` is let through whatever the key, for `from_dict` knows it better."""
    parser = OverridesParser.create()
    parsed = []
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise ConfigError(f"{word!r} is not an override such as train.lr=1e-4: {_first_line(error)}") from error
        if override.type is OverrideType.CHANGE and override.key_or_group not in DEFAULTS:
            override = parser.parse_override(f"++{word}")
        parsed.append(override)
    return parsed


def _checked(override: Override) -> Override:
    key = override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(f"{override.input_line!r} names several values: a run takes one, a sweep takes axes")
    if override.type is OverrideType.DEL:
        raise ConfigError(f"{override.input_line!r} deletes a key: a run needs them all")
    if key in DEFAULTS:
        known = list(options(key))
        if override.value() not in known:
            raise ConfigError(f"{key}={override.value()} is not a preset{nearest(str(override.value()), known)}")
    return override


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
