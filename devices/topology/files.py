"""Topologies as JSON and as TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from devices.errors import TopologyError, did_you_mean
from devices.topology.graph import Link, Node, Topology, both

_NODE = tuple(field.name for field in fields(Node))
_LINK = tuple(field.name for field in fields(Link))


def to_data(topology: Topology) -> dict[str, Any]:
    """Return a topology as what JSON and TOML can hold; what is unknown is left out."""
    nodes: list[dict[str, Any]] = []
    for node in topology.nodes:
        nodes.append({"name": node.name, "kind": node.kind})
        if node.attributes:
            nodes[-1]["attributes"] = {key: _listed(value) for key, value in node.attributes.items()}
    links = [
        {key: value for key in _LINK if (value := getattr(link, key)) not in (None, "")} for link in topology.links
    ]
    return {"name": topology.name, "nodes": nodes, "links": links}


def from_data(data: object) -> Topology:
    """Return the topology that `to_data` gave, or that a person wrote so.

    A link with `both = true` stands for one in each direction.

    Raises:
        TopologyError: it is none; the message names what is wrong and where.
    """
    table = _table("a topology", data, ("name", "nodes", "links"))
    nodes = [
        Node(**{"name": None, **_table(f"node {place}", each, _NODE)})
        for place, each in enumerate(_list(table, "nodes"))
    ]
    links: list[Link] = []
    for place, each in enumerate(_list(table, "links")):
        said = _table(f"link {place}", each, (*_LINK, "both"))
        is_both = said.pop("both", False)
        if missing := [end for end in ("source", "target") if end not in said]:
            raise TopologyError(f"link {place} of this topology has no `{missing[0]}`")
        if not isinstance(is_both, bool):
            raise TopologyError(f"link {place} of this topology has both = {is_both!r}; true and false can be")
        link = Link(**said)
        links += both(link) if is_both else [link]
    name = table.get("name", "")
    if not isinstance(name, str):
        raise TopologyError(f"this topology's name is {name!r}, which is no text")
    return Topology(nodes, links, name)


def to_json(topology: Topology) -> str:
    """Return a topology as JSON."""
    return json.dumps(to_data(topology), indent=1)


def from_json(text: str) -> Topology:
    """Return the topology that a JSON text holds.

    Raises:
        TopologyError: it holds none.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise TopologyError(f"this is no JSON: {error}") from error
    return from_data(data)


def to_toml(topology: Topology) -> str:
    """Return a topology as TOML."""
    data = to_data(topology)
    lines = [f"name = {_toml(data['name'])}"]
    for what in ("nodes", "links"):
        for each in data[what]:
            lines += ["", f"[[{what}]]", *(f"{key} = {_toml(value)}" for key, value in each.items())]
    return "\n".join(lines) + "\n"


def from_toml(text: str) -> Topology:
    """Return the topology that a TOML text holds.

    Raises:
        TopologyError: it holds none.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TopologyError(f"this is no TOML: {error}") from error
    return from_data(data)


def read(path: str | Path) -> Topology:
    """Return the topology of a file, whose name ends in .json or .toml.

    Raises:
        TopologyError: it holds none.
    """
    path = Path(path)
    parse = {".json": from_json, ".toml": from_toml}.get(path.suffix)
    if parse is None:
        raise TopologyError(f"a topology is read from a file that ends in .json or .toml, got {str(path)!r}")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (TopologyError, UnicodeDecodeError) as error:
        raise TopologyError(f"{path}: {error}") from error


def write(topology: Topology, path: str | Path) -> None:
    """Write a topology to a file, whose name ends in .json or .toml."""
    path = Path(path)
    form = {".json": to_json, ".toml": to_toml}.get(path.suffix)
    if form is None:
        raise TopologyError(f"a topology is written to a file that ends in .json or .toml, got {str(path)!r}")
    path.write_text(form(topology), encoding="utf-8")


def _table(what: str, data: object, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise TopologyError(f"{what} is a table, got {data!r}")
    for key in data:
        if key not in known:
            raise TopologyError(f"{what} has a key {key!r}{did_you_mean(str(key), known)}; known: {', '.join(known)}")
    return dict(data)


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    found = table.get(key, [])
    if not isinstance(found, list):
        raise TopologyError(f"`{key}` of a topology is a list, got {found!r}")
    return found


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_text(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _text(value: str) -> str:
    # A JSON text is a TOML one but for this character, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
