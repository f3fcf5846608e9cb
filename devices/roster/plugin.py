"""One plugin, loaded: its hooks and its backends, all of them checked."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from devices import _hookspecs
from devices._backend import INTERFACE_VERSION, Backend
from devices.errors import PluginError, did_you_mean

_HOOKS = tuple(name for name in vars(_hookspecs) if name.startswith("devices_"))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plugin that is whole.

    Args:
        hooks: the names of those that it implements.
        backends: what its hook `devices_backend` returned.
        manager: pluggy's, which has this plugin alone.
    """

    hooks: tuple[str, ...]
    backends: tuple[Backend, ...]
    manager: pluggy.PluginManager

    def call(self, hook: str) -> list[Any]:
        """Return what the plugin returns from a hook, which it may implement more than once; it may raise anything."""
        return list(getattr(self.manager.hook, hook)())


def load(entry_point: EntryPoint, claimed: list[str]) -> Loaded:
    """Import a plugin and return it.

    Args:
        entry_point: of the group `devices`.
        claimed: gets the backends' names as soon as they are known, for whoever asks for one of a broken plugin.

    Raises:
        PluginError: it is broken.
        BaseException: what its own code raises.
    """
    manager = pluggy.PluginManager("devices")
    manager.add_hookspecs(_hookspecs)
    module = entry_point.load()
    manager.register(module)
    hooks = _checked_hooks(manager, module)
    check_interface(f"plugin {entry_point.name!r}", getattr(module, "interface", 1))
    loaded = Loaded(hooks, (), manager)
    if "devices_backend" not in hooks:
        return loaded
    offered: list[Any] = []
    for result in loaded.call("devices_backend"):
        offered.extend(result if isinstance(result, (list, tuple)) else [result])
    if not offered:
        raise PluginError("its hook `devices_backend` returned no backend")
    claimed += [name for item in offered if isinstance(name := getattr(item, "name", None), str)]
    for item in offered:
        _check_backend(item)
    for place, name in enumerate(claimed):
        if name in claimed[:place]:
            raise PluginError(f"it provides two backends named {name!r}")
    return Loaded(hooks, tuple(offered), manager)


def words(error: BaseException) -> str:
    """Return the kind and the message of an error that a plugin's code raised, even of one that has none to give."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException as another:
        return f"{type(error).__name__}, whose message cannot be had: {type(another).__name__}"


def shown(value: object) -> str:
    """Return a short `repr` of what a plugin returned, even of what has none."""
    try:
        text = repr(value)
    except BaseException as error:
        text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_interface(what: str, version: object) -> None:
    """Raise unless this version of `devices` can use what was written for that version of the interface."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise PluginError(f"{what} says that its interface is {shown(version)}; it must be a whole number from 1 up")
    if version > INTERFACE_VERSION:
        raise PluginError(
            f"{what} was written for version {version} of the plugin interface; this is version {INTERFACE_VERSION}: "
            f"upgrade devices, or install an older release of the plugin, one for version {INTERFACE_VERSION}"
        )


def _checked_hooks(manager: pluggy.PluginManager, module: Any) -> tuple[str, ...]:
    """Return the hooks of `module`; raise if one does not exist, or there is none."""
    hooks = tuple(caller.name for caller in manager.get_hookcallers(module) or ())
    for name in hooks:
        if name not in _HOOKS:
            raise PluginError(
                f"it implements a hook {name!r} that does not exist{did_you_mean(name, _HOOKS) or '.'} Version "
                f"{INTERFACE_VERSION} of the plugin interface has {', '.join(_HOOKS)}"
            )
    if not hooks:
        raise PluginError(
            "it implements no hook; write a function `devices_backend`, decorated with `@devices.hookimpl`, in the "
            "module that the entry point names"
        )
    return hooks


def _check_backend(item: Any) -> None:
    if isinstance(item, type) and issubclass(item, Backend):
        raise PluginError(f"its hook `devices_backend` returned the class {item.__name__}; return an instance of it")
    if not isinstance(item, Backend):
        raise PluginError(f"its hook `devices_backend` returned {shown(item)}, which is no devices.Backend")
    kind = type(item).__name__
    for attribute in ("name", "device_type"):
        value = getattr(item, attribute, None)
        if not isinstance(value, str) or not value.isidentifier():
            raise PluginError(f"{kind}.{attribute} must be a word, got {shown(value)}")
    if item.name == "auto":
        raise PluginError(f"{kind}.name is 'auto', which already means the best that is present")
    check_interface(f"backend {item.name!r}", item.interface)
    if item.priority is not None and (not isinstance(item.priority, int) or isinstance(item.priority, bool)):
        raise PluginError(f"{kind}.priority must be a whole number or None, got {shown(item.priority)}")
    if not isinstance(item.verified, str):
        raise PluginError(f"{kind}.verified must be a text that says what it has run on, got {shown(item.verified)}")
