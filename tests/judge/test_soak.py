"""A thousand jobs killed at random moments, one rank of them or all: `make judge`, on a quiet machine."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
from soak_jobs import Report, nothing_left, soak

JOBS = int(os.environ.get("DEVICES_SOAK_JOBS", "1000"))


def test_a_thousand_killed_jobs_leave_nothing_and_survivors_know_within_a_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report()
    soak(1, 0, 30, Report())
    with nothing_left(tmp_path, report, ours_alone=True):
        soak(JOBS, 2026, 1, report)
    with capsys.disabled():
        print(
            f"\n{JOBS} jobs, {report.killed} ranks killed; {len(report.delays)} survivors raised within "
            f"{statistics.median(report.delays) * 1000:.1f} ms (median), {max(report.delays) * 1000:.0f} ms (the last)"
        )
    assert not report.problems, f"{len(report.problems)} problems\n" + "\n".join(report.problems[:50])
