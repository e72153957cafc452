"""What to time, and how: a cell is one subject in one role; a protocol is what makes its numbers believable."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from models.denoiser import DenoiserConfig, named_config, require, require_choice
from models.macs import Macs, attention, linear
from models.ssm.s4d import s4d_macs
from study.atomic import canonical_json
from study.marked_yaml import yaml_value
from study.strict import from_tree, to_tree

VERSION = 1  # raise when the same cell would give other numbers
MODES = ("forward", "train", "sample")
Compile = Literal[False, True, "max-autotune"]
DTYPES = ("fp32", "bf16", "fp16")
HEAD = 64  # width of one attention head
FORMS = ("s4d", "s4d-textbook", "attention")


@dataclass(frozen=True)
class Protocol:
    """How often and how long. Samples and seconds are what a cell gets in all, shared evenly by its processes."""

    min_samples: int = 30
    min_seconds: float = 3.0
    repeats: int = 3  # fresh processes per cell
    blocks: int = 10  # per process; cells take turns block by block
    seed: int = 0  # of the order of turns, and of the bootstrap
    noisy: float = 0.10  # IQR / median above which a cell is flagged
    rejected: float = 0.25  # and above which it is not reported

    def __post_init__(self) -> None:
        for name in ("min_samples", "repeats", "blocks"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive integer")
        seconds = math.isfinite(self.min_seconds) and self.min_seconds >= 0
        require(seconds, "min_seconds", self.min_seconds, "0 or more")
        ordered = 0 < self.noisy <= self.rejected < math.inf
        require(ordered, "noisy, rejected", (self.noisy, self.rejected), "positive and in this order")

    @property
    def block_samples(self) -> int:
        return math.ceil(self.min_samples / (self.repeats * self.blocks))

    @property
    def block_seconds(self) -> float:
        return self.min_seconds / (self.repeats * self.blocks)

    @property
    def name(self) -> str:
        """Rows of one name were timed alike."""
        bounds = (self.noisy, self.rejected)
        judged = "" if bounds == (Protocol.noisy, Protocol.rejected) else "-q{:g}-{:g}".format(*bounds)
        return f"bench-{VERSION}-n{self.min_samples}-s{self.min_seconds:g}-p{self.repeats}-b{self.blocks}{judged}"


@cache
def spelled(text: str, size: tuple[int, int] | None = None) -> DenoiserConfig:
    """`diffussm-s` is a named size, `diffussm-s:M=4,stream=full` the same with fields replaced."""
    name, colon, changes = text.partition(":")
    plain = named_config(name)
    given = {"size": list(size)} if size else {}
    for change in re.split(r",(?=\w+=)", changes) if colon else []:
        key, equals, value = change.partition("=")
        require(bool(key and equals and value), "backbone", text, "NAME:FIELD=VALUE,FIELD=VALUE")
        given[key] = yaml_value(key, value)
    return from_tree(type(plain), {**to_tree(plain), **given})


def spelling_of(name: str, config: DenoiserConfig) -> str:
    """What `spelled` makes the config of, its size apart, by what it has different from a named one."""
    plain, own = to_tree(named_config(name)), to_tree(config)
    changed = {key: value for key, value in own.items() if value != plain[key] and key != "size"}
    words = (f"{key}={value if isinstance(value, str) else canonical_json(value)}" for key, value in changed.items())
    return f"{name}:{','.join(words)}" if changed else name


@dataclass(frozen=True)
class Network:
    """A backbone as `spelled` on inputs of `size`; with `peer`, the foreign module that stands in for it."""

    backbone: str
    size: tuple[int, int]  # of the network's input
    peer: str = ""  # name=path:callable

    @property
    def config(self) -> DenoiserConfig:
        return spelled(self.backbone, self.size)

    @property
    def name(self) -> str:
        return self.peer.partition("=")[0] or self.backbone

    @property
    def shape(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"

    def macs(self) -> Macs | None:
        return None if self.peer else self.config.macs()


@dataclass(frozen=True)
class Layer:
    """One sequence mixer on (batch, length, width): what a block mixes tokens with, and nothing around it."""

    form: str
    length: int
    width: int
    state: int = 16
    join: str = "concat"

    def __post_init__(self) -> None:
        require_choice("form", self.form, FORMS)
        require(self.length > 0, "length", self.length, "a positive integer")
        heads = 0 < self.width <= HEAD or (self.width > 0 and self.width % HEAD == 0)
        require(heads, "width", self.width, f"positive, and if above {HEAD} a multiple of it (the width of a head)")

    @property
    def heads(self) -> int:
        return max(1, self.width // HEAD)

    @property
    def name(self) -> str:
        return self.form

    @property
    def shape(self) -> str:
        return f"L={self.length} D={self.width}" + ("" if self.form == "attention" else f" N={self.state} {self.join}")

    def macs(self) -> Macs:
        L, D = self.length, self.width
        if self.form == "attention":
            return linear(L, D, 3 * D) + attention(L, L, D) + linear(L, D, D)
        return s4d_macs(L, D, self.state, join=self.join)


@dataclass(frozen=True)
class Spin:
    """So many units of arithmetic: known relative cost, to try the measuring itself on a machine."""

    units: int

    def __post_init__(self) -> None:
        require(self.units > 0, "spin", self.units, "a positive number of units")

    @property
    def name(self) -> str:
        return f"spin:{self.units}"

    @property
    def shape(self) -> str:
        return ""

    def macs(self) -> None:
        return None


Subject = Network | Layer | Spin


@dataclass(frozen=True)
class Cell:
    """One subject in one role under one setting: all that its process needs to know."""

    subject: Subject
    mode: str = "forward"
    batch: int = 1
    dtype: str = "fp32"
    compile: Compile = False
    device: str = "cpu"
    threads: int = 1
    steps: int = 20  # of a sample
    guidance: float = 1.0

    def __post_init__(self) -> None:
        require_choice("mode", self.mode, MODES)
        require_choice("dtype", self.dtype, DTYPES)
        for name in ("batch", "threads", "steps"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive integer")
        networks = isinstance(self.subject, Network) or self.mode != "sample"
        require(networks, "mode", self.mode, f"forward or train for {self.subject.name}")
        if self.mode == "sample" and self.guidance != 1:
            network = self.subject
            assert isinstance(network, Network)
            guided = network.config.has_null_class and not network.peer
            require(guided, "guidance", self.guidance, f"1 for {network.name}, which has no null class or is a peer")

    @property
    def group(self) -> tuple[object, ...]:
        """Cells of one group are timed in turns and compared."""
        at: tuple[object, ...] = self.subject.size if isinstance(self.subject, Network) else ()
        if isinstance(self.subject, Layer):
            at = (self.subject.length, self.subject.width, self.subject.state, self.subject.join)
        return (*at, *(getattr(self, n) for n in ("mode", "batch", "dtype", "compile", "device", "steps", "guidance")))

    @property
    def id(self) -> str:
        return hashlib.sha256(canonical_json(to_tree(self)).encode()).hexdigest()[:16]

    @property
    def calls(self) -> int:
        """How often one sample of this mode evaluates the network, a backward pass counting as two."""
        if self.mode == "sample":
            return self.steps * (2 if self.guidance != 1 else 1)
        return 3 if self.mode == "train" else 1

    def gmacs(self) -> float | None:
        """Model MACs of one whole sample of this mode, over the batch; kernels as if cached."""
        macs = self.subject.macs()
        return None if macs is None else macs.total * self.batch * self.calls / 1e9


def cell_from_tree(tree: Any) -> Cell:
    return from_tree(Cell, tree)
