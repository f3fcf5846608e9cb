"""The laws of `Fabric`, on the one that thread ranks share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from fabric_member import member
from interface_cases import LAWS

import devices.testing
from devices import World
from devices.errors import RaceError

HOWS = [{}, {"seed": 1}, {"seed": 2}, {"parallel": True}]

pytestmark = pytest.mark.parametrize("how", HOWS, ids=str)


@pytest.mark.parametrize("name", LAWS)
def test_the_law_holds_that(name: str, how: dict[str, Any]) -> None:
    law = LAWS[name]
    assert devices.testing.run(law.body, ranks=law.ranks, **how) == law.expected


def test_nothing_stays_when_all_have_left(how: dict[str, Any]) -> None:
    def leaves(world: World) -> tuple[Any, ...]:
        fabric: Any = member("left").fabric
        fabric.export("x", torch.ones(2), None, readers=1)
        fabric.signal(0, 1, "note")
        dist.barrier()
        fabric.leave()
        dist.barrier()
        memory = fabric._memory
        return memory.lanes, memory.notes, memory.exports

    assert devices.testing.run(leaves, ranks=2, **how) == [([], [], [])] * 2


@pytest.mark.parametrize("kind", ["whole", "a part", "of inference"])
def test_a_tensor_that_is_changed_before_it_was_read_is_told(kind: str, how: dict[str, Any]) -> None:
    def changes(world: World) -> None:
        fabric = member("changed").fabric
        if world.rank == 1:
            dist.barrier()
            fabric.open(0, "x")
            fabric.close(0, "x")
            return
        with torch.inference_mode(kind == "of inference"):
            memory = torch.ones(8)
        tensor = memory if kind == "whole" else memory[:4]
        fabric.export("x", tensor, None, readers=1)
        with torch.inference_mode(kind == "of inference"):
            tensor[0] = 5
        dist.barrier()

    with pytest.raises(RaceError, match="rank 0 changed a tensor in place"):
        devices.testing.run(changes, ranks=2, **how)
