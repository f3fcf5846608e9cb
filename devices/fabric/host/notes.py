"""Names and notes as text, for a peer in another process: JSON, in which a tuple stays one. Nothing is pickled."""

from __future__ import annotations

import json
from typing import Any

from devices.errors import ArgumentError
from devices.fabric.mark import Mark
from devices.fabric.pairs import Sent


def written(value: object) -> str:
    """Return a name or a note as text.

    Raises:
        ArgumentError: it is not made of None, bools, numbers, strings, tuples, a `Mark` or a `Sent`.
    """
    try:
        return json.dumps(value, default=_plain, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"what goes to another process beside a tensor is a Mark, a Sent, or made of None, bools, numbers, strings "
            f"and tuples; got {value!r}: {error}"
        ) from error


def read(text: str) -> Any:
    """Return what `written` was given.

    Raises:
        ValueError: it was not that.
    """
    return _as_given(json.loads(text))


def mark_to_json(mark: Mark) -> list[Any]:
    return [getattr(mark, name) for name in Mark.__slots__]


def mark_from_json(data: list[Any]) -> Mark:
    verb, group, number, dtype, size, op, root, rank, line, sizes = data
    return Mark(verb, group, number, dtype, size, op, root, rank, line, tuple(sizes))


def _plain(value: object) -> dict[str, Any]:
    if isinstance(value, Mark):
        return {"mark": mark_to_json(value)}
    if isinstance(value, Sent):
        return {"tag": value.tag, "mark": mark_to_json(value.mark)}
    raise TypeError(f"{type(value).__name__} is none of these")


def _as_given(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_as_given(each) for each in data)
    if isinstance(data, dict):
        mark = mark_from_json(data["mark"])
        return Sent(_as_given(data["tag"]), mark) if "tag" in data else mark
    return data
