"""Tensors of a device that is not the CPU go through host memory and come back; the device is a stand-in of one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import devices
from devices import Capabilities
from devices.algorithms.verbs import Verbs
from devices.c10d.lanes import lanes_of

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "not_run_on_hardware" / "neuron"))

from on_standin import on_standin, variables


def through_host(world: devices.World) -> None:
    lanes = lanes_of(dist.group.WORLD)
    assert lanes is not None
    group = replace(lanes.group, store=lanes.group.store.under("staged"), name="staged")
    verbs = Verbs(devices.open_staged(group, "a test"), group, Capabilities(frozenset()))
    rank, size, device = world.rank, world.size, world.device
    assert device.type == "neuron"
    mine, everyone = torch.arange(4.0, device=device) + rank, torch.stack([torch.arange(4.0) + r for r in range(size)])
    total = mine.clone()
    verbs.all_reduce(total)
    assert total.device == device
    assert total.cpu().equal(everyone.sum(0))
    whole = torch.empty(4 * size, device=device)
    work = verbs.all_gather(whole, mine, async_op=True)
    work.wait()
    assert whole.cpu().equal(everyone.flatten())
    part = torch.empty(4 // size, device=device)
    verbs.reduce_scatter(part, mine, "max")
    assert part.cpu().equal(everyone.amax(0).chunk(size)[rank])
    other = torch.empty(4, device=device)
    sent = verbs.send(mine, (rank + 1) % size, tag=4, async_op=True)
    verbs.recv(other, (rank - 1) % size, tag=4)
    sent.wait()
    assert other.cpu().equal(everyone[(rank - 1) % size])
    verbs.permute(other, mine, [(0, 1), (1, 0)])
    assert other.cpu().equal(everyone[1 - rank])
    verbs.barrier()
    verbs.close()


@pytest.mark.slow
def test_tensors_of_another_device_come_and_go_through_host_memory_on_the_standin(tmp_path: Path) -> None:
    on_standin(through_host, 2, env=variables(tmp_path))
