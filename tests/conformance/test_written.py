"""The programs that show a failure: they run by themselves, pass where all is right, and fail where it is not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from devices import _registry
from devices.testing._run import run_program
from devices.testing.conformance import hosts
from devices.testing.conformance.calls import VERBS, Call, laid_out
from devices.testing.conformance.expected import Answer, answer
from devices.testing.conformance.programs import Found, Program, Wrong
from devices.testing.conformance.random_programs import drawn
from devices.testing.conformance.smaller import smallest
from devices.testing.conformance.source import host_program, program_of
from devices.testing.conformance.subject import subject
from devices.testing.conformance.tried import first_wrong, founds_of, wrongs
from devices.testing.conformance.verbs import program_of as verbs_of
from devices.testing.conformance.written import written

# torch's own, once in a process, of complex32.
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")

NOTHING = Wrong(0, -1, "nothing")


def run_text(text: str, ranks: int) -> None:
    """Run a program on thread ranks, where it opens its own world."""
    code = compile(text, "program.py", "exec")
    run_program(lambda: exec(code, {"__name__": "__main__"}), ranks=ranks)


@pytest.mark.parametrize("number", range(0, 24, 2))
def test_a_random_program_that_is_right_passes_as_a_program_of_its_own(number: int) -> None:
    programs = drawn(subject("cpu", ranks="threads", seed=5, quick=True))
    program = programs[number % len(programs)]
    run_text(written(program, "cpu", NOTHING), program.size)


@pytest.mark.parametrize("verb", VERBS)
def test_calls_of_a_verb_that_are_right_pass_as_a_program_of_their_own(verb: str) -> None:
    program = verbs_of(subject("cpu", ranks="threads"), 3, (verb,))
    about = ("result", "input", "bits", "margin", "out", "work")
    for place in range(0, len(program.calls), 1 + len(program.calls) // 12):
        call = program.calls[place]
        kind = about[place % len(about)]
        if (
            (kind in ("margin", "out") and call.out != "gaps")
            or (kind == "bits" and verb != "all_reduce")
            or (kind == "work" and (not call.wait or verb in ("send", "barrier")))
            or (kind == "input" and (call.out == "input" or verb in ("barrier", "send")))
        ):
            kind = "result"
        alone = replace(program, calls=(call,))
        run_text(written(alone, "cpu", Wrong(0, -1, "nothing", kind)), program.size)


@pytest.mark.parametrize(
    "call",
    [
        Call("all_reduce", op="max", dtype="int64"),
        Call("all_reduce", op="avg", dtype="bfloat16", shape=(3, 2), layout="transposed", out="gaps"),
        Call("reduce_scatter", op="prod", shape=(2,), wait=1),
        Call("all_gather", dtype="uint8", shape=(2,), sizes=(3, 1)),
        Call("gather", dtype="float8_e5m2", data="bits", root=1),
        Call("scatter", dtype="complex64", shape=(2, 3), dim=1),
        Call("all_to_all", dtype="float32", shape=(40,), data="bits"),
        Call("broadcast", dtype="bool", shape=(9,), root=1),
        Call("permute", dtype="int16"),
        Call("send", dtype="float64"),
    ],
    ids=lambda call: call.verb,
)
def test_a_program_fails_where_the_answer_is_another(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each backend were wrong: what is expected is what other data would have given."""
    from devices.testing.conformance import written as module

    def other(call: Call, xs: list[torch.Tensor], rank: int) -> Answer | None:
        changed = replace(call, seed=call.seed + 1)
        ys = [laid_out(changed.made(of, len(xs), of), call.layout) for of in range(len(xs))]
        return answer(call, ys, rank)

    program = Program(2, (call,))
    run_text(written(program, "cpu", NOTHING), 2)
    monkeypatch.setattr(module, "answer", other)
    with pytest.raises(AssertionError, match="found"):
        run_text(written(program, "cpu", NOTHING), 2)


def test_a_program_of_a_call_that_is_wrong_is_made_small() -> None:
    large = verbs_of(subject("cpu", ranks="threads"), 4, ("broadcast", "all_reduce"))

    def look(program: Program) -> Wrong | None:
        """As if a product of whole numbers were wrong, and nothing else."""
        at = [at for at, call in enumerate(program.calls) if call.op == "prod" and call.dtype.startswith("int")]
        return Wrong(at[0], 0, "is wrong") if at else None

    place = next(at for at, call in enumerate(large.calls) if call.op == "prod" and call.dtype == "int16")
    small, wrong = smallest(large, Wrong(place, 0, "is wrong"), look)
    assert wrong == Wrong(0, 0, "is wrong")
    assert small == Program(2, (Call("all_reduce", op="prod", dtype="int64", shape=(1,)),))


def test_a_law_as_a_program_passes_where_it_holds_and_fails_where_it_does_not() -> None:
    run_text(program_of(total_is, "cpu", 2, 1), 2)
    with pytest.raises(AssertionError, match="found 2, expected 3"):
        run_text(program_of(total_is, "cpu", 2, 3), 2)


def total_is(world: Any, expected: int) -> None:
    import torch

    import devices

    expected = expected if expected == 3 else world.size
    found = int(devices.all_reduce(torch.tensor(1)))
    assert found == expected, f"found {found}, expected {expected}"


@pytest.mark.parametrize("law", ["holds", "does not"])
def test_a_law_of_a_host_as_a_program(law: str) -> None:
    text = host_program(is_named_cpu if law == "holds" else is_named_mail, _registry.backend("cpu"))
    run: Callable[[], None] = lambda: exec(compile(text, "program.py", "exec"), {})  # noqa: E731
    if law == "holds":
        run()
    else:
        with pytest.raises(AssertionError, match="the name is 'cpu'"):
            run()


HOST_LAWS = {
    name: law
    for name, law in vars(hosts).items()
    if inspect.isfunction(law) and list(inspect.signature(law).parameters) == ["backend"]
}


@pytest.mark.parametrize("name", HOST_LAWS)
def test_each_law_of_a_host_passes_as_a_program(name: str) -> None:
    assert len(HOST_LAWS) > 12
    text = host_program(HOST_LAWS[name], _registry.backend("cpu"))
    exec(compile(text, "program.py", "exec"), {"__name__": "__main__"})


def is_named_cpu(backend: Any) -> None:
    assert backend.name == "cpu", f"the name is {backend.name!r}"


def is_named_mail(backend: Any) -> None:
    assert backend.name == "mail", f"the name is {backend.name!r}"


def test_what_the_ranks_found_names_the_rank_and_the_element() -> None:
    wrong = Answer(torch.tensor([1, 2, 3]), None, None, torch.int64).wrong(torch.tensor([1, 5, 3]))
    assert wrong == "1 of 3 elements are wrong: flat [1] is 5, expected 2"


def test_programs_that_are_right_are_found_to_be_right() -> None:
    on = subject("cpu", ranks="threads")
    program = Program(2, (Call("all_reduce", dtype="bfloat16", shape=(9,)), Call("barrier", wait=1)))
    [founds] = founds_of(on, [program])
    assert wrongs(program, founds) == []
    assert [found.right for found in founds] == [{0: 1, 1: 1}] * 2
    assert first_wrong(on, program) is None


def test_results_that_differ_by_rank_are_wrong() -> None:
    program = Program(2, (Call("all_reduce"),))
    founds = [Found(right={0: 1}, digests={0: 1}), Found(right={0: 1}, digests={0: 2})]
    [wrong] = wrongs(program, founds)
    assert (wrong.place, wrong.rank, wrong.about) == (0, 1, "bits")
