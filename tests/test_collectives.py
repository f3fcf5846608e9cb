"""The verbs on process ranks, against plain torch on all ranks' inputs; `verb_cases` holds what is tried."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import ranks
import verb_cases

over_groups = pytest.mark.parametrize(
    ("transport", "size"),
    [
        ("devices", 1),
        ("devices", 2),
        pytest.param("devices", 3, marks=pytest.mark.slow),
        pytest.param("devices", 4, marks=pytest.mark.slow),
        ("gloo", 1),
        pytest.param("gloo", 3, marks=pytest.mark.slow),
    ],
)


@functools.cache
def _tried(transport: str, size: int) -> list[dict[str, tuple[int, list[str]]]] | Exception:
    try:
        return ranks.run(size, verb_cases.run_all, transport)
    except ranks.RankFailed as error:
        return error


@pytest.mark.parametrize("section", verb_cases.SECTIONS, ids=lambda section: section.__name__)
@over_groups
def test_the_verbs_give_what_plain_torch_gives(section: Callable[..., None], transport: str, size: int) -> None:
    tried = _tried(transport, size)
    if isinstance(tried, Exception):
        raise tried
    for rank, found in enumerate(tried):
        count, wrong = found[section.__name__]
        assert count or (size == 1 and section is verb_cases.messages)
        assert not wrong, f"rank {rank}: {len(wrong)} of {count} checks are wrong, the first: {wrong[:3]}"
