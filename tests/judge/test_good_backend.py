"""The conformance kit passes a good backend 20 times in a row, each time with other random programs. `make judge`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from devices.testing.conformance.kit import conform

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from good_backend import FolderBackend, MailBackend
from mail_site import install


@pytest.mark.slow
def test_the_good_backend_passes_20_times_in_a_row() -> None:
    begin = time.monotonic()
    for seed in range(20):
        report = conform(MailBackend(), seed=seed)
        failed = {outcome.check.name: outcome.tally.failed for outcome in report.failed}
        assert failed == {}, f"run {seed + 1} of 20"
    print(f"{len(report.outcomes)} checks, 20 times in {time.monotonic() - begin:.0f} s")


@pytest.mark.slow
def test_the_good_backend_passes_on_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    begin = time.monotonic()
    report = conform(FolderBackend(), ranks="processes")
    assert {outcome.check.name: outcome.tally.failed for outcome in report.failed} == {}
    print(f"{len(report.outcomes)} checks on processes in {time.monotonic() - begin:.0f} s")
