"""Host cost of one all-reduce in a world of one, where nothing moves: torch's verb over gloo against ours.

Run `python benchmarks/overhead.py`. All are measured in one process, in turns, so that a machine whose speed drifts
slows all alike; what is quoted is the ratio of medians. The bars are those that the project sets itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

import devices

BARS = {"torch's verb over our group": 0.45, "devices.all_reduce": 0.5, "devices.all_reduce with a gradient": 0.9}
PEER = "torch's verb over gloo"


def contenders(elements: int) -> dict[str, Callable[[], object]]:
    """Return what is timed, on float32 tensors of `elements`."""
    gloo = dist.new_group([0], backend="gloo")
    plain, needs_gradient = torch.ones(elements), torch.ones(elements, requires_grad=True)
    return {
        PEER: lambda: dist.all_reduce(plain, group=gloo),
        "torch's verb over our group": lambda: dist.all_reduce(plain),
        "devices.all_reduce": lambda: devices.all_reduce(plain),
        "devices.all_reduce with a gradient": lambda: devices.all_reduce(needs_gradient),
        "Tensor.clone, for scale": plain.clone,
    }


def measure(timed: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, float]:
    """Return the median over `rounds` of the microseconds that one call takes, the contenders taking turns."""
    seen: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(rounds + 1):
        for name, call in timed.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            # The first turn warms up.
            if turn:
                seen[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with devices.init():
        for size in (4, 1024):
            timed = contenders(size // 4)
            gc.disable()
            results[size] = measure(timed, options.rounds, options.calls)
            gc.enable()
    if options.json:
        print(json.dumps(results))
        return
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(f"{'bytes':>6}  {'':36}{'us/call':>9}{'ratio':>8}{'bar':>7}")
    for size, medians in results.items():
        for name, median in medians.items():
            ratio, bar = median / medians[PEER], BARS.get(name)
            verdict = "" if bar is None else f"{bar:7.2f}  {'reached' if ratio <= bar else 'MISSED'}"
            print(f"{size:>6}  {name:36}{median:9.2f}{ratio:8.2f}{verdict}")


if __name__ == "__main__":
    main()
