"""One rank of one contender: does what the process that started it asks, a line of JSON each way.

While another contender has its turn it waits for the next line, and takes no time of any CPU.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from collectives import contenders
from collectives.data import Case, result_of


def main() -> None:
    name, address, secret = sys.argv[1:]
    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        lines = connection.makefile("rw")

        def say(**told: Any) -> None:
            lines.write(json.dumps(told) + "\n")
            lines.flush()

        try:
            contender = contenders.OPEN[name]()
        except Exception as error:
            rank = int(os.environ.get("RANK") or os.environ.get("OMPI_COMM_WORLD_RANK", "-1"))
            say(secret=secret, rank=rank, error=f"{type(error).__name__}: {error}".partition("\n")[0])
            return
        say(secret=secret, rank=contender.rank, note=contender.note)
        at_hand = Prepared(contender)
        for line in lines:
            try:
                say(**at_hand.do(**json.loads(line)))
            except Exception as error:
                say(error=f"{type(error).__name__}: {error}".partition("\n")[0])
    # The contender that is ended last would wait for peers that have gone.
    os._exit(0)


class Prepared:
    """A contender, and the case that it has tensors for."""

    def __init__(self, contender: Any) -> None:
        self._contender = contender
        self._case: Case | None = None
        self._call: Any = None

    def do(self, do: str, **asked: Any) -> dict[str, Any]:
        if do == "prepare":
            return {"wrong": self._prepare(Case(**asked))}
        if do == "time":
            return {"times": self._time(**asked)}
        if do == "copy":
            return {"speed": _copy(**asked)}
        assert do == "forget"
        self._call = self._case = None
        return {}

    def _prepare(self, case: Case) -> int:
        """Make the tensors, do the verb once, and return how many elements of the result are wrong."""
        self._call = None
        call, x, y = self._contender.prepare(case)
        contenders.fill(case, self._contender.rank, x)
        call()
        expected = result_of(case, self._contender.rank)
        wrong = 0 if expected is None else int((y != expected).sum())
        del expected
        # Sums in place stay what they are, however often they are taken.
        x.zero_()
        self._case, self._call = case, call
        return wrong

    def _time(self, calls: int, warm_up: int) -> list[float]:
        """Return the seconds of each call, one after another with nothing between them."""
        call, clock = self._call, time.perf_counter
        assert self._case is not None
        halved = 0.5 if self._case.verb == "send" else 1.0
        if self._case.verb == "send" and self._contender.rank > 1:
            return []
        times = []
        gc.collect()
        gc.disable()
        try:
            for _ in range(warm_up):
                call()
            for _ in range(calls):
                start = clock()
                call()
                times.append((clock() - start) * halved)
        finally:
            gc.enable()
        return times


def _copy(bytes: int, seconds: float) -> float:
    """Return the bytes per second, read and written, of copies from one place to another."""
    source, target = np.ones(bytes, np.uint8), np.ones(bytes, np.uint8)
    begin, copies = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        np.copyto(target, source)
        copies += 1
    return 2 * bytes * copies / (time.perf_counter() - begin)


main()
