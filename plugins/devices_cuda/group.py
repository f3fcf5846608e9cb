"""What opens a group of GPUs: torch's NCCL where each rank has a GPU of its own, else the GPUs' memory, mapped."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from devices import Communicator, Group, open_peer_memory, open_staged
from devices.errors import ArgumentError
from devices_cuda.memory import address_of, memory_of

_BOOT = Path("/proc/sys/kernel/random/boot_id")

GROUPS = "DEVICES_CUDA_GROUPS"
"""What groups go over whose ranks have a GPU each: torch's NCCL, or memory that they map of each other's GPUs."""

_NCCL, _PEER = "nccl", "peer"

_PATIENCE = 2.0
"""Seconds for which a rank waits until NCCL has been aborted."""


def open_group(group: Group) -> Communicator:
    """Return what carries a group of GPUs, the same kind on every rank.

    Not run on hardware but for what needs none: how ranks find out that they share a GPU, and what is done then.

    Raises:
        ArgumentError: DEVICES_CUDA_GROUPS is not the same on all ranks, or nothing that it can be.
        UnsupportedError: NCCL is missing or not wanted, and a GPU cannot reach another's memory.
    """
    places = group.share("cuda", {**place(group.device.index), "asked": os.environ.get(GROUPS, "").strip()})
    asked = _asked(group, places)
    # Ranks of the world, as all other errors have them.
    without = [group.ranks[rank] for rank, where in enumerate(places) if where["nccl"] is None]
    shared = [group.ranks[rank] for rank in sharing(places)]
    if shared:
        reason = f"ranks {' and '.join(map(str, shared))} are on one GPU, between which NCCL does not go"
    elif asked == _PEER:
        reason = f"{GROUPS}={_PEER} asks for it"
    elif without:
        reason = f"torch has no NCCL on rank {without[0]}, where one that is built with CUDA for Linux may be installed"
    else:
        return _nccl(group, places[0]["nccl"])
    memory = memory_of(group.device.index, [where["pci"] for where in places])
    several = len({where["gpu"] for where in places}) > 1
    return open_peer_memory(group, memory, reason, scheduled=several, required=not shared)


def _asked(group: Group, places: list[dict[str, Any]]) -> str:
    """Return what the program asks groups of GPUs to go over, the same on all ranks; "" if it leaves it open."""
    first = places[0]["asked"]
    if other := [rank for rank, where in enumerate(places) if where["asked"] != first]:
        theirs, one, another = places[other[0]]["asked"], group.ranks[0], group.ranks[other[0]]
        raise ArgumentError(
            f"{group}: {GROUPS} is {first!r} on rank {one} and {theirs!r} on rank {another}; make them one"
        )
    if first not in ("", _NCCL, _PEER):
        raise ArgumentError(f"{group}: {GROUPS} is {first!r}; it can be {_NCCL!r}, {_PEER!r} or left unset")
    return str(first)


def place(index: int) -> dict[str, Any]:
    """Return where a GPU is, so that two ranks find out whether they have the same one, and the NCCL of this torch."""
    import torch
    import torch.distributed as dist

    properties = torch.cuda.get_device_properties(index)
    # Parts of one GPU (MIG) have UUIDs of their own, and NCCL goes by the address on the bus.
    address = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    gpu = f"UUID {properties.uuid}" if None in address else f"PCI {':'.join(map(str, address))}"
    version = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else None
    return {"host": _host(), "gpu": gpu, "nccl": version, "pci": address_of(index)}


def sharing(places: list[dict[str, Any]]) -> list[int]:
    """Return the first ranks that are on one GPU; none if each has its own."""
    by_gpu: dict[tuple[str, str], list[int]] = {}
    for rank, where in enumerate(places):
        by_gpu.setdefault((where["host"], where["gpu"]), []).append(rank)
    return next((ranks for ranks in by_gpu.values() if len(ranks) > 1), [])


def _host() -> str:
    """Return what tells this kernel from all others: containers on one machine have names of their own."""
    import socket

    return _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname()


def _nccl(group: Group, version: str) -> Communicator:
    import torch

    from devices import ProcessGroupCommunicator, torch_backend

    made: list[Any] = []
    has_left, lock = threading.Event(), threading.Lock()

    def connect() -> Any:
        backend = torch_backend("nccl", group)
        with lock:
            made.append(backend)
            is_late = has_left.is_set()
        # What is made once this rank has left is aborted as it is: if its connecting failed or hung, nobody would.
        if not is_late:
            # NCCL connects now, on this device: what is wrong shows here, and the first verb may be one that is
            # captured. It waits for its peers as long as it likes, and notices no death.
            backend.eager_connect_single_device(torch.device("cuda", group.device.index))
        return backend

    try:
        # What connects while its group is aborted may get through all the same, after that: it is aborted then.
        backend = group.watched(connect, "connecting NCCL", _abort)
        # NCCL has no tags, and its messages wait their turn among the group's collectives.
        messages = open_staged(group, "messages between two ranks keep out of the order of NCCL's collectives")
    except BaseException as error:
        with lock:
            has_left.set()
            is_made = bool(made)
        if is_made:
            _give_up(made[0], error)
        raise
    return ProcessGroupCommunicator(backend, f"NCCL {version}", native=True, messages=messages)


def _give_up(backend: Any, error: BaseException) -> None:
    """Abort a group that did not open: to shut it down is to wait for peers that may not come."""
    try:
        _abort(backend)
    except Exception as fault:
        error.add_note(f"nor could NCCL be aborted: {fault}")


def _abort(backend: Any) -> None:
    """Abort a group, which may be done before; raise where that does not end soon."""
    faults: list[Exception] = []

    def abort() -> None:
        try:
            backend.abort()
        except Exception as fault:
            faults.append(fault)

    # What connects still may hold it up, where NCCL was told not to block.
    aborting = threading.Thread(target=abort, name="devices aborts NCCL", daemon=True)
    aborting.start()
    aborting.join(_PATIENCE)
    if faults:
        raise faults[0]
    if aborting.is_alive():
        raise TimeoutError(f"it takes longer than {_PATIENCE:g} s")
