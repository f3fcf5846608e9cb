"""A communicator over a vendor's own process group that has few verbs: what it lacks is composed, or refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices
from devices import _registry
from devices.algorithms import ring
from devices.algorithms.verbs import Verbs
from devices.errors import ArgumentError, UnsupportedError
from devices.testing import run

SUMS = frozenset({torch.float32, torch.uint8})


class FewVerbs:
    """torch's gloo group as a vendor's that has collectives of equal parts and no messages, called by its own names."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in ("_allgather_base", "allreduce", "_reduce_scatter_base", "alltoall_base", "broadcast", "barrier",
                        "rank", "size", "abort", "shutdown"):  # fmt: skip
            raise AttributeError(f"the vendor's group has no {name}")
        self.called.append(name)
        return getattr(self._group, name)

    def alltoall_base(self, output: Any, input: Any, received: list[int], sent: list[int], options: Any) -> Any:
        assert not [*received, *sent], "counts reached a group that takes equal parts alone"
        self.called.append("alltoall_base")
        return self._group.alltoall_base(output, input, received, sent, options)


class Vendor(devices.Backend):
    name = "vendor"
    device_type = "cpu"
    priority = None
    thread_ranks = True

    def probe(self) -> devices.Probe:
        return devices.Probe(True, "for a test")

    def devices(self) -> Sequence[devices.Device]:
        return [devices.Device("vendor", "cpu", 0)]

    def capabilities(self, device: devices.Device) -> devices.Capabilities:
        return devices.Capabilities(_registry.backend("cpu").capabilities(device).dtypes, {"sum": SUMS})

    def open(self, group: devices.Group) -> devices.Communicator:
        gloo = dist.ProcessGroupGloo(group.store.torch, group.rank, group.size, group.timeout)
        verbs = ("all_gather", "all_reduce", "reduce_scatter", "all_to_all", "broadcast", "barrier")
        return devices.ProcessGroupCommunicator(FewVerbs(gloo), "the vendor's", verbs=verbs, even=("all_to_all",))


def group_of(world: devices.World) -> FewVerbs:
    from devices.calls.groups import own_verbs

    found: FewVerbs = own_verbs(None)._communicator._group  # type: ignore[union-attr]
    return found


def every_verb(world: devices.World) -> None:
    rank, size = world.rank, world.size
    mine = torch.arange(6.0) + 10 * rank
    everyone = torch.stack([torch.arange(6.0) + 10 * other for other in range(size)])
    assert devices.all_reduce(mine).equal(everyone.sum(0))
    assert devices.all_reduce(mine, op="max").equal(everyone.amax(0))
    assert devices.all_reduce(mine.double(), op="avg").equal(everyone.double().mean(0))
    assert devices.all_gather(mine).equal(everyone.flatten())
    assert devices.all_gather(mine[: rank + 1], sizes=[1, 2, 3]).equal(
        torch.cat([everyone[other, : other + 1] for other in range(3)])
    )
    assert devices.reduce_scatter(mine).equal(everyone.sum(0)[2 * rank : 2 * rank + 2])
    assert devices.reduce_scatter(mine, sizes=[1, 2, 3]).equal(everyone.sum(0).split([1, 2, 3])[rank])
    assert devices.broadcast(torch.tensor([float("nan"), rank]), src=1).isnan().tolist() == [True, False]
    reduced = devices.reduce(mine, dst=2)
    assert (reduced is None) == (rank != 2)
    assert reduced is None or reduced.equal(everyone.sum(0))
    gathered = devices.gather(mine, dst=1)
    assert (gathered is None) == (rank != 1)
    assert gathered is None or gathered.equal(everyone.flatten())
    assert devices.scatter(mine if rank == 0 else None, src=0).equal(torch.arange(6.0)[2 * rank : 2 * rank + 2])
    assert devices.permute(mine, pairs=[(0, 1), (1, 2), (2, 0)]).equal(everyone[(rank - 1) % 3])
    devices.barrier()
    # The parts of one rank are equal, and those of another are not.
    sizes = [[2, 2, 2], [2, 1, 3], [2, 3, 1]]
    sent = [everyone[other].split(sizes[other])[rank] for other in range(3)]
    assert devices.all_to_all(mine, sizes=sizes).equal(torch.cat(sent))
    assert devices.all_to_all(mine).equal(torch.cat([everyone[other].chunk(3)[rank] for other in range(3)]))
    with pytest.raises(UnsupportedError, match="no point-to-point"):
        devices.send(mine, dst=(rank + 1) % 3)
    with pytest.raises(UnsupportedError, match="no messages from rank to rank, of which a schedule is made"):
        devices.use_schedule(ring.all_reduce(3))
    assert {"_allgather_base", "allreduce", "_reduce_scatter_base", "alltoall_base"} <= set(group_of(world).called)


def test_what_a_vendors_group_lacks_is_composed_from_what_it_has_or_refused() -> None:
    run(every_verb, ranks=3, backend=Vendor())


def test_the_result_is_there_for_who_only_asks_whether_it_is() -> None:
    def polled(world: devices.World) -> list[float]:
        # The vendor adds up float32, so what it returns is still to be written into the 16 bits.
        x = torch.full((3,), world.rank + 1.0, dtype=torch.bfloat16)
        work = dist.all_reduce(x, async_op=True)
        assert work is not None
        while not work.is_completed():
            time.sleep(0.001)
        return x.tolist()

    assert run(polled, ranks=2, backend=Vendor()) == [[3.0] * 3] * 2


def test_equal_parts_go_to_the_vendors_own_all_to_all_and_others_do_not() -> None:
    def count(world: devices.World) -> tuple[int, int]:
        called, x = group_of(world).called, torch.arange(4.0)
        devices.all_to_all(x)
        out = torch.empty(4)
        dist.all_to_all_single(out, x)
        equal = called.count("alltoall_base")
        devices.all_to_all(x, sizes=[[2, 2], [2, 2]])
        dist.all_to_all_single(out, x, [2, 2], [2, 2])
        return equal, called.count("alltoall_base") - equal

    assert run(count, ranks=2, backend=Vendor()) == [(2, 0)] * 2


def test_a_verb_that_no_communicator_has_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="a communicator has no all_reduced_twice"):
        devices.ProcessGroupCommunicator(FewVerbs(None), verbs=("all_gather", "all_reduced_twice"))


class Grouping:
    """A vendor's group that wants messages grouped, as NCCL does; it notes what it is told."""

    supports_coalescing = True

    def __init__(self) -> None:
        self.told: list[Any] = []

    def _start_coalescing(self) -> None:
        self.told.append("begin")

    def _end_coalescing(self) -> str:
        self.told.append("end")
        return "the work of all"

    def send(self, tensors: Any, peer: int, tag: int) -> None:
        self.told.append(("send", peer))

    def recv(self, tensors: Any, peer: int, tag: int) -> None:
        self.told.append(("recv", peer))

    _allgather_base = _reduce_scatter_base = alltoall_base = None


def test_messages_that_go_together_are_grouped_where_the_vendor_groups_them() -> None:
    vendor, x = Grouping(), torch.zeros(1, dtype=torch.uint8)
    communicator = devices.ProcessGroupCommunicator(vendor)
    assert communicator.exchange([devices.Message(x, 1)], [devices.Message(x, 2)]) == "the work of all"
    assert vendor.told == ["begin", ("recv", 2), ("send", 1), "end"]


def group_of_two() -> devices.Group:
    store = devices.Store(dist.HashStore())
    return devices.Group((4, 7), 1, devices.Device("vendor", "cpu", 0), store, timedelta(seconds=9), "pair")


class Finished:
    def wait(self) -> None:
        pass


class Posting(devices.Communicator):
    def __init__(self) -> None:
        self.posted: list[int] = []

    def exchange(self, sends: Any, recvs: Any) -> Any:
        self.posted += [message.peer for message in sends]
        return Finished()


def test_a_programs_messages_go_another_way_where_there_is_one_and_those_of_composed_verbs_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Grouping, "_end_coalescing", lambda vendor: Finished())
    vendor, posting, x = Grouping(), Posting(), torch.zeros(1, dtype=torch.uint8)
    communicator = devices.ProcessGroupCommunicator(vendor, messages=posting, verbs=("exchange",))
    verbs = Verbs(communicator, group_of_two(), devices.Capabilities(frozenset()))
    verbs.send(x, 0)
    assert (posting.posted, vendor.told) == ([0], [])
    verbs.broadcast(x, 1)
    assert (posting.posted, vendor.told) == ([0], ["begin", ("send", 0)])


def test_a_vendors_backend_is_made_as_torch_makes_it() -> None:
    made: list[Any] = []

    def create(options: Any, choice: Any) -> str:
        made.append((options.group_rank, options.group_size, options.timeout, options.global_ranks_in_group))
        return "the vendor's"

    def create_as_before(store: Any, rank: int, size: int, timeout: timedelta) -> str:
        made.append((rank, size, timeout))
        return "the older vendor's"

    dist.Backend.register_backend("some_vendor", create, extended_api=True, devices=["xpu"])
    dist.Backend.register_backend("some_older_vendor", create_as_before, devices=["xpu"])
    assert devices.torch_backend("some_vendor", group_of_two()) == "the vendor's"
    assert devices.torch_backend("some_older_vendor", group_of_two()) == "the older vendor's"
    assert made == [(1, 2, timedelta(seconds=9), [4, 7]), (1, 2, timedelta(seconds=9))]


def test_a_vendor_that_torch_does_not_know_is_an_error_with_the_name() -> None:
    with pytest.raises(
        UnsupportedError, match=r"rank 1 of 2 in group 'pair': this torch, .* no process group 'nobodys'"
    ):
        devices.torch_backend("nobodys", group_of_two())
