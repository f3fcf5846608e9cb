"""The verbs and their gradients on thread ranks, against plain torch: what process ranks are tried with, and more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradient_cases
import pytest
import verb_cases
from gradient_cases import CASES

import devices.testing
from devices import World


def tried(world: World, section: Callable[..., None]) -> verb_cases.Tried:
    found = verb_cases.Tried()
    section(found, (None, world.rank, world.size))
    return found


def all_right(found: list[verb_cases.Tried]) -> None:
    for rank, each in enumerate(found):
        assert each.count or len(found) == 1, f"nothing was tried on rank {rank}"
        assert not each.wrong, f"rank {rank}: {len(each.wrong)} of {each.count} checks are wrong: {each.wrong[:3]}"


@pytest.mark.parametrize("section", verb_cases.SECTIONS, ids=lambda section: section.__name__)
@pytest.mark.parametrize("ranks", [1, 2, 4, pytest.param(7, marks=pytest.mark.slow)])
def test_the_verbs_give_what_plain_torch_gives(section: Callable[..., None], ranks: int) -> None:
    all_right(devices.testing.run(tried, section, ranks=ranks))


@pytest.mark.parametrize("section", verb_cases.SECTIONS, ids=lambda section: section.__name__)
@pytest.mark.parametrize("how", [{"seed": 1}, {"parallel": True}], ids=str)
def test_in_whatever_order_the_ranks_run(section: Callable[..., None], how: dict[str, Any]) -> None:
    all_right(devices.testing.run(tried, section, ranks=4, **how))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_each_ranks_gradients_are_those_of_the_sum_of_all_losses(case: gradient_cases.Case, ranks: int) -> None:
    def compared(world: World) -> verb_cases.Tried:
        return gradient_cases.compared(case, world.rank, world.size)

    all_right(devices.testing.run(compared, ranks=ranks))
