"""Groups whose tensors go through host memory: every verb, over the CPU path of the same ranks."""

from __future__ import annotations

from pathlib import Path

import native_site
import pytest
import ranks
import torch
import torch.distributed as dist
from shared_memory import HAS_SHARED_MEMORY
from throwaway_plugins import Site

import devices
from devices.errors import MismatchError

PLUGIN = """
from devices import Backend, Capabilities, Device, Probe, hookimpl


class Staged(Backend):
    name = "staged"
    device_type = "cpu"
    priority = None

    def probe(self):
        return Probe(True, "for a test")

    def devices(self):
        return (Device("staged", "cpu", 0),)

    def capabilities(self, device):
        import torch

        dtypes = "float64 float32 float16 bfloat16 float8_e4m3fn complex64 complex128 int8 int16 int32 int64 uint8 bool"
        return Capabilities(frozenset(getattr(torch, name) for name in dtypes.split()))

    def open(self, group):
        # It imports torch, for which the import of a plugin has no time.
        from devices import open_staged

        return open_staged(group, "a test")


@hookimpl
def devices_backend():
    return Staged()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("staged")
    Site(made).add("staged", PLUGIN)
    return str(made)


def every_verb(folder: str) -> None:
    native_site.find(folder)
    with devices.init("staged") as world:
        rank, size = world.rank, world.size
        assert "through host memory, for a test; " in world.explain()
        mine = torch.arange(6.0) + 10 * rank
        everyone = torch.stack([torch.arange(6.0) + 10 * other for other in range(size)])
        assert devices.all_reduce(mine).equal(everyone.sum(0))
        assert devices.all_reduce(mine.bfloat16(), op="avg", async_op=True).result().equal(everyone.mean(0).bfloat16())
        assert devices.all_gather(mine).equal(everyone.flatten())
        assert devices.reduce_scatter(mine).equal(everyone.sum(0).chunk(3)[rank])
        assert devices.all_to_all(mine).equal(torch.cat([row.chunk(3)[rank] for row in everyone]))
        assert devices.broadcast(mine, src=2).equal(everyone[2])
        reduced, gathered = devices.reduce(mine, dst=1, op="max"), devices.gather(mine, dst=1)
        if rank == 1:
            assert reduced.equal(everyone.amax(0))
            assert gathered.equal(everyone.flatten())
        assert devices.scatter(mine if rank == 2 else None, src=2).equal(everyone[2].chunk(3)[rank])
        assert devices.permute(mine, pairs=[(0, 1), (1, 2), (2, 0)]).equal(everyone[(rank - 1) % 3])
        devices.barrier()
        sent = devices.send(mine, dst=(rank + 1) % 3, tag=7, async_op=True)
        assert devices.recv(torch.empty(6), src=(rank - 1) % 3, tag=7).equal(everyone[(rank - 1) % 3])
        sent.wait()
        if rank == 0:
            target = torch.empty(6)
            assert dist.recv(target, None) == 1
            assert target.equal(everyone[1])
        if rank == 1:
            dist.send(mine, 0)
        if HAS_SHARED_MEMORY:
            with pytest.raises(MismatchError):
                devices.all_reduce(torch.ones(2 + (rank == 1)))


def test_every_verb_is_right_through_host_memory_and_a_mismatch_is_found(folder: str) -> None:
    ranks.run(3, every_verb, folder)


@pytest.mark.slow
def test_it_keeps_the_laws_of_order(folder: str) -> None:
    done = Site(Path(folder), timeout=550).run("-m", "devices", "conformance", "staged", "--only", "order.*")
    assert done.returncode == 0, done.stdout + done.stderr
