"""A device and what it can do, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Link:
    """A direct link from one device to another.

    Args:
        peer: the other device, as `str(device)` prints it.
        kind: what it is, for instance "nvlink" or "pcie".
        bandwidth: bytes per second in one direction; None when unknown.
        latency: seconds; None when unknown.
    """

    peer: str
    kind: str
    bandwidth: float | None = None
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """One device of one backend.

    Args:
        backend: the backend's name; not a torch device type (a Trainium3 is of type "neuron").
        type: torch's device type.
        index: torch's device index.
        name: what its maker calls it.
        memory: bytes of memory in all; None when unknown.
        free: bytes of it that were free when asked; None when unknown.
    """

    backend: str
    type: str
    index: int
    name: str = ""
    memory: int | None = None
    free: int | None = None

    def __str__(self) -> str:
        return f"{self.backend}:{self.index}"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device and its communicator can do, as data. What is not declared here is composed or refused.

    Args:
        dtypes: the dtypes that tensors on the device may have; all of them can be moved.
        reductions: for each reduce op, the dtypes that the communicator's own `all_reduce`, `reduce` and
            `reduce_scatter` take. Any other op and dtype is composed.
        group_sizes: the legal group sizes; None when every size is legal. A group of one, which opens nothing, always
            is.
        group_size_multiple: every multiple of this is legal beside `group_sizes`.
        symmetric: whether a group over several hosts must have the same devices of each.
        max_groups: how many groups of more than one rank may be open at once in a process; None for no limit.
        max_streams: how many streams the device runs at once; None for no limit.
        links: the device's links to other devices.
        messages: how `send` and `recv` go where the devices have no messages of their own that programs could use:
            "staged", through host memory; "" where they are the communicator's own, if it has any.
    """

    dtypes: frozenset[torch.dtype]
    reductions: Mapping[str, frozenset[torch.dtype]] = field(default_factory=lambda: MappingProxyType({}))
    group_sizes: frozenset[int] | None = None
    group_size_multiple: int | None = None
    max_groups: int | None = None
    max_streams: int | None = None
    links: tuple[Link, ...] = ()
    messages: str = ""
    symmetric: bool = False

    def allows_group_of(self, size: int) -> bool:
        """Return whether a group of `size` ranks is legal."""
        if self.group_sizes is None:
            return True
        multiple = self.group_size_multiple
        return size in self.group_sizes or (multiple is not None and size % multiple == 0)
