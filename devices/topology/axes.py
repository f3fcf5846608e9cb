"""How long a collective takes along one axis of a mesh, all its groups at once."""

from __future__ import annotations

from collections.abc import Mapping

from devices.errors import MeshError
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


def apart(mesh: dict[str, int], said: Mapping[str, int] | None) -> dict[str, int]:
    """Return how far apart the neighbours of each axis are: as it is said, or else as `strides` has it.

    Raises:
        MeshError: with what is said two places of the mesh would have one rank, or a rank no place.
    """
    if said is None:
        return strides(mesh)
    found = {name: said.get(name, 1) for name in mesh}
    far = sorted((name for name, length in mesh.items() if length > 1), key=lambda name: found[name])
    if any(name not in mesh for name in said) or found != {
        **found,
        **strides({name: mesh[name] for name in far[::-1]}),
    }:
        asked = ", ".join(f"{name}={length}" for name, length in mesh.items() if length > 1)
        raise MeshError(f"axes of {asked} do not lie {dict(said)} apart, each its nearer ones' lengths multiplied")
    return found
