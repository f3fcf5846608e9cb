"""What backends there are, which of them are present, and what they say."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from devices._backend import Backend, Device, Link, Probe
from devices._observer import Observer
from devices._store import Store
from devices.errors import BackendNotFoundError, PluginError, did_you_mean
from devices.roster.answers import CONTRADICTIONS, DEVICES, LINKS, PROBE, TARGETS, TOPOLOGY, Links
from devices.roster.installed import allow_list, installed
from devices.roster.plugin import shown, words
from devices.roster.plugins import Facts, Plugin, Roster, again

if TYPE_CHECKING:
    from devices.topology.graph import Topology

Meet = Callable[[], Store]
"""Returns the store that the ranks share, having waited for them if need be."""


@final
@dataclass(slots=True)
class _State:
    """All that is found out once in a process."""

    roster: Roster
    probes: dict[str, Probe | PluginError] = field(default_factory=dict)


_lock = threading.RLock()
_loaded: _State | None = None


def plugins() -> tuple[Plugin, ...]:
    """Return every installed plugin, those of `devices` itself first, broken and forbidden ones included."""
    with _lock:
        roster = _surveyed()
        return tuple(roster.plugin(place) for place in range(len(roster.entries)))


def backends() -> tuple[str, ...]:
    """Return the names of the backends whose plugins are whole, present on this machine or not.

    >>> import devices
    >>> "cpu" in devices.backends()
    True
    """
    with _lock:
        roster = _surveyed()
        return tuple(sorted(roster.holders, key=lambda name: roster.holders[name]))


def backend(name: str) -> Backend:
    """Return the backend of that name, present or not; its plugin is loaded into this process.

    Raises:
        BackendNotFoundError: no plugin provides it.
        PluginError: the plugin of that name is broken.
    """
    with _lock:
        return _holding(name).backend(name)


def of_device_type(device_type: str) -> Backend:
    """Return the first backend whose devices are of a torch type: one of `devices`' own, if there is one."""
    with _lock:
        roster = _state().roster
        for places in ([], roster.unasked()):
            roster.survey(places, [PROBE])
            for name in sorted(roster.holders, key=lambda name: roster.holders[name]):
                if roster.facts(name).device_type == device_type:
                    return roster.backend(name)
    raise BackendNotFoundError(f"no plugin provides a backend whose devices are of type {device_type!r}")


def release(name: str) -> str:
    """Return the distribution that provides backend `name` and its version; "" if no plugin does."""
    with _lock:
        roster = _state().roster
        if name not in roster.holders:
            return ""
        plugin = roster.plugin(roster.holders[name])
        return f"{plugin.distribution} {plugin.version}"


def facts(name: str) -> Facts:
    """Return what is plain data about a backend."""
    with _lock:
        return _holding(name).facts(name)


def probe(name: str, meet: Meet | None = None) -> Probe:
    """Return whether backend `name` is present, and why; asked once in a process.

    Args:
        name: the backend's.
        meet: called where a child process is to probe, so that one does it for all ranks of a host.

    Raises:
        BackendNotFoundError: no plugin provides it.
        PluginError: its plugin is broken, or its probe raised, died or came late.
    """
    with _lock:
        # A wrong name or a broken plugin is an error here, before anything waits for other ranks.
        roster = _holding(name, [] if meet is not None else [PROBE])
        is_shared = meet is not None and name not in _state().probes and not roster.is_own(roster.holders[name])
    # Not under the lock, which another rank of this process may need before it comes to meet this one.
    store = meet() if meet is not None and is_shared else None
    with _lock:
        probes, place = _state().probes, roster.holders[name]
        if name not in probes:
            try:
                if store is not None:
                    roster.survey([place], [PROBE], store)
                probes[name] = roster.answer(PROBE, place, name)
            except PluginError as error:
                probes[name] = _about(f"backend {name!r}", error)
        found = probes[name]
    if isinstance(found, PluginError):
        raise again(found)
    return found


def available() -> tuple[Device, ...]:
    """Return the devices of every backend that is present; `devices doctor` says why others are not.

    >>> import devices
    >>> [str(device) for device in devices.available() if device.type == "cpu"]
    ['cpu:0']
    """
    return tuple(device for name in _present(DEVICES) for device in devices_of(name))


def devices_of(name: str) -> tuple[Device, ...]:
    """Return the devices of backend `name`, which is present; none if it cannot list them, which breaks it."""
    try:
        with _lock:
            roster = _holding(name)
            found: tuple[Device, ...] = roster.answer(DEVICES, roster.holders[name], name)
            return found
    except PluginError as error:
        with _lock:
            _state().probes[name] = _about(f"backend {name!r}", error)
        return ()


def links() -> dict[str, tuple[Link, ...]]:
    """Return all known links between devices, by the device that they start at, as `str(device)` prints it.

    Those that the capabilities of present devices state, and those that plugins know of between two backends. What a
    broken plugin would have said is left out; `devices doctor` says so.

    >>> import devices
    >>> devices.links()  # of a host with no accelerator
    {}
    """
    found: dict[str, tuple[Link, ...]] = {}
    for said in [*(_asked(LINKS, name) for name in _present(LINKS)), *_of_plugins(LINKS, "devices_links").values()]:
        for label, some in ({} if said is None or isinstance(said, PluginError) else said).items():
            if some:
                # Two may know of one link.
                found[label] = tuple(dict.fromkeys((*found.get(label, ()), *some)))
    return found


def links_of(name: str) -> Links:
    """Return the links that the capabilities of a present backend's devices state; none if it is broken."""
    said = _asked(LINKS, name)
    return {} if said is None or isinstance(said, PluginError) else said


def links_of_plugins() -> Links:
    """Return the links that plugins know of by their hook."""
    found: Links = {}
    for said in _of_plugins(LINKS, "devices_links").values():
        for label, some in ({} if said is None or isinstance(said, PluginError) else said).items():
            found[label] = (*found.get(label, ()), *some)
    return found


def topologies() -> dict[str, Topology | None]:
    """Return the topology that each present backend knows of, by the backend's name; None for one that knows none."""
    said = {name: _asked(TOPOLOGY, name) for name in _present(TOPOLOGY)}
    return {name: None if isinstance(each, PluginError) else each for name, each in said.items()}


def contradictions() -> tuple[str, ...]:
    """Return a sentence for each setting that contradicts another one or the hardware, as the backends see it.

    A backend that is absent is asked too, and one that cannot answer is told of in its place.
    """
    names: list[str] = []
    for name in backends():
        with contextlib.suppress(PluginError):
            probe(name)
            names.append(name)
    with _lock:
        roster = _state().roster
        roster.prepare(CONTRADICTIONS, sorted({roster.holders[name] for name in names}))
    found: list[str] = []
    for name in names:
        said = _asked(CONTRADICTIONS, name)
        found += [str(said)] if isinstance(said, PluginError) else [f"{name}: {each}" for each in said or ()]
    return tuple(found)


def targets() -> dict[str, list[dict[str, Any]] | PluginError]:
    """Return what each plugin adds to the catalogue, by the plugin's name in words, not read yet."""
    return _of_plugins(TARGETS, "devices_targets")


def link_errors() -> tuple[PluginError, ...]:
    """Return why backends that are present and plugins that are whole do not say what links and graphs they know of."""
    said = [*(_asked(LINKS, name) for name in _present(LINKS)), *_of_plugins(LINKS, "devices_links").values()]
    said += [_asked(TOPOLOGY, name) for name in _present(TOPOLOGY)]
    return tuple(each for each in said if isinstance(each, PluginError))


def observer(plugin: str) -> Observer:
    """Return a new observer of collectives from the plugin of that name, which is loaded into this process.

    Raises:
        PluginError: there is no such plugin, it is broken, or it has no observer.
    """
    with _lock:
        roster = _state().roster
        named = [place for place, entry in enumerate(roster.entries) if entry.name == plugin]
        places = [place for place in named if roster.allowed[place]]
        if named and not places:
            raise PluginError(
                f"plugin {plugin!r} is installed, but not among those that DEVICES_PLUGINS allows; add it there"
            )
        if not places:
            known = sorted({entry.name for entry in roster.entries})
            raise PluginError(
                f"no plugin is named {plugin!r}{did_you_mean(plugin, known) or '.'} "
                f"Installed: {', '.join(known) or 'none'}"
            )
        who = roster.who(places[0])
        roster.survey(roster.unasked(plugin))
        loaded = roster.loaded(places[0])
        if "devices_observer" not in loaded.hooks:
            raise PluginError(f"{who} has no hook `devices_observer`; it has {', '.join(loaded.hooks)}")
        try:
            # pluggy leaves out a None.
            found = next(iter(loaded.call("devices_observer")), None)
        except (Exception, SystemExit) as error:
            raise PluginError(f"{who}: its hook `devices_observer` raised {words(error)}") from error
        if not isinstance(found, Observer):
            raise PluginError(
                f"{who}: its hook `devices_observer` returned {shown(found)}, which is no devices.Observer"
            )
        return found


def auto_order(meet: Meet | None = None) -> tuple[str, ...]:
    """Return the backends that "auto" may take, the best first; among equals, that of the first plugin."""
    with _lock:
        is_shared = meet is not None and bool(_state().roster.unasked())
    store = meet() if meet is not None and is_shared else None
    with _lock:
        roster = _surveyed(store)
        ranked = [
            (priority, name)
            for name in sorted(roster.holders, key=lambda name: roster.holders[name])
            if (priority := roster.facts(name).priority) is not None
        ]
    return tuple(name for _, name in sorted(ranked, key=lambda each: -each[0]))


def prepare_probes(names: Sequence[str]) -> None:
    """Have several backends probed at once, in what child processes that takes."""
    with _lock:
        roster = _state().roster
        roster.prepare(PROBE, sorted({roster.holders[name] for name in names}))


def outcome(name: str, meet: Meet | None = None) -> Probe:
    """Return the probe of backend `name`, one that failed as an absence."""
    try:
        return probe(name, meet)
    except PluginError as error:
        return Probe(present=False, reason=str(error))


def unmatched_names() -> tuple[str, ...]:
    """Return a sentence for each name in DEVICES_PLUGINS that no installed plugin has."""
    with _lock:
        names = [entry.name for entry in _state().roster.entries]
    return tuple(
        f"DEVICES_PLUGINS names {name!r}, but no such plugin is installed{did_you_mean(name, names)}; "
        f"installed: {', '.join(sorted(set(names))) or 'none'}"
        for name in allow_list() or ()
        if name not in names
    )


def reset() -> None:
    """Forget what was found, so that the next question looks again; for tests."""
    global _loaded
    with _lock:
        _loaded = None


def _state() -> _State:
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _State(Roster(installed(), allow_list()))
        return _loaded


def _surveyed(store: Store | None = None) -> Roster:
    """Return the roster, every plugin having been asked; under the lock."""
    roster = _state().roster
    roster.survey(roster.unasked(), [PROBE], store)
    return roster


def _holding(name: str, questions: Sequence[str] = (PROBE,)) -> Roster:
    """Return the roster, which has somebody who holds backend `name`; under the lock."""
    roster = _state().roster
    if name not in roster.holders:
        roster.find(name, questions)
    if name not in roster.holders:
        if error := roster.errors.get(name):
            raise again(error)
        raise BackendNotFoundError(_not_found(name))
    return roster


def _present(question: str) -> list[str]:
    """Return the names of the backends that are present, all of them having been asked a question at once."""
    names = [name for name in backends() if outcome(name).present]
    with _lock:
        roster = _state().roster
        roster.prepare(question, sorted({roster.holders[name] for name in names}))
    return names


def _asked(question: str, name: str) -> Any:
    """Return the answer about a backend, or the error."""
    with _lock:
        roster = _holding(name)
        try:
            return roster.answer(question, roster.holders[name], name)
        except PluginError as error:
            return _about(f"backend {name!r} of {roster.who(roster.holders[name])}", error)


def _of_plugins(question: str, hook: str) -> dict[str, Any]:
    """Return what the hook of each plugin that has it says, or the error, by the plugin's name in words."""
    with _lock:
        roster = _surveyed()
        places = [place for place in range(len(roster.entries)) if hook in roster.plugin(place).hooks]
        roster.prepare(question, places)
        found: dict[str, Any] = {}
        for place in places:
            try:
                found[roster.who(place)] = roster.answer(question, place)
            except PluginError as error:
                found[roster.who(place)] = _about(roster.who(place), error)
        return found


def _about(whom: str, error: PluginError) -> PluginError:
    told = PluginError(str(error) if str(error).startswith(("plugin ", "backend ")) else f"{whom}: {error}")
    told.__cause__ = error.__cause__
    return told


def _not_found(name: str) -> str:
    found = plugins()
    forbidden = sorted(plugin.name for plugin in found if not plugin.allowed)
    if name in forbidden:
        return f"plugin {name!r} is installed, but not among those that DEVICES_PLUGINS allows; add it there"
    names = sorted(name for plugin in found for name in plugin.backends)
    broken = sorted({plugin.name for plugin in found if plugin.error})
    message = f"no plugin provides a backend named {name!r}{did_you_mean(name, [*names, *broken, *forbidden])}"
    message += f"{'.' if '?' not in message else ''} Installed: {', '.join(names) or 'none'}."
    if broken:
        message += f" Broken: {', '.join(broken)}; `devices doctor` says why."
    if forbidden:
        message += f" Not allowed by DEVICES_PLUGINS: {', '.join(forbidden)}."
    return message + hint()


def hint() -> str:
    """Return what is to be added to an error where not even the plugins of `devices` itself are found; else ""."""
    if any(plugin.own for plugin in plugins()):
        return ""
    return " The distribution `devices` itself is not installed, so its own plugins are not found: pip install it."
