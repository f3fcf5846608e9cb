"""Groups and tensors used as they must not be: an error, or right all the same; never a wrong number, never a hang."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from judging import Case, Expected, Raises, Returns

import devices
from devices.errors import ArgumentError, DevicesError

CASES: dict[str, Case] = {}

Body = Callable[[devices.World], Any]

RIGHT = "right, or an error"


def case(everyone: Expected, but: dict[int, Expected] | None = None, **more: Any) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        CASES[body.__name__] = Case(body, everyone, but or {}, **more)
        return body

    return add


@case(Raises("WorldError", ("closed",)))
def a_group_after_it_was_destroyed(world: devices.World) -> None:
    group = dist.new_group([0, 1])
    devices.all_reduce(torch.ones(2), group)
    dist.destroy_process_group(group)
    devices.all_reduce(torch.ones(2), group)


@case(Raises("WorldError", (("no world is open", "closed"),)))
def a_verb_after_the_world_was_closed(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    world.close()
    devices.all_reduce(torch.ones(2))


@case(Raises("WorldError", ("rank 2", "not in the group")), {0: Returns(2.0), 1: Returns(2.0)}, ranks=3)
def a_rank_outside_of_the_group(world: devices.World) -> Any:
    group = dist.new_group([0, 1])
    return devices.all_reduce(torch.ones(1), group).item()


def _in_a_fork(work: Callable[[], Any], seconds: float = 20) -> str:
    """Return what `work` says in a forked child: what it raised, "returned", or "hung"."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            said = "returned"
        except DevicesError as error:
            said = f"{type(error).__name__}: {error}"
        except BaseException as error:
            said = f"another error: {error!r}"
        os.write(there, said.encode()[:4000])
        os._exit(0)
    os.close(there)
    ready, _, _ = select.select([here], [], [], seconds)
    said = os.read(here, 4000).decode() if ready else "hung"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(here)
    return said


@case(Returns(("a DevicesError that names the fork", [2.0, 2.0])))
def a_verb_after_a_fork(world: devices.World) -> Any:
    devices.all_reduce(torch.ones(2))
    said = "a DevicesError that names the fork"
    if world.rank == 0:
        told = _in_a_fork(lambda: devices.all_reduce(torch.ones(2)))
        said = said if "Error: " in told and "fork" in told and "another" not in told else told
    # What the child did has disturbed nobody.
    return said, devices.all_reduce(torch.ones(2)).tolist()


@case(Returns([6.0] * 4), ranks=3)
def the_end_of_a_forked_child_is_not_that_of_the_rank(world: devices.World) -> Any:
    devices.all_reduce(torch.ones(2))
    child = os.fork()
    if child == 0:
        os._exit(1)
    os.waitpid(child, 0)
    return devices.all_reduce(torch.full((4,), 2.0)).tolist()


@case(Returns(RIGHT))
def two_threads_on_one_group(world: devices.World) -> str:
    wrong: list[str] = []

    def work() -> None:
        try:
            for _ in range(50):
                total = devices.all_reduce(torch.full((64,), float(world.rank + 1)))
                if not total.eq(3.0).all():
                    wrong.append(f"3.0 was to come, and {total.tolist()} came")
        except DevicesError:
            pass

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if any(thread.is_alive() for thread in threads):
        return "hung"
    return wrong[0] if wrong else RIGHT


def _changed(start: Callable[[torch.Tensor], Any], x: torch.Tensor, expected: float) -> str:
    work = start(x)
    x.fill_(1000.0)
    try:
        found = work.result()
    except DevicesError:
        return RIGHT
    return RIGHT if found.eq(expected).all() else f"{expected} was to come, and {found.unique().tolist()} came"


@case(Returns([RIGHT] * 3))
def a_tensor_changed_while_an_all_reduce_of_it_runs(world: devices.World) -> list[str]:
    return [
        _changed(lambda x: devices.all_reduce(x, async_op=True), torch.ones(size), 2.0) for size in (8, 40000, 1 << 21)
    ]


@case(Returns([RIGHT] * 3))
def a_tensor_changed_while_an_all_gather_of_it_runs(world: devices.World) -> list[str]:
    return [
        _changed(lambda x: devices.all_gather(x, async_op=True), torch.ones(size), 1.0) for size in (8, 40000, 1 << 21)
    ]


def _refused(*calls: Callable[[], Any]) -> int:
    """Return how many of the calls are refused."""
    refused = 0
    for call in calls:
        try:
            call()
        except ArgumentError as error:
            refused += "out=" in str(error)
    return refused


@case(Returns((5, [2.0, 2.0])))
def a_wrong_out(world: devices.World) -> Any:
    x = torch.ones(2)
    refused = _refused(
        lambda: devices.all_reduce(x, out=torch.ones(3)),
        lambda: devices.all_reduce(x, out=torch.ones(2, dtype=torch.float64)),
        lambda: devices.all_reduce(x, out=torch.ones(2, requires_grad=True)),
        lambda: devices.all_reduce(x, out=torch.ones(1).expand(2)),
        lambda: devices.all_gather(x, out=torch.ones(2)),
    )
    # It was refused before anything was sent.
    return refused, devices.all_reduce(x).tolist()


@case(Returns([[2.0, 4.0, 6.0], [2.0, 4.0, 1.0, 2.0], [3.0, 5.0, 7.0, 7.0, 7.0, 7.0]]))
def tensors_that_overlap_or_have_gaps(world: devices.World) -> Any:
    found = []
    columns = torch.tensor([[1.0, 9.0], [2.0, 9.0], [3.0, 9.0]])
    found.append(devices.all_reduce(columns[:, 0]).tolist())
    # The result lies in part on the input.
    memory = torch.tensor([1.0, 2.0, 0.0, 0.0])
    devices.all_reduce(memory[:2], out=memory[1:3])
    found.append([memory[1].item(), memory[2].item(), 1.0, 2.0])
    whole = torch.tensor([1.0, 2.0, 3.0, 7.0, 7.0, 7.0])
    devices.all_reduce(whole[:3] if world.rank == 0 else torch.tensor([2.0, 3.0, 4.0]), out=whole[:3])
    found.append(whole.tolist())
    return found


@case(Returns([]))
def empty_tensors(world: devices.World) -> Any:
    return devices.all_reduce(torch.ones(0)).tolist() + devices.all_gather(torch.ones(0, 3)).tolist()
