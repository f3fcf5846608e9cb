"""Host cost of one all-reduce in a world of one, where nothing moves: torch's verb over gloo against ours; and on GPUs.

Run `python benchmarks/overhead.py`. All are measured in one process, in turns, so that a machine whose speed drifts
slows all alike; what is quoted is the ratio of medians. The bars are those that the project sets itself.

On GPUs, `torchrun --nproc-per-node=GPUS benchmarks/overhead.py --cuda`: torch's verb over torch's NCCL group against
the same over ours, and against `devices.all_reduce`. The time of a call is that until the device is done; the time on
the host is that until it returns.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

import devices

CUDA_PEER = "torch's verb over NCCL"
CUDA_BARS = {"torch's verb over our group": (1.02, 1.02), "devices.all_reduce, in place": (1.02, 0.7)}
"""Of the time of a call, and of its time on the host."""

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


def measure_on_gpus(sizes: Sequence[int], rounds: int, calls: int) -> dict[int, dict[str, tuple[float, float]]] | str:
    """Return, by size in bytes and contender, the medians of a call's microseconds and of those on the host.

    Where it cannot be measured, return why.
    """
    if not torch.cuda.is_available():
        return "no GPU here, so nothing was measured on one"
    results = {}
    with devices.init("cuda") as world:
        nccl = dist.new_group(backend="nccl")
        for size in sizes:
            x = torch.ones(size // 4, device=world.device)
            timed: dict[str, Callable[[], object]] = {
                CUDA_PEER: partial(dist.all_reduce, x, group=nccl),
                "torch's verb over our group": partial(dist.all_reduce, x),
                "devices.all_reduce, in place": partial(devices.all_reduce, x, out=x),
                "devices.all_reduce": partial(devices.all_reduce, x),
            }
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
            for turn in range(rounds + 1):
                for name, call in timed.items():
                    x.fill_(0.0)
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    for _ in range(calls):
                        call()
                    told = time.perf_counter()
                    torch.cuda.synchronize()
                    if turn:
                        seen[name].append(((time.perf_counter() - start) / calls * 1e6, (told - start) / calls * 1e6))
            results[size] = {
                name: (statistics.median(whole for whole, _ in values), statistics.median(host for _, host in values))
                for name, values in seen.items()
            }
        if world.rank == 0:
            what = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {world.size} ranks"
            print(f"{world.explain()}\n{what}", file=sys.stderr)
    return results


def show_gpus(results: dict[int, dict[str, tuple[float, float]]]) -> None:
    """Print the medians, their ratios to torch's verb over NCCL, and whether the bars are reached."""
    print(f"{'bytes':>9}  {'':32}{'us/call':>10}{'ratio':>7}{'on host':>10}{'ratio':>7}")
    for size, medians in results.items():
        for name, found in medians.items():
            ratios = [mine / peer for mine, peer in zip(found, medians[CUDA_PEER], strict=True)]
            bars = CUDA_BARS.get(name)
            is_reached = bars is not None and all(ratio <= bar for ratio, bar in zip(ratios, bars, strict=True))
            verdict = "" if bars is None else f"  bars {bars[0]}, {bars[1]}: {'reached' if is_reached else 'MISSED'}"
            columns = "".join(f"{mine:10.2f}{ratio:7.2f}" for mine, ratio in zip(found, ratios, strict=True))
            print(f"{size:>9}  {name:32}{columns}{verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--cuda", action="store_true", help="measure on GPUs, under torchrun or in a world of one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cuda:
        found = measure_on_gpus((4, 1024, 1 << 20), options.rounds, min(options.calls, 100))
        is_told = os.environ.get("RANK", "0") == "0"
        if isinstance(found, str):
            print(json.dumps({"cuda": found}) if options.json else found)
        elif is_told:
            print(json.dumps(found)) if options.json else show_gpus(found)
        return
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
    if not torch.cuda.is_available():
        print("On GPUs (--cuda): not measured, for there is none here.")


if __name__ == "__main__":
    main()
