"""The laws of what goes wrong: a group that is aborted, a peer that is late or dead, a child that was forked."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
import time
import unittest
from typing import Any

import torch
import torch.distributed as dist

import devices
from devices.testing.conformance.check import Check, Tally
from devices.testing.conformance.death import killed
from devices.testing.conformance.laws import law, size_of
from devices.testing.conformance.subject import Subject


def aborted_verbs_fail(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    group = dist.new_group(list(range(size)), timeout=datetime.timedelta(seconds=15))
    devices.barrier(group)
    # Only now has every rank returned from the other barrier, which the abort could still reach.
    devices.barrier()
    if rank == 0:
        # Collectives that the others never call.
        works = [devices.all_gather(torch.ones(3, device=device), group, async_op=True),
                 devices.all_reduce(torch.ones(3, device=device), group, op="max", async_op=True)]  # fmt: skip
        group.abort()
        group.abort()
        for work in works:
            for _ in range(2):
                try:
                    work.wait()
                except devices.errors.CollectiveTimeoutError as error:
                    raise AssertionError(
                        f"a verb under way when its group was aborted failed only when its time was up: {error}"
                    ) from error
                except devices.errors.CollectiveError:
                    pass
                except Exception as error:
                    raise AssertionError(
                        f"a verb under way when its group was aborted raised {type(error).__name__}: {error}; "
                        "expected a CollectiveError"
                    ) from error
                else:
                    raise AssertionError("a verb that no other rank has called is done when its group was aborted")
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after another group was aborted the world's sum of ones is {total}, not {size}"
    dist.destroy_process_group(group)


def aborted_while_one_waits(world: devices.World) -> None:
    if world.backend == "threads":
        raise unittest.SkipTest("needs ranks that wait by the clock: of ours as threads a deadlock is found at once")
    size, rank, device = world.size, world.rank, world.device
    for op in ("sum", "max"):
        group = dist.new_group(list(range(size)), timeout=datetime.timedelta(seconds=15))
        devices.barrier(group)
        # Only now has every rank returned from the other barrier, which the abort could still reach.
        devices.barrier()
        if rank == 0:
            timer = threading.Timer(0.1, group.abort)
            timer.start()
            try:
                devices.all_reduce(torch.ones(3, device=device), group, op=op)
            except devices.errors.CollectiveTimeoutError as error:
                raise AssertionError(
                    f"all_reduce with op {op!r}, whose group another thread aborted, failed only when its time was "
                    f"up: {error}"
                ) from error
            except devices.errors.CollectiveError:
                pass
            except Exception as error:
                raise AssertionError(
                    f"all_reduce with op {op!r}, whose group another thread aborted, raised {type(error).__name__}: "
                    f"{error}; expected a CollectiveError"
                ) from error
            else:
                raise AssertionError(f"all_reduce with op {op!r} is done, though no other rank has called it")
            timer.join()
        total = devices.all_reduce(torch.ones(1, device=device)).item()
        assert total == size, f"rank {rank}: after another group was aborted the sum of ones is {total}, not {size}"
        dist.destroy_process_group(group)


def late_peers(world: devices.World, seconds: int) -> None:
    if world.backend == "threads":
        raise unittest.SkipTest("needs ranks that wait by the clock: of ours as threads a deadlock is found at once")
    size, rank, device = world.size, world.rank, world.device
    patience = 8 * seconds
    last = size - 1
    devices.barrier()
    groups = [dist.new_group(list(range(size)), timeout=datetime.timedelta(seconds=seconds)) for _ in range(4)]
    devices.barrier()
    if rank != last:
        x = torch.ones(3, device=device)
        begin = time.monotonic()
        works = [
            ("all_reduce", devices.all_reduce(x, groups[0], async_op=True)),
            ("all_reduce with op max", devices.all_reduce(x, groups[1], op="max", async_op=True)),
            ("all_gather", devices.all_gather(x, groups[2], async_op=True)),
            ("broadcast", devices.broadcast(x, groups[3], src=last, async_op=True)),
        ]
        for name, work in works:
            try:
                work.wait()
            except devices.errors.CollectiveTimeoutError as error:
                said = str(error)
            except Exception as error:
                raise AssertionError(
                    f"rank {rank}: {name} raised {type(error).__name__} where rank {last} did not come in time: "
                    f"{error}; expected a CollectiveTimeoutError"
                ) from error
            else:
                raise AssertionError(f"rank {rank}: {name} is done, though rank {last} never called it")
            for part, what in ((f"rank {rank} of {size}", "say which rank it is on"), (name[:9], "name the verb")):
                assert part in said, f"rank {rank}: the error of {name} whose peer is late does not {what}: {said}"
        took = time.monotonic() - begin
        assert took < patience, f"rank {rank}: with a timeout of {seconds} s it took {took:.0f} s to give up"
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after verbs of other groups were given up the world's sum of ones is {total}"


def a_forked_child(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: a fork copies one thread rank of all")
    if world.device.type != "cpu":
        raise unittest.SkipTest(f"needs a backend on the CPU: a forked child cannot use {world.device.type!r} at all")
    size, rank, device = world.size, world.rank, world.device
    x = torch.ones(2 * size, device=device)
    devices.all_reduce(x)
    # There may be a thread for them, that is not there in the child.
    works = [devices.all_gather(x, async_op=True), devices.all_reduce(x, op="max", async_op=True)]
    peer = (rank + 1) % size
    calls: list[tuple[str, dict[str, Any]]] = [
        ("all_reduce", {}), ("all_reduce", {"op": "max"}), ("all_gather", {}), ("reduce_scatter", {}),
        ("broadcast", {"src": 0}), ("send", {"dst": peer}), ("recv", {"src": peer}),
    ]  # fmt: skip
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for at, (verb, given) in enumerate(calls):
                try:
                    getattr(devices, verb)(x, **given)
                    status = 10 + at
                    break
                except devices.errors.DevicesError:
                    pass
            else:
                for work in works:
                    # It was done before, or is an error: what it waits for comes to the rank.
                    with contextlib.suppress(devices.errors.DevicesError):
                        work.wait()
                # What the rank has must be left to it, and its peers must not hear that it failed.
                with contextlib.suppress(KeyError), world:
                    raise KeyError("of the child alone")
                status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended, f"rank {rank}: a child that the rank forked, and that calls verbs of its groups, hangs"
    code = os.waitstatus_to_exitcode(status)
    which = calls[code - 10][0] if code >= 10 else ""
    assert code < 10, f"rank {rank}: {which} raised no DevicesError in a child that the rank forked"
    assert code == 0, f"rank {rank}: a child that the rank forked, and that calls verbs of its groups, ended by {code}"
    gathered, largest = (work.result() for work in works)
    assert gathered.eq(1).all(), (
        f"rank {rank}: what was under way when it forked gathered {gathered.tolist()}, not ones"
    )
    assert largest.eq(1).all(), f"rank {rank}: what was under way when it forked is {largest.tolist()}, not ones"
    for step in range(3):
        total = devices.all_reduce(torch.full((5,), float(step), device=device))[0].item()
        assert total == step * size, (
            f"rank {rank}: after a forked child has ended the sum is {total}, expected {float(step * size)}"
        )


def other_threads(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: a thread of a thread rank's own is of no rank")
    size, rank, device = world.size, world.rank, world.device
    said: list[str] = []

    def body(number: int) -> None:
        try:
            for op in ("sum", "max"):
                x = torch.full((3,), float(rank + number), device=device)
                found = devices.all_reduce(x, op=op, async_op=number % 2 == 0)
                found = (found.result() if number % 2 == 0 else found)[0].item()
                values = [float(of + number) for of in range(size)]
                wanted = sum(values) if op == "sum" else max(values)
                if found != wanted:
                    said.append(f"{op} is {found}, expected {wanted}")
        except BaseException as error:
            said.append(f"{type(error).__name__}: {error}")

    # One after the other, each gone before the next comes.
    for number in range(6):
        thread = threading.Thread(target=body, args=(number,), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), f"rank {rank}: a verb on thread {number}, beside the main thread, does not end"
        assert not said, f"rank {rank}: on thread {number}, beside the main thread, {said[0]}"


def dead_peers(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    patience = datetime.timedelta(seconds=10)
    first, second = (dist.new_group(list(range(size)), timeout=patience) for _ in range(2))
    x = torch.ones(1000, device=device)
    for over in (first, second):
        total = devices.all_reduce(x, over)[0].item()
        assert total == size, f"rank {rank}: the sum of ones over {size} ranks is {total}"
    if rank == size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    for over, op in ((first, "sum"), (second, "max")):
        try:
            # Several, for the first may have been served before the peer died.
            for _ in range(3):
                devices.all_reduce(x, over, op=op)
        except devices.errors.CollectiveError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(
                f"rank {rank}: all_reduce with op {op!r} raised {type(error).__name__} when rank {size - 1} was "
                f"killed: {error}; expected a CollectiveError"
            ) from error
        else:
            raise AssertionError(f"rank {rank}: all_reduce with op {op!r} is done, though rank {size - 1} was killed")
        assert f"rank {rank} of {size}" in said, (
            f"rank {rank}: the error of a verb whose peer was killed does not say which rank it is on: {said}"
        )
    took = time.monotonic() - begin
    assert took < 60, (
        f"rank {rank}: with a timeout of 10 s it took {took:.0f} s to fail after rank {size - 1} was killed"
    )


def _dead_peers(subject: Subject, tally: Tally) -> None:
    size = size_of(subject)
    if subject.ranks != "processes":
        tally.skip("needs ranks that are processes: a thread cannot be killed")
    elif size is None:
        tally.skip(f"needs 2 ranks or more, and there may be {subject.sizes_in_words}")
    elif (failure := killed(subject.name, dead_peers, size, 1.5 * subject.timeout)) is not None:
        tally.failed.append(failure)
    else:
        tally.prove()


CHECKS = [
    law("life.aborted", "Aborting a group makes the verbs that are under way there fail, and no others.",
        aborted_verbs_fail),
    law("life.aborted_by_a_thread", "A thread may abort a group that another waits in, which then fails soon.",
        aborted_while_one_waits),
    Check("life.dead_peer", "When a rank is killed, the verbs of the others are CollectiveErrors within the timeout.",
          _dead_peers),
    law("life.late_peer", "A verb whose peer does not come is a CollectiveTimeoutError that names rank and verb.",
        # Processes on a machine that does other work take their time to open a group.
        late_peers, cases=lambda subject: ((8 if subject.ranks == "processes" else 3,),)),
    law("life.fork", "In a forked child the rank's groups are errors, and the rank itself goes on.", a_forked_child),
    law("life.threads", "Verbs may be called on any thread of a rank, one thread after another.", other_threads),
]  # fmt: skip
