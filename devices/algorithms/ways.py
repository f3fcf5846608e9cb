"""How a group's verbs go, in words, for `devices.explain(group)`."""

from __future__ import annotations

from collections.abc import Mapping

from devices._backend import Communicator
from devices.algorithms.lowerings import Lowering, own_verbs
from devices.algorithms.planned import Plans


def ways(communicator: Communicator, lowered: Mapping[str, Lowering], plans: Plans) -> dict[str, str]:
    """Return how each verb goes: by a schedule, else as the communicator says, or composed from which of its own."""
    own, told = own_verbs(communicator), communicator.ways
    found = {
        verb: told.get(verb, "the communicator's own")
        if verb in own
        else f"composed of {' and '.join(sorted(way.needs))}"
        for verb, way in lowered.items()
    }
    return {verb: "; else ".join([*map(str, plans.of(verb)), way]) for verb, way in found.items()}
