"""One law that a backend must keep, and the account of how it was kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from devices.testing.conformance.subject import Subject


class Broken(Exception):  # noqa: N818 - says what happened
    """A law does not hold.

    Args:
        what: what was found and what was expected.
        program: a program that shows it by itself: exit status 1 where the law is broken.
    """

    def __init__(self, what: str, program: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.program = program


class Skipped(Exception):  # noqa: N818 - says what happened
    """What a law is about is not here; the message names what is missing."""


@final
@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that is wrong.

    Args:
        what: what was found and what was expected.
        program: a program that shows it by itself, with the command that runs it in its first lines.
    """

    what: str
    program: str | None = None


@final
@dataclass(slots=True)
class Tally:
    """What one check has found out so far.

    Args:
        proved: how many things were as they must be.
        refused: what was refused, rightly: the backend has declared that it cannot.
        skipped: what could not be looked at, and what is missing for it.
        failed: what is wrong.
    """

    proved: int = 0
    refused: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def prove(self, count: int = 1) -> None:
        """Count what was as it must be."""
        self.proved += count

    def refuse(self, what: str) -> None:
        """Note what was refused, rightly."""
        self.refused.append(what)

    def skip(self, reason: str) -> None:
        """Note what could not be looked at: "needs 2 devices, found 1"."""
        self.skipped.append(reason)

    def fail(self, what: str, program: str | None = None) -> None:
        """Note what is wrong, and a program that shows it by itself."""
        self.failed.append(Failure(what, program))

    def hold(
        self, subject: Subject, law: Callable[..., None], size: int, *args: object, timeout: float | None = None
    ) -> bool:
        """Run `law(world, *args)` on `size` ranks, and note what came of it; return whether it holds."""
        try:
            subject.hold(law, size, *args, timeout=timeout)
        except Broken as broken:
            self.fail(broken.what, broken.program)
            return False
        except Skipped as skipped:
            self.skip(str(skipped))
            return True
        self.prove()
        return True


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One law.

    Args:
        name: "verbs.all_reduce", say: the part before the dot is its chapter.
        law: what holds of every backend, in one sentence; the documentation's table has it.
        run: looks whether it holds of a subject, and notes in a tally what it finds.
    """

    name: str
    law: str
    run: Callable[[Subject, Tally], None]


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check has found out.

    Args:
        check: the check.
        tally: what it noted.
        seconds: how long it took.
    """

    check: Check
    tally: Tally
    seconds: float

    @property
    def is_proved(self) -> bool:
        """Whether nothing is wrong."""
        return not self.tally.failed


def on_ranks(
    name: str, law: str, function: Callable[..., None], *sizes: int, cases: tuple[tuple[object, ...], ...] = ((),)
) -> Check:
    """Return the check that `function(world, *case)` raises nothing, for each of `cases` on worlds of each of `sizes`.

    Args:
        name: the check's.
        law: its sentence.
        function: at the top level of a module, using nothing but torch, `devices`, the standard library and what it
            defines inside itself, for its source is what the author of a broken backend is shown. It raises an
            AssertionError that says what was found and what was expected. Each rank calls it, on `world.device`.
        sizes: of the worlds; those that the backend does not allow are left out. 2 and 3 if none are given.
        cases: plain data whose `repr` is Python: numbers, strings, tuples.
    """

    def run(subject: Subject, tally: Tally) -> None:
        wanted = sizes or (2, 3)
        legal = [size for size in wanted if size in subject.sizes]
        if not legal:
            tally.skip(f"needs {' or '.join(map(str, wanted))} ranks, and there may be {subject.sizes_in_words}")
        for size in legal:
            for case in cases:
                # The next case would most often show the same fault once more.
                if not tally.hold(subject, function, size, *case):
                    return

    return Check(name, law, run)
