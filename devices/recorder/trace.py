"""Writes what flight recorders left as a trace that Chrome's `chrome://tracing` and Perfetto read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from devices.recorder.reading import Flown
from devices.recorder.record import FlightRecord


def write(found: Sequence[Flown], path: Path) -> None:
    """Write the trace: a row for each rank, and in it a slice for each call.

    Args:
        found: what the ranks left.
        path: the file.
    """
    events = list(_events(found))
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


def _events(found: Sequence[Flown]) -> Iterator[dict[str, Any]]:
    calls = [call for flown in found for call in flown.calls]
    start = min((call.began for call in calls), default=0.0)
    stop = max((call.began + (call.seconds or 0.0) for call in calls), default=0.0)
    thread = 0
    for flown in found:
        # Viewers take process 0 for the idle one.
        process = flown.rank + 1
        name = f"rank {flown.rank} ({flown.host})"
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": flown.rank}}
        for number, lane in enumerate(_lanes(flown.calls, stop)):
            thread += 1
            title = "calls" if number == 0 else f"calls beside them {number}"
            yield {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": title}}
            for call in lane:
                yield {
                    "ph": "X",
                    "name": call.verb if call.state == "done" else f"{call.verb} ({call.state})",
                    "cat": "message" if call.number == 0 else "collective",
                    "ts": (begins := round((call.began - start) * 1e6, 3)),
                    "dur": round(round((_end(call, stop) - start) * 1e6, 3) - begins, 3),
                    "pid": process,
                    "tid": thread,
                    "args": {name: value for name, value in call.as_data().items() if value not in ("", -1, None)},
                }


def _lanes(calls: Sequence[FlightRecord], stop: float) -> list[list[FlightRecord]]:
    """Return the calls in as few rows as there are that run at once: slices of one row may not overlap."""
    lanes: list[list[FlightRecord]] = []
    for call in sorted(calls, key=lambda call: call.began):
        free = next((lane for lane in lanes if _end(lane[-1], stop) <= call.began), None)
        if free is None:
            lanes.append(free := [])
        free.append(call)
    return lanes


def _end(call: FlightRecord, stop: float) -> float:
    """Return when the call ended; one that has not, lasts to the end of the trace."""
    return stop if call.seconds is None else call.began + call.seconds
