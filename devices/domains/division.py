"""Which native groups the ranks of a world make: of a backend those that it reaches as one, or legal parts of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import final

from devices.domains.card import Card, named
from devices.domains.parts import are_symmetric, legal_parts

Parts = list[list[int]]


@final
class Division:
    """The domains of a world's groups.

    What a backend reaches as one is one domain, unless its hardware has no group of that: it is divided then, down to
    single ranks. The groups of a world are divided within the domains of the world, for there are runtimes that are
    started for one set of ranks, and open groups of those alone.

    Args:
        cards: what each rank has told, by rank of the world.
        sets: which ranks of the world are divided together, those of the others left out: those that a fabric joins,
            and the rest. Without it all are.
    """

    def __init__(self, cards: Sequence[Card], sets: Sequence[Sequence[int]] | None = None) -> None:
        self._cards = tuple(cards)
        self._present = Counter(card.bound for card in cards)
        found = [range(len(cards))] if sets is None else sets
        self._sets = {frozenset(ranks): self._divided(ranks, self._at_first) for ranks in found}
        parts = [part for each, _ in self._sets.values() for part in each]
        self._home = {rank: at for at, part in enumerate(parts) for rank in part}

    def of(self, ranks: Sequence[int]) -> tuple[Parts, list[str]]:
        """Return the ranks of each domain of a group, and in words why a backend has several where one would do."""
        return self._sets.get(frozenset(ranks)) or self._divided(ranks, self._later)

    def _divided(
        self, ranks: Sequence[int], cut: Callable[[list[int]], tuple[Parts, list[str]]]
    ) -> tuple[Parts, list[str]]:
        within: dict[tuple[str, str], list[int]] = {}
        for rank in sorted(ranks):
            within.setdefault((self._cards[rank].backend, self._cards[rank].reach), []).append(rank)
        parts: Parts = []
        reasons: list[str] = []
        for members in within.values():
            found, why = cut(members)
            parts += found
            if len(found) > 1:
                each = " and ".join(", ".join(map(str, part)) for part in sorted(found))
                reasons.append(
                    f"{named(self._cards, members)} are {len(found)} domains ({each}): {', '.join(dict.fromkeys(why))}"
                )
        return parts, reasons

    def _at_first(self, members: list[int]) -> tuple[Parts, list[str]]:
        """Divide the world's ranks that a backend reaches as one."""
        parts: Parts = []
        reasons: list[str] = []
        started: dict[tuple[str, int], list[int]] = {}
        for rank in members:
            if (begun := self._cards[rank].bound) is not None:
                started.setdefault(begun, []).append(rank)
        if fresh := [rank for rank in members if self._cards[rank].bound is None]:
            parts, reasons = self._legal(fresh)
        for bound, some in started.items():
            count = bound[1]
            # Some of them may be joined by a fabric, and divided by themselves.
            gone = count - self._present[bound]
            is_whole = not gone
            if len(some) == count:
                parts.append(some)
            elif is_whole:
                found, why = self._legal(some)
                parts += found
                reasons += why
            else:
                parts += [[rank] for rank in some]
            if not is_whole or len(some) < len(members):
                rest = "" if is_whole else f", of which {gone} {'is' if gone == 1 else 'are'} gone"
                reasons.append(
                    f"the runtime of {named(self._cards, some)} was started before, for {count} rank"
                    f"{'s' if count > 1 else ''}{rest}, and opens no other groups"
                )
        return parts, reasons

    def _later(self, members: list[int]) -> tuple[Parts, list[str]]:
        """Divide those of a group of the world that a backend reaches as one."""
        homes: dict[int, list[int]] = {}
        for rank in members:
            homes.setdefault(self._home[rank], []).append(rank)
        parts: Parts = []
        reasons = ["they are in different domains of the world"] if len(homes) > 1 else []
        for some in homes.values():
            found, why = self._legal(some)
            parts += found
            reasons += why
        return parts, reasons

    def _legal(self, members: list[int]) -> tuple[Parts, list[str]]:
        """Return ranks in parts that their hardware has groups of, and why, where it has none of all."""
        cards = [self._cards[rank] for rank in members]
        first = cards[0]
        hosts: dict[str, list[int]] = {}
        for rank, card in zip(members, cards, strict=True):
            hosts.setdefault(card.host, []).append(rank)
        if not self._may_be_one(members):
            alike = f"a group of backend {first.backend!r} has the same devices of each host that it is on"
            return self._by_host(hosts.values(), alike)
        if all(card.allows_group_of(len(members)) for card in cards):
            return [members], []
        order = [rank for some in hosts.values() for rank in sorted(some, key=lambda rank: self._cards[rank].index)]
        places = [(self._cards[rank].host, self._cards[rank].index) for rank in order]
        found = legal_parts(places, lambda size: all(card.allows_group_of(size) for card in cards))
        parts = [sorted(order[at] for at in part) for part in found]
        no_group = f"backend {first.backend!r} has no groups of {len(members)}; legal sizes are {first.legal_sizes}"
        # The largest may end in the middle of a host; and runtimes that are started over several hosts meet at an
        # address, which all have from one variable.
        over_hosts = [part for part in parts if len({self._cards[rank].host for rank in part}) > 1]
        if first.symmetric and (len(over_hosts) > 1 or not all(map(self._may_be_one, parts))):
            return self._by_host(hosts.values(), no_group)
        return parts, [no_group]

    def _by_host(self, hosts: Iterable[list[int]], reason: str) -> tuple[Parts, list[str]]:
        """Return the ranks of each host in parts of their own, which are so for a reason."""
        parts: Parts = []
        reasons = [reason]
        for some in hosts:
            found, why = self._legal(some)
            parts += found
            reasons += why
        return parts, reasons

    def _may_be_one(self, members: list[int]) -> bool:
        """Return whether ranks are the same devices of each host, where their hardware has no other groups."""
        cards = [self._cards[rank] for rank in members]
        return not cards[0].symmetric or are_symmetric([(card.host, card.index) for card in cards])
