"""What a program says that its tensors are of: told at the opening, on every rank, with both sides named."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

import devices
import devices.testing
from devices import Backend, Capabilities, Device, Group, Store
from devices._choice import Choice
from devices._world import _check_dtypes
from devices.errors import ArgumentError, CollectiveTimeoutError, UnsupportedError, WorldError
from devices.meeting.dtypes import check_dtypes


@dataclass
class Has:
    """A backend, as far as it is asked which dtypes its devices have."""

    name: str
    dtypes: Iterable[torch.dtype] = ()
    fault: str = ""

    def capabilities(self, device: Device) -> Capabilities:
        if self.fault:
            raise RuntimeError(self.fault)
        return Capabilities(frozenset(self.dtypes))


CPU = Has("cpu", [torch.float32, torch.float64, torch.int64])
CHIP = Has("chip", [torch.float32, torch.float8_e5m2])
WHATEVER = Has("whatever")


class LostOnceTold(dist.HashStore):
    """A store that is gone once all ranks have told what they have."""

    def set(self, key: str, value: str) -> None:
        if key.startswith("read/"):
            raise dist.DistNetworkError("connection reset by peer")
        super().set(key, value)


def told(
    backends: list[Has], needs: list[list[str]], seconds: float = 30, kept: type[dist.Store] = dist.HashStore
) -> list[Exception | None]:
    """Return what the check raises on each rank, which are threads."""
    store, size = Store(kept()), len(backends)

    def on(rank: int) -> Exception | None:
        group = Group(tuple(range(size)), rank, Device("chip", "cpu", rank), store, timedelta(seconds=seconds), "world")
        try:
            check_dtypes(group, cast(Backend, backends[rank]), needs[rank % len(needs)])
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(on, range(size)))


def test_what_all_have_or_say_nothing_of_and_bytes_open() -> None:
    assert told([CPU, CHIP, WHATEVER], [["float32", "uint8"]]) == [None] * 3
    assert told([WHATEVER, CPU], [["float64"]]) == [None] * 2
    assert told([CHIP, CPU], [[]]) == [None] * 2


def test_what_one_side_lacks_is_told_on_every_rank_with_both_sides() -> None:
    errors = told([CPU, CHIP, CHIP, WHATEVER], [["float64", "float8_e5m2", "int64"]])
    for rank, error in enumerate(errors):
        assert isinstance(error, UnsupportedError)
        assert str(error).startswith(f"rank {rank} of 4: the world cannot open: the program needs float64, ")
        assert (
            "float64, int64 are not there on ranks 1, 2 (chip), there on rank 0 (cpu) and rank 3 (whatever); "
            "float8_e5m2 is not there on rank 0 (cpu), there on ranks 1, 2 (chip) and rank 3 (whatever)"
        ) in str(error)
        assert "use dtypes that all ranks have (float32)" in str(error)


def test_what_nobody_has_is_told_too() -> None:
    for error in told([CHIP] * 10, [["int64"]]):
        assert isinstance(error, UnsupportedError)
        said = "int64 is not there on ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more (chip), there on no rank"
        assert said in str(error)


def test_a_store_that_is_gone_then_hides_nothing() -> None:
    for rank, error in enumerate(told([CPU, CHIP], [["float64"]], kept=LostOnceTold)):
        assert isinstance(error, UnsupportedError)
        assert str(error).startswith(f"rank {rank} of 2: the world cannot open: the program needs float64")


def test_ranks_that_need_other_dtypes_or_cannot_say_what_they_have_are_told_on_every_rank() -> None:
    for error in told([CPU, CPU], [["float32"], ["float32", "int64"]]):
        assert isinstance(error, WorldError)
        assert "float32 on rank 0 and float32, int64 on rank 1; pass the same" in str(error)
    for error in told([CPU, Has("chip", fault="no driver")], [["float32"]]):
        assert isinstance(error, WorldError)
        assert "rank 1 (chip): " in str(error)
        assert "no driver" in str(error)


def test_a_rank_that_needs_none_is_named_where_others_wait_for_it() -> None:
    first, second = told([CPU, CPU], [["float32"], []], 0.3)
    assert second is None
    assert isinstance(first, CollectiveTimeoutError)
    assert "rank 1 did not come" in str(first)
    assert "with the same `dtypes`, here float32" in str(first)


def test_a_rank_that_waited_in_vain_meets_the_others_in_its_next_try_and_leaves_them_no_answer() -> None:
    kept, choice = Store(dist.HashStore()), cast(Choice, SimpleNamespace(backend=CPU))

    def check(rank: int, seconds: float) -> None:
        device = Device("cpu", "cpu", rank)
        _check_dtypes(("float32",), choice, device, kept, rank, 2, timedelta(seconds=seconds))

    with pytest.raises(CollectiveTimeoutError, match="rank 1 did not come"):
        check(0, 0.2)
    with pytest.raises(CollectiveTimeoutError, match="rank 0 did not come"):
        check(1, 0.2)
    for _ in range(2):
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda rank: check(rank, 60), range(2))) == [None, None]


def test_an_adopted_process_group_waits_no_longer_than_is_said() -> None:
    # Torch's group without peers: rank 1 never says what it needs.
    importlib.import_module("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=2)
    try:
        with pytest.raises(CollectiveTimeoutError, match=r"not opened within 0\.2 s: rank 1 did not come"):
            devices.init("cpu", timeout=0.2, dtypes=[torch.float64])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("dtypes", "said"),
    [
        (torch.float64, r"dtypes=\(torch.float64,\)"),
        ("float64", "'float64' are no dtypes"),
        (["float64"], "'float64' is no torch.dtype"),
        (7, "7 are no dtypes"),
    ],
)
def test_what_is_no_dtypes_is_an_error(dtypes: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        devices.init(dtypes=dtypes)
    assert not dist.is_initialized()


def test_a_world_of_one_and_one_that_is_adopted_are_asked_too() -> None:
    with devices.init(dtypes=[torch.float64, torch.bool]) as world:
        assert "\n  not on" not in world.explain()
    for backend in ("gloo", "devices"):
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            for _ in range(2):
                with pytest.raises(UnsupportedError, match=r"int1 is not there on rank 0 \(cpu\), there on no rank"):
                    devices.init(dtypes={torch.float64, torch.int1})
            devices.init(dtypes={torch.float64}).close()
        finally:
            dist.destroy_process_group()


class Heard(devices.Observer):
    """Keeps which dtypes programs need."""

    def __init__(self) -> None:
        self.needed: list[tuple[str, ...]] = []

    def needs(self, dtypes: Sequence[str]) -> None:
        self.needed.append(tuple(dtypes))


def test_observers_are_told_and_a_target_that_is_emulated_is_asked() -> None:
    with devices.observe(heard := Heard()), devices.testing.emulate("trainium2") as emulation:
        with pytest.raises(
            UnsupportedError, match=r"trainium2 refuses: a world that needs float32, float64: .* float64"
        ):
            devices.init(dtypes=[torch.float64, torch.float32])
        devices.init(dtypes=[torch.float32]).close()
        devices.init().close()
    assert heard.needed == [("float32", "float64"), ("float32",)]
    assert [(asked.verb, asked.dtype) for asked in emulation.report.refused] == [("world", "float64")]
