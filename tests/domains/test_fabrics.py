"""What ranks of several backends tell each other of the fabrics that they are on, before their world opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from devices import (
    Backend,
    Capabilities,
    Communicator,
    Device,
    Group,
    Interop,
    Port,
    Predicted,
    Probe,
    Shared,
    Side,
    Store,
)
from devices.domains.card import Card
from devices.domains.joined import Fabrics
from devices.domains.mixed import _reached
from devices.domains.vendors import Island, Vendors
from devices.errors import DevicesError, PluginError, UnsupportedError, WorldError
from devices.meeting.fabrics import agreed, fabrics_of, said_of


class Cable(Interop):
    """A fabric of so many ranks at most."""

    name = "cable"
    domain = "none"

    def covers(self, targets: object) -> bool:
        raise NotImplementedError

    def domains(self, sides: Sequence[Side], assumed: Mapping[str, str]) -> Sequence[Sequence[Side]]:
        if sum(len(side.ranks) for side in sides) > int(assumed["ends"]):
            raise UnsupportedError(f"a cable has {assumed['ends']} ends")
        return [sides]

    def limits_of(self, target: str, assumed: object) -> str:
        raise NotImplementedError

    def open(self, group: Group, sides: object, shared: Shared, assumed: object) -> Communicator:
        raise NotImplementedError

    def bridge(self, assumed: object) -> str:
        return "nothing"

    def compared(self, assumed: object) -> Mapping[str, Mapping[str, str]]:
        raise NotImplementedError

    def predicted(self, verb: str, size: int, root: int, sides: object, assumed: object) -> Predicted:
        raise NotImplementedError


BACKENDS = ["chip", "chip", "card", "cpu"]


def on_cable(where: str = "rack", ends: str = "3", release: str = "cables 1.0") -> Fabrics:
    port = Port("a kind", where, {"ends": ends})
    return Fabrics({"cable": Cable()}, {"cable": port}, {"cable": release})


def of_all(by_rank: Sequence[Fabrics]) -> list[list[Island] | DevicesError]:
    """Return what ranks, which are threads, agree on or raise."""
    store = dist.HashStore()

    def on(rank: int) -> list[Island] | DevicesError:
        device = Device(BACKENDS[rank], "cpu", 0)
        ranks = tuple(range(len(BACKENDS)))
        group = Group(ranks, rank, device, Store(store), timedelta(seconds=60), "world")
        try:
            return agreed(group, by_rank[rank], BACKENDS, [said_of(each) for each in by_rank])
        except DevicesError as error:
            return error

    with ThreadPoolExecutor(len(BACKENDS)) as threads:
        return list(threads.map(on, range(len(BACKENDS))))


def test_ranks_at_one_place_of_a_fabric_are_as_that_says_and_those_that_are_not_on_it_know() -> None:
    expected = [Island("cable", ((0, 1, 2),), "nothing")]
    assert of_all([on_cable(), on_cable(), on_cable(), Fabrics()]) == [expected] * 4


def test_a_fabric_joins_nothing_from_place_to_place_nor_ranks_of_one_backend() -> None:
    apart = of_all([on_cable(), on_cable(), on_cable("another rack"), Fabrics()])
    assert apart == [[Island("cable", ((0, 1),), "nothing"), Island("cable", ((2,),), "nothing")]] * 4
    assert of_all([on_cable(), on_cable(), Fabrics(), Fabrics()]) == [[]] * 4


@pytest.mark.parametrize(
    ("odd", "kind", "says"),
    [
        (on_cable(release="cables 2.0"), WorldError, "cables 1.0 on rank 0 and cables 2.0 on rank 2"),
        (on_cable(ends="4"), WorldError, "ends is '3' on rank 0 and '4' on rank 2"),
    ],
    ids=["versions", "assumptions"],
)
def test_two_that_see_a_fabric_differently_are_an_error_on_every_rank(
    odd: Fabrics, kind: type[DevicesError], says: str
) -> None:
    for error in of_all([on_cable(), on_cable(), odd, Fabrics()]):
        assert isinstance(error, kind)
        assert "ranks 0 (chip) and 2 (card) are on cable" in str(error)
        assert says in str(error)


class Tangled(Cable):
    """One that returns other ranks than it was asked for."""

    def __init__(self, domains: Sequence[Sequence[int]]) -> None:
        self._domains = domains

    def domains(self, sides: object, assumed: object) -> Sequence[Sequence[Side]]:
        return [[Side("a kind", tuple(ranks))] for ranks in self._domains]


@pytest.mark.parametrize(
    "domains", [[(0, 1), (1, 2)], [(0, 1)], [(0, 1, 2, 3)]], ids=["one twice", "one in none", "of another place"]
)
def test_a_fabric_that_does_not_have_each_rank_in_one_domain_is_an_error_on_every_rank(
    domains: list[tuple[int, ...]],
) -> None:
    tangled = replace(on_cable(), interops={"cable": Tangled(domains)})
    for error in of_all([tangled, tangled, tangled, Fabrics()]):
        assert isinstance(error, PluginError)
        assert "`domains` of fabric 'cable' returned ranks [0, 1" in str(error)
        assert "for [0, 1, 2]" in str(error)


class Plugged(Cable):
    """One that hears by which names its memory is asked for, and has none."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def memory(self, group: Group) -> str:
        self._names.add(group.name)
        return "it is not plugged in"


def test_the_groups_at_two_places_of_a_fabric_have_names_of_their_own() -> None:
    cards = [Card(kind, f"{kind}:0", 0, kind, "a", "", (), None, None) for kind in ("chip", "card")] * 2
    vendors = Vendors(cards, [Island("cable", ((0, 1),), "nothing"), Island("cable", ((2, 3),), "nothing")])
    store, names = dist.HashStore(), set[str]()
    plugged = replace(on_cable(), interops={"cable": Plugged(names)})

    def on(rank: int) -> tuple[Any, Mapping[str, str]]:
        group = Group((0, 1, 2, 3), rank, Device("chip", "cpu", 0), Store(store), timedelta(seconds=60), "g")
        return _reached(group, vendors, plugged)

    with ThreadPoolExecutor(4) as threads:
        for joining, apart in threads.map(on, range(4)):
            assert joining is None
            assert all(said.endswith("it is not plugged in") for said in apart.values())
            assert len(apart) == 2
    assert len(names) == 2


class CableChip(Backend):
    """A backend whose fabric answers as it is told."""

    name = "cable chip"
    device_type = "cpu"

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def probe(self) -> Probe:
        return Probe(True, "here")

    def devices(self) -> Sequence[Device]:
        return (Device(self.name, "cpu", 0),)

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(frozenset())

    def open(self, group: Group) -> Communicator:
        raise NotImplementedError

    def interop(self) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        cable = Cable()
        cable.port = lambda device: self._answer  # type: ignore[method-assign, assignment, return-value]
        return cable


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("rack", "`port` of fabric 'cable' returned .*, which is no devices.Port"),
        (Port("a kind", "rack", {"ends": 3}), "`port` of fabric 'cable' returned a port with 3.*, which is no text"),
        (OSError("no driver"), "backend 'cable chip' could not say what joins it with others: no driver"),
    ],
    ids=["no port", "no text", "an error"],
)
def test_a_plugin_that_answers_with_something_else_is_named(answer: object, says: str) -> None:
    chip = CableChip(answer)
    with pytest.raises(PluginError, match=says):
        fabrics_of(chip, chip.devices()[0], {"cable chip"})


def test_a_device_that_is_on_no_fabric_is_on_none() -> None:
    chip = CableChip(None)
    assert fabrics_of(chip, chip.devices()[0], {"cable chip", "cpu"}) == Fabrics()


def test_what_a_fabric_refuses_is_an_error_on_every_rank_also_on_those_that_are_not_on_it() -> None:
    for error in of_all([on_cable(ends="2")] * 3 + [Fabrics()]):
        assert isinstance(error, UnsupportedError)
        assert "ranks 0, 1 (chip) and 2 (card) are on cable: a cable has 2 ends" in str(error)
