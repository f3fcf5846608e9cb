"""The judge of the misuse cases finds what is wrong with how ranks end."""

from __future__ import annotations

import pytest
from judging import Case, Ends, Raises, Returns, complaints, marked
from rank_endings import Ending


def body() -> None:
    print()  # <0, 2>
    print()  # <1>


SAYS = Raises("MismatchError", ("rank 2", ("shape", "size"), "8"), never="CollectiveTimeoutError")
CASE = Case(body, SAYS, {1: Returns(7)}, ranks=3, lines=True)
TEXT = f"rank 2 differs in size: 8; {marked(body)[0]} {marked(body)[1]}"


def raised(said: str = TEXT, *kinds: str) -> Ending:
    return Ending("raised", kinds=kinds or ("MismatchError", "CollectiveError"), said=said)


RIGHT = [raised(), Ending("returned", 7), raised()]


def test_what_is_as_the_case_says_is_right() -> None:
    assert complaints(CASE, RIGHT) == []
    assert complaints(Case(body, Ends("hung")), [Ending("hung")]) == []


@pytest.mark.parametrize(
    ("rank", "ending", "said"),
    [
        (0, Ending("returned", 7), "was silent"),
        (0, Ending("hung"), "was to raise an error"),
        (2, Ending("exited", status=1), "was to raise an error"),
        (0, raised(TEXT, "CollectiveError"), "was to raise MismatchError"),
        (0, raised(TEXT, "MismatchError", "CollectiveTimeoutError"), "no CollectiveTimeoutError"),
        (0, raised(TEXT.replace("rank 2", "rank 21")), "did not say 'rank 2'"),
        (0, raised(TEXT.replace("size", "form")), "did not say ('shape', 'size')"),
        (0, raised(TEXT.replace("8;", "88;")), "did not say '8'"),
        (2, raised(TEXT.replace(marked(body)[1], "")), f"did not say '{marked(body)[1]}'"),
        (1, Ending("returned", 8), "was to return 7, not 8"),
        (1, raised(), "was to return 7"),
    ],
)
def test_each_thing_that_is_wrong_is_found_on_its_rank(rank: int, ending: Ending, said: str) -> None:
    endings = list(RIGHT)
    endings[rank] = ending
    [found] = complaints(CASE, endings)
    assert found.startswith(f"rank {rank} of 3 ")
    assert said in found
