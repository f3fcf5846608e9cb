"""Opening a group over its domains: who is where, each domain natively, and the way between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from devices._backend import Communicator, Group
from devices._process_group import ProcessGroupCommunicator
from devices.domains import bandwidth
from devices.domains.communicator import DomainsCommunicator
from devices.domains.inside import Inside
from devices.domains.members import Domains
from devices.domains.planned import planned
from devices.domains.predicted import OVER_GLOO, between_domains, told
from devices.domains.recovery import Recovery, is_recovered
from devices.domains.shares import Shares
from devices.fabric.communicator import REDUCTIONS
from devices.fabric.host import open_here

if TYPE_CHECKING:
    import torch


GRACE = timedelta(seconds=5)


def open_domains(
    group: Group,
    key: str,
    name: str,
    open_inside: Callable[[Group], Communicator | str],
    open_between: Callable[[Group], Communicator],
    reductions: Mapping[str, frozenset[torch.dtype]] = REDUCTIONS,
) -> Communicator:
    """Return a communicator over `group` that uses each domain's own verbs inside it, and messages between domains.

    Every member calls this, as it calls `Backend.open`.

    Args:
        group: the members.
        key: the same on the ranks of one domain, and different in another; "" on a rank that is in none with others.
        name: what the domain is called, for errors and `devices.explain()`.
        open_inside: opens the ranks of this domain, which has more than one; what it returns has `reduce_scatter`,
            `all_gather`, `broadcast` and `barrier` of its own. Or it returns, the same on all of them, why they cannot
            be opened, and each is for itself then.
        open_between: opens all ranks; what it returns has an `exchange` that reaches any of them.
        reductions: the ops and dtypes that `reduce_scatter` takes in every domain.

    Returns:
        What `open_between` does, where it is all that there is: no domain has two ranks, or one has all.
    """
    said = group.share("domain", [key or f"rank {group.rank}", name, bandwidth.told()])
    domains = Domains.of([(key, name) for key, name, _ in said])
    links = bandwidth.agreed([link for _, _, link in said], group)
    made = [open_between(group)]
    try:
        return _composed(group, [(key, name) for key, name, _ in said], domains, links, open_inside, made, reductions)
    except BaseException:
        for each in reversed(made):
            # One that is not aborted waits for its peers as it closes.
            each.abort()
            each.close()
        raise


def _composed(
    group: Group,
    said: Sequence[tuple[str, str]],
    domains: Domains,
    links: list[float] | str | None,
    open_inside: Callable[[Group], Communicator | str],
    made: list[Communicator],
    reductions: Mapping[str, frozenset[torch.dtype]],
) -> Communicator:
    """Return what is composed of what is between the domains and of the domain's own, or the first alone.

    `said` is the key and name of each rank's domain; `made` has what is between, and the domain's own is put there.
    """
    between = made[0]
    if len(domains.members) in (1, group.size):
        return _recoverable(group, _alone(between, domains, links))
    inside = _open_own(group, domains, open_inside)
    if isinstance(inside, Communicator):
        made.append(inside)
    if refused := _refused(group, domains, inside if isinstance(inside, str) else ""):
        apart = {rank: f"rank {rank}" for at in refused for rank in domains.members[at]}
        domains = Domains.of([(apart.get(rank, key), name) for rank, (key, name) in enumerate(said)])
    why = "".join(f"; each rank of {name} is for itself, for {reason}" for name, reason in refused.values())
    if len(domains.members) == group.size:
        between.note += why
        return _recoverable(group, _alone(between, domains, links))
    if isinstance(links, str):
        links = bandwidth.measured(group, domains, between)
    shares = Shares(domains, links)
    carried = inside if isinstance(inside, Communicator) else None
    here = carried.note if carried is not None else "nothing"
    note = "; ".join(
        filter(
            None,
            [
                f"{domains.shown(group.ranks)}; inside of them {here}, between them {between.note}{why}",
                told(domains, shares, group.ranks),
            ],
        )
    )
    members = domains.members[domains.of_rank(group.rank)]
    own = Inside(carried, members.index(group.rank), len(members))
    schedules = planned(group, domains, shares.bandwidths)
    opened = DomainsCommunicator(group, domains, shares, own, between, reductions, note)
    opened.planned = schedules
    opened.predicted = between_domains(domains, shares.bandwidths, planned=schedules)
    return opened


def _alone(between: Communicator, domains: Domains, links: list[float] | str | None) -> Communicator:
    """Let messages between ranks that each are for themselves say how long verbs take, where torch's own are those."""
    if isinstance(between, ProcessGroupCommunicator) and len(domains.members) > 1:
        between.predicted = between_domains(
            domains, links if isinstance(links, list) else None, OVER_GLOO, measures=False
        )
    return between


def _recoverable(group: Group, between: Communicator) -> Communicator:
    """Let the world recover where torch's own messages are all that carries it."""
    if isinstance(between, ProcessGroupCommunicator):
        if is_recovered():
            between.recovery = Recovery(group)
        open_here.add(between)
    return between


def _open_own(
    group: Group, domains: Domains, open_inside: Callable[[Group], Communicator | str]
) -> Communicator | str | None:
    """Open this rank's domain; None where the rank is alone in it."""
    mine = domains.of_rank(group.rank)
    members = domains.members[mine]
    if len(members) == 1:
        return None
    ranks = tuple(group.ranks[rank] for rank in members)
    store = group.store.under(f"domain {mine}")
    # Longer than between: who waits here for a rank that waits there is not to be the first to say that it is late.
    timeout = group.timeout + GRACE
    return open_inside(Group(ranks, members.index(group.rank), group.device, store, timeout, f"{group.name}/{mine}"))


def _refused(group: Group, domains: Domains, reason: str) -> dict[int, tuple[str, str]]:
    """Return which domains could not be opened, by their place: what they are called, and why; `reason` is mine."""
    mine = domains.of_rank(group.rank)
    if domains.members[mine][0] == group.rank:
        group.store.set(f"domain refused/{mine}", reason)
    heard = [group.hear(f"domain refused/{at}", members[0]) for at, members in enumerate(domains.members)]
    return {at: (name, said) for at, (name, said) in enumerate(zip(domains.names, heard, strict=True)) if said}
