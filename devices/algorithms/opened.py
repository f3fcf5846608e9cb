"""A group that is open for verbs: what they go by, how those that are composed run, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from devices._backend import Capabilities, Communicator, Group
from devices.algorithms import forked
from devices.algorithms.arithmetic import MEANINGFUL
from devices.algorithms.carried import Carried, Survivors
from devices.algorithms.lines import caller
from devices.algorithms.lowerings import compose, own_verbs
from devices.algorithms.messages import Messages
from devices.algorithms.planned import Planned, Plans
from devices.algorithms.reductions import Reductions
from devices.algorithms.requirements import Requirements
from devices.algorithms.runner import Runner
from devices.algorithms.started import failure
from devices.algorithms.transport import Transport
from devices.algorithms.ways import ways
from devices.errors import DevicesError, PluginError
from devices.recorder.files import join
from devices.recorder.record import Record

_NONE: Mapping[torch.dtype, str] = MappingProxyType({})


class Opened(Carried):
    """A group and all that its verbs need, on one rank; `Verbs` says what it is given."""

    def __init__(
        self,
        communicator: Communicator | None,
        group: Group,
        capabilities: Capabilities,
        lacks: Mapping[torch.dtype, str] = _NONE,
        survivors: Survivors | None = None,
    ) -> None:
        super().__init__(communicator, group, capabilities, survivors)
        self._size, self._rank = group.size, group.rank
        self._require = Requirements(group, capabilities.dtypes, lacks)
        # The pairs of op and dtype that all_reduce needs to do nothing for, and those that it hands on as they are,
        # which it learns by the first call: a program that makes thousands of groups uses few.
        self._alone: frozenset[tuple[str, torch.dtype]] = frozenset()
        self._direct: set[tuple[str, torch.dtype]] = set()
        self._anew = -1  # up to so many bytes the communicator makes the result of an all_reduce anew
        self._gathered: set[torch.dtype] = set()  # the same of all_gather
        self._own: frozenset[str] = frozenset()  # what the communicator has of its own
        self.plans = Plans() if communicator is None else Plans(communicator.planned)
        if self._size == 1:
            self._alone = MEANINGFUL
            self._messages = Messages(None, group, self._require, None)
            return
        if communicator is None:
            raise PluginError(f"{group}: a group of more than one rank needs a communicator, got None")
        kind, index = group.device.type, group.device.index
        device = torch.device(kind) if kind == "cpu" else torch.device(kind, index)
        self.flight = join(group, caller)
        self._messages = Messages(communicator, group, self._require, self.flight)
        self._lowered = compose(communicator, group)
        self._own = own_verbs(communicator)
        self._runner = Runner(self.flight, device, communicator)
        self._on = Transport(
            communicator, self._rank, self._size, device, communicator.reductions or capabilities.reductions
        )
        self._reductions = Reductions(self._on, self._lowered, self._own)
        self._start_all_reduce = communicator.all_reduce
        forked.watch(self)
        self._blocks, self._anew = communicator.blocking, communicator.anew

    @property
    def ways(self) -> dict[str, str]:
        """How each verb goes, in words: as the communicator says, or composed from which of its own; none of one."""
        if self._communicator is None or self._size == 1:
            return {}
        return ways(self._communicator, self._lowered, self.plans)

    @property
    def has_exchange(self) -> bool:
        """Whether the communicator has messages from rank to rank, of which schedules are made."""
        return "exchange" in self._own

    def go_by(self, planned: Planned | None) -> None:
        """Let a verb go by a schedule, or all verbs by none that was given; at the same call on all ranks."""
        self.plans.give(planned)
        self._direct.clear()
        self._gathered.clear()

    def abort(self) -> None:
        """Make every verb that is waiting here fail soon, and what is queued with it; callable from any thread."""
        if self._require.closed:
            return
        if self._size > 1:
            self._runner.abort()
        if self._communicator is not None:
            self._communicator.abort()

    def close(self) -> None:
        """Finish what is queued and give everything back. After that every verb raises; callable more than once."""
        if self._require.closed:
            return
        self._end("the group is closed")
        # Who has closed the group does not recover, and is not to be waited for.
        self._survivors = None
        if self._size > 1:
            self._runner.close()
        if self._communicator is not None:
            try:
                self._communicator.close()
            except DevicesError:
                raise
            except Exception as error:
                raise failure(self.group, "close", error) from error

    def leave(self) -> object:
        """Be closed in this process, which was forked; return what the rank that forked it goes on with."""
        self._end(forked.LEFT)
        return self._communicator

    def _end(self, why: str) -> None:
        self._require.closed = why
        self._alone, self._own, self._direct, self._gathered = frozenset(), frozenset(), set(), set()

    def _begin(self, verb: str, tensor: torch.Tensor, op: str = "", root: int = -1) -> Record:
        return self.flight.begin(verb, tensor.dtype, tensor.numel(), op, root)
