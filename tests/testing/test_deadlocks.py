"""Programs that hang, mix up their calls or race, as people write them: each is told apart at once, by rank and line.

A comment `# <0, 2>` marks the line at which ranks 0 and 2 are to be found. Ranks without a mark have ended by then.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import devices.testing
from devices import World
from devices.errors import ArgumentError, CollectiveError, DeadlockError, MismatchError, RaceError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*returned a view tensor:UserWarning"),
]

Program = Callable[[World], Any]


@dataclass(frozen=True)
class Case:
    """A program and what is to be said of it.

    Args:
        program: what each rank does.
        kind: the error.
        ranks: how many.
        says: what the message must say besides.
    """

    program: Program
    kind: type[BaseException]
    ranks: int
    says: tuple[str, ...]


CASES: list[Case] = []


def expect(kind: type[BaseException], *says: str, ranks: int = 2) -> Callable[[Program], Program]:
    def add(program: Program) -> Program:
        CASES.append(Case(program, kind, ranks, says))
        return program

    return add


def marked(program: Program) -> dict[int, str]:
    """Return "file:line" by rank, from the program's own source."""
    lines, first = inspect.getsourcelines(program)
    found = {}
    for number, line in enumerate(lines, first):
        if mark := re.search(r"# <([\d, ]+)>", line):
            found.update(dict.fromkeys(map(int, mark[1].split(",")), f"{inspect.getfile(program)}:{number}"))
    return found


# Collectives that some ranks do not call.


@expect(DeadlockError, "barrier()")
def a_barrier_under_if_rank_0(world: World) -> None:
    if dist.get_rank() == 0:
        dist.barrier()  # <0>


@expect(MismatchError, "'all_reduce' on rank 0", "'barrier' on rank 1")
def an_all_reduce_under_if_rank_0(world: World) -> None:
    loss = torch.ones(1)
    if dist.get_rank() == 0:
        dist.all_reduce(loss)  # <0>
        print(f"{loss.item():.3f}")
    dist.barrier()  # <1>


@expect(DeadlockError, "all_reduce((4,) float32)", ranks=3)
def a_rank_that_returns_early(world: World) -> None:
    if world.rank == 2:
        return
    dist.all_reduce(torch.ones(4))  # <0, 1>


@expect(DeadlockError, "waits for rank 1 in all_reduce", ranks=3)
def an_all_reduce_over_a_mesh_axis_that_one_rank_leaves_out(world: World) -> None:
    mesh = world.mesh({"dp": 1, "tp": 3})
    if world.rank != 1:
        devices.all_reduce(torch.ones(2), mesh["tp"])  # <0, 2>


@expect(DeadlockError, "waits for rank 0 in all_reduce")
def more_batches_on_one_rank(world: World) -> None:
    for _ in range(3 + world.rank):
        dist.all_reduce(torch.ones(8))  # <1>


@expect(MismatchError, "'barrier' on rank 0", "'all_reduce' on rank 1")
def more_batches_on_one_rank_and_then_a_barrier(world: World) -> None:
    for _ in range(3 + world.rank):
        dist.all_reduce(torch.ones(8))  # <1>
    dist.barrier()  # <0>


@expect(DeadlockError, "all_gather_object", ranks=4)
def all_gather_object_without_one_rank(world: World) -> None:
    found: list[Any] = [None] * world.size
    if world.rank != 3:
        dist.all_gather_object(found, {"rank": world.rank})  # <0, 1, 2>


@expect(DeadlockError, "broadcast_object_list", "rank 1 of 2 has ended")
def broadcast_of_objects_without_one_rank(world: World) -> None:
    if world.rank == 0:
        dist.broadcast_object_list([{"lr": 0.1}], src=0)  # <0>


@expect(DeadlockError)
def a_barrier_that_one_rank_is_missing(world: World) -> None:
    dist.barrier()
    if world.rank == 0:
        torch.save({}, "/dev/null")
        dist.barrier()  # <0>


@expect(DeadlockError, "has ended")
def destroy_process_group_on_one_rank(world: World) -> None:
    if world.rank == 0:
        dist.destroy_process_group()
    else:
        dist.all_reduce(torch.ones(2))  # <1>


@expect(DeadlockError, "all_gather")
def full_tensor_under_if_rank_0(world: World) -> None:
    weight = distribute_tensor(torch.ones(4, 4), world.mesh({"tp": 2}), [Shard(0)])
    if world.rank == 0:
        print(weight.full_tensor().sum())  # <0>


@expect(DeadlockError, "all_reduce")
def the_norm_of_gradients_under_if_rank_0(world: World) -> None:
    mesh = world.mesh({"dp": 2})
    weight = nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]))
    weight.grad = distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])
    if world.rank == 0:
        torch.nn.utils.clip_grad_norm_([weight], 1.0)  # <0>


@expect(DeadlockError, "all_gather")
def an_fsdp_model_evaluated_on_rank_0_alone(world: World) -> None:
    model = fully_shard(nn.Linear(4, 4), mesh=world.mesh({"dp": 2}))
    if world.rank == 0:
        model(torch.ones(2, 4))  # <0>


@expect(DeadlockError, "all_reduce")
def a_loss_that_uses_the_collective_on_one_rank_alone(world: World) -> None:
    x = torch.ones(3, requires_grad=True)
    total = devices.all_reduce(x)
    loss = total.sum() if world.rank == 0 else x.sum()
    loss.backward()  # <0>


@expect(DeadlockError, "all_reduce")
def no_sync_on_one_rank_alone(world: World) -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 1))
    with model.no_sync() if world.rank == 0 else contextlib.nullcontext():
        model(torch.ones(2, 4)).sum().backward()  # <1>


@expect(DeadlockError)
def one_more_step_of_data_parallel(world: World) -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 1))
    for _ in range(2 + world.rank):
        model(torch.ones(2, 4)).sum().backward()  # <1>


# Collectives in another order.


@expect(DeadlockError, "group '1'", "group '2'")
def two_groups_in_crossed_order(world: World) -> None:
    first, second = dist.new_group([0, 1]), dist.new_group([0, 1])
    if world.rank == 0:
        dist.all_reduce(torch.ones(1), group=first)  # <0>
        dist.all_reduce(torch.ones(1), group=second)
    else:
        dist.all_reduce(torch.ones(1), group=second)  # <1>
        dist.all_reduce(torch.ones(1), group=first)


@expect(DeadlockError, ranks=4)
def two_mesh_axes_in_crossed_order(world: World) -> None:
    mesh = world.mesh({"dp": 2, "tp": 2})
    axes = ("dp", "tp") if world.rank in (0, 3) else ("tp", "dp")
    for axis in axes:
        devices.all_reduce(torch.ones(1), mesh[axis])  # <0, 1, 2, 3>


@expect(MismatchError, "[0, 1]", "[1, 2]", ranks=3)
def new_groups_in_crossed_order(world: World) -> None:
    if world.rank == 2:
        dist.new_group([1, 2])  # <2>
        dist.new_group([0, 1])
    else:
        dist.new_group([0, 1])  # <1>
        dist.new_group([1, 2])


@expect(MismatchError, "'all_reduce' on rank 0", "'broadcast' on rank 1")
def two_collectives_in_crossed_order(world: World) -> None:
    x = torch.ones(3)
    if world.rank == 0:
        dist.all_reduce(x)  # <0>
        dist.broadcast(x, src=0)
    else:
        dist.broadcast(x, src=0)  # <1>
        dist.all_reduce(x)


@expect(MismatchError, "'all_reduce' on rank 0", "'barrier' on rank 1", ranks=3)
def a_collective_in_an_except_branch(world: World) -> None:
    batch = {"x": torch.ones(2)} if world.rank != 1 else {}
    try:
        dist.all_reduce(batch["x"])  # <0>
    except KeyError:
        dist.barrier()  # <1>


@expect(DeadlockError, "while it handles KeyError: 'x', raised at")
def messages_in_an_except_branch(world: World) -> None:
    batch = {"x": torch.ones(2)} if world.rank != 1 else {}
    try:
        x = batch["x"]
        dist.send(x, dst=1)  # <0>
    except KeyError:
        dist.barrier()  # <1>


@expect(DeadlockError, "while it handles ValueError: nan loss, raised at")
def a_collective_in_a_finally_branch(world: World) -> None:
    try:
        if world.rank == 1:
            raise ValueError("nan loss")
        dist.send(torch.ones(1), dst=1)  # <0>
    finally:
        devices.all_reduce(torch.ones(1))  # <1>


# Collectives that are the same by name alone.


@expect(MismatchError, "root: 0 on rank 0", "1 on rank 1")
def broadcast_from_another_source_on_each_rank(world: World) -> None:
    dist.broadcast(torch.ones(2), src=world.rank)  # <0, 1>


@expect(MismatchError, "root", ranks=3)
def broadcast_from_two_sources_of_three_ranks(world: World) -> None:
    x = torch.ones(2)
    dist.broadcast(x, src=world.rank // 2)  # <0, 1, 2>
    dist.broadcast(x, src=0)


@expect(MismatchError, "root", ranks=3)
def reduce_to_another_rank(world: World) -> None:
    dist.reduce(torch.ones(2), dst=1 if world.rank == 2 else 0)  # <0, 1, 2>


@expect(MismatchError, "root", ranks=3)
def gather_to_another_rank(world: World) -> None:
    devices.gather(torch.ones(2), dst=world.rank % 2)  # <0, 1, 2>


@expect(MismatchError, "root")
def scatter_from_another_rank(world: World) -> None:
    devices.scatter(torch.ones(2), src=world.rank)  # <0, 1>


@expect(MismatchError, "dtype", "'float32' on rank 0", "'float64' on rank 1")
def all_reduce_of_another_dtype(world: World) -> None:
    loss = torch.tensor(0.5, dtype=torch.float64 if world.rank == 1 else torch.float32)
    dist.all_reduce(loss)  # <0, 1>


@expect(MismatchError, "size", "8 on rank 0", "6 on rank 1")
def all_reduce_of_another_shape(world: World) -> None:
    last_batch = torch.ones(4 if world.rank == 0 else 3, 2)
    dist.all_reduce(last_batch)  # <0, 1>


@expect(MismatchError, "op", "'sum' on rank 0", "'max' on rank 2", ranks=3)
def all_reduce_by_another_op(world: World) -> None:
    x = torch.ones(2)
    if world.rank == 2:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)  # <2>
    else:
        dist.all_reduce(x)  # <0, 1>


@expect(MismatchError, "size", "8 on rank 0", "4 on rank 1")
def reduce_scatter_of_other_sizes(world: World) -> None:
    width = 4 if world.rank == 0 else 2
    dist.reduce_scatter_tensor(torch.empty(width), torch.ones(2 * width))  # <0, 1>


@expect(MismatchError, "size", "16 on rank 0", "12 on rank 1")
def all_gather_of_other_sizes(world: World) -> None:
    width = 4 - world.rank
    dist.all_gather_into_tensor(torch.empty(2 * width), torch.ones(width))  # <0, 1>


@expect(MismatchError, "8 bytes to this rank", "expects 12")
def all_to_all_of_sizes_that_do_not_meet(world: World) -> None:
    sent = [1, 2] if world.rank == 0 else [2, 1]
    received = [1, 2] if world.rank == 0 else [3, 1]
    dist.all_to_all_single(torch.empty(sum(received)), torch.ones(3), received, sent)  # <0, 1>


@expect(DeadlockError, "permute")
def permute_along_pairs_of_its_own(world: World) -> None:
    devices.permute(torch.ones(2), pairs=[(0, 1)] if world.rank == 0 else [(1, 0)])  # <0, 1>


@expect(MismatchError, "size", "8 on rank 0", "4 on rank 1")
def all_gather_with_sizes_of_its_own(world: World) -> None:
    x = torch.ones(2 - world.rank)
    devices.all_gather(x, sizes=[2, 2] if world.rank == 0 else [1, 1])  # <0, 1>


# Messages.


@expect(DeadlockError, "waits for rank 1 in send to rank 1", "waits for rank 0 in send to rank 0")
def both_send_first(world: World) -> None:
    x = torch.ones(4)
    dist.send(x, dst=1 - world.rank)  # <0, 1>
    dist.recv(x, src=1 - world.rank)


@expect(DeadlockError, "recv((4,) float32)", ranks=3)
def all_receive_first_in_a_ring(world: World) -> None:
    x = torch.ones(4)
    dist.recv(x, src=(world.rank - 1) % world.size)  # <0, 1, 2>
    dist.send(x, dst=(world.rank + 1) % world.size)


@expect(DeadlockError, "send to rank 1 with tag 1", "recv from rank 0 with tag 2")
def recv_with_a_wrong_tag(world: World) -> None:
    x = torch.ones(4)
    if world.rank == 0:
        dist.send(x, dst=1, tag=1)  # <0>
    else:
        dist.recv(x, src=0, tag=2)  # <1>


@expect(DeadlockError, "recv from rank 2", ranks=3)
def recv_from_a_wrong_rank(world: World) -> None:
    x = torch.ones(4)
    if world.rank == 0:
        devices.send(x, dst=1)  # <0>
    if world.rank == 1:
        devices.recv(x, src=2)  # <1>


@expect(MismatchError, "receives 12 bytes", "which sent 16")
def recv_of_another_size(world: World) -> None:
    if world.rank == 0:
        dist.send(torch.ones(4), dst=1)  # <0>
    else:
        dist.recv(torch.ones(3), src=0)  # <1>


@expect(DeadlockError, "whose function has returned", "send to rank 1")
def isend_that_nobody_receives(world: World) -> None:
    if world.rank == 0:
        dist.isend(torch.ones(4), dst=1)  # <0>


@expect(DeadlockError, "send to rank 2", "rank 2 of 3 has ended", ranks=3)
def a_batch_of_messages_half_matched(world: World) -> None:
    x, y = torch.ones(2), torch.ones(2)
    ops = [dist.P2POp(dist.isend, x, (world.rank + 1) % 3), dist.P2POp(dist.irecv, y, (world.rank - 1) % 3)]
    if world.rank == 2:
        ops = ops[:1]
    for work in dist.batch_isend_irecv(ops):
        work.wait()  # <1>


@expect(DeadlockError, ranks=3)
def a_pipeline_whose_last_stage_sends_back_too_early(world: World) -> None:
    x = torch.ones(2)
    if world.rank == 0:
        for _ in range(2):
            dist.send(x, dst=1)  # <0>
        dist.recv(x, src=1)
    elif world.rank == 1:
        dist.recv(x, src=0)
        dist.send(x, dst=2)
        dist.recv(x, src=2)  # <1>
        dist.send(x, dst=0)
    else:
        for _ in range(2):
            dist.recv(x, src=1)  # <2>
        dist.send(x, dst=1)


@expect(DeadlockError)
def pipeline_stages_with_other_numbers_of_microbatches(world: World) -> None:
    stage = PipelineStage(nn.Linear(4, 4), world.rank, 2, torch.device("cpu"), input_args=torch.ones(1, 4))
    schedule = ScheduleGPipe(stage, n_microbatches=2 if world.rank == 0 else 3, loss_fn=nn.functional.mse_loss)
    if world.rank == 0:
        schedule.step(torch.ones(2, 4))  # <0>
    else:
        schedule.step(target=torch.ones(3, 4))  # <1>


# Work that is started and left, or looked at for ever.


@expect(DeadlockError, "whose function has returned", "all_reduce")
def async_work_never_waited_for_by_one_rank_alone(world: World) -> None:
    if world.rank == 0:
        dist.all_reduce(torch.ones(4), async_op=True)  # <0>


@expect(DeadlockError, "permute((4,) bfloat16), started at", "there it waits for rank 1", "recv from rank 1")
def async_work_of_a_verb_that_is_composed(world: World) -> None:
    if world.rank == 0:
        work = devices.permute(torch.ones(4, dtype=torch.bfloat16), pairs=[(0, 1), (1, 0)], async_op=True)
        work.wait()  # <0>


@expect(MismatchError, "size")
def a_mismatch_of_async_work_that_nobody_waits_for(world: World) -> None:
    dist.all_reduce(torch.ones(4 + world.rank), async_op=True)  # <0, 1>


@expect(DeadlockError, "recv from rank 1")
def looking_for_ever_whether_work_is_done(world: World) -> None:
    if world.rank == 0:
        work = dist.irecv(torch.ones(4), src=1)
        assert work is not None
        while not work.is_completed():  # <0>
            pass


@expect(DeadlockError, "recv from rank 1", "recv from rank 0")
def all_looking_for_ever(world: World) -> None:
    work = dist.irecv(torch.ones(4), src=1 - world.rank)
    assert work is not None
    while not work.is_completed():  # <0, 1>
        pass


@expect(DeadlockError)
def all_looking_for_ever_between_naps(world: World) -> None:
    work = devices.all_reduce(torch.ones(4), async_op=True) if world.rank == 0 else None
    store = dist.distributed_c10d._get_default_store()
    while time.sleep(0.001) or not (work.is_completed() if work else store.check(["go"])):  # <0, 1>
        pass


@expect(DeadlockError, "weights_ready")
def a_key_of_the_store_that_nobody_sets(world: World) -> None:
    store = dist.distributed_c10d._get_default_store()
    if world.rank == 1:
        store.wait(["weights_ready"])  # <1>


@expect(DeadlockError, "address")
def a_value_of_the_store_that_nobody_sets(world: World) -> None:
    store = dist.distributed_c10d._get_default_store()
    if world.rank == 0:
        store.set("adress", "host:1")
    print(store.get("address"))  # <0, 1>


@expect(DeadlockError, "arrived", ranks=3)
def a_counter_in_the_store_that_is_never_full(world: World) -> None:
    store = dist.distributed_c10d._get_default_store()
    if world.rank:
        store.add("arrived", 1)
    while store.add("arrived", 0) < world.size:  # <0, 1, 2>
        pass


@expect(DeadlockError, "lock")
def a_lock_in_the_store_that_is_never_given_back(world: World) -> None:
    store = dist.distributed_c10d._get_default_store()
    if world.rank == 1:
        store.wait(["lock"])
    while store.compare_set("lock", "", f"{world.rank}") != f"{world.rank}".encode():  # <1>
        pass
    dist.barrier()  # <0>


@expect(DeadlockError, "monitored_barrier", ranks=3)
def a_monitored_barrier_without_one_rank(world: World) -> None:
    if world.rank != 1:
        dist.group.WORLD.monitored_barrier(timedelta(seconds=60))  # <0, 2>


# An error on one rank while others wait: it is that rank's own that comes out.


class ProgramError(Exception):
    pass


def stop(rank: int) -> None:
    if rank == 1:
        raise ProgramError(f"rank {rank} has had enough")


@expect(ProgramError)
def an_error_while_others_wait(world: World) -> None:
    if world.rank == 1:
        stop(world.rank)  # <1>
    dist.all_reduce(torch.ones(2))


@expect(ProgramError, ranks=3)
def an_error_behind_work_that_is_on_its_way(world: World) -> None:
    work = devices.permute(torch.ones(2), pairs=[(0, 1), (1, 2)], async_op=True)
    stop(world.rank)  # <1>
    work.wait()
    dist.barrier()


@expect(ProgramError)
def an_error_behind_work_that_others_never_start(world: World) -> None:
    if world.rank == 1:
        devices.permute(torch.ones(2), pairs=[(0, 1), (1, 0)], async_op=True)
        stop(world.rank)  # <1>
    dist.barrier()


@expect(ProgramError)
def an_error_in_the_forward_of_data_parallel(world: World) -> None:
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    for step in range(2):
        if step:
            stop(world.rank)  # <1>
        model(torch.ones(2, 4)).sum().backward()


@expect(ProgramError)
def an_error_in_the_backward_of_data_parallel(world: World) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parallel = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.0001)
    out = parallel(torch.ones(2, 4))
    out.register_hook(lambda _: stop(world.rank))
    out.sum().backward()  # <1>


@expect(ProgramError)
def an_error_between_the_layers_of_an_fsdp_model(world: World) -> None:
    mesh = world.mesh({"dp": 2})
    layers = [fully_shard(nn.Linear(4, 4), mesh=mesh) for _ in range(2)]
    x = layers[0](torch.ones(2, 4))
    stop(world.rank)  # <1>
    layers[1](x).sum().backward()


@expect(ProgramError)
def an_error_in_the_backward_of_an_fsdp_model(world: World) -> None:
    model = fully_shard(nn.Sequential(*[fully_shard(nn.Linear(4, 4), mesh=world.mesh({"dp": 2})) for _ in range(2)]))
    out = model(torch.ones(2, 4))
    out.register_hook(lambda _: stop(world.rank))
    out.sum().backward()  # <1>


@expect(ProgramError)
def an_error_before_a_dtensor_is_redistributed(world: World) -> None:
    partial = DTensor.from_local(torch.ones(4), world.mesh({"tp": 2}), [Partial()])
    stop(world.rank)  # <1>
    partial.redistribute(placements=[Replicate()]).to_local().sum()


@expect(ProgramError)
def an_error_in_backward_while_others_wait_in_theirs(world: World) -> None:
    x = torch.ones(3, requires_grad=True)
    total = devices.all_reduce(x)
    total.register_hook(lambda _: stop(world.rank))
    total.sum().backward()  # <1>


@expect(ProgramError)
def an_error_of_a_rank_that_closes_its_world_properly(world: World) -> None:
    try:
        if world.rank == 1:
            stop(world.rank)  # <1>
        dist.barrier()
    finally:
        dist.destroy_process_group()


# Tensors that are changed on their way.


@expect(RaceError, "rank 1 changed a tensor in place", "all_reduce")
def a_tensor_changed_while_it_is_reduced(world: World) -> None:
    x = torch.ones(4)
    work = dist.all_reduce(x, async_op=True)  # <1>
    if world.rank == 1:
        x.zero_()
    work.wait()


@expect(RaceError, "rank 0 changed a tensor in place", "all_reduce")
def a_tensor_changed_by_the_rank_that_adds_up(world: World) -> None:
    x = torch.ones(4)
    work = dist.all_reduce(x, async_op=True)  # <0>
    if world.rank == 0:
        x.zero_()
    work.wait()


@expect(RaceError, "changed a tensor in place")
def a_part_of_a_buffer_changed_while_it_is_reduced(world: World) -> None:
    buffer = torch.ones(8)
    work = dist.all_reduce(buffer[:4], async_op=True)  # <0, 1>
    buffer.zero_()
    work.wait()


@expect(RaceError, "rank 0 changed a tensor in place", "send to rank 1")
def a_tensor_changed_while_it_is_sent(world: World) -> None:
    x = torch.ones(4)
    if world.rank == 0:
        work = dist.isend(x, dst=1)  # <0>
        x.add_(1)
        assert work is not None
        work.wait()
    else:
        dist.recv(x, src=0)


@expect(RaceError, "rank 0 changed a tensor in place", "send to rank 1")
def one_row_changed_while_it_is_sent(world: World) -> None:
    rows = torch.zeros(3, 4)
    if world.rank == 0:
        works = []
        for step in range(3):
            rows[0] = step
            works.append(dist.isend(rows[0], dst=1))  # <0>
        for work in works:
            work.wait()
    else:
        for row in rows:
            dist.recv(row, src=0)


@expect(RaceError, "changed a tensor in place")
def gradients_zeroed_while_they_are_gathered(world: World) -> None:
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    gathered = torch.empty(2, 2, 3)
    assert layer.weight.grad is not None
    work = dist.all_gather_into_tensor(gathered, layer.weight.grad, async_op=True)  # <0, 1>
    layer.zero_grad(set_to_none=False)
    work.wait()


# Results that depend on which rank was first.

FIRST: list[int] = []


def whoever_sends_first(world: World) -> list[float]:
    x, found = torch.full((1,), float(world.rank)), []
    if world.rank:
        dist.send(x, dst=0)
    else:
        for _ in range(1, world.size):
            dist.recv(x)
            found.append(x.item())
    return found


def a_list_that_ranks_share(world: World) -> int:
    if world.rank == 0:
        FIRST.clear()
    dist.barrier()
    FIRST.append(world.rank)
    dist.barrier()
    return FIRST[0]


def a_number_drawn_from_the_store(world: World) -> int:
    return dist.distributed_c10d._get_default_store().add("next", 1)


def a_file_that_ranks_write(world: World) -> bytes:
    path = Path(tempfile.gettempdir()) / f"devices-test-{os.getpid()}"
    path.write_bytes(bytes([world.rank]))
    dist.barrier()
    try:
        return path.read_bytes()
    finally:
        dist.barrier()
        path.unlink(missing_ok=True)


def two_sends_to_one_recv_by_tag(world: World) -> list[float]:
    found: list[float] = []
    if world.rank:
        for tag in range(2):
            dist.send(torch.tensor([10.0 * world.rank + tag]), dst=0, tag=tag)
        return found
    for tag in (0, 1, 0, 1):
        x = torch.empty(1)
        dist.recv(x, tag=tag)
        found.append(x.item())
    return found


ORDERED: list[tuple[Program, int]] = [
    (whoever_sends_first, 3),
    (a_list_that_ranks_share, 2),
    (a_number_drawn_from_the_store, 2),
    (a_file_that_ranks_write, 3),
    (two_sends_to_one_recv_by_tag, 3),
]


def name(value: Any) -> str | None:
    return getattr(getattr(value, "program", value), "__name__", None)


def lines_of(message: str, rank: int) -> str:
    """Return the lines of a message that begin with a rank."""
    return "\n".join(line for line in message.splitlines() if re.match(rf"\s*rank {rank}\b", line))


def failure(case: Case, **how: Any) -> tuple[BaseException, float]:
    """Return what a program raises, and how soon."""
    began = time.monotonic()
    with pytest.raises(case.kind) as raised:
        devices.testing.run(case.program, ranks=case.ranks, **how)
    return raised.value, time.monotonic() - began


def story(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


AT_ONCE = 20
"""Seconds in which a busy machine tells what it would else wait a minute for."""


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Take the first run's imports out of what is measured."""
    with contextlib.suppress(DeadlockError):
        devices.testing.run(an_fsdp_model_evaluated_on_rank_0_alone, ranks=2)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_it_is_told_at_once_with_rank_and_line_and_again_from_the_same_seed(case: Case, seed: int) -> None:
    places, threads = marked(case.program), threading.active_count()
    error, seconds = failure(case, seed=seed)
    message = story(error)
    again, seconds_again = failure(case, seed=seed)
    assert min(seconds, seconds_again) < AT_ONCE
    assert type(error) is case.kind
    assert story(again) == message
    assert f"seed {seed}" in message
    assert threading.active_count() == threads
    assert not dist.is_initialized()
    for said in case.says:
        assert said in message
    if case.kind is DeadlockError:
        for rank in range(case.ranks):
            said = lines_of(message, rank)
            assert said.count("\n") == 0
            assert places[rank] in said if rank in places else f"rank {rank} of {case.ranks} has ended" in said
    elif issubclass(case.kind, CollectiveError):
        assert any(place in message for place in places.values())
        if case.kind is MismatchError:
            assert all(place in message for place in places.values())
    else:
        assert f"raised by rank 1 of {case.ranks}" in message
        frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        assert places[1] in frames


@pytest.mark.parametrize("case", [case for case in CASES if case.kind is not RaceError], ids=name)
def test_it_is_told_at_once_where_threads_run_freely_too(case: Case) -> None:
    places = marked(case.program)
    error, seconds = failure(case, parallel=True)
    assert seconds < AT_ONCE
    assert type(error) is case.kind
    if case.kind is DeadlockError:
        assert all(place in lines_of(str(error), rank) for rank, place in places.items())


@pytest.mark.parametrize(("program", "ranks"), ORDERED, ids=name)
def test_a_result_that_depends_on_the_order_of_ranks_is_found_by_other_orders(program: Program, ranks: int) -> None:
    with pytest.raises(RaceError, match="depends on the order in which ranks run") as raised:
        devices.testing.run(program, ranks=ranks, schedules=20)
    message = str(raised.value)
    seeds = [int(seed) for seed in re.findall(r"seed=(\d+)", message)]
    rank = re.match(r"what rank (\d+) of", message)
    assert rank is not None
    assert len(seeds) == 2
    # Each of the two seeds that the message names gives its result again.
    found = [[devices.testing.run(program, ranks=ranks, seed=seed)[int(rank[1])] for _ in range(2)] for seed in seeds]
    assert found[0][0] == found[0][1]
    assert found[1][0] == found[1][1]
    assert found[0] != found[1]
    with pytest.raises(RaceError) as again:
        devices.testing.run(program, ranks=ranks, schedules=20)
    assert str(again.value) == message


def test_a_function_that_keeps_something_from_run_to_run_is_no_race() -> None:
    count = 0

    def counted(_: World) -> int:
        nonlocal count
        count += 1
        return count // 2

    with pytest.raises(ArgumentError, match="Something lasts from run to run"):
        devices.testing.run(counted, ranks=2, schedules=3)


def test_work_goes_on_while_a_rank_waits_for_the_store() -> None:
    def waits(world: World) -> float:
        store = dist.distributed_c10d._get_default_store()
        total = torch.ones(2)
        work = dist.all_reduce(total, async_op=True)
        if world.rank == 0:
            work.wait()
            store.set("go", "")
        elif world.rank == 1:
            store.wait(["go"])
        else:
            while not store.check(["go"]):
                pass
        work.wait()
        return total.sum().item()

    assert devices.testing.run(waits, ranks=3, schedules=20) == [6.0] * 3
    assert devices.testing.run(waits, ranks=3, parallel=True) == [6.0] * 3


def test_a_program_that_is_right_is_right_in_every_order() -> None:
    def right(world: World) -> Any:
        x = torch.full((3,), float(world.rank))
        peer = world.rank ^ 1
        messages = [dist.P2POp(dist.isend, x, peer), dist.P2POp(dist.irecv, received := torch.empty(3), peer)]
        works = dist.batch_isend_irecv(messages)
        # One buffer for two collectives on their way, and a third part of it that is written meanwhile.
        buffer = torch.arange(12.0)
        works += [dist.all_reduce(buffer[part : part + 4], async_op=True) for part in (0, 4)]
        buffer[8:] += 1
        for work in works:
            work.wait()
        return received, buffer, devices.all_reduce(x)

    for rank, (received, buffer, total) in enumerate(devices.testing.run(right, ranks=4, schedules=100)):
        assert received.tolist() == [rank ^ 1] * 3
        assert buffer.tolist() == [*(4.0 * number for number in range(8)), 9, 10, 11, 12]
        assert total.tolist() == [6] * 3
