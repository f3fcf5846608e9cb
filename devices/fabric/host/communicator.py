"""A communicator over the memory that the processes of one host share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import final

import numpy as np
import torch

from devices._backend import Asked, Communicator, Group, Message, Pending, PendingFrom
from devices._store import Store
from devices.algorithms.started import DONE
from devices.errors import CollectiveError
from devices.fabric.communicator import REDUCTIONS
from devices.fabric.host import large, open_here
from devices.fabric.host.agreement import BITS, Agreement, Key
from devices.fabric.host.arena import Arenas
from devices.fabric.host.arrays import Array, Combine, array_of, combine, tensor_of
from devices.fabric.host.channels import Channels
from devices.fabric.host.in_call import InCall
from devices.fabric.host.layout import DIRECT, PLACE, SMALL
from devices.fabric.host.peers import Process
from devices.fabric.host.plan import Plan
from devices.fabric.host.recovery import Recovery
from devices.fabric.host.rounds import Rounds
from devices.fabric.host.segment import Segment
from devices.fabric.host.watch import Watch

Tensor = torch.Tensor


@final
class SharedMemoryCommunicator(Communicator):
    """Carries a group's verbs through memory that its processes share; `open_shared_memory` opens one.

    Its verbs block, so asynchronous ones run on a thread of the group. A collective returns once every rank has come to
    it, and has made the same call: if not, all ranks raise the same `MismatchError`. Small data goes through slots that
    all read in one step; large data piece by piece, every rank reducing a part; data in fabric memory stays where it
    is. A rank that dies, leaves, gives up or is late is named to all who wait for it.

    Args:
        segment: the memory.
        group: the members.
        processes: those of the members, by rank of the group.
    """

    blocking = True
    reduce_spares = True
    reductions = REDUCTIONS
    note = "shared memory"

    def __init__(self, segment: Segment, group: Group, processes: Mapping[int, Process]) -> None:
        watch = Watch(segment, group, processes)
        self._group = group
        self._rank, self._size = group.rank, group.size
        self._watch = watch
        self._segment, self._words = segment, segment.words
        self._agreement = Agreement(segment, group, watch)
        self._rounds = Rounds(segment, group.rank, group.size, watch)
        self._channels = Channels(segment, group, watch)
        self._arenas = Arenas(segment, group, processes)
        layout = segment.layout
        # By parity of the call, a row for each rank.
        slots = segment.bytes[layout.slot(0, 0) : layout.slot(group.size, 0)].reshape(group.size, 2, SMALL)
        self._rows: list[Array] = [slots[:, parity] for parity in (0, 1)]
        self._slots: list[list[Array]] = [list(rows) for rows in self._rows]
        table = group.size * group.size
        counts = segment.bytes[layout.counts : layout.counts + 4 * table * 8].view(np.uint64)
        self._counts = counts.reshape(2, 2, group.size, group.size)
        self.anew = SMALL
        self._plans: dict[tuple[str, torch.dtype, int], Plan] = {}
        self._expected: dict[int, Key] = {}
        self._lock = threading.Lock()
        self._in_call = InCall(self._lock, watch)
        self._is_closed = self._has_ended = False
        self._me = threading.get_ident
        self._place = layout.control_word(group.rank) + PLACE
        open_here.add(self)

    # What the ranks agree on.

    def expect(self, call: Asked) -> None:
        self._expected[self._me()] = (call[0], "" if call[1] is None else _name(call[1]), *call[2:])

    def agree(self) -> None:
        with self._in_call:
            key = self._key("barrier", None)
            self._agreement.come(key)
            self._agreement.meet(key)

    def _key(self, verb: str, tensor: Tensor | None, size: int = -1, op: str = "", root: int = -1) -> Key:
        """Return what this call is: what was expected or, of a verb that was called by itself, what it tells."""
        if self._expected and (expected := self._expected.pop(self._me(), None)) is not None:
            return expected
        return verb, "" if tensor is None else _name(tensor.dtype), size, op, root, ()

    def _about(self, key: Key) -> Callable[[], str]:
        return partial(self._agreement.about, key)

    # Collectives.

    def all_reduce(self, tensor: Tensor, op: str) -> Pending:
        if tensor.nbytes > SMALL or self._expected or tensor.is_inference():
            return self._all_reduce(tensor, op)
        plan = self._plan(op, tensor.dtype, tensor.numel())
        try:
            with self._lock:
                parity = self._exchange(plan, tensor, self._arenas.place_of(tensor) if plan.is_long else 0)
                if plan.is_long and self._arenas.hold_one(parity):
                    self._reduce_large(plan.key, array_of(tensor), combine(op, tensor.dtype))
                else:
                    plan.reduce_into(parity, tensor)
        except BaseException as error:
            self._in_call.failed(error)
            raise
        return DONE

    def all_reduced(self, tensor: Tensor, op: str) -> Tensor:
        plan = self._plan(op, tensor.dtype, tensor.numel())
        try:
            with self._lock:
                # Where the result is another tensor, peers must not write into this one, wherever it lies.
                parity = self._exchange(plan, tensor, 0)
                if plan.is_long and self._arenas.hold_one(parity):
                    tensor = tensor.clone()
                    self._reduce_large(plan.key, array_of(tensor), combine(op, tensor.dtype))
                    return tensor
                return plan.reduced(parity, tensor)
        except BaseException as error:
            self._in_call.failed(error)
            raise

    def _exchange(self, plan: Plan, tensor: Tensor, place: int) -> int:
        """Come to a small all_reduce, wait for the others, and return whether it is an odd call.

        `place` is where in fabric memory the tensor is to be reduced; 0 gives a copy of it.
        """
        parity = self._begin()
        agreement, words = self._agreement, self._words
        if plan.is_long:
            words[self._place + parity] = place
        if not place:
            plan.mine[parity].copy_(tensor)
        words[agreement.mine + parity] = value = (agreement.number << BITS) | plan.fingerprint
        for index in agreement.others[parity]:
            if words[index] != value:
                agreement.meet(plan.key)
                break
        else:
            if words[0]:
                self._watch.check_others()
        return parity

    def _begin(self) -> int:
        """Begin a call; return whether it is an odd one."""
        if self._watch.error is not None or self._is_closed:
            self._check()
        agreement = self._agreement
        agreement.number = number = agreement.number + 1
        return number & 1

    def _plan(self, op: str, dtype: torch.dtype, size: int) -> Plan:
        found = self._plans.get((op, dtype, size))
        return found if found is not None else self._new_plan(op, dtype, size)

    def _new_plan(self, op: str, dtype: torch.dtype, size: int) -> Plan:
        if len(self._plans) > 1000:
            self._plans.clear()
        key = "all_reduce", _name(dtype), size, op, -1, ()
        # A plan outlives the mode that it is made in.
        with torch.inference_mode(False):
            slots = [tensor_of(rows[:, : size * dtype.itemsize], dtype) for rows in self._rows]
            self._plans[op, dtype, size] = plan = Plan(key, slots, self._rank)
        return plan

    def _all_reduce(self, tensor: Tensor, op: str) -> Pending:
        key = self._key("all_reduce", tensor, tensor.numel(), op)
        array, reduce = array_of(tensor), combine(op, tensor.dtype)
        with self._in_call:
            parity = self._agreement.number + 1 & 1
            is_small, is_long = array.nbytes <= SMALL, array.nbytes > DIRECT
            place = self._arenas.place_of(tensor) if is_long else 0
            if is_long:
                self._words[self._place + parity] = place
            self._meet(key, array if is_small and not place else None)
            if is_small and not (is_long and self._arenas.hold_one(parity)):
                plan = self._plan(op, tensor.dtype, tensor.numel())
                array[...] = array_of(plan.reduced(parity, tensor))
            else:
                self._reduce_large(key, array, reduce)
        return DONE

    def _reduce_large(self, key: Key, array: Array, reduce: Combine) -> None:
        """Reduce `array` in place, all ranks having come to the call and said where theirs lie."""
        about = self._about(key)
        if (parts := self._arenas.parts_at(self._agreement.number & 1, array)) is not None:
            large.all_reduce_in_place(self._rounds, self._rank, parts, reduce, about)
        else:
            large.all_reduce(self._rounds, self._rank, array, reduce, self._size, about)

    def reduce(self, tensor: Tensor, dst: int, op: str) -> Pending:
        key = self._key("reduce", tensor, tensor.numel(), op, dst)
        array, reduce = array_of(tensor), combine(op, tensor.dtype)
        with self._in_call:
            if array.nbytes <= SMALL:
                slots = self._meet(key, array)
                if self._rank == dst:
                    large.reduce_all(slots, reduce, array)
                return DONE
            self._meet(key)
            large.all_reduce(self._rounds, self._rank, array, reduce, self._size, self._about(key), dst)
        return DONE

    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Pending:
        key = self._key("reduce_scatter", input, input.numel(), op)
        into, array, reduce = array_of(output), array_of(input), combine(op, input.dtype)
        with self._in_call:
            if array.nbytes <= SMALL:
                slots = self._meet(key, array)
                place = slice(self._rank * into.size, (self._rank + 1) * into.size)
                large.reduce_all([slot[place] for slot in slots], reduce, into)
                return DONE
            self._meet(key)
            large.reduce_scatter(self._rounds, self._rank, into, array, reduce, self._size, self._about(key))
        return DONE

    def reduce_parts(self, output: Tensor, parts: Sequence[Sequence[Tensor]], op: str) -> None:
        """Fill `output` with this rank's part of the reduction; the ranks' parts may be of any lengths.

        Args:
            output: in memory of its own.
            parts: by rank, what makes up its part, one after the other; as long on every rank.
            op: how.
        """
        key = self._key("reduce_scatter", output, sum(each.numel() for part in parts for each in part), op)
        into, arrays, reduce = array_of(output), _arrays(parts), combine(op, output.dtype)
        with self._in_call:
            self._meet(key)
            large.reduce_parts(self._rounds, self._rank, into, arrays, reduce, self._about(key))

    def gather_parts(self, parts: Sequence[Sequence[Tensor]], input: Tensor) -> None:
        """Fill all ranks' `parts` with the inputs of those, which may be of any lengths; all are bytes.

        Args:
            parts: by rank, what its input is to lie in, one after the other; together as long as that.
            input: this rank's.
        """
        key = self._key("all_gather", input, sum(each.numel() for part in parts for each in part))
        arrays, array = _arrays(parts), array_of(input)
        with self._in_call:
            self._meet(key)
            large.gather_parts(self._rounds, self._rank, arrays, array, self._about(key))

    def all_gather(self, output: Tensor, input: Tensor) -> Pending:
        self._gather("all_gather", output, input, -1)
        return DONE

    def gather(self, output: Tensor | None, input: Tensor, dst: int) -> Pending:
        self._gather("gather", output, input, dst)
        return DONE

    def _gather(self, verb: str, output: Tensor | None, input: Tensor, dst: int) -> None:
        key = self._key(verb, input, input.numel(), "", dst)
        into, array = None if output is None else array_of(output), array_of(input)
        with self._in_call:
            if array.nbytes > SMALL:
                self._meet(key)
                large.all_gather(self._rounds, self._rank, into, array, self._size, self._about(key))
                return
            slots = self._meet(key, array)
            if into is not None:
                for start, slot in zip(range(0, into.size, array.size), slots, strict=True):
                    into[start : start + array.size] = slot

    def broadcast(self, tensor: Tensor, src: int) -> Pending:
        key = self._key("broadcast", tensor, tensor.numel(), "", src)
        array = array_of(tensor)
        with self._in_call:
            if array.nbytes > SMALL:
                self._meet(key)
                large.broadcast(self._rounds, self._rank, array, src, self._about(key))
                return DONE
            slots = self._meet(key, array if self._rank == src else None)
            if self._rank != src:
                array[...] = slots[src][: array.size]
        return DONE

    def scatter(self, output: Tensor, input: Tensor | None, src: int) -> Pending:
        key = self._key("scatter", output, output.numel(), "", src)
        into, array = array_of(output), None if input is None else array_of(input)
        with self._in_call:
            if into.nbytes * self._size > SMALL:
                self._meet(key)
                large.scatter(self._rounds, self._rank, into, array, src, self._size, self._about(key))
                return DONE
            slots = self._meet(key, array)
            into[...] = slots[src][self._rank * into.size : (self._rank + 1) * into.size]
        return DONE

    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Pending:
        key = self._key("all_to_all", input)
        into, array = array_of(output), array_of(input)
        with self._in_call:
            parity = self._agreement.number + 1 & 1
            counts, expected = self._counts[parity]
            counts[self._rank], expected[self._rank] = input_counts, output_counts
            if array.nbytes <= SMALL:
                self._check()
                self._slots[parity][self._rank][: array.size] = array
            slots = self._meet(key)
            self._check_counts(key, counts, expected)
            if int(counts.sum(axis=1).max()) > SMALL:
                longest = int(counts.max())
                about = self._about(key)
                large.all_to_all(self._rounds, self._rank, into, array, output_counts, input_counts, longest, about)
                return DONE
            starts = counts[:, : self._rank].sum(axis=1).tolist()
            end = 0
            for peer, (begin, length) in enumerate(zip(starts, output_counts, strict=True)):
                source = array if peer == self._rank else slots[peer]
                into[end : end + length] = source[begin : begin + length]
                end += length
        return DONE

    def permute(self, output: Tensor | None, input: Tensor, pairs: Sequence[tuple[int, int]]) -> Pending:
        key = self._key("permute", input, input.numel())
        into, array = None if output is None else array_of(output), array_of(input)
        sends = any(source == self._rank for source, _ in pairs)
        source = next((source for source, target in pairs if target == self._rank), self._rank)
        with self._in_call:
            if array.nbytes > SMALL:
                self._meet(key)
                given = array if sends else None
                large.permute(self._rounds, self._rank, into, given, source, array.size, self._about(key))
                return DONE
            slots = self._meet(key, array if sends else None)
            if into is not None:
                into[...] = slots[source][: array.size]
        return DONE

    def barrier(self) -> Pending:
        with self._in_call:
            self._meet(self._key("barrier", None))
        return DONE

    def _meet(self, key: Key, data: Array | None = None) -> Sequence[Array]:
        """Come to a call with small `data`, or with none; return all ranks' slots, as arrays like it."""
        self._check()
        slots = self._slots[self._agreement.number + 1 & 1]
        if data is not None:
            slots = [slot[: data.nbytes].view(data.dtype) for slot in slots]
            slots[self._rank][...] = data
        self._agreement.come(key)
        self._agreement.meet(key)
        return slots

    def _check_counts(self, key: Key, sent: Array, expected: Array) -> None:
        """Raise on every rank if one expects what another does not send: all see the same tables."""
        if not np.array_equal(sent, expected.T):
            wrong = np.argwhere(sent != expected.T)
            told = [
                f"rank {self._group.ranks[source]} sends {int(sent[source, target])} bytes to rank "
                f"{self._group.ranks[target]}, which expects {int(expected[target, source])}"
                for source, target in wrong[:4].tolist()
            ]
            raise self._agreement.refuse(key, "the ranks' calls differ in sizes: " + "; ".join(told))

    # Messages.

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        self._check()
        return self._channels.exchange(sends, recvs)

    def recv_any(self, tensor: Tensor, tag: int) -> PendingFrom:
        self._check()
        return self._channels.receive_any(array_of(tensor), tag)

    # The end.

    def _check(self) -> None:
        self._watch.check()
        if self._is_closed:
            raise CollectiveError(f"{self._group}: the group is closed")

    def farewell(self, reason: str) -> None:
        """Tell the peers that this rank ends for an error of its program."""
        self._watch.leave(reason)
        self._has_ended = True

    def has_left(self, rank: int) -> bool:
        """Return whether a rank of the group has closed it, and not for an error."""
        return self._watch.has_left(rank) and self._watch.report(rank).get("kind") != "raised"

    def survivors(self) -> tuple[tuple[int, ...], Store]:
        # Those of other groups wait for who has died too.
        open_here.abort_all()
        return Recovery(self._segment, self._group, self._watch).run()

    def abort(self) -> None:
        if self._watch.error is None and not self._is_closed:
            self._watch.fail(CollectiveError(f"{self._group}: rank {self._group.ranks[self._rank]} aborted the group"))

    def close(self) -> None:
        if self._is_closed:
            return
        lost = self._channels.close()
        self._is_closed = True
        open_here.discard(self)
        self._watch.close()
        self._plans.clear()
        self._arenas.close()
        if lost and self._watch.error is None and not self._has_ended:
            raise CollectiveError(f"{self._group}: closed with messages that were sent and never received: {lost}")


def _arrays(parts: Sequence[Sequence[Tensor]]) -> list[list[Array]]:
    return [[array_of(each) for each in part] for part in parts]


@cache
def _name(dtype: torch.dtype) -> str:
    return "bytes" if dtype is torch.uint8 else str(dtype).removeprefix("torch.")
