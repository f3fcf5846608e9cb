"""Groups of GPUs, over what stands for NCCL: ranks that share a GPU are told apart, and who cannot open says so."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices
from devices import Device, Group, Store
from devices.errors import ArgumentError, CollectiveError, CollectiveTimeoutError, UnsupportedError
from devices_cuda import group as cuda


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
    first: int = 0,
) -> list[Any]:
    """Open a group as ranks of those places do, each in a thread; return what `use` returned or what was raised.

    Args:
        monkeypatch: pytest's.
        places: where the ranks are.
        use: is called with what carries the group, and the rank.
        gone: by rank, what says to it who has died.
        seconds: the group's timeout.
        first: the first of the ranks in the world, in which they follow each other.
    """
    by_index = dict(enumerate(places))
    monkeypatch.setattr(cuda, "place", by_index.__getitem__)
    kept, size = dist.HashStore(), len(places)
    results: list[Any] = [None] * size

    def open_one(rank: int) -> None:
        store, timeout = Store(kept, gone.get(rank)), timedelta(seconds=seconds)
        ranks = tuple(range(first, first + size))
        group = Group(ranks, rank, Device("cuda", "cuda", rank), store, timeout, "g")
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


def test_ranks_in_errors_and_notes_are_those_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in opened(monkeypatch, [at("PCI 0:1:0"), at("PCI 0:2:0", nccl=None)], lambda *_: None, first=4):
        assert "torch has no NCCL on rank 5" in str(error)
    for note in opened(monkeypatch, [at("PCI 0:1:0")] * 2, lambda communicator, _: communicator.note, first=4):
        assert note.startswith("through host memory, for ranks 4 and 5 are on one GPU")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["peer", ""], "DEVICES_CUDA_GROUPS is 'peer' on rank 0 and '' on rank 1; make them one"),
        (["mpi", "mpi"], "DEVICES_CUDA_GROUPS is 'mpi'; it can be 'nccl', 'peer' or left unset"),
    ],
)
def test_what_groups_are_to_go_over_is_one_thing_on_all_ranks(settings: list[str], told: str) -> None:
    group = Group((0, 1), 0, Device("cuda", "cuda", 0), Store(dist.HashStore()), timedelta(seconds=1), "g")
    with pytest.raises(ArgumentError, match=re.escape(told)):
        cuda._asked(group, [{"asked": setting} for setting in settings])
    later = Group((4, 5), 0, Device("cuda", "cuda", 0), Store(dist.HashStore()), timedelta(seconds=1), "g")
    with pytest.raises(ArgumentError, match="'peer' on rank 4 and '' on rank 5"):
        cuda._asked(later, [{"asked": "peer"}, {"asked": ""}])
    assert [cuda._asked(group, [{"asked": each}] * 2) for each in ("", "nccl", "peer")] == ["", "nccl", "peer"]


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


def test_nccl_that_connects_after_it_was_given_up_is_aborted_then(monkeypatch: pytest.MonkeyPatch) -> None:
    may_connect = threading.Event()

    def connect(rank: int) -> None:
        if rank == 1:
            raise RuntimeError("NCCL error: unhandled system error")
        may_connect.wait()

    try:
        (first, _), made = connecting(monkeypatch, 2, connect)
        assert type(first) is CollectiveError
        assert made[0].calls == ["connected cuda:0", "aborted"]
    finally:
        may_connect.set()
    deadline = time.monotonic() + 60
    while made[0].calls != ["connected cuda:0", "aborted", "aborted"]:
        assert time.monotonic() < deadline, made[0].calls
        time.sleep(0.01)


def test_nccl_that_is_made_after_it_was_given_up_is_aborted_and_does_not_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_be_made, late = threading.Event(), Connected()

    def make(_: str, group: Group) -> Connected:
        if group.rank == 1:
            raise RuntimeError("NCCL error: unhandled cuda error")
        may_be_made.wait(120)
        return late

    monkeypatch.setattr(devices, "torch_backend", make)
    try:
        first, _ = opened(monkeypatch, [at("PCI 0:1:0"), at("PCI 0:2:0")], lambda *_: None)
        assert type(first) is CollectiveError
        assert late.calls == []
    finally:
        may_be_made.set()
    deadline = time.monotonic() + 60
    while "aborted" not in late.calls:
        assert time.monotonic() < deadline, late.calls
        time.sleep(0.01)
    assert late.calls == ["aborted"]


NEVER_CONNECTS = """
from datetime import timedelta
import torch.distributed as dist
import devices
from devices import Device, Group, Store
from devices_cuda import group as cuda

store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=1000), wait_for_workers=False)


class Waits:
    def __init__(self):
        self.store = store.clone()

    def eager_connect_single_device(self, device):
        # As NCCL waits: in C++, without Python's lock.
        self.store.get("what nobody sets")

    def abort(self):
        # Nor does NCCL let itself be aborted before it has connected.
        self.store.get("what nobody sets")


devices.torch_backend = lambda name, group: Waits()
group = Group((0, 1), 0, Device("cuda", "cuda", 0), Store(store), timedelta(seconds=0.5), "g")
cuda._nccl(group, "2.27.5")
"""


@pytest.mark.slow
def test_a_process_whose_nccl_connects_for_ever_ends_by_its_error() -> None:
    done = subprocess.run([sys.executable, "-c", NEVER_CONNECTS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert "connecting NCCL was not done within 0.5 s; ranks [1] did not begin it" in done.stderr
    assert "nor could NCCL be aborted: it takes longer than 2 s" in done.stderr


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
