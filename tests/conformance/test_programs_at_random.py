"""Random programs: the same for a seed, none where hypothesis is not, and the call at which ranks come to an end."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from devices import Capabilities
from devices.testing.conformance.calls import REDUCING, Call
from devices.testing.conformance.check import Tally
from devices.testing.conformance.expected import has_meaning
from devices.testing.conformance.programs import Program
from devices.testing.conformance.random_programs import drawn, look
from devices.testing.conformance.subject import Subject, subject
from devices.testing.conformance.tried import Ended, first_wrong, founds_of


@pytest.fixture
def on() -> Subject:
    return subject("cpu", ranks="threads", quick=True)


def test_a_seed_draws_the_same_programs_again_and_another_seed_others(on: Subject) -> None:
    assert drawn(on) == drawn(replace(on))
    assert drawn(on) != drawn(replace(on, seed=1))
    assert len(drawn(on)) >= 20


def test_programs_keep_to_what_a_backend_declares(on: Subject) -> None:
    import torch

    few = Capabilities(frozenset({torch.int32, torch.complex64}), group_sizes=frozenset({2, 4}))
    programs = drawn(replace(on, capabilities=few, sizes=(1, 2, 4)))
    calls = [call for program in programs for call in program.calls]
    assert {program.size for program in programs} == {2, 4}
    assert {call.dtype for call in calls if call.verb != "barrier"} == {"int32", "complex64"}
    assert all(has_meaning(call.op, getattr(torch, call.dtype)) for call in calls if call.verb in REDUCING)
    sizes = {len(part) for program in programs for parts in program.groups for part in parts}
    assert sizes <= {1, 2, 4}


def test_without_hypothesis_they_are_skipped_and_it_is_said_how_to_get_it(
    on: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    tally = Tally()
    look(on, tally)
    assert (tally.proved, tally.failed) == (0, [])
    assert "devices[testing]" in tally.skipped[0]


def test_a_world_of_one_has_none(on: Subject) -> None:
    tally = Tally()
    look(replace(on, sizes=(1,)), tally)
    assert "needs a world of two ranks" in tally.skipped[0]


def test_the_call_that_ranks_come_to_an_end_at_is_told(on: Subject) -> None:
    right, raises = Call("all_reduce"), Call("all_reduce", op="median")
    programs = [Program(2, (right,)), Program(2, (right, right, raises, right))]
    with pytest.raises(Ended, match="no reduce op 'median'") as caught:
        founds_of(on, programs)
    assert (caught.value.program, caught.value.place) == (1, 2)
    wrong = first_wrong(on, programs[1])
    assert wrong is not None
    assert (wrong.about, wrong.place) == ("end", 2)
