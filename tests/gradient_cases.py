"""The gradients of the verbs, each as a program for one rank and as plain torch over all ranks' inputs at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from plain import part_of
from verb_cases import Tried, open_world

import devices
from devices.errors import ArgumentError, UnsupportedError

Tensor = torch.Tensor
Inputs = list[Tensor]


@dataclass(frozen=True)
class Case:
    """A verb, twice.

    Args:
        name: what it is.
        shapes: of one rank's inputs; of rank `rank` of `size`.
        verb: one rank's outputs, by us.
        plain: all ranks' outputs from all ranks' inputs, by torch.
        orders: how many times it can be differentiated.
    """

    name: str
    shapes: Callable[[int, int], Sequence[tuple[int, ...]]]
    verb: Callable[[Inputs, int, int], Sequence[Tensor]]
    plain: Callable[[list[Inputs]], list[list[Tensor]]]
    orders: int = 2
    dtypes: Sequence[torch.dtype] = field(default=(torch.float64, torch.complex128))


def inputs(case: Case, rank: int, size: int, dtype: torch.dtype) -> Inputs:
    """Return a rank's inputs, which require grad."""
    chance = torch.Generator().manual_seed(rank)
    return [torch.randn(s, generator=chance, dtype=dtype).requires_grad_() for s in case.shapes(rank, size)]


def _one(verb: Callable[..., Any], **arguments: Any) -> Callable[[Inputs, int, int], Sequence[Tensor]]:
    return lambda xs, rank, size: [verb(xs[0], **arguments)]


def _each(function: Callable[[list[Tensor], int], Tensor]) -> Callable[[list[Inputs]], list[list[Tensor]]]:
    """Return the plain verb where a function of all ranks' tensors gives that of each."""
    return lambda ranks: [[function([xs[0] for xs in ranks], rank)] for rank in range(len(ranks))]


def _even(size: int) -> list[int]:
    return [2] * size


def _uneven(size: int) -> list[int]:
    return [*range(size)][::-1]


def _table(size: int) -> list[list[int]]:
    return [[(of + to) % size for to in range(size)] for of in range(size)]


def _weight(rank: int) -> float:
    return 0.5 + rank


def _mean(xs: list[Tensor], _: int = 0) -> Tensor:
    weights = [_weight(rank) for rank in range(len(xs))]
    return sum(w * x for w, x in zip(weights, xs, strict=True)) / sum(weights)  # type: ignore[return-value]


def _pairs(size: int) -> list[tuple[int, int]]:
    """Not every rank sends, nor does every rank receive."""
    return [(rank, rank + 1) for rank in range(size - 1)]


def _same(rank: int, size: int) -> list[tuple[int, ...]]:
    return [(2 * size, 3)]


def _sum(xs: list[Tensor], _: int = 0) -> Tensor:
    return torch.stack(xs).sum(0)


def _lists(ranks: list[Inputs], function: Callable[[list[Tensor], int], Tensor]) -> list[list[Tensor]]:
    columns = list(zip(*ranks, strict=True))
    return [[function(list(column), rank) for column in columns] for rank in range(len(ranks))]


def _there_and_back(xs: Inputs, rank: int, size: int) -> list[Tensor]:
    return [devices.reduce_scatter(devices.all_gather(xs[0]) ** 2 * (rank + 1))]


def _plain_there_and_back(xs: list[Tensor], rank: int) -> Tensor:
    total = _sum([torch.cat(xs) ** 2 * (of + 1) for of in range(len(xs))])
    return total.chunk(len(xs))[rank]


def _scattered(xs: Inputs, rank: int, size: int, sizes: list[int] | None = None) -> list[Tensor]:
    return [devices.scatter(xs[0] if rank == 0 else None, src=0, sizes=sizes)]


CASES = (
    Case("all_reduce sum", _same, _one(devices.all_reduce), _each(_sum)),
    Case("all_reduce avg", _same, _one(devices.all_reduce, op="avg"), _each(lambda xs, _: torch.stack(xs).mean(0))),
    Case(
        "all_reduce weighted",
        _same,
        lambda xs, rank, size: [devices.all_reduce(xs[0], op="avg", weight=_weight(rank))],
        _each(_mean),
    ),
    Case(
        "all_reduce of a view", _same, lambda xs, rank, size: [devices.all_reduce(xs[0].t()[1:])],
        _each(lambda xs, _: _sum(xs).t()[1:]),
    ),
    Case(
        "all_reduce asynchronous",
        _same,
        lambda xs, rank, size: [devices.all_reduce(xs[0], async_op=True).result()],
        _each(_sum),
    ),
    Case(
        "all_reduce avg asynchronous",
        _same,
        lambda xs, rank, size: [devices.all_reduce(xs[0], op="avg", async_op=True).result()],
        _each(lambda xs, _: torch.stack(xs).mean(0)),
    ),
    Case(
        "all_reduce of a list", lambda rank, size: [(3,), (2, 2), ()],
        lambda xs, rank, size: devices.all_reduce(xs), lambda ranks: _lists(ranks, _sum),
    ),
    Case("all_gather", _same, _one(devices.all_gather), _each(lambda xs, _: torch.cat(xs))),
    Case("all_gather along dim 1", _same, _one(devices.all_gather, dim=1), _each(lambda xs, _: torch.cat(xs, 1))),
    Case(
        "all_gather of scalars", lambda rank, size: [()], _one(devices.all_gather), _each(lambda xs, _: torch.stack(xs))
    ),
    Case(
        "all_gather uneven",
        lambda rank, size: [(2, _uneven(size)[rank])],
        lambda xs, rank, size: [devices.all_gather(xs[0], dim=1, sizes=_uneven(size))],
        _each(lambda xs, _: torch.cat(xs, 1)),
    ),
    Case(
        "all_gather of a dict", lambda rank, size: [(3, 1), (2, 2)],
        lambda xs, rank, size: list(devices.all_gather({"a": xs[0], "b": xs[1]}, dim=-1).values()),
        lambda ranks: _lists(ranks, lambda xs, _: torch.cat(xs, -1)),
    ),
    Case("reduce_scatter sum", _same, _one(devices.reduce_scatter),
         _each(lambda xs, rank: part_of(_sum(xs), _even(len(xs)), rank, 0))),
    Case("reduce_scatter avg", _same, _one(devices.reduce_scatter, op="avg"),
         _each(lambda xs, rank: part_of(_sum(xs) / len(xs), _even(len(xs)), rank, 0))),
    Case("reduce_scatter asynchronous", _same,
         lambda xs, rank, size: [devices.reduce_scatter(xs[0], async_op=True).result()],
         _each(lambda xs, rank: part_of(_sum(xs), _even(len(xs)), rank, 0))),
    Case(
        "reduce_scatter uneven", lambda rank, size: [(2, sum(_uneven(size)))],
        lambda xs, rank, size: [devices.reduce_scatter(xs[0], dim=1, sizes=_uneven(size))],
        _each(lambda xs, rank: part_of(_sum(xs), _uneven(len(xs)), rank, 1)),
    ),
    Case(
        "reduce_scatter of a list", lambda rank, size: [(size,), (2 * size, 2)],
        lambda xs, rank, size: devices.reduce_scatter(xs, op="avg"),
        lambda ranks: _lists(ranks, lambda xs, rank: (_sum(xs) / len(xs)).chunk(len(xs))[rank]),
    ),
    Case("all_to_all", _same, _one(devices.all_to_all),
         _each(lambda xs, rank: torch.cat([part_of(x, _even(len(xs)), rank, 0) for x in xs]))),
    Case(
        "all_to_all uneven", lambda rank, size: [(2, sum(_table(size)[rank]))],
        lambda xs, rank, size: [devices.all_to_all(xs[0], dim=1, sizes=_table(size))],
        _each(lambda xs, rank: torch.cat([part_of(x, _table(len(xs))[of], rank, 1) for of, x in enumerate(xs)], 1)),
    ),
    Case("broadcast", _same, lambda xs, rank, size: [devices.broadcast(xs[0], src=size - 1)],
         _each(lambda xs, _: xs[-1].clone())),
    Case("scatter", lambda rank, size: [] if rank else [(2 * size, 3)], _scattered,
         lambda ranks: [[part_of(ranks[0][0], _even(len(ranks)), rank, 0)] for rank in range(len(ranks))], orders=1),
    Case("scatter uneven", lambda rank, size: [] if rank else [(sum(_uneven(size)), 2)],
         lambda xs, rank, size: _scattered(xs, rank, size, _uneven(size)),
         lambda ranks: [[part_of(ranks[0][0], _uneven(len(ranks)), rank, 0)] for rank in range(len(ranks))], orders=1),
    Case("permute", _same, lambda xs, rank, size: [devices.permute(xs[0], pairs=_pairs(size))],
         _each(lambda xs, rank: xs[rank - 1].clone() if rank else 0 * xs[0])),
    Case("permute around", _same,
         lambda xs, rank, size: [devices.permute(xs[0], pairs=[(of, (of + 1) % size) for of in range(size)])],
         _each(lambda xs, rank: xs[rank - 1].clone())),
    Case("all_gather, then reduce_scatter", _same, _there_and_back, _each(_plain_there_and_back)),
)  # fmt: skip


def _loss(outputs: Sequence[Tensor], rank: int) -> Tensor:
    """Return a rank's loss, another on each rank and not linear, so that there is a second derivative."""
    chance = torch.Generator().manual_seed(100 + rank)
    terms = []
    for output in outputs:
        factor = torch.randn(output.shape, generator=chance, dtype=torch.float64)
        terms.append((factor * (output * output * (1 + output))).sum())
    total = torch.stack(terms).sum()
    return total.real + 2 * total.imag if total.is_complex() else total


def _again(gradients: Sequence[Tensor], rank: int) -> Tensor:
    """Return a rank's loss made of its gradients."""
    return _loss(gradients, 50 + rank)


def plain_gradients(case: Case, size: int, dtype: torch.dtype) -> list[list[list[Tensor]]]:
    """Return the gradients of the sum of all ranks' losses: by order, then by rank."""
    ranks = [inputs(case, rank, size, dtype) for rank in range(size)]
    flat = [x for xs in ranks for x in xs]
    loss = sum(_loss(outputs, rank) for rank, outputs in enumerate(case.plain(ranks)))
    found = []
    for order in range(case.orders):
        # Where nothing is received nothing flows back: a zero, as ours is.
        gradients = torch.autograd.grad(
            loss, flat, create_graph=order + 1 < case.orders, allow_unused=True, materialize_grads=True
        )
        rest = iter(gradients)
        by_rank = [[next(rest) for _ in xs] for xs in ranks]
        found.append(by_rank)
        loss = sum(_again(one, rank) for rank, one in enumerate(by_rank) if one)
    return found


def stacked(case: Case, size: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return the plain verb as a function of all ranks' inputs, for torch's gradcheck."""
    counts = [len(case.shapes(rank, size)) for rank in range(size)]

    def function(*flat: Tensor) -> tuple[Tensor, ...]:
        rest = iter(flat)
        ranks = [[next(rest) for _ in range(count)] for count in counts]
        return tuple(output for outputs in case.plain(ranks) for output in outputs)

    return function


def compare_gradients(transport: str) -> dict[str, tuple[int, list[str]]]:
    """Return, for each case, how many gradients were compared and which differ."""
    open_world(transport)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = {}
    for case in CASES:
        tried = compared(case, rank, size)
        found[case.name] = tried.count, tried.wrong
    torch.distributed.destroy_process_group()
    return found


def compared(case: Case, rank: int, size: int) -> Tried:
    tried = Tried()
    for dtype in case.dtypes:
        xs = inputs(case, rank, size, dtype)
        loss = _loss(case.verb(xs, rank, size), rank)
        for order, expected in enumerate(plain_gradients(case, size, dtype)):
            if not xs:
                loss.backward()
                tried.exact(expected[rank], [], case.name)
                break
            gradients = torch.autograd.grad(loss, xs, create_graph=order + 1 < case.orders)
            for one, other in zip(gradients, expected[rank], strict=True):
                tried.close(one.detach(), other.detach(), case.name, "order", order + 1, dtype)
            loss = _again(gradients, rank)
    return tried


def refusals() -> list[str]:
    """Return what each refused gradient said, on this rank."""
    with devices.init(timeout=100) as world:
        size, said = world.size, []
        x = torch.ones(2 * size, requires_grad=True)
        for op in ("min", "max", "prod"):
            for verb in (devices.all_reduce, devices.reduce_scatter):
                result = verb(x, op=op)
                assert result.requires_grad
                said.append(_said(UnsupportedError, result.sum().backward))
        for verb in (devices.reduce, devices.gather):
            result = verb(x, dst=size - 1)
            if world.rank == size - 1:
                said.append(_said(UnsupportedError, result.sum().backward))
        for verb in (devices.all_reduce, devices.broadcast, devices.all_gather):
            said.append(_said(ArgumentError, lambda verb=verb: verb(x, out=torch.empty(2 * size))))  # noqa: PERF401
        if size > 1:
            said.append(_said(ArgumentError, lambda: devices.send(x, dst=(world.rank + 1) % size)))
        scattered = devices.scatter(x if world.rank == 0 else None)
        if world.rank == 0:
            (gradient,) = torch.autograd.grad((scattered**2).sum(), x, create_graph=True)
            said.append(_said(UnsupportedError, gradient.sum().backward))
        else:
            (scattered**2).sum().backward()
        weight = torch.tensor(1.0, requires_grad=True)
        said.append(_said(ArgumentError, lambda: devices.all_reduce(x, op="avg", weight=weight)))
        return said


def _said(kind: type[Exception], function: Callable[[], object]) -> str:
    try:
        function()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")
