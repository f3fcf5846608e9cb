"""Groups and tensors used as they must not be: an error, or right all the same; never a wrong number, never a hang."""

from __future__ import annotations

import pytest
from judging import check, named
from shared_memory import NEEDS_SHARED_MEMORY
from use_cases import CASES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), NEEDS_SHARED_MEMORY]


@pytest.mark.parametrize("name", named(CASES))
def test_each_rank_ends_as_it_must(name: str) -> None:
    check(CASES[name])
