"""The Neuron plugin over the stand-in of torch_neuronx; none of it has run on the hardware."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import neuron_cases as cases
import pytest
import ranks
from on_standin import on_standin, standin, variables

pytestmark = pytest.mark.slow


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return variables(tmp_path)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_standin(cases.verbs, 4, env=variables(tmp_path_factory.mktemp("trn2")))


def test_a_rank_has_the_core_of_its_place_on_the_standin(found: list[dict[str, Any]]) -> None:
    assert [each["device"] for each in found] == [f"neuron:{rank}" for rank in range(4)]
    assert [each["current"] for each in found] == ["0", "1", "2", "3"]


def test_it_is_explained_what_carries_the_group_on_the_standin(found: list[dict[str, Any]]) -> None:
    assert "torch's process group 'neuron'" in found[0]["explained"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", [10.0, 20.0]),
        ("avg of bfloat16", [2.5, 5.0]),
        ("prod", [24.0, 16 * 24.0]),
        ("sum of int64", [4 * 2**40 + 6, (-4 * 2**62 + 6) % 2**64]),
        ("gathered int64", [2**40 + rank for rank in range(4)]),
        ("empty", []),
        ("float8", [1.5] * 4),
    ],
)
def test_what_every_rank_gets_on_the_standin(found: list[dict[str, Any]], name: str, expected: list[Any]) -> None:
    for each in found:
        assert each[name] == expected


def test_max_keeps_a_nan_on_the_standin(found: list[dict[str, Any]]) -> None:
    assert all(value != value for each in found for value in each["max with NaN"])


def test_broadcast_keeps_nan_and_the_sign_of_a_zero_on_the_standin(found: list[dict[str, Any]]) -> None:
    nan, minus_zero, infinity = 0x7FC00000, -(2**31), 0x7F800000
    for each in found:
        assert each["broadcast"] == [nan, minus_zero, infinity]


@pytest.mark.parametrize("rank", range(4))
def test_what_one_rank_gets_on_the_standin(found: list[dict[str, Any]], rank: int) -> None:
    starts = [0, 1, 3, 6]
    mine = found[rank]
    assert mine["even all_to_all"] == [rank + 10 * source for source in range(4)]
    assert mine["uneven all_to_all"] == [
        100 * source + starts[rank] + place for source in range(4) for place in range(rank + 1)
    ]
    peers = [rank % 2, rank % 2 + 2]
    assert mine["of every other rank"] == [10 * source + peers.index(rank) for source in peers]
    assert mine["scattered"] == [2 * rank, 2 * rank + 1]
    assert mine["permuted"] == {0: [2.0, 4.0], 1: [1.0, 2.0]}.get(rank, [0.0, 0.0])


def test_messages_go_through_host_memory_on_the_standin(found: list[dict[str, Any]]) -> None:
    assert [each["sent around"] for each in found] == [[4.0, 8.0], [1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]
    assert all("messages between two ranks through host memory" in each["explained"] for each in found)


def test_a_message_between_two_of_four_ranks_on_the_cpu_needs_no_other_on_the_standin(
    found: list[dict[str, Any]],
) -> None:
    assert [each["sent on the host"] for each in found] == [[0], [1], [1], [3]]


def test_float64_is_refused_on_the_standin(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["float64"].startswith("UnsupportedError: ")
        assert "float64" in each["float64"]


def test_tensors_are_placed_and_differentiated_on_the_standin(env: dict[str, str]) -> None:
    import torch

    full = torch.arange(32.0).view(4, 8)
    wanted = (full @ full.T).tolist(), full.sum(0).expand(4, 8).tolist()
    assert on_standin(cases.placed, 4, env=env) == [wanted] * 4


@pytest.mark.parametrize(("ranks", "tp"), [(2, 1), (4, 2)])
def test_the_example_trains_as_on_the_cpu_on_the_standin(
    env: dict[str, str], ranks: int, tp: int, tmp_path: Path
) -> None:
    on_cpu = on_standin(cases.trained, ranks, tp, str(tmp_path / "cpu"), env=env, backend="cpu")[0]
    on_neuron = on_standin(cases.trained, ranks, tp, str(tmp_path / "neuron"), env=env)[0]
    assert on_neuron["losses"] == pytest.approx(on_cpu["losses"], rel=1e-5)
    assert on_neuron["held_out"] == pytest.approx(on_cpu["held_out"], rel=1e-5)
    assert len(on_neuron["losses"]) == 3


def test_ranks_may_have_any_cores_and_open_a_second_world_on_the_standin(env: dict[str, str]) -> None:
    found = on_standin(cases.on_cores_of_their_own, 2, env=env, backend="cpu")
    assert found == [("neuron:0", 2.0, 0), ("neuron:1", 2.0, 1)]


def everyone_says(answers: list[str], pattern: str) -> None:
    for rank, answer in enumerate(answers):
        assert re.search(pattern, answer), f"rank {rank} said {answer!r}"


def test_a_runtime_that_was_touched_before_is_an_error_on_every_rank_on_the_standin(env: dict[str, str]) -> None:
    answers = on_standin(cases.open_touched, 2, 1, env=env, backend="cpu")
    everyone_says(answers, "^WorldError: .*rank 1: the Neuron runtime was started before the world opened")
    assert "rank 0: the Neuron" not in answers[0]


def test_two_ranks_on_one_core_are_an_error_on_every_rank_on_the_standin(env: dict[str, str]) -> None:
    answers = on_standin(cases.open_with, 2, {"NEURON_RT_VISIBLE_CORES": "3"}, env=env, backend="cpu")
    everyone_says(answers, "^WorldError: .*ranks 0, 1 have core 3 of .*Launch no more ranks")


def test_two_cores_of_one_rank_are_an_error_on_every_rank_on_the_standin(env: dict[str, str]) -> None:
    answers = on_standin(cases.open_with, 2, {"NEURON_RT_VISIBLE_CORES": "0-1"}, env=env, backend="cpu")
    everyone_says(answers, "^WorldError: .*rank 0: NEURON_RT_VISIBLE_CORES='0-1' are 2 logical cores")


def test_a_rank_that_is_killed_while_the_vendors_group_opens_is_named_on_every_other_on_the_standin(
    env: dict[str, str],
) -> None:
    with standin():
        *others, (ended, _) = ranks.outcomes(4, cases.dies_while_it_opens, 3, env=env, timeout=150, grace=100)
    assert ended == "died"
    for rank, (kind, answer) in enumerate(others):
        assert kind == "returned", answer
        error, seconds = answer
        assert error.startswith(f"CollectiveError: rank {rank} of 4 in group "), error
        assert "opening the process group 'neuron' failed: rank 3 died" in error
        assert seconds < 100


def test_a_group_that_is_not_symmetric_is_of_parts_that_are_on_the_standin(env: dict[str, str], tmp_path: Path) -> None:
    cores = [str(tmp_path / f"cores{host}") for host in range(2)]
    for folder in cores:
        Path(folder).mkdir()
    answers = on_standin(cases.on_two_hosts, 4, cores, env=env, backend="cpu")
    assert [each["world"] for each in answers] == ["4.0"] * 4
    assert [each["symmetric"] for each in answers] == ["2.0", "", "2.0", ""]
    assert [each["not symmetric"] for each in answers] == ["2.0", "", "", "2.0"]
    for rank in (0, 3):
        assert "has the same devices of each host that it is on" in answers[rank]["explained"]
