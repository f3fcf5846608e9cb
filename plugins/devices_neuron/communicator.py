"""The verbs that the vendor's process group has, as a communicator; the others are composed from these."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, final

from devices import Communicator, Group, Pending, ProcessGroupCommunicator, Store, open_staged
from devices.errors import CollectiveError

if TYPE_CHECKING:
    import torch

_PATIENCE = 2.0
"""Seconds for which a rank waits until the vendor's group has been given up."""

_VERBS = ("all_gather", "all_reduce", "reduce_scatter", "broadcast", "scatter")


@final
class NeuronCommunicator(Communicator):
    """Carries a group by the vendor's process group "neuron".

    What only moves comes as bytes, and travels as bytes: no dtype is narrowed on the way (the vendor's group was seen
    to carry int64 as int32), and where it makes a broadcast of a sum with zeros, that sum is one of integers, which
    loses neither a NaN nor the sign of a zero. Of reductions it is handed the sum of float32 alone: for 16-bit floats
    nothing says where it rounds, for integers that it does not go through float32, for min and max what becomes of a
    NaN. Those are composed from that sum or from what all ranks gather.

    A verb that is waited for holds the host, so that it can be late or aborted. Messages between two ranks, which no
    document shows that the vendor has, go through host memory.

    Args:
        group: the members.
        carried: carries the verbs to the vendor's group.
        messages: carries the messages of programs.
        has_all_to_all: whether the vendor has an all_to_all over these ranks: it has one where the world's ranks are
            divided into groups like this in their order.
    """

    even = frozenset(("all_to_all",))

    def __init__(
        self, group: Group, carried: ProcessGroupCommunicator, messages: Communicator, has_all_to_all: bool
    ) -> None:
        self._group = group
        self._carried = carried
        self.messages: Communicator = messages
        self._ended = threading.Event()
        self.own = frozenset((*_VERBS, "all_to_all") if has_all_to_all else _VERBS)
        self.reductions = _reductions()
        self.note = f"torch's process group 'neuron'; messages between two ranks {messages.note}"

    @classmethod
    def open(cls, group: Group, has_all_to_all: bool) -> NeuronCommunicator:
        """Return one over a new group of the vendor's."""
        carried = _opened(group, cls.even)
        try:
            messages = open_staged(group, "no document shows that the vendor has any")
        except BaseException as error:
            try:
                _give_up(carried)
            except Exception as fault:
                error.add_note(f"nor could the process group 'neuron' be given up: {fault}")
            raise
        return cls(group, carried, messages, has_all_to_all)

    def all_gather(self, output: torch.Tensor, input: torch.Tensor) -> Pending:
        return self._held(self._carried.all_gather(output, input))

    def all_reduce(self, tensor: torch.Tensor, op: str) -> Pending:
        return self._held(self._carried.all_reduce(tensor, op))

    def reduce_scatter(self, output: torch.Tensor, input: torch.Tensor, op: str) -> Pending:
        return self._held(self._carried.reduce_scatter(output, input, op))

    def all_to_all(
        self, output: torch.Tensor, input: torch.Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Pending:
        return self._held(self._carried.all_to_all(output, input, output_counts, input_counts))

    def broadcast(self, tensor: torch.Tensor, src: int) -> Pending:
        return self._held(self._carried.broadcast(tensor, src))

    def scatter(self, output: torch.Tensor, input: torch.Tensor | None, src: int) -> Pending:
        return self._held(self._carried.scatter(output, input, src))

    def survivors(self) -> tuple[tuple[int, ...], Store]:
        self.abort()
        return self.messages.survivors()

    def abort(self) -> None:
        self._ended.set()
        try:
            self._carried.abort()
        finally:
            self.messages.abort()

    def close(self) -> None:
        try:
            self._carried.close()
        finally:
            self.messages.close()

    def _held(self, work: Pending) -> Pending:
        return _Held(self._group, self._ended, work)


def _opened(group: Group, even: Iterable[str]) -> ProcessGroupCommunicator:
    """Return the vendor's group, which waits for its peers as it opens, and of itself notices no death."""
    import torch

    module = torch.get_device_module("neuron")

    def connect() -> tuple[ProcessGroupCommunicator, int]:
        carried = ProcessGroupCommunicator.open("neuron", group, even=even)
        return carried, module.current_device()

    what = "opening the process group 'neuron'"
    carried, index = group.watched(connect, what, lambda opened: _give_up(opened[0]))
    # The vendor has made the rank's core the current device, and each thread has one of its own.
    if module.current_device() != index:
        module.set_device(index)
    return carried


def _give_up(carried: ProcessGroupCommunicator) -> None:
    """End a group that is of no use: unless it is aborted before, it may wait for its peers as it closes.

    Raises:
        TimeoutError: it waits all the same, and is left to a thread.
    """
    faults: list[Exception] = []

    def end() -> None:
        try:
            try:
                carried.abort()
            finally:
                carried.close()
        except Exception as fault:
            faults.append(fault)

    # Nothing says that the vendor's abort waits for nobody.
    ending = threading.Thread(target=end, name="devices aborts the group 'neuron'", daemon=True)
    ending.start()
    ending.join(_PATIENCE)
    if faults:
        raise faults[0]
    if ending.is_alive():
        raise TimeoutError(f"it takes longer than {_PATIENCE:g} s")


def _reductions() -> Mapping[str, frozenset[torch.dtype]]:
    import torch

    return MappingProxyType({"sum": frozenset((torch.float32,))})


@final
class _Held:
    """A work of the vendor's, waited for on the host.

    Args:
        group: the members.
        aborted: set once the group is aborted.
        work: what the vendor returned.
    """

    def __init__(self, group: Group, aborted: threading.Event, work: Pending) -> None:
        self._group = group
        self._aborted = aborted
        self._work = work
        self._deadline = time.monotonic() + group.timeout.total_seconds()

    def is_completed(self) -> bool:
        return self._aborted.is_set() or self._work.is_completed()

    def wait(self) -> None:
        pause = 0.0
        while not self._work.is_completed():
            if self._aborted.is_set():
                raise CollectiveError(f"{self._group}: the group was aborted")
            if time.monotonic() > self._deadline:
                seconds = self._group.timeout.total_seconds()
                raise TimeoutError(f"not done {seconds:g} s after it began: it timed out, as a peer has not come")
            time.sleep(pause)
            pause = min(pause + 1e-5, 1e-3)
        try:
            self._work.wait()
        except RuntimeError as error:
            if self._aborted.is_set():
                raise CollectiveError(f"{self._group}: the group was aborted") from error
            raise
