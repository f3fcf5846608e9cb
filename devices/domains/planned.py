"""Schedules that a group of several domains makes for itself, where its links are known and one is clearly faster."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import lru_cache

from devices._backend import Group
from devices.algorithms.planned import Planned, least_slice
from devices.algorithms.schedule import Schedule
from devices.domains.bandwidth import VARIABLE
from devices.domains.members import Domains
from devices.domains.predicted import seconds
from devices.topology.bounds import bound
from devices.topology.graph import Link, Node, Topology, both
from devices.topology.synthesis import Plan, synthesize

VERBS = ("all_reduce", "all_gather", "reduce_scatter")
"""What a broadcast takes from domain to domain no schedule betters where all reach all at their links' own rates."""

MOST = 16
"""For groups of more ranks none is looked for, that to open one takes not much longer for it.

Over links of 60 random bandwidths 16 ranks took 0.2 s of CPU in the middle and 2 at most, 32 up to 8.6 (2026-11-30, a
machine in use).
"""

FASTER = 1.15
"""So much faster a schedule must be than the verb's own way."""

LEAST = 4 << 20
"""And for data of fewer bytes none is."""

FASTEST = 2e8
"""Nor where the slowest domain's way carries more bytes a second: the links are not all that takes time there.

At 100 MB/s schedules were as much faster as predicted; at 500, ranks on two cores, from 0.8 to 1.1 times.
"""

MEMORY = 1.5e9
"""The bytes a second that messages of a rank go by inside a domain: an assumption, low for shared memory."""


def planned(group: Group, domains: Domains, bandwidths: Sequence[float] | None) -> tuple[Planned, ...]:
    """Return schedules for the verbs that they make clearly faster, the same on every rank; every member calls this.

    Args:
        group: the members.
        domains: who is where.
        bandwidths: what each rank's way to other domains carries, by rank of the group; None if that is not known.
    """
    # Between two domains the verbs' own ways fill the links.
    if bandwidths is None or len(domains.members) < 3 or group.size > MOST:
        return ()
    if min(sum(bandwidths[rank] for rank in members) for members in domains.members) > FASTEST:
        return ()
    if group.rank == 0:
        # One rank makes them, for all must have the same; and it answers whatever happens, for all wait for it.
        made, fault = "[]", "it was interrupted"
        try:
            made, fault = _made(domains.members, _rounded(bandwidths)), ""
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        finally:
            group.store.set("planned", [made, fault])
    made, fault = group.hear("planned", 0)
    if fault:
        # The verbs have ways of their own.
        warnings.warn(
            f"{group}: rank {group.ranks[0]} found no schedules for the links that {VARIABLE} tells of, for {fault}; "
            "all_reduce, all_gather and reduce_scatter go without, and may be slower",
            RuntimeWarning,
            stacklevel=2,
        )
    return tuple(
        Planned(
            Schedule.from_json(text),
            group.rank,
            least,
            f"predicted {times:.2f} times as fast over these links as what goes without",
        )
        for text, least, times in json.loads(made)
    )


@lru_cache(maxsize=64)
def _made(members: tuple[tuple[int, ...], ...], bandwidths: tuple[float, ...]) -> str:
    """Return what is worth a schedule, as JSON: a program opens many groups over the same links."""
    domains = Domains(members, tuple(map(str, range(len(members)))))
    return json.dumps([[plan.schedule.to_json(), *said] for plan, *said in worth(domains, bandwidths)])


def _rounded(bandwidths: Sequence[float]) -> tuple[float, ...]:
    """Return bandwidths without their last digits: the chunks of a schedule are as many as they are crooked."""
    return tuple(float(f"{bandwidth:.2g}") for bandwidth in bandwidths)


def worth(domains: Domains, bandwidths: Sequence[float]) -> list[tuple[Plan, int, float]]:
    """Return plans that are clearly faster than the verbs' own ways, from how many bytes on, and how much."""
    rounded = _rounded(bandwidths)
    topology, found = topology_of(domains, rounded), []
    own = seconds(1, domains, rounded)
    for verb in VERBS:
        if bound(topology, verb).seconds_per_byte * FASTER >= own[verb]:
            continue
        plan = synthesize(topology, verb)
        times = own[verb] / float(plan.seconds_per_byte)
        if times >= FASTER:
            # All slices but the first are a step behind another: as many as make up for the steps that the first waits.
            steps = max(len(plan.schedule.program(rank)) for rank in range(plan.schedule.size))
            least = max(LEAST, int(2 * steps * least_slice(plan.schedule) / (times / FASTER**0.5 - 1)))
            found.append((plan, least, times))
    return found


def topology_of(domains: Domains, bandwidths: Sequence[float]) -> Topology:
    """Return the graph of a group's ranks: those of a domain on one switch, and each with a link to what is between.

    Args:
        domains: who is where.
        bandwidths: of each rank's link, in each direction.
    """
    ranks = range(len(bandwidths))
    nodes = [Node(f"rank:{rank}") for rank in ranks]
    nodes += [Node(f"memory:{at}", "switch") for at in range(len(domains.members))]
    nodes.append(Node("network", "switch"))
    links = [each for rank in ranks for each in both(Link(f"rank:{rank}", "network", "", bandwidths[rank]))]
    for at, members in enumerate(domains.members):
        for rank in members:
            links += both(Link(f"rank:{rank}", f"memory:{at}", "memory", MEMORY))
    return Topology(nodes, links)
