"""Opening, describing and closing the world."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

import devices
import devices.testing
from devices.algorithms import ring
from devices.errors import ArgumentError, BackendNotFoundError, MeshError, UnsupportedError, WorldError


def test_without_a_launcher_the_world_is_of_one() -> None:
    with devices.init() as world:
        assert (world.rank, world.size, world.device) == (0, 1, torch.device("cpu"))
        assert dist.get_backend() == "devices"
    assert not dist.is_initialized()


def test_a_second_world_cannot_be_opened_beside_the_first() -> None:
    with devices.init(), pytest.raises(WorldError, match="is open; close it"):
        devices.init()


def test_worlds_can_be_opened_one_after_another() -> None:
    for _ in range(3):
        with devices.init():
            assert devices.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]


def test_closing_twice_does_nothing_and_a_closed_world_says_so() -> None:
    world = devices.init()
    world.close()
    world.close()
    with pytest.raises(WorldError, match="is closed"):
        world.mesh({"dp": 1})
    with pytest.raises(WorldError, match="is closed"), world:
        pass
    with pytest.raises(WorldError, match="no world is open"):
        devices.all_reduce(torch.ones(1))


def test_a_world_whose_group_was_destroyed_without_it_is_closed_and_keeps_no_other_from_opening() -> None:
    world = devices.init()
    dist.destroy_process_group()
    with pytest.raises(WorldError, match="is closed"):
        world.mesh({"dp": 1})
    assert "rank 0 of 1" not in devices.explain()
    with devices.init():
        world.close()
        assert devices.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]


def _each_has_its_own(world: devices.World) -> tuple[str, str]:
    with pytest.raises(WorldError, match=f"rank={world.rank}, size=3.* is open; close it"):
        devices.init()
    if world.rank == 1:
        world.close()
    else:
        dist.barrier(dist.new_group([0, 2], use_local_synchronization=True))
    return devices.explain().rpartition("\n")[2], repr(world)


def test_where_torch_has_a_world_for_each_thread_so_have_we() -> None:
    for rank, (told, shown) in enumerate(devices.testing.run(_each_has_its_own, ranks=3)):
        assert told.startswith(f"rank {rank} of 3") == (rank != 1)
        assert ("closed" in shown) == (rank == 1)


def test_an_unknown_backend_is_an_error_that_names_the_near_one() -> None:
    with pytest.raises(BackendNotFoundError, match="named 'cpuu'; did you mean 'cpu'"):
        devices.init("cpuu")
    assert not dist.is_initialized()


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_a_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(ArgumentError, match="timeout must be positive"):
        devices.init(timeout=timeout)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "0"}, "RANK is set, but WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not"),
        ({"RANK": "two", "WORLD_SIZE": "2"}, "RANK is 'two', not a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE is 2; ranks go from 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is -1"),
    ],
)
def test_variables_that_contradict_each_other_are_named(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(variables) > 1:
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorldError, match=said):
        devices.init()


def test_devices_backend_is_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICES_BACKEND", "cpu")
    with devices.init() as world:
        assert world.backend == "cpu"
        assert "DEVICES_BACKEND=cpu" in devices.explain()
    monkeypatch.setenv("DEVICES_BACKEND", "nonsense")
    with pytest.raises(BackendNotFoundError, match="DEVICES_BACKEND=nonsense"):
        devices.init()


def test_explain_says_of_a_group_which_ranks_it_has() -> None:
    with devices.init() as world:
        assert devices.explain(world.mesh({"dp": 1})).endswith("of ranks 0: nothing carries a group of one")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with devices.init("cpu"):
            told = devices.explain(dist.group.WORLD).splitlines()
    finally:
        dist.destroy_process_group()
    assert len(told) == 1
    assert "of ranks 0: torch's own: cpu:gloo" in told[0]


def test_explain_says_what_was_chosen_and_how_the_ranks_met() -> None:
    assert "backend 'cpu'" in devices.explain()
    with devices.init():
        told = devices.explain()
    assert "backend 'cpu'" in told
    assert "rank 0 of 1 on cpu" in told
    assert "world of one" in told


def test_a_mesh_is_torchs_own_with_the_axes_in_order() -> None:
    with devices.init() as world:
        mesh = world.mesh({"dp": -1, "tp": 1})
        assert type(mesh) is DeviceMesh
        assert mesh.mesh_dim_names == ("dp", "tp")
        assert mesh.shape == (1, 1)


def _mesh_of_four() -> dict[str, list[int]]:
    with devices.init() as world:
        mesh = world.mesh({"dp": 2, "tp": -1})
        return {axis: dist.get_process_group_ranks(mesh[axis].get_group()) for axis in ("dp", "tp")}


def test_the_last_axis_of_a_mesh_varies_fastest() -> None:
    found = ranks.run(4, _mesh_of_four)
    assert [place["tp"] for place in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [place["dp"] for place in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "at least one axis"),
        ({"dp": 2}, "dp=2 need 2 ranks, but the world has 1"),
        ({"dp": -1, "tp": -1}, "one axis may be -1, but dp, tp are"),
        ({"dp": 0}, "positive whole number"),
        ({"dp": -1, "tp": 2}, "do not divide the world's 1 ranks"),
        ({"2p": 1}, "named by a word"),
    ],
)
def test_axes_that_do_not_fit_are_an_error_with_the_numbers(axes: dict[str, int], said: str) -> None:
    with devices.init() as world, pytest.raises(MeshError, match=said):
        world.mesh(axes)


def _adopts(backend: str) -> tuple[str, float, bool]:
    dist.init_process_group(backend)
    with devices.init() as world:
        total = devices.all_reduce(torch.tensor(float(world.rank + 1))).item()
        told = devices.explain()
        if backend == "gloo":
            with pytest.raises(UnsupportedError, match="use_schedule: torch's own group carries"):
                devices.use_schedule(ring.all_reduce(2))
    left_open = dist.is_initialized()
    dist.destroy_process_group()
    return told, total, left_open


@pytest.mark.parametrize("backend", ["gloo", "devices"])
def test_a_process_group_that_torch_has_is_adopted_and_left_open(backend: str) -> None:
    for told, total, left_open in ranks.run(2, _adopts, backend):
        assert "was adopted" in told
        assert total == 3.0
        assert left_open


def _opens_twice() -> list[float]:
    totals = []
    for turn in range(2):
        with devices.init() as world:
            totals.append(devices.all_reduce(torch.tensor(float(world.rank + turn))).item())
    return totals


def test_a_second_world_of_the_same_ranks_does_not_read_the_firsts_keys() -> None:
    assert ranks.run(2, _opens_twice) == [[1.0, 3.0]] * 2


@pytest.mark.slow
def test_a_program_that_leaves_its_world_open_ends_cleanly() -> None:
    program = "import devices, torch; w = devices.init(); print(devices.all_reduce(torch.ones(1)).item())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1.0"


def test_worlds_that_were_closed_leave_the_hook_that_prints_errors_as_it_was() -> None:
    before = sys.excepthook
    for _ in range(2):
        with devices.init():
            pass
    devices.testing.run(lambda world: None, ranks=3)
    assert sys.excepthook is before


@pytest.mark.parametrize("timeout", ["5", None, -1.0, 0, float("nan"), float("inf"), -float("inf"), 1e300, 1e10])
def test_a_timeout_that_is_no_time_is_a_clear_error(timeout: Any) -> None:
    with pytest.raises(ArgumentError, match="timeout"):
        devices.init(timeout=timeout)
