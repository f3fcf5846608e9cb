from __future__ import annotations

import pytest
from examples_on_ranks import EXAMPLES, finish, run, start

pytestmark = pytest.mark.slow

CHECKS = 6


@pytest.mark.parametrize("on", [1, 2, 3, 4])
def test_quickstart_is_right_on_every_number_of_ranks(on: int) -> None:
    run("quickstart.py", on=on)


@pytest.mark.slow
def test_quickstart_needs_no_launcher() -> None:
    assert finish(start(EXAMPLES / "quickstart.py")).count("as expected") == CHECKS


@pytest.mark.slow
def test_quickstart_under_torchrun_prints_each_result_once() -> None:
    printed = finish(start(EXAMPLES / "quickstart.py", torchrun=("--nproc-per-node=2",)))
    assert printed.count("as expected") == CHECKS
    assert "{'dp': 1, 'tp': 2}" in printed
