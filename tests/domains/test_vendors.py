"""What is known of the ranks of several vendors, and who says it when one of them dies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from devices import Device, Group, Store
from devices.domains.alarm import Alarm
from devices.domains.card import Card
from devices.domains.ended import Ended
from devices.domains.vendors import Island, Vendors
from devices.errors import CollectiveError


def card(backend: str, host: str = "a", dtypes: tuple[str, ...] = (), sizes: tuple[int, ...] | None = None) -> Card:
    reach = f"memory of {host}" if backend == "cpu" else ""
    kind = "cpu" if backend == "cpu" else "neuron"
    return Card(backend, f"{backend}:0", 0, kind, host, reach, dtypes, sizes, None)


WORLD = Vendors(
    [
        card("cpu", "a", ("float32", "float64", "int8", "uint8")),
        card("chip", "a", ("float32", "int8", "float8_e5m2"), (1, 2)),
        card("cpu", "b", ("float32", "float64", "int8", "uint8")),
        card("chip", "b", ("float32", "int8", "float8_e5m2"), (1, 2)),
        card("other", "b"),
    ]
)


def test_domains_are_of_one_backend_and_as_far_as_that_reaches() -> None:
    domains = WORLD.domains(range(5))
    assert domains.members == ((0,), (1, 3), (2,), (4,))
    assert domains.names == ("cpu on a", "chip", "cpu on b", "other")
    assert WORLD.domains((3, 1)).members == ((0, 1),), "by the places of a group"
    assert WORLD.opens_natively((1, 3))
    assert WORLD.opens_natively((0, 2)), "the CPU backend composes its hosts by itself"
    assert not WORLD.opens_natively((0, 1))
    assert WORLD.divided(range(5)) == ""
    assert WORLD.on_cpu((1, 2, 3)) == (2,)


def test_who_lacks_a_dtype_that_others_have_is_named_with_those() -> None:
    # Bytes are carried everywhere.
    assert set(WORLD.lacks((0, 1, 3))) == {torch.float64, torch.float8_e5m2}
    # Rank 4 has whatever there is.
    lacks = WORLD.lacks((0, 1, 3, 4))
    assert lacks[torch.int16] == "not there on ranks 0 (cpu) and 1, 3 (chip), there on rank 4 (other)"
    assert torch.float32 not in lacks
    assert lacks[torch.float64] == "not there on ranks 1, 3 (chip), there on ranks 0 (cpu) and 4 (other)"
    assert WORLD.lacks((0, 2)) == {}
    assert WORLD.lacks_by_ranks((0, 1)) == ["not on rank 1 (chip): float64", "not on rank 0 (cpu): float8_e5m2"]
    assert WORLD.common((0, 1), frozenset({torch.float32, torch.float64})) == {torch.float32}


ON_FABRIC = Vendors(
    [
        replace(card("chip"), targets={"fabric": "a chip"}),
        replace(card("chip"), targets={"fabric": "a chip"}),
        replace(card("other"), targets={"fabric": "another"}),
        replace(card("other"), targets={"fabric": "another"}),
        card("cpu"),
    ],
    [Island("fabric", ((0, 1, 2), (3,)), "a cable")],
)


def test_ranks_that_a_fabric_joins_are_one_domain_of_whichever_backends() -> None:
    domains = ON_FABRIC.domains(range(5))
    assert domains.members == ((0, 1, 2), (3,), (4,))
    assert domains.names == ("chip and other on fabric", "other", "cpu on a")
    [join] = ON_FABRIC.joins((4, 2, 0))
    assert join.members == (1, 2), "by the places of a group"
    assert ON_FABRIC.joins((0, 1, 3)) == [], "those of one backend alone are that backend's own"
    assert ON_FABRIC.domains((4, 2, 0), [join.key]).members == ((0,), (1,), (2,)), "if the fabric does not open"
    sides = [(side.target, side.ranks) for side in ON_FABRIC.sides("fabric", (2, 0, 1))]
    assert sides == [("another", (0,)), ("a chip", (1, 2))]


def test_what_a_fabric_does_not_join_is_said() -> None:
    assert ON_FABRIC.between((0, 1, 2)) == []
    [said] = ON_FABRIC.between((0, 3))
    assert said.startswith("by fabric rank 0 (chip) and rank 3 (other) are domains of their own, with a cable between,")
    assert ON_FABRIC.between((0, 4)) == ["rank 0 (chip) on fabric, and not rank 4 (cpu)"]


def test_a_card_is_the_same_after_its_way_through_the_store() -> None:
    bound = replace(card("chip"), bound=("that of process 7", 2), symmetric=True)
    for each in (card("cpu"), card("chip", dtypes=("float32",), sizes=(1, 2)), bound):
        assert Card.from_json(json.loads(json.dumps(each.to_json()))) == each


class Waiting:
    """What waits in a vendor's group until it is given up."""

    def __init__(self) -> None:
        self.given_up = threading.Event()

    def give_up(self) -> None:
        self.given_up.set()


class Ranks:
    """Ranks 4, 5 and 6 of a world, of which rank 4 waits in a vendor's group that does not notice who dies."""

    def __init__(self, store: dist.Store, has_left: Callable[[int], bool] | None = None) -> None:
        self.ended: frozenset[int] = frozenset()
        self.waiting = Waiting()
        self._store = store
        self._has_left = has_left
        self.alarm = self.alarm_of(4)

    def alarm_of(self, rank: int) -> Alarm:
        device = Device("chip", "cpu", 0)
        group = Group((4, 5, 6), rank - 4, device, Store(self._store), timedelta(seconds=60), "mixed")
        return Alarm(group, "chip", self.waiting.give_up, Ended(group, lambda: self.ended, self._has_left))

    def told(self, meanwhile: Callable[[], None]) -> str:
        """Return what rank 4's call raises, during which rank 6 dies in the end."""
        with pytest.raises(CollectiveError) as caught:
            self._call(meanwhile)
        self.alarm.close()
        return str(caught.value)

    def _call(self, meanwhile: Callable[[], None]) -> None:
        with self.alarm:
            meanwhile()
            assert not self.waiting.given_up.wait(0.7), "nobody has died"
            self.ended |= {6}
            assert self.waiting.given_up.wait(30)
            raise RuntimeError("aborted")


def test_a_death_that_a_vendors_group_does_not_notice_ends_the_call_and_is_named() -> None:
    assert "chip: rank 6 died, as rank 4 of chip found" in Ranks(dist.HashStore()).told(lambda: None)


def test_a_rank_that_is_through_may_end_while_others_are_in_a_call() -> None:
    ranks = Ranks(dist.HashStore())

    def rank_5_is_through() -> None:
        ranks.alarm_of(5).close()
        ranks.ended = frozenset({5})

    assert "chip: rank 6 died, as" in ranks.told(rank_5_is_through)


def test_a_rank_that_gave_the_group_up_and_ends_has_died() -> None:
    for leave in (Alarm.abandon, lambda alarm: alarm.leave("ValueError")):
        ranks = Ranks(dist.HashStore())
        given_up = ranks.alarm_of(6)
        leave(given_up)
        given_up.close()
        assert "chip: rank 6 died, as" in ranks.told(lambda: None)


def test_who_dies_is_noticed_when_the_store_is_gone_or_does_not_answer() -> None:
    served = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = dist.TCPStore("127.0.0.1", served.port, is_master=False, wait_for_workers=False)
    ranks = Ranks(store, has_left=[False, True, False].__getitem__)
    # A wait on another thread holds the connection.
    waits = threading.Thread(target=store.wait, args=(["never"], timedelta(seconds=60)), daemon=True)
    waits.start()

    def rank_5_is_through() -> None:
        ranks.ended = frozenset({5})

    assert "chip: rank 6 died, as" in ranks.told(rank_5_is_through)
    served.set("never", "")
    waits.join(30)
    del served
    lost = Ranks(store, has_left=[False, True, False].__getitem__)
    assert "chip: rank 6 died, as" in lost.told(lambda: None)
