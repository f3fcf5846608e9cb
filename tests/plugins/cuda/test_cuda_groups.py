"""Groups of GPUs. What needs one says so; how ranks that share a GPU are told apart, and served, needs none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist

import devices
from devices import Device, Group, Store
from devices.errors import CollectiveError, CollectiveTimeoutError, UnsupportedError
from devices_cuda import group as cuda

EXAMPLES = Path(__file__).parents[3] / "examples"
GPUS = torch.cuda.device_count()
needs_one = pytest.mark.skipif(GPUS < 1, reason=f"needs an NVIDIA GPU, found {GPUS}")
needs_two = pytest.mark.skipif(GPUS < 2, reason=f"needs 2 NVIDIA GPUs, found {GPUS}")


def at(gpu: str, host: str = "here", nccl: str | None = "2.27.5") -> dict[str, Any]:
    return {"host": host, "gpu": gpu, "nccl": nccl, "pci": None}


def test_ranks_share_a_gpu_where_host_and_gpu_are_the_same() -> None:
    assert cuda.sharing([at("PCI 0:1:0"), at("PCI 0:2:0")]) == []
    assert cuda.sharing([at("PCI 0:1:0"), at("PCI 0:1:0", host="there")]) == []
    assert cuda.sharing([at("PCI 0:1:0"), at("PCI 0:2:0"), at("PCI 0:2:0")]) == [1, 2]


def opened(
    monkeypatch: pytest.MonkeyPatch,
    places: list[dict[str, Any]],
    use: Callable[[Any, int], Any],
    gone: Mapping[int, Callable[[], str]] = MappingProxyType({}),
    seconds: float = 60,
) -> list[Any]:
    """Open a group as ranks of those places do, each in a thread; return what `use` returned or what was raised.

    Args:
        monkeypatch: pytest's.
        places: where the ranks are.
        use: is called with what carries the group, and the rank.
        gone: by rank, what says to it who has died.
        seconds: the group's timeout.
    """
    by_index = dict(enumerate(places))
    monkeypatch.setattr(cuda, "place", by_index.__getitem__)
    kept, size = dist.HashStore(), len(places)
    results: list[Any] = [None] * size

    def open_one(rank: int) -> None:
        store, timeout = Store(kept, gone.get(rank)), timedelta(seconds=seconds)
        group = Group(tuple(range(size)), rank, Device("cuda", "cuda", rank), store, timeout, "g")
        try:
            communicator = cuda.open_group(group)
            results[rank] = use(communicator, rank)
            communicator.close()
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=open_one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


def test_ranks_on_one_gpu_go_through_host_memory_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(communicator: Any, rank: int) -> tuple[str, list[int], Any]:
        everyone = torch.empty(2, dtype=torch.uint8)
        communicator.all_gather(everyone, torch.tensor([rank + 5], dtype=torch.uint8)).wait()
        return communicator.note, everyone.tolist(), communicator.native

    for result in opened(monkeypatch, [at("PCI 0:1:0")] * 2, use):
        assert isinstance(result, tuple), result
        note, everyone, native = result
        assert note.startswith(
            "through host memory, for ranks 0 and 1 are on one GPU, between which NCCL does not go, and the memory of "
            "devices is not mapped: rank 0: "
        )
        assert everyone == [5, 6]
        assert native is None


def test_a_torch_without_nccl_is_an_error_on_every_rank_that_names_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in opened(monkeypatch, [at("PCI 0:1:0"), at("PCI 0:2:0", nccl=None)], lambda *_: None):
        assert isinstance(error, UnsupportedError)
        assert "torch has no NCCL on rank 1" in str(error)


class Connected:
    """What stands for torch's NCCL group: it connects, and hears how it ends."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def eager_connect_single_device(self, device: torch.device) -> None:
        self.calls.append(f"connected {device}")

    def abort(self) -> None:
        self.calls.append("aborted")


def test_a_group_whose_messages_cannot_open_leaves_no_nccl_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Connected(), Connected()]
    monkeypatch.setattr(devices, "torch_backend", lambda _, group: made[group.rank])

    def refuse(*_: object) -> None:
        raise OSError("no memory to pin")

    monkeypatch.setattr(cuda, "open_staged", refuse)
    for error in opened(monkeypatch, [at("PCI 0:1:0"), at("PCI 0:2:0")], lambda *_: None):
        assert str(error) == "no memory to pin"
    assert [each.calls for each in made] == [[f"connected cuda:{rank}", "aborted"] for rank in range(2)]


class Connecting(Connected):
    """One that does in its place what a test says; NCCL's own waits for its peers, whatever becomes of them."""

    def __init__(self, connect: Callable[[], object]) -> None:
        super().__init__()
        self._connect = connect

    def eager_connect_single_device(self, device: torch.device) -> None:
        super().eager_connect_single_device(device)
        self._connect()


def connecting(
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    connect: Callable[[int], object],
    gone: Mapping[int, Callable[[], str]] = MappingProxyType({}),
    seconds: float = 300,
) -> tuple[list[Any], list[Connected]]:
    """Return what became of ranks whose NCCL connects so, and what each of them asked of it."""
    made = [Connecting(partial(connect, rank)) for rank in range(size)]
    monkeypatch.setattr(devices, "torch_backend", lambda _, group: made[group.rank])
    places = [at(f"PCI 0:{rank}:0") for rank in range(size)]
    began = time.monotonic()
    results = opened(monkeypatch, places, lambda *_: None, gone, seconds)
    assert time.monotonic() - began < 60
    return results, [*made]


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a call of a test waits for, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_peer_that_dies_while_nccl_connects_is_named_on_every_rank_at_once(
    monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    all_connect, is_dead = threading.Barrier(3), threading.Event()

    def connect(rank: int) -> None:
        all_connect.wait(60)
        if rank == 2:
            is_dead.set()
        never.wait()

    # Rank 0 is on its host; rank 1, on another, has it from rank 0.
    gone = {0: lambda: "rank 2 died" if is_dead.is_set() else ""}
    (first, second, _), made = connecting(monkeypatch, 3, connect, gone)
    assert type(first) is type(second) is CollectiveError
    assert str(first) == "rank 0 of 3 in group 'g': connecting NCCL failed: rank 2 died"
    assert str(second) == "rank 1 of 3 in group 'g': connecting NCCL failed: rank 2 died, as rank 0 found"
    assert [each.calls for each in made] == [[f"connected cuda:{rank}", "aborted"] for rank in range(3)]


def test_a_rank_whose_nccl_cannot_connect_ends_the_waiting_of_all_others(
    monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    def connect(rank: int) -> None:
        if rank == 1:
            raise RuntimeError("NCCL error: unhandled system error")
        never.wait()

    (first, second), _ = connecting(monkeypatch, 2, connect)
    assert type(first) is CollectiveError
    assert str(first).endswith("connecting NCCL failed: NCCL error: unhandled system error, as rank 1 found")
    assert type(second) is RuntimeError


def test_a_rank_that_cannot_make_its_nccl_group_ends_the_waiting_of_all_others(
    monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    waits = Connecting(never.wait)

    def make(_: str, group: Group) -> Connected:
        if group.rank == 1:
            raise RuntimeError("NCCL error: unhandled cuda error")
        return waits

    monkeypatch.setattr(devices, "torch_backend", make)
    first, second = opened(monkeypatch, [at("PCI 0:1:0"), at("PCI 0:2:0")], lambda *_: None, seconds=100)
    assert type(first) is CollectiveError
    assert str(first).endswith("connecting NCCL failed: NCCL error: unhandled cuda error, as rank 1 found")
    assert type(second) is RuntimeError
    assert waits.calls == ["connected cuda:0", "aborted"]


def test_nccl_that_connects_for_longer_than_the_groups_timeout_is_late(
    monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    # The ranks have as long to begin, which is to be long on a machine that does other things.
    results, _ = connecting(monkeypatch, 2, lambda _: never.wait(), seconds=3)
    for error in results:
        assert isinstance(error, CollectiveTimeoutError)
        assert "connecting NCCL was not done within 3 s; all ranks have begun it" in str(error)


@pytest.mark.skipif(not dist.is_nccl_available(), reason="needs a torch that was built with NCCL")
def test_torchs_nccl_group_has_what_is_asked_of_it() -> None:
    options = dist.ProcessGroupNCCL.Options()
    assert all(hasattr(options, name) for name in ("_timeout", "global_ranks_in_group", "group_name"))
    for name in (
        "eager_connect_single_device", "_set_sequence_number_for_group", "supports_coalescing", "_start_coalescing",
        "_end_coalescing", "_group_start", "_group_end", "abort", "shutdown",
    ):  # fmt: skip
        assert hasattr(dist.ProcessGroupNCCL, name), name


# On hardware.


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
