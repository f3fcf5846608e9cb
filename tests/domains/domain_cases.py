"""What ranks do whose group has several domains: ranks of one host that are told to be as on different ones."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

import devices
from devices import errors
from devices.algorithms.verbs import Verbs
from devices.c10d.lanes import lanes_of
from devices.fabric.host import meeting
from devices.topology import synthesize, torus


def world(domains: Sequence[int], links: Sequence[str] = ()) -> devices.World:
    """Open a world in which rank r is in domain `domains[r]`, and has been told of a bandwidth of `links[r]`."""
    rank = int(os.environ["RANK"])
    os.environ["DEVICES_DOMAIN"] = f"island-{domains[rank]}"
    if links:
        os.environ["DEVICES_LINK_BANDWIDTH"] = links[rank]
    return devices.init(timeout=60)


def of(rank: int, size: int) -> torch.Tensor:
    """Return numbers of a rank's own, whose sums are exact."""
    return (torch.arange(size) % 97 + 3 * rank).float()


def every_verb(domains: Sequence[int], links: Sequence[str]) -> str:
    with world(domains, links) as w:
        me, n = w.rank, w.size
        for size in (1, 5, 1000, 262_144 * n + 7):
            xs = [of(rank, size) for rank in range(n)]
            blocks = [of(rank, size * n) for rank in range(n)]
            same(devices.all_reduce(xs[me]), torch.stack(xs).sum(0))
            same(devices.all_reduce(xs[me], op="max"), torch.stack(xs).amax(0))
            same(devices.all_reduce(xs[me].bfloat16(), op="avg"), torch.stack(xs).bfloat16().float().mean(0).bfloat16())
            same(devices.all_gather(xs[me]), torch.cat(xs))
            same(devices.reduce_scatter(blocks[me]), torch.stack(blocks).sum(0).chunk(n)[me])
            same(devices.all_to_all(blocks[me]), torch.cat([block.chunk(n)[me] for block in blocks]))
            same(devices.permute(xs[me], pairs=[(rank, (rank + 1) % n) for rank in range(n)]), xs[me - 1])
            for root in range(n):
                same(devices.broadcast(xs[me], src=root), xs[root])
                gathered = devices.gather(xs[me], dst=root)
                reduced = devices.reduce(xs[me], dst=root)
                if me == root:
                    same(gathered, torch.cat(xs))
                    same(reduced, torch.stack(xs).sum(0))
                same(
                    devices.scatter(blocks[root] if me == root else None, src=root),
                    blocks[root].chunk(n)[me],
                )
            work = devices.all_reduce(xs[me], async_op=True)
            same(devices.all_gather(xs[me]), torch.cat(xs))
            same(work.result(), torch.stack(xs).sum(0))
            sizes = [rank * 3 for rank in range(n)]
            same(
                devices.all_gather(of(me, sizes[me]), sizes=sizes),
                torch.cat([of(rank, sizes[rank]) for rank in range(n)]),
            )
            messages(me, n, size)
            devices.barrier()
        return f"{devices.explain()}\n{devices.explain(dist.group.WORLD)}"


def messages(me: int, n: int, size: int) -> None:
    """Let each rank send to each other one, then all to rank 0, which does not say whom it hears."""
    others = [rank for rank in range(n) if rank != me]
    came = {peer: torch.empty(size) for peer in others}
    # Of one size or two, with one tag or two, in an order that is not that of the sends.
    longer = {peer: torch.empty(size + 1) for peer in others}
    again = {peer: torch.empty(size) for peer in others}
    ways = [(dist.irecv, each, 0) for each in (longer, again)] + [(dist.irecv, came, 1)]
    works = [way(each[peer], peer, tag=tag) for way, each, tag in ways for peer in others]
    for extra, tag, factor in ((0, 1, 1), (1, 0, 2), (0, 0, 3)):
        works += [dist.isend(of(me, size + extra) * factor, peer, tag=tag) for peer in others]
    for work in works:
        work.wait()
    for peer in others:
        same(came[peer], of(peer, size))
        same(longer[peer], of(peer, size + 1) * 2)
        same(again[peer], of(peer, size) * 3)
    if me:
        dist.send(of(me, size), 0, tag=7)
    else:
        found = torch.empty(size)
        sources = []
        for _ in others:
            sources.append(dist.recv(found, tag=7))
            same(found, of(sources[-1], size))
        assert sorted(sources) == others


def through_host(domains: Sequence[int]) -> None:
    """Let rank 0 send to rank 1 of another domain what goes through host memory, by several tags."""
    with world(domains) as w:
        lanes = lanes_of(dist.group.WORLD)
        assert lanes is not None
        group = replace(lanes.group, store=lanes.group.store.under("staged"), name="staged")
        verbs = Verbs(devices.open_staged(group, "a test"), group, devices.Capabilities(frozenset()))
        total = torch.full((4,), float(w.rank))
        if w.rank == 1:
            # Asked for in another order than they are sent in, and one of another size; all before the sum.
            sizes = {3: 9, 2: 4, 1: 4}
            came = {tag: torch.empty(size) for tag, size in sizes.items()}
            works = [verbs.recv(came[tag], 0, tag, async_op=True) for tag in sizes]
            verbs.all_reduce(total)
            for work in works:
                work.wait()
            for tag, size in sizes.items():
                same(came[tag], of(tag, size))
            found = torch.empty(5)
            work = verbs.recv_any(found, tag=4)
            work.wait()
            assert work.source() == 0
            same(found, of(4, 5))
        else:
            sent = (
                [verbs.send(of(t, n), 1, t, async_op=True) for t, n in ((1, 4), (2, 4), (3, 9))] if not w.rank else []
            )
            verbs.all_reduce(total)
            for work in sent:
                work.wait()
            if w.rank == 0:
                verbs.send(of(4, 5), 1, tag=4)
        same(total, torch.full((4,), float(sum(range(w.size)))))
        verbs.close()


def receives_from_any(domains: Sequence[int]) -> None:
    """Let the last rank receive from any and from rank 0, and wait in the other order; rank 1 is in its domain."""
    with world(domains) as w:
        last = w.size - 1
        for number in range(3):
            if w.rank == 1:
                dist.send(of(number, 4), last, tag=5)
                work = dist.isend(of(number, 4), 0, tag=6)
            elif w.rank == last:
                dist.recv(found := torch.empty(4), tag=5)
                same(found, of(number, 4))
            else:
                work = dist.irecv(found := torch.empty(4), 1, tag=6)
            if w.rank != last:
                while not work.is_completed():
                    time.sleep(0.001)
                work.wait()
            if w.rank == 0:
                same(found, of(number, 4))
        if w.rank == 0:
            sent = [dist.isend(of(number, 4), last) for number in range(3)]
            # These are waited for before those, whose data the last rank asks for beside what it does.
            for work in sent:
                work.wait()
            dist.send(of(4, 4), last, tag=2)
        elif w.rank == last:
            named, came = torch.empty(4), [torch.empty(4) for _ in range(2)]
            works = [dist.irecv(came[0]), dist.irecv(named, src=0), dist.irecv(came[1])]
            dist.recv(found := torch.empty(4), tag=2)
            same(found, of(4, 4))
            for work in reversed(works):
                work.wait()
            # gloo gives who names its rank what comes first.
            assert sorted(each[0].item() for each in (*came, named)) == [0.0, 3.0, 6.0]
            assert [each[3].item() - each[0].item() for each in (*came, named)] == [3.0] * 3
            near = dist.irecv(near_came := torch.empty(5), tag=3)
            dist.send(of(1, 1), 1, tag=4)
            near.wait()
            same(near_came, of(5, 5))
        elif w.rank == 1:
            dist.recv(torch.empty(1), tag=4)
            dist.send(of(5, 5), last, tag=3)
        if w.rank == last:
            dist.irecv(torch.empty(1), tag=9)
        devices.barrier()


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def same_bits(domains: Sequence[int], links: Sequence[str]) -> list[bytes]:
    """Return sums that depend on the order, as bits, three times."""
    with world(domains, links) as w:
        found = []
        for _ in range(3):
            torch.manual_seed(w.rank)
            x = torch.randn(300_001) * 10.0**w.rank
            found.append(devices.all_reduce(x).numpy().tobytes())
        return found


def trains(domains: Sequence[int]) -> list[float]:
    """Return the losses of three steps of a small model under DDP, each rank on a part of the batch of its own."""
    with world(domains) as w:
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2).double())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for step in range(3):
            batch = batch_of(step)[w.rank :: w.size]
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(devices.all_reduce(loss.detach(), op="avg").item())
        return losses


def batch_of(step: int) -> torch.Tensor:
    return torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def goes_wrong(domains: Sequence[int], how: str) -> tuple[str, str, float]:
    """Let rank 1 do something else than the others; return what this rank is told, and after how long."""
    w = world(domains)
    devices.barrier()
    start = time.monotonic()
    odd = w.rank == 1
    try:
        if odd and how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif odd and how == "raises":
            with w:
                raise ValueError("batch 7 is bad")
        elif how == "another size of all_to_all":
            devices.all_to_all(torch.ones(8 if odd else 4))
        elif how == "another size of a message":
            # Of rank 0 to rank 1; the others wait for something else.
            if w.rank == 0:
                devices.send(torch.ones(4), dst=1)
            elif odd:
                devices.recv(torch.ones(8), src=0)
            else:
                # What nobody sends: who only asks is told too.
                work = dist.irecv(torch.empty(1), 5 - w.rank)
                while not work.is_completed():
                    time.sleep(0.01)
                work.wait()
            devices.barrier()
        elif how == "another dtype of permute":
            devices.permute(torch.ones(4, dtype=torch.int32 if odd else torch.float32), pairs=[(1, 3), (3, 1)])
        elif how == "is interrupted":
            if odd:
                signal.signal(signal.SIGALRM, _interrupted)
                signal.setitimer(signal.ITIMER_REAL, 0.5)
            if w.rank == 0:
                time.sleep(2)
            devices.all_reduce(torch.ones(8))
        else:
            op = "max" if odd and how == "another op" else "sum"
            devices.all_reduce(torch.ones(9 if odd and how == "another size" else 8), op=op)
    except errors.CollectiveError as error:
        told = type(error).__name__, str(error), time.monotonic() - start
        with pytest.raises(errors.CollectiveError, match="closed for good"):
            devices.barrier()
        return told
    except Interruptedly as error:
        return type(error).__name__, str(error), time.monotonic() - start
    raise AssertionError("no error")


def cannot_map(domains: Sequence[int]) -> tuple[str, float]:
    """Open a world in which rank 1 may not open the memory of rank 0, which is in its domain."""

    def refuse(pid: int, descriptor: int) -> int:
        raise PermissionError(f"process {pid} may not be looked into")

    if os.environ["RANK"] == "1":
        meeting.find = refuse
    with world(domains) as w:
        return devices.explain(), devices.all_reduce(torch.tensor(2.0**w.rank)).item()


def recovers_alone(domains: Sequence[int]) -> tuple[str, list[float], str]:
    """Let rank 1 die, while rank 2 waits in another group for rank 0, which is alive."""
    w = world(domains)
    pair = dist.new_group([0, 2])
    devices.barrier()
    me = w.rank
    if me == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(errors.CollectiveError) as caught:
        devices.barrier(pair if me == 2 else None)
    w = w.recover()
    with w:
        return str(caught.value), devices.all_gather(torch.tensor([float(me)])).tolist(), devices.explain()


def recovers_twice(domains: Sequence[int]) -> tuple[list[str], list[float]]:
    """Let rank 0, which leads its domain, die, then the other one there; return what carries the worlds, and sums."""
    w = world(domains)
    me, notes, sums = w.rank, [], []
    for _ in range(2):
        devices.barrier()
        if w.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(errors.CollectiveError):
            devices.barrier()
        w = w.recover()
        notes.append(devices.explain())
        sums.append(devices.all_reduce(torch.tensor(float(me))).item())
    w.close()
    return notes, sums


class Interruptedly(BaseException):
    """What no program takes for an error."""


def _interrupted(*_: object) -> None:
    raise Interruptedly("enough of it")


def by_schedules(domains: Sequence[int], links: Sequence[str]) -> tuple[str, str]:
    """Let the group go by schedules that it makes, then by ones that it is given; return what is said of both."""
    with world(domains, links) as w:
        me, n = w.rank, w.size
        made = devices.explain(dist.group.WORLD)
        same_sums(me, n)
        for verb in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce"):
            devices.use_schedule(synthesize(torus((n,), 1e9), verb))
        same_sums(me, n)
        return made, devices.explain(dist.group.WORLD)


def same_sums(me: int, n: int) -> None:
    # What is gathered and scattered of the last is more than the 4 MiB from which on a group makes schedules.
    for size in (0, 1, 220_003):
        xs = [of(rank, size) for rank in range(n)]
        blocks = [of(rank, size * n) for rank in range(n)]
        same(devices.all_reduce(xs[me]), torch.stack(xs).sum(0))
        same(devices.all_gather(xs[me].view(-1, 1)), torch.cat(xs).view(-1, 1))
        dist.all_gather(rows := [torch.empty(size) for _ in range(n)], xs[me])
        same(torch.cat(rows), torch.cat(xs))
        same(devices.reduce_scatter(blocks[me]), torch.stack(blocks).sum(0).chunk(n)[me])
        same(devices.all_to_all(blocks[me]), torch.cat([block.chunk(n)[me] for block in blocks]))
        same(devices.broadcast(xs[me], src=0), xs[0])
        same(devices.broadcast(xs[me], src=1), xs[1])
        reduced = devices.reduce(xs[me], dst=0)
        assert (reduced is None) is (me > 0)
        if reduced is not None:
            same(reduced, torch.stack(xs).sum(0))
    torch.manual_seed(me)
    bits = devices.all_reduce(torch.randn(220_003) * 10.0**me).view(torch.int32).double().sum()
    assert len(set(devices.all_gather(bits).tolist())) == 1


def dies_in_a_schedule(domains: Sequence[int], links: Sequence[str]) -> tuple[str, float]:
    """Let rank 1 die while the others go by a schedule; return what this rank is told, and after how long."""
    with world(domains, links) as w:
        x = torch.ones(1_000_003)
        whole = devices.all_gather(x)
        if w.rank == 1:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.monotonic()
        try:
            while time.monotonic() < start + 60:
                devices.all_gather(x, out=whole)
        except errors.CollectiveError as error:
            return str(error), time.monotonic() - start
        raise AssertionError("no error")
