"""How near predictions come: to this host's own collectives after a calibration, and to published measurements.

Run `python benchmarks/predict.py`; it takes about half a minute.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "topology"))

from published_tables import MACHINES, rows

from devices.command.calibrate import Curves, calibrate, measure
from devices.testing import run_processes
from devices.topology import predict

BETWEEN = (2_000, 40_000, 100_000, 600_000, 3_000_000, 10_000_000, 40_000_000)
"""Sizes that the calibration does not measure."""


def measured(world: object, seconds: float) -> tuple[Curves, float | None]:
    """Return what calls took the slowest rank, at sizes between those of a calibration."""
    torch.set_num_threads(1)
    return measure(world, seconds, BETWEEN)  # type: ignore[arg-type]


def here(ranks: int, seconds: float) -> None:
    calibration = calibrate(ranks, seconds)
    curves, others = run_processes(measured, ranks, seconds, timeout=300, backend="cpu")[0]
    print(
        f"\n{ranks} ranks on this host: calibrated for {seconds:g} s, then measured at other sizes by other processes\n"
    )
    print("| verb | bytes | measured us | predicted us (low to high) | error |\n|---|---|---|---|---|")
    errors, inside = [], 0
    for verb, curve in curves.items():
        for size, times in curve:
            took = statistics.median(each for turn in times for each in turn)
            found = predict(verb, size, calibration, ranks).seconds
            errors.append(abs(found.expected / took - 1))
            inside += found.low <= took <= found.high
            shown = f"{found.expected * 1e6:.4g} ({found.low * 1e6:.4g} to {found.high * 1e6:.4g})"
            print(f"| {verb} | {size} | {took * 1e6:.4g} | {shown} | {found.expected / took - 1:+.1%} |")
    print(f"\nmedian error {statistics.median(errors):.1%}, bar 10 %; {inside} of {len(errors)} in their intervals")
    print(f"other work had {calibration.others or 0:.1%} of the CPUs meanwhile, then {others or 0:.1%}")


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
    options = parser.parse_args()
    published()
    for ranks in options.ranks.split(","):
        here(int(ranks), options.seconds)


if __name__ == "__main__":
    main()
