"""The ranks of a world of several backends tell which fabrics their devices are on, and who reaches whom by them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from devices import _registry, errors
from devices._backend import Backend, Device, Group
from devices._interop import Interop, Port, Side
from devices.domains.joined import Fabrics
from devices.domains.vendors import Island
from devices.errors import DevicesError, PluginError, WorldError
from devices.roster.plugin import shown

Ports = Mapping[str, Mapping[str, Any]]
"""What a rank says of the fabrics that it is on, by name."""


def fabrics_of(backend: Backend, device: Device, others: Collection[str]) -> Fabrics:
    """Return the fabrics that a device is on: its own backend's, and those that its peers' backends bring.

    Args:
        backend: the device's own.
        device: this rank's.
        others: the backends of its peers; what is not installed here says nothing.

    Raises:
        PluginError: a plugin answers with something else.
    """
    interops: dict[str, Interop] = {}
    ports: dict[str, Port] = {}
    releases: dict[str, str] = {}
    installed = [name for name in _registry.backends() if name in others and name != backend.name]
    for each in (backend, *map(_registry.backend, installed)):
        try:
            found = _port(each, device)
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"backend {each.name!r} could not say what joins it with others: {error}") from error
        # A backend's own goes before what another says of it.
        if found is not None and found[0].name not in interops:
            interop, port = found
            interops[interop.name], ports[interop.name] = interop, port
            releases[interop.name] = _registry.release(each.name)
    return Fabrics(interops, ports, releases)


def _port(backend: Backend, device: Device) -> tuple[Interop, Port] | None:
    """Return the fabric that a backend brings, and where a device, of any backend, is on it; None if nowhere."""
    found: object = backend.interop()
    if found is None:
        return None
    if not isinstance(found, Interop):
        raise PluginError(f"`interop` of backend {backend.name!r} returned {shown(found)}, which is no devices.Interop")
    port: object = found.port(device)
    if port is None:
        return None
    if not isinstance(port, Port):
        raise PluginError(f"`port` of fabric {found.name!r} returned {shown(port)}, which is no devices.Port")
    texts: list[object] = [port.target, port.where, *port.assumed.keys(), *port.assumed.values()]
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise PluginError(f"`port` of fabric {found.name!r} returned a port with {shown(strange[0])}, which is no text")
    return found, port


def said_of(fabrics: Fabrics) -> dict[str, dict[str, Any]]:
    """Return what a rank tells of the fabrics that it is on, as JSON."""
    return {
        name: {
            "target": port.target,
            "where": port.where,
            "assumed": dict(port.assumed),
            "release": fabrics.releases[name],
        }
        for name, port in fabrics.ports.items()
    }


def agreed(group: Group, fabrics: Fabrics, backends: Sequence[str], ports: Sequence[Ports]) -> list[Island]:
    """Return which ranks of a world reach each other by fabrics, the same on every rank.

    Args:
        group: the world.
        fabrics: those that this rank is on.
        backends: of which backend each rank is.
        ports: what each rank has said of the fabrics that it is on.

    Raises:
        WorldError: on every rank: two at one place of a fabric have other versions of it, or assume other things.
        DevicesError: on every rank: the fabric refuses it.
    """
    places: dict[str, dict[str, list[int]]] = {}
    for rank, said in enumerate(ports):
        for name, port in said.items():
            places.setdefault(name, {}).setdefault(port["where"], []).append(rank)
    # What joins ranks of one backend is that backend's own business.
    shared = {
        name: by_place
        for name, by_place in sorted(places.items())
        if len({backends[rank] for ranks in by_place.values() for rank in ranks}) > 1
    }
    for name, by_place in shared.items():
        for ranks in by_place.values():
            _check_alike(group, name, backends, ports, ranks)
    if not shared:
        return []
    answers = {name: _answer(fabrics, name, ports, shared[name]) for name in shared if name in fabrics.ports}
    told = group.share("rank/fabrics", answers)
    islands = []
    for name, by_place in shared.items():
        for ranks in by_place.values():
            said = told[ranks[0]][name]
            if "fault" in said:
                kind, text = said["fault"]
                raise _error(kind)(f"{group}: {_named(backends, ranks)} are on {name}: {text}")
            if other := [rank for rank in ranks if told[rank][name] != said]:
                raise WorldError(
                    f"{group}: ranks {ranks[0]} and {other[0]}, {_named(backends, [ranks[0], other[0]])}, do not agree "
                    f"on who reaches whom by {name}: {json.dumps(said)} and {json.dumps(told[other[0]][name])}"
                )
            islands.append(Island.from_json({"fabric": name, **said}))
    return islands


def _check_alike(group: Group, name: str, backends: Sequence[str], ports: Sequence[Ports], ranks: list[int]) -> None:
    first = ports[ranks[0]][name]
    for rank in ranks[1:]:
        other = ports[rank][name]
        both = _named(backends, [ranks[0], rank])
        if other["release"] != first["release"]:
            raise WorldError(
                f"{group}: {both} are on {name} by two versions of its plugin: {first['release']} on rank {ranks[0]} "
                f"and {other['release']} on rank {rank}; install the same on all"
            )
        if other["assumed"] != first["assumed"]:
            names = {*first["assumed"], *other["assumed"]}
            differ = next(each for each in sorted(names) if first["assumed"].get(each) != other["assumed"].get(each))
            raise WorldError(
                f"{group}: {both} are on {name} and assume different things of it: {differ} is "
                f"{first['assumed'].get(differ)!r} on rank {ranks[0]} and {other['assumed'].get(differ)!r} on rank "
                f"{rank}; assume the same on all"
            )


def _answer(fabrics: Fabrics, name: str, ports: Sequence[Ports], by_place: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return what this rank's plugin says of who reaches whom at its place of a fabric; what it raises is told too."""
    interop, port = fabrics.interops[name], fabrics.ports[name]
    kinds: dict[str, list[int]] = {}
    for rank in by_place[port.where]:
        kinds.setdefault(ports[rank][name]["target"], []).append(rank)
    sides = [Side(target, tuple(some)) for target, some in kinds.items()]
    try:
        found = interop.domains(sides, port.assumed)
        domains = [sorted(rank for side in domain for rank in side.ranks) for domain in found]
        if sorted(rank for domain in domains for rank in domain) != sorted(by_place[port.where]):
            raise PluginError(
                f"`domains` of fabric {name!r} returned ranks {' and '.join(map(str, domains))} for "
                f"{sorted(by_place[port.where])}; each of these is to be in one domain, and no others"
            )
        bridge = str(interop.bridge(port.assumed))
    except Exception as error:
        return {"fault": [type(error).__name__, str(error) or type(error).__name__]}
    return {"domains": domains, "bridge": bridge}


def _error(kind: str) -> type[DevicesError]:
    """Return the class of an error of ours by its name; that of a world that cannot open for any other."""
    found = getattr(errors, kind, None)
    return found if isinstance(found, type) and issubclass(found, DevicesError) else WorldError


def _named(backends: Sequence[str], ranks: Sequence[int]) -> str:
    by_backend: dict[str, list[int]] = {}
    for rank in ranks:
        by_backend.setdefault(backends[rank], []).append(rank)
    parts = [f"{', '.join(map(str, some))} ({backend})" for backend, some in by_backend.items()]
    return f"ranks {' and '.join(parts)}"
