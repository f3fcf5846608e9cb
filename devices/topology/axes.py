"""How long a collective takes along one axis of a mesh, all its groups at once."""

from __future__ import annotations

from devices.topology.cost import predict
from devices.topology.estimate import Estimate
from devices.topology.machine import Machine


def along(verb: str, size: float, machine: Machine, length: int, stride: int) -> Estimate:
    """Return the time among `length` ranks that are `stride` apart in the order of the machine's ranks.

    A group has as many of its ranks in a domain as fit there; where they do not fill it, domains have what is left.
    """
    room = max(1, machine.ranks_per_domain // stride)
    inside = max(part for part in range(1, min(length, room) + 1) if length % part == 0)
    return predict(verb, size, machine.part(inside, stride), length)


def strides(mesh: dict[str, int]) -> dict[str, int]:
    """Return how far apart the neighbours of each axis are, the last axis varying fastest.

    >>> strides({"dp": 4, "tp": 8})
    {'dp': 8, 'tp': 1}
    """
    found, stride = {}, 1
    for name, length in reversed(mesh.items()):
        found[name] = stride
        stride *= length
    return dict(reversed(found.items()))
