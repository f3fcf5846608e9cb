"""The cost of an op where tensors carry a device that is not here, against the same op on plain CPU tensors.

Each op is timed on CPU tensors without `devices.testing`'s context, on CPU tensors within it, and on device tensors
within it, all taking turns in one process. What is added to an op is a time and not a share: it is what a mode in
Python takes, whatever the op does.

Measured 2026-11-25 on 2 cores (x86-64) that others used too, torch 2.13.0 CPU, Python 3.11, medians of three runs, in
microseconds: plain, CPU tensors within, device tensors within.

    add of 4 elements         1.0    5.5    6.3
    add in place              1.9    7.1    6.7
    matmul 64x64              6.5   10.6   11.6
    view                      0.8    5.7    5.4
    empty                     1.0    7.1    8.9
    tensor.device             0.1    0.4    0.3
    tensor.to(its device)     0.4    2.8    2.9
    forward and backward     42    146    156    (a linear layer and a mean of squares, about 22 ops)

So an op costs about 5 us more, 8 where it makes a tensor from nothing; a mode that only calls the op takes 2.7 of
those. A tensor subclass on torch's spare device type takes about 22 more.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from devices.testing._device_tensors import device_tensors

WHERE = {"plain": None, "CPU, within": "cpu", "device, within": "neuron"}


def ops(device: str) -> dict[str, Callable[[], object]]:
    """Return what is timed, on tensors of `device`."""
    small, square = torch.ones(4, device=device), torch.randn(64, 64, device=device)
    model, batch = nn.Linear(64, 64, device=device), torch.randn(8, 64, device=device)

    def step() -> None:
        model.zero_grad()
        model(batch).square().mean().backward()

    return {
        "add of 4 elements": lambda: small + small,
        "add in place": lambda: small.add_(1.0),
        "matmul 64x64": lambda: square @ square,
        "view": lambda: square.view(-1),
        "empty": lambda: torch.empty(4, device=device),
        "tensor.device": lambda: small.device,
        "tensor.to(its device)": lambda: small.to(device),
        "forward and backward": step,
    }


def measure(rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Return the median over `rounds` of the microseconds that one call of each op takes, everywhere."""
    timed: dict[str, dict[str, Callable[[], object]]] = {}
    for name, device in WHERE.items():
        with device_tensors("neuron", 0):
            timed[name] = ops(device or "cpu")
    seen: dict[str, dict[str, list[float]]] = {op: {name: [] for name in WHERE} for op in timed["plain"]}
    for turn in range(rounds + 1):
        for name, device in WHERE.items():
            with device_tensors("neuron", 0) if device else contextlib.nullcontext():
                for op, call in timed[name].items():
                    start = time.perf_counter()
                    for _ in range(calls):
                        call()
                    # The first turn warms up.
                    if turn:
                        seen[op][name].append((time.perf_counter() - start) / calls * 1e6)
    return {op: {name: statistics.median(values) for name, values in by_name.items()} for op, by_name in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.disable()
    results = measure(options.rounds, options.calls)
    if options.json:
        print(json.dumps(results))
        return
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}; us per call")
    print(f"{'':24}{'plain':>10}{'CPU, within':>14}{'device, within':>17}{'added':>9}")
    for op, medians in results.items():
        plain, cpu, device = medians.values()
        print(f"{op:24}{plain:10.2f}{cpu:14.2f}{device:17.2f}{device - plain:9.2f}")


if __name__ == "__main__":
    main()
