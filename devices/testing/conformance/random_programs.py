"""Random programs: verbs in any order, over any groups, of any dtypes, shapes and layouts, waited for at any time.

hypothesis draws them, the same ones for the same seed, and makes one that fails small. They are run many to a world;
only for one that fails is a world opened for each attempt at a smaller one.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch

from devices.testing.conformance.calls import JOINING, REDUCING, SPLITTING, VERBS, Call
from devices.testing.conformance.check import Check, Tally
from devices.testing.conformance.expected import has_meaning
from devices.testing.conformance.own import has_messages
from devices.testing.conformance.programs import Program, Wrong
from devices.testing.conformance.smaller import shown
from devices.testing.conformance.subject import Subject
from devices.testing.conformance.tried import Ended, first_wrong, founds_of, wrongs
from devices.testing.conformance.verbs import dtypes_of

_COUNT, _QUICK = 120, 24
"""How many programs are drawn."""

_CALLS = 8
_SECONDS = 25.0
"""How long a program that fails is made smaller."""

_OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")


def look(subject: Subject, tally: Tally) -> None:
    """Run the programs, and note what came of them."""
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        tally.skip("needs hypothesis, which is not installed: pip install 'devices[testing]'")
        return
    programs = drawn(subject)
    if not programs:
        tally.skip(f"needs a world of two ranks or more, and there may be {subject.sizes_in_words}")
    for size, alike in itertools.groupby(sorted(programs, key=lambda each: each.size), key=lambda each: each.size):
        batch = list(alike)
        first: tuple[Program, Wrong] | None = None
        try:
            for program, founds in zip(batch, founds_of(subject, batch, 2 * subject.timeout), strict=True):
                if wrong := wrongs(program, founds):
                    first = first or (program, wrong[0])
                else:
                    tally.prove()
        except Ended as ended:
            first = batch[ended.program], Wrong(ended.place, -1, ended.what, "end")
        if first is not None:
            tally.fail(*shown(subject, *_smallest(subject, size, *first)))
            return


def drawn(subject: Subject) -> list[Program]:
    """Return the programs of a subject's seed."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    sizes = [size for size in subject.sizes if size > 1]
    dtypes = dtypes_of(subject)
    found: list[Program] = []
    if not sizes or not dtypes:
        return found

    @seed(subject.seed)
    @settings(
        max_examples=_QUICK if subject.quick else _COUNT,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(program=_programs(subject, sizes, dtypes))
    def draw(program: Program) -> None:
        found.append(program)

    draw()
    return list(dict.fromkeys(found))


def _smallest(subject: Subject, size: int, program: Program, wrong: Wrong) -> tuple[Program, Wrong]:
    """Return the smallest program that hypothesis finds to fail, beginning from those it has drawn."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    end, patience = time.monotonic() + min(_SECONDS, subject.timeout), min(10.0, subject.timeout)
    # What was found once holds: where time is over, nothing new is tried, and nothing that is known changes.
    known: dict[Program, Wrong | None] = {}
    last = [(program, wrong)]

    @seed(subject.seed)
    @settings(
        max_examples=_QUICK if subject.quick else _COUNT,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(candidate=_programs(subject, [each for each in subject.sizes if each > 1], dtypes_of(subject)))
    def fails(candidate: Program) -> None:
        if candidate not in known:
            is_one_of_the_right = not any(known.values()) and candidate != program
            over = time.monotonic() > end
            known[candidate] = None if over or is_one_of_the_right else first_wrong(subject, candidate, patience)
        if (found := known[candidate]) is not None:
            last[0] = candidate, found
            raise AssertionError(found.what)

    # Whatever hypothesis makes of it, `last` holds what failed last.
    with contextlib.suppress(Exception):
        fails()
    return last[0]


def _programs(subject: Subject, sizes: Sequence[int], dtypes: Sequence[str]) -> Any:
    """Return hypothesis' strategy of programs."""
    from hypothesis import strategies as st

    can = subject.capabilities
    meaningful = {op: [dtype for dtype in dtypes if has_meaning(op, getattr(torch, dtype))] for op in _OPS}
    ops = [op for op in _OPS if meaningful[op]]
    verbs = [verb for verb in VERBS if (ops or verb not in REDUCING) and (verb != "send" or has_messages(subject))]

    @st.composite
    def parts(draw: Any, size: int) -> Any:
        ranks = draw(st.permutations(range(size)))
        cuts = sorted(draw(st.sets(st.integers(1, size - 1), max_size=2)))
        found = [tuple(sorted(ranks[start:end])) for start, end in itertools.pairwise([0, *cuts, size])]
        return tuple(part for part in found if len(part) == 1 or can.allows_group_of(len(part)))

    @st.composite
    def calls(draw: Any, groups: int) -> Any:
        verb = draw(st.sampled_from(verbs))
        wait = draw(st.integers(0, 3))
        group = draw(st.integers(0, groups))
        if verb == "barrier":
            return Call(verb, group, wait=wait)
        op = draw(st.sampled_from(ops)) if verb in REDUCING else "sum"
        dtype = draw(st.sampled_from(meaningful[op] if verb in REDUCING else dtypes))
        least = 1 if verb in SPLITTING else 0
        shape = tuple(draw(st.lists(st.integers(0, 4), min_size=least, max_size=3)))
        shares = bool(shape) and verb in (*JOINING, *SPLITTING)
        return Call(
            verb,
            group,
            op,
            dtype,
            shape,
            draw(st.sampled_from(("numbers", "specials") if verb in REDUCING else ("numbers", "bits"))),
            draw(st.integers(0, 9)),
            draw(st.sampled_from(("contiguous", "transposed", "gaps", "offset", "expanded", "conjugated"))),
            draw(st.integers(-len(shape), len(shape) - 1)) if shares else 0,
            tuple(draw(st.lists(st.integers(0, 3), max_size=3))) if shares else (),
            draw(st.integers(0, 3)),
            draw(st.integers(1, 3)),
            draw(st.sampled_from(("", "contiguous", "gaps", "transposed", "offset"))),
            wait,
        )

    @st.composite
    def programs(draw: Any) -> Any:
        size = draw(st.sampled_from(sizes))
        most = 2 if can.max_groups is None else min(2, max(0, can.max_groups - 1) // 2)
        groups = tuple(each for each in draw(st.lists(parts(size), max_size=most)) if each)
        found = draw(st.lists(calls(len(groups)), min_size=1, max_size=_CALLS))
        return Program(size, tuple(found), groups)

    return programs()


CHECKS: tuple[Check, ...] = (
    Check(
        "random.programs",
        "Verbs in any order, over any groups, of any dtypes, shapes and layouts, waited for in any order, give what "
        "plain torch gives.",
        look,
    ),
)
