"""What `devices env` prints: the variables that a program's ranks on this machine are to be started with."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import asdict
from typing import Any

from devices import _choice, _registry
from devices._backend import Backend, Variable
from devices.errors import ArgumentError
from devices.roster.answers import local_ranks_of, variables_of

SCHEMA = 1
"""Rises when a field changes its meaning or goes; new fields may come at any time."""

_SHOWN = 4
"""So many ranks' own variables are shown, of more the first and the last."""

_MOST = 100_000


def examine(asked: str, ranks: int | None, local_rank: int | None) -> dict[str, Any]:
    """Return the variables, as plain data.

    Args:
        asked: the backend's name, whether it is present or not; or "auto" for the one that `devices.init` would take.
        ranks: how many ranks there are on this machine; as many as the backend says if None.
        local_rank: one of them, to have its own variables among the others.

    Raises:
        ArgumentError: there are no such ranks.
        UnsupportedError: they cannot be started here.
    """
    if ranks is not None and not 1 <= ranks <= _MOST:
        raise ArgumentError(f"--ranks {ranks}: there is at least one rank, and at most {_MOST}")
    if local_rank is not None and not 0 <= local_rank < (ranks or _MOST):
        raise ArgumentError(f"--local-rank {local_rank}: ranks on a machine are 0 to {(ranks or _MOST) - 1}")
    if asked == "auto":
        choice = _choice.choose(asked)
        backend, reason = choice.backend, choice.reason
    else:
        backend, reason = _registry.backend(asked), "asked for by name"
        found = _registry.outcome(asked)
        if not found.present:
            reason += f"; it is absent here: {found.reason}"
    shared = variables_of(backend, ranks, None)
    own = () if local_rank is None else variables_of(backend, ranks, local_rank)
    # What is a rank's own may narrow what all of them have.
    variables = {variable.name: variable for variable in (*shared, *own)}
    return {
        "schema": SCHEMA,
        "backend": backend.name,
        "reason": reason,
        "local_rank": local_rank,
        "variables": [asdict(variable) for variable in variables.values()],
        "of_ranks": _of_ranks(backend, ranks) if local_rank is None else [],
    }


def as_script(found: dict[str, Any]) -> str:
    """Return it as lines for a POSIX shell."""
    lines = _comment(f"backend {found['backend']}: {found['reason']}")
    for variable in found["variables"]:
        lines += ["", *_comment(variable["why"]), f"export {variable['name']}={shlex.quote(variable['value'])}"]
    if not found["variables"]:
        lines += ["", *_comment("it asks for no variable")]
    if found["of_ranks"]:
        lines += ["", *_comment(
            "and each rank has variables of its own, which torchrun does not set: let the ranks run "
            "`eval \"$(devices env --local-rank $LOCAL_RANK)\"` before the program"
        )]  # fmt: skip
        for each in _some(found["of_ranks"]):
            lines.append("#   ..." if each is None else f"#   local rank {each['local_rank']}: {_assignments(each)}")
    return "\n".join(lines)


def _of_ranks(backend: Backend, ranks: int | None) -> list[dict[str, Any]]:
    """Return each rank's own variables; none if the first has none."""
    found: list[dict[str, Any]] = []
    count = ranks if ranks is not None else local_ranks_of(backend)
    for rank in range(count):
        own: tuple[Variable, ...] = variables_of(backend, ranks, rank)
        if not own:
            return []
        found.append({"local_rank": rank, "variables": [asdict(variable) for variable in own]})
    return found


def _some(ranks: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    return list(ranks) if len(ranks) <= _SHOWN else [*ranks[: _SHOWN - 1], None, ranks[-1]]


def _assignments(rank: dict[str, Any]) -> str:
    return " ".join(f"{variable['name']}={shlex.quote(variable['value'])}" for variable in rank["variables"])


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
