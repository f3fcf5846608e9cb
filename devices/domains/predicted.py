"""How long verbs are predicted to take, for `devices.explain(group)`: as intervals, or what is to be known for that."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from devices import catalogue
from devices._interop import Assumed, Interop, Side
from devices.algorithms.planned import Planned
from devices.domains.bandwidth import VARIABLE
from devices.domains.members import Domains
from devices.domains.shares import Shares
from devices.errors import DevicesError, TargetNotFoundError, TopologyError
from devices.topology.calibration import calibration_file, read_calibration
from devices.topology.cost import predict
from devices.topology.estimate import Estimate, Interval, duration
from devices.topology.graph import Topology

SIZE = 64 << 20
"""The bytes that are spoken of."""

VERBS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")

OVER_LINKS = (0.95, 1.05, 2.0)
"""So many times what the links take at best: 0.95 to 1.10 was measured over shaped cables (docs/measured.md); what goes
on inside the domains, and other traffic, may come on top."""

OVER_GLOO = (0.95, 1.7, 4.0)
"""The same where gloo alone carries all: 1 to 3.5 times was measured there."""


def seconds(size: int, domains: Domains, bandwidths: Sequence[float]) -> dict[str, float]:
    """Return how long each verb takes at best, the links full from the first byte to the last.

    Args:
        size: the bytes of a rank's tensor: of what is reduced, what an all_gather gives, what a reduce_scatter or an
            all_to_all takes, what is broadcast.
        domains: who is where.
        bandwidths: of each rank, by rank of the group, in each direction.
    """
    count, ranks = len(domains.members), sum(map(len, domains.members))
    ways = [sum(bandwidths[rank] for rank in members) for members in domains.members]
    parts = [len(members) / ranks for members in domains.members]
    # What a domain has goes to every other one; the rest comes to it. A reduce_scatter is that the other way round.
    gathered = max(max((count - 1) * part, 1 - part) * size / way for part, way in zip(parts, ways, strict=True))
    swapped = max(
        (1 - part) * size * len(members) / way for part, members, way in zip(parts, domains.members, ways, strict=True)
    )
    return {
        "all_reduce": 2 * (count - 1) / count * size / min(ways),
        "all_gather": gathered,
        "reduce_scatter": gathered,
        "broadcast": size / min(ways),
        "all_to_all": swapped,
    }


def told(domains: Domains, shares: Shares, ranks: Sequence[int]) -> str:
    """Return what is to be said of who carries how much, in words; nothing where no bandwidth is known.

    Args:
        domains: who is where.
        shares: how much of what crosses each rank carries.
        ranks: what the ranks of the group are called: their ranks in the world.
    """
    bandwidths = shares.bandwidths
    if bandwidths is None:
        return ""
    each = []
    for name, members in zip(domains.names, domains.members, strict=True):
        way = sum(bandwidths[rank] for rank in members)
        carried = ", ".join(f"rank {ranks[rank]} {bandwidths[rank] / way:.0%}" for rank in members)
        each.append(f"{carried} of what passes {name} at {way / 1e6:.4g} MB/s")
    return "; ".join(each)


def between_domains(
    domains: Domains,
    bandwidths: Sequence[float] | None,
    over: tuple[float, float, float] = OVER_LINKS,
    planned: Collection[Planned] = (),
    *,
    measures: bool = True,
) -> str:
    """Return how long verbs take where what passes between domains takes most of the time, in words.

    Args:
        domains: who is where.
        bandwidths: of each rank, by rank of the group, in each direction; None where that is not known.
        over: so many times what the links take at best it takes at best, as expected and at worst.
        planned: the schedules of the group's own, which are faster from their least bytes on.
        measures: whether such a group measures its bandwidths as it opens, if it is asked to.
    """
    if bandwidths is None:
        return (
            f"not predicted: the bandwidth of each rank's way to {' and '.join(domains.names)} is not known; set "
            f"{VARIABLE} on every rank to its bytes per second{', or to measure' if measures else ''}"
        )
    low, expected, high = over
    faster = [each.schedule.verb for each in planned if each.least <= SIZE]
    found = {
        verb: Interval(low * least, expected * least, high * least)
        for verb, least in seconds(SIZE, domains, bandwidths).items()
        if verb not in faster
    }
    basis = f"from what the ways between {' and '.join(domains.names)} carry ({VARIABLE})"
    return _shown(found, f"{basis}{''.join(f'; {verb} is faster, by its schedule' for verb in faster)}")


def by_fabric(interop: Interop, sides: Sequence[Side], assumed: Assumed) -> str:
    """Return how long verbs take among ranks that are on a fabric, as its plugin predicts it, in words."""
    found, sent = {}, {}
    try:
        for verb in VERBS:
            said = interop.predicted(verb, SIZE, 0 if verb == "broadcast" else -1, sides, assumed)
            found[verb] = Interval(said.low, said.expected, said.high)
            sent[verb] = said.sent
    except Exception as error:
        # What a plugin cannot say of its times keeps nobody from using it.
        return f"not predicted: {interop.name} says: {error or type(error).__name__}"
    crossing = ", ".join(f"{count / 2**20:.4g} MiB over {link}" for link, count in sent["all_reduce"].items() if count)
    return _shown(
        found, f"as {interop.name} has it, an all_reduce sending {crossing or 'nothing'}", _is_speculative(interop)
    )


def _is_speculative(interop: Interop) -> bool:
    try:
        return catalogue.load(interop.domain).speculative
    except TargetNotFoundError:
        return False


def on_this_host(ranks: int) -> str:
    """Return how long verbs take among so many processes of this host, as `devices calibrate` measured it, in words."""
    try:
        found = read_calibration()
    except TopologyError as error:
        return f"not predicted: {error}"
    if found.host != platform.node():
        return (
            f"not predicted: what {calibration_file()} has was measured on {found.host}, and this is "
            f"{platform.node()}; run `devices calibrate --ranks {ranks}` here"
        )
    return _estimated(lambda verb: predict(verb, SIZE, found, ranks))


def of_topology(topology: Topology | None, backend: str, ranks: int) -> str:
    """Return how long verbs take among so many devices of a backend, as the catalogue has its target, in words."""
    target = None
    # A topology that is a target's is called as that prints itself.
    if topology is not None and (called := re.match(r"(\S+)(?: at LNC (\d+))?", topology.name)):
        with contextlib.suppress(TargetNotFoundError):
            target = catalogue.load(called[1], lnc=int(called[2]) if called[2] else None)
    if target is None:
        return (
            f"not predicted: of which target of the catalogue the devices of backend {backend!r} are is not known; "
            f"`devices.topology.predict(verb, size, target, ranks={ranks})` predicts for one that you name"
        )
    return _estimated(lambda verb: predict(verb, SIZE, target, ranks))


def _estimated(estimate: Callable[[str], Estimate]) -> str:
    try:
        found = {verb: estimate(verb) for verb in VERBS}
    except DevicesError as error:
        return f"not predicted: {error}"
    first = next(iter(found.values()))
    doubts = dict.fromkeys(doubt for each in found.values() for doubt in each.doubts)
    basis = "; ".join([first.basis, *doubts])
    return _shown({verb: each.seconds for verb, each in found.items()}, basis, first.speculative)


def _shown(found: Mapping[str, Interval], basis: str, is_speculative: bool = False) -> str:
    times = ", ".join(f"{verb} {each.shown(duration)}" for verb, each in found.items())
    return f"predicted for {SIZE >> 20} MiB{', SPECULATIVE' if is_speculative else ''}: {times}; {basis}"
