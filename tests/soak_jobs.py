"""Jobs of a few ranks that do random collectives until one of them, or all, are killed at a random moment.

What is asked: every survivor raises the right error, which names the dead rank, soon; and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rank_endings
import torch
import torch.distributed as dist
from rank_endings import NotOpenedError, Plan, Running

import devices

GONE = ("died", "killed", "ended", "exited", "gone")
PLACES = (Path("/dev/shm"), Path(tempfile.gettempdir()))


@dataclass
class Report:
    """What came of some jobs.

    Args:
        problems: what was not as it must be.
        delays: for each survivor, the seconds from the kill to its error.
        killed: how many ranks were killed.
    """

    problems: list[str] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    killed: int = 0


def second_group(world: devices.World) -> Any:
    return dist.new_group(list(range(world.size)))


def collectives(world: devices.World, everyone: Any, seed: int) -> None:
    """Do collectives, drawn alike on all ranks, whose results are checked, for ever."""
    draw = random.Random(seed)
    size = world.size
    while True:
        if draw.random() < 0.02:
            dist.destroy_process_group(everyone)
            everyone = second_group(world)
        group = draw.choice([None, everyone])
        count = size * draw.choice([1, 3, 64, 4096, 1 << 17])
        x = torch.full((count,), float(world.rank + 1))
        total = float(sum(range(1, size + 1)))
        verb = draw.choice(VERBS)
        is_async = draw.random() < 0.3
        found, expected = verb(x, group, size, is_async, total)
        if not found.eq(expected).all():
            raise AssertionError(f"{verb}: {expected} was to come, and {found.unique().tolist()} came")


Verb = Callable[[torch.Tensor, Any, int, bool, float], tuple[torch.Tensor, Any]]


def _of(result: Any) -> torch.Tensor:
    found = result.result() if isinstance(result, devices.Work) else result
    assert isinstance(found, torch.Tensor)
    return found


def _all_reduce(x: torch.Tensor, group: Any, size: int, is_async: bool, total: float) -> tuple[torch.Tensor, Any]:
    return _of(devices.all_reduce(x, group, async_op=is_async)), total


def _reduce_scatter(x: torch.Tensor, group: Any, size: int, is_async: bool, total: float) -> tuple[torch.Tensor, Any]:
    return _of(devices.reduce_scatter(x, group, async_op=is_async)), total


def _all_gather(x: torch.Tensor, group: Any, size: int, is_async: bool, total: float) -> tuple[torch.Tensor, Any]:
    expected = torch.arange(1.0, size + 1).repeat_interleave(x.numel())
    return _of(devices.all_gather(x, group, async_op=is_async)), expected


def _all_to_all(x: torch.Tensor, group: Any, size: int, is_async: bool, total: float) -> tuple[torch.Tensor, Any]:
    expected = torch.arange(1.0, size + 1).repeat_interleave(x.numel() // size)
    return _of(devices.all_to_all(x, group, async_op=is_async)), expected


def _broadcast(x: torch.Tensor, group: Any, size: int, is_async: bool, total: float) -> tuple[torch.Tensor, Any]:
    return _of(devices.broadcast(x, group, src=size - 1, async_op=is_async)), float(size)


def _ring(x: torch.Tensor, group: Any, size: int, is_async: bool, total: float) -> tuple[torch.Tensor, Any]:
    pairs = [(rank, (rank + 1) % size) for rank in range(size)]
    found = _of(devices.permute(x, group, pairs=pairs, async_op=is_async))
    return found, float((x[0].item() - 2) % size + 1)


VERBS: tuple[Verb, ...] = (_all_reduce, _reduce_scatter, _all_gather, _all_to_all, _broadcast, _ring)


def soak(jobs: int, seed: int, within: float, report: Report | None = None) -> Report:
    """Run `jobs` jobs one after another.

    Args:
        jobs: how many.
        seed: of what is drawn.
        within: seconds from a kill that survivors may take to raise.
        report: what to add to.
    """
    report = report or Report()
    draw = random.Random(seed)
    for job in range(jobs):
        ranks = draw.choice([2, 3, 4])
        # A tenth is killed before its world is open, where the dead may be unknown to the others yet.
        is_early = draw.random() < 0.1
        everyone = is_early or draw.random() < 0.2
        victims = list(range(ranks)) if everyone else [draw.randrange(ranks)]
        plan = Plan(
            collectives, (draw.randrange(1 << 30),), timeout=60, stays=draw.random() < 0.5, prepare=second_group
        )
        said = f"job {job} of seed {seed}: ranks {victims} of {ranks} killed"
        _job(ranks, plan, victims, draw.uniform(0, 0.25), is_early, within, said, report)
    return report


def _job(
    ranks: int, plan: Plan, victims: list[int], moment: float, is_early: bool, within: float, said: str, report: Report
) -> None:
    for again in (True, False):
        running = Running(ranks, plan)
        try:
            if not is_early:
                running.wait_opened(60)
            time.sleep(moment)
            killed = time.monotonic()
            for rank in victims:
                os.kill(running.pids[rank], signal.SIGKILL)
            running.wait_ended(within + 30)
        except NotOpenedError:
            if again:
                continue
            raise
        finally:
            running.end()
        break
    report.killed += len(victims)
    for rank, ending in enumerate(running.endings):
        if rank in victims:
            if ending.how != "killed by SIGKILL":
                report.problems.append(f"{said}: rank {rank} {ending}")
            continue
        report.delays.append(ending.at - killed)
        if complaint := _complaint(ending, victims[0], ending.at - killed, within):
            report.problems.append(f"{said}: rank {rank} {complaint}: {ending}")
    # A short command that a rank was running ends by itself.
    deadline = time.monotonic() + 10
    while (left := left_of(running.pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    report.problems += [f"{said}: process left: {each}" for each in left]


def _complaint(ending: rank_endings.Ending, dead: int, delay: float, within: float) -> str:
    if ending.how != "raised" or "CollectiveError" not in ending.kinds:
        return "was to raise a CollectiveError"
    if "CollectiveTimeoutError" in ending.kinds:
        return "waited for the timeout"
    if f"rank {dead} " not in f"{ending.said} ".replace(":", " ").replace(",", " "):
        return f"does not name rank {dead}"
    if not any(word in ending.said for word in GONE):
        return "does not say that it died"
    return f"took {delay:.2f} s" if delay > within else ""


def left_of(sessions: list[int]) -> list[str]:
    """Return the processes that are left of those sessions."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().rpartition(")")
            if int(rest.split()[3]) in sessions:
                found.append(name)
    return found


@contextlib.contextmanager
def nothing_left(folder: Path, report: Report, *, ours_alone: bool) -> Iterator[None]:
    """Add to the report what is there afterwards that was not there before.

    Args:
        folder: an empty one, which ranks take for their temporary files.
        report: what to add to.
        ours_alone: whether nothing else runs on the machine, so that all that is new is ours.
    """
    before, descriptors = _listed(ours_alone), len(list(Path("/proc/self/fd").iterdir()))
    old = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if old is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = old
    report.problems += [f"left behind: {path}" for path in folder.iterdir()]
    # What others make goes away again.
    deadline = time.monotonic() + 10
    while (new := _listed(ours_alone) - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    report.problems += [f"left behind: {path}" for path in sorted(new)]
    more = len(list(Path("/proc/self/fd").iterdir())) - descriptors
    if more > 2:
        report.problems.append(f"{more} descriptors left open in the process that started the jobs")


def _listed(ours_alone: bool) -> set[str]:
    found = {str(path) for place in PLACES if place.is_dir() for path in place.iterdir()}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        if len(parts := line.split()) > 7:
            found.add(f"socket {parts[7]}")
    return found if ours_alone else {path for path in found if "devices" in path or "fabric" in path}
