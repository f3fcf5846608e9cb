"""Finds the plugins, keeps a broken one as an error for whoever asks for it, and chooses a backend.

pluggy's own entry-point loader is not used: it stops at the first plugin that fails to import, and a second
plugin of a name is skipped in silence.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, final

import pluggy

from devices import _hookspecs
from devices._backend import INTERFACE_VERSION, Backend, Device, Probe
from devices._probe import probe_here, probe_in_child
from devices._probe_per_host import probe_once_per_host
from devices._store import Store
from devices.errors import BackendNotFoundError, BackendUnavailableError, DevicesError, PluginError, did_you_mean

GROUP = "devices"
"""The entry-point group of plugins."""

OWN_DISTRIBUTION = "devices"
"""Its plugins load first, so that no other can take their names, and are trusted to probe in this process."""

Meet = Callable[[], Store]
"""Returns the store that the ranks share, having waited for them if need be."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point in the group `devices`, and what came of loading it.

    Args:
        name: the entry point's name.
        distribution: the installed distribution that has it.
        version: that distribution's version.
        backends: the names of the backends that it provides; none if it is broken or not allowed.
        allowed: whether DEVICES_PLUGINS allows it; one that is not allowed is not imported.
        error: what is wrong with it, or None.
    """

    name: str
    distribution: str
    version: str
    backends: tuple[str, ...] = ()
    allowed: bool = True
    error: PluginError | None = None

    @property
    def own(self) -> bool:
        """Whether it is part of `devices` itself."""
        return self.distribution == OWN_DISTRIBUTION


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that was chosen, and why.

    Args:
        backend: the backend.
        reason: why it was chosen, as the end of a sentence.
        considered: the backends that were probed for it, in order, with what they said.
    """

    backend: Backend
    reason: str
    considered: tuple[tuple[str, Probe], ...]

    def __str__(self) -> str:
        lines = [f"backend {self.backend.name!r}: {self.reason}"]
        for name, probe in self.considered:
            lines.append(f"  {name}: {'present' if probe.present else 'absent'}, {probe.reason}")
        return "\n".join(lines)


@final
@dataclass(slots=True)
class _State:
    """All that is found out once in a process."""

    manager: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    backends: dict[str, Backend] = field(default_factory=dict)
    origins: dict[str, EntryPoint] = field(default_factory=dict)
    errors: dict[str, PluginError] = field(default_factory=dict)
    probes: dict[str, Probe | PluginError] = field(default_factory=dict)


_lock = threading.RLock()
_loaded: _State | None = None


def plugins() -> tuple[Plugin, ...]:
    """Return every installed plugin, those of `devices` itself first, broken and forbidden ones included."""
    return tuple(_state().plugins)


def backends() -> tuple[str, ...]:
    """Return the names of the backends whose plugins loaded, present on this machine or not.

    >>> import devices
    >>> "cpu" in devices.backends()
    True
    """
    return tuple(_state().backends)


def backend(name: str) -> Backend:
    """Return the backend of that name, present or not.

    Raises:
        BackendNotFoundError: no plugin provides it.
        PluginError: the plugin of that name is broken.
    """
    state = _state()
    if found := state.backends.get(name):
        return found
    if error := state.errors.get(name):
        raise _again(error)
    raise BackendNotFoundError(_not_found(state, name))


def probe(name: str, meet: Meet | None = None) -> Probe:
    """Return whether backend `name` is present, and why; asked once in a process.

    Args:
        name: the backend's.
        meet: called where a child process is to probe, so that one does it for all ranks of a host.

    Raises:
        BackendNotFoundError: no plugin provides it.
        PluginError: its plugin is broken, or its probe raised, died or came late.
    """
    backend(name)
    state = _state()
    is_shared = meet is not None and name not in state.probes and not _is_own(state, name)
    # Not under the lock, which another rank of this process may need before it comes to meet this one.
    store = meet() if meet is not None and is_shared else None
    with _lock:
        state = _state()
        if name not in state.probes:
            try:
                state.probes[name] = _ask(state, name, store)
            except PluginError as error:
                state.probes[name] = error
        found = state.probes[name]
    if isinstance(found, PluginError):
        raise _again(found)
    return found


def available() -> tuple[Device, ...]:
    """Return the devices of every backend that is present; `devices doctor` says why others are not.

    >>> import devices
    >>> [str(device) for device in devices.available() if device.type == "cpu"]
    ['cpu:0']
    """
    return tuple(device for name in backends() if outcome(name).present for device in devices_of(name))


def devices_of(name: str) -> tuple[Device, ...]:
    """Return the devices of backend `name`, which is present; none if it cannot list them, which breaks it."""
    try:
        found = tuple(backend(name).devices())
        if strangers := [device for device in found if not isinstance(device, Device)]:
            raise TypeError(f"{strangers[0]!r} is no devices.Device")
        return found
    except (Exception, SystemExit) as error:
        broken = PluginError(f"backend {name!r}: listing its devices raised {type(error).__name__}: {error}")
        broken.__cause__ = error
        with _lock:
            _state().probes[name] = broken
        return ()


def auto_order() -> tuple[str, ...]:
    """Return the backends that "auto" may take, the best first; among equals, that which loaded first."""
    ranked = [(found.priority, name) for name, found in _state().backends.items() if found.priority is not None]
    return tuple(name for _, name in sorted(ranked, key=lambda each: -each[0]))


def outcome(name: str, meet: Meet | None = None) -> Probe:
    """Return the probe of backend `name`, one that failed as an absence."""
    try:
        return probe(name, meet)
    except PluginError as error:
        return Probe(present=False, reason=str(error))


def choose(asked: str = "auto", meet: Meet | None = None) -> Choice:
    """Return the backend to use, and why.

    Args:
        asked: a backend's name; or "auto" for the one that DEVICES_BACKEND names, if it is set, and else for
            the present backend of the highest priority.
        meet: as `probe` takes it.

    Raises:
        BackendNotFoundError: no plugin provides what was asked for.
        BackendUnavailableError: its hardware is not here; or, for "auto", no backend's is.
        PluginError: the plugin of what was asked for is broken.
    """
    if asked != "auto":
        return _choose_named(asked, "asked for by name", meet)
    wanted = os.environ.get("DEVICES_BACKEND", "").strip()
    if wanted in ("", "auto"):
        return _choose_best(meet)
    try:
        return _choose_named(wanted, f"DEVICES_BACKEND={wanted} asked for it", meet)
    except DevicesError as error:
        raise type(error)(f"DEVICES_BACKEND={wanted}: {error}") from error


def allow_list() -> tuple[str, ...] | None:
    """Return the plugins that DEVICES_PLUGINS allows; None if it is not set or empty, and all are."""
    names = tuple(name.strip() for name in os.environ.get("DEVICES_PLUGINS", "").split(",") if name.strip())
    return names or None


def unmatched_names() -> tuple[str, ...]:
    """Return a sentence for each name in DEVICES_PLUGINS that no installed plugin has."""
    installed = [plugin.name for plugin in plugins()]
    return tuple(
        f"DEVICES_PLUGINS names {name!r}, but no such plugin is installed{did_you_mean(name, installed)}; "
        f"installed: {', '.join(sorted(set(installed))) or 'none'}"
        for name in allow_list() or ()
        if name not in installed
    )


def reset() -> None:
    """Forget what was found, so that the next question looks again; for tests."""
    global _loaded
    with _lock:
        _loaded = None


def load_alone(entry_point: EntryPoint, name: str) -> Backend:
    """Return backend `name` of one plugin, no other being loaded."""
    state = _State(_new_manager())
    _load(state, entry_point, "", "")
    if error := next(iter(state.errors.values()), None):
        raise error
    return state.backends[name]


def _choose_named(name: str, reason: str, meet: Meet | None) -> Choice:
    found = probe(name, meet)
    if not found.present:
        raise BackendUnavailableError(
            f"backend {name!r} is installed, but not available here: {found.reason}. `devices doctor` says more"
        )
    return Choice(backend(name), reason, ((name, found),))


def _choose_best(meet: Meet | None) -> Choice:
    state = _state()
    considered: list[tuple[str, Probe]] = []
    for name in auto_order():
        absent = [other for other, _ in considered]
        considered.append((name, outcome(name, meet)))
        if considered[-1][1].present:
            why = f"{', '.join(absent)} would come before it" if absent else "it has the highest priority"
            return Choice(state.backends[name], f"the best that is present; {why}", tuple(considered))
    reasons = [f"{name}: {found.reason}" for name, found in considered]
    reasons += [f"plugin {plugin.name}: {plugin.error}" for plugin in state.plugins if plugin.error]
    listed = "".join(f"\n  {reason}" for reason in reasons) or " no plugin provides one"
    raise BackendUnavailableError(f"no backend is available here:{listed}{_hint(state)}")


def _ask(state: _State, name: str, store: Store | None) -> Probe:
    if _is_own(state, name):
        return probe_here(state.backends[name])
    in_child = partial(probe_in_child, state.origins[name], name)
    return in_child() if store is None else probe_once_per_host(store, name, in_child)


def _is_own(state: _State, name: str) -> bool:
    return _distribution(state.origins[name])[0] == OWN_DISTRIBUTION


def _state() -> _State:
    global _loaded
    with _lock:
        if _loaded is None:
            state = _State(_new_manager())
            allowed = allow_list()
            for entry_point in _found():
                distribution, version = _distribution(entry_point)
                if allowed is None or entry_point.name in allowed:
                    _load(state, entry_point, distribution, version)
                else:
                    state.plugins.append(Plugin(entry_point.name, distribution, version, allowed=False))
            _loaded = state
        return _loaded


def _found() -> list[EntryPoint]:
    """Return all entry points, those of our own distribution first, in an order that is the same every time."""
    return sorted(
        entry_points(group=GROUP),
        key=lambda found: (_distribution(found)[0] != OWN_DISTRIBUTION, _distribution(found), found.name),
    )


def _distribution(entry_point: EntryPoint) -> tuple[str, str]:
    found = entry_point.dist
    # Hand-made metadata may lack either.
    return (str(found.name or "unnamed"), str(found.version or "?")) if found is not None else ("unnamed", "?")


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("devices")
    manager.add_hookspecs(_hookspecs)
    return manager


def _load(state: _State, entry_point: EntryPoint, distribution: str, version: str) -> None:
    """Load one plugin into `state`: its backends, or its error."""
    claimed: list[str] = []
    registered = error = None
    try:
        module = entry_point.load()
        if state.manager.is_registered(module):
            raise PluginError(f"{entry_point.value!r} is the target of another entry point too")
        registered = module
        state.manager.register(module)
        _check_hooks(state.manager, module)
        offered = _offered(state.manager, module)
        claimed = [name for item in offered if isinstance(name := getattr(item, "name", None), str)]
        for item in offered:
            _check_backend(item)
        _check_free(state, claimed)
        state.backends.update((item.name, item) for item in offered)
        state.origins.update(dict.fromkeys(claimed, entry_point))
    except (Exception, SystemExit) as cause:
        told = str(cause) if isinstance(cause, PluginError) else f"{type(cause).__name__}: {cause}"
        origin = f" of {distribution} {version}" if distribution else ""
        error = PluginError(f"plugin {entry_point.name!r}{origin} is broken: {told}")
        error.__cause__ = None if isinstance(cause, PluginError) else cause
        for name in (entry_point.name, *claimed):
            state.errors.setdefault(name, error)
        if registered is not None and state.manager.is_registered(registered):
            state.manager.unregister(registered)
    names = () if error else tuple(claimed)
    state.plugins.append(Plugin(entry_point.name, distribution, version, names, error=error))


def _check_hooks(manager: pluggy.PluginManager, module: Any) -> None:
    """Raise if `module` has a hook that does not exist, or none that does."""
    known = [name for name in vars(_hookspecs) if name.startswith("devices_")]
    hooks = [caller.name for caller in manager.get_hookcallers(module) or ()]
    for name in hooks:
        if name not in known:
            raise PluginError(f"it implements a hook {name!r} that does not exist{did_you_mean(name, known)}")
    if "devices_backend" not in hooks:
        raise PluginError(
            "it implements no hook `devices_backend`; write a function of that name, decorated with `@devices.hookimpl`"
        )


def _offered(manager: pluggy.PluginManager, module: Any) -> list[Any]:
    """Return what the hook of `module` alone returns, not checked yet."""
    others = [other for other in manager.get_plugins() if other is not module]
    offered: list[Any] = []
    for result in manager.subset_hook_caller("devices_backend", others)():
        offered.extend(result if isinstance(result, (list, tuple)) else [result])
    if not offered:
        raise PluginError("its hook `devices_backend` returned no backend")
    return offered


def _check_backend(item: Any) -> None:
    if isinstance(item, type) and issubclass(item, Backend):
        raise PluginError(f"its hook `devices_backend` returned the class {item.__name__}; return an instance of it")
    if not isinstance(item, Backend):
        raise PluginError(f"its hook `devices_backend` returned {item!r}, which is no devices.Backend")
    kind = type(item).__name__
    for attribute in ("name", "device_type"):
        value = getattr(item, attribute, None)
        if not isinstance(value, str) or not value.isidentifier():
            raise PluginError(f"{kind}.{attribute} must be a word, got {value!r}")
    if item.name == "auto":
        raise PluginError(f"{kind}.name is 'auto', which already means the best that is present")
    if not isinstance(item.interface, int) or item.interface > INTERFACE_VERSION:
        raise PluginError(
            f"backend {item.name!r} was written for version {item.interface!r} of the plugin interface; this is "
            f"version {INTERFACE_VERSION}: upgrade devices"
        )
    if item.priority is not None and not isinstance(item.priority, int):
        raise PluginError(f"{kind}.priority must be a whole number or None, got {item.priority!r}")


def _check_free(state: _State, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise PluginError(f"it provides two backends named {name!r}")
        if name in state.backends:
            holder = state.origins[name]
            owner = " ".join(_distribution(holder))
            raise PluginError(f"it claims the backend name {name!r}, which plugin {holder.name!r} of {owner} has")


def _again(error: PluginError) -> PluginError:
    """Return a copy to raise: one raised again and again would gather tracebacks."""
    copy = PluginError(str(error))
    copy.__cause__ = error.__cause__
    return copy


def _not_found(state: _State, name: str) -> str:
    forbidden = sorted(plugin.name for plugin in state.plugins if not plugin.allowed)
    if name in forbidden:
        return f"plugin {name!r} is installed, but not among those that DEVICES_PLUGINS allows; add it there"
    installed = sorted(state.backends)
    broken = sorted({plugin.name for plugin in state.plugins if plugin.error})
    message = f"no plugin provides a backend named {name!r}{did_you_mean(name, [*installed, *broken, *forbidden])}"
    message += f"{'.' if '?' not in message else ''} Installed: {', '.join(installed) or 'none'}."
    if broken:
        message += f" Broken: {', '.join(broken)}; `devices doctor` says why."
    if forbidden:
        message += f" Not allowed by DEVICES_PLUGINS: {', '.join(forbidden)}."
    return message + _hint(state)


def _hint(state: _State) -> str:
    if any(plugin.own for plugin in state.plugins):
        return ""
    return " The distribution `devices` itself is not installed, so its own plugins are not found: pip install it."
