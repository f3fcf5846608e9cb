"""The laws on backends that can do less than all: what they lack is refused, and nothing is said to be wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from good_backend import Arriving, Mail, MailBackend, Tensor

import devices
from devices import Capabilities, Communicator, Device, Group
from devices.testing.conformance.kit import CHECKS, run_check
from devices.testing.conformance.subject import Subject, subject


class Gathering(Communicator):
    """Hardware without messages between two ranks: two verbs, which all ranks call."""

    def __init__(self, mail: Mail) -> None:
        self.mail = mail

    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        return self.mail.all_gather(output, input)

    def all_reduce(self, tensor: Tensor, op: str) -> Arriving:
        return self.mail.all_reduce(tensor, op)

    def abort(self) -> None:
        self.mail.abort()

    def close(self) -> None:
        self.mail.close()


class GatheringBackend(MailBackend):
    """Groups of two or of four, of few dtypes, without messages."""

    def capabilities(self, device: Device) -> Capabilities:
        few = frozenset({torch.float32, torch.int64})
        return Capabilities(few, {"sum": few}, group_sizes=frozenset({2, 4}))

    def open(self, group: Group) -> Communicator:
        mail = super().open(group)
        assert isinstance(mail, Mail)
        return Gathering(mail)


@pytest.fixture(scope="module")
def gathering() -> Subject:
    return replace(subject(GatheringBackend()), quick=True)


CHAPTERS = ("order", "gradients", "life", "refusals")
NAMES = [check.name for check in CHECKS if check.name.partition(".")[0] in CHAPTERS]


# A late peer takes its time, and is the same with messages and without.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "life.late_peer"])
def test_hardware_without_messages_and_with_few_dtypes_and_sizes_keeps_the_laws(name: str, gathering: Subject) -> None:
    [check] = [check for check in CHECKS if check.name == name]
    tally = run_check(check, gathering).tally
    assert not [failure.what for failure in tally.failed]
    assert tally.proved or tally.refused or tally.skipped
    if name in ("order.one_tag", "order.sent", "life.last_message"):
        assert tally.refused == ["messages between two ranks"]
    if name in ("refusals.group_sizes", "refusals.dtypes", "gradients.permute"):
        assert tally.proved


def along_an_axis_of_one(world: devices.World) -> list[float]:
    return [devices.all_reduce(torch.ones(1), world.mesh({"dp": 2, "tp": 1})[axis]).item() for axis in ("dp", "tp")]


def test_a_group_of_one_is_there_though_its_size_is_not_declared(gathering: Subject) -> None:
    assert gathering.on_ranks(along_an_axis_of_one, 2) == [[2.0, 1.0]] * 2


def test_a_law_is_not_looked_at_without_the_dtype_that_it_is_about() -> None:
    class OfWholeNumbers(MailBackend):
        def capabilities(self, device: Device) -> Capabilities:
            return Capabilities(frozenset({torch.int64}))

    [check] = [check for check in CHECKS if check.name == "order.calls"]
    tally = run_check(check, subject(OfWholeNumbers())).tally
    assert tally.skipped == ["needs float32, which the backend does not declare"]
