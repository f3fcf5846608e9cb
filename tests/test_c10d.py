"""Every verb of torch.distributed over the process group "devices", beside the same call over gloo."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist

MOVED = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64,
    torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64,
)  # fmt: skip
ADDED = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int32, torch.int64)
OPS = ("SUM", "PRODUCT", "MIN", "MAX")

# By the name that torch has had since 2.13, or by the older one.
all_gather_flat = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_flat = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Return small whole numbers, others on each rank: their sums and products are exact in every dtype."""
    generator = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
    return torch.randint(0, 4, shape, generator=generator).to(dtype)


def strided(group: Any, *shape: int, **options: Any) -> torch.Tensor:
    """Return the same, not contiguous; but contiguous for gloo, which takes nothing else in most verbs."""
    tensor = values(*reversed(shape), **options).permute(*reversed(range(len(shape))))
    assert not tensor.is_contiguous()
    return tensor.contiguous() if dist.get_backend(group) == "gloo" else tensor


def done(work: Any) -> None:
    if work is not None:
        work.wait()


# Each case runs over ours, synchronous and not, and over gloo, and returns what must then be equal.


def all_reduce(group: Any, async_op: bool) -> Any:
    results = []
    for dtype in ADDED:
        for op in OPS:
            for tensor in (values(5, dtype=dtype), strided(group, 2, 3, dtype=dtype), values(0, dtype=dtype)):
                done(dist.all_reduce(tensor, getattr(dist.ReduceOp, op), group, async_op))
                results.append(tensor)
    for op in ("BAND", "BOR", "BXOR"):
        results.append(values(4, dtype=torch.int32))
        done(dist.all_reduce(results[-1], getattr(dist.ReduceOp, op), group, async_op))
    results.append(values(2, dtype=torch.complex64))
    done(dist.all_reduce(results[-1], group=group, async_op=async_op))
    return results


def all_reduce_of_a_parameter(group: Any, async_op: bool) -> Any:
    parameter = torch.nn.Parameter(values(3))
    done(dist.all_reduce(parameter, group=group, async_op=async_op))
    assert parameter.requires_grad
    assert parameter.is_leaf
    return parameter.detach()


def all_reduce_of_sparse_tensors(group: Any, async_op: bool) -> Any:
    results = []
    rank = dist.get_rank()
    for entries in (rank, 2 * rank + 1):  # no entry at all on rank 0, and several for one place
        indices = torch.arange(2 * entries).reshape(2, entries) % 3
        results.append(torch.sparse_coo_tensor(indices, values(entries, 2), (3, 3, 2)))
        done(dist.all_reduce(results[-1], group=group, async_op=async_op))
    return [result.to_dense() for result in results]


def coalesced(group: Any, async_op: bool) -> Any:
    group = group or dist.group.WORLD
    size, results = dist.get_world_size(), []
    kinds = (torch.float32,) * 3
    with dist._coalescing_manager(group, async_ops=async_op) as manager:
        for seed, dtype in enumerate(kinds):
            results.append(strided(group, 2, 3, dtype=dtype, seed=seed))
            dist.all_reduce(results[-1], dist.ReduceOp.MAX, group)
    manager.wait()
    with dist._coalescing_manager(group, async_ops=async_op) as manager:
        for seed, dtype in enumerate(kinds):
            results.append(torch.zeros(2 * size, dtype=dtype))
            all_gather_flat(results[-1], values(2, dtype=dtype, seed=seed), group)
    manager.wait()
    return results


def broadcast(group: Any, async_op: bool) -> Any:
    results = []
    for src in range(dist.get_world_size()):
        for dtype in MOVED:
            for tensor in (values(5, dtype=dtype), strided(group, 2, 3, dtype=dtype), values(0, dtype=dtype)):
                done(dist.broadcast(tensor, src, group, async_op))
                results.append(tensor)
    nan = torch.full((2,), float("nan")) if dist.get_rank() == 0 else torch.ones(2)
    done(dist.broadcast(nan, 0, group, async_op))
    return [*results, nan]


def reduce(group: Any, async_op: bool) -> Any:
    results = []
    for dst in range(dist.get_world_size()):
        for op in OPS:
            for tensor in (values(4, dtype=torch.float64), strided(group, 2, 3, dtype=torch.int32)):
                done(dist.reduce(tensor, dst, getattr(dist.ReduceOp, op), group, async_op))
                results.append(tensor if dist.get_rank() == dst else None)
    return results


def all_gather(group: Any, async_op: bool) -> Any:
    size, results = dist.get_world_size(), []
    for dtype in MOVED:
        gathered = [torch.zeros(3, 2, dtype=dtype) for _ in range(size)]
        done(dist.all_gather(gathered, strided(group, 3, 2, dtype=dtype), group, async_op))
        results += gathered
        whole = torch.zeros(size * 3, 2, dtype=dtype)
        done(all_gather_flat(whole, values(3, 2, dtype=dtype), group, async_op))
        results.append(whole)
    return results


def reduce_scatter(group: Any, async_op: bool) -> Any:
    size, results = dist.get_world_size(), []
    for dtype in (torch.float32, torch.int64):
        for op in OPS:
            mine = torch.zeros(3, 2, dtype=dtype)
            done(reduce_scatter_flat(mine, values(size * 3, 2, dtype=dtype), getattr(dist.ReduceOp, op),
                                            group, async_op))  # fmt: skip
            results.append(mine)
    return results


def all_to_all(group: Any, async_op: bool) -> Any:
    size, rank, results = dist.get_world_size(), dist.get_rank(), []
    for dtype in MOVED:
        output = torch.zeros(size * 2, 3, dtype=dtype)
        done(dist.all_to_all_single(output, strided(group, size * 2, 3, dtype=dtype), None, None, group, async_op))
        results.append(output)
        sent, coming = list(range(rank, rank + size)), [other + rank for other in range(size)]
        output = torch.zeros(sum(coming), 2, dtype=dtype)
        done(dist.all_to_all_single(output, values(sum(sent), 2, dtype=dtype), coming, sent, group, async_op))
        results.append(output)
    return results


def gather(group: Any, async_op: bool) -> Any:
    size, rank, results = dist.get_world_size(), dist.get_rank(), []
    for dst in range(size):
        gathered = [torch.zeros(2, 3) for _ in range(size)] if rank == dst else None
        done(dist.gather(strided(group, 2, 3), gathered, dst, group, async_op))
        results.append(gathered)
    return results


def scatter(group: Any, async_op: bool) -> Any:
    size, rank, results = dist.get_world_size(), dist.get_rank(), []
    for src in range(size):
        mine = strided(group, 2, 3)
        parts = [values(2, 3, seed=seed) for seed in range(size)] if rank == src else None
        done(dist.scatter(mine, parts, src, group, async_op))
        results.append(mine)
    return results


def point_to_point(group: Any, async_op: bool) -> Any:
    size, rank = dist.get_world_size(), dist.get_rank()
    right, left = (rank + 1) % size, (rank - 1) % size
    first, second, third = torch.zeros(3), strided(group, 2, 3), torch.zeros(2, dtype=torch.complex64)
    works = [
        dist.isend(values(3), right, group, tag=1),
        dist.isend(strided(group, 2, 3, seed=1), right, group, tag=2),
        dist.irecv(second, left, group, tag=2),
        dist.irecv(first, left, group, tag=1),
    ]
    for work in works:
        work.wait()
        assert work.is_completed()
    batch = [
        dist.P2POp(dist.isend, values(2, dtype=torch.complex64), right, group),
        dist.P2POp(dist.irecv, third, left, group),
    ]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    return first, second, third


def messages_from_any_source(group: Any, async_op: bool) -> Any:
    size, rank = dist.get_world_size(), dist.get_rank()
    if rank != 0:
        dist.send(torch.tensor([rank, rank * rank]), 0, group, tag=7)
        return None
    found = {}
    for _ in range(size - 1):
        tensor = torch.zeros(2, dtype=torch.int64)
        source = dist.recv(tensor, None, group, tag=7)
        found[source] = tensor.tolist()
    return torch.tensor([found[source] for source in range(1, size)])


def objects(group: Any, async_op: bool) -> Any:
    size, rank = dist.get_world_size(), dist.get_rank()
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, {"rank": rank}, group)
    told = [f"from {rank}", rank]
    dist.broadcast_object_list(told, 1, group)
    gathered: list[Any] | None = [None] * size if rank == 0 else None
    dist.gather_object("x" * rank, gathered, 0, group)
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, [f"for {other}" for other in range(size)] if rank == 0 else None, 0, group)
    assert everyone == [{"rank": other} for other in range(size)]
    assert told == ["from 1", 1]
    assert gathered == (["x" * other for other in range(size)] if rank == 0 else None)
    assert mine == [f"for {rank}"]
    return ()


CASES = (
    all_reduce, all_reduce_of_a_parameter, all_reduce_of_sparse_tensors, coalesced, broadcast, reduce, all_gather,
    reduce_scatter, all_to_all, gather, scatter, point_to_point, messages_from_any_source, objects,
)  # fmt: skip


def over_both() -> dict[str, str]:
    """Return what is wrong, by case."""
    dist.init_process_group("devices")
    assert dist.get_backend() == "devices"
    gloo = dist.new_group(backend="gloo")
    wrong = {}
    for case in CASES:
        try:
            for async_op in (False, True):
                ours, theirs = case(None, async_op), case(gloo, async_op)
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
            wrong[case.__name__] = ""
        except Exception:
            wrong[case.__name__] = traceback.format_exc()
    dist.destroy_process_group()
    return wrong


@functools.cache
def compared_on_ranks() -> list[dict[str, str]]:
    return ranks.run(3, over_both)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_verb_gives_the_bits_that_gloo_gives(case: Callable[[Any, bool], Any]) -> None:
    for rank, wrong in enumerate(compared_on_ranks()):
        assert not wrong[case.__name__], f"rank {rank}: {wrong[case.__name__]}"


# What gloo lacks, or does in another arithmetic: the expected numbers come from plain torch.


def beyond_gloo() -> None:
    dist.init_process_group("devices")
    size, rank = dist.get_world_size(), dist.get_rank()

    def equal(found: Any, expected: Any) -> None:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    # A mean, on every dtype that has one.
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        mean = torch.tensor([1.0, 2.0], dtype=dtype) * (rank + 1)
        dist.all_reduce(mean, dist.ReduceOp.AVG)
        equal(mean, torch.tensor([2.5, 5.0], dtype=dtype))
        part = torch.zeros(1, dtype=dtype)
        reduce_scatter_flat(part, torch.arange(size, dtype=dtype) * (rank + 1), dist.ReduceOp.AVG)
        equal(part, torch.tensor([2.5 * rank], dtype=dtype))

    # 16-bit floats are added up in float32 and rounded once: 256 + 1 + 1 + 1, where bfloat16 has 256 and 258.
    for dtype, large in ((torch.bfloat16, 256.0), (torch.float16, 2048.0)):
        total = torch.tensor([large if rank == 0 else 1.0], dtype=dtype)
        dist.all_reduce(total)
        equal(total, torch.tensor([large + size - 1], dtype=torch.float32).to(dtype))

    # A factor for each rank.
    for factor in (0.5, torch.tensor([0.5])):
        scaled = torch.full((2,), float(rank))
        dist.all_reduce(scaled, dist._make_nccl_premul_sum(factor))
        equal(scaled, torch.full((2,), 3.0))

    # On bool, sum and max mean "or", product and min mean "and".
    for op, expected in (("SUM", True), ("MAX", True), ("PRODUCT", False), ("MIN", False)):
        flag = torch.tensor([rank == 1, True, False])
        dist.all_reduce(flag, getattr(dist.ReduceOp, op))
        equal(flag, torch.tensor([expected, True, False]))

    # A NaN goes through min and max from wherever it comes.
    for place in range(size):
        worst = torch.tensor([float("nan") if rank == place else 1.0])
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        equal(worst.isnan(), torch.tensor([True]))

    # Parts of unequal size.
    gathered = [torch.zeros(other, 2) for other in range(size)]
    dist.all_gather(gathered, torch.full((rank, 2), float(rank)))
    equal(gathered, [torch.full((other, 2), float(other)) for other in range(size)])
    mine = torch.zeros(rank)
    dist.reduce_scatter(mine, [torch.full((other,), float(rank)) for other in range(size)])
    equal(mine, torch.full((rank,), 6.0))
    received = [torch.zeros(other + rank) for other in range(size)]
    dist.all_to_all(received, [torch.full((other + rank,), float(rank)) for other in range(size)])
    equal(received, [torch.full((other + rank,), float(other)) for other in range(size)])

    # Several dtypes in one coalesced reduce-scatter.
    parts = [torch.zeros(2), torch.zeros(1, dtype=torch.int32), torch.zeros(3)]
    with dist._coalescing_manager(dist.group.WORLD):
        for part in parts:
            whole = torch.arange(size * part.numel()).to(part.dtype)
            reduce_scatter_flat(part, whole)
    for part in parts:
        equal(part, (size * torch.arange(size * part.numel()).chunk(size)[rank]).to(part.dtype))

    # Dtypes that gloo does not know: float8 has no arithmetic, but moves.
    for dtype in (torch.int16, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2):
        mine = torch.arange(3).to(dtype) if rank == 2 else torch.zeros(3).to(dtype)
        dist.broadcast(mine, 2)
        equal(mine.float(), torch.arange(3.0))
        stacked = torch.zeros(size, 1).to(dtype)
        all_gather_flat(stacked, torch.full((1,), float(rank)).to(dtype))
        equal(stacked.float(), torch.arange(float(size)).view(size, 1))
        swapped = torch.zeros(size).to(dtype)
        dist.all_to_all_single(swapped, torch.full((size,), float(rank)).to(dtype))
        equal(swapped.float(), torch.arange(float(size)))
        if not dtype.is_floating_point:
            dist.all_reduce(mine)
            equal(mine.to(torch.int64), size * torch.arange(3))

    dist.destroy_process_group()


def test_what_gloo_lacks_gives_the_numbers_of_plain_torch() -> None:
    ranks.run(4, beyond_gloo)


def bad_calls() -> None:
    dist.init_process_group("devices")
    ones = torch.ones(3)
    for call, error, words in (
        (lambda: dist.all_reduce(torch.ones(2, dtype=torch.int32), dist.ReduceOp.AVG), TypeError, "avg"),
        (lambda: dist.all_reduce(ones, dist.ReduceOp.BAND), TypeError, "band"),
        (lambda: all_gather_flat(torch.ones(5), ones), ValueError, "6 elements, got 5"),
        (lambda: reduce_scatter_flat(torch.ones(2), ones), ValueError, "4 elements, got 3"),
        (lambda: dist.all_to_all_single(ones, ones), ValueError, "dim 0"),
        (lambda: dist.all_to_all_single(ones, ones, [1, 1], [1, 2]), ValueError, "adding up to the 3 rows"),
        (lambda: dist.all_reduce(torch.ones(1, device="meta")), ValueError, "'meta'"),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "rank" in str(caught.value) or error is TypeError
    # Nothing was sent, so the next verb is right.
    dist.all_reduce(ones)
    assert ones.tolist() == [2.0] * 3
    dist.destroy_process_group()


def test_a_wrong_call_is_an_error_on_the_calling_rank_and_sends_nothing() -> None:
    ranks.run(2, bad_calls)


def subgroups() -> list[Any]:
    dist.init_process_group("devices")
    rank = dist.get_rank()
    found = []
    mine, _ = dist.new_subgroups(2)
    own = dist.new_group([0, 3])
    for group in (mine, own):
        if rank in dist.get_process_group_ranks(group) if group != dist.GroupMember.NON_GROUP_MEMBER else False:
            assert dist.get_backend(group) == "devices"
            total = torch.tensor([10.0**rank])
            dist.all_reduce(total, group=group)
            found.append((dist.get_rank(group), total.item()))
    gathered = [torch.zeros(1) for _ in range(2)] if rank in (0, 3) else None
    if gathered:
        dist.all_gather(gathered, torch.tensor([float(rank)]), group=own)
        found.append([tensor.item() for tensor in gathered])
    dist.destroy_process_group()
    return found


def test_subgroups_reduce_over_their_members_alone() -> None:
    assert ranks.run(4, subgroups) == [
        [(0, 11.0), (0, 1001.0), [0.0, 3.0]],
        [(1, 11.0)],
        [(0, 1100.0)],
        [(1, 1100.0), (1, 1001.0), [0.0, 3.0]],
    ]


# Asynchronous, really.


def starts_alone() -> None:
    dist.init_process_group("devices")
    rank, store = dist.get_rank(), dist.distributed_c10d._get_default_store()
    tensors = {
        "native": torch.ones(3),
        "composed": torch.ones(3, dtype=torch.bfloat16),
        "not contiguous": torch.ones(2, 3).t(),
        "sparse is gathered": torch.ones(4),
    }
    for name, tensor in tensors.items():
        told = threading.Event()
        if rank == 1:
            # Joins only once rank 0 has come back from its call.
            store.wait([f"{name} has returned"], timedelta(seconds=20))
        work = dist.all_reduce(tensor, async_op=True)
        if rank == 0:
            assert not work.is_completed()
            assert work.exception() is None
        future = work.get_future().then(lambda done, told=told: (told.set(), done.value())[1])
        store.set(f"{name} has returned", "")
        # Nobody waits for the work: the future is completed beside.
        assert told.wait(20), name
        assert [result.tolist() for result in future.wait()] == [tensor.tolist()]
        assert tensor.unique().tolist() == [2.0]
        work.wait()
        assert work.is_completed()
        assert work.is_success()
        assert work.exception() is None
        assert torch.equal(work.result()[0], tensor)
    dist.destroy_process_group()


def test_an_asynchronous_verb_returns_before_its_peer_joins_and_completes_its_future_beside_the_caller() -> None:
    ranks.run(2, starts_alone)


def waits_in_vain() -> None:
    dist.init_process_group("devices", timeout=timedelta(seconds=1))
    store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
    store.set_timeout(timedelta(seconds=20))
    if rank == 0:
        work = dist.all_reduce(torch.ones(2), async_op=True)
        with pytest.raises(RuntimeError, match="was not done within"):
            work.wait(timedelta(seconds=0.1))
        with pytest.raises(RuntimeError, match=r"rank 0 of 2.*all_reduce.*failed.*(?i:time)"):
            work.wait()
        assert not work.is_success()
        assert isinstance(work.exception(), TimeoutError)
        with pytest.raises(RuntimeError, match=r"all_reduce.* failed"):
            work.get_future().wait()
        store.set("over", "")
    else:
        store.wait(["over"])


def test_a_verb_whose_peer_stays_away_says_so_when_the_timeout_is_over() -> None:
    ranks.run(2, waits_in_vain)


def monitored() -> None:
    dist.init_process_group("devices")
    group, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    group.monitored_barrier(timedelta(seconds=20))
    if rank == 0:
        with pytest.raises(RuntimeError, match="Rank 0 timed out in monitoredBarrier: rank 2 of 3 did not come"):
            group.monitored_barrier(timedelta(seconds=1))
    elif rank == 1:
        with pytest.raises(RuntimeError, match="this rank came, but rank 0 missed rank 2"):
            group.monitored_barrier(timedelta(seconds=20))
    else:
        next(group._monitored)
    dist.barrier()
    if rank == 0:
        with pytest.raises(RuntimeError, match="ranks 1, 2 of 3 did not come"):
            group.monitored_barrier(timedelta(seconds=0.1), wait_all_ranks=True)
    # torch's function looks at the group's name and, up to torch 2.13, refuses all but gloo's.
    refused = pytest.raises(ValueError, match="only implemented for GLOO")
    with contextlib.nullcontext() if torch.__version__ >= "2.14" else refused:
        dist.monitored_barrier()
    dist.barrier()
    assert size == 3
    dist.destroy_process_group()


def test_the_monitored_barrier_names_the_ranks_that_did_not_come() -> None:
    ranks.run(3, monitored)


def with_a_device() -> None:
    dist.init_process_group("devices")
    first, second = torch.ones(2), torch.ones(3)
    with dist._coalescing_manager(dist.group.WORLD, torch.device("cpu"), async_ops=True) as manager:
        works = [dist.broadcast(first * dist.get_rank(), 1, async_op=True)]
        dist.all_reduce(second)
    manager.wait()
    assert all(work.is_completed() for work in works)
    assert second.tolist() == [2.0] * 3
    dist.destroy_process_group()


def test_the_coalescing_manager_with_a_device_waits_for_all_that_was_started_in_it() -> None:
    ranks.run(2, with_a_device)


def plain_calls() -> None:
    """Call the group as torch's C++ and its users do, without options objects."""
    dist.init_process_group("devices")
    group, rank = dist.group.WORLD, dist.get_rank()
    total, largest, told = torch.ones(2), torch.tensor([float(rank)]), torch.tensor([float(rank)])
    group.allreduce(total).wait()
    group.allreduce([largest], dist.ReduceOp.MAX).wait()
    group.broadcast(told, root=1).wait()
    assert (total.tolist(), largest.item(), told.item()) == ([2.0, 2.0], 1.0, 1.0)
    gathered = [torch.zeros(1), torch.zeros(1)]
    group.allgather(gathered, torch.tensor([float(rank)])).wait()
    assert [tensor.item() for tensor in gathered] == [0.0, 1.0]
    group.barrier().wait()
    # By the names that torch had before 2.13.
    whole = torch.zeros(2)
    group._allgather_base(whole, torch.tensor([float(rank)])).wait()
    assert whole.tolist() == [0.0, 1.0]
    part = torch.zeros(1)
    group._reduce_scatter_base(part, torch.tensor([1.0, 2.0])).wait()
    assert part.item() == 2.0 * (rank + 1)
    swapped = torch.zeros(2)
    group.alltoall_base(swapped, torch.tensor([rank, rank + 10.0]), [], []).wait()
    assert swapped.tolist() == ([0.0, 1.0] if rank == 0 else [10.0, 11.0])
    outputs = [torch.zeros(2), torch.zeros(2)]
    group.allgather_into_tensor_coalesced(outputs, [torch.tensor([float(rank)]), torch.tensor([rank + 5.0])]).wait()
    assert [tensor.tolist() for tensor in outputs] == [[0.0, 1.0], [5.0, 6.0]]
    parts = [torch.zeros(1), torch.zeros(1)]
    group.reduce_scatter_tensor_coalesced(parts, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]).wait()
    assert [tensor.item() for tensor in parts] == [2.0 * (rank + 1), 2.0 * (rank + 3)]
    # What torch's C++ sees.
    base = dist.ProcessGroup
    assert base.group_name.fget(group) == group.group_name == "0"
    assert group.group_desc == "default_pg"
    assert (group.rank(), group.size(), group.name()) == (rank, 2, "devices")
    with pytest.raises(RuntimeError, match="no backend for devices of type 'cuda'"):
        group._get_backend(torch.device("cuda"))
    dist.destroy_process_group()


def test_the_group_answers_to_old_names_and_to_calls_without_options() -> None:
    ranks.run(2, plain_calls)


# Opening and closing.


def opens_again() -> None:
    for round in range(3):
        dist.init_process_group("devices")
        # The members of a group of one name change from world to world.
        members = [(0, 1), (1, 2), (0, 1, 2)][round]
        group = dist.new_group(members)
        total = torch.ones(1)
        if dist.get_rank() in members:
            dist.all_reduce(total, group=group)
        dist.all_reduce(total)
        inside, outside = len(members), 3 - len(members)
        assert total.item() == inside * inside + outside
        old = dist.group.WORLD
        dist.destroy_process_group()
        assert not dist.is_initialized()
        for call in (lambda old=old: old.allreduce([torch.ones(1)]), lambda old=old: old.barrier()):
            with pytest.raises(RuntimeError, match=r"rank \d of 3 .* closed"):
                call()


def test_a_world_that_was_destroyed_can_be_opened_again_and_the_old_one_says_that_it_is_closed() -> None:
    ranks.run(3, opens_again)


def alone() -> None:
    for round in range(2):
        dist.init_process_group("devices", store=dist.HashStore(), rank=0, world_size=1)
        tensor = torch.full((2,), float(round))
        dist.all_reduce(tensor)
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
        work = dist.all_reduce(tensor, async_op=True)
        assert work.wait()
        assert work.get_future().value()[0] is tensor
        gathered = [torch.zeros(2)]
        dist.all_gather(gathered, tensor)
        assert gathered[0].tolist() == tensor.tolist() == [float(round)] * 2
        with pytest.raises(TypeError, match="avg"):
            dist.all_reduce(torch.ones(2, dtype=torch.int64), dist.ReduceOp.AVG)
        with pytest.raises(TypeError, match="moved but not reduced"):
            dist.all_reduce(torch.ones(2).to(torch.float8_e5m2))
        with pytest.raises(ValueError, match="'meta'"):
            dist.all_reduce(torch.ones(2, device="meta"))
        with pytest.raises(ValueError, match="no other rank"):
            dist.recv(torch.ones(2))
        old = dist.group.WORLD
        dist.destroy_process_group()
        with pytest.raises(RuntimeError, match="closed"):
            dist.all_reduce(tensor, group=old)


def test_a_world_of_one_gives_back_what_it_gets_and_still_checks_the_call() -> None:
    ranks.run(1, alone)


def objects_are_refused() -> None:
    assert os.environ["DEVICES_NO_PICKLE"] == "1"
    dist.init_process_group("devices")
    gloo = dist.new_group(backend="gloo")
    size = dist.get_world_size()
    calls: list[Callable[[Any], Any]] = [
        lambda group: dist.all_gather_object([None] * size, 1, group=group),
        lambda group: dist.broadcast_object_list([1], 0, group=group),
        lambda group: dist.gather_object(1, [None] * size if dist.get_rank() == 0 else None, 0, group=group),
        lambda group: dist.scatter_object_list([None], [1] * size if dist.get_rank() == 0 else None, 0, group=group),
        lambda group: (dist.send_object_list([1], 1, group=group) if dist.get_rank() == 0
                       else dist.recv_object_list([None], 0, group=group)),
    ]  # fmt: skip
    for call in calls:
        call(gloo)
    for call in calls:
        with pytest.raises(NotImplementedError, match="DEVICES_NO_PICKLE=1 refuses torch's object collectives"):
            call(None)
    # What was refused sent nothing.
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == size
    dist.destroy_process_group()


def test_with_no_pickle_object_collectives_are_refused_over_our_group_and_left_alone_over_gloo() -> None:
    ranks.run(2, objects_are_refused, env={"DEVICES_NO_PICKLE": "1"})
