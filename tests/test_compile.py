"""torch.compile(fullgraph=True) of the synchronous verbs, with first-order gradients."""

from __future__ import annotations

import functools
import shutil

import compile_cases
import pytest
import ranks

pytestmark = pytest.mark.slow
FOUND = [*compile_cases.NAMES, "send and recv", "one group after another", "one size after another"]


@functools.cache
def _everything() -> list[tuple[compile_cases.Found, list[str]]] | Exception:
    try:
        return ranks.run(2, compile_cases.everything, "aot_eager")
    except ranks.RankFailed as error:
        return error


def _hold(ranks_found: list[compile_cases.Found], name: str) -> None:
    for rank, found in enumerate(ranks_found):
        count, wrong = found[name]
        assert count
        assert not wrong, f"rank {rank}: {wrong}"


@pytest.mark.parametrize("name", FOUND)
def test_a_compiled_verb_and_its_gradient_are_those_of_the_eager_one(name: str) -> None:
    found = _everything()
    if isinstance(found, Exception):
        raise found
    _hold([one for one, _ in found], name)


def test_what_is_not_compiled_says_so() -> None:
    found = _everything()
    if isinstance(found, Exception):
        raise found
    for rank, (_, said) in enumerate(found):
        here = f"on rank {rank} of 2: "
        expected = [
            here + "out= and async_op= are not compiled; leave them away",
            here + "out= and async_op= are not compiled; leave them away",
            "barrier: async_op= is not compiled; leave it away",
            "under torch.compile every rank passes a tensor of src's shape",
            "a verb acts along one mesh axis, but this mesh has 2",
            here + "op 'summ' is not known, or has no meaning on torch.float32",
            "op 'max' has no gradient",
            "op 'prod' has no gradient",
            *["reduce has no gradient"] * (rank == 0),
        ]
        assert len(said) == len(expected)
        for one, part in zip(said, expected, strict=True):
            assert part in one


def test_a_world_of_one_compiles_over_every_kind_of_group() -> None:
    names = ("all_reduce weighted", "all_gather")
    found = ranks.run(1, compile_cases.compile_all, "aot_eager", names, True)
    for name in names:
        _hold(found, name)


def test_inductor_compiles_verbs_and_keeps_those_whose_result_a_rank_does_not_use() -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler, found neither g++ nor clang++")
    names = ("twice", "used by one rank")
    found = ranks.run(2, compile_cases.compile_all, "inductor", names, False)
    for name in names:
        _hold(found, name)
