"""What ranks do over the fabric of a host; each function runs on every rank, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from algorithms.meaning import same
from executor_cases import REDUCING, REDUCTIONS, REGULAR, ROOTED, Case, executed, expected_of, input_of, schedules
from fabric_member import Member, member
from interface_cases import LAWS

import devices
from devices._backend import Capabilities
from devices.algorithms import direct, dissemination, recursive, ring, trees
from devices.algorithms.layout import Layout
from devices.algorithms.replay import replay
from devices.algorithms.schedule import Schedule
from devices.algorithms.verbs import Verbs
from devices.errors import ArgumentError, CollectiveError, UnsupportedError
from devices.fabric import executor
from devices.fabric.communicator import REDUCTIONS as OWN
from devices.fabric.host.fabric import HostFabric
from devices.fabric.host.layout import ENTRIES
from devices.fabric.interface import Raised, Read


def laws() -> dict[str, Any]:
    """Return what this rank returns for each law of its world's size."""
    with devices.init(timeout=60) as world:
        return {name: law.body(world) for name, law in LAWS.items() if law.ranks == world.size}


# The executor.


def schedules_compute_their_verbs() -> int:
    """Return how many did."""
    with devices.init(timeout=60) as world:
        at, size = member("executor"), world.size
        cases: list[Case] = [
            (schedule, kind, "sum", torch.int64)
            for make in (*REGULAR, *ROOTED)
            for schedule in schedules(make, size)
            for kind in ("uneven", "even", "none")
        ]
        for make in (*REDUCING, trees.reduce):
            cases += [(schedules(make, size)[-1], "uneven", op, dtype) for op, dtype in REDUCTIONS]
        for number, case in enumerate(cases):
            found, expected = executed(at, *case), expected_of(*case)[world.rank]
            assert expected is None or same(found, expected), f"rank {world.rank}, case {number}: {case}"
        permutes(at, size)
        barriers(at, size)
        to_the_bit(at, size)
        many_at_once(at, size)
        return len(cases)


def permutes(at: Member, size: int) -> None:
    rank = at.fabric.rank
    ring_of_all = tuple((rank, (rank + 1) % size) for rank in range(size))
    for pairs in (ring_of_all, ring_of_all[::2], ((0, size - 1),), ((0, 0),), ()):
        schedule = direct.permute(size, pairs)
        sources = {target: source for source, target in pairs}
        given = input_of(schedule, sources.get(rank, rank), "even", torch.int64)
        expected = given if rank in sources else torch.zeros_like(given)
        assert torch.equal(executed(at, schedule, "even", "sum", torch.int64), expected)


def barriers(at: Member, size: int) -> None:
    for number in range(1, 6):
        schedule, mark, chunk = dissemination.barrier(size), at.mark("barrier"), torch.zeros(1, dtype=torch.uint8)
        chunks = Layout(schedule, (1,), chunk, {0: chunk}, {0: torch.zeros(1, dtype=torch.uint8)})
        at.fabric.signal(40, number)
        at.start(executor.run(schedule, at.fabric.rank, at.pairs, chunks, mark), mark).wait()
        assert at.fabric.holds(Raised(range(size), 40, number)), "nobody leaves before all have come"


def to_the_bit(at: Member, size: int) -> None:
    """Let the executor and the replay agree on sums of random floats: their bits tell the order of the operations."""
    for make in (ring.all_reduce, recursive.doubling, recursive.halving):
        generator = torch.Generator().manual_seed(size)
        # Small pieces lie beside their notes, large ones do not.
        tensors = [torch.randn(50_057, generator=generator) for _ in range(size)]
        schedule: Schedule = make(size)
        mine, mark = tensors[at.fabric.rank].clone(), at.mark()
        layout = Layout(schedule, (mine.numel(),), mine, {}, {0: mine})
        at.start(executor.run(schedule, at.fabric.rank, at.pairs, layout, mark, "sum"), mark).wait()
        replay(schedule, [Layout(schedule, (each.numel(),), each, {}, {0: each}) for each in tensors], "sum")
        assert torch.equal(mine, tensors[at.fabric.rank])


def many_at_once(at: Member, size: int) -> None:
    works, tensors, rank = [], [], at.fabric.rank
    for number in range(12):
        make = (ring.all_reduce, recursive.doubling, recursive.halving)[number % 3]
        schedule, tensor = make(size), torch.full((7,), float(rank * number))
        mark, chunks = at.mark(), Layout(schedule, (7,), tensor, {}, {0: tensor})
        works.append(at.start(executor.run(schedule, rank, at.pairs, chunks, mark, "sum"), mark))
        tensors.append(tensor)
    for work in works if rank % 2 else reversed(works):
        work.wait()
    total = sum(range(size))
    assert [tensor.tolist() for tensor in tensors] == [[float(total * number)] * 7 for number in range(12)]


# The verbs.


def verbs_over(at: Member) -> Verbs:
    """Return the verbs of `devices` over a fabric's communicator."""
    dtypes = frozenset({*(dtype for dtypes in OWN.values() for dtype in dtypes), torch.float16})
    return Verbs(at.communicator, at.group, Capabilities(dtypes, OWN))


def all_verbs(scheduled: bool) -> int:
    """Return how many kinds of calls were right."""
    with devices.init(timeout=60) as world:
        verbs = verbs_over(member("verbs", scheduled=scheduled))
        done = 0
        for length in (1, 5, 700, 30_000):
            for async_op in (False, True):
                done += _verbs_of(verbs, world.rank, world.size, length, async_op)
        verbs.close()
        return done


def _verbs_of(verbs: Verbs, me: int, size: int, length: int, async_op: bool) -> int:
    # Whole numbers, so that sums are exact in any order.
    given = [((torch.arange(length) * (rank + 3) + rank) % 13).float() for rank in range(size)]
    wholes = [torch.cat([each + 13 * rank for each in given]) for rank in range(size)]
    total = torch.stack(given).sum(0)
    right, left = (me + 1) % size, (me - 1) % size
    checks: list[tuple[Any, torch.Tensor, torch.Tensor]] = []

    def add(pending: Any, found: torch.Tensor, expected: torch.Tensor) -> None:
        checks.append((pending, found, expected))

    for op, expected in (("sum", total), ("max", torch.stack(given).amax(0)), ("avg", total / size)):
        mine = given[me].clone()
        add(verbs.all_reduce(mine, op, async_op=async_op), mine, expected)
    for root in range(size):
        mine = given[me].clone()
        add(verbs.broadcast(mine, root, async_op=async_op), mine, given[root])
        mine = given[me].clone()
        add(verbs.reduce(mine, root, async_op=async_op), mine, total if me == root else given[me])
        out = torch.zeros(size * length) if me == root else None
        pending = verbs.gather(out, given[me], root, async_op=async_op)
        add(pending, given[me] if out is None else out, given[me] if out is None else torch.cat(given))
        part = torch.zeros(length)
        pending = verbs.scatter(part, wholes[root] if me == root else None, root, async_op=async_op)
        add(pending, part, wholes[root].chunk(size)[me])
    out = torch.zeros(size * length)
    add(verbs.all_gather(out, given[me], async_op=async_op), out, torch.cat(given))
    out = torch.zeros(size * length)
    expected = torch.cat([whole.chunk(size)[me] for whole in wholes])
    add(verbs.all_to_all(out, wholes[me], async_op=async_op), out, expected)
    part = torch.zeros(length)
    expected = torch.stack(wholes).sum(0).chunk(size)[me]
    add(verbs.reduce_scatter(part, wholes[me], async_op=async_op), part, expected)
    counts = [(3 * rank + 1) % 5 for rank in range(size)]
    out = torch.zeros(sum(counts))
    expected = torch.cat([torch.full((count,), float(rank)) for rank, count in enumerate(counts)])
    add(verbs.all_gather(out, torch.full((counts[me],), float(me)), counts, async_op=async_op), out, expected)
    out = torch.zeros(length)
    pairs = [(rank, (rank + 1) % size) for rank in range(size)]
    add(verbs.permute(out, given[me], pairs, async_op=async_op), out, given[left])
    add(verbs.barrier(async_op=async_op), out, given[left])
    # Two messages each way, whose tags are taken in the other order.
    outs = {tag: torch.zeros(length) for tag in (5, 6)}
    sent = [verbs.send(given[me] + tag, right, tag, async_op=True) for tag in (5, 6)]
    received = [(tag, verbs.recv(outs[tag], left, tag, async_op=True)) for tag in (6, 5)]
    for tag, pending in received:
        add(pending, outs[tag], given[left] + tag)
    for pending, found, expected in reversed(checks) if async_op and me % 2 else checks:
        pending.wait()
        assert torch.equal(found, expected)
    for pending in sent:
        pending.wait()
    return len(checks)


def takes_messages_from_anyone() -> list[float]:
    with devices.init(timeout=60) as world:
        verbs = verbs_over(member("anyone"))
        if world.rank:
            verbs.send(torch.full((3,), float(world.rank)), 0, 4)
            return []
        found = []
        for _ in range(world.size - 1):
            tensor = torch.zeros(3, dtype=torch.float32)
            pending = verbs.recv_any(tensor, 4)
            pending.wait()
            assert tensor.eq(pending.source()).all()
            found.append(tensor[0].item())
        return sorted(found)


# Fabric memory.


def exports_lie_where_they_are() -> dict[str, Any]:
    """Return what rank 1 reads of tensors that rank 0 changes after it has exported them."""
    with devices.init(timeout=60) as world:
        fabric, found = member("memory").fabric, {}
        if world.rank == 0:
            there, elsewhere = devices.empty(5000, fabric=True).fill_(1.0), torch.ones(5000)
            fabric.export("there", there[1000:4000], None, readers=1, is_part=True)
            fabric.export("elsewhere", elsewhere, None, readers=1)
            there.fill_(2.0)
            elsewhere.fill_(2.0)
            fabric.signal(0, 1)
            fabric.wait([(fabric, Read("there"))], "the reader")
            fabric.wait([(fabric, Read("elsewhere"))], "the reader")
        else:
            fabric.wait([(fabric, Raised((0,), 0, 1))], "rank 0")
            for name in ("there", "elsewhere"):
                tensor, _ = fabric.open(0, name)
                assert tensor is not None
                found[name] = tensor.numel(), tensor.unique().tolist()
                fabric.close(0, name)
        dist.barrier()
        return found


def many_exports_and_their_memory() -> tuple[str, int]:
    """Return the error of the export that does not fit, and how much memory is kept of 200 that were read."""
    with devices.init(timeout=60) as world:
        fabric, peer = member("many").fabric, 1 - world.rank
        said = ""
        for number in range(ENTRIES + 1):
            try:
                fabric.export(number, None, number, readers=1)
            except UnsupportedError as error:
                said = str(error)
        dist.barrier()
        for number in range(ENTRIES):
            assert fabric.open(peer, number) == (None, number)
            fabric.close(peer, number)
        dist.barrier()
        before = _resident()
        for number in range(200):
            fabric.export("large", torch.ones(500_000), None, readers=1)
            fabric.signal(0, 1 + number)
            fabric.wait([(fabric, Raised((peer,), 0, 1 + number))], "the peer")
            tensor, _ = fabric.open(peer, "large")
            assert tensor is not None
            assert tensor[-1] == 1
            fabric.close(peer, "large")
            fabric.wait([(fabric, Read("large"))], "the reader")
        with pytest.raises(ArgumentError, match="lanes 0 to"):
            fabric.signal(10_000, 1)
        with pytest.raises(ArgumentError, match="Mark"):
            fabric.export("x", None, object(), readers=1)
        return said, _resident() - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def leaves_nothing_behind() -> tuple[list[str], int]:
    """Return which files are new, and how many descriptors more are open, after fabrics were opened and left."""
    before = _files()
    with devices.init(timeout=60):
        counts = []
        for _ in range(12):
            at = member("nothing is left")
            at.communicator.all_reduce(torch.ones(100_000), "sum").wait()
            at.communicator.close()
            counts.append(len(list(Path("/proc/self/fd").iterdir())))
        return sorted(_files() - before), counts[-1] - counts[1]


def _files() -> set[str]:
    return {str(path) for path in Path("/dev/shm").iterdir() if "devices" in path.name}


# When something goes wrong.


def _short(name: str, seconds: float) -> HostFabric:
    """Open a fabric whose timeout is short once it is open: ranks may come to the opening later than that."""
    fabric = member(name).fabric
    assert isinstance(fabric, HostFabric)
    fabric._watch._timeout = seconds
    return fabric


def _told(call: Callable[[], Any]) -> tuple[str, str, float]:
    """Return the error of a call: its class, its text, and how long it took."""
    start = time.monotonic()
    try:
        call()
    except CollectiveError as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return "", "", time.monotonic() - start


def errors_of_all_kinds() -> dict[str, tuple[str, str, float]]:
    """Return what this rank is told when another one fails in a way, each in a group of its own."""
    found = {}
    with devices.init(timeout=60) as world:
        me = world.rank

        verbs = member("mismatch").communicator
        found["mismatch"] = _told(lambda: verbs.all_reduce(torch.ones(3 + me % 2), "sum").wait())

        other = member("other verb").communicator
        call = (
            (lambda: other.broadcast(torch.ones(3), 0)) if me == 1 else (lambda: other.all_reduce(torch.ones(3), "sum"))
        )
        found["other verb"] = _told(lambda: call().wait())

        late = _short("late", 1.0)
        if me != 1:
            found["late"] = _told(lambda: late.wait([(late, Raised((1,), 0, 1))], "the signal"))
        dist.barrier()

        left = member("left")
        if me == 1:
            left.communicator.close()
        else:
            found["left"] = _told(lambda: left.communicator.barrier().wait())

        failed = member("failed")
        if me == 1:
            with contextlib.suppress(KeyboardInterrupt):
                failed.start(_interrupted(), failed.mark()).wait()
        else:
            found["failed"] = _told(lambda: failed.communicator.barrier().wait())

        waited = member("waited")
        if me == 1:
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, 2)
            with contextlib.suppress(KeyboardInterrupt):
                waited.communicator.exchange([], [devices.Message(torch.zeros(1, dtype=torch.uint8), 0)]).wait()
        else:
            found["waited"] = _told(lambda: waited.communicator.barrier().wait())

        polled = member("polled")
        if me == 1:
            polled.fabric.abort()
        else:
            work = polled.communicator.barrier()

            def poll() -> None:
                deadline = time.monotonic() + 30
                while not work.is_completed():
                    assert time.monotonic() < deadline
                work.wait()

            found["polled"] = _told(poll)
        dist.barrier()
    return found


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt("somebody pressed a key")


def _interrupted() -> Any:
    raise KeyboardInterrupt("somebody pressed a key")
    yield


def a_rank_dies() -> tuple[str, str, float] | None:
    with contextlib.suppress(CollectiveError), devices.init(timeout=60) as world:
        at = member("dies")
        at.communicator.barrier().wait()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return _told(lambda: at.communicator.all_gather(torch.zeros(3 * 8), torch.ones(8)).wait())
    return None


def a_rank_raises() -> tuple[str, str, float] | None:
    with contextlib.suppress(CollectiveError), devices.init(timeout=60) as world:
        at = member("raises")
        at.communicator.barrier().wait()
        if world.rank == 1:
            with contextlib.suppress(KeyError), world:
                raise KeyError("batch 7 is bad")
            return None
        return _told(lambda: at.communicator.all_gather(torch.zeros(3 * 8), torch.ones(8)).wait())
    return None
