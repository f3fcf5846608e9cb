"""A list of calls as a program that stands alone: plain torch, `devices`, and what each rank must find."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from devices.testing.conformance.calls import REDUCING, Call, laid_out, make
from devices.testing.conformance.expected import Answer, answer, in_order
from devices.testing.conformance.programs import Program, Wrong, keywords_of
from devices.testing.conformance.source import in_words

_FEW = 24
"""As many elements are written out."""


def check(rank: int, found: torch.Tensor, expected: list[complex], within: list[float], places: list[int]) -> None:
    flat = found.detach().cpu().resolve_conj().flatten()[places].tolist()
    for place, f, e, w in zip(places, flat, expected, within, strict=True):
        right = f == e or abs(f - e) <= w or (f != f and e != e)
        assert right, f"rank {rank}, flat element {place}: found {f}, expected {e}" + (f" within {w}" if w else "")


def written(program: Program, backend: str, wrong: Wrong) -> str:
    """Return a program that makes the calls of `program` and ends with exit status 1 if a result is not as it must be.

    Args:
        program: the calls.
        backend: the name of what the world is opened on.
        wrong: what was found to be wrong, which the program looks for.
    """
    body = list(_body(program, wrong))
    text = "\n".join(body)
    used = [function for function in (make, laid_out, check) if f"{function.__name__}(" in text]
    standard = ["import math", ""] if make in used else []
    numbers = [name for name in ("inf", "nan") if name in text]
    lines = [
        *in_words(program.size),
        *([f"from math import {', '.join(numbers)}", ""] if numbers else []),
        *standard,
        "import torch",
        *(["import torch.distributed as dist"] if "dist." in text else []),
        "import devices",
        "",
        "",
    ]
    for function in used:
        lines += [_source(function), "", ""]
    return "\n".join([*lines, f"with devices.init({backend!r}, timeout=30) as world:", *body, ""])


def _source(function: Any) -> str:
    lines = inspect.getsource(function).rstrip().splitlines()
    signature = lines[0].partition("(")
    names = ", ".join(inspect.signature(function).parameters)
    return "\n".join([f"{signature[0]}({names}):", *lines[1:]])


def _body(program: Program, wrong: Wrong) -> Iterator[str]:
    for number, parts in enumerate(program.groups, 1):
        for at, part in enumerate(parts):
            yield f"    group{number}_{at} = dist.new_group({list(part)})"
    due: dict[int, list[list[str]]] = {}
    last = len(program.calls)
    for place, call in enumerate(program.calls):
        for lines in due.pop(place, ()):
            yield from lines
        for at, part in enumerate(program.parts(call)):
            group = f"group{call.group}_{at}" if call.group else ""
            is_wrong = place == wrong.place and (wrong.rank in part or wrong.rank < 0)
            start, finish = _call(place, call, part, group, wrong if is_wrong else None)
            indent = "    " if len(part) == program.size else "        "
            if not start:
                continue
            condition = [] if len(part) == program.size else [f"    if world.rank in {part}:"]
            yield from (*condition, *(indent + line for line in start))
            ending = [*condition, *(indent + line for line in finish)] if finish else []
            if call.wait:
                due.setdefault(min(place + call.wait, last), []).insert(0, ending)
            else:
                yield from ending[len(condition) :]
    for place in sorted(due):
        for lines in due[place]:
            yield from lines


def _call(place: int, call: Call, part: Sequence[int], group: str, wrong: Wrong | None) -> tuple[list[str], list[str]]:
    """Return the lines that start a call on the ranks of one group, and those that look at what it gives."""
    size = len(part)
    result = f"work{place}" if call.wait else f"found{place}"
    if call.verb == "send" and size == 1:
        return [], []
    if call.verb == "barrier":
        keyword = ", async_op=True" if call.wait else ""
        arguments = (group + keyword).removeprefix(", ")
        return [f"{result} = devices.barrier({arguments})"], [f"{result}.wait()"] if call.wait else []
    made = [call.made(rank, size, part[rank]) for rank in range(size)]
    xs = [laid_out(each, call.layout) for each in made]
    answers = {part[rank]: answer(call, xs, rank) for rank in range(size)}
    there = {rank: each for rank, each in answers.items() if each is not None}
    x = f"x{place}"
    start = [f"{x} = {_given(call, part)}"]
    if wrong is not None and wrong.about == "input":
        start.append(f"before = {x}.clone()")
    finish = [f"found{place} = work{place}.result()"] if call.wait else []
    if wrong is not None and wrong.about == "work":
        finish.insert(0, f"assert isinstance(work{place}, devices.Work), f'found {{work{place}!r}}, expected a Work'")
    if call.verb == "send":
        return _message(call, x, result, part, group, start, finish, _looks(place, call, there, wrong))
    given = x
    if call.verb == "scatter":
        given = f"{x} if world.rank == {part[call.root % size]} else None"
    keywords = [f"{name}={value!r}" for name, value in keywords_of(call, 0, size).items()]
    if call.out:
        lines, out = _out(call, x, place, there)
        start += lines
        keywords.append(f"out={out}")
    arguments = ", ".join([given, *([group] if group else []), *keywords])
    start.append(f"{result} = devices.{call.verb}({arguments})")
    looks = _looks(place, call, there, wrong)
    if len(there) < size:
        ranks = sorted(there)
        looks = [
            f"if world.rank in {ranks}:",
            *(f"    {line}" for line in looks),
            "else:",
            f"    assert found{place} is None, f'found {{found{place}}}, expected None'",
        ]
    if wrong is not None and wrong.about == "bits":
        looks += [
            f"everyone = devices.all_gather(found{place}.reshape(1, -1), {group or None})",
            "same = [torch.equal(other.view(torch.uint8), everyone[0].view(torch.uint8)) for other in everyone]",
            "assert all(same), f'the bits differ by rank: {everyone}'",
        ]
    if wrong is not None and wrong.about == "input":
        looks.append(f"assert torch.equal({x}, before), f'the input was {{before}} and is {{{x}}}'")
    return start, finish + looks


def _message(
    call: Call, x: str, result: str, part: Sequence[int], group: str, start: list[str], finish: list[str],
    looks: list[str],
) -> tuple[list[str], list[str]]:  # fmt: skip
    size = len(part)
    source, to = call.ends(size)
    arguments = [x, *([group] if group else [])]
    lines = []
    for rank, verb in ((source, "send"), (to, "recv")):
        keywords = [f"{name}={value!r}" for name, value in keywords_of(call, rank, size).items()]
        lines.append(f"{'if' if verb == 'send' else 'elif'} world.rank == {part[rank]}:")
        lines.append(f"    {result} = devices.{verb}({', '.join([*arguments, *keywords])})")
    waits = (
        [f"if world.rank in {sorted([part[source], part[to]])}:", *(f"    {line}" for line in finish)] if finish else []
    )
    return [*start, *lines], [*waits, f"if world.rank == {part[to]}:", *(f"    {line}" for line in looks)]


def _given(call: Call, part: Sequence[int]) -> str:
    """Return the expression of what each rank gives."""
    size = len(part)
    made = [call.made(rank, size, part[rank]) for rank in range(size)]
    shapes = {part[rank]: tuple(each.shape) for rank, each in enumerate(made)}
    if max(each.numel() for each in made) > _FEW:
        text = f"make(world.rank, {call.seed}, {_by_rank(shapes)}, torch.{call.dtype}, {call.data!r})"
    else:
        as_bytes = _needs_bytes(call, made[0].dtype)
        values = {
            part[rank]: (in_order(each).view(torch.uint8) if as_bytes else each.flatten()).tolist()
            for rank, each in enumerate(made)
        }
        text = f"torch.tensor({_by_rank(values)}, dtype=torch.{'uint8' if as_bytes else call.dtype})"
        text += f".view(torch.{call.dtype})" if as_bytes else ""
        if len(set(shapes.values())) > 1 or made[0].ndim != 1:
            text += f".view({_by_rank(shapes)})"
    text += ".to(world.device)"
    return text if call.layout == "contiguous" else f"laid_out({text}, {call.layout!r})"


def _out(call: Call, x: str, place: int, there: dict[int, Answer]) -> tuple[list[str], str]:
    if call.out == "input" and all(call.shape == each.shape for each in there.values()):
        return [], x
    shapes = _by_rank({rank: each.shape for rank, each in there.items()})
    if len({each.shape for each in there.values()}) > 1:
        shapes = shapes.replace("[world.rank]", ".get(world.rank, ())")
    kind = f"dtype=torch.{call.dtype}, device=world.device"
    if call.out == "gaps":
        return [f"both{place} = torch.zeros((*{shapes}, 2), {kind})"], f"both{place}[..., 0]"
    layout = call.out if call.out in ("transposed", "offset") else ""
    zeros = f"torch.zeros({shapes}, {kind})"
    return [f"out{place} = laid_out({zeros}, {layout!r})" if layout else f"out{place} = {zeros}"], f"out{place}"


def _looks(place: int, call: Call, there: dict[int, Answer], wrong: Wrong | None) -> list[str]:
    """Return the lines that compare a result with what it must be, on ranks that have one."""
    if not there:
        return []
    name = f"found{place}"
    if wrong is not None and wrong.about == "margin":
        return [f"assert not {_bytes_of(f'both{place}[..., 1]')}.any(), 'memory between the elements was written'"]
    shapes = _by_rank({rank: each.shape for rank, each in there.items()})
    lines = [f"assert ({name}.shape, {name}.dtype) == ({shapes}, torch.{call.dtype}), f'found {{{name}}}'"]
    if wrong is not None and wrong.about == "out" and call.out:
        given = {"input": "x", "gaps": "both"}.get(call.out, "out")
        lines.append(f"assert {name}.data_ptr() == {given}{place}.data_ptr(), 'out= is not what was returned'")
    dtype = getattr(torch, call.dtype)
    as_bytes = call.verb not in REDUCING and _needs_bytes(call, dtype)
    places, values, bounds = dict[int, list[int]](), dict[int, list[Any]](), dict[int, list[float]]()
    for rank, each in there.items():
        at = _places(each, wrong)
        places[rank] = at
        if as_bytes:
            width = dtype.itemsize
            places[rank] = [element * width + byte for element in at for byte in range(width)]
            assert each.bits is not None
            values[rank] = in_order(each.bits).view(torch.uint8)[places[rank]].tolist()
            bounds[rank] = [0] * len(places[rank])
        elif each.bits is not None:
            values[rank] = in_order(each.bits)[at].tolist() if at else []
            bounds[rank] = [0] * len(at)
        else:
            to_python = complex if dtype.is_complex else float
            values[rank] = [to_python(each.value.reshape(-1)[one]) for one in at]
            bounds[rank] = [float(each.bound.reshape(-1)[one]) for one in at]
    shown = _bytes_of(name) if as_bytes else name
    lines.append(f"check(world.rank, {shown}, {_by_rank(values)}, {_by_rank(bounds)}, {_by_rank(places)})")
    return lines


def _bytes_of(name: str) -> str:
    # contiguous() leaves a single element as it is, and what steps over the next one is not viewed as bytes.
    return f"{name}.cpu().resolve_conj().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)"


def _needs_bytes(call: Call, dtype: torch.dtype) -> bool:
    """Return whether numbers would not tell all of the data."""
    is_number = dtype.is_floating_point or dtype.is_complex
    return is_number and (call.data == "bits" or dtype.itemsize == 1)


def _places(expected: Answer, wrong: Wrong | None) -> list[int]:
    count = 1
    for length in expected.shape:
        count *= length
    if count <= _FEW:
        return list(range(count))
    at = wrong.at if wrong is not None else ()
    return sorted({0, count - 1, *(place for place in at if place < count)})


def _by_rank(values: dict[int, Any]) -> str:
    """Return an expression for a value that may differ by rank."""
    texts = {rank: repr(value) for rank, value in values.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return f"{{{', '.join(f'{rank}: {text}' for rank, text in texts.items())}}}[world.rank]"
