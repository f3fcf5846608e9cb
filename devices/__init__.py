"""One placement and collectives API over CUDA, AWS Neuron and CPU backends, each a plugin.

torch is imported when it is first needed, not by `import devices`.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from devices import errors
from devices._backend import (
    INTERFACE_VERSION,
    REDUCE_OPS,
    Asked,
    Backend,
    Capabilities,
    Communicator,
    Device,
    Group,
    Link,
    Message,
    Pending,
    PendingFrom,
    Probe,
    Variable,
)
from devices._interop import Interop, Port, Predicted, Shared, Side
from devices._observer import Called, Ended, Observer

if TYPE_CHECKING:
    from torch.distributed.tensor import Partial, Replicate, Shard

    from devices import catalogue as catalogue
    from devices import testing as testing
    from devices import topology as topology
    from devices._collectives import (
        all_gather,
        all_reduce,
        all_to_all,
        barrier,
        broadcast,
        gather,
        permute,
        recv,
        reduce,
        reduce_scatter,
        scatter,
        send,
    )
    from devices._fabric_memory import empty
    from devices._fit import device
    from devices._hookspecs import hookimpl
    from devices._observing import observe
    from devices._placement import place
    from devices._process_group import ProcessGroupCommunicator
    from devices._registry import available, backends, links
    from devices._staged import open_staged
    from devices._store import Store
    from devices._torch_groups import torch_backend
    from devices._work import Work
    from devices._world import World, explain, init
    from devices.calls.schedules import drop_schedules, use_schedule
    from devices.domains import open_domains
    from devices.fabric.communicator import FabricCommunicator
    from devices.fabric.host.fabric import open_fabric
    from devices.fabric.host.meeting import memory_domain, open_shared_memory
    from devices.fabric.interface import Fabric
    from devices.fabric.peer.communicator import open_peer_memory
    from devices.fabric.peer.memory import DeviceMemory
    from devices.recorder.record import FlightRecord, flight

__version__ = "0.1.0"

_LAZY = {
    **dict.fromkeys(("Partial", "Replicate", "Shard"), "torch.distributed.tensor"),
    **dict.fromkeys(
        (
            "all_gather",
            "all_reduce",
            "all_to_all",
            "barrier",
            "broadcast",
            "gather",
            "permute",
            "recv",
            "reduce",
            "reduce_scatter",
            "scatter",
            "send",
        ),
        "devices._collectives",
    ),
    "device": "devices._fit",
    "empty": "devices._fabric_memory",
    **dict.fromkeys(("FlightRecord", "flight"), "devices.recorder.record"),
    "hookimpl": "devices._hookspecs",
    "observe": "devices._observing",
    "place": "devices._placement",
    "ProcessGroupCommunicator": "devices._process_group",
    **dict.fromkeys(("available", "backends", "links"), "devices._registry"),
    "open_staged": "devices._staged",
    "Store": "devices._store",
    "torch_backend": "devices._torch_groups",
    "Work": "devices._work",
    **dict.fromkeys(("World", "explain", "init"), "devices._world"),
    "Fabric": "devices.fabric.interface",
    "FabricCommunicator": "devices.fabric.communicator",
    "open_fabric": "devices.fabric.host.fabric",
    "DeviceMemory": "devices.fabric.peer.memory",
    "open_peer_memory": "devices.fabric.peer.communicator",
    **dict.fromkeys(("drop_schedules", "use_schedule"), "devices.calls.schedules"),
    "open_domains": "devices.domains",
    **dict.fromkeys(("memory_domain", "open_shared_memory"), "devices.fabric.host.meeting"),
}

__all__ = [
    "INTERFACE_VERSION",
    "REDUCE_OPS",
    "Asked",
    "Backend",
    "Called",
    "Capabilities",
    "Communicator",
    "Device",
    "DeviceMemory",
    "Ended",
    "Fabric",
    "FabricCommunicator",
    "FlightRecord",
    "Group",
    "Interop",
    "Link",
    "Message",
    "Observer",
    "Partial",
    "Pending",
    "PendingFrom",
    "Port",
    "Predicted",
    "Probe",
    "ProcessGroupCommunicator",
    "Replicate",
    "Shard",
    "Shared",
    "Side",
    "Store",
    "Variable",
    "Work",
    "World",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "available",
    "backends",
    "barrier",
    "broadcast",
    "device",
    "drop_schedules",
    "empty",
    "errors",
    "explain",
    "flight",
    "gather",
    "hookimpl",
    "init",
    "links",
    "memory_domain",
    "observe",
    "open_domains",
    "open_fabric",
    "open_peer_memory",
    "open_shared_memory",
    "open_staged",
    "permute",
    "place",
    "recv",
    "reduce",
    "reduce_scatter",
    "scatter",
    "send",
    "torch_backend",
    "use_schedule",
]


def __getattr__(name: str) -> Any:
    """Import a public name, and torch where it needs it, when it is first asked for."""
    if name in ("catalogue", "testing", "topology"):
        return importlib.import_module(f"devices.{name}")
    if name not in _LAZY:
        from devices.errors import did_you_mean

        raise AttributeError(f"module 'devices' has no attribute {name!r}{did_you_mean(name, __all__)}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# torch finds its process group "devices" by the entry point that it loads at the end of its own import. Where it was
# told not to (any value but "1"), or is here already, importing us is what registers it.
if "torch" in sys.modules or os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") != "1":
    from devices import _autoload

    _autoload.register()
