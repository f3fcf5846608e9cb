"""A few jobs killed at random moments; `make judge` runs a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared_memory import NEEDS_SHARED_MEMORY
from soak_jobs import Report, nothing_left, soak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), NEEDS_SHARED_MEMORY]


def test_survivors_name_the_dead_and_nothing_is_left_behind(tmp_path: Path) -> None:
    report = Report()
    # Once before it is measured: the server that ranks are forked from stays.
    soak(1, 0, 30, Report())
    with nothing_left(tmp_path, report, ours_alone=False):
        soak(10, 1, 10, report)
    assert report.delays, "nobody survived"
    assert not report.problems, "\n".join(report.problems)
