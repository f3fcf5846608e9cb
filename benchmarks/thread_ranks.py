"""Many ranks in one process: our thread ranks against torch's own threaded process group, and against gloo processes.

Run `python benchmarks/thread_ranks.py`. All run the same program, in turns, so that a machine whose speed drifts slows
all alike. A time goes from the first rank's start to the last one's end; what is quoted is the median.
Memory is looked at when all ranks are there, in a process of its own. The bars are those that the project sets itself.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import devices.testing
from devices.testing._baton import Baton
from devices.testing._rank_state import restored

OURS, TORCHS, PROCESSES = "our threads", "torch's threads", "gloo processes"
FIRST, MESH, DTENSOR = "first all-reduce", "mesh of (ranks / 2, 2)", "DTensor matmul + backward"
SMALL, LARGE, MEMORY, SWITCH = (
    "all-reduce of 4 B",
    "all-reduce of 1 MiB",
    "memory per extra rank",
    "switch of the baton",
)
MEGABYTE = 1e6
BARS = {FIRST: 0.1, MESH: 0.4, DTENSOR: 2.0, MEMORY: MEGABYTE}
BARRED_RANKS = 144
BASE_RANKS = 2  # the memory of more is counted from here
CALLS = {SMALL: 20, LARGE: 20}
LAPS = 20

Seen = list[tuple[str, float | None, float]]
"""What the ranks measured: when one began, None where that was outside of it, and when it was through."""


def program(seen: Seen, halfway: Callable[[], object] = lambda: None) -> None:
    """Be one rank. `halfway`, all ranks hold what they made, and no more."""
    clock, size = time.perf_counter, dist.get_world_size()
    tensor = torch.ones(1)
    dist.all_reduce(tensor)
    seen.append((FIRST, None, clock()))
    assert tensor.item() == size

    dist.barrier()
    start = clock()
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
    seen.append((MESH, start, clock()))

    # torch's threads draw from one generator, each when it comes to it.
    a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    dist.barrier()
    start = clock()
    x = distribute_tensor(a, mesh, [Shard(0), Replicate()]).requires_grad_()
    w = distribute_tensor(b, mesh, [Replicate(), Shard(1)]).requires_grad_()
    y = (x @ w).redistribute(mesh, [Replicate(), Replicate()])
    (y * y).sum().backward()
    seen.append((DTENSOR, start, clock()))
    dist.barrier()
    halfway()
    torch.testing.assert_close(w.grad.full_tensor(), 2 * a.T @ (a @ b), rtol=1e-4, atol=1e-2)

    for measure, elements in ((SMALL, 1), (LARGE, 2**18)):
        tensor = torch.ones(elements)
        dist.barrier()
        start = clock()
        for _ in range(CALLS[measure]):
            dist.all_reduce(tensor)
        seen.append((measure, start, clock()))
        # What a rank does next must not count as long as others are not through.
        dist.barrier()


def seconds(called: float, seen: Seen) -> dict[str, float]:
    """Return how long each part took, all ranks together; `called` is when the first one began."""
    found = {}
    for measure in dict.fromkeys(name for name, _, _ in seen):
        starts, ends = zip(*((start, end) for name, start, end in seen if name == measure), strict=True)
        begun = min(called if start is None else start for start in starts)
        found[measure] = (max(ends) - begun) / CALLS.get(measure, 1)
    return found


# Who runs the program.


def on_our_threads(ranks: int, run: Callable[[], object]) -> None:
    devices.testing.run(lambda world: run(), ranks=ranks)


def on_torchs_threads(ranks: int, run: Callable[[], object]) -> None:
    """Do as torch's own tests of its threaded process group do."""
    from torch.testing._internal.common_distributed import MultiThreadedTestCase

    class Case(MultiThreadedTestCase):
        world_size = ranks

        def setUp(self) -> None:
            super().setUp()
            self._spawn_threads()

        def test_program(self) -> None:
            run()

    result = unittest.TestResult()
    Case("test_program").run(result)
    assert result.wasSuccessful(), result.errors + result.failures


THREADS = {OURS: on_our_threads, TORCHS: on_torchs_threads}


def timed_on_threads(contender: str, ranks: int) -> dict[str, float]:
    seen: Seen = []
    gc.collect()
    called = time.perf_counter()
    THREADS[contender](ranks, lambda: program(seen))
    return seconds(called, seen)


def timed_on_processes(ranks: int) -> dict[str, float]:
    """Do it under torchrun. The processes have one clock: Linux counts from when the machine was started."""
    with tempfile.TemporaryDirectory() as folder:
        called = time.perf_counter()
        python(
            *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
            *(__file__, "--as-process", folder),
        )
        told = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    found = seconds(called, [tuple(each) for one in told for each in one["seen"]])
    return found | {MEMORY: statistics.mean(one["private"] for one in told)}


def be_a_process(folder: str) -> None:
    """Be one of the processes that torchrun starts, and leave in `folder` what was measured."""
    seen: Seen = []
    private: list[int] = []
    dist.init_process_group("gloo")
    program(seen, lambda: private.append(memory("smaps_rollup", "Private")))
    (Path(folder) / os.environ["RANK"]).write_text(json.dumps({"seen": seen, "private": private[0]}))
    dist.destroy_process_group()
    # At times a thread of gloo's aborts a process that goes on to end.
    os._exit(0)


# Memory, and the baton by itself.


def memory(file: str, field: str) -> int:
    """Return the bytes that Linux counts for this process, of the fields whose names begin so."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def tell_memory(contender: str, ranks: int) -> None:
    """Print what the process takes when all ranks are there."""
    found: list[int] = []
    THREADS[contender](ranks, lambda: program([], lambda: found.append(memory("status", "VmRSS"))))
    print(max(found))


def memory_per_rank(contender: str, ranks: int) -> float:
    few, many = (int(python(__file__, "--memory-of", contender, "--ranks", str(n))) for n in (BASE_RANKS, ranks))
    return (many - few) / (ranks - BASE_RANKS)


def python(*arguments: str) -> str:
    """Run a program in a new Python and return what it printed."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=variables)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def switch(ranks: int) -> float:
    """Return how long it takes until the next rank runs: each gives the baton to the one after it."""
    baton, turns = Baton(0), itertools.count(1)
    now = 0

    def body(rank: int) -> None:
        nonlocal now
        for mine in range(rank, LAPS * ranks, ranks):
            baton.wait(partial(awaited, mine), "its turn")
            now = next(turns)
            baton.wake(now)

    def awaited(mine: int) -> tuple[int, ...]:
        return () if mine == now else (mine,)

    with restored():
        tasks = [baton.start(rank, partial(body, rank)) for rank in range(ranks)]
        start = time.perf_counter()
        baton.run()
        for task in tasks:
            task.thread.join()
        return (time.perf_counter() - start) / (LAPS * ranks)


def handover(times: int = 2000) -> float:
    """Return how long it takes two threads to hand over a lock, for scale."""
    mine, yours = threading.Lock(), threading.Lock()
    mine.acquire()
    yours.acquire()

    def answer() -> None:
        for _ in range(times):
            mine.acquire()
            yours.release()

    thread = threading.Thread(target=answer)
    start = time.perf_counter()
    thread.start()
    for _ in range(times):
        mine.release()
        yours.acquire()
    thread.join()
    return (time.perf_counter() - start) / (2 * times)


def measure(ranks: int, rounds: int, processes_up_to: int) -> dict[str, dict[str, float]]:
    """Return, by contender, the medians over `rounds`, the contenders taking turns."""
    seen: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for contender in THREADS:
            seen.setdefault(contender, []).append(timed_on_threads(contender, ranks))
        if ranks <= processes_up_to:
            seen.setdefault(PROCESSES, []).append(timed_on_processes(ranks))
        seen[OURS][-1][SWITCH] = switch(ranks)
    medians = {
        contender: {name: statistics.median(each[name] for each in found) for name in found[0]}
        for contender, found in seen.items()
    }
    for contender in THREADS:
        medians[contender][MEMORY] = memory_per_rank(contender, ranks)
    return medians


def told(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == MEMORY:
        return f"{value / MEGABYTE:.2f} MB"
    return f"{value * 1e6:.0f} us" if value < 1e-3 else f"{value * 1e3:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def show(ranks: int, medians: dict[str, dict[str, float]]) -> None:
    print(f"\n{f'{ranks} ranks':28}{OURS:>16}{TORCHS:>18}{'ratio':>8}{PROCESSES:>17}{'bar':>10}")
    for name in (FIRST, MESH, DTENSOR, SMALL, LARGE, MEMORY, SWITCH):
        ours, torchs, processes = (medians.get(each, {}).get(name) for each in (OURS, TORCHS, PROCESSES))
        ratio = f"{ours / torchs:.2f}" if torchs else "–"
        line = f"{name:28}{told(name, ours):>16}{told(name, torchs):>18}{ratio:>8}{told(name, processes):>17}"
        if ranks == BARRED_RANKS and (bar := BARS.get(name)) is not None:
            line += f"{told(name, bar):>10}  {'reached' if ours <= bar else 'MISSED'}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, BARRED_RANKS], help="even numbers above 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes-up-to", type=int, default=8, metavar="RANKS", help="64 take most of a minute")
    parser.add_argument("--json", action="store_true", help="print JSON alone, in seconds and bytes")
    parser.add_argument("--as-process", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=THREADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.as_process:
        be_a_process(options.as_process)
        return
    if options.memory_of:
        tell_memory(options.memory_of, options.ranks[0])
        return
    if any(ranks % 2 or ranks <= BASE_RANKS for ranks in options.ranks):
        parser.error("--ranks must be even and above 2")
    for contender in THREADS:
        timed_on_threads(contender, BASE_RANKS)  # warms up
    results = {ranks: measure(ranks, options.rounds, options.processes_up_to) for ranks in options.ranks}
    if options.json:
        print(json.dumps(results))
        return
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    for ranks, medians in results.items():
        show(ranks, medians)
    print(f"\na lock handed over between two threads, for scale: {told(SWITCH, handover())}")


if __name__ == "__main__":
    main()
