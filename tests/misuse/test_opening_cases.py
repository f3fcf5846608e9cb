"""Worlds whose ranks disagree do not open, and every rank is told why."""

from __future__ import annotations

import pytest
from judging import check, named
from opening_cases import CASES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("name", named(CASES))
def test_each_rank_ends_as_it_must(name: str) -> None:
    check(CASES[name])
