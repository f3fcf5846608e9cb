"""The verbs: each on every op, dtype, shape, layout, group and way to be called, against plain torch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from devices.testing.conformance.calls import JOINING, REDUCING, SPLITTING, VERBS, Call, Parts
from devices.testing.conformance.check import Check, Tally, on_ranks
from devices.testing.conformance.expected import has_meaning
from devices.testing.conformance.own import has_messages
from devices.testing.conformance.programs import Found, Program, Wrong
from devices.testing.conformance.smaller import shown
from devices.testing.conformance.subject import Subject
from devices.testing.conformance.tried import Ended, founds_of, wrongs

_OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")

_SHAPES: tuple[tuple[int, ...], ...] = ((5,), (), (0,), (3, 2), (2, 0, 3), (1,), (2, 3, 4), (257,))
_LARGE, _LARGEST = 70_001, 300_007
"""Elements: more than transports take in one piece, and no multiple of anything; the second in the smallest world."""

_MANY = 4
"""How much more time than other programs one of thousands of calls has."""

_LAWS = {
    "all_reduce": "gives every rank the reduction of what all ranks gave, the same bits on each",
    "reduce": "gives the root the reduction of what all ranks gave, and None to the others",
    "reduce_scatter": "gives each rank its part of the reduction, parts of any sizes along any dim",
    "all_gather": "gives every rank what all ranks gave, joined along any dim, of any sizes, to the bit",
    "gather": "gives the root what all ranks gave, joined, to the bit, and None to the others",
    "scatter": "gives each rank its part of what the root gave, to the bit",
    "all_to_all": "gives each rank what every other one had for it, parts of any sizes, to the bit",
    "broadcast": "gives every rank what the root gave, to the bit, NaNs and signs of zeros too",
    "permute": "gives each rank what the pairs say, and zeros where none ends, to the bit",
    "send": "and recv carry a tensor from one rank to another, to the bit, while others do something else",
    "barrier": "returns on every rank of a group",
}


def dtypes_of(subject: Subject) -> list[str]:
    """Return the names of the dtypes that a backend declares, of those that torch can make."""
    return sorted(str(dtype).removeprefix("torch.") for dtype in subject.capabilities.dtypes if dtype.itemsize)


def groups_of(size: int) -> tuple[Parts, ...]:
    """Return the groups that verbs are called over, beside the world."""
    every_other = tuple(part for part in (tuple(range(0, size, 2)), tuple(range(1, size, 2))) if part)
    found: list[Parts] = [((size - 1,),), (tuple(range(1, size)),), every_other]
    return tuple(dict.fromkeys(parts for parts in found if parts[0] and parts[0] != tuple(range(size))))


def legal(subject: Subject, size: int) -> tuple[Parts, ...]:
    """Return those of the groups that a backend allows, and no more than it allows at once."""
    can = subject.capabilities
    found = [
        parts for parts in groups_of(size) if all(len(part) == 1 or can.allows_group_of(len(part)) for part in parts)
    ]
    return tuple(found if can.max_groups is None else found[: max(can.max_groups - 1, 0)])


def calls_of(verb: str, dtypes: Sequence[str], groups: int, size: int) -> Iterator[Call]:
    """Return the calls by which a verb is looked at.

    Each pair of op and dtype that has a meaning is called, over the world and over one of the other groups; each shape
    in each layout; what is not crossed with these goes round, so that all meet all in time.
    """
    turn = itertools.count()

    if verb == "barrier":
        yield from (Call("barrier", group, wait=wait) for group in range(groups + 1) for wait in (0, 1))
        return
    pairs = [
        (op, dtype)
        for dtype in dtypes
        for op in (_OPS if verb in REDUCING else ("sum",))
        if verb not in REDUCING or has_meaning(op, getattr(torch, dtype))
    ]
    if not pairs:
        return
    seeds = itertools.count(1)
    shapes = [shape for shape in _SHAPES if shape or verb not in SPLITTING]
    for at, (op, dtype) in enumerate(pairs):
        for group in dict.fromkeys((0, 1 + at % groups if groups else 0)):
            data = ("numbers", "specials")[(at + group) % 2] if verb in REDUCING else "bits"
            shape = (7,) if group == 0 else shapes[next(turn) % len(shapes)]
            yield Call(verb, group, op, dtype, shape, data, next(seeds), root=at + group, shift=1 + at % 2)
    likely = [pair for pair in pairs if pair[1] in ("float32", "int64", "bfloat16", "uint8")] or pairs
    layouts = ("contiguous", "transposed", "gaps", "offset", "expanded")
    for shape, layout, out in itertools.product(shapes, layouts, ("", "contiguous", "gaps")):
        at = next(turn)
        # A third of them, another third of each shape's.
        if (layout == "transposed" and len(shape) < 2) or (at + at // 15) % 3 == size % 3:
            continue
        # Drawn, for what goes round in step never meets.
        chance = random.Random(f"{verb} {at}")
        op, dtype = chance.choice(likely)
        shares = bool(shape) and verb in (*JOINING, *SPLITTING)
        yield Call(
            verb, chance.randrange(groups + 1), op, dtype, shape, "numbers" if verb in REDUCING else "bits",
            next(seeds), layout, chance.randrange(-len(shape), len(shape)) if shares else 0,
            chance.choice(((), (2, 0, 1), (0, 3), (1,))) if shares else (), root=at, shift=1 + at % 2, out=out,
            wait=chance.choice((0, 1, 3)),
        )  # fmt: skip
    if verb in ("all_reduce", "broadcast", "permute"):
        for wait in (0, 2):
            op, dtype = likely[0]
            yield Call(verb, 0, op, dtype, (6,), seed=next(seeds), out="input", wait=wait)
    if any(dtype == "complex64" for _, dtype in pairs):
        yield Call(verb, 0, "sum", "complex64", (3,), seed=next(seeds), layout="conjugated")
    for op, dtype in likely[:: max(1, len(likely) // 3)][:3]:
        count = _LARGEST if size == 2 and (op, dtype) == likely[0] else _LARGE
        large = (count // size,) if verb in (*JOINING, *SPLITTING) else (count,)
        yield Call(verb, 0, op, dtype, large, "numbers" if verb in REDUCING else "bits", next(seeds), root=1)


def program_of(subject: Subject, size: int, verbs: Sequence[str] = VERBS) -> Program:
    """Return the calls of some verbs in a world of `size`, as one program."""
    groups = legal(subject, size)
    dtypes = dtypes_of(subject)
    calls = [call for verb in verbs for call in calls_of(verb, dtypes, len(groups), size)]
    return Program(size, tuple(calls), groups)


def _look(verb: str, subject: Subject, tally: Tally) -> None:
    if verb == "send" and not has_messages(subject):
        size = min(size for size in subject.sizes if size > 1)
        if tally.hold(subject, messages_are_refused, size):
            tally.refuse("messages between two ranks")
        return
    for size in subject.sizes:
        try:
            program, founds = _founds(subject, size, verb)
        except Ended as ended:
            program = program_of(subject, size, (verb,))
            tally.fail(*shown(subject, program, Wrong(ended.place, -1, ended.what, "end")))
            return
        mine = [each for each in wrongs(program, founds) if program.calls[each.place].verb == verb]
        right = {place for found in founds for place in found.right if program.calls[place].verb == verb}
        bad = {each.place for each in mine}
        tally.prove(len(right - bad))
        if mine:
            what, text = shown(subject, program, mine[0])
            tally.fail(f"{what} ({len(bad)} of {len(right | bad)} calls are wrong)" if len(bad) > 1 else what, text)
            # A larger world would most often show the same once more.
            return
    if not tally.proved and not tally.failed:
        tally.skip(f"needs a dtype that {verb} has a meaning on, and the backend declares none")


def messages_are_refused(world):  # type: ignore[no-untyped-def]  # its source is shown
    import torch

    import devices

    x, peer = torch.ones(3, device=world.device), (world.rank + 1) % world.size
    for verb, given in (("send", {"dst": peer}), ("recv", {"src": peer})):
        for async_op in (False, True):
            try:
                getattr(devices, verb)(x, async_op=async_op, **given)
            except devices.errors.UnsupportedError:
                continue
            raise AssertionError(f"rank {world.rank}: {verb}, which the communicator has not, raised nothing")


def _founds(subject: Subject, size: int, verb: str) -> tuple[Program, list[Found]]:
    """Return what the ranks found: of all verbs in one world, or of this one alone where that came to no end."""
    key = "verbs", size
    if key not in subject.kept:
        program = program_of(subject, size)
        try:
            [founds] = founds_of(subject, [program], _MANY * subject.timeout)
            subject.kept[key] = program, founds
        except Ended:
            subject.kept[key] = None
    kept: tuple[Program, list[Found]] | None = subject.kept[key]
    if kept is not None:
        return kept
    alone = program_of(subject, size, (verb,))
    [founds] = founds_of(subject, [alone], _MANY * subject.timeout)
    return alone, founds


def nobody_leaves_a_barrier_first(world):  # type: ignore[no-untyped-def]  # its source is shown
    import time

    import torch

    import devices

    for late in range(world.size):
        if world.rank == late:
            time.sleep(0.03)
        entered = time.monotonic_ns()
        devices.barrier()
        left = time.monotonic_ns()
        times = devices.all_gather(torch.tensor([[entered, left]], device=world.device)).tolist()
        last_in, first_out = max(time[0] for time in times), min(time[1] for time in times)
        assert last_in <= first_out, (
            f"a rank left the barrier {(last_in - first_out) / 1e6:.1f} ms before rank {late} came"
        )


CHECKS: tuple[Check, ...] = (
    *(Check(f"verbs.{verb}", f"`{verb}` {_LAWS[verb]}.", partial(_look, verb)) for verb in VERBS),
    on_ranks(
        "verbs.barrier_waits",
        "No rank leaves a barrier before the last one has come to it.",
        nobody_leaves_a_barrier_first,
        2,
        4,
    ),
)
