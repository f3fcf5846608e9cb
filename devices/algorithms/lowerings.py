"""The table that composes every verb from what a communicator has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from devices._backend import Communicator, Group
from devices.algorithms import by_exchange, by_gather
from devices.algorithms.arithmetic import Carrier
from devices.algorithms.transport import Transport
from devices.errors import PluginError


@final
@dataclass(frozen=True, slots=True)
class Lowering:
    """One way to compose a verb.

    Args:
        needs: the communicator's own verbs that it uses.
        run: does the verb and returns when it is done; a `Transport` is its first argument.
        carrier: for verbs that reduce, the form in which `run` wants the tensors of an op and dtype.
    """

    needs: frozenset[str]
    run: Callable[..., None]
    carrier: Callable[[Transport, str, torch.dtype], Carrier] = by_exchange.carrier


_EXCHANGE = frozenset({"exchange"})
_GATHER = frozenset({"all_gather"})
_BOTH = frozenset({"all_gather", "all_reduce"})

# For each verb the first whose needs are met is used. An uneven all_gather is as many bytes through its longest
# part over a ring as padded, so that the communicator's own all_gather comes first.
TABLE: dict[str, tuple[Lowering, ...]] = {
    "all_reduce": (
        Lowering(_EXCHANGE, by_exchange.all_reduce),
        Lowering(_BOTH, by_gather.all_reduce, by_gather.carrier),
    ),
    "all_gather": (Lowering(_GATHER, by_gather.all_gather), Lowering(_EXCHANGE, by_exchange.all_gather)),
    "reduce_scatter": (
        Lowering(_EXCHANGE, by_exchange.reduce_scatter),
        Lowering(_BOTH, by_gather.reduce_scatter, by_gather.carrier),
    ),
    "all_to_all": (Lowering(_EXCHANGE, by_exchange.all_to_all), Lowering(_GATHER, by_gather.all_to_all)),
    "broadcast": (Lowering(_EXCHANGE, by_exchange.broadcast), Lowering(_GATHER, by_gather.broadcast)),
    "reduce": (
        Lowering(_EXCHANGE, by_exchange.reduce),
        Lowering(_BOTH, by_gather.reduce, by_gather.carrier),
    ),
    "gather": (Lowering(_EXCHANGE, by_exchange.gather), Lowering(_GATHER, by_gather.gather)),
    "scatter": (Lowering(_EXCHANGE, by_exchange.scatter), Lowering(_GATHER, by_gather.scatter)),
    "permute": (Lowering(_EXCHANGE, by_exchange.permute), Lowering(_GATHER, by_gather.permute)),
    "barrier": (Lowering(_EXCHANGE, by_exchange.barrier), Lowering(_GATHER, by_gather.barrier)),
}

_OWN = (*TABLE, "exchange", "recv_any")


def own_verbs(communicator: Communicator) -> frozenset[str]:
    """Return the verbs that the communicator has of its own: of those that its class overrides, what it says."""
    kind, said = type(communicator), communicator.own
    return frozenset(
        verb
        for verb in _OWN
        if getattr(kind, verb) is not getattr(Communicator, verb) and (said is None or verb in said)
    )


def compose(communicator: Communicator, group: Group) -> dict[str, Lowering]:
    """Return how each verb is composed from what the communicator has.

    Raises:
        PluginError: it has neither `exchange` nor both `all_gather` and `all_reduce`.
    """
    own = own_verbs(communicator)
    if not (own >= _EXCHANGE or own >= _BOTH):
        name = type(communicator).__name__
        missing = " and ".join(sorted(_BOTH - own))
        raise PluginError(
            f"{group}: {name} cannot carry a group: implement exchange, or {missing}"
            + (f" beside its {', '.join(sorted(own))}" if own else "")
        )
    return {verb: next(way for way in ways if way.needs <= own) for verb, ways in TABLE.items()}
