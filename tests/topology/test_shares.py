from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import ArgumentError
from devices.topology import shares


def slowest(sizes: tuple[int, ...], each: list[float], before: list[float]) -> float:
    return max((start + size * one for size, one, start in zip(sizes, each, before, strict=True) if size), default=0.0)


@given(
    st.integers(0, 12),
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=4
    ),
    st.integers(0, 3),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_other_split_into_whole_items_is_faster(
    total: int, chips: list[tuple[int, int, int, int]], moved: int
) -> None:
    speeds, links, rooms, before = map(list, zip(*chips, strict=True))
    each = [1 / speed + moved / link for speed, link in zip(speeds, links, strict=True)]
    every = [
        sizes
        for sizes in itertools.product(*(range(min(total, room) + 1) for room in rooms))
        if sum(sizes) == total
    ]  # fmt: skip

    def ask() -> object:
        return shares(
            total,
            speeds,
            bytes_each=moved,
            bandwidths=links,
            memory_each=2,
            memories=[2 * room + 1 for room in rooms],
            overheads=before,
        )

    if not every:
        with pytest.raises(ArgumentError, match="do not fit"):
            ask()
        return
    found = ask()
    assert found.sizes in every  # type: ignore[attr-defined]
    best = min(slowest(sizes, each, [float(start) for start in before]) for sizes in every)
    assert math.isclose(found.seconds, best, rel_tol=1e-12)  # type: ignore[attr-defined]
    assert math.isclose(slowest(found.sizes, each, [float(start) for start in before]), best, rel_tol=1e-12)  # type: ignore[attr-defined]


def test_equal_chips_have_equal_shares() -> None:
    assert shares(64, [5.0] * 8).sizes == (8,) * 8
    assert sorted(shares(66, [5.0] * 8).sizes) == [8] * 6 + [9] * 2


def test_a_large_batch_is_split_as_fast_as_a_small_one() -> None:
    # 10^15 items are more than can be given one by one; the limit on memory makes the first estimate wrong.
    found = shares(10**15, [3, 1], memory_each=1, memories=[10**14, 10**16])
    assert found.sizes == (10**14, 9 * 10**14)
    assert (found.slowest, found.seconds) == (1, 9e14)


def test_sizes_are_multiples_where_that_is_asked() -> None:
    found = shares(96, [989, 989, 667], multiple=8)
    assert found.sizes == (40, 32, 24) or found.sizes == (32, 40, 24)
    with pytest.raises(ArgumentError, match="100 items cannot be split into multiples of 8"):
        shares(100, [1, 1], multiple=8)


def test_mixed_chips_come_within_one_percent_of_the_split_into_fractions() -> None:
    speeds = [989.0] * 8 + [667.0] * 8 + [181.0]
    found = shares(4096, speeds)
    assert found.seconds <= 1.01 * 4096 / sum(speeds)


@pytest.mark.parametrize(
    ("arguments", "keywords", "said"),
    [
        ((4, []), {}, "at least one chip"),
        ((-1, [1]), {}, "`total` must be"),
        ((4, [1, 0]), {}, "`speeds` of chip 1 must be a number of more than 0"),
        ((4, [1, None]), {}, "`speeds` of chip 1 .* got None"),
        ((4, [1, 1]), {"bytes_each": 8}, "`bytes_each` needs `bandwidths`"),
        ((4, [1, 1]), {"memory_each": 8, "memories": [16]}, "one for each of 2 chips, got 1"),
        ((4, [1, 1]), {"memory_each": 8, "memories": [16, 8]}, "room for 2, 1, which is 3"),
        ((4, [1, 1]), {"multiple": 0}, "`multiple`"),
    ],
)
def test_what_cannot_be_split_is_an_error_that_names_it(arguments: tuple, keywords: dict, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        shares(*arguments, **keywords)
