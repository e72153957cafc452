"""Tables derived from parameters, kept between forward passes that do not train."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Entry:
    key: Hashable
    sources: tuple[Tensor, ...]
    marks: tuple[tuple[int, int], ...]
    contents: tuple[Tensor, ...]
    tables: list[Tensor]


class TableCache:
    """One entry: tables for one key (length, dtype, ...), remade whenever a source differs.

    On the CPU contents are compared, so any change is seen. On an accelerator that would stall the queue:
    there the version counter, identity and address tell, which see an optimiser's step, `load_state_dict`,
    and averages written without gradients. They do not see a write through `p.data` in place, nor a fused
    optimiser's; those need `clear`, which the owner calls on train/eval, on a forward pass with gradients,
    on loading and on moving. Copies and pickles of a cache are empty.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def get(self, key: Hashable, sources: tuple[Tensor, ...], make: Callable[[], list[Tensor]]) -> list[Tensor]:
        if any(source.is_inference() for source in sources):  # these have no version counter
            return make()
        key = (key, *((source.device, source.dtype) for source in sources))
        if self._entry is None or not _current(self._entry, key, sources):
            contents = tuple(s.detach().clone() for s in sources if s.device.type == "cpu")
            self._entry = _Entry(key, sources, _marks(sources), contents, make())
        return self._entry.tables

    def clear(self) -> None:
        self._entry = None

    def __reduce__(self) -> tuple[type[TableCache], tuple[()]]:
        return type(self), ()


def _marks(sources: tuple[Tensor, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((source._version, source.data_ptr()) for source in sources)


def _current(entry: _Entry, key: Hashable, sources: tuple[Tensor, ...]) -> bool:
    same = all(source is known for source, known in zip(sources, entry.sources, strict=True))
    if entry.key != key or not same or entry.marks != _marks(sources):
        return False
    cpu = (source.detach() for source in sources if source.device.type == "cpu")
    return all(torch.equal(source, known) for source, known in zip(cpu, entry.contents, strict=True))
