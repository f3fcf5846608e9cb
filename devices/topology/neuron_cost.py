"""The time of the Neuron runtime's collectives: mesh, RDH, KangaRing and ring.

The ranges of sizes are documented for a full trn2.48xlarge of 64 ranks. Every other constant is FITTED to the two
tables of which the documentation prints examples, old ones as it warns: 16 ranks of what must be Trainium2 (six
constants, of eight rows), and 64 ranks of two trn1.32xlarge (four constants). Nothing is published for Trainium3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from devices.catalogue.units import dimensions
from devices.topology.estimate import Estimate, around
from devices.topology.machine import Machine

MESH_BELOW, KANGARING_ABOVE, FULL = 1e6, 56e6, 64
"""Documented: the bytes below which all ranks send to all, and above which a ring of chips is taken, at 64 ranks. With
fewer ranks both are as many times less, so that a rank's part is the same: the example of 16 ranks agrees."""


KANGARING_MOST = 256
"""Documented: of more ranks there is no KangaRing."""


@dataclass(frozen=True, slots=True)
class Constants:
    """What was fitted for one chip; seconds, and factors.

    Args:
        start: what any call costs.
        exchange: a second exchange of a mesh, which messages of 64 KiB and more need.
        halving: a step of RDH, recursive doubling and halving.
        step: a step of a ring.
        crossing: a step between machines.
        links: how much of the links along a ring its bytes use.
        is_new: whether mesh, RDH and KangaRing are there; Trainium1 has rings.
    """

    start: float
    exchange: float
    halving: float
    step: float
    crossing: float
    links: float
    is_new: bool


TRAINIUM1 = Constants(300e-6, 274e-6, 45e-6, 12.9e-6, 110e-6, 0.72, False)
TRAINIUM2 = Constants(300e-6, 274e-6, 45e-6, 66e-6, 110e-6, 0.43, True)
CHIPS = {"trainium1": TRAINIUM1, "inferentia2": TRAINIUM1, "trainium2": TRAINIUM2}

BASIS = "fitted to two examples in the Neuron SDK's documentation, which says that they are old"

# Composed by torch-neuronx from the verbs that the runtime has.
_SAME_AS = {"broadcast": "all_reduce", "reduce": "all_reduce", "gather": "all_gather", "scatter": "reduce_scatter"}


def neuron_time(verb: str, size: float, ranks: int, machine: Machine) -> Estimate:
    """Return how long a collective takes; `devices.topology.predict` says what the arguments mean."""
    verb = _SAME_AS.get(verb, verb)
    constants = CHIPS.get(machine.generation, TRAINIUM2)
    doubts = list(machine.doubts)
    # Two tables of the same two trn1.32xlarge have 520 us and 64 us for a few bytes.
    spread = (0.1, 1.7) if size < 1 << 20 and machine.generation == "trainium1" else (0.6, 1.7)
    if machine.generation not in ("trainium1", "trainium2"):
        spread = (0.3, 3.0)
        doubts.append(f"no measurement of {machine.generation} is published; Trainium2's constants are taken")
    if ranks == 1:
        return around("none", 0.0, 0.0, spread, BASIS, doubts)
    domains = machine.domains(ranks)
    local = ranks // domains
    if verb in ("permute", "send"):
        rate = machine.between_domains() if domains > 1 else _along_a_ring(machine) * constants.links / 2
        return around("pairs", constants.start, size / rate, spread, BASIS, doubts)
    algorithm, latency = _latency(verb, size, local, constants)
    chips = max(1, local // machine.ranks_per_chip)
    # Among the cores of one chip bytes go as they go between chips: nothing else is published.
    ends = chips if chips > 1 else local
    passes = (ends - 1) / ends * (2 if verb == "all_reduce" else 1)
    transfer = passes * size / (_along_a_ring(machine) * constants.links)
    if domains > 1:
        latency += 2 * math.log2(domains) * constants.crossing
        share = size / domains if verb == "all_gather" else size
        across = (domains - 1) / domains * (2 if verb == "all_reduce" else 1)
        part = across * share / chips if verb != "all_to_all" else across * share
        transfer += part / machine.between_domains()
        algorithm += " in each machine, and between machines"
    return around(algorithm, latency, transfer, spread, BASIS, doubts)


def _latency(verb: str, size: float, local: int, constants: Constants) -> tuple[str, float]:
    """Return the algorithm inside a domain, and its seconds without those of the bytes."""
    if local == 1:
        return "nothing", constants.start
    times = 2 if verb == "all_reduce" else 1
    scale = local / FULL
    if verb == "all_to_all" or (constants.is_new and size < MESH_BELOW * scale):
        is_long = verb != "all_to_all" and size >= 1 << 16
        return "mesh", constants.start + (constants.exchange if is_long else 0.0)
    if constants.is_new and size <= KANGARING_ABOVE * scale and local & (local - 1) == 0:
        return "RDH", constants.start + times * math.log2(local) * constants.halving
    steps = times * (local - 1)
    if constants.is_new:
        return "KangaRing" if local <= KANGARING_MOST else "ring", constants.start + steps * constants.step
    # A short message has fewer pieces than there are ranks; from 1 KiB a piece on all steps of the ring are there.
    pieces = math.log2(max(size, 1) / (4 * local)) / 9
    return "ring", constants.start + steps * constants.step * min(1.0, max(0.0, pieces))


def _along_a_ring(machine: Machine) -> float:
    """Return the bandwidth of a chip to the next and to the one before, together: the two ways round a ring."""
    # Dimensions between nodes have links of their own.
    sizes = [length for length in dimensions(machine.shape) if length > 1]
    while len(sizes) > 1 and math.prod(sizes) > machine.chips_per_node:
        sizes.pop()
    neighbours = 2 * len(sizes)
    if machine.shape.startswith("line"):
        return machine.link / 2
    # A switch gives a chip all of its links at once.
    return machine.link * (2 / neighbours if neighbours else 1.0)
