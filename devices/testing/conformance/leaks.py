"""The laws of what is left of groups and verbs: nothing."""

from __future__ import annotations

import gc
import os
import time
import unittest
from pathlib import Path

import torch
import torch.distributed as dist

import devices
from devices.testing.conformance.laws import law


def nothing_is_left(world: devices.World, count: int) -> None:
    if not Path("/proc/self/statm").exists():
        raise unittest.SkipTest("needs Linux's /proc, to count what a process holds")
    size, rank, device = world.size, world.rank, world.device

    def held() -> tuple[int, int, int]:
        gc.collect()
        files, threads = (sum(1 for _ in Path("/proc/self", what).iterdir()) for what in ("fd", "task"))
        return files, threads, int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def open_and_close() -> None:
        ranks = list(range(size))
        group = dist.new_group(ranks)
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
    assert now_files <= files + 10 + count // 50, (
        f"rank {rank}: {count} groups were opened and closed, and the process holds {now_files} open files, "
        f"{files} before"
    )
    assert now_threads <= threads + 10 + count // 50, (
        f"rank {rank}: {count} groups were opened and closed, and the process has {now_threads} threads, "
        f"{threads} before"
    )
    grown = (now_memory - memory) / 2**20
    allowed = 16 + count / 64
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
    if not Path("/proc/self/statm").exists():
        raise unittest.SkipTest("needs Linux's /proc, to count what a process holds")
    size, rank, device = world.size, world.rank, world.device
    around = [(of, (of + 1) % size) for of in range(size)]
    x = torch.ones(65_536 * size, device=device)

    def held() -> tuple[int, int, int]:
        gc.collect()
        files, threads = (sum(1 for _ in Path("/proc/self", what).iterdir()) for what in ("fd", "task"))
        return files, threads, int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

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


CHECKS = [
    law("life.leaks_of_groups", "A thousand groups leave no files, threads or memory, and the last opens as fast as "
        "the first.", nothing_is_left, cases=lambda subject: ((200 if subject.quick else 1000,),), timeout=300),
    law("life.leaks_of_verbs", "Thousands of verbs leave no files, threads or memory.", verbs_leave_nothing,
        cases=lambda subject: ((50 if subject.quick else 200,),)),
]  # fmt: skip
