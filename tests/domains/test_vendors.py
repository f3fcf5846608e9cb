"""What is known of the ranks of several vendors, and who says it when one of them dies."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from devices import Device, Group, Store
from devices.domains.alarm import Alarm
from devices.domains.vendors import Card, Vendors
from devices.errors import CollectiveError, UnsupportedError


def card(backend: str, host: str = "a", dtypes: tuple[str, ...] = (), sizes: tuple[int, ...] | None = None) -> Card:
    reach = f"memory of {host}" if backend == "cpu" else ""
    return Card(backend, f"{backend}:0", "cpu" if backend == "cpu" else "neuron", host, reach, dtypes, sizes, None)


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
    assert WORLD.are_of_one((1, 3))
    assert not WORLD.are_of_one((0, 1))
    assert WORLD.on_cpu((1, 2, 3)) == (2,)


def test_who_lacks_a_dtype_that_others_have_is_named_with_those() -> None:
    lacks = WORLD.lacks((0, 1, 3, 4))
    # Rank 4 has whatever there is, and bytes are carried everywhere.
    assert set(lacks) == {torch.float64, torch.float8_e5m2}
    assert lacks[torch.float64] == "not there on ranks 1, 3 (chip), there on ranks 0 (cpu) and 4 (other)"
    assert WORLD.lacks((0, 2)) == {}
    assert WORLD.lacks_by_ranks((0, 1)) == ["not on rank 1 (chip): float64", "not on rank 0 (cpu): float8_e5m2"]
    assert WORLD.common((0, 1), frozenset({torch.float32, torch.float64})) == {torch.float32}


def test_a_domain_of_a_size_that_its_backend_has_not_is_an_error() -> None:
    three = Vendors([card("cpu"), *[card("chip", sizes=(1, 2))] * 3])
    with pytest.raises(
        UnsupportedError, match=r"ranks 1, 2, 3 \(chip\) would .* beside rank 0 \(cpu\), .* groups of 3"
    ):
        three.check_sizes("group 'world'", (0, 1, 2, 3))
    three.check_sizes("group 'world'", (0, 2, 3))


def test_a_card_is_the_same_after_its_way_through_the_store() -> None:
    for each in (card("cpu"), card("chip", dtypes=("float32",), sizes=(1, 2))):
        assert Card.from_json(each.to_json()) == each


class Waiting:
    """What waits in a vendor's group until it is given up."""

    def __init__(self) -> None:
        self.given_up = threading.Event()

    def give_up(self) -> None:
        self.given_up.set()


def test_a_death_that_a_vendors_group_does_not_notice_ends_the_call_and_is_named() -> None:
    group = Group((4, 5), 0, Device("chip", "cpu", 0), Store(dist.HashStore()), timedelta(seconds=60), "mixed")
    waiting, dead = Waiting(), threading.Event()
    alarm = Alarm(group, "chip", waiting.give_up, lambda: "rank 5 died" if dead.is_set() else "")

    def call() -> None:
        with alarm:
            assert not waiting.given_up.wait(0.5), "nobody has died"
            dead.set()
            assert waiting.given_up.wait(30)
            raise RuntimeError("aborted")

    with pytest.raises(CollectiveError, match="chip: rank 5 died, as rank 4 of chip found"):
        call()
    alarm.close()
