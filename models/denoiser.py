"""The denoiser contract: what every backbone is, answers, and is asked; and their registry.

A backbone is one file in this package: a frozen config dataclass, an `nn.Module`, and a
`@register` line with its named sizes. Nothing else needs an edit.
"""

from __future__ import annotations

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from models.macs import Macs

TIME_SCALE = 1000
"""`t` runs from 0 (clean) to 1000 (noise) for every process, integer or continuous."""


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(ABC):
    """What the data dictates, common to all backbones; each adds its own few fields.

    Configs know what they cost: `tokens` and `macs` need no network, so a sweep can be costed
    and a budget solved for without building anything.
    """

    size: tuple[int, int] = (32, 32)  # height and width of x
    channels: int = 4
    classes: int = 1000  # 0: unconditional
    class_dropout: float = 0.1  # above 0 there is a null class, label number `classes`
    label_std: float = 0.02  # of label embeddings at the start: DiT's; at 1 labels are learned ten times sooner
    learn_sigma: bool = True  # predict 2C channels: the second half parameterises the variance
    latent_factor: int = 8  # pixels per cell of x along a side (1: pixel space); bookkeeping only

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        object.__setattr__(self, "size", size)
        whole = len(size) == 2 and all(is_whole(side) and side > 0 for side in size)
        require(whole, "size", size, "two positive integers, (height, width)")
        for each in fields(self):
            if each.type in ("int", int):
                require(is_whole(getattr(self, each.name)), each.name, getattr(self, each.name), "an integer")
        require(self.channels > 0, "channels", self.channels, "a positive integer")
        require(self.classes >= 0, "classes", self.classes, "0 (unconditional) or more")
        require(0 <= self.class_dropout < 1, "class_dropout", self.class_dropout, "in [0, 1)")
        require(0 < self.label_std < math.inf, "label_std", self.label_std, "above 0")
        require(self.latent_factor > 0, "latent_factor", self.latent_factor, "a positive integer")
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Refuse impossible field combinations with `require`."""

    @abstractmethod
    def tokens(self, size: tuple[int, int] | None = None) -> int:
        """Length of the sequence the backbone mixes (positions at the finest level of a U-Net)."""

    @abstractmethod
    def macs(self, size: tuple[int, int] | None = None) -> Macs:
        """MACs of one image of `size` (default: the config's own), in closed form."""

    def idle(self) -> set[str]:
        """Fields that change nothing, given the others: two configs that differ only in these are one network.

        They are left out of run ids. A backbone adds its own to these.
        """
        return set() if self.classes else {"class_dropout", "label_std"}

    @property
    def out_channels(self) -> int:
        return 2 * self.channels if self.learn_sigma else self.channels

    @property
    def has_null_class(self) -> bool:
        return self.classes > 0 and self.class_dropout > 0

    @property
    def label_rows(self) -> int:
        """Rows of the label embedding table: every class, and the null class when there is one."""
        return self.classes + self.has_null_class


def require(holds: bool, field: str, value: object, valid: str) -> None:
    """One line that names the field, its value and what would be valid."""
    if not holds:
        raise ValueError(f"{field}={value!r} is not valid: must be {valid}")


def is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{field}={value!r} is not valid: must be one of {', '.join(choices)}{hint}")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share an optimiser treatment; `lr_scale` multiplies the run's learning rate."""

    name: str
    parameters: list[nn.Parameter]
    weight_decay: bool = True
    lr_scale: float = 1.0


class Denoiser(nn.Module, ABC):
    """`forward(x (B,C,H,W), t (B,), y (B,) | None) -> (B, C or 2C, H, W)`.

    Built from its config alone. Draws no random numbers of its own for labels: the caller drops
    them (`drop_labels`), so that every backbone of a study drops the same ones.
    """

    version: ClassVar[int] = 1  # raise when outputs change for the same weights: it enters run ids
    zero_init_output: ClassVar[bool] = True  # claims: the fresh network predicts exactly zero
    config: DenoiserConfig

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The network itself, on checked inputs."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self._check_inputs(x, t, y)
        return self.denoise(x, t, y)

    @property
    def sees_both_ends(self) -> bool:
        """Claims: every output position depends on the first and the last input position."""
        return True

    def drop_labels(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Replace each label by the null class with probability `class_dropout`."""
        if not self.config.has_null_class:
            return y
        drop = torch.rand(y.shape, generator=generator, device=y.device) < self.config.class_dropout
        return torch.where(drop, self.config.classes, y)

    def parameter_groups(self) -> list[ParameterGroup]:
        """All trainable parameters once each, those whose maths forbids weight decay apart.

        A module names such parameters of its own in `no_weight_decay`, and may slow them down
        with `lr_scale` (state-space parameters, in practice).
        """
        special: dict[float, list[nn.Parameter]] = {}
        claimed: set[int] = set()
        for module in self.modules():
            for name in getattr(module, "no_weight_decay", ()):
                parameter = module.get_parameter(name)
                if parameter.requires_grad and id(parameter) not in claimed:
                    special.setdefault(getattr(module, "lr_scale", 1.0), []).append(parameter)
                    claimed.add(id(parameter))
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in claimed]
        groups = [ParameterGroup("main", rest)]
        groups += [ParameterGroup("ssm", ps, False, scale) for scale, ps in sorted(special.items())]
        return groups

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights published under the reference code's key names; refuse partial ones."""
        own = {self.reference_key(key): key for key in self.state_dict()}
        prefix = _common_prefix(state, own)
        given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
        if missing or unexpected:
            raise ValueError(
                f"not a {type(self).__name__} checkpoint of this config: "
                f"missing {_some(missing)}; unexpected {_some(unexpected)}"
            )
        for key, mine in own.items():
            shape = tuple(self.state_dict()[mine].shape)
            require(tuple(given[key].shape) == shape, key, tuple(given[key].shape), f"shape {shape}")
        self.load_state_dict({mine: given[key] for key, mine in own.items()})

    def reference_key(self, key: str) -> str:
        """The reference code's name for one of our state-dict keys; ours follow it unless overridden."""
        return key

    def _check_inputs(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        config, shape = self.config, tuple(x.shape)
        expected = (config.channels, *config.size)
        require(x.ndim == 4 and shape[1:] == expected, "x.shape", shape, f"(batch, {', '.join(map(str, expected))})")
        weights = next(self.parameters())
        autocast = torch.is_autocast_enabled(x.device.type) if x.device.type != "meta" else False
        require(
            x.dtype == weights.dtype or (autocast and x.is_floating_point()), "x.dtype", x.dtype, str(weights.dtype)
        )
        require(t.shape == shape[:1], "t.shape", tuple(t.shape), f"{shape[:1]}, one time per image")
        require(not (t.is_complex() or t.dtype == torch.bool), "t.dtype", t.dtype, "integer or floating")
        if config.classes == 0:
            require(y is None, "y", y, "None: this backbone is unconditional (classes=0)")
        else:
            require(y is not None, "y", y, f"labels in 0..{config.label_rows - 1}: this backbone is class-conditional")
            assert y is not None
            require(y.shape == shape[:1], "y.shape", tuple(y.shape), f"{shape[:1]}, one label per image")
            require(y.dtype in (torch.int64, torch.int32), "y.dtype", y.dtype, "torch.int64")
        self._check_values(t, y)

    def _check_values(self, t: Tensor, y: Tensor | None) -> None:
        """Ranges are read on the CPU only: on an accelerator it would stall every step."""
        if torch.compiler.is_compiling() or t.device.type != "cpu" or t.numel() == 0:
            return
        low, high = t.min().item(), t.max().item()
        require(low >= 0 and high <= TIME_SCALE, "t", [low, high], f"within [0, {TIME_SCALE}]")
        if y is not None:
            first, last = int(y.min()), int(y.max())
            null = f", null class {self.config.classes}" if self.config.has_null_class else ""
            require(
                first >= 0 and last < self.config.label_rows,
                "y",
                [first, last],
                f"within 0..{self.config.label_rows - 1} ({self.config.classes} classes{null})",
            )


def _common_prefix(state: Mapping[str, Tensor], own: Iterable[str]) -> str:
    """Published files often wrap the network, as in `model.diffusion_model.`; which of two is meant, none can say."""
    keys = list(own)
    prefixes = {key.removesuffix(keys[0]) for key in state if key.endswith(keys[0])}
    whole = sorted(prefix for prefix in prefixes if all(prefix + key in state for key in keys))
    if len(whole) > 1 and "" not in whole:
        raise ValueError(f"state holds {len(whole)} such networks, under {', '.join(whole)}: pass the keys of one")
    return min(whole or prefixes, key=len, default="")


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "nothing"


@dataclass(frozen=True)
class Backbone:
    """A registered architecture: its class, its config class and its named sizes."""

    name: str
    denoiser: type[Denoiser]
    config: type[DenoiserConfig]
    sizes: Mapping[str, DenoiserConfig]


_REGISTRY: dict[str, Backbone] = {}
AnyDenoiser = TypeVar("AnyDenoiser", bound=type[Denoiser])


def register(name: str, sizes: Mapping[str, DenoiserConfig]) -> Callable[[AnyDenoiser], AnyDenoiser]:
    """Class decorator: `@register("dit", sizes={"s/2": DiTConfig(...)})` adds `dit-s/2` everywhere."""
    require(bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)), "name", name, "lower case letters, digits, underscores")
    require(bool(sizes), "sizes", sizes, "at least one named size")

    def add(denoiser: AnyDenoiser) -> AnyDenoiser:
        existing = _REGISTRY.get(name)
        if existing is not None and _path(existing.denoiser) != _path(denoiser):
            raise ValueError(f"backbone name {name!r} is already taken by {_path(existing.denoiser)}")
        config = type(next(iter(sizes.values())))
        _REGISTRY[name] = Backbone(name, denoiser, config, dict(sizes))
        return denoiser

    return add


def _path(denoiser: type[Denoiser]) -> str:
    """Where a class was written; a reloaded module's is the same and may register again."""
    return f"{denoiser.__module__}.{denoiser.__qualname__}"


def backbones() -> dict[str, Backbone]:
    """Every registered architecture by name."""
    return dict(_REGISTRY)


def named_sizes() -> Iterator[str]:
    """Every name that `named_config` knows, such as `dit-xl/2`."""
    for name, backbone in _REGISTRY.items():
        yield from (f"{name}-{size}" for size in backbone.sizes)


def split_name(name: str) -> tuple[Backbone, str]:
    """The backbone and size behind a name such as `dit-xl/2`."""
    family, _, size = name.partition("-")
    backbone = _REGISTRY.get(family)
    if backbone is None or size not in backbone.sizes:
        near = difflib.get_close_matches(name, list(named_sizes()), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(named_sizes())}"
        raise ValueError(f"unknown backbone {name!r}: {hint}")
    return backbone, size


def named_config(name: str, **overrides: Any) -> DenoiserConfig:
    """The config of a named size, with fields replaced: `named_config("diffussm-xl", M=1, size=64)`."""
    backbone, size = split_name(name)
    known = [field.name for field in fields(backbone.config)]
    for key in overrides:
        require_choice("field", key, tuple(known))
    return replace(backbone.sizes[size], **overrides)


def build(name: str, **overrides: Any) -> Denoiser:
    """Construct a named backbone on the current default device (`with torch.device("meta")` costs nothing)."""
    backbone, _ = split_name(name)
    return backbone.denoiser(named_config(name, **overrides))
