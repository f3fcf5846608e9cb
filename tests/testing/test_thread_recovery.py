"""What thread ranks are told that ask for the ranks that are left."""

from __future__ import annotations

import re

import pytest

import devices.testing
from devices import World
from devices.errors import UnsupportedError


def said_of_recovery(world: World) -> str:
    with pytest.raises(UnsupportedError) as caught:
        world.recover()
    return str(caught.value)


def test_thread_ranks_are_told_who_asked_why_there_is_no_recovery_and_what_to_do() -> None:
    for rank, said in enumerate(devices.testing.run(said_of_recovery, ranks=2)):
        assert re.match(rf"rank {rank} of 2 .*after an error the ranks that are left cannot be found", said)
        assert "Start all ranks again" in said
        assert "Communicator" not in said
