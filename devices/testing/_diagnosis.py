"""What to say when no rank can go on: where each one waits, for what, and in what their calls differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FrameType

import torch

from devices.errors import CollectiveError, DeadlockError, MismatchError
from devices.fabric.mark import Mark, difference, line_of
from devices.fabric.progress import FabricWork
from devices.testing._baton import Baton, Task
from devices.testing._thread_fabric import ThreadFabric

_ENTRANCES = ("devices/_collectives.py", "torch/distributed/distributed_c10d.py")
"""Where the verbs are that programs call."""


def diagnose(baton: Baton, ranks: int) -> CollectiveError:
    """Return the error that describes why none of `ranks` ranks goes on."""
    waiting = {task.rank: (task, frame) for task, frame in baton.waiting() if not task.is_helper}
    lines = [_line(rank, ranks, *waiting.get(rank, (None, None))) for rank in range(ranks)]
    listed = "\n".join(f"  {line}" for line in _shortened(lines))
    works = [task.waits_for for task, _ in waiting.values() if isinstance(task.waits_for, FabricWork)]
    if said := _mismatch(works):
        return MismatchError(f"{said}. Each rank waits:\n{listed}")
    return DeadlockError(f"deadlock: no rank can go on (seed {baton.seed}):\n{listed}")


def _line(rank: int, ranks: int, task: Task | None, frame: FrameType | None) -> str:
    who = f"rank {rank} of {ranks}"
    if task is None:
        return f"{who} has ended"
    work, line = task.waits_for, line_of(frame)
    if not isinstance(work, FabricWork):
        return f"{who} waits for {work} at {line}"
    missing: list[int] = []
    if work.condition is not None and isinstance(work.fabric, ThreadFabric):
        missing = work.fabric.missing(work.condition)
    called = "".join(f" called by {entrance}" for entrance in _entrance(frame))
    started = "" if work.mark.line == line else f", started at {work.mark.line}"
    return f"{who} waits for {_ranks(missing)} in {work}{called} at {line}{started}"


def _entrance(frame: FrameType | None) -> list[str]:
    """Return, if it can be told, the verb as the program called it, with the tensors that it was given."""
    found = []
    while frame is not None:
        if frame.f_code.co_filename.endswith(_ENTRANCES):
            code = frame.f_code
            given = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
            found = [f"{code.co_name}({', '.join(_tensors(given))})"]
        frame = frame.f_back
    return found


def _tensors(values: Sequence[object]) -> Iterator[str]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value[:8])


def _ranks(missing: list[int]) -> str:
    shown = ", ".join(map(str, missing[:8]))
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return f"rank{'s' if len(missing) > 1 else ''} {shown}{more}" if missing else "nobody"


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= 40 else [*lines[:20], f"... {len(lines) - 40} more ...", *lines[-20:]]


def _mismatch(works: list[FabricWork]) -> str | None:
    """Return in what the ranks differ that wait in the same call of the same group."""
    by_call: dict[tuple[str, int], dict[int, Mark]] = {}
    for work in works:
        if work.mark.number:
            by_call.setdefault((work.mark.group, work.mark.number), {})[work.mark.rank] = work.mark
    for (group, number), marks in by_call.items():
        if said := difference(marks):
            return f"in call {number} of group {group!r} {said}"
    return None
