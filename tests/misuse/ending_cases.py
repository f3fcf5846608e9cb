"""Ranks that end, or stop, while others count on them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from judging import Case, Ends, Expected, Raises, Returns, Words

import devices

CASES: dict[str, Case] = {}

Body = Callable[[devices.World], Any]

GONE = ("died", "ended", "exited", "gone", "killed", "left", "closed", "dead")
LATE = ("timeout", "timed out", "within", "in time", "is up")


def noticed(odd: int, *words: str | tuple[str, ...]) -> Raises:
    """Return what a rank says that has noticed the end of another, not waited for the timeout."""
    return Raises("CollectiveError", (f"rank {odd}", *words), never="CollectiveTimeoutError")


def case(everyone: Expected, but: dict[int, Expected], **more: Any) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        CASES[body.__name__] = Case(body, everyone, but, **{"ranks": 3, "stays": False, **more})
        return body

    return add


def late(*words: str | tuple[str, ...]) -> Raises:
    """Return what a rank says that has waited for rank 1 until the timeout, or has heard so from another."""
    said: Words = ("rank 1", LATE, *words)
    return Raises("CollectiveError", said)


@case(noticed(1, GONE), {1: Returns()})
def one_rank_returns_early(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank != 1:
        devices.all_reduce(torch.ones(2))


@case(noticed(1, GONE), {1: Returns()}, stays=True)
def one_rank_closes_its_world_early(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        world.close()
    else:
        devices.all_reduce(torch.ones(2))


@case(Returns(), {0: noticed(1, GONE)}, ranks=2)
def one_rank_calls_once_more_than_all_others(world: devices.World) -> None:
    for _ in range(3 if world.rank == 0 else 2):
        devices.all_reduce(torch.ones(2))


@case(noticed(1, GONE), {1: Raises("SystemExit")})
def one_rank_calls_sys_exit(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        sys.exit(3)
    devices.all_reduce(torch.ones(2))


@case(noticed(1, "ValueError", "batch 7 is corrupt"), {1: Raises("ValueError")})
def one_rank_raises(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        raise ValueError("batch 7 is corrupt")
    devices.all_reduce(torch.ones(2))


@case(noticed(1, "ValueError", "batch 7 is corrupt"), {1: Raises("ValueError")})
def one_rank_raises_inside_of_with(world: devices.World) -> None:
    with world:
        devices.all_reduce(torch.ones(2))
        if world.rank == 1:
            raise ValueError("batch 7 is corrupt")
        devices.all_reduce(torch.ones(2))


@case(noticed(1, "reduce_scatter", "ArgumentError"), {1: Raises("ArgumentError")})
def wrong_arguments_on_one_rank(world: devices.World) -> None:
    devices.reduce_scatter(torch.ones(4 if world.rank == 1 else 3))


@case(noticed(1, GONE), {1: Ends("exited")})
def one_rank_ends_without_a_word(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        os._exit(7)
    devices.all_reduce(torch.ones(2))


def _dies(world: devices.World, waits: Callable[[], Any]) -> None:
    """Kill rank 1 when the others have had the time to wait for it."""
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    waits()


KILLED: dict[int, Expected] = {1: Ends("killed by SIGKILL")}


@case(noticed(1, GONE), KILLED)
def one_rank_is_killed_in_an_all_reduce(world: devices.World) -> None:
    _dies(world, lambda: devices.all_reduce(torch.ones(2)))


@case(noticed(1, GONE), KILLED)
def one_rank_is_killed_in_a_large_all_reduce(world: devices.World) -> None:
    _dies(world, lambda: devices.all_reduce(torch.ones(1 << 22)))


@case(noticed(1, GONE), KILLED)
def one_rank_is_killed_in_a_barrier(world: devices.World) -> None:
    _dies(world, devices.barrier)


@case(noticed(1, GONE), KILLED)
def one_rank_is_killed_before_it_sends(world: devices.World) -> None:
    _dies(world, lambda: devices.recv(torch.ones(2), src=1))


@case(noticed(1, GONE), KILLED)
def one_rank_is_killed_before_it_receives(world: devices.World) -> None:
    _dies(world, lambda: devices.send(torch.ones(1 << 24), dst=1))


@case(noticed(1, GONE), KILLED)
def one_rank_is_killed_while_work_is_on_its_way(world: devices.World) -> None:
    _dies(world, lambda: devices.all_gather(torch.ones(1 << 16), async_op=True).result())


@case(noticed(1, GONE), KILLED)
def one_rank_is_killed_while_others_are_away(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    devices.all_reduce(torch.ones(2))


@case(Returns([2.0, 2.0]), {1: Ends("killed by SIGKILL")})
def a_group_without_the_dead_rank_goes_on(world: devices.World) -> Any:
    group = dist.new_group([0, 2])
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    for _ in range(20):
        total = devices.all_reduce(torch.ones(2), group)
    return total.tolist()


@case(noticed(1, GONE), KILLED)
def after_the_error_the_group_is_closed_and_says_why(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        devices.all_reduce(torch.ones(2))
    except devices.errors.CollectiveError:
        devices.all_reduce(torch.ones(2))


def _interrupted(
    world: devices.World,
    error: type[BaseException],
    waits: Callable[[], Any],
    others: Callable[[], Any] | None = None,
) -> None:
    """Let rank 1 be interrupted in what it waits for, and go on as if nothing had happened; rank 0 comes late."""
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:

        def interrupt(number: int, frame: object) -> None:
            raise error("somebody pressed a key")

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        try:
            waits()
        except (error, devices.errors.CollectiveError):
            # An `Exception` that none of ours is comes as one of ours.
            return
        raise AssertionError("it was not interrupted")
    if world.rank == 0:
        time.sleep(3)
    if others is None:
        waits()
    else:
        others()


INTERRUPTED = {1: Returns()}


@case(noticed(1, "KeyboardInterrupt: somebody pressed a key"), INTERRUPTED, stays=True)
def one_rank_is_interrupted_in_a_barrier(world: devices.World) -> None:
    _interrupted(world, KeyboardInterrupt, devices.barrier)


@case(noticed(1, "ZeroDivisionError: somebody pressed a key"), INTERRUPTED, stays=True)
def one_rank_raises_in_the_middle_of_a_small_all_reduce(world: devices.World) -> None:
    _interrupted(world, ZeroDivisionError, lambda: devices.all_reduce(torch.ones(2)))


@case(noticed(1, "KeyboardInterrupt: somebody pressed a key"), INTERRUPTED, stays=True)
def one_rank_is_interrupted_in_a_recv(world: devices.World) -> None:
    _interrupted(world, KeyboardInterrupt, lambda: devices.recv(torch.ones(2), src=0), devices.barrier)


@case(late("all_reduce"), {1: Ends("hung")}, timeout=2, stays=True)
def one_rank_is_stopped(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    devices.all_reduce(torch.ones(2))


@case(late(), {1: Raises("CollectiveError", (LATE,))}, timeout=2, stays=True)
def one_rank_is_late(world: devices.World) -> None:
    devices.all_reduce(torch.ones(2))
    if world.rank == 1:
        time.sleep(4)
    # The others gave up in the first.
    for _ in range(2):
        devices.all_reduce(torch.ones(2))


@case(Raises("CollectiveError", ("rank 0", "rank 1", "recv")), {}, ranks=2, timeout=2, stays=True)
def both_receive(world: devices.World) -> None:
    devices.recv(torch.ones(2), src=1 - world.rank)


@case(late("send"), {1: Raises("CollectiveError", ("rank 0", LATE, "all_reduce"))}, ranks=2, timeout=2, stays=True)
def a_large_message_that_nobody_receives(world: devices.World) -> None:
    if world.rank == 0:
        devices.send(torch.ones(1 << 24), dst=1)
    else:
        devices.all_reduce(torch.ones(4))


@case(Returns(), {1: Raises("CollectiveError", ("rank 0", "never received", "16 bytes"))}, ranks=2, stays=True)
def a_small_message_that_nobody_receives(world: devices.World) -> None:
    if world.rank == 0:
        devices.send(torch.ones(4), dst=1)
    devices.barrier()
    world.close()


@case(Raises("CollectiveTimeoutError", ("rank 0", LATE)), {0: Returns()}, ranks=2, timeout=2, stays=True)
def a_message_that_nobody_sends(world: devices.World) -> None:
    if world.rank == 1:
        devices.recv(torch.ones(2), src=0)
