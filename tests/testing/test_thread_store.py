"""The store of thread ranks: what torch's own gives, and who looks at a key again and again lets others go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

import devices.testing
from devices import World

HOWS = [{}, {"seed": 1}, {"parallel": True}]


def store() -> Any:
    return dist.distributed_c10d._get_default_store()


def calls(store: Any) -> list[Any]:
    found: list[Any] = [store.add("count", 2), store.add("count", 3), store.get("count"), store.add("count", 0)]
    store.set("text", "one")
    store.set("bytes", b"\x00\xff")
    found += [store.get("text"), store.get("bytes"), store.check(["text", "bytes"]), store.check(["text", "none"])]
    store.append("text", "two")
    store.append("new", "x")
    found += [store.get("text"), store.get("new")]
    found += [
        store.compare_set("lock", "", "a"),
        store.compare_set("lock", "b", "c"),
        store.compare_set("lock", "a", "d"),
    ]
    found += [store.compare_set("no lock", "x", "y"), store.check(["no lock"]), store.get("lock")]
    store.multi_set(["p", "q"], ["1", "2"])
    found += [store.multi_get(["p", "q"]), store.delete_key("p"), store.delete_key("p"), store.check(["p"])]
    store.wait(["q", "text"])
    return found


def test_it_gives_what_torchs_own_gives() -> None:
    # Compared as in torch's store in one process; a prefix lies before both.
    expected = calls(dist.PrefixStore("0", dist.HashStore()))
    assert devices.testing.run(lambda world: calls(dist.PrefixStore("a", store())), ranks=1) == [expected]


def counter(world: World) -> None:
    store().add("arrived", 1)
    while store().add("arrived", 0) < world.size:
        pass


def value(world: World) -> None:
    if world.rank == 0:
        store().set("value", "old")
    store().wait(["value"])
    if world.rank == world.size - 1:
        store().set("value", "new")
    while store().get("value") != b"new":
        pass


def lock(world: World) -> None:
    for _ in range(5):
        while store().compare_set("lock", "", f"{world.rank}") != f"{world.rank}".encode():
            pass
        before = int(store().get("sum")) if store().check(["sum"]) else 0
        store().set("sum", f"{before + 1}")
        store().delete_key("lock")
    dist.barrier()
    assert int(store().get("sum")) == 5 * world.size


def deleted(world: World) -> None:
    if world.rank == 0:
        store().set("key", "")
        dist.barrier()
        store().delete_key("key")
        return
    dist.barrier()
    while store().check(["key"]):
        pass


def number_of_keys(world: World) -> None:
    before = store().num_keys()
    dist.barrier()
    store().set(f"mine {world.rank}", "")
    while store().num_keys() < before + world.size:
        pass


def read_twice(world: World) -> None:
    if world.rank == 0:
        names = [f"key {number}" for number in range(6000)]
        for name in names:
            store().set(name, "")
        for name in names * 2:
            store().get(name)
    dist.barrier()


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("program", [counter, value, lock, deleted, number_of_keys, read_twice])
def test_a_program_that_looks_again_and_again_goes_on(program: Callable[[World], None], how: dict[str, Any]) -> None:
    devices.testing.run(program, ranks=3, timeout=30, **how)
