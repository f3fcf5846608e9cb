"""`run(backend=...)`: thread ranks over any backend that says it can be opened by threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices
from devices import _registry
from devices.errors import PluginError, UnsupportedError
from devices.testing import run


class OverGloo(devices.Backend):
    """The CPU backend, saying of itself that threads may open it."""

    name = "over_gloo"
    device_type = "cpu"
    priority = None
    thread_ranks = True

    def probe(self) -> devices.Probe:
        return devices.Probe(True, "for a test")

    def devices(self) -> Sequence[devices.Device]:
        return [devices.Device("over_gloo", "cpu", index) for index in range(2)]

    def capabilities(self, device: devices.Device) -> devices.Capabilities:
        return _registry.backend("cpu").capabilities(device)

    def open(self, group: devices.Group) -> devices.Communicator:
        return devices.ProcessGroupCommunicator(
            dist.ProcessGroupGloo(group.store.torch, group.rank, group.size, group.timeout)
        )


def use_it(world: Any) -> tuple[str, int, float]:
    x = (torch.arange(6.0) + world.rank).requires_grad_()
    total = devices.all_reduce(x)
    (total * torch.arange(6.0)).sum().backward()
    small = devices.all_reduce(torch.tensor([1, 2], dtype=torch.int16), async_op=True).result()
    assert small.tolist() == [world.size, 2 * world.size]
    pairs = [dist.new_group([0, 1]), dist.new_group([0, 2])]
    for other, pair in zip((1, 2), pairs, strict=True):
        if world.rank in (0, other):
            assert devices.all_gather(torch.tensor([world.rank]), pair).tolist() == [0, other]
    assert x.grad is not None
    return world.backend, int(total.sum()), x.grad.sum().item()


def test_ranks_that_are_threads_use_the_backend_that_is_given() -> None:
    assert run(use_it, ranks=3, backend=OverGloo()) == [("over_gloo", 45 + 18, 45.0)] * 3


def test_each_thread_has_the_device_of_its_rank() -> None:
    def index(world: Any) -> int:
        from devices.c10d.group import DevicesGroup

        assert isinstance(dist.group.WORLD, DevicesGroup)
        return dist.group.WORLD.group.device.index

    assert run(index, ranks=3, backend=OverGloo()) == [0, 1, 0]


def test_an_error_of_one_rank_ends_the_others_where_the_transport_blocks_them() -> None:
    def fail(world: Any) -> None:
        if world.rank == 1:
            raise ValueError("no more")
        devices.barrier()

    began = time.monotonic()
    with pytest.raises(ValueError, match="no more") as caught:
        run(fail, ranks=3, backend=OverGloo(), timeout=120)
    assert time.monotonic() - began < 60
    assert caught.value.__notes__ == ["raised by rank 1 of 3, a thread rank"]


def test_an_error_of_one_rank_ends_those_that_open_a_group_with_it() -> None:
    def fail(world: Any) -> None:
        if world.rank == 1:
            raise ValueError("no more")
        dist.new_group([0, 1])

    began = time.monotonic()
    with pytest.raises(ValueError, match="no more"):
        run(fail, ranks=2, backend=OverGloo(), timeout=120)
    assert time.monotonic() - began < 60


def gradients(world: Any) -> list[tuple[str, bool]]:
    found = []
    whole: dict[str, Any] = {"pairs": [(0, 1), (1, 0)]}
    for verb, keywords in (
        ("all_reduce", {"op": "avg"}), ("reduce_scatter", {}), ("reduce_scatter", {"op": "avg"}), ("all_gather", {}),
        ("all_to_all", {}), ("broadcast", {}), ("scatter", {}), ("permute", whole),
    ):  # fmt: skip
        by_way = []
        for async_op in (False, True):
            x = (torch.arange(4.0, dtype=torch.float64) + world.rank).requires_grad_()
            result = getattr(devices, verb)(x, **keywords, async_op=async_op)
            y = result.result() if async_op else result
            (y * torch.arange(1.0, 1 + y.numel()) * (world.rank + 1)).sum().backward()
            by_way.append(x.grad)
        is_there = by_way[0] is not None and bool(by_way[0].any())
        same = by_way[0] is by_way[1] or bool((by_way[0] == by_way[1]).all())
        found.append((verb, same and (is_there or world.rank > 0)))
    return found


def test_the_gradient_of_an_asynchronous_verb_is_that_of_the_synchronous_one() -> None:
    """gloo's reduce_scatter writes its result while it is waited for, when the result is in torch's graph already."""
    for found in run(gradients, ranks=2, backend=OverGloo()):
        assert [verb for verb, is_right in found if not is_right] == []


def test_a_backend_that_does_not_say_that_threads_may_open_it_is_refused() -> None:
    class Silent(OverGloo):  # type: ignore[misc]
        thread_ranks = False

    with pytest.raises(UnsupportedError, match="does not say that its ranks may be threads"):
        run(use_it, ranks=2, backend=Silent())


def test_a_backend_that_opens_no_communicator_is_named_with_what_it_returned() -> None:
    class Empty(OverGloo):  # type: ignore[misc]
        def open(self, group: devices.Group) -> Any:
            return None

    with pytest.raises(PluginError, match=r"rank . of 2 in group .* returned None, which is no devices.Communicator"):
        run(use_it, ranks=2, backend=Empty())
