"""Groups that a vendor's own process group carries: torch's verbs go straight to it, and `devices.*` stands on it."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import native_site
import pytest
import ranks
import test_torch_programs as programs
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from shared_memory import HAS_SHARED_MEMORY
from throwaway_plugins import Site

import devices
from devices.algorithms import ring
from devices.errors import CollectiveError, DevicesError, MismatchError, UnsupportedError, WorldError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("native")
    native_site.install(made)
    return str(made)


def run(size: int, program: Callable[..., Any], folder: str, *args: Any) -> list[Any]:
    return ranks.run(size, program, folder, *args, env=native_site.ENVIRONMENT)


def ours_called(call: Callable[[], object]) -> list[str]:
    """Return the functions of `devices` and of its plugins that run while `call` does."""
    seen: list[str] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and ("/devices/" in path.removeprefix(str(ROOT)) or "throwaway_native" in path):
            seen.append(f"{path}:{frame.f_code.co_qualname}")

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


def torchs_verbs(group: dist.ProcessGroup | None) -> dict[str, Callable[[], object]]:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    x, wide = torch.ones(2), torch.ones(2 * size)
    to, by = dist.get_global_rank(group or dist.group.WORLD, (rank + 1) % size), (rank - 1) % size
    by = dist.get_global_rank(group or dist.group.WORLD, by)

    def messages() -> None:
        operations = [dist.P2POp(dist.isend, x, to, group), dist.P2POp(dist.irecv, torch.empty(2), by, group)]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    return {
        "all_reduce": lambda: dist.all_reduce(x, group=group),
        "all_reduce, asynchronous": lambda: dist.all_reduce(x, group=group, async_op=True).wait(),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(wide, x, group=group),
        "all_gather": lambda: dist.all_gather(list(wide.chunk(size)), x, group=group),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(x, wide, group=group),
        "all_to_all_single": lambda: dist.all_to_all_single(torch.empty(2 * size), wide, group=group),
        "broadcast": lambda: dist.broadcast(x, group=group, group_src=0),
        "barrier": lambda: dist.barrier(group),
        "messages": messages,
        "all_gather_object": lambda: dist.all_gather_object([None] * size, rank, group=group),
        "functional all_reduce": lambda: functional.all_reduce(x, "sum", group or dist.group.WORLD).sum(),
    }


def straight(folder: str) -> None:
    native_site.find(folder)
    dist.init_process_group("devices")
    world = devices.init()
    assert "torch's own verbs go straight to it" in world.explain()
    mesh = world.mesh({"dp": -1})
    for group in (None, dist.new_group([0, 1]), mesh.get_group()):
        found = group or dist.group.WORLD
        assert type(found) is dist.ProcessGroup
        assert type(found._get_backend(torch.device("cpu"))) is dist.ProcessGroupGloo
        for name, verb in torchs_verbs(group).items():
            assert ours_called(verb) == [], name
    x = torch.full((2,), float(dist.get_rank()))
    assert ours_called(lambda: devices.all_reduce(x)) != [], "what looks for our functions finds none"
    dist.all_reduce(x)
    assert x.tolist() == [1.0, 1.0]
    dist.destroy_process_group()


def test_torchs_verbs_reach_the_vendors_group_with_no_function_of_ours_in_between(folder: str) -> None:
    run(2, straight, folder)


def through_init(folder: str) -> list[float]:
    native_site.find(folder)
    with devices.init("native") as world:
        assert type(dist.group.WORLD) is dist.ProcessGroup
        half = dist.new_group([0, 1])
        x = torch.full((3,), 1.0 + world.rank, requires_grad=True)
        total = devices.all_reduce(x)
        (total * torch.arange(3.0)).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [0.0, 3.0, 6.0]
        # gloo has no reduction of these, and no permute; both are composed of what it has.
        assert devices.all_reduce(torch.full((2,), world.rank + 1.0, dtype=torch.bfloat16)).tolist() == [6.0, 6.0]
        assert devices.all_reduce(torch.tensor(3 - world.rank), op="bxor", async_op=True).result() == 3 ^ 2 ^ 1
        assert devices.permute(torch.tensor([world.rank]), pairs=[(0, 2), (2, 0)]).item() == (2, 0, 0)[world.rank]
        with pytest.raises(UnsupportedError, match="use_schedule: torch's own backend ProcessGroupGloo carries"):
            devices.use_schedule(ring.all_reduce(3))
        if world.rank < 2:
            assert devices.all_gather(torch.tensor([world.rank]), half).tolist() == [0, 1]
        return total.tolist()


def test_our_verbs_are_right_over_it_and_what_it_lacks_is_composed(folder: str) -> None:
    assert run(3, through_init, folder) == [[6.0, 6.0, 6.0]] * 3


def beside_the_cpu(folder: str) -> None:
    native_site.find(folder)
    dist.init_process_group("devices")
    world, group = devices.init(), dist.new_group([0, 1])
    assert "torch's own verbs go straight to it, those on CPU tensors to gloo" in world.explain()
    there, here = torch.ones(3, device="meta"), torch.full((3,), float(world.rank))
    for over in (None, group):
        found = over or dist.group.WORLD
        assert type(found._get_backend(torch.device("meta"))).__name__ == "FakeProcessGroup"
        assert type(found._get_backend(torch.device("cpu"))) is dist.ProcessGroupGloo
        total = here.clone()
        assert ours_called(lambda over=over: dist.all_reduce(there, group=over)) == []
        assert ours_called(lambda total=total, over=over: dist.all_reduce(total, group=over)) == []
        assert total.tolist() == [1.0] * 3
        names: list[Any] = [None, None]
        dist.all_gather_object(names, f"rank {world.rank}", group=over)
        assert names == ["rank 0", "rank 1"]
        assert devices.all_reduce(there, over).device.type == "meta"
        assert devices.all_reduce(here, over).tolist() == [1.0] * 3
    if HAS_SHARED_MEMORY:
        with pytest.raises(MismatchError):
            devices.all_reduce(torch.ones(2 + world.rank))
    dist.destroy_process_group()


def test_cpu_tensors_in_an_accelerators_group_go_over_gloo_by_torch_and_our_path_by_us(tmp_path: Path) -> None:
    native_site.install_beside_the_cpu(tmp_path)
    run(2, beside_the_cpu, str(tmp_path))


def closed(folder: str) -> None:
    native_site.find(folder)
    dist.init_process_group("devices")
    world, pair = dist.group.WORLD, dist.new_group([0, 1])
    assert devices.all_reduce(torch.ones(1), pair).item() == 2
    dist.destroy_process_group(pair)
    with pytest.raises(WorldError, match="the group is closed"):
        devices.all_reduce(torch.ones(1), pair)
    assert devices.all_reduce(torch.ones(1)).item() == 2
    dist.destroy_process_group()
    with pytest.raises(WorldError, match="the group is closed"):
        devices.all_reduce(torch.ones(1), world)
    del world, pair
    with devices.init("native"):
        assert devices.all_reduce(torch.ones(1)).item() == 2
        for _ in range(5):
            dist.destroy_process_group(dist.new_group([0, 1]))
        gc.collect()
        from devices.c10d import lanes as c10d_lanes

        assert len(c10d_lanes._native) == 1, "the lanes of groups that nobody has any more are kept"


def test_what_torch_destroys_is_closed_and_forgotten_and_a_world_may_be_opened_again(folder: str) -> None:
    run(2, closed, folder)


def late(folder: str) -> None:
    native_site.find(folder)
    dist.init_process_group("devices", timeout=timedelta(seconds=3))
    began = time.monotonic()
    if dist.get_rank() == 0:
        with pytest.raises(DevicesError, match="rank 0 of 2 in group '0': all_reduce failed"):
            devices.all_reduce(torch.ones(1))
        assert time.monotonic() - began < 60
    else:
        time.sleep(6)
    dist.destroy_process_group()


def test_a_peer_that_does_not_come_is_an_error_within_the_groups_timeout(folder: str) -> None:
    run(2, late, folder)


def aborted(folder: str) -> None:
    native_site.find(folder)
    began = time.monotonic()

    def fail() -> None:
        with devices.init("native", timeout=100) as world:
            if world.rank == 0:
                raise ValueError("no more")
            devices.all_reduce(torch.ones(1))

    with pytest.raises(ValueError if os.environ["RANK"] == "0" else CollectiveError):
        fail()
    assert time.monotonic() - began < 60
    assert not dist.is_initialized()


def test_an_error_aborts_the_vendors_group_so_that_the_others_do_not_wait_for_the_timeout(folder: str) -> None:
    run(2, aborted, folder)


def refused(folder: str) -> None:
    native_site.find(folder)
    dist.init_process_group("devices")
    with pytest.raises(DevicesError, match="DEVICES_NO_PICKLE=1 refuses"):
        dist.all_gather_object([None, None], 1)
    dist.destroy_process_group()


def test_object_collectives_are_refused_where_they_are_to_be(folder: str) -> None:
    ranks.run(2, refused, folder, env={**native_site.ENVIRONMENT, "DEVICES_NO_PICKLE": "1"})


def several_programs() -> list[Any]:
    return [
        programs.data_parallel(None, {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.001}),
        programs.fully_sharded(False),
        programs.tensor_parallel(),
        programs.pipeline("Schedule1F1B"),
        programs.functional(),
    ]


def torch_programs(folder: str) -> None:
    native_site.find(folder)
    programs.over_both(several_programs, 0.0, ())


@pytest.mark.slow
def test_data_parallel_sharded_tensor_parallel_and_pipeline_programs_give_what_gloo_gives(folder: str) -> None:
    run(2, torch_programs, folder)


@pytest.mark.slow
def test_it_keeps_the_laws_of_the_verbs(folder: str) -> None:
    done = Site(Path(folder), timeout=550).run("-m", "devices", "conformance", "native", "--only", "verbs.*")
    assert done.returncode == 0, done.stdout + done.stderr
