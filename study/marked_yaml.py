"""YAML as plain trees that remember their lines, without YAML's surprises.

Duplicate keys, tabs, recursive anchors and tags are refused; `no` is text, `1e-3` a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from study.strict import ConfigError, dotted

Keys = tuple[str | int, ...]
"""The way to a place in a tree: `("axes", "seed", 0)`."""

COMMAND_LINE = 0  # in place of a line number: the entry is not from the file

_SCALARS = {
    "tag:yaml.org,2002:null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "tag:yaml.org,2002:bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    ),
}


_TAGS = {*_SCALARS, *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, None)
    _Dumper.add_implicit_resolver(_tag, _pattern, None)


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Text that `parse_marked` reads back to the same tree."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def yaml_value(where: str, text: str) -> Any:
    """What a person wrote behind `where=`."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}={text!r} is not valid: must be a YAML value") from error


@dataclass(frozen=True)
class Marked:
    """A tree from a file and the line that each of its entries began on."""

    file: str
    tree: dict[str, Any]
    lines: Mapping[Keys, int] = field(default_factory=dict)

    def error(self, keys: Keys, message: str) -> ConfigError:
        """A complaint about the entry at `keys`, or about its nearest parent with a place."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        line = self.lines.get(keys)
        if line == COMMAND_LINE:
            return ConfigError(f"command line: {message}")
        return ConfigError(f"{self.file}:{line}: {message}" if line else f"{self.file}: {message}")


def read_marked(path: Path) -> Marked:
    """The mapping in a YAML file; whatever is wrong with it is one line that says where."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file: byte {error.start} is not UTF-8") from error
    return parse_marked(text, str(path))


def parse_marked(text: str, file: str) -> Marked:
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: not YAML: {_explain(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {str(error).splitlines()[0]}") from error
    if root is None:
        raise ConfigError(f"{file} is empty")
    reader = _Reader(file)
    tree = reader.read(root, ())
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}:1: must be a mapping of keys to values, not {_kind(tree)}")
    return Marked(file, tree, reader.lines)


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = (error.problem or str(error)).strip()
    return f"{problem} (a tab: indent with spaces)" if "'\\t'" in problem else problem


class _Reader:
    """Nodes to plain values, by way of SafeLoader's own constructors for scalars."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Keys, int] = {}
        self._open: list[yaml.Node] = []  # the nodes around the present one

    def read(self, node: yaml.Node, keys: Keys) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(keys, line)
        if any(node is parent for parent in self._open):
            raise ConfigError(f"{self.file}:{line}: the anchor here contains itself")
        if node.tag not in _TAGS:
            raise ConfigError(f"{self.file}:{line}: the tag {node.tag} is not supported: plain values only")
        self._open.append(node)
        value = self._value(node, keys)
        self._open.pop()
        return value

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*keys, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise ConfigError(f"{self.file}:{line}: a key must be text, not {_kind(key)}")
            if key in tree:
                first = self.lines[(*keys, key)]
                where = dotted(".".join(map(str, keys)), key)
                raise ConfigError(f"{self.file}:{line}: {where} is given twice, first in line {first}")
            self.lines[(*keys, key)] = line
            tree[key] = self.read(value_node, (*keys, key))
        return tree

    def _scalar(self, node: yaml.Node) -> Any:
        loader = _Loader("")
        try:
            return loader.construct_object(node)  # type: ignore[no-untyped-call,unused-ignore]
        except (ValueError, yaml.YAMLError) as error:
            line = node.start_mark.line + 1
            raise ConfigError(
                f"{self.file}:{line}: {node.value!r} cannot be read: {str(error).splitlines()[0]}"
            ) from error
        finally:
            loader.dispose()


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else "a nested value")
