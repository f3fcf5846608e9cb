"""Programs that are lists of calls: run on each rank, and each result compared with what it must be."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist

import devices
from devices.testing.conformance.calls import REDUCING, Call, Parts, laid_out, part_of
from devices.testing.conformance.expected import Answer, answer, in_order


@final
@dataclass(frozen=True, slots=True)
class Program:
    """What all ranks of a world do.

    Args:
        size: of the world.
        calls: in the order in which each rank makes those of its groups.
        groups: those beside the world, number 1 and on: each a set of parts, every rank calling over its own.
    """

    size: int
    calls: tuple[Call, ...]
    groups: tuple[Parts, ...] = ()

    def parts(self, call: Call) -> Parts:
        """Return the groups that a call is made over, each by its world ranks."""
        return self.groups[call.group - 1] if call.group else (tuple(range(self.size)),)


@final
@dataclass(frozen=True, slots=True)
class Wrong:
    """One result that is wrong on one rank.

    Args:
        place: of the call in the program.
        rank: of the world.
        what: what was found, and what was expected.
        about: "result"; "input", that was changed; "margin", memory between the elements of `out=`; "out", that is not
            what was returned; "bits", that differ by rank; "work", that is none.
        at: the flat places of the result that are wrong, or the first of them.
    """

    place: int
    rank: int
    what: str
    about: str = "result"
    at: tuple[int, ...] = ()


@final
@dataclass(slots=True)
class Found:
    """What one rank found in one program.

    Args:
        wrong: the results that are wrong.
        right: how many were right, by the place of their call.
        digests: of results that must be of the same bits on all ranks of a group, by the place of their call.
    """

    wrong: list[Wrong] = field(default_factory=list)
    right: dict[int, int] = field(default_factory=dict)
    digests: dict[int, int] = field(default_factory=dict)


_PLACE = struct.Struct("<qq")


class CallError(AssertionError):
    """A call raised; the message says which one."""


def run_programs(world: Any, programs: Sequence[Program], progress: str | None = None) -> list[Found]:
    """Run programs one after the other on this rank; return what it found in each.

    Args:
        world: the rank's own.
        programs: the same on every rank.
        progress: a folder in which a file of the rank's name holds the program and the call that it is at.
    """
    # torch says of complex32, once in a process, that not all its operators have it.
    warnings.filterwarnings("ignore", "ComplexHalf support", UserWarning)
    founds = []
    with Progress(progress, world.rank) as at:
        for number, program in enumerate(programs):
            founds.append(_Run(world, program, partial(at.write, number)).run())
    return founds


@final
class Progress:
    """Where a rank is, in a file that stays when the rank dies."""

    def __init__(self, folder: str | None, rank: int) -> None:
        self._file = None if folder is None else (Path(folder) / str(rank)).open("wb", buffering=0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, program: int, call: int) -> None:
        """Note the call that is about to be made or waited for."""
        if self._file is not None:
            os.pwrite(self._file.fileno(), _PLACE.pack(program, call), 0)

    @staticmethod
    def read(folder: str, size: int) -> tuple[int, int]:
        """Return the least place that any rank is at."""
        texts = [path.read_bytes() for rank in range(size) if (path := Path(folder) / str(rank)).exists()]
        return min((_PLACE.unpack(text) for text in texts if text), default=(0, 0))


def unlike(program: Program, founds: Sequence[Found]) -> list[Wrong]:
    """Return the results that were to be of the same bits on all ranks of a group and are not."""
    wrong = []
    for place, call in enumerate(program.calls):
        for part in program.parts(call):
            digests = [founds[rank].digests.get(place) for rank in part]
            for rank, digest in zip(part, digests, strict=True):
                if None not in digests and digest != digests[0]:
                    what = f"the result is not of the same bits on rank {rank} as on rank {part[0]} of the world"
                    wrong.append(Wrong(place, rank, what, "bits"))
                    break
    return wrong


@final
class _Run:
    """One program on one rank."""

    def __init__(self, world: Any, program: Program, at: Callable[[int], None]) -> None:
        self._world = world
        self._at = at
        self._program = program
        self._found = Found()
        self._device = world.device

    def run(self) -> Found:
        made = [[dist.new_group(list(part)) for part in parts] for parts in self._program.groups]
        due: dict[int, list[Callable[[], None]]] = {}
        last = len(self._program.calls)
        for place, call in enumerate(self._program.calls):
            for finish in due.pop(place, ()):
                finish()
            self._at(place)
            parts = self._program.parts(call)
            if (part := part_of(parts, self._world.rank)) is None:
                continue
            group = made[call.group - 1][parts.index(part)] if call.group else None
            finish = self._start(place, call, group, part)
            # Of those that are due at once, the last to be started is waited for first.
            due.setdefault(min(place + call.wait, last), []).insert(0, finish) if call.wait else finish()
        for place in sorted(due):
            for finish in due[place]:
                finish()
        for parts, groups in zip(self._program.groups, made, strict=True):
            for part, group in zip(parts, groups, strict=True):
                if self._world.rank in part:
                    dist.destroy_process_group(group)
        return self._found

    def _start(self, place: int, call: Call, group: Any, part: tuple[int, ...]) -> Callable[[], None]:
        """Call the verb; return what waits for its result and looks at it."""
        size, rank = len(part), part.index(self._world.rank)
        if call.verb == "send" and (size == 1 or rank not in call.ends(size)):
            return lambda: None
        made = [call.made(other, size, part[other]) for other in range(size)]
        xs = [laid_out(each, call.layout) for each in made]
        expected = answer(call, xs, rank)
        x = laid_out(made[rank].clone().to(self._device), call.layout)
        out, margin = self._out(call, x, expected)
        try:
            started = _call(call, x, group, rank, size, out)
        except Exception as error:
            raise self._raised(place, call, error) from error

        def finish() -> None:
            self._at(place)
            try:
                result = self._waited(place, call, started)
            except Exception as error:
                raise self._raised(place, call, error) from error
            self._compare(place, call, result, expected, out)
            if out is not x and call.verb != "barrier":
                given = Answer(xs[rank].resolve_conj(), None, None, xs[rank].dtype, is_moved=True)
                if what := given.wrong(x.resolve_conj()):
                    self._note(place, f"the input was changed: {what}", "input")
            if margin is not None and bool(in_order(margin.cpu()).view(torch.uint8).any()):
                self._note(place, "memory between the elements of out= was written", "margin")

        return finish

    def _out(
        self, call: Call, x: torch.Tensor, expected: Answer | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return what to pass as `out=`, and the memory between its elements."""
        if not call.out or expected is None:
            return None, None
        if call.out == "input" and tuple(x.shape) == expected.shape:
            return x, None
        if call.out == "gaps":
            both = torch.zeros((*expected.shape, 2), dtype=expected.dtype, device=self._device)
            return both[..., 0], both[..., 1]
        out = torch.zeros(expected.shape, dtype=expected.dtype, device=self._device)
        return laid_out(out, call.out if call.out in ("transposed", "offset") else "contiguous"), None

    def _waited(self, place: int, call: Call, started: Any) -> Any:
        if not call.wait:
            return started
        if not isinstance(started, devices.Work):
            self._note(place, f"async_op=True returned {started!r}, not a devices.Work", "work")
            return started
        return started.result()

    def _compare(self, place: int, call: Call, result: Any, expected: Answer | None, out: torch.Tensor | None) -> None:
        if expected is None:
            if result is not None:
                self._note(place, f"found {result!r}, expected None on this rank")
            else:
                self._found.right[place] = 1
        elif what := expected.wrong(result):
            same = isinstance(result, torch.Tensor) and tuple(result.shape) == expected.shape
            at = expected.places(result) if same and result.dtype == expected.dtype else []
            self._note(place, what, at=tuple(at[:8]))
        elif out is not None and result is not out:
            self._note(place, "out= was given, and the result is another tensor", "out")
        elif result.device.type != self._device.type:
            self._note(place, f"the result is on {result.device}, expected {self._device}")
        else:
            self._found.right[place] = 1
            if call.verb == "all_reduce" and result.numel():
                data = in_order(result.detach().cpu()).view(torch.uint8)
                self._found.digests[place] = zlib.crc32(data.numpy().tobytes())

    def _note(self, place: int, what: str, about: str = "result", at: tuple[int, ...] = ()) -> None:
        self._found.wrong.append(Wrong(place, self._world.rank, what, about, at))

    def _raised(self, place: int, call: Call, error: Exception) -> CallError:
        return CallError(f"call {place} of {len(self._program.calls)}, {call}: {type(error).__name__}: {error}")


def _call(call: Call, x: torch.Tensor, group: Any, rank: int, size: int, out: torch.Tensor | None) -> Any:
    verb, keywords = call.verb, keywords_of(call, rank, size)
    if out is not None:
        keywords["out"] = out
    if verb == "barrier":
        return devices.barrier(group, **keywords)
    if verb == "send":
        return (devices.send if rank == call.ends(size)[0] else devices.recv)(x, group, **keywords)
    given = None if verb == "scatter" and rank != call.root % size else x
    return getattr(devices, verb)(given, group, **keywords)


def keywords_of(call: Call, rank: int, size: int) -> dict[str, Any]:
    """Return what a call passes by name beside `out=`, on a rank of a group."""
    verb, found = call.verb, dict[str, Any]()
    if verb in REDUCING and call.op != "sum":
        found["op"] = call.op
    if verb in ("broadcast", "scatter"):
        found["src"] = call.root % size
    if verb in ("reduce", "gather"):
        found["dst"] = call.root % size
    if verb in ("all_gather", "gather", "reduce_scatter", "scatter", "all_to_all"):
        if call.dim:
            found["dim"] = call.dim
        if call.sizes:
            found["sizes"] = call.swapped_sizes(size) if verb == "all_to_all" else call.part_sizes(size)
    if verb == "permute":
        found["pairs"] = call.pairs(size)
    if verb == "send":
        source, to = call.ends(size)
        found["dst" if rank == source else "src"] = to if rank == source else source
    if call.wait:
        found["async_op"] = True
    return found
