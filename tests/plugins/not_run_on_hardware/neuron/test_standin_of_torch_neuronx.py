"""That the stand-in of torch_neuronx is no more forgiving than the documents: what it refuses, and what it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import neuron_cases as cases
import pytest
from on_standin import on_standin, variables

pytestmark = pytest.mark.slow


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return variables(tmp_path)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    env = variables(tmp_path_factory.mktemp("trn2"))
    found: list[dict[str, Any]] = on_standin(cases.over_the_vendors, 4, env=env, backend="cpu")
    return found[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prod", "RuntimeError: allreduce: reduce op"),
        ("avg", "RuntimeError: allreduce: reduce op"),
        ("int32", "RuntimeError: allreduce: torch.int32 is not reduced"),
        ("send", "NotImplementedError: "),
        ("recv", "NotImplementedError: "),
        ("zero size", "ValueError: tensors cannot have zero size in dimension 0"),
        ("uneven", "NotImplementedError: alltoall_base: Only even split sizes"),
        ("barrier", "NotImplementedError: Barrier is implemented only for default group"),
        ("another's device", "RuntimeError: Device index 1 is out of range"),
        ("complex", "RuntimeError: neuron devices have no tensors of torch.complex64"),
        ("float8_e4m3fn", "RuntimeError: neuron devices have no tensors of torch.float8_e4m3fn"),
        ("a tensor on the CPU", "RuntimeError: Expected all tensors to be on the same device"),
        ("groups", "RuntimeError: there are 16 replica groups"),
    ],
)
def test_the_vendors_group_refuses_on_the_standin(answers: dict[str, Any], name: str, said: str) -> None:
    assert answers[name].startswith(said)


def test_sixteen_groups_are_open_at_once_on_the_standin(answers: dict[str, Any]) -> None:
    # The world and a pair are two of them.
    assert answers["how many groups"] == 14


def test_int64_travels_as_int32_on_the_standin(answers: dict[str, Any]) -> None:
    assert answers["int64 is narrowed"] == [7] * 8


def test_a_broadcast_loses_the_sign_of_a_zero_on_the_standin(answers: dict[str, Any]) -> None:
    assert answers["sign of a zero"] == [False]


def test_float64_is_computed_in_32_bits_on_the_standin(answers: dict[str, Any]) -> None:
    assert answers["float64"] is True


def test_a_core_belongs_to_one_process_on_the_standin(env: dict[str, str]) -> None:
    first, second = on_standin(cases.owned_twice, 2, env=env, backend="cpu")
    assert first == ""
    assert second == "RuntimeError: Logical Neuron Core 3 is owned by another process"


@pytest.mark.parametrize(
    ("cores", "count", "said"),
    [
        ("4-7", 4, ""),
        ("4,6", 0, "is not contiguous"),
        ("2-5", 0, "start at a multiple of 4"),
        ("0-2", 0, "3 logical cores: it must be 1, 2, 4, 8, 16 or a multiple of 32"),
        ("64", 0, "the machine has 64 logical cores"),
    ],
)
def test_which_cores_a_process_may_have_on_the_standin(env: dict[str, str], cores: str, count: int, said: str) -> None:
    [(found, answer)] = on_standin(cases.counted, 1, cores, env=env, backend="cpu")
    assert found == count
    assert said in answer
    assert bool(answer) == bool(said)
