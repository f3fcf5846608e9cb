"""The logical cores of the machine, and which of them this process has: the part of the Neuron runtime."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import final

from . import limits


@final
class _Runtime:
    """What this process has of the machine."""

    def __init__(self) -> None:
        self.cores: tuple[int, ...] | None = None  # those that it owns, once the runtime is up
        self.files: list[int] = []
        self.first = 0  # torch's index of the first of them
        self.count: int | None = None  # what device_count says in a world
        self.is_in_bad_fork = False
        self.lock = threading.Lock()


_runtime = _Runtime()
_current = threading.local()


def is_initialized() -> bool:
    """Return whether this process has touched the runtime."""
    return _runtime.cores is not None


def is_in_bad_fork() -> bool:
    """Return whether this process was forked from one that had touched it."""
    return _runtime.is_in_bad_fork


def total_cores() -> int:
    """Return how many logical cores the machine has."""
    return int(os.environ.get("NEURON_STANDIN_CORES", str(limits.CORES)))


def visible_cores() -> tuple[int, ...]:
    """Return the cores that the variables give to this process (3.4: VISIBLE_CORES wins over NUM_CORES)."""
    there = total_cores()
    if text := os.environ.get("NEURON_RT_VISIBLE_CORES"):
        found: list[int] = []
        for part in text.split(","):
            first, _, last = part.strip().partition("-")
            found += range(int(first), int(last or first) + 1)
        # 3.3: contiguous, and a job of N cores starts at a multiple of N.
        if found != list(range(found[0], found[0] + len(found))):
            raise RuntimeError(f"NEURON_RT_VISIBLE_CORES={text} is not contiguous")
        if found[0] % len(found):
            raise RuntimeError(
                f"NEURON_RT_VISIBLE_CORES={text}: {len(found)} cores start at a multiple of {len(found)}"
            )
        if found[-1] >= there:
            raise RuntimeError(f"NEURON_RT_VISIBLE_CORES={text}: the machine has {there} logical cores")
        return tuple(found)
    count = int(os.environ.get("NEURON_RT_NUM_CORES", "0"))
    return tuple(range(count or there))


def device_count() -> int:
    """Return the number of devices: in a world that of this host's ranks, else of the cores that are visible."""
    return len(visible_cores()) if _runtime.count is None else _runtime.count


def indices() -> range:
    """Return the indices of the devices that this process may use."""
    count = len(visible_cores()) if _runtime.cores is None else len(_runtime.cores)
    return range(_runtime.first, _runtime.first + count)


def current_device() -> int:
    """Return the index of the current device."""
    index: int = getattr(_current, "index", _runtime.first)
    return index


def set_current(index: int) -> None:
    """Make another device the current one of this thread."""
    _current.index = checked(index)


def checked(index: int) -> int:
    """Return `index`, having checked that the device is this process's."""
    here = indices()
    if index not in here:
        raise RuntimeError(
            f"Device index {index} is out of range. Valid range is {here[0]} to {here[-1]} for this process"
        )
    return index


def touch() -> None:
    """Start the runtime, which takes the visible cores for as long as the process lives (3.3: exclusive until exit)."""
    if _runtime.cores is not None:
        return
    with _runtime.lock:
        if _runtime.cores is not None:
            return
        if _runtime.is_in_bad_fork:
            raise RuntimeError("Cannot re-initialize Neuron runtime in forked subprocess")
        folder = os.environ.get("NEURON_STANDIN_MACHINE")
        if not folder:
            raise RuntimeError("the stand-in of torch_neuronx has no machine: set NEURON_STANDIN_MACHINE to a folder")
        cores = visible_cores()
        limits.check_size(len(cores), "a process")
        taken = []
        for core in cores:
            file = os.open(Path(folder, f"core{core}"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            taken.append(file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                for each in taken:
                    os.close(each)
                raise RuntimeError(f"Logical Neuron Core {core} is owned by another process") from None
        _runtime.files, _runtime.cores = taken, cores


def enter_world(local_rank: int, local_world_size: int) -> None:
    """Take this rank's core, and no other, as the first process group does.

    3.3, pre-release group: exactly one logical core per process, and the group comes before the runtime is touched.
    """
    if _runtime.cores is not None:
        raise AssertionError("Neuron runtime should not be initialized before the init_process_group.")
    # 3.3: the visible core is the local rank unless the variable says another.
    os.environ.setdefault("NEURON_RT_VISIBLE_CORES", str(local_rank))
    if len(visible_cores()) != 1:
        raise AssertionError("Attempted to have more than one device per process in distributed setup")
    touch()
    _runtime.first, _runtime.count = local_rank, local_world_size
    _current.index = local_rank


def _after_fork() -> None:
    if _runtime.cores is not None:
        _runtime.cores, _runtime.is_in_bad_fork = None, True


os.register_at_fork(after_in_child=_after_fork)
