"""Each kind of misuse, on processes: no rank is silent, none hangs, all say what is wrong, on which rank and where."""

from __future__ import annotations

import ending_cases
import mismatch_cases
import opening_cases
import pytest
import rank_endings
import use_cases
from judging import Case, Ends, complaints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CASES = {**mismatch_cases.CASES, **ending_cases.CASES, **use_cases.CASES, **opening_cases.CASES}


@pytest.mark.parametrize("name", CASES)
def test_each_rank_says_what_is_wrong(name: str) -> None:
    case = CASES[name]
    if found := complaints(case, outcome(case)):
        pytest.fail("\n".join(found), pytrace=False)


def outcome(case: Case) -> list[rank_endings.Ending]:
    stopped = [rank for rank in range(case.ranks) if case.expected(rank) == Ends("hung")]
    args = () if case.opens else (case.timeout,)
    plan = rank_endings.Plan(case.body, args, case.timeout, case.opens, case.stays, case.variables)
    return rank_endings.run(case.ranks, plan, but=stopped, agent=case.agent)
