"""A communicator over domains: native inside each, and what must cross goes once, in pieces that overlap."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import final

import torch

from devices._backend import Asked, Communicator, Group, Message, Pending
from devices._capture import is_capturing
from devices._store import Store
from devices.algorithms.arithmetic import COMBINE
from devices.algorithms.lines import caller
from devices.algorithms.pipeline import Piece, run
from devices.algorithms.started import DONE
from devices.domains.alarm import Alarm
from devices.domains.bridge import Bridge
from devices.domains.consent import Consent
from devices.domains.ended import Ended
from devices.domains.inside import Inside, cut
from devices.domains.members import Domains, crossings, overlaps
from devices.domains.messages import DomainsMessages, Watched
from devices.domains.recovery import Recovery, is_recovered
from devices.domains.shares import Shares
from devices.domains.swapped import Swap
from devices.errors import CollectiveError, MismatchError, UnsupportedError
from devices.fabric.host import open_here
from devices.fabric.mark import Mark

Tensor = torch.Tensor

WAYS: Mapping[str, str] = MappingProxyType(
    {
        "all_reduce": "reduce_scatter in each domain, messages between them, each rank adding up a part in the order "
        "of the domains, all_gather in each; in pieces that overlap",
        "all_gather": "all_gather in each domain, messages between them, all_gather of what came in each; in pieces",
        "reduce_scatter": "reduce_scatter in each domain of what every one is to have, messages between; in pieces",
        "broadcast": "broadcast in the source's domain, messages from domain to domain, all_gather in each; in pieces",
        "all_to_all": "messages from rank to rank; behind unequal links by the ranks whose links have room, in pieces",
        "barrier": "all ranks of each domain, then their first ranks among themselves",
    }
)
"""How the verbs go, for `devices.explain(group)`."""

PIECE = 2 << 20
"""The bytes of a piece, so that several are on their way at once and the first is not long in coming.

Each piece wakes all ranks of a host. With half of that they had no time to spare at 1 Gbit/s, and where other processes
took some, links were not filled; with twice as much less was carried at 200 Mbit/s.
"""


@final
class DomainsCommunicator(Communicator):
    """Carries a group's verbs over its domains; `open_domains` opens one.

    Every rank of a domain has its own part of what crosses, so that all ways between two domains are used. Sums are
    made in each domain as it makes them, then over the domains in their order, each element by one rank: all ranks
    have the same bits. A call is compared inside each domain, then between the first ranks of the domains, before
    anything of it is sent; what goes wrong in one domain is told to all.

    Args:
        group: the members.
        domains: who is where.
        shares: how much of what crosses each rank carries.
        inside: this rank's domain.
        between: one over all ranks, whose `exchange` reaches any of them.
        reductions: the ops and dtypes that all domains reduce natively.
        note: what carries the group, in words.
        gone: says which ranks of this host have died, where what carries a domain may not notice; nothing if none has.
    """

    blocking = True
    ways = WAYS

    def __init__(
        self,
        group: Group,
        domains: Domains,
        shares: Shares,
        inside: Inside,
        between: Communicator,
        reductions: Mapping[str, frozenset[torch.dtype]],
        note: str,
        gone: Ended | None = None,
    ) -> None:
        self._group, self._domains, self._shares = group, domains, shares
        self._inside, self._between = inside, between
        self._mine = domains.of_rank(group.rank)
        self._sizes = [len(ranks) for ranks in domains.members]
        self._alarm = Alarm(group, domains.names[self._mine], self._give_up, gone)
        self._bridge = Bridge(between, group, domains, inside.communicator, self._alarm.reason_of)
        # Between vendors, one may refuse at a call what another takes.
        self._consent = Consent(group, domains, self._bridge, None if gone is None else self._alarm.ring)
        self.messages = self._messages = DomainsMessages(group, self._bridge, self._alarm)
        self._numbers = itertools.count(1)
        self._expected: dict[int, Asked] = {}
        self._is_closed = False
        self._is_recovered = is_recovered()
        # Over vendors the CPU's group of all ranks, which is between the domains, has what finds those that are left.
        self._recovery = Recovery(group) if self._is_recovered and gone is None else None
        self.reductions = reductions
        self.note = note
        open_here.add(self)

    # What the ranks agree on.

    def expect(self, call: Asked) -> None:
        self._expected[threading.get_ident()] = call

    def agree(self) -> None:
        self._run(Asked("barrier", None), lambda: None)

    def _run(self, call: Asked, work: Callable[[], None]) -> Pending:
        """Compare the call, which this is unless another was expected, on all ranks, and do it."""
        call = self._expected.pop(threading.get_ident(), call)
        if self._is_closed:
            raise CollectiveError(f"{self._group}: the group is closed")
        if is_capturing(self._group.device.type):
            # Before anything is sent, so that the group goes on.
            raise UnsupportedError(
                f"{self._group}: {call.verb} passes between domains through host memory, which a captured graph "
                "cannot do; call the verb outside of the capture"
            )
        with self._alarm:
            self._inside.agree(call)
            if not self._inside.compares_all:
                self._bridge.agree(self._mark(call))
                # Those that do not compare wait here for who does: nothing is sent before.
                self._inside.barrier()
            refused = self._consent.run(call, work)
        if refused is not None:
            raise refused
        return DONE

    def _mark(self, call: Asked) -> Mark:
        verb, dtype, size, op, root, sizes = call
        name = "" if dtype is None else "bytes" if dtype is torch.uint8 else str(dtype).removeprefix("torch.")
        if len(sizes) > 16:
            # All of them would not fit into what is told: by how they begin, and what stands for the rest.
            rest = int.from_bytes(hashlib.blake2b(repr(sizes).encode(), digest_size=6).digest())
            sizes = (*sizes[:15], rest)
        me = self._group.ranks[self._group.rank]
        return Mark(verb, self._group.name[:100], next(self._numbers), name, size, op, root, me, caller()[-300:], sizes)

    # Collectives.

    def all_reduce(self, tensor: Tensor, op: str) -> Pending:
        call = Asked("all_reduce", tensor.dtype, tensor.numel(), op)
        return self._run(call, lambda: run(self._reduced(piece, op) for piece in self._pieces(tensor)))

    def _reduced(self, piece: Tensor, op: str) -> Piece:
        """Reduce a piece in the domain, each lane's parts at one rank of a domain each, and hand out the result."""
        me = self._mine
        cuts = self._shares.cuts(me, piece.numel())
        places = cut([piece], cuts)
        own, start = self._inside.reduce_scatter(places, op), cuts[self._inside.place]
        sends, recvs, sums = [], [], []
        for ranks, lane in self._shares.lanes(piece.numel()):
            if ranks[me] != self._inside.place:
                continue
            parts = [own[begin - start : stop - start] for begin, stop in itertools.pairwise(lane)]
            given = [parts[me] if at == me else torch.empty_like(parts[me]) for at in range(len(parts))]
            sums.append(given)
            for at, place in enumerate(ranks):
                if at != me:
                    peer = self._domains.members[at][place]
                    sends.append((peer, parts[at]))
                    recvs.append((peer, given[at]))
        yield self._consent.start(sends, recvs)
        for given in sums:
            # Where this rank's own is one of the first two, the sum may lie there.
            _add_up(given, op, given[me] if me < 2 else given[0])
            if me >= 2:
                given[me].copy_(given[0])
        # Back the same ways: of each lane this rank has one part, and the others get it.
        back = [(peer, sums[at // (len(self._sizes) - 1)][me]) for at, (peer, _) in enumerate(sends)]
        yield self._consent.start(back, sends)
        self._inside.all_gather(places, own)

    def all_gather(self, output: Tensor, input: Tensor) -> Pending:
        rows = output.view(self._group.size, -1)
        call = Asked("all_gather", input.dtype, input.numel())

        def pieces() -> Iterator[Piece]:
            start = 0
            for piece in self._pieces(input, max(self._sizes)):
                yield self._gathered(rows[:, start : start + piece.numel()], piece)
                start += piece.numel()

        return self._run(call, lambda: run(pieces()))

    def _gathered(self, rows: Tensor, piece: Tensor) -> Piece:
        """Gather a piece in each domain, and let each domain have what the others gathered."""
        inside, me, size = self._inside, self._mine, piece.numel()
        of_domains = [[rows[rank] for rank in members] for members in self._domains.members]
        inside.all_gather([[row] for row in of_domains[me]], piece)
        here = inside.size * size
        [own] = cut(of_domains[me], self._mine_of(here))
        crosses = own[0] if len(own) == 1 else torch.cat(own) if own else piece[:0]
        sends, recvs, parts = [], [], {}
        for at, theirs in enumerate(of_domains):
            if at != me:
                sends += self._ways(at, crosses, here)
                start, stop = self._mine_of(total := len(theirs) * size)
                parts[at] = piece.new_empty(stop - start)
                recvs += self._ways(at, parts[at], total)
        yield self._consent.start(sends, recvs)
        for at, part in parts.items():
            inside.all_gather(cut(of_domains[at], self._shares.cuts(me, len(of_domains[at]) * size)), part)

    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Pending:
        rows = input.view(self._group.size, -1)
        call = Asked("reduce_scatter", input.dtype, input.numel(), op)

        def pieces() -> Iterator[Piece]:
            start = 0
            for piece in self._pieces(output, max(self._sizes)):
                yield self._scattered(piece, rows[:, start : start + piece.numel()], op)
                start += piece.numel()

        return self._run(call, lambda: run(pieces()))

    def _scattered(self, piece: Tensor, rows: Tensor, op: str) -> Piece:
        """Reduce, in each domain, what each other one is to have, and let each rank add up what comes for it."""
        inside, me, size = self._inside, self._mine, piece.numel()
        of_domains = [[rows[rank] for rank in members] for members in self._domains.members]
        parts = [[row] for row in of_domains[me]]
        for at, theirs in enumerate(of_domains):
            if at != me:
                for part, more in zip(parts, cut(theirs, self._shares.cuts(me, len(theirs) * size)), strict=True):
                    part += more
        own = inside.reduce_scatter(parts, op)
        sends, recvs, came, place = [], [], {me: own[:size]}, size
        for at, theirs in enumerate(of_domains):
            if at != me:
                begin, end = self._mine_of(total := len(theirs) * size)
                sends += self._ways(at, own[place : place + end - begin], total)
                place += end - begin
                begin, end = self._mine_of(inside.size * size)
                came[at] = own.new_empty(end - begin)
                recvs += self._ways(at, came[at], inside.size * size)
        yield self._consent.start(sends, recvs)
        given = [came[at] if at == me else self._own_row(came[at], size) for at in range(len(of_domains))]
        _add_up(given, op, piece)

    def _own_row(self, part: Tensor, size: int) -> Tensor:
        """Return what came for this rank, of which others have some, and it theirs, where their parts are not equal."""
        inside = self._inside
        cuts = self._shares.cuts(self._mine, inside.size * size)
        rows = range(0, inside.size * size + 1, size)
        return part if list(cuts) == list(rows) else inside.all_to_all(part, overlaps(cuts, rows))

    def broadcast(self, tensor: Tensor, src: int) -> Pending:
        call = Asked("broadcast", tensor.dtype, tensor.numel(), "", src)
        return self._run(call, lambda: run(self._spread(piece, src) for piece in self._pieces(tensor)))

    def _spread(self, piece: Tensor, src: int) -> Piece:
        """Pass a piece on from domain to domain, from the source's on."""
        inside, count, length = self._inside, len(self._sizes), piece.numel()
        first = self._domains.of_rank(src)
        turn = (self._mine - first) % count
        own = piece[slice(*self._mine_of(length))]
        if turn == 0:
            inside.broadcast(piece, self._domains.members[first].index(src))
        else:
            yield self._consent.start([], self._ways((self._mine - 1) % count, own, length))
        if turn < count - 1:
            yield self._consent.start(self._ways((self._mine + 1) % count, own, length), [])
        if turn:
            inside.all_gather(cut([piece], self._shares.cuts(self._mine, length)), own)

    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Pending:
        def exchange() -> None:
            me = self._group.rank
            sent, came = input.split(list(input_counts)), output.split(list(output_counts))
            peers = [rank for rank in range(self._group.size) if rank != me]
            counts = self._check_counts(input_counts, output_counts)
            if self._shares.are_uneven:
                swap = Swap(me, self._domains, self._shares, self._bridge)
                came[me].copy_(sent[me])
                run(swap.pieces(sent, came, counts, PIECE))
                return
            pending = self._bridge.start([(peer, sent[peer]) for peer in peers], [(peer, came[peer]) for peer in peers])
            came[me].copy_(sent[me])
            pending.wait()

        return self._run(Asked("all_to_all", input.dtype), exchange)

    def _check_counts(self, sent: Sequence[int], expected: Sequence[int]) -> list[list[int]]:
        """Return what each rank sends to each, as far as this rank is told: all, where links are uneven, or its own.

        Raises:
            MismatchError: a peer sends another number of bytes than this rank expects.
        """
        me, size = self._group.rank, self._group.size
        peers = [rank for rank in range(size) if rank != me]
        is_whole = self._shares.are_uneven
        row = torch.tensor(sent)
        says = [(peer, row if is_whole else row[peer : peer + 1]) for peer in peers]
        said = {peer: torch.empty(size if is_whole else 1, dtype=torch.int64) for peer in peers}
        self._bridge.start(says, list(said.items())).wait()
        counts = [list(sent) if rank == me else said[rank].tolist() for rank in range(size)]
        ranks = self._group.ranks
        for peer in peers:
            if (found := counts[peer][me if is_whole else 0]) != expected[peer]:
                raise MismatchError(
                    f"rank {ranks[me]}: all_to_all in group {self._group.name!r}: the ranks' calls differ in sizes: "
                    f"rank {ranks[peer]} sends {found} bytes to rank {ranks[me]}, which expects {expected[peer]} "
                    f"({caller()})"
                )
        return counts

    def barrier(self) -> Pending:
        def meet() -> None:
            self._inside.barrier()
            self._bridge.meet()
            self._inside.barrier()

        return self._run(Asked("barrier", None), meet)

    def _mine_of(self, length: int) -> tuple[int, int]:
        """Return where this rank's part of what crosses to or from its domain begins and ends."""
        start, stop = self._shares.cuts(self._mine, length)[self._inside.place :][:2]
        return start, stop

    def _ways(self, domain: int, own: Tensor, length: int) -> list[tuple[int, Tensor]]:
        """Return whom of another domain this rank sends what of its own part to, or gets it from."""
        mine = self._shares.cuts(self._mine, length)
        members, first = self._domains.members[domain], mine[self._inside.place]
        return [
            (members[there], own[start - first : stop - first])
            for here, there, start, stop in crossings(mine, self._shares.cuts(domain, length))
            if here == self._inside.place
        ]

    def _pieces(self, tensor: Tensor, rows: int = 1) -> Sequence[Tensor]:
        """Return a flat tensor in pieces that the ranks of every domain have equal parts of, the last one excepted.

        Args:
            tensor: cut into pieces.
            rows: how many of a piece cross together.
        """
        unit = self._domains.unit
        size = max(PIECE // tensor.element_size() // rows // unit, 1) * unit
        return list(torch.split(tensor, size))

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        # Of a verb that is composed of messages: what goes wrong in it is told to all, as in any other.
        return Watched(self._alarm, [self._bridge.exchange(sends, recvs)])

    # The end.

    def _give_up(self) -> None:
        """Make what waits in this domain, and in others for this rank, fail soon."""
        if self._inside.communicator is not None:
            self._inside.communicator.abort()
        self._between.abort()

    def farewell(self, reason: str) -> None:
        """Tell the peers that this rank ends for an error of its program."""
        self._alarm.leave(reason)

    def survivors(self) -> tuple[tuple[int, ...], Store]:
        if not self._is_recovered:
            raise UnsupportedError(
                f"{self._group}: of the groups of several domains only a world of processes is recovered; start the "
                "ranks again, from a checkpoint (torchrun --max-restarts does)"
            )
        # Those of other groups wait for who has died too.
        open_here.abort_all()
        if self._recovery is not None:
            return self._recovery.run()
        # What waits in the vendor's group of this domain goes no further than its process.
        self.abort()
        return self._between.survivors()

    def abort(self) -> None:
        self._alarm.abandon()
        self._give_up()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        open_here.discard(self)
        self._alarm.stop()
        self._messages.close()
        self._recovery = None
        try:
            if self._inside.communicator is not None:
                self._inside.communicator.close()
        finally:
            self._between.close()
        self._alarm.close()


def _add_up(given: Sequence[Tensor], op: str, total: Tensor) -> None:
    """Write the reduction of two or more tensors, in their order, into `total`, which may be one of the first two."""
    COMBINE[op](given[0], given[1], out=total)
    for each in given[2:]:
        COMBINE[op](total, each, out=total)
