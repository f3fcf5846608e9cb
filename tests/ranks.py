"""Rank processes for tests: forked from a server that has torch loaded, so eight start in a fraction of a second."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

_context = multiprocessing.get_context("forkserver")


def warm_up() -> None:
    """Start the server, with what ranks of tests import, which each of them would else load for itself."""
    _context.set_forkserver_preload(
        [
            "torch.distributed.tensor.parallel",
            "torch.distributed.fsdp",
            "torch._dynamo",
            "devices._collectives",
            "devices._placement",
            "devices._world",
            "devices.testing.pytest",
            "devices.testing._asserts",
            "devices.testing._process_child",
            "hypothesis",
        ]
    )
    multiprocessing.forkserver.ensure_running()


class RankFailed(AssertionError):  # noqa: N818 - says what happened
    """Some ranks raised, died or did not finish; holds what each one said."""


def run(
    ranks: int,
    function: Callable[..., Any],
    *args: Any,
    env: Mapping[str, str] | None = None,
    timeout: float = 400,
) -> list[Any]:
    """Return what `function(*args)` returned on each of `ranks` processes, with torchrun's variables set.

    The function is of a module's top level, and what it returns can be pickled.
    """
    ended = outcomes(ranks, function, *args, env=env, timeout=timeout)
    if any(kind != "returned" for kind, _ in ended):
        raise RankFailed("\n".join(f"--- rank {rank} {kind}\n{said}" for rank, (kind, said) in enumerate(ended)))
    return [value for _, value in ended]


def outcomes(
    ranks: int,
    function: Callable[..., Any],
    *args: Any,
    env: Mapping[str, str] | None = None,
    timeout: float = 400,
    grace: float = 20,
) -> list[tuple[str, Any]]:
    """Return how `function(*args)` ended on each rank: "returned", "raised", "died" or "did not finish", and what.

    Once one has failed, the others have `grace` more seconds.
    """
    from torch.distributed import TCPStore

    # The store is here, as torchrun's agent has it, so no port is chosen before it is bound.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }
    children, ends = [], []
    for rank in range(ranks):
        here, there = _context.Pipe(duplex=False)
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        child = _context.Process(target=_child, args=(there, variables, function, args), daemon=True)
        child.start()
        there.close()
        children.append(child)
        ends.append(here)
    ended = _collect(ends, timeout, grace)
    for child in children:
        child.join(5 if all(kind == "returned" for kind, _ in ended) else 0.5)
        if child.is_alive():
            child.kill()
            child.join()
    return ended


def _collect(ends: list[Connection], timeout: float, grace: float) -> list[tuple[str, Any]]:
    """Return each rank's outcome; once one has failed, the others have `grace` more seconds."""
    outcomes: list[tuple[str, Any]] = [("did not finish", "")] * len(ends)
    open_ends = {end: rank for rank, end in enumerate(ends)}
    deadline = time.monotonic() + timeout
    while open_ends and (left := deadline - time.monotonic()) > 0:
        for end in wait(list(open_ends), left):
            assert isinstance(end, Connection)
            rank = open_ends.pop(end)
            try:
                outcomes[rank] = end.recv()
            except EOFError:
                outcomes[rank] = ("died", "")
            if outcomes[rank][0] != "returned":
                deadline = min(deadline, time.monotonic() + grace)
    return outcomes


def _child(end: Connection, variables: Mapping[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    os.environ.update(variables)
    # A parent that ran an op on two threads leaves its children a pool that hangs them.
    torch.set_num_threads(1)
    try:
        outcome = ("returned", function(*args))
    except BaseException:
        outcome = ("raised", traceback.format_exc())
    end.send(outcome)
    end.close()
