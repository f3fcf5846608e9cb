"""The catalogue as plain data, for JSON and for the tables of `devices catalogue`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from devices.catalogue.figures import Figure, Provenance
from devices.catalogue.installed import load, names, origin
from devices.catalogue.targets import Target


def listing(kind: str | None = None) -> list[dict[str, Any]]:
    """Return each target in short: its name, what it is, how sure, who added it, and of how many chips it is."""
    return [_short(load(name)) for name in names(kind)]


def whole(target: Target) -> dict[str, Any]:
    """Return all that the catalogue holds of a target: its figures and its parts', limits, claims, assumptions."""
    return {
        **_short(target),
        "lnc": target.limits.lnc,
        "mixed": target.beside is not None,
        "made_of": [
            {
                "name": part.name,
                "kind": part.kind,
                "count": target.count(part.kind) if target.beside is None else None,
            }
            for part in _parts(target)
        ],
        "figures": [
            {"target": part.name, "figure": name, **_figure(figure)}
            for part in (target, *_parts(target))
            for name, figure in part.figures.items()
        ],
        "limits": [_limit(limit) for field, limit in target.origins.items() if "." not in field],
        "claims": [{"of": each.of, "than": each.than, **_figure(each.figure)} for each in target.claims],
        "assumptions": [{**asdict(each), "status": "assumed"} for each in target.assumptions],
    }


def _short(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "kind": target.kind,
        "title": target.title,
        "status": target.status,
        "speculative": target.speculative,
        "from": origin(target.name),
        "chips": target.count("chip"),
    }


def _parts(target: Target) -> Iterator[Target]:
    part = target.of
    while part is not None:
        yield part
        part = part.of
    if target.beside is not None:
        yield target.beside


def _figure(figure: Figure) -> dict[str, Any]:
    """Return a figure; `value` is null where it is not known ("unknown") or does not exist ("none")."""
    stated = {
        "value": _plain(figure.value),
        "unit": figure.unit,
        "status": figure.status,
        "source": figure.source or None,
        "date": figure.date or None,
        "printed": figure.printed or None,
        "absent": figure.absent,
        "reason": figure.reason or None,
        "note": figure.note or None,
    }
    return stated | {"not_chosen": [_figure(other) for other in figure.others]}


def _limit(limit: Provenance) -> dict[str, Any]:
    return {
        "limit": limit.field,
        "value": _plain(limit.value),
        "status": limit.status,
        "how": limit.how or None,
        "from": [{"names": list(figure.names), "place": figure.place, **_figure(figure)} for figure in limit.figures],
    }


def _plain(value: object) -> Any:
    """Return what JSON can hold: sets become sorted lists."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value
