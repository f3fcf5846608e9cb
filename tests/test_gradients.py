"""Gradients of the verbs.

A right broadcast fails `gradcheck` run on each rank, for all ranks perturb at once. So torch checks the gradient of
plain functions over all ranks' inputs, and each rank's gradient is compared with that.
"""

from __future__ import annotations

import functools
import itertools

import gradient_cases
import pytest
import ranks
import torch
from gradient_cases import CASES


@functools.cache
def _compared(transport: str, size: int) -> list[dict[str, tuple[int, list[str]]]] | Exception:
    try:
        return ranks.run(size, gradient_cases.compare_gradients, transport)
    except ranks.RankFailed as error:
        return error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_torch_finds_the_plain_functions_gradients_right(case: gradient_cases.Case) -> None:
    for size, dtype in itertools.product((1, 3), case.dtypes):
        flat = [x for rank in range(size) for x in gradient_cases.inputs(case, rank, size, dtype)]
        assert torch.autograd.gradcheck(gradient_cases.stacked(case, size), flat, fast_mode=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("transport", "size"),
    [
        ("devices", 1),
        ("devices", 2),
        pytest.param("devices", 3, marks=pytest.mark.slow),
        pytest.param("devices", 4, marks=pytest.mark.slow),
        ("gloo", 2),
    ],
)
def test_each_ranks_gradients_are_those_of_the_sum_of_all_losses(
    case: gradient_cases.Case, transport: str, size: int
) -> None:
    compared = _compared(transport, size)
    if isinstance(compared, Exception):
        raise compared
    for rank, found in enumerate(compared):
        count, wrong = found[case.name]
        assert count, f"nothing was compared on rank {rank}"
        assert not wrong, f"rank {rank}: {wrong}"


@pytest.mark.parametrize("size", [1, 3])
def test_a_gradient_that_is_not_defined_is_refused_in_clear_words(size: int) -> None:
    for rank, said in enumerate(ranks.run(size, gradient_cases.refusals)):
        expected = [
            *[
                f"with op {op!r} has no gradient; those of 'sum' and 'avg'"
                for op in ("min", "max", "prod")
                for _ in "ab"
            ],
            *["result is on rank"] * (2 if rank == size - 1 else 0),
            *["out= was given, but the input requires grad"] * 3,
            *["requires grad; detach() it, or use permute"] * (size > 1),
            *["gather has no gradient, nor has that of scatter"] * (rank == 0),
            "weight= requires grad",
        ]
        assert len(said) == len(expected)
        for one, part in zip(said, expected, strict=True):
            assert part in one
