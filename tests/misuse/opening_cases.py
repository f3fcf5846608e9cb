"""Worlds that cannot open, since their ranks disagree about them."""

from __future__ import annotations

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
        CASES[body.__name__] = Case(body, everyone, opens=False, variables=variables, stays=False, **more)
        return body

    return add


def _opens(timeout: float) -> Any:
    with devices.init(timeout=timeout):
        return devices.all_reduce(torch.ones(1)).item()


REFUSED = ("WorldError", "CollectiveError")


@case(Raises(REFUSED, ("RANK", ("0", "rank 0"))), lambda rank: {"RANK": "0"}, timeout=5)
def two_ranks_0(timeout: float) -> Any:
    return _opens(timeout)


@case(Raises(REFUSED, ("WORLD_SIZE", "2", "3")), lambda rank: {"WORLD_SIZE": str(2 + rank)}, timeout=5)
def world_sizes_that_disagree(timeout: float) -> Any:
    return _opens(timeout)


@case(Raises(REFUSED, ("rank 2",)), lambda rank: {"WORLD_SIZE": "3"}, timeout=5)
def a_rank_that_never_comes(timeout: float) -> Any:
    return _opens(timeout)


@case(Raises(REFUSED, (("RANK", "rank"),)), lambda rank: {"RANK": str(3 * rank)}, timeout=5)
def a_rank_beyond_the_world(timeout: float) -> Any:
    return _opens(timeout)
