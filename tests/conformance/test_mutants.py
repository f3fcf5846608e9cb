"""The kit against backends that are broken on purpose: each is caught, by the check that is for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from good_backend import FolderBackend, MailBackend
from mail_plugin import ByName, Hasty
from mail_site import install
from mutants import MUTANTS, Mutant
from mutants_of_life import kept

from devices.errors import BackendUnavailableError
from devices.testing.conformance.kit import CHECKS, conform, matching, run_check
from devices.testing.conformance.subject import subject

pytestmark = pytest.mark.slow


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    yield
    kept.close()


def failures(mutant: Mutant) -> list[str]:
    """Return what the mutant's check says of it."""
    [check] = matching(mutant.check)
    whole = subject(mutant.backend(), ranks=mutant.ranks, quick=True, timeout=mutant.patience)
    # Again, for on a busy machine a mutant may be right by chance.
    for _ in range(3):
        # One world is enough, and only the calls of the check's own verb.
        on = replace(whole, sizes=(mutant.size,))
        on.kept["verbs", mutant.size] = None
        if found := [failure.what for failure in run_check(check, on).tally.failed]:
            break
    return found


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.ranks == "threads"])
def test_a_mutant_is_caught_by_its_check(name: str) -> None:
    [what, *_] = failures(MUTANTS[name])
    assert what.strip()


@pytest.mark.slow
@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.ranks == "processes"])
def test_a_mutant_whose_ranks_are_processes_is_caught_by_its_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFORMANCE_MUTANT", name)
    [what, *_] = failures(MUTANTS[name])
    assert what.strip()


def test_there_are_mutants_enough_and_each_chapter_of_the_kit_has_some() -> None:
    assert len(MUTANTS) > 100  # as docs/conformance.md says
    chapters = {check.name.partition(".")[0] for check in CHECKS}
    assert {mutant.check.partition(".")[0] for mutant in MUTANTS.values()} == chapters


@pytest.mark.slow
@pytest.mark.usefixtures("plugin")
def test_a_probe_that_imports_torch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    [check] = matching("probe.opens_nothing")
    assert run_check(check, subject(ByName(), ranks="processes")).tally.failed == []
    monkeypatch.setenv("CONFORMANCE_HASTY", "1")
    [failure] = run_check(check, subject(Hasty(), ranks="processes")).tally.failed
    assert "torch was imported" in failure.what


def test_a_backend_without_devices_is_refused() -> None:
    backend = type("Absent", (MailBackend,), {"devices": lambda self: []})()
    with pytest.raises(BackendUnavailableError, match="'mail' lists no device"):
        conform(backend)


@pytest.mark.slow
def test_the_good_backend_passes_on_threads() -> None:
    report = conform(MailBackend(), quick=True)
    assert {outcome.check.name: outcome.tally.failed for outcome in report.failed} == {}


@pytest.mark.slow
@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("only", ["life.[dfot]*", "order.threads*"])
def test_the_good_backend_passes_on_processes_what_threads_cannot_show(only: str) -> None:
    report = conform(FolderBackend(), ranks="processes", quick=True, only=only)
    assert {outcome.check.name: outcome.tally.failed for outcome in report.failed} == {}
