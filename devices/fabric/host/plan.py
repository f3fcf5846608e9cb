"""A small all_reduce that a program makes again and again: all that does not change from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from devices.algorithms.arithmetic import COMBINE
from devices.fabric.host.agreement import Key, fingerprint
from devices.fabric.host.layout import DIRECT

Tensor = torch.Tensor

_SUMMED = (torch.float32, torch.float64)
"""The dtypes that `torch.sum` neither widens nor adds up in another."""


@final
class Plan:
    """An all_reduce of one op, dtype and small size.

    Args:
        key: what the ranks agree on.
        slots: what the ranks give, a row each, by parity of the call.
        rank: this rank.
    """

    def __init__(self, key: Key, slots: Sequence[Tensor], rank: int) -> None:
        self.key = key
        self.fingerprint = fingerprint(key)
        self._op, dtype = COMBINE[key[3]], slots[0].dtype
        self.is_long = slots[0][0].nbytes > DIRECT
        self._rank = rank
        self._slots = slots
        self._rows = [rows.unbind() for rows in slots]
        self.mine = [rows[rank] for rows in self._rows]
        # Of so few elements one call over all rows costs less than one for each.
        self._at_once = key[3] == "sum" and dtype in _SUMMED and len(slots[0]) > 2 and slots[0].shape[1] <= 1024

    def reduced(self, parity: int, given: Tensor) -> Tensor:
        """Return the reduction of what the ranks gave, this one `given`: by the same sums on all, so the same bits."""
        if self._at_once:
            return torch.sum(self._slots[parity], 0)
        return self._in_order(self._rows[parity], given)

    def reduce_into(self, parity: int, given: Tensor) -> None:
        """Replace `given` by what `reduced` returns."""
        if self._at_once:
            torch.sum(self._slots[parity], 0, out=given)
        else:
            self._in_order(self._rows[parity], given, out=given)

    def _in_order(self, rows: Sequence[Tensor], given: Tensor, *, out: Tensor | None = None) -> Tensor:
        # What this rank gave is nearer where it came from than where it was copied to.
        first = given if self._rank == 0 else rows[0]
        second = given if self._rank == 1 else rows[1]
        result = self._op(first, second, out=out)
        for other in rows[2:]:
            self._op(result, other, out=result)
        return result
