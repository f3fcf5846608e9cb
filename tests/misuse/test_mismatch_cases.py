"""Calls that differ: every rank is told which rank is the odd one, in what, and where all of them called."""

from __future__ import annotations

import pytest
from judging import check, named
from mismatch_cases import CASES
from shared_memory import NEEDS_SHARED_MEMORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), NEEDS_SHARED_MEMORY]


@pytest.mark.parametrize("name", named(CASES))
def test_each_rank_ends_as_it_must(name: str) -> None:
    check(CASES[name])
