"""What each verb is given and must give, as plain torch has it, and what its speed is called."""

from __future__ import annotations

from dataclasses import dataclass

import torch

VERBS = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter", "permute",
    "send", "barrier",
)  # fmt: skip

REDUCING = frozenset({"all_reduce", "reduce_scatter", "reduce"})
ROOTED = frozenset({"broadcast", "reduce", "gather", "scatter"})
JOINED = frozenset({"all_gather", "gather"})
SPLIT = frozenset({"reduce_scatter", "scatter"})
WIDTH = 4


@dataclass(frozen=True)
class Case:
    """One verb at one size.

    Args:
        verb: its name.
        ranks: how many do it.
        count: elements of the larger of input and output, as in nccl-tests.
    """

    verb: str
    ranks: int
    count: int

    @staticmethod
    def of(verb: str, ranks: int, bytes: int) -> Case:
        """Return the case of about `bytes` bytes, of whole elements on every rank."""
        count = 0 if verb == "barrier" else max(1, bytes // WIDTH)
        if verb in JOINED | SPLIT | {"all_to_all"}:
            count = max(1, count // ranks) * ranks
        return Case(verb, ranks, count)

    @property
    def bytes(self) -> int:
        return self.count * WIDTH

    @property
    def bus_factor(self) -> float:
        """How many bytes pass through the busiest rank for each byte of the size, as nccl-tests reckons."""
        share = (self.ranks - 1) / self.ranks
        if self.verb == "all_reduce":
            return 2 * share
        return share if self.verb in JOINED | SPLIT | {"all_to_all"} else 1.0

    @property
    def given(self) -> int:
        """Elements of a rank's input."""
        return self.count // self.ranks if self.verb in JOINED else self.count

    @property
    def gotten(self) -> int:
        """Elements of a rank's result."""
        return self.count // self.ranks if self.verb in SPLIT else self.count


def input_of(case: Case, rank: int) -> torch.Tensor:
    """Return a rank's input: small whole numbers, whose sums are exact, in a pattern that no shift maps to itself."""
    return (torch.arange(case.given) * 7 % 31 + rank).float()


def result_of(case: Case, rank: int) -> torch.Tensor | None:
    """Return what the verb must give on a rank; None where it gives nothing."""
    verb, ranks = case.verb, case.ranks
    if verb == "barrier" or (verb in ("reduce", "gather") and rank != 0):
        return None
    if verb == "send":
        return input_of(case, 1 - rank) if rank < 2 else None
    if verb == "broadcast":
        return input_of(case, 0)
    if verb == "permute":
        return input_of(case, (rank - 1) % ranks)
    if verb == "scatter":
        return input_of(case, 0).chunk(ranks)[rank]
    if verb in JOINED:
        return torch.cat([input_of(case, each) for each in range(ranks)])
    if verb == "all_to_all":
        return torch.cat([input_of(case, each).chunk(ranks)[rank] for each in range(ranks)])
    total = input_of(case, 0) * ranks + sum(range(ranks))
    return total.chunk(ranks)[rank] if verb == "reduce_scatter" else total
