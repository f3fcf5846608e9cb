"""Collectives among the processes of one host: `devices` against gloo, Open MPI and DeepSpeed, interleaved in one run.

Run `python benchmarks/cpu_collectives.py`; with `--quick` for half a minute, with `--picture docs/cpu_collectives.svg`
to draw the curves. All contenders' ranks are there at once, started as torchrun starts them, and take turns; those that
have none wait for a line and take no time. A cell is the slowest rank's median of its own calls, one after another
with nothing between them; every verb is done once with known numbers first, and wrong elements are counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from collectives.contenders import OPEN, missing
from collectives.data import VERBS, Case
from collectives.figures import Figure, Results, draw, table
from collectives.world import LeftOutError, World

SIZES = "4,64,1Ki,16Ki,64Ki,256Ki,1Mi,4Mi,16Mi,64Mi,256Mi"
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def size_of(text: str) -> int:
    """Return the bytes that "4", "64Ki" or "256Mi" means."""
    return int(text[:-2]) * UNITS[text[-2:]] if text[-2:] in UNITS else int(text)


def measure(ranks: int, options: argparse.Namespace, results: Results) -> None:
    """Add the figures of one number of ranks to the results."""
    worlds = open_worlds(ranks, options.by, results)
    try:
        if worlds:
            speeds = worlds[0].ask("copy", bytes=options.copied, seconds=1.0)
            results.bandwidth[ranks] = sum(answer["speed"] for answer in speeds)
        for verb in options.verbs:
            for case in dict.fromkeys(Case.of(verb, ranks, size) for size in options.sizes):
                told = f"{verb}, {ranks} ranks, {case.bytes} bytes"
                print(told, file=sys.stderr, flush=True)
                measure_case(case, [world for world in worlds if world.is_running], options, results)
    finally:
        for world in worlds:
            world.end()


def open_worlds(ranks: int, names: Sequence[str], results: Results) -> list[World]:
    worlds = []
    for name in names:
        try:
            if why := missing(name):
                raise LeftOutError(why)
            worlds.append(World(name, ranks))
            results.about[name] = worlds[-1].note.splitlines()[0]
        except LeftOutError as error:
            results.left_out.append(f"{name}, {ranks} ranks: {error}")
    return worlds


def measure_case(case: Case, worlds: Sequence[World], options: argparse.Namespace, results: Results) -> None:
    """Let the contenders take turns at one case, and add what each one took."""
    wrong: dict[str, int] = {}
    calls: dict[str, int] = {}
    seen: dict[str, list[list[float]]] = {}
    for turn in range(options.turns):
        for world in worlds:
            if turn and world.name not in calls:
                continue
            try:
                if not turn:
                    asked = {"verb": case.verb, "ranks": case.ranks, "count": case.count}
                    wrong[world.name] = sum(answer["wrong"] for answer in world.ask("prepare", **asked))
                    tried = world.ask("time", calls=3, warm_up=2)
                    slowest = max(statistics.median(each["times"]) for each in tried if each["times"])
                    calls[world.name] = max(3, min(1000, int(options.seconds / slowest)))
                    seen[world.name] = [[] for _ in tried]
                number = calls[world.name]
                answers = world.ask("time", calls=number, warm_up=min(10, number // 3))
                for times, answer in zip(seen[world.name], answers, strict=True):
                    times += answer["times"]
            except LeftOutError as error:
                calls.pop(world.name, None)
                results.left_out.append(f"{world.name}, {case.verb}, {case.ranks} ranks, {case.bytes} bytes: {error}")
    for world in worlds:
        if world.is_running:
            world.ask("forget")
        if world.name in calls:
            seconds = max(statistics.median(times) for times in seen[world.name] if times)
            results.figures.append(Figure(world.name, case.verb, case.ranks, case.count, seconds, wrong[world.name]))


def listed(known: Sequence[str] | None = None) -> object:
    """Return what reads a list with commas, of known words if there are any."""

    def read(text: str) -> list[str]:
        found = [each.strip() for each in text.split(",")]
        if known is not None and (strange := set(found) - set(known)):
            raise argparse.ArgumentTypeError(f"{', '.join(strange)} is not among {', '.join(known)}")
        return found

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--verbs", type=listed(VERBS), default=list(VERBS))
    parser.add_argument("--sizes", default=SIZES, help=f"bytes, as in {SIZES}")
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--by", type=listed(list(OPEN)), default=list(OPEN), help=f"contenders: {', '.join(OPEN)}")
    parser.add_argument("--turns", type=int, default=5, help="how often each contender has its turn at a cell")
    parser.add_argument("--seconds", type=float, default=0.1, help="how long a turn takes")
    parser.add_argument("--quick", action="store_true", help="all-reduce at four sizes on 2 ranks")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--load", type=Path, help="measure nothing: show the figures that --json wrote")
    parser.add_argument("--picture", type=Path, help="draw the curves, as SVG")
    options = parser.parse_args()
    if options.quick:
        options.verbs, options.sizes, options.ranks, options.turns = ["all_reduce"], "4,1Ki,64Ki,1Mi", "2", 3
    options.sizes = [size_of(text) for text in options.sizes.split(",")]
    options.copied = min(256 << 20, max(options.sizes) * 16)
    if options.load:
        results = Results.from_json(json.loads(options.load.read_text()))
    else:
        machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}"
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        results = Results({"machine": machine, "versions": versions, "measured": today}, [], {}, [])
        for ranks in (int(number) for number in options.ranks.split(",")):
            measure(ranks, options, results)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
