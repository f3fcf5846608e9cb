"""Worlds that cannot open, since their ranks disagree about them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import torch
from judging import Case, Expected, Raises

import devices

CASES: dict[str, Case] = {}

Body = Callable[[float], Any]


def case(
    everyone: Expected, variables: Callable[[int], Mapping[str, str | None]], **more: Any
) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        CASES[body.__name__] = Case(body, everyone, opens=False, variables=variables, **more)
        return body

    return add


def _opens(timeout: float) -> Any:
    with devices.init(timeout=timeout):
        return devices.all_reduce(torch.ones(1)).item()


@case(Raises("WorldError", ("RANK is 0 in two processes",)), lambda rank: {"RANK": "0"}, timeout=20)
def two_ranks_0(timeout: float) -> Any:
    return _opens(timeout)


@case(
    Raises("WorldError", ("WORLD_SIZE", "2 on rank 0", "3 on rank 1")),
    lambda rank: {"WORLD_SIZE": str(2 + rank)},
    timeout=20,
)
def world_sizes_that_disagree(timeout: float) -> Any:
    return _opens(timeout)


@case(Raises("WorldError", ("rank 2", "did not come", "ranks 0, 1 did")), lambda rank: {"WORLD_SIZE": "3"}, timeout=4)
def a_rank_that_never_comes(timeout: float) -> Any:
    return _opens(timeout)


@case(
    Raises("WorldError", ("rank 1", "did not come")),
    lambda rank: {"RANK": str(3 * rank)},
    but={1: Raises("WorldError", ("RANK is 3", "WORLD_SIZE is 2"))},
    timeout=4,
)
def a_rank_beyond_the_world(timeout: float) -> Any:
    return _opens(timeout)


def _without_agent(rank: int) -> dict[str, str | None]:
    """Let rank 0 be the one to listen, on a port that nobody can have."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(TAKEN.getsockname()[1])}


TAKEN = socket.socket()
"""Listens, as another program does, and answers nothing."""
TAKEN.bind(("127.0.0.1", 0))
TAKEN.listen()


@case(
    Raises("WorldError", ("rank 1", "127.0.0.1", "cannot meet", "another program's")),
    _without_agent,
    but={0: Raises("WorldError", ("rank 0", "127.0.0.1", "cannot meet", ("in use", "EADDRINUSE")))},
    timeout=4,
    agent=False,
)
def a_port_that_is_taken(timeout: float) -> Any:
    return _opens(timeout)
