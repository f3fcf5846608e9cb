"""Opening a group over its domains: who is where, each domain natively, and the way between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from devices._backend import Communicator, Group
from devices.domains.communicator import DomainsCommunicator
from devices.domains.inside import Inside
from devices.domains.members import Domains
from devices.fabric.communicator import REDUCTIONS

if TYPE_CHECKING:
    import torch


GRACE = timedelta(seconds=5)


def open_domains(
    group: Group,
    key: str,
    name: str,
    open_inside: Callable[[Group], Communicator],
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
            `all_gather`, `broadcast` and `barrier` of its own.
        open_between: opens all ranks; what it returns has an `exchange` that reaches any of them.
        reductions: the ops and dtypes that `reduce_scatter` takes in every domain.

    Returns:
        What `open_between` does, where it is all that there is: no domain has two ranks, or one has all.
    """
    domains = Domains.of([tuple(told) for told in group.share("domain", [key or f"rank {group.rank}", name])])
    between = open_between(group)
    if len(domains.members) in (1, group.size):
        return between
    mine = domains.of_rank(group.rank)
    members = domains.members[mine]
    inside, place = None, members.index(group.rank)
    if len(members) > 1:
        ranks = tuple(group.ranks[rank] for rank in members)
        store = group.store.under(f"domain {mine}")
        # Longer than between: who waits here for a rank that waits there is not to be the first to say that it is late.
        timeout = group.timeout + GRACE
        inside = open_inside(Group(ranks, place, group.device, store, timeout, f"{group.name}/{mine}"))
    here = inside.note if inside is not None else "nothing"
    note = f"{domains}; inside of them {here}, between them {between.note}"
    return DomainsCommunicator(group, domains, Inside(inside, place, len(members)), between, reductions, note)
