"""The laws of a group's life: how it ends, in order and otherwise, and that nothing of it is left."""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
import unittest

import torch
import torch.distributed as dist

import devices
from devices.testing.conformance.check import Check, Tally
from devices.testing.conformance.death import killed
from devices.testing.conformance.laws import law, size_of
from devices.testing.conformance.subject import Subject


def closed_groups_refuse(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    group = dist.new_group(list(range(size)))
    x = torch.ones(2 * size, device=device)
    total = devices.all_reduce(x, group)[0].item()
    assert total == size, f"rank {rank}: the sum of ones over {size} ranks is {total}"
    dist.destroy_process_group(group)
    peer = (rank + 1) % size
    calls = [
        ("all_reduce", {}), ("all_reduce", {"op": "max"}), ("all_gather", {}), ("reduce_scatter", {}),
        ("all_to_all", {}), ("broadcast", {"src": 0}), ("reduce", {"dst": 0}), ("gather", {"dst": 0}),
        ("permute", {"pairs": [(0, 0)]}), ("send", {"dst": peer}), ("recv", {"src": peer}),
    ]  # fmt: skip
    for verb, given in calls:
        for async_op in (False, True):
            try:
                getattr(devices, verb)(x, group, async_op=async_op, **given)
            except devices.errors.WorldError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"rank {rank}: {verb} over a group that was closed raised {type(error).__name__}: {error}; "
                    "expected a WorldError"
                ) from error
            raise AssertionError(f"rank {rank}: {verb} over a group that was closed raised nothing, with {async_op=}")
    total = devices.all_reduce(x)[0].item()
    assert total == size, f"rank {rank}: after another group was closed the world's sum of ones is {total}, not {size}"


def closing_twice(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    group = dist.new_group(list(range(size)))
    devices.barrier(group)
    for _ in range(3):
        group.shutdown()
    dist.destroy_process_group(group)
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after a group was closed three times the world's sum of ones is {total}"
    world.close()
    world.close()


def opening_again(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: a thread rank has one world, which the run opens")
    rank, name = world.rank, world.backend
    world.close()
    for number in range(2):
        with devices.init(name, timeout=60) as again:
            x = torch.full((3,), float(again.rank + number), device=again.device)
            found = devices.all_reduce(x)[0].item()
            wanted = float(sum(of + number for of in range(again.size)))
            assert again.rank == rank, f"rank {rank} is rank {again.rank} in a world that was opened after the first"
            assert found == wanted, f"rank {rank}: the sum in world {number + 2} is {found}, expected {wanted}"


def closing_with_verbs_under_way(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    for step in range(3):
        group = dist.new_group(list(range(size)))
        works = [devices.all_reduce(torch.full((1000,), float(rank), device=device), group, op=op, async_op=True)
                 for op in ("sum", "max", "sum", "max")]  # fmt: skip
        dist.destroy_process_group(group)
        for number, work in enumerate(works):
            try:
                found = work.result()[0].item()
            except devices.errors.DevicesError:
                continue  # it was given up, and says so
            wanted = float(sum(range(size)) if number % 2 == 0 else size - 1)
            assert found == wanted, (
                f"rank {rank}: verb {number} of group {step}, under way when the group was closed, returned {found}; "
                f"expected {wanted} or an error"
            )
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after groups were closed with verbs under way the sum of ones is {total}"


def aborted_verbs_fail(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    patience = 30
    group = dist.new_group(list(range(size)), timeout=datetime.timedelta(seconds=120))
    devices.barrier(group)
    if rank == 0:
        # A collective that the others never call.
        work = devices.all_gather(torch.ones(3, device=device), group, async_op=True)
        begin = time.monotonic()
        group.abort()
        group.abort()
        try:
            work.wait()
        except devices.errors.CollectiveError:
            pass
        except Exception as error:
            raise AssertionError(
                f"a verb under way when its group was aborted raised {type(error).__name__}: {error}; "
                "expected a CollectiveError"
            ) from error
        else:
            raise AssertionError("a verb that no other rank has called returned when its group was aborted")
        took = time.monotonic() - begin
        assert took < patience, f"a verb under way when its group was aborted took {took:.0f} s to fail"
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after another group was aborted the world's sum of ones is {total}, not {size}"
    dist.destroy_process_group(group)


def aborted_while_a_thread_waits(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: a thread of a thread rank's own is of no rank")
    size, rank, device = world.size, world.rank, world.device
    for op in ("sum", "max"):
        group = dist.new_group(list(range(size)), timeout=datetime.timedelta(seconds=120))
        devices.barrier(group)
        said: list[object] = []
        if rank == 0:

            def wait() -> None:
                try:
                    said.append(devices.all_reduce(torch.ones(3, device=device), group, op=op))  # noqa: B023
                except BaseException as error:
                    said.append(error)  # noqa: B023

            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            time.sleep(0.1)
            group.abort()
            thread.join(30)
            assert said, f"all_reduce with op {op!r} still waits 30 s after another thread aborted its group"
            assert isinstance(said[0], devices.errors.CollectiveError), (
                f"all_reduce with op {op!r} came to {said[0]!r} when another thread aborted its group; "
                "expected a CollectiveError"
            )
        total = devices.all_reduce(torch.ones(1, device=device)).item()
        assert total == size, f"rank {rank}: after another group was aborted the sum of ones is {total}, not {size}"
        dist.destroy_process_group(group)


def late_peers(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: of thread ranks a deadlock is found before time is up")
    size, rank, device = world.size, world.rank, world.device
    seconds, patience = 5, 40
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
                assert f"rank {rank} of {size}" in str(error), (
                    f"rank {rank}: the error of a verb whose peer is late does not say which rank it is on: {error}"
                )
                assert name.partition(" ")[0] in str(error), (
                    f"rank {rank}: the error of {name} whose peer is late does not name the verb: {error}"
                )
            except Exception as error:
                raise AssertionError(
                    f"rank {rank}: {name} raised {type(error).__name__} where rank {last} did not come in time: "
                    f"{error}; expected a CollectiveTimeoutError"
                ) from error
            else:
                raise AssertionError(f"rank {rank}: {name} is done, though rank {last} never called it")
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
    work = devices.all_reduce(x, op="max", async_op=True)  # there may be a thread that is not there in the child
    work.wait()
    peer = (rank + 1) % size
    calls = [
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
                world.close()  # what the parent has must be left to it
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


def nothing_is_left(world: devices.World, count: int) -> None:
    if not os.path.exists("/proc/self/statm"):
        raise unittest.SkipTest("needs Linux's /proc, to count what a process holds")
    import gc

    size, rank, device = world.size, world.rank, world.device

    def held() -> tuple[int, int, int]:
        gc.collect()
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), pages * os.sysconf("SC_PAGE_SIZE")

    def open_and_close() -> None:
        group = dist.new_group(list(range(size)))
        found = devices.all_reduce(torch.ones(1000, device=device), group)[0].item()
        assert found == size, f"rank {rank}: in one of {count} groups the sum of ones is {found}, expected {size}"
        devices.all_reduce(torch.ones(10, device=device), group, op="max", async_op=True).wait()
        dist.destroy_process_group(group)

    for _ in range(10):
        open_and_close()
    # Of thread ranks the others come and go too, so all stand still while one counts.
    devices.barrier()
    files, threads, memory = held()
    devices.barrier()
    part = max(1, count // 10)
    times = []
    for _ in range(10):
        begin = time.monotonic()
        for _ in range(part):
            open_and_close()
        times.append(time.monotonic() - begin)
    devices.barrier()
    now_files, now_threads, now_memory = held()
    devices.barrier()
    assert now_files <= files + 10 + count // 20, (
        f"rank {rank}: {count} groups were opened and closed, and the process holds {now_files} open files, "
        f"{files} before"
    )
    assert now_threads <= threads + 10 + count // 20, (
        f"rank {rank}: {count} groups were opened and closed, and the process has {now_threads} threads, "
        f"{threads} before"
    )
    grown = (now_memory - memory) / 2**20
    allowed = 48 + 0.1 * count
    assert grown <= allowed, (
        f"rank {rank}: {count} groups were opened and closed, and the process has {grown:.1f} MiB more memory than "
        f"before; expected no more than {allowed:.0f} MiB"
    )
    first, last = sorted(times[:3])[1], sorted(times[-3:])[1]
    assert last <= 8 * first + 2, (
        f"rank {rank}: of {count} groups, the last took {last / part * 1000:.1f} ms each to open and close, the first "
        f"{first / part * 1000:.1f} ms; expected no more than 8 times as much, and 2 s in all"
    )


def verbs_leave_nothing(world: devices.World, count: int) -> None:
    if not os.path.exists("/proc/self/statm"):
        raise unittest.SkipTest("needs Linux's /proc, to count what a process holds")
    import gc

    size, rank, device = world.size, world.rank, world.device
    around = [(of, (of + 1) % size) for of in range(size)]
    x = torch.ones(65_536 * size, device=device)

    def held() -> tuple[int, int, int]:
        gc.collect()
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), pages * os.sysconf("SC_PAGE_SIZE")

    def call() -> None:
        devices.all_reduce(x)
        devices.all_reduce(x, op="max", async_op=True).wait()
        devices.all_gather(x[: x.numel() // size])
        devices.reduce_scatter(x)
        devices.all_to_all(x)
        devices.broadcast(x, src=0)
        devices.permute(x, pairs=around)

    for _ in range(10):
        call()
    devices.barrier()
    files, threads, memory = held()
    devices.barrier()
    for _ in range(count):
        call()
    devices.barrier()
    now_files, now_threads, now_memory = held()
    devices.barrier()
    grown, moved = (now_memory - memory) / 2**20, 7 * count * x.nbytes / 2**20
    allowed = 64 + 0.05 * moved
    assert grown <= allowed, (
        f"rank {rank}: {7 * count} verbs over {x.nbytes / 2**20:.1f} MiB were called, and the process has {grown:.1f} "
        f"MiB more memory than before; expected no more than {allowed:.0f} MiB"
    )
    assert now_files <= files + 10, (
        f"rank {rank}: {7 * count} verbs were called, and the process holds {now_files} open files, {files} before"
    )
    assert now_threads <= threads + 10, (
        f"rank {rank}: {7 * count} verbs were called, and the process has {now_threads} threads, {threads} before"
    )


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
            assert f"rank {rank} of {size}" in str(error), (
                f"rank {rank}: the error of a verb whose peer was killed does not say which rank it is on: {error}"
            )
        except Exception as error:
            raise AssertionError(
                f"rank {rank}: all_reduce with op {op!r} raised {type(error).__name__} when rank {size - 1} was "
                f"killed: {error}; expected a CollectiveError"
            ) from error
        else:
            raise AssertionError(f"rank {rank}: all_reduce with op {op!r} is done, though rank {size - 1} was killed")
    took = time.monotonic() - begin
    assert took < 60, f"rank {rank}: with a timeout of 10 s it took {took:.0f} s to fail after rank {size - 1} was killed"


def _dead_peers(subject: Subject, tally: Tally) -> None:
    size = size_of(subject)
    if subject.ranks != "processes":
        tally.skip("needs ranks that are processes: a thread cannot be killed")
    elif size is None:
        tally.skip(f"needs 2 ranks or more, and there may be {subject.sizes_in_words}")
    elif (failure := killed(subject.name, dead_peers, size)) is not None:
        tally.failed.append(failure)
    else:
        tally.prove()


CHECKS = [
    law("life.closed", "Every verb over a closed group is a WorldError, and other groups go on.", closed_groups_refuse,
        messages=True),
    law("life.closed_twice", "A group and a world may be closed more than once.", closing_twice),
    law("life.opened_again", "A world may be opened after another was closed.", opening_again),
    law("life.closed_under_way", "A group may be closed with verbs under way: they are done, or say that they are not.",
        closing_with_verbs_under_way),
    law("life.aborted", "Aborting a group makes the verbs that are under way there fail, and no others.",
        aborted_verbs_fail),
    law("life.aborted_by_a_thread", "A thread may abort a group that another waits in, which then fails soon.",
        aborted_while_a_thread_waits),
    Check("life.dead_peer", "When a rank is killed, the verbs of the others are CollectiveErrors within the timeout.",
          _dead_peers),
    law("life.late_peer", "A verb whose peer does not come is a CollectiveTimeoutError that names rank and verb.",
        late_peers),
    law("life.fork", "In a forked child the rank's groups are errors, and the rank itself goes on.", a_forked_child),
    law("life.threads", "Verbs may be called on any thread of a rank, one thread after another.", other_threads),
    law("life.groups", "A thousand groups leave no files, threads or memory, and the last opens as fast as the first.",
        nothing_is_left, cases=lambda subject: ((100 if subject.quick else 1000,),)),
    law("life.verbs", "Thousands of verbs leave no files, threads or memory.", verbs_leave_nothing,
        cases=lambda subject: ((50 if subject.quick else 200,),)),
]  # fmt: skip
