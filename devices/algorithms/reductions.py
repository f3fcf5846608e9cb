"""How the reductions of a group run: over those of its communicator, or composed, in a dtype that carries them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import final

import torch

from devices.algorithms.arithmetic import Carrier
from devices.algorithms.by_gather import native_carrier
from devices.algorithms.lowerings import Lowering
from devices.algorithms.runner import Start
from devices.algorithms.transport import Transport

Tensor = torch.Tensor


@final
class Reductions:
    """The reductions of one rank of a group.

    Args:
        on: the communicator, with what it reduces.
        lowered: how each verb is composed.
        own: the verbs that the communicator has of its own.
    """

    def __init__(self, on: Transport, lowered: Mapping[str, Lowering], own: AbstractSet[str]) -> None:
        self._on = on
        self._lowered = lowered
        self._own = own
        self._carriers: dict[tuple[str, torch.dtype], Carrier | None] = {}

    def carrier(self, verb: str, op: str, dtype: torch.dtype) -> Carrier | None:
        """Return in what the communicator's own `verb` reduces `dtype`; None if it is to be composed."""
        if verb not in self._own:
            return None
        pair = op, dtype
        if pair not in self._carriers:
            self._carriers[pair] = native_carrier(self._on, op, dtype)
        return self._carriers[pair]

    def start(self, carrier: Carrier, tensor: Tensor, dst: int | None = None) -> Start:
        """Start the communicator's own all_reduce or, to `dst`, reduce."""
        data = carrier.encode(tensor)
        if dst is None:
            pending = self._on.communicator.all_reduce(data, carrier.op)
        else:
            if dst != self._on.rank and carrier.shares and not self._on.communicator.reduce_spares:
                data = data.clone()
            pending = self._on.communicator.reduce(data, dst, carrier.op)
            if dst != self._on.rank:
                return pending, None
        return pending, partial(carrier.decode, data, tensor, self._on.size) if carrier.hops else None

    def compose(self, tensor: Tensor, op: str, dst: int | None = None, plan: Lowering | None = None) -> None:
        """Do an all_reduce or, to `dst`, a reduce out of other verbs, or by `plan`."""
        lowering = plan or self._lowered["all_reduce" if dst is None else "reduce"]
        carrier = lowering.carrier(self._on, op, tensor.dtype)
        data = carrier.encode(tensor)
        if dst not in (None, self._on.rank) and carrier.shares:
            data = data.clone()
        lowering.run(self._on, data, *(() if dst is None else (dst,)), carrier.op)
        if dst is None or dst == self._on.rank:
            carrier.decode(data, tensor, self._on.size)

    def start_scatter(self, carrier: Carrier, output: Tensor, input: Tensor) -> Start:
        """Start the communicator's own reduce_scatter."""
        data = carrier.encode(input)
        target = carrier.encode(output) if carrier.shares else data.new_empty(data.numel() // self._on.size)
        pending = self._on.communicator.reduce_scatter(target, data, carrier.op)
        return pending, partial(carrier.decode, target, output, self._on.size) if carrier.hops else None

    def compose_scatter(
        self, output: Tensor, input: Tensor, op: str, counts: Sequence[int], plan: Lowering | None = None
    ) -> None:
        """Do a reduce_scatter out of other verbs, or by `plan`."""
        lowering = plan or self._lowered["reduce_scatter"]
        carrier = lowering.carrier(self._on, op, input.dtype)
        data = carrier.encode(input)
        target = carrier.encode(output) if carrier.shares else data.new_empty(output.numel() * carrier.factor)
        lowering.run(self._on, target, data, carrier.op, [count * carrier.factor for count in counts])
        carrier.decode(target, output, self._on.size)
