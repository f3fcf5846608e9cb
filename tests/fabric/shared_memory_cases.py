"""What ranks do over shared memory; each function runs on every rank, in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices
from devices import errors
from devices.fabric.host.layout import BUFFER, SMALL

# Elements of float32 at which an algorithm changes or a piece ends, and their neighbours; the last is several pieces.
SIZES = (
    *(1, 2, 3, 17, SMALL // 4 - 1, SMALL // 4, SMALL // 4 + 1),
    *(BUFFER // 4 - 1, BUFFER // 4, BUFFER // 4 + 1, 3 * BUFFER // 4 + 5),
)


def of(rank: int, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return what a rank gives: whole numbers that every dtype holds exactly, and so do their sums."""
    return ((torch.arange(size) * (rank + 3) + rank) % 13).to(dtype)


def all_verbs_at_all_sizes() -> None:
    with devices.init() as world:
        me, n = world.rank, world.size
        for size in SIZES:
            given = [of(rank, size) for rank in range(n)]
            mine = given[me]
            before = mine.clone()
            total = torch.stack(given).sum(0)
            _same(devices.all_reduce(mine), total)
            _same(devices.all_reduce(mine, op="max"), torch.stack(given).amax(0))
            _same(devices.all_reduce(mine.double(), op="avg"), torch.stack(given).double().mean(0))
            _same(devices.all_reduce(mine.bfloat16(), op="min"), torch.stack(given).amin(0).bfloat16())
            _same(devices.all_gather(mine), torch.cat(given))
            for root in range(n):
                _same(devices.broadcast(mine, src=root), given[root])
                _same(devices.reduce(mine, dst=root), total if me == root else None)
                _same(devices.gather(mine, dst=root), torch.cat(given) if me == root else None)
            whole = torch.cat([mine + 13 * rank for rank in range(n)])
            _same(devices.reduce_scatter(whole), total + 13 * me * n)
            _same(devices.all_to_all(whole), torch.cat([each + 13 * me for each in given]))
            _same(devices.scatter(whole if me == 1 else None, src=1), given[1] + 13 * me)
            _same(devices.permute(mine, pairs=[(rank, (rank + 1) % n) for rank in range(n)]), given[(me - 1) % n])
            _same(mine, before)


def uneven_parts(counts: list[int]) -> None:
    with devices.init() as world:
        me, n = world.rank, world.size
        mine = of(me, counts[me])
        _same(devices.all_gather(mine, sizes=counts), torch.cat([of(rank, counts[rank]) for rank in range(n)]))
        given = [of(rank, sum(counts)) for rank in range(n)]
        _same(devices.reduce_scatter(given[me], sizes=counts), torch.stack(given).sum(0).split(counts)[me])
        rows = [[(counts[i] * (j + 1)) // 2 for j in range(n)] for i in range(n)]
        sent = of(me, sum(rows[me]))
        expected = torch.cat([of(rank, sum(rows[rank])).split(rows[rank])[me] for rank in range(n)])
        _same(devices.all_to_all(sent, sizes=rows), expected)


def many_asynchronous_verbs_and_groups() -> None:
    with devices.init() as world:
        me, n = world.rank, world.size
        pairs = [dist.new_group([rank, (rank + 1) % n]) for rank in range(n)]
        works = []
        for number in range(20):
            size = 5 if number % 2 else SMALL
            # The two ranks of a pair come to its group in one order.
            for rank in (None, *sorted({me, (me - 1) % n})):
                group = None if rank is None else pairs[rank]
                members = range(n) if rank is None else sorted({rank, (rank + 1) % n})
                work = devices.all_reduce(of(me + number, size), group, async_op=True)
                works.append((work, torch.stack([of(member + number, size) for member in members]).sum(0)))
        # In another order than they were started in.
        for work, expected in reversed(works):
            _same(work.result(), expected)


def messages() -> None:
    with devices.init() as world:
        me, n = world.rank, world.size
        right, left = (me + 1) % n, (me - 1) % n
        # Larger than what may be on its way, both ways at once, and tags that are taken in the other order.
        for size in (0, 1, 1000, 3_000_001):
            sends = [devices.send(of(me + tag, size), dst=right, tag=tag, async_op=True) for tag in (5, 6, 7)]
            for tag in (7, 5, 6):
                _same(devices.recv(torch.empty(size), src=left, tag=tag), of(left + tag, size))
            for work in sends:
                work.wait()
        for number in range(50):
            devices.send(of(number, 3), dst=right)
        for number in range(50):
            _same(devices.recv(torch.empty(3), src=left), of(number, 3))
        # Bytes of odd lengths at odd places, which end anywhere in what the messages go through.
        for number in range(60):
            size = number * 7919 + number % 3
            whole = torch.arange(size + 1).to(torch.uint8)
            work = devices.send(whole[1:], dst=right, async_op=True)
            got = torch.zeros(size, dtype=torch.uint8)
            assert devices.recv(got, src=left, out=got) is got
            assert torch.equal(got, whole[1:]), (number, size)
            work.wait()
        if me:
            dist.send(of(me, 4), dst=0)
        else:
            found = []
            for _ in range(n - 1):
                tensor = torch.empty(4)
                found.append(dist.recv(tensor))
                _same(tensor, of(found[-1], 4))
            assert sorted(found) == list(range(1, n))


def _all_reduced_by_one_of_three_ways(x: torch.Tensor, way: int) -> torch.Tensor:
    if way == 0:
        return devices.all_reduce(x)
    if way == 1:
        return devices.all_reduce(x, async_op=True).result()
    return devices.all_reduce(x, out=x)


def same_bits() -> list[str]:
    """Return sums that depend on the order, of sizes that are reduced in different ways, as bits."""
    with devices.init() as world:
        found = []
        for size in (1, 3, 1024, 1025, 4097, SMALL // 4):
            for dtype in (torch.float32, torch.float64):
                for turn in range(3):
                    torch.manual_seed(world.rank)
                    x = torch.randn(size, dtype=dtype) * 10.0**world.rank
                    y = _all_reduced_by_one_of_three_ways(x, (world.rank + turn) % 3)
                    found.append(hashlib.sha256(y.view(torch.uint8).numpy().tobytes()).hexdigest())
        return found


def fabric_memory() -> tuple[float, int]:
    with devices.init() as world:
        me, n = world.rank, world.size
        for size in (4096, 4097, SMALL // 4, SMALL // 4 + 1, SMALL, SMALL + 1, 1_000_003):
            x = devices.empty(size, fabric=True).copy_(of(me, size))
            _same(devices.all_reduce(x, out=x), torch.stack([of(rank, size) for rank in range(n)]).sum(0))
            # One rank's lies elsewhere.
            y = x.clone() if me == 1 else x
            _same(devices.all_reduce(y, out=y, op="max"), torch.stack([of(rank, size) for rank in range(n)]).sum(0))
            for z in (x, x if me == 1 else x.clone()):
                z.copy_(of(me, size))
                _same(devices.all_reduce(z), torch.stack([of(rank, size) for rank in range(n)]).sum(0))
                _same(z, of(me, size))
                # Ranks may call it in different ways.
                _same(
                    _all_reduced_by_one_of_three_ways(z, me), torch.stack([of(rank, size) for rank in range(n)]).sum(0)
                )
        placed = devices.place(torch.arange(12.0), world.mesh({"tp": -1}), tp=devices.Shard(0), fabric=True)
        _same(placed.to_local(), torch.arange(12.0).chunk(n)[me])
        _same(placed.full_tensor(), torch.arange(12.0))
        before = _resident()
        for _ in range(20):
            devices.empty(10_000_000, fabric=True).fill_(1.0)
        return devices.empty(5, fabric=True).sum().item(), _resident() - before


def raises_and_says(act: str) -> tuple[str, str, float]:
    """Let rank 1 go in a way; return on the others what they are told, and after how long."""
    with devices.init() as world:
        devices.barrier()
        start = time.monotonic()
        if world.rank == 1:
            if act == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            elif act == "leaves":
                return "", "", 0.0
        try:
            devices.all_reduce(torch.ones(SMALL if act == "dies" else 1))
        except errors.CollectiveError as error:
            first = type(error).__name__, str(error), time.monotonic() - start
        with pytest.raises(errors.CollectiveError, match="closed for good"):
            devices.barrier()
        return first


def recovers() -> tuple[int, int, list[float], str]:
    world = devices.init(timeout=60)
    x = devices.empty(1 << 20, fabric=True).fill_(1.0)
    devices.all_reduce(x, out=x)
    assert fabric_memories() == 4, "this process's own, and the peers'"
    devices.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        devices.barrier()
    except errors.CollectiveError:
        with world.recover() as again:
            assert fabric_memories() == 1, "that of who died is given back with the group"
            assert x[-1] == 4
            total = devices.all_reduce(torch.tensor([1.0, world.rank]))
            return again.rank, again.size, total.tolist(), again.explain()
    raise AssertionError("rank 1 has died, and a barrier ended")


def fabric_memories() -> int:
    """Return how many ranks' fabric memories are mapped here."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[4] for line in lines if "fabric memory" in line})


def closes_with_a_message_that_was_not_received() -> tuple[str, float]:
    said = ""
    try:
        with devices.init() as world:
            if world.rank == 0:
                devices.send(torch.ones(4), dst=1, tag=9)
            devices.barrier()
    except errors.CollectiveError as error:
        said = str(error)
    # The world is closed all the same, and another opens.
    with devices.init():
        return said, devices.all_reduce(torch.ones(1)).item()


def fails_with_a_message_that_was_not_received() -> None:
    with devices.init() as world:
        if world.rank == 0:
            devices.send(torch.ones(4), dst=1)
        devices.barrier()
        raise KeyError("the program's own error is what is raised")


def forks_with_fabric_memory() -> list[float]:
    x = devices.empty(1000, fabric=True).fill_(1.0)
    child = os.fork()
    if not child:
        devices.empty(1000, fabric=True).fill_(2.0)
        os._exit(0)
    os.waitpid(child, 0)
    y = devices.empty(1000, fabric=True)
    return [x.sum().item(), y.sum().item()]


def recovers_with_a_group_that_has_a_message_left() -> list[float]:
    world = devices.init(timeout=60)
    pair = dist.new_group([0, 1])
    if world.rank == 0:
        devices.send(torch.ones(4), pair, dst=1)
    devices.barrier()
    if world.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(errors.CollectiveError):
        devices.barrier()
    with world.recover():
        return devices.all_reduce(torch.ones(2)).tolist()


def sees_that_a_message_will_not_come() -> str:
    with devices.init(timeout=60) as world:
        devices.barrier()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        work = devices.recv(torch.zeros(4), src=1, async_op=True)
        deadline = time.monotonic() + 30
        while not work.is_completed():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert work.is_completed()
        return str(work.exception())


def many_threads_wait(number: int) -> None:
    with devices.init(timeout=120) as world:
        other = 1 - world.rank
        with ThreadPoolExecutor(number) as threads:
            found = [threads.submit(devices.recv, torch.zeros(3), src=other, tag=tag) for tag in range(number)]
            time.sleep(0.5)
            for tag in reversed(range(number)):
                devices.send(of(tag, 3), dst=other, tag=tag)
            for tag, future in enumerate(found):
                _same(future.result(), of(tag, 3))


def sums_that_overflow() -> list[float]:
    with warnings.catch_warnings(), devices.init():
        warnings.simplefilter("error")
        big = torch.full((70_000,), 3e38)
        devices.all_reduce(big, out=big)
        return [devices.all_reduce(torch.tensor([3e38, 1.0]))[0].item(), big[0].item(), big[-1].item()]


def ends_by_an_error_after_a_second_group() -> str:
    world = devices.init(timeout=60)
    group = dist.new_group(list(range(world.size)))
    devices.barrier(group)
    if world.rank == 1:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            sys.excepthook(ValueError, ValueError("batch 7 is bad"), None)
        return said.getvalue()
    with pytest.raises(errors.CollectiveError, match="it raised ValueError: batch 7 is bad") as told:
        devices.barrier()
    return str(told.value)


def frees_fabric_memory_while_it_takes_more() -> float:
    for _ in range(300):
        held = [devices.empty(100, fabric=True)]
        held.append(held)  # type: ignore[arg-type]  # a cycle, which the collector frees whenever it runs
        del held
    return devices.empty(100, fabric=True).sum().item()


def reduces_beside_the_program_on_one_rank() -> list[list[int]]:
    """Return the bits of sums and products that rank 0 starts asynchronously and the others do not."""
    bits = []
    with devices.init() as world:
        chance = torch.Generator().manual_seed(world.rank)
        for _ in range(10):
            x = torch.randn(50, dtype=torch.complex64, generator=chance)
            product = devices.all_reduce(x, op="prod", async_op=world.rank == 0)
            zeros = torch.tensor([0.0, -0.0]).roll(world.rank)
            least = devices.all_reduce(zeros, op="min", async_op=world.rank == 0)
            if world.rank == 0:
                product, least = product.result(), least.result()
            bits.append(torch.cat([torch.view_as_real(product).reshape(-1), least]).view(torch.int32).tolist())
    return bits


def leaves_nothing_behind() -> list[str]:
    before = set(_files())
    with devices.init():
        devices.all_reduce(torch.ones(1000))
        devices.empty(1000, fabric=True)
        return sorted(set(_files()) - before)


def opens_and_closes_groups(number: int) -> tuple[int, int]:
    with devices.init() as world:
        everyone = list(range(world.size))

        def some(count: int) -> int:
            for _ in range(count):
                group = dist.new_group(everyone)
                devices.all_reduce(torch.ones(3), group)
                dist.destroy_process_group(group)
            return len(list(Path("/proc/self/fd").iterdir()))

        return some(5), some(number)


def explained() -> str:
    with devices.init() as world:
        return world.explain()


def _files() -> list[str]:
    return [str(path) for place in ("/dev/shm", "/tmp") for path in Path(place).iterdir() if "devices" in path.name]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _same(found: Any, expected: torch.Tensor | None) -> None:
    if expected is None:
        assert found is None
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


CASES: tuple[Callable[..., Any], ...] = (all_verbs_at_all_sizes, many_asynchronous_verbs_and_groups, messages)
