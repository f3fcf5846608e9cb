"""How the ranks of a group find that they share a host, and come to share memory."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from devices._backend import Group
from devices.errors import CollectiveError
from devices.fabric.host.communicator import SharedMemoryCommunicator
from devices.fabric.host.layout import HERE, STATE, Layout
from devices.fabric.host.peers import Process
from devices.fabric.host.segment import Segment, find, make

OFF = "DEVICES_FABRIC"
DOMAIN = "DEVICES_DOMAIN"
"""Ranks of one host in which it differs are as on different hosts."""


def open_shared_memory(group: Group) -> SharedMemoryCommunicator | str:
    """Open a communicator over memory that the processes of one host share; every rank of the group calls this.

    The memory has no name, and only this user's processes may open it. It is gone with the last process that has it.

    Args:
        group: the members. Its store is what they meet by.

    Returns:
        The communicator; or, the same on all ranks, why there is none, in words: the ranks are on several hosts,
        the machine's memory does not keep the order that is needed, or DEVICES_FABRIC=off.
    """
    met = meet(group)
    return met if isinstance(met, str) else SharedMemoryCommunicator(met.segment, group, met.processes)


@final
@dataclass(frozen=True, slots=True)
class Met:
    """What a rank has of a group that shares memory: the memory, and the members' processes by rank of the group."""

    segment: Segment
    processes: Mapping[int, Process]


def meet(group: Group, prefix: str = "", *, has_boards: bool = False) -> Met | str:
    """Come to share memory with the other ranks of the group, or learn why that cannot be.

    Args:
        group: the members.
        prefix: of the keys in the group's store, the same on all ranks and for no other meeting.
        has_boards: whether the memory has boards.
    """
    layout = Layout(group.size, has_boards)
    me = _Card.mine()
    group.store.set(f"{prefix}host/{group.rank}", me.data)
    if group.rank == 0:
        return _Host(group, prefix, layout, me).open()
    return _guest(group, prefix, layout)


@final
class _Card:
    """What a rank tells of itself: its host, its process, and why it cannot share memory, if it cannot."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.host: str = data["host"]
        self.process = Process.from_json(data)
        self.reason: str = data["reason"]

    @staticmethod
    def mine() -> _Card:
        if reason := why_not_here():
            return _Card({"host": "", "reason": reason, "pid": 0, "started": 0})
        return _Card({"host": _host(), "reason": "", **Process.mine().to_json()})


def memory_domain() -> str:
    """Return what processes have in common that can share memory; "" if this one can share it with none."""
    return "" if why_not_here() else _host()


def domain_name() -> str:
    """Return what a domain of processes that share memory is called: what DEVICES_DOMAIN says, else the host's name."""
    return os.environ.get(DOMAIN) or platform.node()


def _host() -> str:
    """Return what processes have in common that reach each other's memory: machine, boot, namespaces, user."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    processes, network = (Path(f"/proc/self/ns/{name}").readlink() for name in ("pid", "net"))
    return f"{boot} {processes} {network} {os.geteuid()} {os.environ.get(DOMAIN, '')}"


def why_not_here() -> str:
    """Return why this process can share memory with none, in words; nothing if it can."""
    if os.environ.get(OFF, "") == "off":
        return f"{OFF}=off"
    if sys.platform != "linux":
        return f"shared memory is used on Linux alone, and this is {sys.platform}"
    if platform.machine() != "x86_64":
        return (
            f"shared memory is used where stores are seen in their order, on x86-64, and this is {platform.machine()}"
        )
    return ""


@final
class _Host:
    """The rank that makes the memory, seen while it does."""

    def __init__(self, group: Group, prefix: str, layout: Layout, card: _Card) -> None:
        self._group = group
        self._prefix = prefix
        self._layout = layout
        self._cards = [card, *(_Card(group.hear(f"{prefix}host/{rank}", rank)) for rank in range(1, group.size))]

    def open(self) -> Met | str:
        reason = self._why_not()
        if reason:
            self._group.store.set(f"{self._prefix}memory", {"reason": reason})
            return reason
        group, layout, prefix = self._group, self._layout, self._prefix
        descriptor = make(f"group {group.name}", layout.total)
        try:
            segment = Segment(layout, descriptor)
            cards = [card.process.to_json() for card in self._cards]
            group.store.set(f"{prefix}memory", {"reason": "", "descriptor": descriptor, "processes": cards})
            # The descriptor is what the others find the memory by.
            failed = [said for rank in range(1, group.size) if (said := group.hear(f"{prefix}mapped/{rank}", rank))]
        finally:
            os.close(descriptor)
        reason = f"a process cannot map the memory of another: {failed[0]}" if failed else ""
        group.store.set(f"{prefix}opened", reason)
        return reason or _opened(segment, group, cards)

    def _why_not(self) -> str:
        ranks = self._group.ranks
        for rank, card in zip(ranks, self._cards, strict=True):
            if card.reason:
                return f"rank {rank}: {card.reason}"
        hosts = {card.host for card in self._cards}
        return f"the ranks are on {len(hosts)} hosts" if len(hosts) > 1 else ""


def _guest(group: Group, prefix: str, layout: Layout) -> Met | str:
    plan = group.hear(f"{prefix}memory", 0)
    if plan["reason"]:
        return str(plan["reason"])
    cards = plan["processes"]
    said, segment = "", None
    try:
        descriptor = find(cards[0]["pid"], plan["descriptor"])
        try:
            segment = Segment(layout, descriptor)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        said = f"rank {group.ranks[group.rank]}: {error}"
    group.store.set(f"{prefix}mapped/{group.rank}", said)
    reason = group.hear(f"{prefix}opened", 0)
    if reason:
        return str(reason)
    if segment is None:
        raise CollectiveError(f"{group}: the memory of the group could not be mapped: {said}")
    return _opened(segment, group, cards)


def _opened(segment: Segment, group: Group, cards: list[dict[str, int]]) -> Met:
    segment.words[segment.layout.control_word(group.rank) + STATE] = HERE
    return Met(segment, {rank: Process.from_json(card) for rank, card in enumerate(cards)})
