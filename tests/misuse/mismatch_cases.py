"""Calls that differ from those of the peers, as programs make them.

A comment `# <0, 2>` marks the line at which ranks 0 and 2 call: the error of every rank must show it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from judging import SIZE, SPLITS, Case, Raises, Returns, Words

import devices

CASES: dict[str, Case] = {}

Body = Callable[[devices.World], Any]


def mismatch(odd: int, field: str | tuple[str, ...], *words: str | tuple[str, ...], ranks: int = 3) -> Any:
    """Add a case whose every rank must get a MismatchError that names the odd rank, the field and the values."""
    said: Words = (f"rank {odd}", field, *words)

    def add(body: Body) -> Body:
        CASES[body.__name__] = Case(body, Raises("MismatchError", said), ranks=ranks, lines=True)
        return body

    return add


@mismatch(2, "verb", "all_reduce", "broadcast")
def another_verb(world: devices.World) -> None:
    x = torch.ones(4)
    if world.rank == 2:
        devices.broadcast(x)  # <2>
    else:
        devices.all_reduce(x)  # <0, 1>


@mismatch(1, "verb", "barrier", "all_gather")
def a_barrier_on_one_rank(world: devices.World) -> None:
    if world.rank == 1:
        devices.barrier()  # <1>
    else:
        devices.all_gather(torch.ones(4))  # <0, 2>


@mismatch(0, "dtype", "float32", "float64")
def another_dtype(world: devices.World) -> None:
    dtype = torch.float64 if world.rank == 0 else torch.float32
    devices.all_reduce(torch.ones(4, dtype=dtype))  # <0, 1, 2>


@mismatch(1, "dtype", "float32", "int32")
def another_dtype_of_the_same_width(world: devices.World) -> None:
    dtype = torch.int32 if world.rank == 1 else torch.float32
    devices.all_gather(torch.ones(4, dtype=dtype))  # <0, 1, 2>


@mismatch(2, SIZE, "8", "6")
def another_shape(world: devices.World) -> None:
    last_batch = torch.ones(6 if world.rank == 2 else 8)
    devices.all_reduce(last_batch)  # <0, 1, 2>


@mismatch(1, SIZE, "0", "8")
def an_empty_tensor_on_one_rank(world: devices.World) -> None:
    found = torch.ones(0 if world.rank == 1 else 8)
    devices.all_reduce(found)  # <0, 1, 2>


@mismatch(1, SIZE, "1024")
def a_large_tensor_on_one_rank(world: devices.World) -> None:
    devices.all_reduce(torch.ones(1 << 20 if world.rank == 1 else 1024))  # <0, 1, 2>


@mismatch(2, "op", "sum", "max")
def another_op(world: devices.World) -> None:
    x = torch.ones(2)
    if world.rank == 0:
        devices.all_reduce(x)  # <0>
    elif world.rank == 1:
        devices.all_reduce(x, op="sum")  # <1>
    else:
        devices.all_reduce(x, op="max")  # <2>


@mismatch(1, "root", "0", "1")
def another_root(world: devices.World) -> None:
    devices.broadcast(torch.ones(2), src=1 if world.rank == 1 else 0)  # <0, 1, 2>


@mismatch(0, SPLITS)
def other_sizes_of_the_same_sum(world: devices.World) -> None:
    sizes = [1, 2, 3] if world.rank == 0 else [3, 2, 1]
    devices.reduce_scatter(torch.ones(6), sizes=sizes)  # <0, 1, 2>


@mismatch(1, SPLITS)
def rows_of_an_all_to_all_that_do_not_meet(world: devices.World) -> None:
    even = [[1, 1, 1], [1, 1, 1], [1, 1, 1]]
    other = [[2, 0, 1], [1, 1, 1], [0, 2, 1]]
    devices.all_to_all(torch.ones(3), sizes=other if world.rank == 1 else even)  # <0, 1, 2>


@mismatch(2, ("pairs", "sizes"))
def other_pairs_of_a_permute(world: devices.World) -> None:
    ring = [(0, 1), (1, 2), (2, 0)]
    devices.permute(torch.ones(2), pairs=[(1, 0), (2, 1), (0, 2)] if world.rank == 2 else ring)  # <0, 1, 2>


def _work_a_while() -> None:
    """Let all ranks come out of a call before the next one closes the group: who has not made it tells no line."""
    time.sleep(0.5)


@mismatch(1, SIZE, "8", "4")
def one_rank_skips_a_call(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    _work_a_while()
    if world.rank != 1:
        devices.all_reduce(torch.ones(8))  # <0, 2>
    devices.all_reduce(torch.ones(4))  # <1>


@mismatch(0, "verb", "all_reduce", "barrier")
def one_rank_calls_once_more(world: devices.World) -> None:
    for _ in range(4 if world.rank == 0 else 3):
        devices.all_reduce(torch.ones(2))  # <0>
        _work_a_while()
    if world.rank != 0:
        devices.barrier()  # <1, 2>


@mismatch(1, "dtype", "float32", "float16")
def a_mismatch_of_async_work(world: devices.World) -> None:
    x = torch.ones(4, dtype=torch.float16 if world.rank == 1 else torch.float32)
    work = devices.all_reduce(x, async_op=True)  # <0, 1, 2>
    work.result()


@mismatch(2, "op", "sum", "max")
def a_mismatch_through_torchs_own_verbs(world: devices.World) -> None:
    op = dist.ReduceOp.MAX if world.rank == 2 else dist.ReduceOp.SUM
    dist.all_reduce(torch.ones(4), op=op)  # <0, 1, 2>


@mismatch(1, SIZE, "3", "4")
def a_mismatch_of_torchs_flat_verbs(world: devices.World) -> None:
    width = 3 if world.rank == 1 else 4
    dist.all_gather_into_tensor(torch.empty(3 * width), torch.ones(width))  # <0, 1, 2>


@mismatch(1, "16", "12", ranks=2)
def a_recv_of_another_size(world: devices.World) -> None:
    if world.rank == 0:
        devices.send(torch.ones(4), dst=1)  # <0>
        devices.barrier()
    else:
        devices.recv(torch.ones(3), src=0)  # <1>


@mismatch(1, "dtype", "float32", "int32", ranks=2)
def a_recv_of_another_dtype(world: devices.World) -> None:
    if world.rank == 0:
        devices.send(torch.ones(4), dst=1)  # <0>
        devices.barrier()
    else:
        devices.recv(torch.ones(4, dtype=torch.int32), src=0)  # <1>


def groups_in_another_order(world: devices.World) -> None:
    for members in ([1, 2], [0, 1]) if world.rank == 2 else ([0, 1], [1, 2]):
        group = dist.new_group(members, timeout=timedelta(seconds=5))
        if world.rank in members:
            devices.all_reduce(torch.ones(1), group)


def a_group_with_other_members(world: devices.World) -> None:
    group = dist.new_group([0, 1] if world.rank == 0 else [0, 1, 2], timeout=timedelta(seconds=5))
    devices.all_reduce(torch.ones(1), group)


def crossed_groups(world: devices.World) -> None:
    groups = [dist.new_group([0, 1], timeout=timedelta(seconds=3)) for _ in range(2)]
    for group in groups if world.rank == 0 else reversed(groups):
        devices.all_reduce(torch.ones(1), group)


CASES["groups_in_another_order"] = Case(
    groups_in_another_order,
    Raises("WorldError", ("group '1'", "[0, 1]", "[1, 2]", "rank 2")),
    # Their first group was as they both thought.
    {0: Returns(), 1: Raises("WorldError", ("rank 2", "did not come", "group '2'"))},
    ranks=3,
)
CASES["a_group_with_other_members"] = Case(
    a_group_with_other_members, Raises("WorldError", ("group '1'", "[0, 1] on rank 0", "[0, 1, 2]")), ranks=3
)
CASES["crossed_groups"] = Case(
    crossed_groups, Raises("CollectiveTimeoutError", ("all_reduce", "rank 0", "rank 1")), ranks=2
)
