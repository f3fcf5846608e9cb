"""What ranks do over the memory of devices, on a stand-in for it; each function runs on every rank, in a process."""

from __future__ import annotations

import os
import signal
from typing import Any

import fabric_member
import torch
import torch.distributed as dist
from interface_cases import LAWS
from mapped_files import MappedFiles
from memory_of_devices import every_verb, group_of_its_own

import devices
from devices._backend import Capabilities
from devices.algorithms.lowerings import own_verbs
from devices.algorithms.verbs import Verbs
from devices.fabric.peer import fabric as peer
from devices.fabric.peer.fabric import PeerFabric
from devices.fabric.peer.opening import open_peer_fabric


def laws() -> dict[str, Any]:
    """Return what this rank returns for each law of its world's size."""
    fabric_member.open_of_processes = lambda group: open_peer_fabric(group, MappedFiles())
    with devices.init(timeout=60) as world:
        found = {name: law.body(world) for name, law in LAWS.items() if law.ranks == world.size}
        assert isinstance(fabric_member.member("one more").fabric, PeerFabric)
        return found


def all_verbs(scheduled: bool) -> tuple[str, list[int]]:
    """Call every verb, small and large; return what carries them, and what is left allocated and mapped."""
    with devices.init(timeout=60):
        group, memory = group_of_its_own("verbs"), MappedFiles()
        communicator = devices.open_peer_memory(group, memory, "a test", scheduled=scheduled)
        verbs = Verbs(communicator, group, Capabilities(frozenset()))
        for numel in (0, 6, 600_000):
            every_verb(verbs, numel)
        note = communicator.note
        dist.barrier()
        verbs.close()
        # One that nobody uses: it looks for what the others have left by now.
        dist.barrier()
        peer.free_what_is_unmapped()
        return note, [len(memory.own), len(memory.theirs)]


def staged_beside_others() -> None:
    """Call every verb in a group of which rank 1 alone goes through host memory, as an accelerator beside CPUs does."""
    with devices.init(timeout=60):
        group = group_of_its_own("staged")
        staged = devices.open_staged(group, "a test")
        carrier = staged if group.rank == 1 else staged._host
        verbs = Verbs(carrier, group, Capabilities(frozenset()))
        assert [verb for verb in own_verbs(staged) if verb not in vars(type(staged))] == []
        for numel in (0, 6, 600_000):
            every_verb(verbs, numel)
        dist.barrier()
        verbs.close()


def without(how: str) -> tuple[str, float, list[int]]:
    """Open where a rank has no such memory, or cannot map a peer's; return what carries the group all the same."""
    with devices.init(timeout=60) as world:
        memory: MappedFiles | str = MappedFiles()
        if world.rank == 1:
            memory = {
                "none": "it has no such memory",
                "too little": MappedFiles(limit=100),
                "not linked": MappedFiles(refuses=""),
            }[how]
        communicator = devices.open_peer_memory(group_of_its_own("without"), memory, "a test")
        x = torch.ones(3)
        communicator.all_reduce(x, "sum").wait()
        note = communicator.note
        communicator.close()
        dist.barrier()
        peer.free_what_is_unmapped()
        left = [] if isinstance(memory, str) else [len(memory.own), len(memory.theirs)]
        return note, x.sum().item(), left


def not_finished() -> bool:
    """Return whether a peer reads what is not there yet, if the host does not wait for the stream before it tells."""
    with devices.init(timeout=60) as world:
        memory = MappedFiles()
        fabric = open_peer_fabric(group_of_its_own("not finished"), memory)
        assert isinstance(fabric, PeerFabric)
        finish, memory.finish = memory.finish, lambda: None  # type: ignore[method-assign]
        fabric.export("x", torch.full((4,), 7, dtype=torch.uint8), None, 1)
        fabric.signal(0, 1)
        dist.barrier()
        found, _ = fabric.open(1 - world.rank, "x")
        assert found is not None
        is_there = found.tolist() == [7] * 4
        dist.barrier()
        memory.finish = finish  # type: ignore[method-assign]
        fabric.close(1 - world.rank, "x")
        dist.barrier()
        fabric.leave()
        return is_there


def cannot_unmap() -> tuple[str, list[int]]:
    """Leave where the device of rank 0 refuses once to unmap; return what is said, and what is left."""
    with devices.init(timeout=60) as world:
        memory = MappedFiles()
        fabric = open_peer_fabric(group_of_its_own("cannot unmap"), memory)
        assert isinstance(fabric, PeerFabric)
        unmap, refused = memory.unmap, []

        def refuses_once(mapped: torch.Tensor) -> None:
            if not refused:
                refused.append(mapped)
                raise RuntimeError("the driver is gone")
            unmap(mapped)

        if world.rank == 0:
            memory.unmap = refuses_once  # type: ignore[method-assign]
        said = ""
        try:
            fabric.leave()
        except RuntimeError as error:
            said = " ".join([str(error), *getattr(error, "__notes__", ())])
        dist.barrier()
        peer.free_what_is_unmapped()
        return said, [len(memory.own), len(memory.theirs)]


def dies() -> tuple[str, list[int]]:
    """Return what is said where a peer is killed that has memory of two groups mapped, and what is left of the memory.

    The one who is left has closed one of the groups before, and the other after.
    """
    with devices.init(timeout=60) as world:
        memory = MappedFiles()
        before, communicator = (
            devices.open_peer_memory(group_of_its_own(name), memory, "a test") for name in ("before", "dies")
        )
        if world.rank == 0:
            before.close()
            assert len(memory.own) == 2, "what a peer has mapped was freed"
        dist.barrier()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            communicator.all_reduce(torch.ones(3), "sum")
        except devices.errors.CollectiveError as error:
            communicator.close()
            return str(error), [len(memory.own), len(memory.theirs)]
        return "", []
