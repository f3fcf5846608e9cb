"""Which backend a program uses, and why that one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from devices import _registry
from devices._backend import Backend, Probe
from devices.errors import BackendUnavailableError, DevicesError, PluginError


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


def choose(asked: str = "auto", meet: _registry.Meet | None = None) -> Choice:
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


def _choose_named(name: str, reason: str, meet: _registry.Meet | None) -> Choice:
    found = _registry.probe(name, meet)
    if not found.present:
        raise BackendUnavailableError(
            f"backend {name!r} is installed, but not available here: {found.reason}. `devices doctor` says more"
        )
    return Choice(_registry.backend(name), reason, ((name, found),))


def _choose_best(meet: _registry.Meet | None) -> Choice:
    considered: list[tuple[str, Probe]] = []
    names = _registry.auto_order(meet)
    _registry.prepare_probes(names)
    for name in names:
        absent = [other for other, _ in considered]
        found = _registry.outcome(name, meet)
        if found.present:
            try:
                chosen = _registry.backend(name)
            except PluginError as error:
                # What a child process could load, this one cannot.
                found = Probe(present=False, reason=str(error))
        considered.append((name, found))
        if found.present:
            why = f"{', '.join(absent)} would come before it" if absent else "it has the highest priority"
            return Choice(chosen, f"the best that is present; {why}", tuple(considered))
    reasons = [f"{name}: {found.reason}" for name, found in considered]
    reasons += [f"plugin {plugin.name}: {plugin.error}" for plugin in _registry.plugins() if plugin.error]
    listed = "".join(f"\n  {reason}" for reason in reasons) or " no plugin provides one"
    raise BackendUnavailableError(f"no backend is available here:{listed}{_registry.hint()}")
