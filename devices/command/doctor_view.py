"""How `devices doctor` looks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from devices import _terminal


def show(report: dict[str, Any], file: TextIO) -> None:
    """Print the report."""
    _terminal.show(_sections(report), file)


def _sections(report: dict[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    versions = report["versions"]
    yield "Versions", _pairs([(name, value or "not installed") for name, value in versions.items()])
    yield "Plugins", _plugins(report["plugins"])
    if devices := _devices(report["plugins"]):
        yield "Devices", _pairs(devices)
    yield "Choice", _pairs(_choice(report))
    if report["switches"]:
        yield "Switches", _pairs([(f"{each['name']}={each['value']}", each["meaning"]) for each in report["switches"]])
    if backends := _backends(report["plugins"]):
        yield "Has run on", _pairs([(backend["name"], backend["verified"]) for backend in backends])
    if report["problems"]:
        yield "Problems", Group(*(Text(problem, style="red") for problem in report["problems"]))


def _pairs(rows: list[tuple[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(str(name)), value if isinstance(value, Text) else Text(str(value)))
    return table


def _plugins(plugins: list[dict[str, Any]]) -> RenderableType:
    if not plugins:
        return Text("none is installed", style="red")
    table = Table.grid(padding=(0, 2))
    for style in ("cyan", "", "dim", ""):
        table.add_column(style=style, overflow="fold")
    for plugin in plugins:
        origin = Text(f"{plugin['distribution']} {plugin['version']}")
        if plugin["error"]:
            table.add_row(Text(plugin["name"]), Text("broken", style="red"), origin, Text("see below"))
        elif not plugin["allowed"]:
            table.add_row(Text(plugin["name"]), Text("off"), origin, Text("DEVICES_PLUGINS does not allow it"))
        elif not plugin["backends"]:
            hooks = ", ".join(hook.removeprefix("devices_") for hook in plugin["hooks"])
            table.add_row(Text(plugin["name"]), Text("there"), origin, Text(hooks))
        for backend in plugin["backends"]:
            table.add_row(Text(backend["name"]), *_state(backend, origin))
    return table


def _state(backend: dict[str, Any], origin: Text) -> tuple[Text, Text, Text]:
    if backend["error"]:
        return Text("broken", style="red"), origin, Text("see below")
    state = Text("present", style="green") if backend["present"] else Text("absent", style="yellow")
    return state, origin, Text(str(backend["reason"]))


def _backends(plugins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [backend for plugin in plugins for backend in plugin["backends"]]


def _devices(plugins: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (device["label"], ", ".join(filter(None, (device["name"], _memory(device)))))
        for backend in _backends(plugins)
        for device in backend["devices"]
    ]


def _memory(device: dict[str, Any]) -> str:
    if device["memory"] is None:
        return "memory unknown"
    total = f"{device['memory'] / 2**30:.1f} GiB"
    return total if device["free"] is None else f"{device['free'] / 2**30:.1f} of {total} free"


def _choice(report: dict[str, Any]) -> list[tuple[str, str]]:
    auto, cpu, torch = report["auto"], report["cpu"], report["torch"]
    group = 'knows the process group "devices"' if torch["registered"] else 'does not know the process group "devices"'
    return [
        ("auto", f"{auto['backend']}: {auto['reason']}" if auto["backend"] else auto["reason"]),
        ("cpu", f"works: {cpu['reason']}" if cpu["works"] else f"does not work: {cpu['reason']}"),
        ("torch", group if torch["imports"] else "cannot be imported"),
    ]
