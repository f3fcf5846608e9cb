"""`emulate()`: a target's limits, met without the target."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import final

import torch
import torch.distributed as dist

from devices import _observing
from devices._backend import Group
from devices._observer import Called, Ended, Observer
from devices.algorithms.lines import caller
from devices.catalogue import Target, load
from devices.errors import UnsupportedError
from devices.testing._memory import Memory
from devices.testing._report import COMPOSED, NATIVE, REFUSED, Asked, Report

_REDUCING = ("all_reduce", "reduce", "reduce_scatter")


@contextlib.contextmanager
def emulate(
    target: str, *, lnc: int | None = None, compose: bool = False, enforce: bool = True, device_tensors: bool = False
) -> Iterator[Emulation]:
    """Let the program meet the limits of `target` while this lasts, on whatever it runs.

    What the target refuses is refused, by an `UnsupportedError` or, for memory, torch's own `OutOfMemoryError`, on
    the calling rank before anything is sent: sizes of the world, groups, reduce ops, dtypes, uneven parts, messages,
    the number of groups, and more tensors than its memory holds. Enter it before the world is opened, or around
    `devices.testing.run`; in a rank's own function it holds for that rank alone.

    Args:
        target: its name in the catalogue; "trainium2-ultraserver", for instance.
        lnc: on Neuron, how many physical cores are one device; the chip's default otherwise.
        compose: allow, and list in the report, what the verbs of `devices` compose from what the target has; torch's
            own verbs go straight to the vendor's group, which composes nothing.
        enforce: raise what is refused; if not, it is only listed in the report, and the program goes on.
        device_tensors: let the target's type of device be there, "neuron" say, one for each rank: `world.device` is
            the rank's own, and a tensor on it that meets one on the CPU is an error, as it is on the target. An op
            then takes some 5 us more.

    Yields:
        The `Emulation`, whose `report` says what the program asked for.

    Raises:
        TargetNotFoundError: there is no such target.

    >>> import torch, devices, devices.testing
    >>> def product(world):
    ...     return devices.all_reduce(torch.tensor(2.0), op="prod").item()
    >>> with devices.testing.emulate("trainium2", compose=True) as emulation:
    ...     devices.testing.run(product, ranks=4)
    [16.0, 16.0, 16.0, 16.0]
    >>> [asked.verb for asked in emulation.report.composed]
    ['all_reduce']
    """
    emulation = Emulation(load(target, lnc=lnc), compose=compose, enforce=enforce, device_tensors=device_tensors)
    with _observing.observe(emulation):
        if dist.is_initialized():
            emulation.check_world(dist.get_world_size())
        rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))
        with emulation.rank(rank):
            yield emulation


@final
class Emulation(Observer):
    """A target that a program runs as if on.

    Args:
        target: from the catalogue.
        compose: whether what `devices` composes is allowed.
        enforce: whether what is refused is raised.
        device_tensors: whether the target's type of device is there.
    """

    is_innermost_only = True

    def __init__(self, target: Target, *, compose: bool, enforce: bool, device_tensors: bool) -> None:
        self.target = target
        self._limits = target.limits
        self._name = f"{target.name} (speculative)" if target.speculative else target.name
        self._compose = compose
        self._enforce = enforce
        self._device_tensors = device_tensors
        self._asked: dict[tuple[str, str, str, str, str], tuple[int, int]] = {}
        self._memories: dict[int, Memory] = {}
        self._groups: dict[int, int] = {}
        # By rank, how many calls each group has on its way.
        self._streams: dict[int, dict[str, int]] = {}
        self._lock = threading.Lock()

    @property
    def report(self) -> Report:
        """What the program has asked for so far."""
        asked = tuple(Asked(*what, *counts) for what, counts in sorted(self._asked.items()))
        peaks = {rank: memory.peak for rank, memory in sorted(self._memories.items())}
        return Report(self._name, asked, peaks, self._limits.memory_per_rank)

    # As an observer.

    def rank(self, rank: int) -> AbstractContextManager[None]:
        def refused(asked: int, held: int) -> None:
            limit = self._limits.memory_per_rank
            assert limit is not None
            said = f"there are {limit / 2**30:.2f} GiB ({self._source('memory_per_rank')})"
            self._note("memory", "", REFUSED, said, asked)
            if self._enforce:
                raise torch.OutOfMemoryError(
                    f"rank {rank} on {self._name}: tried to allocate {asked / 2**30:.2f} GiB, and holds "
                    f"{held / 2**30:.2f} GiB, but {said}"
                )

        memory = self._memories.setdefault(rank, Memory(self._limits.memory_per_rank, refused))
        return self._on_device(rank, memory) if self._device_tensors else memory.watched()

    @contextlib.contextmanager
    def _on_device(self, rank: int, memory: Memory) -> Iterator[None]:
        from devices.testing._device_tensors import device_tensors

        limits = self._limits
        count = limits.ranks_per_node or 1
        device = device_tensors(limits.device_type, rank % count, count=count, memory=limits.memory_per_rank)
        with device, memory.watched():
            yield

    def check_world(self, size: int) -> None:
        """Refuse a world of `size` ranks unless it is legal."""
        if said := self._limits.world_refusal(size):
            self._refuse(f"a world of {size} ranks", "world", "", f"{said} ({self._source('world_sizes')})", 0)

    def needs(self, dtypes: Sequence[str]) -> None:
        for dtype in dtypes:
            if self._limits.dtypes is not None and dtype not in self._limits.dtypes:
                said = f"a tensor cannot be {dtype} ({self._source(f'dtypes.{dtype}')})"
                self._refuse(f"a world that needs {', '.join(dtypes)}", "world", dtype, said, 0)

    def opening(self, group: Group, *, is_world: bool) -> None:
        if is_world:
            self.check_world(group.size)
        elif said := self._limits.group_refusal(group.ranks):
            self._refuse(f"{group}", "group", "", f"{said} ({self._source('symmetric_groups')})", 0)
        self.count(group)

    def count(self, group: Group) -> None:
        """Count a group that this rank opens, and refuse it if there are too many."""
        if group.size > 1:
            me, limit = group.ranks[group.rank], self._limits.max_groups
            count = self._groups[me] = self._groups.get(me, 0) + 1
            if limit is not None and count > limit:
                self._groups[me] -= self._enforce
                said = f"a rank has at most {limit} groups at once ({self._source('max_groups')})"
                self._refuse(f"{group}", "group", "", said, 0)

    def closed(self, group: Group) -> None:
        if group.size > 1:
            self._groups[group.ranks[group.rank]] -= 1

    def called(self, call: Called) -> None:
        dtype, size = _dtype(call.tensor), call.nbytes
        self._begin(call)
        if said := self._impossible(call):
            self._refuse(f"{call.group}: {call.verb}", call.verb, dtype, said, size)
            return
        if not (said := self._lacking(call, dtype)):
            self._note(call.verb, dtype, NATIVE, "", size)
        elif self._compose and call.is_ours:
            self._note(call.verb, dtype, COMPOSED, said, size)
        else:
            hint = "torch's own verbs are not composed" if self._compose else "compose=True allows devices' own verbs"
            self._refuse(f"{call.group}: {call.verb}", call.verb, dtype, said, size, hint)

    def called_across(self, call: Called, refused: str) -> None:
        """Hear of a call in a group that has ranks of other targets too, by which all is composed.

        Args:
            call: the call.
            refused: why one of the targets cannot do it, in words; "" if all can.
        """
        self._begin(call)
        dtype = _dtype(call.tensor)
        lacking = self._lacking(call, dtype) or ""
        outcome = REFUSED if refused else COMPOSED if lacking else NATIVE
        self._note(call.verb, dtype, outcome, refused or lacking, call.nbytes)
        if refused:
            raise UnsupportedError(refused)

    def _begin(self, call: Called) -> None:
        streams = self._streams.setdefault(call.group.ranks[call.group.rank], {})
        if call.is_async:
            streams[call.group.name] = streams.get(call.group.name, 0) + 1

    def ended(self, ended: Ended) -> None:
        call = ended.call
        if not call.is_async:
            return
        streams = self._streams[call.group.ranks[call.group.rank]]
        streams[call.group.name] -= 1
        if not streams[call.group.name]:
            del streams[call.group.name]

    def _impossible(self, call: Called) -> str | None:
        """Return what nothing makes possible about a call."""
        limits = self._limits
        if said := self.unmovable(call):
            return said
        if call.verb in ("send", "recv") and limits.verbs is not None and call.verb not in limits.verbs:
            return f"there are no messages between two ranks ({self._source(f'verbs.{call.verb}')})"
        return self._too_many_streams(call)

    def unmovable(self, call: Called) -> str | None:
        """Return why the tensor of a call, whichever rank makes it, cannot come to or go from the target's ranks."""
        limits, dtype = self._limits, _dtype(call.tensor)
        if dtype and limits.dtypes is not None and dtype not in limits.dtypes:
            return f"a tensor cannot be {dtype} ({self._source(f'dtypes.{dtype}')})"
        if dtype and limits.moved_dtypes is not None and dtype not in limits.moved_dtypes:
            return f"{dtype} is not moved from rank to rank ({self._source('moved_dtypes')})"
        if dtype == "float8_e4m3fn" and limits.float8_max is not None and call.tensor is not None:
            largest = call.tensor.float().abs().nan_to_num().max().item() if call.tensor.numel() else 0.0
            if largest > limits.float8_max:
                return f"a value is {largest:g}, and float8_e4m3fn goes to {limits.float8_max:g} there"
        return None

    def _too_many_streams(self, call: Called) -> str | None:
        limit = self._limits.max_streams
        # A group's collectives run on one stream, in the order in which they are called.
        on_their_way = {call.group.name, *self._streams[call.group.ranks[call.group.rank]]}
        if limit is not None and len(on_their_way) > limit:
            most = f"collectives run on {limit} streams at once"
            return f"{most}, and those of {len(on_their_way)} groups are on their way ({self._source('max_streams')})"
        return None

    def _lacking(self, call: Called, dtype: str) -> str | None:
        """Return what the target lacks for a call, which others of its verbs can make up for."""
        limits, verb = self._limits, call.verb
        if verb == "permute":
            verb = "send"  # what it is made of
        if limits.verbs is not None and verb not in limits.verbs:
            return f"the verb is not there ({self._source(f'verbs.{verb}')})"
        if verb in _REDUCING and limits.reductions is not None:
            if call.op not in limits.reductions:
                return f"the reduce op {call.op!r} is not there ({self._source(f'reductions.{call.op}')})"
            if dtype not in limits.reductions[call.op]:
                return f"the reduce op {call.op!r} does not take {dtype} ({self._source(f'reductions.{call.op}')})"
        if not call.is_even and limits.uneven_splits is False:
            return f"parts are of unequal size ({self._source('uneven_splits')})"
        if call.tensor is not None and not call.tensor.numel() and limits.empty_tensors is False:
            return f"the tensor is empty ({self._source('empty_tensors')})"
        if verb == "barrier" and limits.subgroup_barrier is False and call.group.size < _world_size():
            return f"a group other than the world has no barrier ({self._source('subgroup_barrier')})"
        return None

    def _source(self, field: str) -> str:
        """Return where the catalogue has a limit from."""
        try:
            found = self.target.provenance(field)
        except LookupError:
            return "the catalogue lists it nowhere"
        if found.status is None:
            return f"unknown: {found.reason}"
        return f"{found.status}: {next((figure.source for figure in found.figures if figure.source), found.how)}"

    def _refuse(self, who: str, verb: str, dtype: str, said: str, size: int, hint: str = "") -> None:
        self._note(verb, dtype, REFUSED, said, size)
        if self._enforce:
            raise UnsupportedError(f"{self._name} refuses: {who}: {said}{'; ' if hint else ''}{hint}")

    def _note(self, verb: str, dtype: str, outcome: str, reason: str, size: int) -> None:
        what = caller(), verb, dtype, outcome, reason
        with self._lock:
            calls, total = self._asked.get(what, (0, 0))
            self._asked[what] = calls + 1, total + size


def _dtype(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return ""
    # torch hands complex numbers on as twice as many real ones.
    whole = tensor._base
    found = whole.dtype if whole is not None and whole.is_complex() else tensor.dtype
    return str(found).removeprefix("torch.")


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
