"""The smallest program that still shows a failure, within half a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from devices.testing.conformance.calls import JOINING, REDUCING, SPLITTING, Call
from devices.testing.conformance.expected import has_meaning
from devices.testing.conformance.programs import Program, Wrong
from devices.testing.conformance.subject import Subject
from devices.testing.conformance.tried import first_wrong
from devices.testing.conformance.written import written

_SECONDS = 30.0
_PATIENCE = 10.0
"""Seconds after which a small program that has not come to its end hangs."""


def shown(subject: Subject, program: Program, wrong: Wrong) -> tuple[str, str]:
    """Return what is wrong, in words, and the smallest program found that shows it."""
    patience, seconds = min(_PATIENCE, subject.timeout), min(_SECONDS, subject.timeout / 2)
    program, wrong = smallest(program, wrong, lambda each: first_wrong(subject, each, patience), seconds)
    who = f"rank {wrong.rank} of {program.size}: " if wrong.rank >= 0 else ""
    call = program.calls[min(wrong.place, len(program.calls) - 1)]
    op = f" of op {call.op}" if call.verb in REDUCING else ""
    about = f"{call.verb}{op} on {call.dtype}" if call.verb != "barrier" else call.verb
    return f"{about}: {who}{wrong.what}", written(program, subject.name, wrong)


def smallest(
    program: Program, wrong: Wrong, look: Callable[[Program], Wrong | None], seconds: float = _SECONDS
) -> tuple[Program, Wrong]:
    """Return the smallest program found that fails, and what is wrong with it.

    Args:
        program: fails.
        wrong: what is wrong with it.
        look: runs a program; returns what is wrong, None if nothing is.
        seconds: when to be content.
    """
    end = time.monotonic() + seconds
    alone = replace(program, calls=program.calls[wrong.place : wrong.place + 1])
    until = replace(program, calls=program.calls[: wrong.place + 1])
    for candidate in (alone, until):
        if (found := look(candidate)) is not None:
            program, wrong = candidate, found
            break
    else:
        # It takes what came after it too, or it does not fail every time.
        return program, wrong
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for candidate in _smaller(program):
            if time.monotonic() > end:
                return program, wrong
            if (found := look(candidate)) is not None:
                program, wrong, is_smaller = candidate, found, True
                break
    return program, wrong


def _smaller(program: Program) -> Iterator[Program]:
    """Return programs that are one step simpler, those first that save most."""
    calls = program.calls
    length = len(calls) // 2
    while length:
        for start in range(0, len(calls), length):
            yield replace(program, calls=calls[:start] + calls[start + length :])
        length //= 2
    used = {call.group for call in calls}
    if program.groups and used == {0}:
        yield replace(program, groups=())
    if used == {0} and program.size > 2:
        yield replace(program, size=2)
        yield replace(program, size=program.size - 1)
    if program.groups and 0 < len(used - {0}) < len(program.groups):
        kept = sorted(used - {0})
        places = {0: 0, **{group: place for place, group in enumerate(kept, 1)}}
        yield Program(
            program.size,
            tuple(replace(call, group=places[call.group]) for call in calls),
            tuple(program.groups[group - 1] for group in kept),
        )
    for place, call in enumerate(calls):
        for simpler in _simpler(call):
            yield replace(program, calls=(*calls[:place], simpler, *calls[place + 1 :]))


def _simpler(call: Call) -> Iterator[Call]:
    plain = Call(call.verb)
    for name in ("group", "wait", "out", "layout", "sizes", "dim", "shift"):
        if getattr(call, name) != getattr(plain, name):
            yield replace(call, **{name: getattr(plain, name)})
    if call.root:
        yield replace(call, root=0)
    if call.root > 1:
        yield replace(call, root=call.root % 2)
    for dtype in ("float32", "int64"):
        is_meant = call.verb not in REDUCING or has_meaning(call.op, getattr(torch, dtype))
        if is_meant and call.dtype not in ("float32", "int64"):
            yield replace(call, dtype=dtype)
    if call.op != "sum":
        yield replace(call, op="sum")
    if call.data != "numbers":
        yield replace(call, data="numbers")
    if call.seed:
        yield replace(call, seed=0)
    splits = call.verb in (*JOINING, *SPLITTING)
    if len(call.shape) > 1 and not call.sizes:
        yield replace(call, shape=call.shape[:1], dim=0)
    for at, length in enumerate(call.shape):
        for shorter in (1, 2, length // 2, length - length // 8, length - 1):
            if 0 < shorter < length and not (splits and call.sizes and at == call.dim % len(call.shape)):
                yield replace(call, shape=(*call.shape[:at], shorter, *call.shape[at + 1 :]))
