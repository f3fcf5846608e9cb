"""NVLink Fusion between Trainium4 and NVIDIA GPUs, as it is assumed to be: who is in a domain, and how a group goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import final

import torch

from devices import (
    Communicator,
    Device,
    Group,
    Interop,
    Message,
    Pending,
    PendingFrom,
    Port,
    Predicted,
    Shared,
    Side,
)
from devices.errors import UnsupportedError
from devices_trainium4.memory import FusionMemory
from devices_trainium4.prediction import predicted

TRAINIUM4, GPU = "trainium4", "rubin"

ONE, TWO = "one domain", "two domains"

Assumed = Mapping[str, str]


@final
class NVLinkFusion(Interop):
    """One domain of both on the switches of a rack; or, if that is not so, two with EFA between them."""

    name = "nvlink-fusion"
    domain = "trainium4-nvlink-fusion"

    def port(self, device: Device) -> Port | None:
        # No driver knows of the fabric: on none of today's devices it is found.
        return None

    def memory(self, group: Group) -> Shared | str:
        return f"speculative: there is no {self.name} whose memory could be opened"

    def covers(self, targets: AbstractSet[str]) -> bool:
        return TRAINIUM4 in targets and targets <= {TRAINIUM4, GPU}

    def domains(self, sides: Sequence[Side], assumed: Assumed) -> Sequence[Sequence[Side]]:
        found = [list(sides)] if assumed["mixed_domain"] == "one" else [[side] for side in sides]
        most = int(assumed["domain_size"])
        for domain in found:
            if (count := sum(len(side.ranks) for side in domain)) > most:
                raise UnsupportedError(
                    f"{count} ranks, {_counted(domain)}, are more than the {most} that one domain of {self.name} "
                    f"(speculative) is assumed to have, by domain_size={most}; have fewer, or assume otherwise"
                    + (", or mixed_domain=two" if len(domain) > 1 else "")
                )
        return found

    def limits_of(self, target: str, assumed: Assumed) -> str:
        if target != TRAINIUM4:
            return target
        return {"ours": TRAINIUM4, "nccl": GPU, "neuron": "trainium3"}[assumed["collective_stack"]]

    def open(self, group: Group, sides: Sequence[Side], shared: Shared, assumed: Assumed) -> Communicator:
        kinds = {rank: side.target for side in sides for rank in side.ranks}
        maps_peers = assumed["peer_memory"] == "load and store"
        memory = FusionMemory(
            shared.fabric,
            [kinds[rank] for rank in range(group.size)],
            maps_peers=maps_peers,
            watches_signals=shared.by_reference and assumed["coherence"] == "none",
        )
        # What a switch adds up is added up in one place; without that all ranks add up their parts.
        communicator = shared.carry(memory, assumed["in_switch_reduction"] == "no")
        how = "memory that each maps of the others"
        if not maps_peers and len(sides) > 1:
            communicator, how = Messages(communicator), "messages"
        communicator.note = (
            f"one domain of {self.name} (speculative) with {how}: {_counted(sides)}; torch's type of a Trainium4 is "
            f"{assumed['device_type']!r}"
        )
        return communicator

    def bridge(self, assumed: Assumed) -> str:
        return f"EFA of {assumed['bridge']} a chip (speculative)"

    def compared(self, assumed: Assumed) -> Mapping[str, Assumed]:
        return {ONE: {**assumed, "mixed_domain": "one"}, TWO: {**assumed, "mixed_domain": "two"}}

    def predicted(self, verb: str, size: int, root: int, sides: Sequence[Side], assumed: Assumed) -> Predicted:
        # One domain may be larger than it can be: what it would take is what is asked for.
        domains = [list(sides)] if assumed["mixed_domain"] == "one" else [[side] for side in sides]
        return predicted(verb, size, root, domains, assumed)


@final
class Messages(Communicator):
    """A domain whose two kinds of chips share no memory: all verbs are composed from messages.

    Args:
        carrier: carries them.
    """

    def __init__(self, carrier: Communicator) -> None:
        self._carrier = carrier

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        return self._carrier.exchange(sends, recvs)

    def recv_any(self, tensor: torch.Tensor, tag: int) -> PendingFrom:
        return self._carrier.recv_any(tensor, tag)

    def abort(self) -> None:
        self._carrier.abort()

    def close(self) -> None:
        self._carrier.close()


def _counted(sides: Sequence[Side]) -> str:
    return " and ".join(
        f"{len(side.ranks)} {side.target}{' (speculative)' if side.target == TRAINIUM4 else ''}" for side in sides
    )
