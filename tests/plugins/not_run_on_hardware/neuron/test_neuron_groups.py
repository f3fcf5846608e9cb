"""What the plugin does with the vendor's process group, without the vendor's package."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices_neuron.communicator
import devices_neuron.group
from devices import Device, Group, ProcessGroupCommunicator, Store
from devices.errors import WorldError
from devices_neuron import NeuronBackend
from devices_neuron.communicator import NeuronCommunicator
from devices_neuron.group import Place, _is_aligned, _meeting


class VendorsGroup(dist.ProcessGroup):
    """One that says what was asked of it, and whose close would wait for peers."""

    def __init__(self) -> None:
        super().__init__(0, 1)
        self.asked: list[str] = []

    def abort(self) -> None:
        self.asked.append("abort")

    def shutdown(self) -> None:
        self.asked.append("shutdown")


class DeviceModule(threading.local):
    """What `torch.neuron` says of the current device, of which each thread has one."""

    index = 0

    def current_device(self) -> int:
        return self.index

    def set_device(self, index: int) -> None:
        self.index = index


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> DeviceModule:
    made = DeviceModule()
    monkeypatch.setattr(torch, "get_device_module", lambda _: made)
    return made


@pytest.fixture
def group() -> Group:
    store = Store(dist.HashStore())
    return Group((0,), 0, Device("neuron", "neuron", 0, "", None, None), store, timedelta(seconds=30), "x")


def test_an_abort_reaches_the_vendors_group_and_the_messages(group: Group) -> None:
    carried, messages = VendorsGroup(), VendorsGroup()
    over = [ProcessGroupCommunicator(each) for each in (carried, messages)]
    NeuronCommunicator(group, *over, has_all_to_all=False).abort()
    assert (carried.asked, messages.asked) == (["abort"], ["abort"])


def test_the_current_device_is_that_which_the_vendors_group_has_chosen_as_it_opened(
    group: Group, module: DeviceModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried, messages = ProcessGroupCommunicator(VendorsGroup()), ProcessGroupCommunicator(VendorsGroup())
    threads: list[int] = []

    def opens(*_: Any, **__: Any) -> ProcessGroupCommunicator:
        threads.append(threading.get_ident())
        module.set_device(3)
        return carried

    monkeypatch.setattr(ProcessGroupCommunicator, "open", opens)
    monkeypatch.setattr(devices_neuron.communicator, "open_staged", lambda *_: messages)
    NeuronCommunicator.open(group, has_all_to_all=False)
    assert threads != [threading.get_ident()]
    assert module.current_device() == 3


def test_a_vendors_group_is_aborted_before_it_closes_where_this_rank_has_no_way_for_messages(
    group: Group, module: DeviceModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendors = VendorsGroup()
    opened = ProcessGroupCommunicator(vendors)
    monkeypatch.setattr(ProcessGroupCommunicator, "open", lambda *_, **__: opened)

    def fails(*_: Any) -> Any:
        raise OSError("no memory to share")

    monkeypatch.setattr(devices_neuron.communicator, "open_staged", fails)
    with pytest.raises(OSError, match="no memory to share"):
        NeuronCommunicator.open(group, has_all_to_all=False)
    assert vendors.asked[0] == "abort"


def test_a_vendors_group_whose_abort_waits_does_not_keep_the_error(
    group: Group, module: DeviceModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    class Waits(VendorsGroup):
        def abort(self) -> None:
            may_end.wait(60)

    opened = ProcessGroupCommunicator(Waits())
    monkeypatch.setattr(ProcessGroupCommunicator, "open", lambda *_, **__: opened)
    monkeypatch.setattr(devices_neuron.communicator, "_PATIENCE", 0.1)

    def fails(*_: Any) -> Any:
        raise OSError("no memory to share")

    monkeypatch.setattr(devices_neuron.communicator, "open_staged", fails)
    try:
        with pytest.raises(OSError, match="no memory to share") as raised:
            NeuronCommunicator.open(group, has_all_to_all=False)
    finally:
        may_end.set()
    assert raised.value.__notes__ == ["nor could the process group 'neuron' be given up: it takes longer than 0.1 s"]


@pytest.mark.parametrize(
    ("ranks", "world", "is_one"),
    [
        ((0, 1), (0, 1, 2, 3), True),
        ((1, 2), (0, 1, 2, 3), False),
        ((0, 2), (0, 1, 2, 3), False),
        ((0, 1, 2), (0, 1, 2, 3), False),
        # Of a world whose rank 0 is a CPU's, the runtime has ranks 1 to 4.
        ((1, 2), (1, 2, 3, 4), True),
        ((3, 4), (1, 2, 3, 4), True),
        ((2, 3), (1, 2, 3, 4), False),
        # Every other rank is a CPU's.
        ((1, 3), (1, 3, 5, 7), True),
        ((3, 5), (1, 3, 5, 7), False),
    ],
)
def test_all_to_all_is_the_vendors_where_the_runtimes_own_world_is_divided_into_groups_like_it(
    ranks: tuple[int, ...], world: tuple[int, ...], is_one: bool
) -> None:
    assert _is_aligned(ranks, world) == is_one


def test_a_rank_alone_whose_runtime_the_program_started_before_is_refused(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices_neuron.group, "load", lambda: None)
    monkeypatch.setattr(devices_neuron.group, "_is_started", lambda: True)
    with pytest.raises(WorldError, match="runtime was started before the world opened"):
        NeuronBackend().open_alone(group)
    assert devices_neuron.group.bound() is None


def test_it_says_that_a_stand_in_was_all_that_it_ran_on() -> None:
    assert NeuronBackend.verified.startswith("not run on hardware")
    assert "stand-in" in NeuronBackend.verified


@pytest.mark.parametrize(
    ("cores", "hosts", "size", "told", "expected"),
    [
        ((0, 1), "aa", "2", "10.0.0.1:62182", None),
        ((2, 3), "aa", "3", "10.0.0.1:62182", "127.0.0.1:62185"),
        ((4,), "a", "3", "10.0.0.1:62182", "127.0.0.1:62187"),
        ((0, 0), "ab", "3", "10.0.0.1:62182", None),
        ((2, 3), "aa", "3", "", None),
        ((2, 3), "aa", "3", "no address", None),
    ],
    ids=["all", "a part", "one", "over hosts", "not told", "nothing that it is"],
)
def test_a_part_of_a_world_meets_where_no_other_part_does(
    cores: tuple[int, ...], hosts: str, size: str, told: str, expected: str | None
) -> None:
    places = [Place(host, core, 7) for host, core in zip(hosts, cores, strict=True)]
    assert _meeting({"NEURON_RT_ROOT_COMM_ID": told, "WORLD_SIZE": size}, places) == expected
