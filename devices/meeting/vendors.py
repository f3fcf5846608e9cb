"""The ranks of a world tell which backend each of them is of, and what they are where no backend opens it alone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, TypeGuard, final

from devices import _registry, errors
from devices._backend import INTERFACE_VERSION, Backend, Device, Group
from devices.domains.card import Card
from devices.domains.joined import Fabrics
from devices.domains.opening import GRACE
from devices.domains.vendors import Vendors
from devices.errors import CollectiveError, WorldError
from devices.fabric.host.meeting import domain_name
from devices.meeting.fabrics import agreed, fabrics_of, said_of
from devices.meeting.roll_call import Entry, Gone, process
from devices.roster.answers import capabilities_of


@final
class Mixed:
    """A world that has groups of several domains: of several backends, or of one that has not all groups of its ranks.

    Args:
        vendors: what its ranks are.
        processes: which process each rank is, by rank of the world.
        fabrics: those that this rank is on.
    """

    def __init__(self, vendors: Vendors, processes: Sequence[Entry], fabrics: Fabrics) -> None:
        self.vendors = vendors
        self.fabrics = fabrics
        self._processes = processes

    def is_native(self, ranks: Sequence[int]) -> bool:
        """Return whether some ranks of the world are a group that their backend opens alone."""
        return self.vendors.opens_natively(ranks)

    def gone(self, group: Group) -> Callable[[], frozenset[int]]:
        """Return what says which ranks of a group have ended, of those on this host."""
        return Gone({rank: self._processes[rank] for rank in group.ranks}, group.ranks[group.rank]).dead


def meet(group: Group, backend: Backend) -> Mixed | None:
    """Return what the ranks of a world are, if no backend opens all its groups; every rank calls this before it opens.

    They are of several backends, or of one whose hardware has no group of them all, or of some of them.

    Raises:
        WorldError: on every rank: two have other versions of a plugin or its interface, or one cannot say what it is.
        DevicesError: on every rank: what a fabric between them refuses.
    """
    told = _versions(group, {**_version(backend), "limited": _is_limited(backend, group.device)})
    _check_versions(group, told)
    is_of_one = len({said["backend"] for said in told}) == 1
    if is_of_one and not any(said["limited"] for said in told):
        return None
    fabrics, card = _card(group, backend, {said["backend"] for said in told})
    told = group.share("rank/card", card)
    if faults := [
        f"rank {rank} ({said['backend']}): {said['fault']}" for rank, said in enumerate(told) if "fault" in said
    ]:
        raise WorldError(f"{group}: the world cannot open: {'; '.join(faults)}")
    cards, processes = [Card.from_json(said["card"]) for said in told], [said["process"] for said in told]
    if (vendors := Vendors(cards)).opens_natively(world := range(group.size)):
        vendors.open(world, ())
        return Mixed(vendors, processes, fabrics)
    islands = agreed(group, fabrics, [said["backend"] for said in told], [said["ports"] for said in told])
    return Mixed(Vendors(cards, islands), processes, fabrics)


def _versions(group: Group, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the versions of all ranks, which the first one collects: as a rule they are one, and soon read."""
    key = "rank/backend"
    if group.rank != 0:
        group.store.set(f"{key}/{group.rank}", mine)
        # Longer than the first: it is the one that knows who is late.
        kinds, of = replace(group, timeout=group.timeout + GRACE).hear(f"{key}/all", 0)
        if isinstance(kinds, str):
            raise getattr(errors, kinds)(f"{group}: {of}, as rank {group.ranks[0]} found")
    else:
        try:
            said = [mine, *(group.hear(f"{key}/{rank}", rank) for rank in range(1, group.size))]
        except CollectiveError as error:
            group.store.set(f"{key}/all", [type(error).__name__, str(error).removeprefix(f"{group}: ")])
            raise
        kinds = [each for at, each in enumerate(said) if each not in said[:at]]
        of = [kinds.index(each) for each in said] if len(kinds) > 1 else []
        group.store.set(f"{key}/all", [kinds, of])
    return [kinds[at] for at in of] if of else kinds * group.size


def _version(backend: Backend) -> dict[str, Any]:
    """Return what must be one on all ranks of a backend."""
    return {
        "backend": backend.name,
        "plugin": _registry.release(backend.name),
        "interface": backend.interface,
        "devices": INTERFACE_VERSION,
    }


def _is_limited(backend: Backend, device: Device) -> bool:
    """Return whether a backend may have no group of all of its ranks."""
    try:
        can = capabilities_of(backend, device)
        return can.group_sizes is not None or can.symmetric or backend.bound(device) is not None
    except Exception:
        # Whoever opens the group asks the same again, and says what is wrong with the answer.
        return False


def _check_versions(group: Group, told: Sequence[dict[str, Any]]) -> None:
    first: dict[str, tuple[int, dict[str, Any]]] = {}
    for rank, said in enumerate(told):
        other, before = first.setdefault(said["backend"], (rank, said))
        for name, what in (("plugin", "the plugin is"), ("interface", "the plugin is written for interface")):
            if said[name] != before[name]:
                raise WorldError(
                    f"{group}: ranks of backend {said['backend']!r} have two versions: {what} {before[name]} on rank "
                    f"{other} and {said[name]} on rank {rank}; install the same on all"
                )
    ours = {said["devices"]: rank for rank, said in enumerate(told)}
    if len(ours) > 1:
        versions = " and ".join(f"{version} on rank {rank}" for version, rank in ours.items())
        raise WorldError(f"{group}: `devices` has plugin interface {versions}; install the same on all")


def _card(group: Group, backend: Backend, backends: Collection[str]) -> tuple[Fabrics, dict[str, Any]]:
    """Return the fabrics that this rank is on, and what it tells of itself; what is wrong is told too."""
    fabrics = Fabrics()
    try:
        device = group.device
        can = capabilities_of(backend, device)
        reach: object = backend.reach(device)
        if not isinstance(reach, str):
            return fabrics, _fault(backend, f"its `reach` returned {reach!r}, which is no text")
        bound: object = backend.bound(device)
        if not _is_bound(bound):
            return fabrics, _fault(backend, f"its `bound` returned {bound!r}, which is no name and number")
        fabrics = fabrics_of(backend, device, backends)
        card = Card(
            backend.name,
            str(device),
            device.index,
            device.type,
            domain_name() if reach else socket.gethostname(),
            reach,
            tuple(sorted(str(dtype).removeprefix("torch.") for dtype in can.dtypes)),
            None if can.group_sizes is None else tuple(sorted(can.group_sizes)),
            can.group_size_multiple,
            can.symmetric,
            bound,
            {name: port.target for name, port in fabrics.ports.items()},
        )
        ports = said_of(fabrics)
    except Exception as error:
        # Every rank raises it; who raised here alone would be waited for.
        return fabrics, _fault(backend, str(error) or type(error).__name__)
    return fabrics, {"backend": backend.name, "card": card.to_json(), "ports": ports, "process": process()}


def _fault(backend: Backend, said: str) -> dict[str, Any]:
    return {"backend": backend.name, "fault": said}


def _is_bound(said: object) -> TypeGuard[tuple[str, int] | None]:
    """Return whether that is what `Backend.bound` may return."""
    if said is None:
        return True
    return (
        isinstance(said, tuple) and len(said) == 2 and isinstance(said[0], str) and type(said[1]) is int and said[1] > 0
    )
