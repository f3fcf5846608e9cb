"""Whether the devices of all ranks have the dtypes that the program says it needs: found out before the world opens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch

from devices._backend import Backend, Group
from devices._store import Store
from devices.errors import (
    ArgumentError,
    CollectiveError,
    CollectiveTimeoutError,
    DevicesError,
    UnsupportedError,
    WorldError,
)
from devices.roster.answers import capabilities_of

_READING = 5.0
"""Seconds that rank 0 gives the others to read why the world cannot open."""

_SHOWN = 8
"""So many ranks of a backend are named, and how many more there are."""


def names_of(dtypes: object) -> tuple[str, ...]:
    """Return what some dtypes are called, each once and in order: "float64".

    Raises:
        ArgumentError: that is no collection of dtypes.
    """
    if isinstance(dtypes, torch.dtype):
        raise ArgumentError(f"dtypes={dtypes} is one dtype; pass several, or one as dtypes=({dtypes},)")
    if isinstance(dtypes, str) or not isinstance(dtypes, Iterable):
        raise ArgumentError(f"dtypes={dtypes!r} are no dtypes; (torch.float64,) are")
    found = list(dtypes)
    for each in found:
        if not isinstance(each, torch.dtype):
            raise ArgumentError(f"dtypes={found!r}: {each!r} is no torch.dtype; torch.bfloat16 is one")
    return tuple(sorted(set(map(_name, found))))


def check_dtypes(group: Group, backend: Backend, needs: Sequence[str]) -> None:
    """Raise on every rank unless the devices of all have certain dtypes; every rank calls this with the same.

    Args:
        group: all ranks; its store has no keys of another opening.
        backend: this rank's.
        needs: what the dtypes are called, in order. Of none nothing is asked.

    Raises:
        UnsupportedError: the devices of some ranks lack one.
        WorldError: ranks need other dtypes, or one cannot say which it has.
        CollectiveTimeoutError: one does not say it in time: it needs none, say.
    """
    if not needs:
        return
    mine: dict[str, Any] = {"needs": list(needs), "backend": backend.name, "has": None, "fault": ""}
    try:
        # A device that says nothing of dtypes has whatever there is.
        mine["has"] = sorted(map(_name, capabilities_of(backend, group.device).dtypes)) or None
    except Exception as error:
        # Every rank raises it; who raised here alone would be waited for.
        mine["fault"] = str(error) or type(error).__name__
    try:
        told = group.share("dtypes", mine)
    except CollectiveTimeoutError as error:
        raise CollectiveTimeoutError(f"{error}, with the same `dtypes`, here {_listed(needs)}") from error
    if (fault := _fault(told, needs)) is not None:
        # Who serves the store may have left, which says nothing of why.
        with contextlib.suppress(Exception):
            _leave(group)
        raise type(fault)(f"rank {group.rank} of {group.size}: the world cannot open: {fault}")


def forget(store: Store, rank: int) -> None:
    """Take back what a rank has told in a check that failed on it alone."""
    store.torch.delete_key(f"dtypes/{rank}")


def _leave(group: Group) -> None:
    """Return at once, but on rank 0, which may serve the store, once the others have read it."""
    group.store.set(f"read/{group.rank}", True)
    deadline = time.monotonic() + _READING
    for rank in range(1, group.size if group.rank == 0 else 0):
        with contextlib.suppress(CollectiveError):
            group.store.comes(f"read/{rank}", max(deadline - time.monotonic(), 0))


def _fault(told: Sequence[dict[str, Any]], needs: Sequence[str]) -> DevicesError | None:
    """Return why a world whose ranks have told this of themselves cannot open; None if it can."""
    by_needs: dict[tuple[str, ...], list[int]] = {}
    for rank, said in enumerate(told):
        by_needs.setdefault(tuple(said["needs"]), []).append(rank)
    if len(by_needs) > 1:
        differ = " and ".join(f"{_listed(each)} on {_ranks(ranks)}" for each, ranks in by_needs.items())
        return WorldError(f"its ranks need other dtypes: {differ}; pass the same `dtypes` on all")
    if faults := [
        f"rank {rank} ({said['backend']}): {said['fault']}" for rank, said in enumerate(told) if said["fault"]
    ]:
        return WorldError("; ".join(faults))
    lacks = {name: [rank for rank, said in enumerate(told) if not _has(said["has"], name)] for name in needs}
    if not any(lacks.values()):
        return None
    sides: dict[tuple[int, ...], list[str]] = {}
    for name, without in lacks.items():
        if without:
            sides.setdefault(tuple(without), []).append(name)
    backends = [said["backend"] for said in told]
    faults = [
        f"{_listed(names)} {'is' if len(names) == 1 else 'are'} not there on {_sided(backends, without)}, there on "
        f"{_sided(backends, [rank for rank in range(len(told)) if rank not in without])}"
        for without, names in sides.items()
    ]
    return UnsupportedError(
        f"the program needs {_listed(needs)} (`dtypes` of devices.init), and {'; '.join(faults)}. Nothing is "
        f"converted: use dtypes that all ranks have{_common([said['has'] for said in told])}, or ranks on devices that "
        "have these"
    )


def _has(has: Collection[str] | None, name: str) -> bool:
    # Bytes are what every transport carries.
    return has is None or name in has or name == "uint8"


def _common(of_ranks: Sequence[Collection[str] | None]) -> str:
    """Return which dtypes all ranks have, in words; "" where they say of none, or have none in common."""
    told = [frozenset(has) for has in of_ranks if has is not None]
    common = sorted(frozenset.intersection(*told)) if told else []
    return f" ({_listed(common)})" if common else ""


def _sided(backends: Sequence[str], ranks: Sequence[int]) -> str:
    """Return some ranks in words, by backend: "ranks 0, 1 (cpu) and ranks 2, 3 (neuron)"."""
    by_backend: dict[str, list[int]] = {}
    for rank in ranks:
        by_backend.setdefault(backends[rank], []).append(rank)
    return " and ".join(f"{_ranks(some)} ({backend})" for backend, some in by_backend.items()) or "no rank"


def _ranks(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:_SHOWN]))}{more}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
