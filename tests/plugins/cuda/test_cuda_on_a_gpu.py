"""What needs an NVIDIA GPU: each test says so by its name, and is skipped where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist

import devices
from devices.errors import UnsupportedError

EXAMPLES = Path(__file__).parents[3] / "examples"
GPUS = torch.cuda.device_count()
needs_one = pytest.mark.skipif(GPUS < 1, reason=f"needs an NVIDIA GPU, found {GPUS}")
needs_two = pytest.mark.skipif(GPUS < 2, reason=f"needs 2 NVIDIA GPUs, found {GPUS}")


def every_verb(shared: bool) -> None:
    """Look at each verb, over NCCL or through host memory; and at torch's own on the tensors of the GPU."""
    with devices.init("cuda") as world:
        rank, size, device = world.rank, world.size, world.device
        assert ("ranks 0 and 1 are on one GPU" in world.explain()) is shared
        assert (type(dist.group.WORLD) is dist.ProcessGroup) is not shared
        mine = torch.arange(4.0, device=device) + 10 * rank
        everyone = torch.stack([torch.arange(4.0) + 10 * other for other in range(size)])
        assert devices.all_reduce(mine).cpu().equal(everyone.sum(0))
        assert devices.all_reduce(mine, op="max", async_op=True).result().cpu().equal(everyone.amax(0))
        assert (
            devices.all_reduce(mine.to(torch.int16), op="bxor")
            .cpu()
            .equal(everyone[0].to(torch.int16) ^ everyone[1].to(torch.int16))
        )
        assert devices.all_gather(mine).cpu().equal(everyone.flatten())
        assert devices.reduce_scatter(mine, sizes=[1, 3]).cpu().equal(everyone.sum(0).split([1, 3])[rank])
        assert devices.all_to_all(mine).cpu().equal(torch.cat([row.chunk(2)[rank] for row in everyone]))
        assert devices.broadcast(mine, src=1).cpu().equal(everyone[1])
        assert devices.scatter(mine if rank == 0 else None, src=0).cpu().equal(everyone[0].chunk(2)[rank])
        assert devices.permute(mine, pairs=[(0, 1), (1, 0)]).cpu().equal(everyone[1 - rank])
        sent = devices.send(mine, dst=1 - rank, tag=3, async_op=True)
        assert devices.recv(torch.empty(4, device=device), src=1 - rank, tag=3).cpu().equal(everyone[1 - rank])
        sent.wait()
        devices.barrier()
        assert devices.all_gather(torch.tensor([rank])).tolist() == [0, 1], "CPU tensors go over the CPU's path"
        x = mine.clone().requires_grad_()
        devices.all_reduce(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [2.0] * 4
        dist.all_reduce(mine)
        assert mine.cpu().equal(everyone.sum(0))
        found: list[Any] = [None, None]
        dist.all_gather_object(found, rank)
        assert found == [0, 1]


@needs_one
def test_ranks_that_share_a_gpu_have_every_verb_on_a_gpu() -> None:
    ranks.run(2, every_verb, True, env={"CUDA_VISIBLE_DEVICES": "0"}, timeout=300)


@needs_two
def test_ranks_with_a_gpu_each_have_every_verb_on_a_gpu() -> None:
    ranks.run(2, every_verb, False, timeout=300)


def captured(size: int) -> None:
    with devices.init("cuda") as world:
        x = torch.ones(8, device=world.device)

        def step() -> list[torch.Tensor]:
            work = devices.all_reduce(x, op="max", async_op=True)
            total, whole = devices.all_reduce(x), devices.all_gather(x)
            return [total, whole, devices.permute(x, pairs=[(0, size - 1)]), work.result()]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        x.fill_(3.0)
        graph.replay()
        torch.cuda.synchronize()
        moved = 3.0 if world.rank == size - 1 else 0.0
        expected = [3.0 * size] * 8, [3.0] * 8 * size, [moved] * 8, [3.0] * 8
        assert [result.tolist() for result in results] == list(expected)


@needs_one
def test_verbs_of_a_world_of_one_are_captured_in_a_graph_on_a_gpu() -> None:
    ranks.run(1, captured, 1, timeout=300)


@needs_two
def test_verbs_over_nccl_are_captured_in_a_graph_on_a_gpu() -> None:
    ranks.run(2, captured, 2, timeout=300)


def through_host_captured() -> None:
    with devices.init("cuda") as world:
        x = torch.ones(2, device=world.device)
        devices.all_reduce(x)
        with (
            pytest.raises(UnsupportedError, match="a graph that is captured"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            devices.all_reduce(x)


@needs_one
def test_what_goes_through_host_memory_refuses_to_be_captured_on_a_gpu() -> None:
    ranks.run(2, through_host_captured, env={"CUDA_VISIBLE_DEVICES": "0"}, timeout=300)


def ordered_by_streams() -> None:
    with devices.init("cuda") as world:
        x = torch.zeros(1 << 20, device=world.device)
        # Long enough that a verb which does not wait for the stream would read zeros.
        torch.cuda._sleep(200_000_000)
        x += world.rank + 1
        work = devices.all_reduce(x, async_op=True)
        other = torch.cuda.Stream()
        with torch.cuda.stream(other):
            total = work.result() * 1
        other.synchronize()
        assert total.min().item() == total.max().item() == 3.0


@needs_two
def test_a_verb_waits_for_the_stream_it_is_called_on_and_the_waiting_stream_for_it_on_a_gpu() -> None:
    ranks.run(2, ordered_by_streams, timeout=300)


@needs_one
def test_the_example_trains_unchanged_on_a_gpu(tmp_path: Path) -> None:
    program = [sys.executable, str(EXAMPLES / "train_gpt.py"), "--steps=20", f"--out={tmp_path}", "--sample=8"]
    environment = {**os.environ, "DEVICES_BACKEND": "cuda"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = json.loads((tmp_path / "losses.json").read_text())["losses"]
    assert losses[-1] < losses[0]


@needs_one
def test_what_a_call_costs_is_measured_on_a_gpu() -> None:
    program = [sys.executable, str(EXAMPLES.parent / "benchmarks" / "overhead.py"), "--cuda", "--json", "--rounds=3"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "torch's verb over NCCL" in json.loads(done.stdout)["4"]


def on_one_gpu() -> str:
    with devices.init("cuda") as world:
        x = torch.arange(1 << 20, device=world.device, dtype=torch.float32) + world.rank
        expected = torch.arange(1 << 20, dtype=torch.float32) * world.size + sum(range(world.size))
        for _ in range(20):
            # Work that is under way when the verb is called, and after it, on this stream.
            torch.cuda._sleep(2_000_000)
            total = devices.all_reduce(x * 1.0)
            assert (total * 1.0).cpu().equal(expected)
        return world.explain()


@needs_one
def test_ranks_that_share_a_gpu_map_each_others_memory_on_a_gpu() -> None:
    for said in ranks.run(2, on_one_gpu, env={"CUDA_VISIBLE_DEVICES": "0"}, timeout=300):
        assert "through memory that the ranks map of each other's devices" in said


@needs_two
def test_ranks_that_share_gpus_map_memory_over_the_links_between_them_on_a_gpu() -> None:
    # LOCAL_RANK counts on from the first GPU again: ranks 0 and 2 share it.
    for said in ranks.run(3, on_one_gpu, env={"CUDA_VISIBLE_DEVICES": "0,1"}, timeout=300):
        assert "through memory that the ranks map of each other's devices" in said


@needs_two
def test_ranks_with_a_gpu_each_map_memory_where_that_is_asked_for_on_a_gpu() -> None:
    for said in ranks.run(2, on_one_gpu, env={"DEVICES_CUDA_GROUPS": "peer"}, timeout=300):
        assert "through memory that the ranks map of each other's devices, for DEVICES_CUDA_GROUPS=peer" in said
