"""Ranks that end, stop or are late: the others are told which one, and why, as far as it can be known."""

from __future__ import annotations

import pytest
from ending_cases import CASES
from judging import check, named
from shared_memory import NEEDS_SHARED_MEMORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), NEEDS_SHARED_MEMORY]


@pytest.mark.parametrize("name", named(CASES))
def test_each_rank_ends_as_it_must(name: str) -> None:
    check(CASES[name])
