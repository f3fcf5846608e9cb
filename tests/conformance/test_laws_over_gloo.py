"""The laws of failures where processes have no memory in common, as on several hosts: gloo carries their verbs."""

from __future__ import annotations

import pytest

import devices
from devices.testing import run_processes
from devices.testing.conformance import failures, life


def laws(world: devices.World) -> None:
    assert "gloo" in world.explain()
    for law in (
        failures.aborted_verbs_fail,
        failures.aborted_while_one_waits,
        failures.a_forked_child,
        failures.other_threads,
        life.communicators_ended_twice,
        life.closing_with_verbs_under_way,
        life.the_last_message_before_the_end,
    ):
        law(world)


@pytest.mark.slow
def test_groups_over_gloo_are_aborted_closed_and_forked_as_others_are() -> None:
    run_processes(laws, 3, timeout=120, env={"DEVICES_FABRIC": "off"})
