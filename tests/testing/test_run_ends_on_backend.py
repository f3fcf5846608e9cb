"""How a run on thread ranks ends where they wait in a backend that does not let them go."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import devices
from devices.errors import CollectiveTimeoutError
from devices.testing import run

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from good_backend import Mail, MailBackend

over = threading.Event()


class Deaf(Mail):
    def abort(self) -> None:
        over.wait(3600)


class DeafBackend(MailBackend):
    communicator = Deaf


def test_an_abort_that_hangs_holds_nobody_up() -> None:
    def one_fails(world: devices.World) -> None:
        if world.rank == 1:
            raise ZeroDivisionError("on purpose")
        devices.barrier()

    begin = time.monotonic()
    try:
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            run(one_fails, ranks=3, backend=DeafBackend(), timeout=300)
    finally:
        over.set()
    assert time.monotonic() - begin < 100


def test_a_rank_that_waits_longer_than_a_run_may_take_is_an_error() -> None:
    def waits(world: devices.World) -> None:
        if world.rank == 0:
            devices.recv(torch.empty(1), src=1)

    with pytest.raises(CollectiveTimeoutError):
        run(waits, ranks=2, backend=MailBackend(), timeout=1)
