"""A fabric over the memory of accelerators. Data lies on the devices; what ranks tell each other, in the host's memory.

What makes it right, without a kernel that waits on the device:

1. Who exports a tensor copies it, on its current stream, into memory of its device that its peers map.
2. Before it raises a lane, the host waits for that stream: what was copied is there. Then it raises the lane in the
   host's memory, which orders it behind what the host did before (`devices.fabric.host`).
3. A peer whose host sees the lane raised tells its own stream to read: what a stream is told after is done after.
4. Before it closes the export, its host waits for its stream, which has read by then.
5. Who sees its export closed by all readers uses the place again, by what it tells its stream after that.

So a rank's calls are made on one thread and one stream at a time, and the host waits at each step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import final

import torch

from devices.fabric.host.fabric import HostFabric
from devices.fabric.host.layout import EXTRA_LANES
from devices.fabric.interface import Condition, Fabric, Raised, Read
from devices.fabric.peer.memory import DeviceMemory
from devices.fabric.peer.segments import Place, Segments

_ON_DEVICE = "on the device"
_SEGMENT = "segment"


@final
class PeerFabric(Fabric):
    """A group's devices, seen from one rank; `open_peer_fabric` opens one.

    Args:
        host: what the ranks tell each other by.
        memory: that of this rank's device.
        segments: this rank's own, of which peers have mapped the first.
        mapped: the first segment of each peer.
    """

    def __init__(
        self, host: HostFabric, memory: DeviceMemory, segments: Segments, mapped: Mapping[int, torch.Tensor]
    ) -> None:
        self.rank, self.size = host.rank, host.size
        self._host = host
        self._memory = memory
        self._segments = segments
        self._mapped = {(peer, 0): segment for peer, segment in mapped.items()}
        self._places: dict[Hashable, Place] = {}
        self._read_here: set[tuple[int, Hashable]] = set()
        self._has_left = False

    def export(
        self, name: Hashable, tensor: torch.Tensor | None, note: object, readers: int, *, is_part: bool = False
    ) -> None:
        if tensor is None or tensor.device.type != self._memory.type:
            self._host.export(name, tensor, note, readers, is_part=is_part)
            return
        if not readers:
            return
        self._give_back_what_was_read()
        before = len(self._segments)
        place = self._segments.take(tensor.nbytes)
        if len(self._segments) > before:
            self._tell_of_segment(before)
        if place.nbytes:
            self._memory.copy(self._segments.at(place), _bytes_of(tensor))
        self._places[name] = place
        where = [place.segment, place.start, place.nbytes, str(tensor.dtype).removeprefix("torch.")]
        told = torch.frombuffer(bytearray(json.dumps(where).encode()), dtype=torch.uint8)
        self._host.export((_ON_DEVICE, name), told, note, readers)

    def _tell_of_segment(self, number: int) -> None:
        segment = self._segments[number]
        # More readers than there are ranks: it stays.
        told = self._memory.handle(segment), segment.numel()
        self._host.export((_SEGMENT, number), None, told, self.size + 1)

    def _give_back_what_was_read(self) -> None:
        for name in [name for name in self._places if self._host.holds(Read((_ON_DEVICE, name)))]:
            self._segments.give_back(self._places.pop(name))

    def open(self, peer: int, name: Hashable) -> tuple[torch.Tensor | None, object]:
        try:
            told, note = self._host.open(peer, (_ON_DEVICE, name))
        except LookupError:
            return self._host.open(peer, name)
        assert told is not None
        number, start, nbytes, dtype = json.loads(told.numpy().tobytes())
        segment = self._segments[number] if peer == self.rank else self._segment_of(peer, number)
        self._read_here.add((peer, name))
        return segment[start : start + nbytes].view(getattr(torch, dtype)), note

    def _segment_of(self, peer: int, number: int) -> torch.Tensor:
        """Return a segment of a peer's, mapped once."""
        if (peer, number) not in self._mapped:
            _, told = self._host.open(peer, (_SEGMENT, number))
            assert isinstance(told, tuple)
            handle, nbytes = told
            self._mapped[peer, number] = self._memory.map(handle, nbytes)
        return self._mapped[peer, number]

    def close(self, peer: int, name: Hashable) -> None:
        if (peer, name) not in self._read_here:
            self._host.close(peer, name)
            return
        self._memory.finish()
        self._read_here.discard((peer, name))
        self._host.close(peer, (_ON_DEVICE, name))

    def signal(self, lane: int, value: int, note: object = None) -> None:
        self._memory.finish()
        self._host.signal(lane, value, note)

    def noted(self, peer: int, lane: int, value: int) -> object:
        return self._host.noted(peer, lane, value)

    def holds(self, condition: Condition) -> bool:
        return self._host.holds(self._on_host(condition))

    def _on_host(self, condition: Condition) -> Condition:
        """Return the same condition of the host's memory."""
        if isinstance(condition, Read) and condition.name in self._places:
            return Read((_ON_DEVICE, condition.name))
        return condition

    def wait(self, conditions: Sequence[tuple[Fabric, Condition]], about: object) -> None:
        self._host.wait(_all_on_host(conditions), about)

    def pause(self, about: object, conditions: Sequence[tuple[Fabric, Condition]] = ()) -> None:
        self._host.pause(about, _all_on_host(conditions))

    def give_up(self, error: BaseException) -> None:
        self._host.give_up(error)

    def abort(self) -> None:
        self._host.abort()

    def leave(self) -> None:
        if self._has_left:
            return
        self._has_left = True
        is_unmapped = False
        try:
            self._memory.finish()
            self._unmap_all()
            is_unmapped = True
        finally:
            if is_unmapped:
                leave_unmapped(self._host)
            else:
                # The peers are not told that they may free what may be mapped here still: they keep it.
                self._host.leave()
            free_when_unmapped(self._host, self._segments)

    def _unmap_all(self) -> None:
        """Give back all that is mapped of peers, also where one of them fails; raise the first error then."""
        errors = []
        while self._mapped:
            (peer, number), memory = self._mapped.popitem()
            try:
                self._memory.unmap(memory)
            except Exception as error:
                error.add_note(f"it was segment {number} of rank {peer} of the group, mapped by rank {self.rank}")
                errors.append(error)
        if errors:
            raise errors[0]


def leave_unmapped(host: HostFabric) -> None:
    """Leave, and let the peers know that this rank has no memory of theirs mapped any more: then they may free it."""
    host.signal(_unmapped(host.size), 1)
    host.leave()


_kept: list[tuple[HostFabric, Segments]] = []
"""Of groups that this process has left, what peers may still have mapped."""

# The memory is the process's that has it: one that is forked frees none.
os.register_at_fork(after_in_child=_kept.clear)


def free_when_unmapped(host: HostFabric, segments: Segments) -> None:
    """Free this rank's segments once no peer has them mapped: now, or as another group is opened or left."""
    _kept.append((host, segments))
    free_what_is_unmapped()


def free_what_is_unmapped() -> None:
    """Free the segments of groups that were left, which no peer has mapped any more: it has left, or its process ended.

    What a process has mapped its kernel takes back before others see that it has ended.
    """
    for kept in list(_kept):
        host, segments = kept
        gone = {host.rank, *host.dead()}
        others = [rank for rank in range(host.size) if rank not in gone]
        if host.holds(Raised(others, _unmapped(host.size), 1)):
            try:
                _kept.remove(kept)
            except ValueError:
                # Another thread frees it.
                continue
            segments.free()


def _unmapped(size: int) -> int:
    """Return the lane by which a rank says that it has no peer's memory mapped any more: the last of all."""
    return EXTRA_LANES + size - 1


def _all_on_host(conditions: Sequence[tuple[Fabric, Condition]]) -> list[tuple[Fabric, Condition]]:
    return [
        (each._host, each._on_host(condition)) if isinstance(each, PeerFabric) else (each, condition)
        for each, condition in conditions
    ]


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype is torch.uint8 else tensor.view(torch.uint8)
