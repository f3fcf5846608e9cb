"""Verbs on an accelerator do not look at data on the host: tensors of "meta" have none to look at.

So nothing in a verb waits for the device, and verbs can be captured in a CUDA graph.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from devices import Capabilities, Communicator, Device, Group, Pending, ProcessGroupCommunicator, Store
from devices.algorithms.started import DONE
from devices.algorithms.verbs import Verbs
from devices.calls.flat import Call

SIZE = 4


class Moves(Communicator):
    """A vendor's group without messages, whose works the device does in its own time."""

    def all_gather(self, output: Any, input: Any) -> Pending:
        return DONE

    def all_reduce(self, tensor: Any, op: str) -> Pending:
        return DONE


class Messages(Communicator):
    def exchange(self, sends: Any, recvs: Any) -> Pending:
        return DONE


class Everything(Moves, Messages):  # type: ignore[misc]  # a communicator as rich as NCCL's
    def reduce_scatter(self, output: Any, input: Any, op: str) -> Pending:
        return DONE

    def all_to_all(self, output: Any, input: Any, output_counts: Any, input_counts: Any) -> Pending:
        return DONE

    def broadcast(self, tensor: Any, src: int) -> Pending:
        return DONE

    def reduce(self, tensor: Any, dst: int, op: str) -> Pending:
        return DONE

    def gather(self, output: Any, input: Any, dst: int) -> Pending:
        return DONE

    def scatter(self, output: Any, input: Any, src: int) -> Pending:
        return DONE


def verbs_over(kind: type[Communicator], rank: int) -> Verbs:
    group = Group(tuple(range(SIZE)), rank, Device("m", "meta", 0), Store(dist.HashStore()), timedelta(seconds=5), "g")
    return Verbs(kind(), group, Capabilities(frozenset(), ProcessGroupCommunicator.reductions_of("nccl")))


CALLS = {
    **{f"all_reduce {op}": Call("all_reduce", op) for op in ("sum", "avg", "max", "prod")},
    "all_gather": Call("all_gather", counts=(8,) * SIZE),
    "uneven all_gather": Call("all_gather", counts=(8, 1, 0, 5)),
    "reduce_scatter": Call("reduce_scatter", counts=(2,) * SIZE),
    "uneven reduce_scatter": Call("reduce_scatter", "avg", counts=(5, 3, 0, 0)),
    "all_to_all": Call("all_to_all", counts=(2,) * SIZE, sent=(2,) * SIZE, is_even=True),
    "broadcast": Call("broadcast", root=1),
    "reduce": Call("reduce", "avg", root=1),
    "gather": Call("gather", root=1, counts=(8,) * SIZE),
    "uneven gather": Call("gather", root=1, counts=(8, 1, 0, 5)),
    "scatter": Call("scatter", root=1, counts=(2,) * SIZE),
    "permute": Call("permute", pairs=((0, 1), (1, 2))),
}


# Without messages and an all_to_all of its own, a rank reads from the others where its part of theirs lies.
LOOKS = (Moves, "all_to_all")


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in (Messages, Moves, Everything) for name in CALLS if (kind, name) != LOOKS],
)
def test_no_verb_looks_at_the_data(kind: type[Communicator], name: str) -> None:
    call = CALLS[name]
    for rank in range(SIZE):
        verbs = verbs_over(kind, rank)
        for dtype in (torch.float32, torch.bfloat16, torch.int16, torch.int64):
            if call.op == "avg" and not dtype.is_floating_point:
                continue
            mine = call.counts[rank] if name in ("uneven all_gather", "uneven gather") else 8
            _, result = call.start(verbs, torch.empty(mine, dtype=dtype, device="meta"), None, async_op=False)
            assert result.device.type == "meta"


def test_an_uneven_all_to_all_over_messages_does_not_look_either() -> None:
    call = Call("all_to_all", counts=(1, 2, 3, 2), sent=(1, 0, 3, 4))
    call.start(verbs_over(Messages, 0), torch.empty(8, device="meta"), None, async_op=False)


def test_tensors_of_meta_have_nothing_to_look_at() -> None:
    for look in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu):
        with pytest.raises((NotImplementedError, RuntimeError)):
            look(torch.empty(1, device="meta"))
