"""All that the author of a backend implements, and the plain data that passes through it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from devices._communicator import Asked, Communicator, Message, NotHereError, Pending, PendingFrom
from devices._device import Capabilities, Device, Link
from devices._group import Group

if TYPE_CHECKING:
    from devices._interop import Interop
    from devices.topology.graph import Topology

__all__ = [
    "INTERFACE_VERSION",
    "REDUCE_OPS",
    "Asked",
    "Backend",
    "Capabilities",
    "Communicator",
    "Device",
    "Group",
    "Link",
    "Message",
    "NotHereError",
    "Pending",
    "PendingFrom",
    "Probe",
    "Variable",
]

INTERFACE_VERSION = 1
"""The version of the plugin interface that this file states; a backend declares the one it was written for."""

REDUCE_OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
"""The reduce ops, spelt as torch spells them in lower case."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend's hardware is here, and the reason, in words that a user can act on."""

    present: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment that a rank is to be started with.

    Args:
        name: of the variable.
        value: what to set it to.
        why: what it is for, in words, for whoever reads it in a script.
    """

    name: str
    value: str
    why: str = ""


class Backend(abc.ABC):
    """One kind of hardware. Building one is cheap and touches no hardware.

    Attributes:
        name: what users call it; no two plugins may share one.
        device_type: torch's type of its devices; several backends may share one.
        priority: "auto" takes the present backend with the highest; None is chosen only by name.
        interface: the version of this interface that it was written for; who says nothing means the first.
        verified: what it has run on, for `devices doctor`; say so if it has never run on hardware.
        thread_ranks: whether several ranks of one group may be threads of one process, each opening its own
            communicator there. They run at the same time, and a verb may block its thread.
    """

    name: ClassVar[str]
    device_type: ClassVar[str]
    priority: ClassVar[int | None] = 100
    interface: ClassVar[int] = 1
    verified: ClassVar[str] = "not run on hardware"
    thread_ranks: ClassVar[bool] = False

    @abc.abstractmethod
    def probe(self) -> Probe:
        """Return whether the hardware is here and why: within a second, no context opened, nothing heavy imported."""

    @abc.abstractmethod
    def devices(self) -> Sequence[Device]:
        """Return the devices that this process may use, in index order; none if `probe` says absent."""

    @abc.abstractmethod
    def capabilities(self, device: Device) -> Capabilities:
        """Return what `device` can do: equal for equal devices, whenever asked."""

    def reach(self, device: Device) -> str:
        """Return what all devices have in common that this backend's own groups reach as one domain.

        It is asked where a group has ranks of several backends. "", which a method that is not overridden returns,
        says that a group of this backend carries its devices wherever they are.
        """
        return ""

    def bound(self, device: Device) -> tuple[str, int] | None:
        """Return which world the runtime of this process was started for, where it opens none of other processes.

        That is its name, which is the same on all its ranks and on no others, and how many they are. None, which a
        method that is not overridden returns, says that this process may be in any group. Ranks whose runtime is bound
        to a world that is not whole any more are each for itself, with messages through host memory.
        """
        return None

    def open_alone(self, group: Group) -> None:  # noqa: B027 - most have nothing to do
        """Make this rank's device fit for use where the rank is the only one of its domain, in a world of several.

        `group` is of this rank alone, and `open` is not called for it. To be overridden where a device becomes the
        current one by the opening of a group.
        """

    def topology(self) -> Topology | None:
        """Return the graph of this host's devices of this backend, switches included, as `devices.topology` has it.

        A device's node is named as `str(device)` prints it. None, which a method that is not overridden returns, says
        that no more is known than `Capabilities.links`; where there is a topology, those links are not added to it.
        """
        return None

    def launch_environment(self, ranks: int | None = None, local_rank: int | None = None) -> Sequence[Variable]:
        """Return the variables that a program's ranks on this host are to be started with, for `devices env`.

        Args:
            ranks: how many there are on this host; as many as there are devices if None.
            local_rank: the rank whose own variables to return; those that are the same for all ranks if None. A rank
                asks for them when its peers may have been started already, and must be told what they are told.

        Raises:
            UnsupportedError: so many ranks cannot be started here; or, whether present or not, there is no hardware
                to say it for.
        """
        return ()

    def local_ranks(self) -> int | None:
        """Return how many ranks a program has on this host if nobody says otherwise, for `devices env`.

        None, which a method that is not overridden returns, says as many as `devices` lists; fewer are listed where a
        process may use but one of what several may use together.

        Raises:
            UnsupportedError: as `launch_environment` does.
        """
        return None

    def contradictions(self) -> Sequence[str]:
        """Return a sentence for each setting here that contradicts another one or the hardware, for `devices doctor`.

        It says what is set, what that contradicts and what to do. Asked of a backend that is absent too: within a
        second, no context opened, nothing heavy imported.
        """
        return ()

    def interop(self) -> Interop | None:
        """Return the fabric by which this backend's devices and those of others reach each other's memory, if any.

        Asked, whether the hardware is here or not, where a world has ranks of several backends, and by what emulates
        ranks of several kinds.
        """
        return None

    def bind(self, device: Device) -> None:
        """Make `device` the one that this process works on, before any group opens; `devices.init` calls it once.

        To be overridden where torch has no module for the device before something is imported, or where the device
        becomes the current one by the opening of a group.
        """
        if device.type != "cpu":
            import torch

            torch.get_device_module(device.type).set_device(device.index)

    @abc.abstractmethod
    def open(self, group: Group) -> Communicator:
        """Return a communicator over `group`; every member calls this, and it may wait for the others."""
