"""A domain's verbs as a communicator: what its plugin lacks is composed."""

from __future__ import annotations

from typing import final

import torch

from devices._backend import Communicator, Pending
from devices.algorithms.verbs import Verbs

Tensor = torch.Tensor


@final
class Natively(Communicator):
    """What carries a domain of a group over several vendors: its own plugin's verbs, each done when it returns.

    Args:
        verbs: the domain's.
    """

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs
        self.note = verbs.note

    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Pending:
        return self._verbs.reduce_scatter(output, input, op)

    def all_gather(self, output: Tensor, input: Tensor) -> Pending:
        return self._verbs.all_gather(output, input)

    def broadcast(self, tensor: Tensor, src: int) -> Pending:
        return self._verbs.broadcast(tensor, src)

    def abort(self) -> None:
        self._verbs.abort()

    def close(self) -> None:
        self._verbs.close()
