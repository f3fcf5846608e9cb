"""By which links the parts of an all_to_all go between domains."""

from __future__ import annotations

from collections import Counter

import pytest

from devices.domains.members import Domains
from devices.domains.shares import Shares
from devices.domains.swapped import legs, spans

WORLDS = [
    (((0, 1), (2, 3)), [2e6, 1e6, 2e6, 1e6]),
    (((0, 2, 3), (1,)), [1e6, 5e6, 3e6, 1e6]),
    (((0, 4), (1, 2), (3,)), [1e6, 4e6, 1e6, 7e6, 9e6]),
]


@pytest.mark.parametrize(("members", "bandwidths"), WORLDS)
def test_each_byte_goes_once_from_its_source_to_its_target_and_each_link_carries_what_it_can(
    members: tuple[tuple[int, ...], ...], bandwidths: list[float]
) -> None:
    domains = Domains(members, tuple(map(str, range(len(members)))))
    size = len(bandwidths)
    counts = [[(7919 * source + 104_729 * target) % 50_000 for target in range(size)] for source in range(size)]
    counts[0][size - 1] = 0
    where = {rank: at for at, ranks in enumerate(members) for rank in ranks}
    found = {mine: legs(counts, domains, Shares(domains, bandwidths), mine) for mine in range(len(members))}
    everything = {leg for each in found.values() for leg in each}
    for source in range(size):
        for target in range(size):
            parts = sorted((leg.start, leg.stop) for leg in everything if (leg.source, leg.target) == (source, target))
            expected = counts[source][target] if where[source] != where[target] else 0
            assert [start for start, _ in parts] == [0, *(stop for _, stop in parts)][: len(parts)]
            assert sum(stop - start for start, stop in parts) == expected
    for leg in everything:
        assert where[leg.leaves] == where[leg.source] != where[leg.target] == where[leg.enters]
    # The ranks of two domains have what passes between them in one order.
    for first in found:
        for second in found:
            both = [
                [leg for leg in found[at] if {where[leg.source], where[leg.target]} == {first, second}]
                for at in (first, second)
            ]
            assert both[0] == both[1]
    for domain, ranks in enumerate(members):
        out, into = Counter[int](), Counter[int]()
        for leg in found[domain]:
            (out if where[leg.source] == domain else into)[
                leg.leaves if where[leg.source] == domain else leg.enters
            ] += leg.stop - leg.start
        for carried in (out, into):
            way = sum(bandwidths[rank] for rank in ranks)
            for rank in ranks:
                # Parts begin at multiples of 64 bytes, and there is one for each other domain.
                assert carried[rank] == pytest.approx(sum(carried.values()) * bandwidths[rank] / way, abs=200)


def test_pieces_are_as_long_as_what_crosses_leaves_room_for() -> None:
    domains = Domains((tuple(range(8)), tuple(range(8, 16))), ("a", "b"))
    piece = 2 << 20
    even = [[1 << 20] * 16 for _ in range(16)]
    assert list(spans(even, domains, piece)) == [(start, start + (32 << 10)) for start in range(0, 1 << 20, 32 << 10)]
    # One long message is not cut into what all 64 would be cut into.
    one = [[0] * 16 for _ in range(16)]
    one[0][8] = 64 << 20
    assert list(spans(one, domains, piece)) == [(start, start + piece) for start in range(0, 64 << 20, piece)]
    # What stays in a domain takes no room between them.
    near = [[0] * 16 for _ in range(16)]
    near[3][4], near[0][8] = 64 << 20, 5
    assert list(spans(near, domains, piece)) == [(0, 64 << 20)]
    assert list(spans([[7] * 16 for _ in range(16)], domains, 10)) == [(at, at + 1) for at in range(7)]
    mixed = [[100 * source + target for target in range(16)] for source in range(16)]
    found = list(spans(mixed, domains, 30_000))
    assert [start for start, _ in found] == [0, *(stop for _, stop in found)][: len(found)]
    assert found[-1][1] == max(mixed[15][:15])
    for start, stop in found:
        for members, others in (domains.members, domains.members[::-1]):
            crosses = sum(
                min(max(mixed[source][target] - start, 0), stop - start) for source in members for target in others
            )
            assert crosses <= 30_000
    assert len(found) < 5
