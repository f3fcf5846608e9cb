"""A group over ranks of several vendors: each domain opened by its own plugin, host memory between them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch

from devices import _registry, errors
from devices._backend import Communicator, Group
from devices._staged import StagedCommunicator, open_host
from devices._store import Store
from devices.algorithms.carried import Survivors
from devices.algorithms.verbs import Verbs
from devices.domains import bandwidth
from devices.domains.communicator import DomainsCommunicator
from devices.domains.ended import Ended
from devices.domains.inside import Inside, compares
from devices.domains.joined import Fabrics, Joining
from devices.domains.members import Domains
from devices.domains.natively import Natively
from devices.domains.opening import GRACE
from devices.domains.planned import planned
from devices.domains.predicted import between_domains, told
from devices.domains.recovery import Recovery, beside_a_world, is_recovered
from devices.domains.shares import Shares
from devices.domains.vendors import Vendors
from devices.errors import CollectiveError, CollectiveTimeoutError, DevicesError, UnsupportedError, WorldError
from devices.fabric.communicator import REDUCTIONS
from devices.fabric.host import open_here
from devices.fabric.host.communicator import SharedMemoryCommunicator

_LOOK = 0.1

_DOMAINS, _FABRICS = "mixed", "mixed/fabrics"
"""What ranks tell each other of: that their domain has opened, and that they have come to share a fabric's memory."""


@final
@dataclass(frozen=True, slots=True)
class Opened:
    """A group over ranks of several vendors.

    Args:
        communicator: carries it.
        survivors: finds the ranks that are left after an error, where what carries the group does not.
    """

    communicator: Communicator
    survivors: Survivors | None = None


def open_mixed(
    group: Group,
    vendors: Vendors,
    fabrics: Fabrics,
    open_native: Callable[[Group], Verbs],
    dead: Callable[[], frozenset[int]],
) -> Opened:
    """Return a communicator over a group whose ranks are of several backends; every member calls this.

    Inside of each domain its own plugin's communicator carries the verbs, what that lacks being composed; between them
    messages through host memory do, which is where an accelerator's tensors are copied to and from. Ranks of several
    backends that a fabric joins are one domain, which the fabric's plugin opens.

    Args:
        group: the members.
        vendors: what they are.
        fabrics: those that this rank is on.
        open_native: opens this rank's backend over its domain.
        dead: says which of them have ended, of those on this host, by ranks of the world.

    Raises:
        UnsupportedError: on every rank: there is no way between them.
        DevicesError: on every rank: a domain could not open, with the error of the rank that says so.
    """
    ranks = group.ranks
    links = bandwidth.agreed(group.share("mixed/link", bandwidth.told()), group)
    joining, apart = _reached(group, vendors, fabrics)
    try:
        vendors.open(ranks, apart)
        domains = vendors.domains(ranks, apart)
        if joining is not None and len(domains.members) == 1:
            return _open_one(group, domains, joining)
        _check_bridge(group, vendors)
        why = "; ".join(filter(None, [vendors.divided(ranks, apart), *apart.values(), *vendors.between(ranks)]))
        open_own = open_native if joining is None else joining.open
        communicator = _open_several(group, vendors, domains, why, links, open_own, dead)
        if not apart:
            # What is between domains of a fabric is that fabric's to say.
            communicator.predicted = fabrics.predicted(vendors, ranks) or communicator.predicted
        return Opened(communicator)
    finally:
        if joining is not None:
            joining.leave()


def _reached(group: Group, vendors: Vendors, fabrics: Fabrics) -> tuple[Joining | None, dict[str, str]]:
    """Let ranks that a fabric joins come to share memory.

    Returns:
        The domain of several backends that this rank is in, None if in none; and, by the keys of the domains that the
        fabric does not join after all, why, in words.
    """
    joins = vendors.joins(group.ranks)
    if not joins:
        return None, {}
    mine = next((join for join in joins if group.rank in join.members), None)
    joining, reason, failure = None, "", None
    if mine is not None:
        ranks = tuple(group.ranks[place] for place in mine.members)
        store = _hearing(group, group.store.under(mine.key), _FABRICS)
        # A group may have ranks at several places of one fabric.
        name = group.name if len(ranks) == group.size else f"{group.name}/{mine.fabric} {joins.index(mine)}"
        own = Group(ranks, mine.members.index(group.rank), group.device, store, group.timeout + GRACE, name)
        joining = Joining(own, vendors, fabrics, mine.fabric)
        try:
            reason = joining.reach()
        except Exception as error:
            failure = error
    try:
        _all_opened(group, "" if mine is None else mine.fabric, failure, _FABRICS)
        said = group.share("mixed/reached", reason)
    except BaseException:
        if joining is not None:
            joining.leave()
        raise
    apart = {}
    for join in joins:
        if refused := next((said[place] for place in join.members if said[place]), ""):
            named = vendors.named([group.ranks[place] for place in join.members])
            apart[join.key] = f"{join.fabric} does not join {named}: {refused}"
    if mine is not None and joining is not None and mine.key in apart:
        joining.leave()
        joining = None
    return joining, apart


def _open_one(group: Group, domains: Domains, joining: Joining) -> Opened:
    """Open a group all of whose ranks a fabric joins."""
    communicator, failure = None, None
    try:
        with beside_a_world():
            communicator = joining.communicator()
    except Exception as error:
        failure = error
    try:
        _all_opened(group, domains.names[0], failure)
        assert communicator is not None, "all have opened it"
        survivors = _survivors(group, communicator) if is_recovered() else None
    except BaseException:
        if communicator is not None:
            communicator.abort()
            communicator.close()
        raise
    communicator.predicted = communicator.predicted or joining.predicted
    communicator.note = f"{domains.shown(group.ranks)}; {communicator.note or type(communicator).__name__}"
    return Opened(communicator, survivors)


def _survivors(group: Group, communicator: Communicator) -> Survivors:
    """Return what finds the ranks of a world that are left: memory of a fabric need not outlive a rank of it."""
    recovery = Recovery(group)

    def survivors() -> tuple[tuple[int, ...], Store]:
        # Those of other groups wait for who has died too.
        open_here.abort_all()
        communicator.abort()
        return recovery.run()

    return survivors


def _open_several(
    group: Group,
    vendors: Vendors,
    domains: Domains,
    why: str,
    links: list[float] | str | None,
    open_own: Callable[[Group], Verbs],
    dead: Callable[[], frozenset[int]],
) -> Communicator:
    """Open a group of several domains, this rank's by `open_own`, with host memory between them.

    `why` says, in words, why they are not fewer.
    """
    ranks = group.ranks
    host = open_host(group)
    reductions = {op: vendors.common(ranks, dtypes) for op, dtypes in REDUCTIONS.items()}
    between = host
    if group.device.type != "cpu":
        device = torch.device(group.device.type, group.device.index)
        reason = f"{vendors.named(ranks)} reach each other there"
        between = StagedCommunicator(host, reductions, device, f"{group}", reason)
    mine = domains.of_rank(group.rank)
    members = domains.members[mine]
    place = members.index(group.rank)
    store, name = _hearing(group, group.store.under(f"domain {mine}")), f"{group.name}/{mine}"
    own = Group(tuple(ranks[rank] for rank in members), place, group.device, store, group.timeout + GRACE, name)
    native: Verbs | None = None
    failure: Exception | None = None
    try:
        with beside_a_world():
            native = open_own(own)
    except Exception as error:
        failure = error
    try:
        _all_opened(group, domains.names[mine], failure)
        if max(map(len, domains.members)) == 1:
            said = f"{domains.shown(ranks)}; between them host memory: {host.note}"
            between.note = "; ".join(filter(None, [said, why]))
            # What the host reduces is what is reduced; the same on all ranks.
            between.reductions = {op: dtypes & vendors.common(ranks, dtypes) for op, dtypes in _native(host).items()}
            between.predicted = between_domains(domains, links if isinstance(links, list) else None, measures=False)
            return between
        carried = None if native is None or len(members) == 1 else Natively(native)
        inside = Inside(carried, place, len(members), between, compares_all=compares(host))
        if isinstance(links, str):
            links = bandwidth.measured(group, domains, between)
        shares = Shares(domains, links)
        here = carried.note if carried is not None else "nothing"
        who, where = domains.shown(ranks), domains.names[mine]
        note = f"{who}; inside of {where} {here}, between the domains host memory: {host.note}"
        note = "; ".join(filter(None, [note, why, told(domains, shares, ranks)]))
        gone = Ended(group, dead, host.has_left if isinstance(host, SharedMemoryCommunicator) else None)
        schedules = planned(group, domains, shares.bandwidths)
        opened = DomainsCommunicator(group, domains, shares, inside, between, reductions, note, gone)
        opened.planned = schedules
        opened.predicted = between_domains(domains, shares.bandwidths, planned=schedules)
        return opened
    except BaseException:
        if native is not None:
            # A vendor's group that is not aborted waits for its peers as it closes.
            native.abort()
            native.close()
        between.close()
        raise


def _native(host: Communicator) -> Mapping[str, frozenset[torch.dtype]]:
    """Return what the CPU path reduces by itself."""
    if host.reductions is not None:
        return host.reductions
    backend = _registry.of_device_type("cpu")
    return backend.capabilities(backend.devices()[0]).reductions


def _check_bridge(group: Group, vendors: Vendors) -> None:
    """Raise on every rank if one of them has no way to the others."""
    fault = ""
    try:
        _registry.of_device_type("cpu")
    except DevicesError as error:
        fault = str(error)
    said_by = group.share("mixed/bridge", fault)
    if faults := [f"rank {group.ranks[rank]}: {said}" for rank, said in enumerate(said_by) if said]:
        raise UnsupportedError(
            f"{group}: there is no bridge between {vendors.named(group.ranks)}: they reach each other by host memory "
            f"and the CPU backend's messages, and on {faults[0]}"
        )


def _all_opened(group: Group, domain: str, failure: Exception | None, what: str = _DOMAINS) -> None:
    """Raise the same on every rank as soon as a domain could not open on one of them; return once all could.

    Args:
        group: the members.
        domain: what this rank's is called.
        failure: why it could not open here; None if it could.
        what: tells one such meeting of the group from others.
    """
    store = group.store.under(what)
    if failure is not None:
        if store.add("failures", 1) == 1:
            store.set("failed", [type(failure).__name__, str(failure), domain, group.ranks[group.rank]])
        raise _failed(group, store, domain) or failure from failure
    store.set(f"opened/{group.rank}", True)
    deadline = time.monotonic() + (group.timeout + GRACE).total_seconds()
    for rank in range(group.size):
        # One that waits for a rank that has failed, in the vendor's own opening, comes late or never.
        while not _comes(store, f"opened/{rank}", _LOOK) and not _comes(store, "failed", 0):
            if time.monotonic() > deadline:
                raise CollectiveTimeoutError(f"{group}: rank {group.ranks[rank]} did not open its domain in time")
    if _comes(store, "failed", 0):
        raise _failed(group, store, domain) or CollectiveError(f"{group}: a domain did not open")


def _hearing(group: Group, store: Store, what: str = _DOMAINS) -> Store:
    """Return the store of one domain, whose ranks wait no longer for each other once another rank's has failed."""
    return store.hearing(group.store.under(what), "failed", "a domain did not open")


def _comes(store: Store, key: str, seconds: float) -> bool:
    """Return whether a key comes within so many seconds; False too if a rank has failed, and has died since."""
    try:
        return store.comes(key, seconds)
    except CollectiveError:
        if store.torch.check(["failed"]):
            return key == "failed"
        raise


def _failed(group: Group, store: Store, domain: str) -> DevicesError | None:
    """Return what the first rank to fail says of it; None if it does not, having ended."""
    with contextlib.suppress(CollectiveError):
        if store.comes("failed", GRACE.total_seconds()):
            kind, text, where, rank = store.get("failed")
            raised = getattr(errors, kind, WorldError)
            is_ours = isinstance(raised, type) and issubclass(raised, DevicesError)
            return (raised if is_ours else WorldError)(
                f"{group}, {domain}: domain {where} did not open on rank {rank}: {text}"
            )
    return None
