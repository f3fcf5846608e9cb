"""What a plugin is asked, and its answers, checked: of a backend its probe, devices
and topology, of a plugin links and targets.

Each answer can go through JSON, for a plugin that is asked in a child process.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices._backend import Backend, Capabilities, Device, Link, Probe, Variable
from devices.errors import PluginError, UnsupportedError
from devices.roster.plugin import Loaded, shown, words

if TYPE_CHECKING:
    from devices.topology.graph import Topology

Links = dict[str, tuple[Link, ...]]
"""By the label of the device that they start at."""

MOST = 100_000
"""Who lists more devices, or more links of a device, has lost its way."""

_LABEL = re.compile(r"[^\W\d]\w*:\d+")


def probe_of(backend: Backend) -> Probe:
    """Return the backend's probe."""
    try:
        found: object = backend.probe()
    except _ANY as error:
        raise _raised("its probe", error, "; it should return Probe(present=False, reason=...)") from error
    if not isinstance(found, Probe):
        raise PluginError(f"its probe returned {shown(found)}, not a Probe")
    if not isinstance(found.present, bool) or not isinstance(found.reason, str):
        raise PluginError(f"its probe returned {shown(found)}; `present` must be a bool and `reason` a text")
    return found


def devices_of(backend: Backend) -> tuple[Device, ...]:
    """Return the devices of a backend that is present."""
    doing = "listing its devices"
    try:
        found = tuple(itertools.islice(backend.devices(), MOST + 1))
    except _ANY as error:
        raise _raised(doing, error) from error
    if len(found) > MOST:
        raise PluginError(f"{doing} gave more than {MOST}")
    for device in found:
        if not isinstance(device, Device):
            raise PluginError(f"{doing} raised TypeError: {shown(device)} is no devices.Device")
        if fault := _fault_of_device(backend, device):
            raise PluginError(f"{doing} gave {shown(device)}, whose {fault}")
    return found


def links_of_backend(backend: Backend) -> Links:
    """Return the links that the capabilities of a present backend's devices state."""
    doing = "the links of its devices"
    found: Links = {}
    for device in devices_of(backend):
        try:
            links = tuple(itertools.islice(capabilities_of(backend, device).links, MOST))
        except PluginError:
            raise
        except _ANY as error:
            raise _raised(f"asking for {doing}", error) from error
        found[str(device)] = links
    return _checked_links(doing, found)


def capabilities_of(backend: Backend, device: Device) -> Capabilities:
    """Return what a device of a backend that is present can do."""
    doing = f"asking what {device} can do"
    try:
        found: object = backend.capabilities(device)
    except _ANY as error:
        raise _raised(doing, error) from error
    if not isinstance(found, Capabilities):
        raise PluginError(f"{doing} gave {shown(found)}, which is no devices.Capabilities")
    return found


def topology_of(backend: Backend) -> Topology | None:
    """Return the graph of a present backend's devices; None if it knows of no more than their links."""
    from devices.topology.graph import Topology

    doing = "asking for its topology"
    try:
        found: object = backend.topology()
    except _ANY as error:
        raise _raised(doing, error) from error
    if found is not None and not isinstance(found, Topology):
        raise PluginError(f"{doing} gave {shown(found)}, which is no devices.topology.Topology")
    return found


def contradictions_of(backend: Backend) -> tuple[str, ...]:
    """Return what a backend says contradicts itself on this host."""
    doing = "looking for settings that contradict each other"
    try:
        found: tuple[object, ...] = tuple(itertools.islice(backend.contradictions(), MOST))
    except _ANY as error:
        raise _raised(doing, error) from error
    for each in found:
        if not isinstance(each, str) or not each.strip():
            raise PluginError(f"{doing} gave {shown(each)}, which is no sentence")
    return tuple(map(str, found))


def variables_of(backend: Backend, ranks: int | None, local_rank: int | None) -> tuple[Variable, ...]:
    """Return the variables that a backend's ranks are to be started with.

    Raises:
        UnsupportedError: so many ranks cannot be.
        PluginError: the plugin is at fault.
    """
    doing = "asking for the variables to start ranks with"
    try:
        found: tuple[object, ...] = tuple(itertools.islice(backend.launch_environment(ranks, local_rank), MOST))
    except UnsupportedError:
        raise
    except _ANY as error:
        raise _raised(doing, error) from error
    kept: dict[str, Variable] = {}
    for each in found:
        if not isinstance(each, Variable):
            raise PluginError(f"{doing} gave {shown(each)}, which is no devices.Variable")
        texts: tuple[object, ...] = (each.name, each.value, each.why)
        if not all(isinstance(text, str) and text.isprintable() for text in texts) or not each.name.isidentifier():
            raise PluginError(f"{doing} gave {shown(each)}; a name is a word, its value and reason one line of text")
        if each.name in kept:
            raise PluginError(f"{doing} gave {each.name} twice")
        kept[each.name] = each
    return tuple(kept.values())


def local_ranks_of(backend: Backend) -> int:
    """Return how many ranks a backend has on this host if nobody says otherwise.

    Raises:
        UnsupportedError: none can be started.
        PluginError: the plugin is at fault.
    """
    doing = "asking how many ranks a host has"
    try:
        found: object = backend.local_ranks()
        count: object = len(backend.devices()) if found is None else found
    except UnsupportedError:
        raise
    except _ANY as error:
        raise _raised(doing, error) from error
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST:
        raise PluginError(f"{doing} gave {shown(count)}; it is a number from 0 to {MOST}, or None")
    return count


def links_of_hook(plugin: Loaded) -> Links:
    """Return what the plugin's hook `devices_links` states."""
    doing = "its hook `devices_links`"
    found: Links = {}
    for result in _called(plugin, "devices_links"):
        if not isinstance(result, Mapping):
            raise PluginError(f"{doing} returned {shown(result)}, not a dict of links by the device that they start at")
        try:
            for label, links in result.items():
                found[label] = (*found.get(label, ()), *itertools.islice(links, MOST))
        except _ANY as error:
            raise _raised(f"reading what {doing} returned", error) from error
    return _checked_links(doing, found)


def targets_of(plugin: Loaded) -> list[dict[str, Any]]:
    """Return the folders and files that the plugin's hook `devices_targets` names, unread."""
    doing = "its hook `devices_targets`"
    found: list[dict[str, Any]] = []
    for result in _called(plugin, "devices_targets"):
        if isinstance(result, (str, Path)):
            if not Path(result).is_dir():
                raise PluginError(f"{doing} returned {str(result)!r}, which is no folder")
            found.append({"folder": str(Path(result).absolute())})
        elif isinstance(result, Mapping):
            files = dict(result)
            for name, text in files.items():
                if not (isinstance(name, str) and name.endswith(".toml") and "/" not in name and isinstance(text, str)):
                    raise PluginError(
                        f"{doing} returned {shown({name: text})}; it must be a file's text by its name.toml"
                    )
            found.append({"files": files})
        else:
            raise PluginError(f"{doing} returned {shown(result)}, neither a folder nor a dict of files' texts")
    return found


# The same for a child process, which says what it is doing before it does it, in case that ends it.

PROBE, DEVICES, LINKS, TOPOLOGY, TARGETS = "probe", "devices", "links", "topology", "targets"
CONTRADICTIONS = "contradictions"

Step = tuple[str, str, Callable[[], Any]]
"""The backend that it is about, "" for the plugin itself; what is being done, in words; and what gives the answer."""


def steps(plugin: Loaded, question: str) -> Iterator[Step]:
    """Return what is to be done to answer a question about a plugin."""
    for backend in plugin.backends:
        if question == PROBE:
            yield backend.name, "its probe", partial(_probe_data, backend)
        elif question == DEVICES:
            yield backend.name, "listing its devices", partial(_devices_data, backend)
        elif question == LINKS:
            yield backend.name, "asking for the links of its devices", partial(_links_data, links_of_backend, backend)
        elif question == TOPOLOGY:
            yield backend.name, "asking for its topology", partial(_topology_data, backend)
        elif question == CONTRADICTIONS:
            yield backend.name, "looking for settings that contradict each other", partial(contradictions_of, backend)
    if question == LINKS and "devices_links" in plugin.hooks:
        yield "", "its hook `devices_links`", partial(_links_data, links_of_hook, plugin)
    if question == TARGETS and "devices_targets" in plugin.hooks:
        yield "", "its hook `devices_targets`", partial(targets_of, plugin)


def from_data(question: str, data: Any) -> Any:
    """Return the answer that went through JSON."""
    if question == PROBE:
        return Probe(**data)
    if question == DEVICES:
        return tuple(Device(**device) for device in data)
    if question == LINKS:
        return {label: tuple(Link(**link) for link in links) for label, links in data.items()}
    if question == CONTRADICTIONS:
        return tuple(data)
    if question == TOPOLOGY and data is not None:
        from devices.topology.files import from_data as from_table

        return from_table(data)
    return data


def _probe_data(backend: Backend) -> dict[str, Any]:
    return asdict(probe_of(backend))


def _devices_data(backend: Backend) -> list[dict[str, Any]]:
    return [asdict(device) for device in devices_of(backend)]


def _links_data(ask: Callable[[Any], Links], whom: Any) -> dict[str, list[dict[str, Any]]]:
    return {label: [asdict(link) for link in links] for label, links in ask(whom).items()}


def _topology_data(backend: Backend) -> dict[str, Any] | None:
    from devices.topology.files import to_data

    found = topology_of(backend)
    return None if found is None else to_data(found)


# A plugin's `sys.exit()` must not end the program. Ctrl-C is the user's.
_ANY = (Exception, SystemExit)


def _raised(doing: str, error: BaseException, advice: str = "") -> PluginError:
    return PluginError(f"{doing} raised {words(error)}{advice}")


def _called(plugin: Loaded, hook: str) -> list[Any]:
    try:
        return plugin.call(hook)
    except _ANY as error:
        raise _raised(f"its hook `{hook}`", error) from error


def _fault_of_device(backend: Backend, device: Device) -> str:
    texts: dict[str, object] = {"backend": device.backend, "type": device.type, "name": device.name}
    for field, value in texts.items():
        if not isinstance(value, str):
            return f"`{field}` is {shown(value)}, not a text"
    sizes: dict[str, object] = {"index": device.index, "memory": device.memory, "free": device.free}
    for field, size in sizes.items():
        if field != "index" and size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            return f"`{field}` is {shown(size)}, not a whole number"
    if device.backend != backend.name:
        return f"`backend` is {device.backend!r}; it must be {backend.name!r}"
    return ""


def _checked_links(doing: str, found: Links) -> Links:
    for label, links in found.items():
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            raise PluginError(f"{doing}: {shown(label)} is no device; 'cuda:0' is one")
        for link in links:
            if not isinstance(link, Link):
                raise PluginError(f"{doing}: {label} has {shown(link)}, which is no devices.Link")
            if not isinstance(link.peer, str) or not _LABEL.fullmatch(link.peer) or link.peer == label:
                raise PluginError(f"{doing}: {label} has a link to {shown(link.peer)}, which is no other device")
            if not isinstance(link.kind, str) or not link.kind:
                raise PluginError(f"{doing}: {label} has a link of kind {shown(link.kind)}; 'nvlink' is one")
            for field, value in {"bandwidth": link.bandwidth, "latency": link.latency}.items():
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if value is not None and not (is_number and 0 < value < float("inf")):
                    raise PluginError(f"{doing}: {label} has a link whose {field} is {shown(value)}")
    return found
