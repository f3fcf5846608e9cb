"""Every field in which calls of a verb may differ, in every verb: an error on every rank, in a group of its own each.

All are done by the same three processes: an error closes the group in which it was, and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import rank_endings
import torch
import torch.distributed as dist
from judging import SIZE, SPLITS, UNHEARD, Case, Raises, complaints, named
from shared_memory import NEEDS_SHARED_MEMORY

import devices
from devices.errors import DevicesError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), NEEDS_SHARED_MEMORY]

RANKS = 3
ODD = 1

Call = Callable[[dist.ProcessGroup], Any]
Word = str | tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One verb called with one difference.

    Args:
        usual: what most ranks call.
        odd: what rank `ODD` calls.
        words: what the error must say: the name of what differs, and both values where their form is plain.
    """

    usual: Call
    odd: Call
    words: tuple[Word, ...]


X = torch.ones(6)

VERBS: dict[str, dict[str, Any]] = {
    "all_reduce": {},
    "reduce_scatter": {},
    "reduce": {"dst": 0},
    "all_gather": {},
    "all_to_all": {},
    "broadcast": {"src": 0},
    "gather": {"dst": 0},
    "scatter": {"src": 0},
    "permute": {"pairs": [(0, 1), (1, 2), (2, 0)]},
}


def call(verb: str, x: torch.Tensor = X, **options: Any) -> Call:
    return lambda group: getattr(devices, verb)(x, group, **{**VERBS[verb], **options})


def cells() -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for verb in VERBS:
        usual = call(verb)
        found[f"{verb} and barrier"] = Cell(usual, devices.barrier, ("verb", verb, "barrier"))
        # What is scattered is described by the source alone.
        if verb != "scatter":
            found[f"dtype of {verb}"] = Cell(usual, call(verb, X.double()), ("dtype", "float32", "float64"))
            found[f"dtype of {verb}, as wide"] = Cell(usual, call(verb, X.int()), ("dtype", "float32", "int32"))
            # What does not meet in an all_to_all is told in bytes.
            found[f"shape of {verb}"] = Cell(usual, call(verb, torch.ones(9)), ((*SIZE, "bytes"),))
            found[f"emptiness of {verb}"] = Cell(usual, call(verb, torch.ones(0)), ((*SIZE, "bytes"), "0"))
        if "reduce" in verb:
            found[f"op of {verb}"] = Cell(usual, call(verb, op="max"), ("op", "sum", "max"))
        if root := {"src", "dst"} & set(VERBS[verb]):
            found[f"root of {verb}"] = Cell(usual, call(verb, **dict.fromkeys(root, 2)), ("root", "0", "2"))
    for verb in ("all_gather", "gather", "reduce_scatter", "scatter"):
        even, other = ([6, 6, 6], [5, 6, 7]) if "gather" in verb else ([2, 2, 2], [1, 2, 3])
        found[f"sizes of {verb}"] = Cell(call(verb, sizes=even), call(verb, sizes=other), (SPLITS,))
    rows = [[[2, 2, 2]] * 3, [[1, 2, 3], [2, 2, 2], [3, 2, 1]]]
    found["sizes of all_to_all"] = Cell(call("all_to_all", sizes=rows[0]), call("all_to_all", sizes=rows[1]), (SPLITS,))
    found["pairs of permute"] = Cell(
        call("permute"), call("permute", pairs=[(1, 0), (2, 1), (0, 2)]), (("pairs", "sizes"),)
    )
    return found


CELLS = cells()


def _all(world: devices.World) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return what each cell raised here: its classes and text."""
    found = {}
    for name, cell in CELLS.items():
        for _ in range(5):
            found[name] = _raised(cell.odd if world.rank == ODD else cell.usual)
            # Nobody goes on before all have been told. Where one came too late to be heard of, they try again.
            if not devices.all_reduce(torch.tensor(UNHEARD in found[name][1]), op="bor").item():
                break
    return found


def _raised(call: Call) -> tuple[tuple[str, ...], str]:
    group = dist.new_group(list(range(RANKS)), timeout=timedelta(seconds=20))
    assert isinstance(group, dist.ProcessGroup)
    try:
        call(group)
    except DevicesError as error:
        return tuple(kind.__name__ for kind in type(error).__mro__), str(error)
    return (), ""


@pytest.fixture(scope="module")
def endings() -> list[rank_endings.Ending]:
    return rank_endings.run(RANKS, rank_endings.Plan(_all), seconds=240)


@pytest.mark.parametrize("name", named(CELLS))
def test_each_rank_says_in_what_the_calls_differ(name: str, endings: list[rank_endings.Ending]) -> None:
    by_rank = []
    for ending in endings:
        if ending.how != "returned":
            by_rank.append(ending)
            continue
        kinds, said = ending.value[name]
        by_rank.append(rank_endings.Ending("raised" if kinds else "returned", kinds=kinds, said=said))
    expected = Raises("MismatchError", (f"rank {ODD}", *CELLS[name].words), never="CollectiveTimeoutError")
    if found := complaints(Case(_all, expected, ranks=RANKS), by_rank):
        pytest.fail("\n".join(found), pytrace=False)
