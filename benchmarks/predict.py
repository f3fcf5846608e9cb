"""How near predictions come: to this host's own collectives after a calibration, and to published measurements.

Run `python benchmarks/predict.py`; it takes about half a minute.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "topology"))

from published_tables import MACHINES, rows

from devices._calibrate import SIZES, Curves, calibrate, measure
from devices.testing import run_processes
from devices.topology import Calibration, predict
from devices.topology.calibration import knot_of

BETWEEN = (2_000, 40_000, 100_000, 600_000, 3_000_000, 10_000_000, 40_000_000)
"""Sizes that the calibration does not measure."""


def measured(world: object, seconds: float) -> tuple[str, Curves]:
    """Return what calls took the slowest rank, at the sizes of a calibration and at those between, in turns."""
    torch.set_num_threads(1)
    sizes = sorted((*SIZES, *BETWEEN))
    return "cpu", measure(world, seconds * len(sizes) / len(SIZES), sizes)  # type: ignore[arg-type]


def here(ranks: int, seconds: float, apart: bool) -> None:
    if apart:
        calibration = calibrate(ranks, seconds)
    [(_, curves), *_] = run_processes(measured, ranks, seconds, timeout=300, backend="cpu")
    if not apart:
        knots = {
            verb: [knot_of(size, times) for size, times in curve if size in SIZES] for verb, curve in curves.items()
        }
        calibration = Calibration(platform.node(), os.cpu_count() or 1, "now", "cpu", {ranks: knots})
    when = "before" if apart else "in the same turns"
    print(f"\n{ranks} ranks on this host: calibrated for {seconds:g} s {when}, and measured at other sizes\n")
    print("| verb | bytes | measured us | predicted us (low to high) | error |\n|---|---|---|---|---|")
    errors = []
    for verb, curve in curves.items():
        for size, times in curve:
            if size in SIZES:
                continue
            took = statistics.median(times)
            expected = predict(verb, size, calibration, ranks).seconds
            errors.append(abs(expected.expected / took - 1))
            inside = f"{expected.expected * 1e6:.4g} ({expected.low * 1e6:.4g} to {expected.high * 1e6:.4g})"
            print(f"| {verb} | {size} | {took * 1e6:.4g} | {inside} | {expected.expected / took - 1:+.1%} |")
    print(f"\nmedian error {statistics.median(errors):.1%}, bar 10 %")


def published() -> None:
    print("\n| table | rows | median error from 1 MB on | below |\n|---|---|---|---|")
    for table in MACHINES:
        large, small = [], []
        for row in rows(table):
            found = predict(row.verb, row.size, row.on, row.ranks, one_process=row.one_process)
            (large if row.size >= 1 << 20 else small).append(abs(found.seconds.expected / row.seconds - 1))
        told = [f"{statistics.median(each):.1%}" if each else "" for each in (large, small)]
        print(f"| {table} | {len(large) + len(small)} | {' | '.join(told)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", default="2")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--apart", action="store_true", help="calibrate before, as a user does; needs a quiet machine")
    options = parser.parse_args()
    published()
    for ranks in options.ranks.split(","):
        here(int(ranks), options.seconds, options.apart)


if __name__ == "__main__":
    main()
