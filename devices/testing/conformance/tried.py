"""Programs of calls on ranks of a subject: what the ranks found, or the call at which they came to an end."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence

from devices.testing.conformance.check import Broken
from devices.testing.conformance.programs import Found, Program, Progress, Wrong, run_programs, unlike
from devices.testing.conformance.subject import Subject


class Ended(Exception):  # noqa: N818 - says what happened
    """Ranks raised, died or hung.

    Args:
        what: what they said.
        program: the number of the program that they were at.
        place: of the call in it.
    """

    def __init__(self, what: str, program: int, place: int) -> None:
        super().__init__(what)
        self.what = what
        self.program = program
        self.place = place


def founds_of(subject: Subject, programs: Sequence[Program], timeout: float | None = None) -> list[list[Found]]:
    """Run programs of one size in one world; return, for each of them, what each rank found.

    Raises:
        Ended: the ranks did not come to their end.
    """
    size = programs[0].size
    with tempfile.TemporaryDirectory(prefix="devices-") as folder:
        try:
            by_rank = subject.on_ranks(run_programs, size, list(programs), folder, timeout=timeout)
        except Broken as broken:
            number, place = Progress.read(folder, size)
            # Who raises says where; who waits for it may have gone less far.
            if said := re.search(r"call (\d+) of \d+, Call\(", broken.what):
                place = int(said[1])
            raise Ended(broken.what, number, place) from broken
    return [list(each) for each in zip(*by_rank, strict=True)]


def wrongs(program: Program, founds: Sequence[Found]) -> list[Wrong]:
    """Return all that is wrong, in the program's order."""
    found = [each for one in founds for each in one.wrong] + unlike(program, founds)
    return sorted(found, key=lambda each: (each.place, each.rank))


def first_wrong(subject: Subject, program: Program, timeout: float | None = None) -> Wrong | None:
    """Return the first result that is wrong, or the call that the ranks came to an end at; None if all is right."""
    try:
        [founds] = founds_of(subject, [program], timeout)
    except Ended as ended:
        return Wrong(ended.place, -1, ended.what, "end")
    return next(iter(wrongs(program, founds)), None)
