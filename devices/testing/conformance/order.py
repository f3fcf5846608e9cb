"""The laws of order: what comes before what, in one group, in several, and between ranks that are on their way."""

from __future__ import annotations

import threading
import time
import unittest
from typing import Any

import torch
import torch.distributed as dist

import devices
from devices.testing.conformance.laws import law


def verbs_in_the_order_called(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    works, expected = [], []
    for step in range(8):
        mine = torch.arange(5, dtype=torch.float32, device=device) + 100 * step + rank
        everyone = [torch.arange(5, dtype=torch.float32) + 100 * step + of for of in range(size)]
        works.append(devices.all_reduce(mine, async_op=True))
        expected.append(torch.stack(everyone).sum(0))
        works.append(devices.all_gather(mine, async_op=True))
        expected.append(torch.cat(everyone))
        works.append(devices.all_reduce(mine, op="max", async_op=True))
        expected.append(everyone[-1])
        works.append(devices.broadcast(mine, src=step % size, async_op=True))
        expected.append(everyone[step % size])
    for number, (work, wanted) in enumerate(zip(works, expected, strict=True)):
        found = work.result().cpu()
        assert torch.equal(found, wanted), (
            f"rank {rank}: of {len(works)} verbs that were started one after another, number {number} returned "
            f"{found.tolist()}, expected {wanted.tolist()}"
        )


def waits_in_any_order(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    works, expected = [], []
    for step in range(6):
        mine = torch.full((3,), 10.0 * step + rank, device=device)
        values = [10.0 * step + of for of in range(size)]
        works.append(devices.all_reduce(mine, op=("sum", "max")[step % 2], async_op=True))
        expected.append([sum(values) if step % 2 == 0 else max(values)] * 3)
        works.append(devices.all_gather(mine[:1], async_op=True))
        expected.append(values)
    # Each rank waits in another order: rank 0 from the last, the others from somewhere in the middle.
    places = list(range(len(works)))
    places = places[::-1] if rank == 0 else places[rank:] + places[:rank]
    for place in places:
        found = works[place].result().tolist()
        assert found == expected[place], (
            f"rank {rank}: verb number {place}, waited for in the order {places}, returned {found}, "
            f"expected {expected[place]}"
        )


def verbs_behind_those_under_way(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    large = torch.full((100_000,), float(rank), device=device)
    first = devices.all_reduce(large, op="max", async_op=True)
    second = devices.all_reduce(torch.full((3,), rank + 1.0, device=device))
    third = devices.all_gather(torch.full((2,), float(rank), device=device))
    devices.barrier()
    found = first.result().cpu()
    assert torch.equal(found, torch.full((100_000,), size - 1.0)), (
        f"rank {rank}: a max that was under way while other verbs were called returned values from "
        f"{found.min().item()} to {found.max().item()}, expected {size - 1.0} everywhere"
    )
    wanted = [float(sum(range(1, size + 1)))] * 3
    assert second.tolist() == wanted, f"rank {rank}: the sum called behind it is {second.tolist()}, expected {wanted}"
    wanted = [float(of) for of in range(size) for _ in range(2)]
    assert third.tolist() == wanted, f"rank {rank}: what was gathered behind it is {third.tolist()}, expected {wanted}"


def groups_between_each_other(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    members = [list(range(size)), list(range(size)), *([at, (at + 1) % size] for at in range(size if size > 2 else 1))]
    groups = [dist.new_group(ranks) for ranks in members]
    works = []
    for step in range(4):
        # In one order on all ranks, which is all that keeps them from waiting for each other in a circle.
        for number, (ranks, group) in enumerate(zip(members, groups, strict=True)):
            if rank not in ranks:
                continue
            value = 1000.0 * step + 10 * ranks[0] + len(ranks) + rank
            wanted = float(sum(1000 * step + 10 * ranks[0] + len(ranks) + of for of in ranks))
            x = torch.full((4,), value, device=device)
            works.append((step, ranks, devices.all_reduce(x, group, async_op=True), wanted))
            if number % 2:
                found = devices.broadcast(x, group, src=len(ranks) - 1)[0].item()
                last = 1000.0 * step + 10 * ranks[0] + len(ranks) + max(ranks)
                assert found == last, f"rank {rank}: broadcast over ranks {ranks} returned {found}, expected {last}"
    for step, ranks, work, wanted in reversed(works):
        found = work.result()[0].item()
        assert found == wanted, (
            f"rank {rank}: round {step} of sums over several groups at once: over ranks {ranks} it is {found}, "
            f"expected {wanted}"
        )
    for ranks, group in zip(members, groups, strict=True):
        if rank in ranks:
            dist.destroy_process_group(group)


def groups_beside_each_other(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    parts = [list(range(size // 2)), list(range(size // 2, size))]
    groups = [dist.new_group(ranks) for ranks in parts]
    which = int(rank >= size // 2)
    # The second group does more than the first, which must not wait for it.
    for step in range(3 + 4 * which):
        found = devices.all_reduce(torch.full((3,), float(step + rank), device=device), groups[which])[0].item()
        wanted = float(sum(step + of for of in parts[which]))
        assert found == wanted, f"rank {rank}: the sum over ranks {parts[which]} is {found}, expected {wanted}"
    found = devices.all_reduce(torch.ones(1, device=device)).item()
    assert found == size, f"rank {rank}: then the sum of ones over all {size} ranks is {found}"


def many_under_way(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    works = [devices.all_reduce(torch.full((7,), float(step * rank), device=device), async_op=True)
             for step in range(200)]  # fmt: skip
    for step, work in enumerate(works):
        found, wanted = work.result()[-1].item(), float(step * sum(range(size)))
        assert found == wanted, f"rank {rank}: sum number {step} of 200 under way at once is {found}, expected {wanted}"


def messages_of_one_tag(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    after, before = (rank + 1) % size, (rank - 1) % size
    counts = [1, 3000, 2, 70_000, 0, 5]
    sent = [devices.send(torch.full((count,), 100.0 * rank + at, device=device), dst=after, tag=3, async_op=True)
            for at, count in enumerate(counts)]  # fmt: skip
    for at, count in enumerate(counts):
        found = devices.recv(torch.empty(count, device=device), src=before, tag=3).cpu()
        wanted = torch.full((count,), 100.0 * before + at)
        assert torch.equal(found, wanted), (
            f"rank {rank}: message {at} of tag 3 from rank {before} begins with {found[:3].tolist()}, "
            f"expected {wanted[:3].tolist()}"
        )
    for work in sent:
        work.wait()


def messages_of_other_tags(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    after, before = (rank + 1) % size, (rank - 1) % size
    tags = [0, 7, 2**30 - 1, 1, 7 + 2**16]
    sent = [devices.send(torch.full((500,), float(rank + 10 * at), device=device), dst=after, tag=tag, async_op=True)
            for at, tag in enumerate(tags)]  # fmt: skip
    for at, tag in reversed(list(enumerate(tags))):
        found = devices.recv(torch.empty(500, device=device), src=before, tag=tag)[0].item()
        assert found == before + 10 * at, (
            f"rank {rank}: sent with tags {tags} and received the other way round, the message of tag {tag} from rank "
            f"{before} holds {found}, expected {float(before + 10 * at)}"
        )
    for work in sent:
        work.wait()


def receives_before_sends(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    after, before = (rank + 1) % size, (rank - 1) % size
    into = [torch.full((4,), -1.0, device=device) for _ in range(3)]
    received = [devices.recv(out, src=before, tag=9, out=out, async_op=True) for out in into]
    for at in range(3):
        devices.send(torch.full((4,), 10.0 * rank + at, device=device), dst=after, tag=9)
    for at, (work, out) in enumerate(zip(received, into, strict=True)):
        found = work.result()
        assert found is out, f"rank {rank}: recv with out= returned another tensor"
        assert found.tolist() == [10.0 * before + at] * 4, (
            f"rank {rank}: receive {at} of three that were started before the sends holds {found.tolist()}, "
            f"expected {10.0 * before + at} everywhere"
        )


def both_send_at_once(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    after, before = (rank + 1) % size, (rank - 1) % size
    around = [(of, (of + 1) % size) for of in range(size)]
    for count in (0, 1, 1_000_003):
        mine = torch.arange(count, dtype=torch.float32, device=device) % 97 + rank
        wanted = torch.arange(count, dtype=torch.float32) % 97 + before
        found = devices.permute(mine, pairs=around).cpu()
        assert torch.equal(found, wanted), f"rank {rank}: permute of {count} elements around brought something else"
        work = devices.send(mine, dst=after, async_op=True)
        found = devices.recv(torch.empty(count, device=device), src=before).cpu()
        work.wait()
        assert torch.equal(found, wanted), (
            f"rank {rank}: while all ranks sent {count} elements at once, what came from rank {before} begins with "
            f"{found[:3].tolist()}, expected {wanted[:3].tolist()}"
        )


def sent_buffers_may_be_changed(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    for count in (10, 300_000):
        x = torch.full((count,), 5.0 + rank, device=device)
        if rank == 0:
            works = [devices.send(x, dst=peer, async_op=True) for peer in range(1, size)]
            for work in works:
                work.wait()
        else:
            time.sleep(0.05)
            found = devices.recv(torch.empty(count, device=device), src=0).cpu()
            assert torch.equal(found, torch.full((count,), 5.0)), (
                f"rank {rank}: rank 0 changed its tensor after its send of {count} elements was done, and here came "
                f"values from {found.min().item()} to {found.max().item()}, expected 5.0"
            )
        x.fill_(-1.0)
        devices.barrier()


def inputs_may_be_changed(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    x = torch.empty(50_000, device=device)
    for step in range(6):
        # One rank is late each time, and must still get what the others had when they called.
        if step % size == rank:
            time.sleep(0.02)
        x.fill_(step + 10.0 * rank)
        work = devices.all_gather(x, async_op=True)
        gathered = work.result()
        x.fill_(-1.0)
        total = devices.all_reduce(x.fill_(1.0 + rank))
        x.fill_(-1.0)
        found, wanted = gathered.view(size, -1), [step + 10.0 * of for of in range(size)]
        for of in range(size):
            low, high = found[of].min().item(), found[of].max().item()
            assert low == high == wanted[of], (
                f"rank {rank}: gathered from rank {of}, which changed its input when the verb was done: {low} to "
                f"{high}, expected {wanted[of]}"
            )
        low, high = total.min().item(), total.max().item()
        assert low == high == sum(range(1, size + 1)), (
            f"rank {rank}: the sum of inputs that were changed when it was done: {low} to {high}, "
            f"expected {sum(range(1, size + 1))}"
        )


def inputs_are_unchanged(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    around = [(of, (of + 1) % size) for of in range(size)]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("all_reduce", {}), ("all_reduce", {"op": "max"}), ("all_gather", {}), ("reduce_scatter", {}),
        ("all_to_all", {}), ("broadcast", {"src": size - 1}), ("reduce", {"dst": 0}), ("gather", {"dst": 0}),
        ("scatter", {"src": 0}), ("permute", {"pairs": around}),
    ]  # fmt: skip
    for count in (size, 40_000 * size):
        x = torch.arange(count, dtype=torch.float32, device=device) + rank
        before = x.clone()
        for verb, given in calls:
            result = getattr(devices, verb)(x, **given)
            later = getattr(devices, verb)(x, async_op=True, **given).result()
            assert torch.equal(x, before), f"rank {rank}: {verb} of {count} elements with {given} changed its input"
            for each in (result, later):
                if each is not None:
                    each.fill_(-7.0)
            assert torch.equal(x, before), f"rank {rank}: the result of {verb} with {given} is the memory of its input"


def results_last(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    around = [(of, (of + 1) % size) for of in range(size)]
    kept = []
    for step in range(12):
        mine = torch.full((2 * size,), 100.0 * step + rank, device=device)
        values = [100.0 * step + of for of in range(size)]
        own = values[rank]
        kept += [
            (step, "all_reduce", devices.all_reduce(mine), [sum(values)] * 2 * size),
            (step, "all_reduce max", devices.all_reduce(mine, op="max"), [max(values)] * 2 * size),
            (step, "all_gather", devices.all_gather(mine[:1]), values),
            (step, "reduce_scatter", devices.reduce_scatter(mine), [sum(values)] * 2),
            (step, "all_to_all", devices.all_to_all(mine[:size]), values),
            (step, "broadcast", devices.broadcast(mine, src=step % size), [values[step % size]] * 2 * size),
            (step, "scatter", devices.scatter(mine, src=step % size), [values[step % size]] * 2),
            (step, "permute", devices.permute(mine[:1], pairs=around), [values[rank - 1]]),
            (step, "the input", mine, [own] * 2 * size),
        ]
    for step, name, found, wanted in kept:
        assert found.tolist() == wanted, (
            f"rank {rank}: {name} of round {step}, looked at when all rounds were over, is {found.tolist()}, "
            f"expected {wanted}: a later call has written into it"
        )


def messages_beside_collectives(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: a thread of a thread rank's own is of no rank")
    size, rank, device = world.size, world.rank, world.device
    after, before = (rank + 1) % size, (rank - 1) % size
    rounds = 40
    wrong: list[str] = []

    def messages() -> None:
        try:
            for step in range(rounds):
                work = devices.send(torch.full((100,), 1000.0 * rank + step, device=device), dst=after, async_op=True)
                found = devices.recv(torch.empty(100, device=device), src=before)[0].item()
                work.wait()
                if found != 1000.0 * before + step:
                    wrong.append(f"message {step} from rank {before} holds {found}")
        except BaseException as error:
            wrong.append(f"the messages ended by {type(error).__name__}: {error}")

    thread = threading.Thread(target=messages, daemon=True)
    thread.start()
    for step in range(rounds):
        op = ("sum", "max")[step % 2]
        found = devices.all_reduce(torch.full((100,), float(step + rank), device=device), op=op)[0].item()
        wanted = float(sum(step + of for of in range(size)) if op == "sum" else step + size - 1)
        assert found == wanted, (
            f"rank {rank}: all_reduce {step} with op {op}, beside messages of another thread, is {found}, "
            f"expected {wanted}"
        )
    thread.join(60)
    assert not thread.is_alive(), f"rank {rank}: {rounds} messages on a thread beside collectives do not come to an end"
    assert not wrong, f"rank {rank}: on a thread beside collectives, {wrong[0]}"


def two_threads_two_groups(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: a thread of a thread rank's own is of no rank")
    size, rank, device = world.size, world.rank, world.device
    groups = [dist.new_group(list(range(size))) for _ in range(2)]
    wrong: list[str] = []

    def sums(number: int) -> None:
        try:
            for step in range(30):
                x = torch.full((50,), float(number * 1000 + step + rank), device=device)
                found = devices.all_reduce(x, groups[number])[0].item()
                wanted = float(sum(number * 1000 + step + of for of in range(size)))
                if found != wanted:
                    wrong.append(f"sum {step} over group {number} is {found}, expected {wanted}")
        except BaseException as error:
            wrong.append(f"group {number}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=sums, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), f"rank {rank}: two threads over two groups do not end"
    assert not wrong, f"rank {rank}: of two threads with a group each, {wrong[0]}"
    for group in groups:
        dist.destroy_process_group(group)


def streams(world: devices.World) -> None:
    if world.device.type == "cpu":
        raise unittest.SkipTest("needs an accelerator: the CPU has no streams")
    size, rank, device = world.size, world.rank, world.device
    module = torch.get_device_module(device.type)
    side = module.Stream(device)
    for step in range(5):
        # Long enough that a verb which does not wait for it reads what was there before.
        a = torch.eye(1024, device=device)
        x = torch.full((1024, 1024), -1.0, device=device)
        for _ in range(50):
            a = a @ torch.eye(1024, device=device)
        x.copy_(a * (step + rank + 1))
        total = devices.all_reduce(x)
        work = devices.all_reduce(x, async_op=True)
        x = torch.empty(0, device=device)  # its memory may be taken while the verb is under way
        other = torch.full((1024, 1024), -5.0, device=device)
        later = work.result() + 0 * other
        wanted = float(sum(step + of + 1 for of in range(size)))
        for name, found in (("sum", total), ("sum under way", later)):
            low = found.diagonal().min().item()
            assert low == wanted, f"rank {rank}: the {name} of what a stream had yet to compute is {low}, not {wanted}"
        side.wait_stream(module.current_stream(device))
        with module.stream(side):
            b = torch.eye(1024, device=device)
            for _ in range(50):
                b = b @ torch.eye(1024, device=device)
            there = devices.all_reduce(b * (rank + 1))
        module.current_stream(device).wait_stream(side)
        low, wanted = there.diagonal().min().item(), float(sum(range(1, size + 1)))
        assert low == wanted, f"rank {rank}: the sum called on another stream is {low}, expected {wanted}"


CHECKS = [
    law("order.calls", "The verbs of a group are served in the order in which they are called.",
        verbs_in_the_order_called),
    law("order.waits", "Verbs under way may be waited for in any order, in another on each rank.", waits_in_any_order),
    law("order.behind", "A verb that is called while others are under way is served behind them.",
        verbs_behind_those_under_way),
    law("order.many", "Two hundred verbs may be under way at once.", many_under_way),
    law("order.groups_interleaved", "Verbs of several groups that share ranks do not disturb each other.",
        groups_between_each_other),
    law("order.groups_apart", "A group does not wait for a group that it shares no rank with.",
        groups_beside_each_other, size=4),
    law("order.one_tag", "Messages of one tag arrive in the order in which they were sent.", messages_of_one_tag,
        messages=True),
    law("order.other_tags", "Messages of different tags are independent: they may be received the other way round.",
        messages_of_other_tags, messages=True),
    law("order.receives_first", "A receive may be started before its message is sent.", receives_before_sends,
        messages=True),
    law("order.both_send", "All ranks may send at once, messages of any size.", both_send_at_once, messages=True),
    law("order.sent", "A send is complete only when its tensor may be changed.", sent_buffers_may_be_changed,
        messages=True),
    law("order.done", "A verb is done only when its input may be changed, also where peers come late.",
        inputs_may_be_changed),
    law("order.inputs", "No verb changes its input, and no result is the memory of an input.", inputs_are_unchanged),
    law("order.results", "No result changes by later calls.", results_last),
    law("order.threads", "Messages of one thread and collectives of another do not disturb each other.",
        messages_beside_collectives, messages=True),
    law("order.threads_apart", "Two threads may call verbs at once, each over a group of its own.",
        two_threads_two_groups),
    law("order.streams", "On an accelerator a verb waits for what its stream has yet to compute, and so does what "
        "reads its result.", streams),
]  # fmt: skip
