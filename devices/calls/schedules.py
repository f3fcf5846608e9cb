"""Letting a group go by a schedule: the same on all ranks, proven to compute its verb, before any call goes by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from devices.algorithms.observed import AnyVerbs
from devices.algorithms.planned import VERBS, Planned
from devices.algorithms.proof import checked, prove
from devices.algorithms.schedule import Program, Schedule
from devices.c10d.lanes import lanes_of
from devices.calls.groups import GroupLike, own_verbs, process_group
from devices.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from devices.topology.synthesis import Plan


def use_schedule(schedule: Schedule | Plan | str, group: GroupLike = None, *, least: int = 0) -> None:
    """Let a verb of `group` go by a schedule from now on, for `devices`' call of it and torch's own.

    All ranks of the group call this, with the same. A schedule of a broadcast or a reduce is for the calls of its root;
    one for a verb that has one, of that root, takes its place. Calls of every dtype and op that the verb takes go by
    it, on tensors of the group's own kind of device. One rank proves beforehand that it computes its verb.

    Args:
        schedule: what `devices.topology.synthesize` returns, its `schedule`, or the JSON of either; for one of
            all_reduce, all_gather, reduce_scatter, all_to_all, broadcast and reduce.
        group: a mesh axis, a process group, or None for the world.
        least: calls that move fewer bytes go as they would without it: of what is reduced or broadcast, what an
            all_gather gives, what a reduce_scatter takes. 0 for an all_to_all, whose bytes differ by rank.

    Raises:
        ArgumentError: on every rank: it is for another number of ranks or no such verb, it does not compute it, or two
            ranks gave different ones.
        UnsupportedError: torch's own group or backend carries it, or its ranks cannot send to each other.

    >>> import devices, torch
    >>> from devices.topology import ring, synthesize
    >>> def add(world):
    ...     devices.use_schedule(synthesize(ring(3, 1e9), "all_reduce"))
    ...     return devices.all_reduce(torch.tensor(2.0)).item()
    >>> import devices.testing
    >>> devices.testing.run(add, ranks=3)
    [6.0, 6.0, 6.0]
    """
    verbs = _able(group)
    rank, size = verbs.group.rank, verbs.group.size
    found: Schedule | None = None
    wrong: Exception | None = None
    try:
        found = _schedule_of(schedule, size)
        _check_least(found.verb, least)
        if rank == 0:
            prove(found)
        said = _said(found, least)
    except Exception as error:
        # Also what the generator of a schedule raises: the others wait to hear what this rank says.
        kind = "" if isinstance(error, ArgumentError) else f"{type(error).__name__}: "
        wrong, said = error, {"error": f"{kind}{error}"}
    _compare(verbs, _tell(verbs, said) if size > 1 else [said], wrong)
    if size > 1 and found is not None:
        seconds = getattr(schedule, "seconds_per_byte", None)
        told = None if seconds is None else float(seconds)
        verbs.go_by(Planned(found, rank, least, "that the program gave", told))


def drop_schedules(group: GroupLike = None) -> None:
    """Let all verbs of `group` go as if it had been given no schedule; all ranks call this.

    >>> import devices
    >>> with devices.init():
    ...     devices.drop_schedules()
    """
    verbs = own_verbs(group)
    if verbs.group.size > 1:
        verbs.barrier()
        verbs.go_by(None)


def _able(group: GroupLike) -> AnyVerbs:
    """Return the verbs of a group that can go by schedules."""
    verbs = own_verbs(group)
    if verbs.group.size == 1:
        return verbs
    if verbs.native is not None or lanes_of(process_group(group)) is None:
        carrier = "torch's own group" if verbs.native is None else f"torch's own backend {type(verbs.native).__name__}"
        raise UnsupportedError(
            f"{verbs.group}: use_schedule: {carrier} carries torch's verbs here, which no schedule of ours reaches; "
            "it takes a group of torch's backend 'devices', whose verbs are ours"
        )
    if not verbs.has_exchange:
        raise UnsupportedError(
            f"{verbs.group}: use_schedule: what carries this group has no messages from rank to rank, of which a "
            "schedule is made"
        )
    return verbs


def _schedule_of(given: Any, size: int) -> Schedule:
    """Return what was given as a schedule that can be run over `size` ranks."""
    if isinstance(given, str):
        try:
            data = json.loads(given)
        except ValueError as error:
            raise ArgumentError(f"this JSON is no schedule: {error}; it begins with {given[:40]!r}") from error
        # A plan's has the schedule in it, beside its routes.
        is_plan = isinstance(data, Mapping) and isinstance(data.get("schedule"), Mapping)
        found = Schedule.from_json(json.dumps(data["schedule"]) if is_plan else given)
    else:
        found = getattr(given, "schedule", given)
    if not isinstance(found, Schedule):
        raise ArgumentError(
            f"it takes a Schedule, a Plan of devices.topology or the JSON of one, got {type(given).__name__}"
        )
    if found.size != size:
        raise ArgumentError(f"the schedule for {found.verb} is for {found.size} ranks, and the group has {size}")
    return checked(found, VERBS)


def _check_least(verb: str, least: object) -> None:
    if type(least) is not int or least < 0:
        raise ArgumentError(f"least={least!r}; it is a number of bytes, 0 or more")
    if least and verb == "all_to_all":
        raise ArgumentError(f"least={least}: what an all_to_all moves differs by rank, so that its least is 0")


def _said(schedule: Schedule, least: int) -> dict[str, Any]:
    """Return what a rank says of its schedule, to be compared field by field."""
    return {
        "verb": schedule.verb,
        "root": schedule.root,
        "least": least,
        "chunks": _digest([(chunk.buffer, chunk.part, chunk.weight) for chunk in schedule.chunks]),
        "programs": [_digest(_plain(schedule.program(rank))) for rank in range(schedule.size)],
    }


def _plain(program: Program) -> list[list[str]]:
    return [[str(action) for action in step] for step in program]


def _digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


def _compare(verbs: AnyVerbs, told: list[dict[str, Any]], wrong: Exception | None) -> None:
    """Raise the same on every rank if one has an error, or two differ; `wrong` is this rank's own error."""
    ranks = verbs.group.ranks
    for rank, said in zip(ranks, told, strict=True):
        if "error" in said:
            raise ArgumentError(f"{verbs.group}: use_schedule on rank {rank}: {said['error']}") from wrong
    first = told[0]
    for rank, said in zip(ranks, told, strict=True):
        for field, value in said.items():
            if value == first[field]:
                continue
            if field == "programs":
                place = next(
                    at for at, (mine, other) in enumerate(zip(value, first[field], strict=True)) if mine != other
                )
                field = f"the program of rank {ranks[place]}"
                what = ""
            else:
                what = (
                    f": {first[field]!r} on rank {ranks[0]} and {value!r} on rank {rank}" if field != "chunks" else ""
                )
            raise ArgumentError(
                f"{verbs.group}: use_schedule: ranks {ranks[0]} and {rank} gave different schedules, which differ in "
                f"{field}{what}; give all ranks the same, by its JSON"
            )


def _tell(verbs: AnyVerbs, said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what all ranks say, by rank."""
    device = verbs.group.device
    place = torch.device(device.type) if device.type == "cpu" else torch.device(device.type, device.index)
    words = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8).to(place)
    # Each says first how long its words are: where one has an error, those are others.
    length = torch.tensor([words.numel()]).view(torch.uint8).to(place)
    heard = length.new_empty(verbs.group.size * length.numel())
    verbs.all_gather(heard, length)
    lengths = heard.cpu().view(torch.int64).tolist()
    longest = max(lengths)
    mine = words.new_zeros(longest)
    mine[: words.numel()] = words
    everyone = words.new_empty(verbs.group.size * longest)
    verbs.all_gather(everyone, mine)
    rows = everyone.view(verbs.group.size, longest).cpu()
    return [json.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths, strict=True)]
