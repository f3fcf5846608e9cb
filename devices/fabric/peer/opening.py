"""How the ranks of a group come to map the memory of each other's devices, or learn that they cannot."""

from __future__ import annotations

from typing import final

import torch

from devices._backend import Group
from devices.fabric.host.fabric import HostFabric, open_fabric
from devices.fabric.peer.fabric import PeerFabric, free_what_is_unmapped, leave_unmapped
from devices.fabric.peer.memory import DeviceMemory
from devices.fabric.peer.segments import FIRST, Segments

_WRONG = (OSError, RuntimeError, ValueError)
"""What a runtime says that it cannot by."""

_SAMPLE = 8


def open_peer_fabric(group: Group, memory: DeviceMemory | str) -> PeerFabric | str:
    """Open the memory of the ranks' devices as a `Fabric`; every rank of the group calls this.

    It is tried before it is relied on: each rank reads in every peer's memory what that has written there.

    Args:
        group: the members.
        memory: that of this rank's device; or why there is none, in words.

    Returns:
        The fabric; or, the same on all ranks, why there is none: as `open_fabric` says, or a rank cannot share the
        memory of its device, or map that of another.
    """
    free_what_is_unmapped()
    host = open_fabric(group)
    if isinstance(host, str):
        return host
    opening = group.store.add(f"peer/{group.name}/{group.rank}", 1)
    attempt = _Attempt(group, memory, host, f"peer/{group.name}/{opening}")
    try:
        return attempt.run()
    except BaseException:
        attempt.end()
        raise


@final
class _Attempt:
    """A rank's part in it."""

    def __init__(self, group: Group, memory: DeviceMemory | str, host: HostFabric, prefix: str) -> None:
        self._group = group
        self._memory = memory
        self._host = host
        self._prefix = prefix
        self._segments = Segments(memory) if not isinstance(memory, str) else None
        self._mapped: dict[int, torch.Tensor] = {}

    def run(self) -> PeerFabric | str:
        told = self._group.share(f"{self._prefix}/memory", self._offered())
        reasons = [each["reason"] for each in told]
        if not any(reasons):
            reasons = self._group.share(f"{self._prefix}/mapped", self._try([each["handle"] for each in told]))
        failed = next((rank for rank, reason in enumerate(reasons) if reason), None)
        if failed is None and isinstance(self._memory, DeviceMemory) and self._segments is not None:
            return PeerFabric(self._host, self._memory, self._segments, self._mapped)
        self.end()
        return f"rank {self._group.ranks[failed or 0]}: {reasons[failed or 0]}"

    def _offered(self) -> dict[str, str]:
        """Return this rank's first segment, with a sample in it, or why there is none."""
        if self._segments is None or isinstance(self._memory, str):
            return {"handle": "", "reason": str(self._memory)}
        try:
            self._segments.add(FIRST)
            first = self._segments[0]
            self._memory.copy(first[:_SAMPLE], torch.full_like(first[:_SAMPLE], _sample(self._group.rank)))
            self._memory.finish()
            return {"handle": self._memory.handle(first), "reason": ""}
        except _WRONG as error:
            return {"handle": "", "reason": f"the memory of {self._group.device} cannot be shared: {error}"}

    def _try(self, handles: list[str]) -> str:
        """Map the first segments of all peers and look for their samples; return what went wrong."""
        assert isinstance(self._memory, DeviceMemory)
        for rank, handle in enumerate(handles):
            if rank == self._group.rank:
                continue
            who = f"the memory of the device of rank {self._group.ranks[rank]}"
            try:
                self._mapped[rank] = self._memory.map(handle, FIRST)
                found = self._mapped[rank][:_SAMPLE].tolist()
            except _WRONG as error:
                return f"{who} cannot be mapped: {error}"
            if found != [_sample(rank)] * _SAMPLE:
                return f"{who} was mapped, and what is read there is not what was written"
        return ""

    def end(self) -> None:
        """Give back what was mapped, and this rank's own once no peer has it mapped."""
        if self._segments is None or isinstance(self._memory, str):
            leave_unmapped(self._host)
            return
        fabric = PeerFabric(self._host, self._memory, self._segments, self._mapped)
        self._mapped = {}
        fabric.leave()


def _sample(rank: int) -> int:
    return (rank * 37 + 11) % 251 + 1
