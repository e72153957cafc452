"""Several processes doing one run: who they are, how they agree, and what happens when one is lost.

Rank 0 owns every file. Tensors travel over gloo (CPU) or NCCL (GPU); everything else is said through the
store that brought the ranks together, where each also leaves signs of life: one may wait for another for
as long as that lives, and no longer.
"""

from __future__ import annotations

import itertools
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from study.strict import ConfigError

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them
TIMEOUT = 600.0  # seconds of waiting in a collective after which a rank counts as lost
TIMEOUT_VARIABLE = "RANK_TIMEOUT"  # overrides it
BEAT = 1.0  # seconds between signs of life
SILENCE = 90.0  # seconds without any after which a rank counts as lost, or TIMEOUT if that is shorter
POLL = 0.05  # seconds between looks at the store
LAST_WORDS = 3.0  # seconds that a rank which lost others waits to hear why


class LostRankError(Exception):
    """Another rank of this run ended, or fell silent."""


class RankError(Exception):
    """What went wrong on another rank, when its exception itself could not be sent."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run; alone by default."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on its machine: picks the GPU
    timeout: float = TIMEOUT
    store: Store | None = field(default=None, repr=False)
    _turns: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` consecutive things are this rank's: as even as can be, in order, maybe none."""
        return range(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def first_alone(self, work: Callable[[], T]) -> T:
        """Rank 0 works, however long it takes; the others wait. All get its result, or its exception."""
        if self.store is None:
            return work()
        key = f"turn/{next(self._turns)}"
        if not self.is_first:
            return _unpacked(self._awaited(key))
        try:
            result = work()
        except BaseException as error:
            self._say(key, error)
            raise
        self._say(key, result)
        return result

    def exchange(self, value: T) -> list[T]:
        """Every rank's value, known to all. Small ones: tensors travel otherwise."""
        if self.store is None:
            return [value]
        turn = next(self._turns)
        self._say(f"turn/{turn}/{self.rank}", value)
        return [_unpacked(self._awaited(f"turn/{turn}/{rank}")) for rank in range(self.world_size)]

    def together(self, work: Callable[[], T]) -> T:
        """Every rank works; if it fails on any, all raise."""
        try:
            result, complaint = work(), None
        except Exception as error:
            result, complaint = None, error
        complaints = self.exchange(None if complaint is None else [_sendable(complaint)])
        if complaint is not None:
            raise complaint
        for said in complaints:
            if said is not None:
                raise said[0]
        return result  # type: ignore[return-value]

    @contextmanager
    def on_first(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        """Rank 0 enters the context for all; if it cannot, nobody goes on."""
        with ExitStack() as stack:
            self.first_alone(lambda: stack.enter_context(context) and None)
            yield

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.store is not None:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.store is None:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def broadcast(
        self, tensors: Mapping[str, Tensor], own: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    ) -> dict[str, Tensor]:
        """Rank 0's tensors, on the CPU of every rank; what the others pass is ignored.

        They keep of each, one after another, what `own` makes of it.
        """
        if self.store is None:
            return dict(tensors)
        mine = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()} if self.is_first else {}
        shapes = self.first_alone(lambda: {name: (tensor.shape, tensor.dtype) for name, tensor in mine.items()})
        for name, (shape, dtype) in shapes.items():
            tensor = mine[name] if self.is_first else torch.empty(shape, dtype=dtype)
            dist.broadcast(tensor, src=0)
            mine[name] = tensor if self.is_first else own(name, tensor)
        return mine

    def fail(self, reason: str) -> None:
        """Leave word of why this rank goes, for those that will miss it."""
        if self.store is not None:
            with suppress(dist.DistError, RuntimeError):
                self.store.set(f"failure/{self.rank}", reason)

    def last_words(self) -> str | None:
        """Why another rank went, if it had the time to say."""
        deadline = time.monotonic() + LAST_WORDS
        while self.store is not None and time.monotonic() < deadline:
            try:
                self._check_failures()
            except LostRankError as error:
                return str(error)
            except (dist.DistError, RuntimeError):  # the store went with rank 0
                return None
            time.sleep(POLL)
        return None

    def _say(self, key: str, value: Any) -> None:
        assert self.store is not None
        self.store.set(key, _packed(value))  # type: ignore[arg-type]  # its stub knows only str

    def _awaited(self, key: str) -> bytes:
        """What another rank is going to say, however long it works, as long as all live."""
        assert self.store is not None
        heard = _Heard(self.store, self.world_size, min(self.timeout, SILENCE))
        while not self.store.check([key]):
            try:
                self._check_failures()
                heard.check()
            except LostRankError:
                if self.store.check([key]):  # it was said meanwhile, and whoever went did so knowing it
                    break
                raise
            time.sleep(POLL)
        return self.store.get(key)

    def _check_failures(self) -> None:
        assert self.store is not None
        for rank in range(self.world_size):
            key = f"failure/{rank}"
            if rank != self.rank and self.store.check([key]):
                raise LostRankError(f"rank {rank} of {self.world_size}: {self.store.get(key).decode()}")


class _Heard:
    """When each rank last gave a sign of life."""

    def __init__(self, store: Store, world_size: int, timeout: float) -> None:
        self.store, self.timeout = store, timeout
        self.beats = dict.fromkeys(range(world_size), -1)
        self.since = dict.fromkeys(range(world_size), time.monotonic())
        self._looked = time.monotonic()

    def check(self) -> None:
        """Raise if a rank has been silent for too long."""
        now = time.monotonic()
        if now - self._looked < BEAT:
            return
        self._looked = now
        for rank, known in self.beats.items():
            beat = self.store.add(f"beat/{rank}", 0)
            if beat != known:
                self.beats[rank], self.since[rank] = beat, now
            elif now - self.since[rank] > self.timeout:
                raise LostRankError(f"rank {rank} of {len(self.beats)} fell silent for {self.timeout:g} s")


_current = Ranks()


def current() -> Ranks:
    """The ranks that this process has joined; alone if none."""
    return _current


@contextmanager
def join(timeout: float | None = None) -> Iterator[Ranks]:
    """Meet the other processes that torchrun, or a SLURM job, started for this run. Without any, nothing happens."""
    global _current
    ranks = from_environment(os.environ, timeout)
    if ranks.world_size == 1:
        yield ranks
        return
    limit = timedelta(seconds=ranks.timeout)
    try:
        store = next(rendezvous("env://", timeout=limit))[0]
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=limit)
    except (dist.DistError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LostRankError(f"the {ranks.world_size} ranks did not meet: {reason}") from error
    own = PrefixStore("run", store)
    done = threading.Event()
    threading.Thread(target=_beat, args=(own.clone(), ranks.rank, done), name="beat", daemon=True).start()
    _current = Ranks(ranks.rank, ranks.world_size, ranks.local_rank, ranks.timeout, own)
    try:
        yield _current
        _part(_current)
    finally:
        _current = Ranks()
        done.set()
        dist.destroy_process_group()


def _part(ranks: Ranks) -> None:
    """Rank 0, with whom the store goes, leaves last; for the dead it does not wait."""
    assert ranks.store is not None
    with suppress(LostRankError, dist.DistError, RuntimeError):
        ranks.store.set(f"left/{ranks.rank}", "")
        heard = _Heard(ranks.store, ranks.world_size, LAST_WORDS)
        left = [f"left/{rank}" for rank in range(ranks.world_size)]
        while ranks.is_first and not ranks.store.check(left):
            heard.check()
            time.sleep(POLL)


def _beat(store: Store, rank: int, done: threading.Event) -> None:
    with suppress(dist.DistError, RuntimeError):  # the store went with rank 0: the others notice by themselves
        while not done.wait(BEAT):
            store.add(f"beat/{rank}", 1)


def from_environment(variables: Mapping[str, str], timeout: float | None = None) -> Ranks:
    """Who this process is, by torchrun's variables; none of them: alone."""
    if "RANK" not in variables and "WORLD_SIZE" not in variables:
        return Ranks()
    missing = [name for name in VARIABLES if name not in variables]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} not set, though RANK or WORLD_SIZE is: start several processes through torchrun "
            "or SLURM, or unset both"
        )
    rank, world_size, local_rank = (_number(variables, name) for name in VARIABLES[:3])
    if not rank < world_size:
        raise ConfigError(f"RANK={rank} is not valid: must be below WORLD_SIZE={world_size}")
    if timeout is None:
        timeout = _number(variables, TIMEOUT_VARIABLE) if TIMEOUT_VARIABLE in variables else TIMEOUT
    return Ranks(rank, world_size, local_rank, timeout)


def _number(variables: Mapping[str, str], name: str) -> int:
    if not variables[name].isdecimal():
        raise ConfigError(f"{name}={variables[name]!r} is not valid: must be 0 or more")
    return int(variables[name])


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another rank went. Gloo says so in a RuntimeError that names its own source file."""
    by_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)
    return isinstance(error, LostRankError | dist.DistError) or by_gloo


def _packed(value: Any) -> bytes:
    failed = isinstance(value, BaseException)
    return pickle.dumps((failed, _sendable(value) if failed else value))


def _unpacked(content: bytes) -> Any:
    failed, value = pickle.loads(content)
    if failed:
        raise value
    return value


def _sendable(error: BaseException) -> BaseException:
    """The error, or its words where it does not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RankError(f"{type(error).__name__}: {error}")
