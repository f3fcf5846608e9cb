"""What to say when no rank can go on: where each one waits, for what, and in what their calls differ."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from devices.algorithms.lines import NOWHERE, is_of_program, line_of
from devices.errors import DeadlockError, MismatchError
from devices.fabric.mark import Mark, difference
from devices.fabric.progress import FabricWork, Progress
from devices.testing._baton import Baton, Seen
from devices.testing._entrance import entrance
from devices.testing._thread_fabric import ThreadFabric


def diagnose(baton: Baton, progresses: Sequence[Progress]) -> BaseException:
    """Return the error that says why none of the ranks goes on.

    Args:
        baton: the run's.
        progresses: the verbs of each rank.
    """
    failed = [work for progress in progresses for work in progress.failed]
    ranks, waiting = len(progresses), baton.waiting()
    places = {seen.task.rank: seen for seen in waiting if not seen.task.is_helper}
    helped = {seen.task.rank: seen.task.waits_for for seen in waiting if seen.task.is_helper}
    lines = _shortened([_line(rank, ranks, places.get(rank), helped.get(rank)) for rank in range(ranks)])
    lines += [f"before that rank {work.mark.rank} got: {work.error}" for work in failed if work.untold is None]
    listed = "\n".join(f"  {line}" for line in lines)
    for work in failed:
        # Nobody has waited for it, so nobody knows why its peers do not go on.
        if work.untold is not None:
            why = f"nobody has waited for that verb, and no rank can go on (seed {baton.seed})"
            work.untold.add_note(f"{why}:\n{listed}")
            return work.untold
    works = [seen.task.waits_for for seen in waiting if isinstance(seen.task.waits_for, FabricWork)]
    if said := _mismatch(works):
        return MismatchError(f"{said}. Each rank waits:\n{listed}")
    return DeadlockError(f"deadlock: no rank can go on (seed {baton.seed}):\n{listed}")


def _line(rank: int, ranks: int, seen: Seen | None, helped: object) -> str:
    who = f"rank {rank} of {ranks}"
    if seen is None:
        return f"{who} has ended"
    work, line = seen.task.waits_for, line_of(seen.frame)
    called = f" called by {verb}" if (verb := entrance(seen.frame)) else ""
    at = f"{called} at {line}"
    if line == NOWHERE:
        who, at = f"{who}, whose function has returned,", ""
    at += _handled(seen.error) if seen.error is not None else ""
    if isinstance(work, FabricWork):
        return f"{who} waits for {_what(work)}{at}{_started(work, line)}"
    # A rank may wait for a thread of its own, which waits for other ranks.
    more = f"; there it waits for {_what(helped)}" if isinstance(helped, FabricWork) else ""
    return f"{who} waits for {work}{at}{more}"


def _what(work: FabricWork) -> str:
    missing: list[int] = []
    fabric = work.fabric.base
    if work.condition is not None and isinstance(fabric, ThreadFabric):
        missing = fabric.missing(work.condition)
    return f"{_ranks(missing)} in {work}"


def _started(work: FabricWork, line: str) -> str:
    return "" if work.mark.line == line else f", started at {work.mark.line}"


def _handled(error: BaseException) -> str:
    """Return which error a rank handles while it waits: it may be what led it astray."""
    raised = _raised_at(error.__traceback__)
    return f" while it handles {type(error).__name__}: {error}" + (f", raised at {raised}" if raised else "")


def _raised_at(traceback: TracebackType | None) -> str | None:
    line = None
    while traceback is not None:
        if is_of_program(name := traceback.tb_frame.f_code.co_filename):
            line = f"{name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line


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
