"""`devices calibrate`: how fast this host's own collectives are, measured for a few seconds."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from devices import _collectives
from devices.errors import ArgumentError, TopologyError
from devices.topology.calibration import (
    Calibration,
    Knot,
    calibration_file,
    knot_of,
    read_calibration,
    write_calibration,
)
from devices.topology.estimate import duration

if TYPE_CHECKING:
    from devices._world import World

SIZES = (1 << 10, 1 << 14, 1 << 16, 17 << 12, *(1 << power for power in (18, 19, 20, 21, 22, 23, 24, 26)))
"""The sizes that are measured, in bytes of the larger of input and output: closest where caches end.

Above 64 KiB schedules are others, in two steps, so that there is a size on either side of it.
"""

TURNS = 5
"""So often is each size measured, the others in between, so that a disturbance does not meet all calls of one size."""

QUIET = 0.1
"""Turns in which other work took so much more of the CPUs than in the quietest are thrown away."""

VERBS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "permute")
"""The verbs that are measured."""

Curves = dict[str, list[tuple[int, list[list[float]]]]]
"""For each verb and size, the seconds of each call in each turn."""

_STAT = Path("/proc/stat")


def measure(world: World, seconds: float = 10.0, sizes: Sequence[int] = SIZES) -> tuple[Curves, float | None]:
    """Return how long single calls in an open world took the slowest rank, in the turns that were quietest.

    Every rank calls it. Each verb is called at each size for the same share of the time, in `TURNS` turns.

    Returns:
        The seconds, and what share of the host's CPUs other work had meanwhile; None where the system does not say.
    """
    share = seconds / (len(VERBS) * len(sizes) * TURNS)
    most = max(sizes) // 4 + world.size
    buffers = torch.zeros(most), torch.zeros(most)
    calls = {(verb, size): _call(verb, size, world, *buffers) for verb in VERBS for size in sizes}
    numbers = {each: _number(call, share, world) for each, call in calls.items()}
    turns: list[dict[tuple[str, int], list[float]]] = []
    clocks = [_clocks()]
    gc.collect()
    gc.disable()
    try:
        for _ in range(TURNS):
            turns.append({each: _times(call, numbers[each], warm_up=1) for each, call in calls.items()})
            clocks.append(_clocks())
    finally:
        gc.enable()
    others = _others(clocks) if _STAT.exists() else [0.0] * TURNS
    kept = [turn for turn, busy in zip(turns, others, strict=True) if busy <= min(others) + QUIET]
    found: Curves = {verb: [] for verb in VERBS}
    for verb, size in calls:
        mine = torch.tensor([turn[verb, size] for turn in kept], dtype=torch.float64)
        found[verb].append((size, _collectives.all_reduce(mine, op="max").tolist()))
    quiet = [busy for busy in others if busy <= min(others) + QUIET]
    return found, statistics.fmean(quiet) if _STAT.exists() else None


def _clocks() -> tuple[float, float, float]:
    """Return the time, the seconds that this process has computed, and those that the host's CPUs were taken."""
    taken = 0.0
    if _STAT.exists():
        # user nice system idle iowait irq softirq steal, in ticks; guests are in user.
        ticks = [int(each) for each in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        taken = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), time.process_time(), taken


def _others(clocks: Sequence[tuple[float, float, float]]) -> list[float]:
    """Return for each turn the share of the CPUs that neither was idle nor had a rank, the same on all ranks."""
    spans = torch.tensor(clocks, dtype=torch.float64).diff(dim=0)
    ours = _collectives.all_reduce(spans[:, 1].contiguous())
    busy = (spans[:, 2] - ours) / (spans[:, 0] * (os.cpu_count() or 1))
    return [float(each) for each in _collectives.all_reduce(busy.clamp(0, 1), op="max")]


def _call(verb: str, size: int, world: World, one: torch.Tensor, other: torch.Tensor) -> Callable[[], object]:
    """Return the call of a verb whose larger side has that many bytes on each rank, in float32."""
    count = max(1, size // 4 // world.size) * world.size
    part = count // world.size
    given = one[: part if verb == "all_gather" else count]
    gotten = other[: part if verb == "reduce_scatter" else count]
    pairs = [(rank, (rank + 1) % world.size) for rank in range(world.size)]
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: _collectives.all_reduce(given, out=given),
        "all_gather": lambda: _collectives.all_gather(given, out=gotten),
        "reduce_scatter": lambda: _collectives.reduce_scatter(given, out=gotten),
        "all_to_all": lambda: _collectives.all_to_all(given, out=gotten),
        "broadcast": lambda: _collectives.broadcast(given, src=0, out=given),
        "permute": lambda: _collectives.permute(given, pairs=pairs, out=gotten),
    }
    return calls[verb]


def _number(call: Callable[[], object], share: float, world: World) -> int:
    """Return how many calls fit into a share of the time beside one that warms up, the same on all ranks."""
    tried = statistics.median(_times(call, 2, warm_up=1))
    mine = torch.tensor([max(1.0, min(300.0, share / max(tried, 1e-6) - 1))])
    return int(_collectives.all_reduce(mine, op="min").item())


def _times(call: Callable[[], object], number: int, warm_up: int) -> list[float]:
    clock = time.perf_counter
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(number):
        start = clock()
        call()
        times.append(clock() - start)
    return times


def _of_a_rank(world: World, seconds: float) -> tuple[str, Curves, float | None]:
    torch.set_num_threads(1)
    return world.backend, *measure(world, seconds)


def calibrate(ranks: int, seconds: float = 10.0) -> Calibration:
    """Return what was measured of a group of so many ranks, processes of this host."""
    from devices.testing import run_processes

    if ranks < 2:
        raise ArgumentError(f"a group that can be measured has at least 2 ranks, got {ranks}")
    if not 0 < seconds <= 60:
        raise ArgumentError(f"measuring takes more than 0 and at most 60 seconds, got {seconds}")
    backend, curves, others = run_processes(_of_a_rank, ranks, seconds, timeout=120 + 10 * seconds, backend="cpu")[0]
    knots: dict[str, list[Knot]] = {
        verb: [knot_of(size, turns) for size, turns in sizes] for verb, sizes in curves.items()
    }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Calibration(platform.node() or "this host", os.cpu_count() or 1, today, backend, {ranks: knots}, others)


def keep(calibration: Calibration, into: Path | None) -> Path:
    """Write what was measured, beside what was measured of other numbers of ranks; return the file."""
    file = calibration_file() if into is None else into
    # There may be none, or one that is of no use.
    with contextlib.suppress(TopologyError):
        calibration = calibration.joined(read_calibration(file))
    write_calibration(calibration, file)
    return file


def show(calibration: Calibration, ranks: int, file: TextIO) -> None:
    """Print what was measured, a line for each verb."""
    for verb, knots in calibration.groups[ranks].items():
        first = knots[0]
        rate = calibration.bandwidth(verb, ranks) / 1e9
        print(f"{verb}: {duration(first.seconds)} at {first.bytes} bytes, {rate:.3g} GB/s at the most", file=file)
    if calibration.is_busy:
        print(
            f"{calibration.beside}: what is predicted holds for a host as busy; measure again when it is quiet",
            file=file,
        )
