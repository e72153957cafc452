"""Words after a sweep file, in hydra's grammar, put into its tree: `train.lr=1e-4`, `axes.seed=[0,1]`, `~exclude`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study.marked_yaml import COMMAND_LINE, Keys, Marked
from study.strict import ConfigError


def with_words(marked: Marked, words: Sequence[str], sections: Sequence[str]) -> Marked:
    """The tree with the words applied; `sections` are the keys that a sweep file may have."""
    if not words:
        return marked
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    tree, lines, parser = _copied(marked.tree), dict(marked.lines), OverridesParser.create()
    for word in words:
        try:
            override = parser.parse_override(_quoted(word))
        except HydraException as error:
            reason = next(iter(str(error).splitlines()), "")
            raise ConfigError(f"{word!r} is not an override such as train.lr=1e-4: {reason}") from error
        if override.is_sweep_override():
            key = override.key_or_group
            raise ConfigError(f"{word!r} names several values: an axis is written 'axes.{key}=[...]'")
        keys = _place(override.key_or_group, sections)
        value = None if override.is_delete() else override.value()
        _put(tree, lines, keys, value, override.is_delete(), word)
    return Marked(marked.file, tree, lines)


def _quoted(word: str) -> str:
    """A path may have blanks, apostrophes and letters of which hydra's grammar knows nothing outside quotes."""
    key, _, value = word.partition("=")
    if not value or value[0] in "'\"" or (key != "results" and (value.isascii() or value[0] in "[{")):
        return word
    return f"{key}='" + value.replace("'", r"\'") + "'"


def _place(key: str, sections: Sequence[str]) -> tuple[str, ...]:
    """Where in the file a word of the command line belongs."""
    section, _, rest = key.partition(".")
    if section in sections:
        return (section, rest) if rest else (section,)
    return ("defaults", key) if "." not in key and key not in ("seed", "results") else ("overrides", key)


def _put(tree: dict[str, Any], lines: dict[Keys, int], keys: Keys, value: Any, delete: bool, word: str) -> None:
    *parents, last = keys
    for parent in parents:
        here = tree.get(str(parent))
        if parent == "defaults" and isinstance(here, list):
            here = {key: preset for entry in here if isinstance(entry, dict) for key, preset in entry.items()}
        if parent == "launcher" and isinstance(here, str):
            here = {"name": here}
        if here is not None and not isinstance(here, dict):
            raise ConfigError(f"{word!r} does not fit: {parent}: is not a mapping in the sweep file")
        tree = tree.setdefault(str(parent), {}) if here is None else _set(tree, str(parent), here)
    if delete and last not in tree:
        raise ConfigError(f"{word!r} deletes what is not there")
    if delete:
        del tree[str(last)]
    else:
        tree[str(last)] = value
    for place in [place for place in lines if place[: len(keys)] == keys]:
        del lines[place]
    lines[keys] = COMMAND_LINE


def _set(tree: dict[str, Any], key: str, value: dict[str, Any]) -> dict[str, Any]:
    tree[key] = value
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
