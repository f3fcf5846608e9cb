"""`Conformance`: the kit as a class of tests in a backend's own test suite."""

from __future__ import annotations

from typing import ClassVar
from weakref import WeakKeyDictionary

import pytest

from devices.errors import DevicesError
from devices.testing.conformance.check import Check
from devices.testing.conformance.kit import CHECKS, run_check
from devices.testing.conformance.subject import Subject, subject

_subjects: WeakKeyDictionary[type, Subject] = WeakKeyDictionary()
"""By class, for its checks share what some have found out."""


class Conformance:
    """Every law of the kit, each a test. Subclass it, in a file that pytest collects, and name the backend.

    Attributes:
        backend: the name of the backend.
        ranks: "threads" or "processes"; threads if the backend can have such, unless said.
        seed: random programs are drawn from it.
        quick: whether to draw fewer of them.

    A backend whose hardware is not here is skipped, with its reason.
    """

    backend: ClassVar[str]
    ranks: ClassVar[str | None] = None
    seed: ClassVar[int] = 0
    quick: ClassVar[bool] = False

    @pytest.fixture
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        """Return the backend that is looked at, the same for all tests of a class."""
        kind = request.cls
        if not hasattr(kind, "backend"):
            pytest.fail(f'{kind.__name__} names no backend; write backend = "..." in it', pytrace=False)
        from devices import _registry

        try:
            if not (found := _registry.probe(kind.backend)).present:
                pytest.skip(f"backend {kind.backend!r} is not here: {found.reason}")
            if kind not in _subjects:
                _subjects[kind] = subject(kind.backend, ranks=kind.ranks, seed=kind.seed, quick=kind.quick)
            return _subjects[kind]
        except DevicesError as error:
            pytest.fail(str(error), pytrace=False)

    @pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
    def test_conformance(self, subject: Subject, check: Check) -> None:
        """Look whether one law is kept."""
        tally = run_check(check, subject).tally
        if tally.failed:
            told = [f"{failure.what}\n\n{failure.program or ''}".strip() for failure in tally.failed]
            pytest.fail("\n\n".join([f"{check.name}: {check.law}", *told]), pytrace=False)
        if not tally.proved and not tally.refused:
            pytest.skip("; ".join(dict.fromkeys(tally.skipped)) or "nothing was to be looked at")
