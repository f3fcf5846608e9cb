"""Checks of one law each, on one world of the subject that is large enough for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from devices.testing.conformance.check import Check, Tally

if TYPE_CHECKING:
    from devices.testing.conformance.subject import Subject

NO_MESSAGES = "has no point-to-point messages"
"""What the core says of a backend whose communicator has no `exchange`."""


def law(
    name: str,
    sentence: str,
    function: Callable[..., None],
    *,
    size: int = 3,
    messages: bool = False,
    dtypes: Sequence[str] = ("float32",),
    cases: Callable[[Subject], Sequence[tuple[object, ...]]] = lambda _: ((),),
    timeout: float | None = None,
) -> Check:
    """Return the check that `function(world, *case)` raises nothing, on one world for each case.

    Args:
        name: the check's.
        sentence: the law.
        function: as for `on_ranks`.
        size: of how many ranks the world is, where that is legal; if not, of as few as can be, two or more.
        messages: whether a backend without messages between two ranks is right to refuse it.
        dtypes: what the function's tensors are of; a backend that does not have them is not looked at.
        cases: returns the cases for a subject.
        timeout: seconds that one world may take; the subject's if not said.
    """

    def run(subject: Subject, tally: Tally) -> None:
        ranks = size_of(subject, size)
        if ranks is None:
            tally.skip(f"needs 2 ranks or more, and there may be {subject.sizes_in_words}")
            return
        if missing := [dtype for dtype in dtypes if not has(subject, dtype)]:
            tally.skip(f"needs {' and '.join(missing)}, which the backend does not declare")
            return
        for case in cases(subject):
            before = len(tally.failed)
            tally.hold(subject, function, ranks, *case, timeout=timeout)
            if len(tally.failed) > before:
                if messages and NO_MESSAGES in tally.failed[-1].what:
                    tally.failed.pop()
                    tally.refuse("messages between two ranks")
                return

    return Check(name, sentence, run)


def size_of(subject: Subject, wanted: int = 3) -> int | None:
    """Return of how many ranks a world for a law is to be; None if there is no legal one of two or more."""
    legal = [size for size in subject.sizes if size > 1]
    return wanted if wanted in legal else min(legal, default=None)


def has(subject: Subject, dtype: str) -> bool:
    """Return whether the subject declares a dtype."""
    import torch

    return getattr(torch, dtype) in subject.capabilities.dtypes
