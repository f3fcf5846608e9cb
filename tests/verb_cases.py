"""What runs on each rank to try the verbs: sections of checks, each said to be right or wrong by name."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import plain
import torch
import torch.distributed as dist
from plain import even, joined, make, part_of, reduced, same_bits

import devices

Tensor = torch.Tensor
TIMEOUT = 200.0


class Tried:
    """The checks of one section on one rank: how many, and which were wrong."""

    def __init__(self) -> None:
        self.count = 0
        self.wrong: list[str] = []

    def exact(self, found: Any, expected: Any, *what: object) -> None:
        if isinstance(expected, Tensor):
            right = isinstance(found, Tensor) and same_bits(found, expected)
        else:
            right = found == expected
        self._note(right, found, expected, what)

    def close(self, found: Any, expected: Tensor, *what: object) -> None:
        if expected.dtype not in (*plain.FLOATS, *plain.COMPLEX):
            self.exact(found, expected, *what)
            return
        try:
            torch.testing.assert_close(found, expected, equal_nan=True)
        except AssertionError as error:
            self._note(False, f"{error}", "", what)
        else:
            self._note(True, found, expected, what)

    def _note(self, right: bool, found: Any, expected: Any, what: tuple[object, ...]) -> None:
        self.count += 1
        if not right:
            self.wrong.append(f"{' '.join(map(str, what))}: found {found}, expected {expected}")


Where = tuple[Any, int, int]
"""A group, this rank's place in it, and its size."""


def open_world(transport: str) -> None:
    """Open the world by us, or by torch over gloo, whose group ours is then to adopt."""
    if transport == "devices":
        devices.init(timeout=TIMEOUT)
    else:
        dist.init_process_group(transport, timeout=timedelta(seconds=TIMEOUT))


def run_all(transport: str) -> dict[str, tuple[int, list[str]]]:
    """Return, for each section, how many checks there were and what was wrong."""
    open_world(transport)
    where = None, dist.get_rank(), dist.get_world_size()
    found = {}
    for section in SECTIONS:
        tried = Tried()
        section(tried, where)
        found[section.__name__] = tried.count, tried.wrong
    dist.destroy_process_group()
    return found


def _unchanged(tried: Tried, verb: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what the verb returned, having looked whether it left its input as it was."""
    tensors = list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, (list, tuple)) else [x]
    before = [tensor.clone() for tensor in tensors]
    result = verb(x, *args, **kwargs)
    for tensor, old in zip(tensors, before, strict=True):
        tried.exact(tensor, old, verb.__name__, "changed its input of", tensor.dtype, tuple(tensor.shape), kwargs)
    return result


def reductions(tried: Tried, where: Where) -> None:
    group, rank, size = where
    last = size - 1
    for op, dtype in plain.REDUCED:
        xs = [make(of, (2 * size, 3), dtype) for of in range(size)]
        expected = reduced(op, xs)
        x = xs[rank]
        tried.close(_unchanged(tried, devices.all_reduce, x, group, op=op), expected, "all_reduce", op, dtype)
        found = _unchanged(tried, devices.reduce, x, group, dst=last, op=op)
        if rank == last:
            tried.close(found, expected, "reduce", op, dtype)
        else:
            tried.exact(found, None, "reduce", op, dtype)
        found = _unchanged(tried, devices.reduce_scatter, x, group, op=op)
        tried.close(found, expected[2 * rank : 2 * rank + 2], "reduce_scatter", op, dtype)
        sizes = [2 * size, *[0] * last]
        found = devices.reduce_scatter(x, group, op=op, sizes=sizes)
        tried.close(found, part_of(expected, sizes, rank, 0), "uneven reduce_scatter", op, dtype)
    nan = torch.tensor([float("nan") if rank == last else 1.0, float(rank)])
    for op, other in (("min", 0.0), ("max", float(last))):
        tried.close(devices.all_reduce(nan, group, op=op), torch.tensor([float("nan"), other]), "NaN through", op)
    for dtype in (torch.float16, torch.bfloat16):
        # Rounded at each addition, these would not add up: 2048 + 1 is 2048 in both.
        x = torch.tensor([2048.0 if rank == 0 else 1.0], dtype=dtype)
        tried.exact(devices.all_reduce(x, group), torch.tensor([2047.0 + size]).to(dtype), "rounded once", dtype)


def bits(tried: Tried, where: Where) -> None:
    """Reductions of numbers that round, whose results must be of the same bits everywhere."""
    group, rank, _ = where
    for op, dtype in (
        ("sum", torch.float32), ("avg", torch.float64), ("sum", torch.bfloat16), ("prod", torch.complex64),
    ):  # fmt: skip
        for count in (1, 7, 70_001):
            found = devices.all_reduce(make(rank, (count,), dtype), group, op=op)
            everyone = devices.all_gather(found.unsqueeze(0), group)
            for other in everyone:
                tried.exact(other, found, "the bits of", op, dtype, count)


def _moves(tried: Tried, where: Where, shape: tuple[int, ...], dtype: torch.dtype, dim: int = 0) -> None:
    """Every verb that moves data, evenly; `shape` is divisible by the number of ranks along `dim`."""
    group, rank, size = where
    xs = [make(of, shape, dtype) for of in range(size)]
    x, last, what = xs[rank], size - 1, (dtype, shape, "dim", dim)
    tried.exact(_unchanged(tried, devices.all_gather, x, group, dim=dim), joined(xs, dim), "all_gather", *what)
    found = _unchanged(tried, devices.gather, x, group, dst=last, dim=dim)
    tried.exact(found, joined(xs, dim) if rank == last else None, "gather", *what)
    tried.exact(_unchanged(tried, devices.broadcast, x, group, src=last), xs[last], "broadcast", *what)
    ring = [(of, (of + 1) % size) for of in range(size)]
    found = _unchanged(tried, devices.permute, x, group, pairs=ring)
    tried.exact(found, xs[rank - 1], "permute", *what)
    if x.ndim:
        parts = even(x, size, dim)
        expected = joined([part_of(other, parts, rank, dim) for other in xs], dim)
        tried.exact(_unchanged(tried, devices.all_to_all, x, group, dim=dim), expected, "all_to_all", *what)
        found = devices.scatter(x if rank == last else None, group, src=last, dim=dim)
        tried.exact(found, part_of(xs[last], parts, rank, dim), "scatter", *what)


def moves_of_every_dtype(tried: Tried, where: Where) -> None:
    for dtype in plain.MOVED:
        _moves(tried, where, (2 * where[2], 3), dtype)


def shapes(tried: Tried, where: Where) -> None:
    group, rank, size = where
    for shape, dim in (
        ((), 0), ((), -1), ((0,), 0), ((size,), -1), ((0, 3), 0), ((0, 3 * size), 1), ((size, 0), 0),
        ((3, 2 * size), 1), ((3, 2 * size), -1), ((2, size, 3), 1), ((2, 3, size), -1), ((size, 2, 3), -3),
    ):  # fmt: skip
        for dtype in (torch.float32, torch.int16):
            _moves(tried, where, shape, dtype, dim)
            xs = [make(of, shape, dtype) for of in range(size)]
            expected = reduced("sum", xs)
            what = (shape, "dim", dim, dtype)
            tried.close(_unchanged(tried, devices.all_reduce, xs[rank], group), expected, "all_reduce", *what)
            found = _unchanged(tried, devices.reduce, xs[rank], group, dst=0)
            if rank == 0:
                tried.close(found, expected, "reduce", *what)
            if shape:
                found = _unchanged(tried, devices.reduce_scatter, xs[rank], group, dim=dim)
                mine = part_of(expected, even(expected, size, dim), rank, dim)
                tried.close(found, mine, "reduce_scatter", *what)


def layouts(tried: Tried, where: Where) -> None:
    """Inputs that do not lie in memory as they read: transposed, strided, expanded, conjugated."""
    group, rank, size = where
    views: dict[str, Callable[[Tensor], Tensor]] = {
        "transposed": lambda x: x.t(),
        "strided": lambda x: x[:, ::2],
        "expanded": lambda x: x[:, :1].expand(-1, 2 * size),
        "offset": lambda x: x[1:, 1:][:, :size],
        "conjugated": lambda x: x.to(torch.complex64).conj(),
        "imaginary": lambda x: torch.complex(x, x + 1).conj().imag,
    }
    for name, view in views.items():
        xs = [view(make(of, (2 * size, 2 * size), torch.float32)) for of in range(size)]
        x, xs = xs[rank], [other.resolve_conj().resolve_neg().contiguous() for other in xs]
        expected = reduced("sum", xs)
        tried.close(devices.all_reduce(x, group), expected, "all_reduce of a", name)
        tried.close(devices.all_reduce([x, x], group)[1], expected, "list all_reduce of a", name)
        tried.exact(devices.all_gather(x, group, dim=1), joined(xs, 1), "all_gather of a", name)
        tried.exact(devices.broadcast(x, group, src=0), xs[0], "broadcast of a", name)
        dim = 1
        parts = even(x, size, dim)
        tried.close(
            devices.reduce_scatter(x, group, dim=dim), part_of(expected, parts, rank, dim), "reduce_scatter", name
        )
        found = devices.scatter(x if rank == 0 else None, group, dim=dim)
        tried.exact(found, part_of(xs[0], parts, rank, dim), "scatter of a", name)
        found = devices.all_to_all(x, group, dim=dim)
        tried.exact(found, joined([part_of(other, parts, rank, dim) for other in xs], dim), "all_to_all of a", name)
        found = devices.permute(x, group, pairs=[(0, size - 1)])
        expected = xs[0] if rank == size - 1 else torch.zeros_like(xs[rank])
        tried.exact(found, expected, "permute of a", name)


def uneven(tried: Tried, where: Where) -> None:
    group, rank, size = where
    last = size - 1
    for sizes in ([*range(1, size + 1)], [*range(size)], [3 * (of == last) for of in range(size)], [0] * size):
        for dim in (0, 1):
            shape = lambda length, dim=dim: (2, length) if dim else (length, 2)  # noqa: E731
            what = (sizes, "dim", dim)
            xs = [make(of, shape(sizes[of]), torch.int32) for of in range(size)]
            found = _unchanged(tried, devices.all_gather, xs[rank], group, dim=dim, sizes=sizes)
            tried.exact(found, joined(xs, dim), "uneven all_gather", *what)
            found = _unchanged(tried, devices.gather, xs[rank], group, dst=last, dim=dim, sizes=sizes)
            tried.exact(found, joined(xs, dim) if rank == last else None, "uneven gather", *what)
            wholes = [make(of, shape(sum(sizes)), torch.int32) for of in range(size)]
            found = _unchanged(tried, devices.reduce_scatter, wholes[rank], group, dim=dim, sizes=sizes)
            tried.exact(found, part_of(reduced("sum", wholes), sizes, rank, dim), "uneven reduce_scatter", *what)
            found = devices.scatter(wholes[0] if rank == 0 else None, group, src=0, dim=dim, sizes=tuple(sizes))
            tried.exact(found, part_of(wholes[0], sizes, rank, dim), "uneven scatter", *what)
            table = [sizes[of:] + sizes[:of] for of in range(size)]
            found = _unchanged(tried, devices.all_to_all, wholes[rank], group, dim=dim, sizes=table)
            expected = joined([part_of(whole, table[of], rank, dim) for of, whole in enumerate(wholes)], dim)
            tried.exact(found, expected, "uneven all_to_all", *what)


def coalesced(tried: Tried, where: Where) -> None:
    group, rank, size = where
    last = size - 1

    def of_rank(of: int) -> dict[str, Tensor]:
        made = {
            "w": make(of, (2 * size, 3), torch.float32),
            "count": make(of, (size,), torch.int64),
            "b": make(of, (size, 2), torch.float32, seed=1),
            "none": make(of, (0, 2), torch.float32),
            "half": make(of, (size,), torch.bfloat16),
        }
        # Ranks may fill their dicts in any order.
        return {key: made[key] for key in (made if of % 2 == 0 else reversed(made))}

    dicts = [of_rank(of) for of in range(size)]
    lists = [[one[key] for key in dicts[0]] for one in dicts]
    keys = list(dicts[0])
    ring = [(of, (of + 1) % size) for of in range(size)]
    columns = list(zip(*lists, strict=True))
    splits = [even(column[0], size, 0) for column in columns]
    sums = [reduced("sum", column) for column in columns]
    cases: list[tuple[Callable[..., Any], dict[str, Any], list[Tensor] | None]] = [
        (devices.all_reduce, {}, sums),
        (devices.all_gather, {}, [joined(column, 0) for column in columns]),
        (devices.broadcast, {"src": last}, [column[last] for column in columns]),
        (devices.permute, {"pairs": ring}, [column[rank - 1] for column in columns]),
        (devices.reduce, {"dst": last}, sums if rank == last else None),
        (devices.gather, {"dst": last}, [joined(column, 0) for column in columns] if rank == last else None),
        (devices.reduce_scatter, {}, [part_of(s, p, rank, 0) for s, p in zip(sums, splits, strict=True)]),
        (
            devices.scatter,
            {"src": last},
            [part_of(column[last], parts, rank, 0) for column, parts in zip(columns, splits, strict=True)],
        ),
        (
            devices.all_to_all,
            {},
            [
                joined([part_of(x, parts, rank, 0) for x in column], 0)
                for column, parts in zip(columns, splits, strict=True)
            ],
        ),
    ]
    for verb, arguments, expected in cases:
        for container in (list, tuple, dict):
            x = dicts[rank] if container is dict else container(lists[rank])
            found = _unchanged(tried, verb, x, group, **arguments)
            what = (verb.__name__, container.__name__)
            if expected is None:
                tried.exact(found, None, *what)
                continue
            tried.exact(type(found), container, *what)
            if container is dict:
                # scatter's keys come in the order of the source.
                order = list(dicts[last] if verb is devices.scatter else dicts[rank])
                tried.exact(list(found), order, *what, "keys")
                found = [found[key] for key in keys]
            for key, one, other in zip(keys, found, expected, strict=True):
                tried.close(one, other, *what, key)
    # One dim from the end, of tensors with different numbers of dims and different sizes.
    pair = [[make(of, (2, 3), torch.float32), make(of, (4,), torch.float32)] for of in range(size)]
    found = devices.all_gather(pair[rank], group, dim=-1)
    for at in range(2):
        tried.exact(found[at], joined([one[at] for one in pair], -1), "all_gather along dim -1", at)


def written_in_place(tried: Tried, where: Where) -> None:
    group, rank, size = where
    last = size - 1
    xs = [make(of, (2 * size, 3), torch.float32) for of in range(size)]
    x, total = xs[rank], reduced("sum", xs)
    splits = even(total, size, 0)
    cases: list[tuple[Callable[..., Any], dict[str, Any], Tensor | None]] = [
        (devices.all_reduce, {}, total),
        (devices.all_reduce, {"op": "avg", "weight": 1.0}, total / size),
        (devices.all_gather, {}, joined(xs, 0)),
        (devices.all_gather, {"dim": 1}, joined(xs, 1)),
        (devices.reduce_scatter, {}, part_of(total, splits, rank, 0)),
        (devices.all_to_all, {}, joined([part_of(other, splits, rank, 0) for other in xs], 0)),
        (devices.broadcast, {"src": last}, xs[last]),
        (devices.permute, {"pairs": [(0, last)]}, xs[0] if rank == last else torch.zeros_like(x)),
        (devices.scatter, {"src": last}, part_of(xs[last], splits, rank, 0)),
        (devices.reduce, {"dst": last}, total if rank == last else None),
        (devices.gather, {"dst": last}, joined(xs, 0) if rank == last else None),
    ]
    for verb, arguments, expected in cases:
        for kind in ("contiguous", "strided"):
            what = (verb.__name__, arguments, kind)
            like = torch.zeros(1) if expected is None else expected
            room = torch.full((*like.shape[:-1], 2 * like.shape[-1]), 7.0)
            out = room[..., ::2] if kind == "strided" else torch.full(like.shape, 7.0)
            found = _unchanged(tried, verb, x, group, out=out, **arguments)
            if expected is None:
                tried.exact(found, None, *what)
                tried.exact(out.clone(), torch.full((1,), 7.0), *what, "off the root")
                continue
            tried.exact(found is out, True, *what, "is what was given")
            tried.close(out.clone(), expected, *what)
            if kind == "strided":
                tried.exact(room[..., 1::2].clone(), torch.full(like.shape, 7.0), *what, "beside it")
    own = x.clone()
    tried.close(devices.all_reduce(own, group, out=own), total, "all_reduce into its own input")
    tried.exact(devices.broadcast(own, group, src=0, out=own), own, "broadcast into its own input")
    square = [make(of, (size, size), torch.float32) for of in range(size)]
    own = square[rank].clone()
    expected = joined([part_of(other, [1] * size, rank, 0) for other in square], 0)
    tried.exact(devices.all_to_all(own, group, out=own), expected, "all_to_all into its own input")
    own = square[rank].clone()
    tried.close(devices.all_reduce(own, group, out=own.t()), reduced("sum", square), "all_reduce into its transpose")
    outs = [torch.empty_like(x), torch.empty(3, dtype=torch.int32)]
    found = devices.all_reduce([x, torch.full((3,), rank, dtype=torch.int32)], group, out=outs)
    tried.close(outs[0], total, "all_reduce into a list")
    tried.exact(outs[1], torch.full((3,), sum(range(size)), dtype=torch.int32), "all_reduce into a list")
    tried.exact([one is out for one, out in zip(found, outs, strict=True)], [True, True], "the list's own tensors")
    named = {"b": torch.empty(2), "a": torch.empty(1)}
    devices.all_reduce({"a": torch.ones(1), "b": torch.full((2,), 2.0)}, group, out=named)
    tried.exact(named["a"], torch.full((1,), 1.0 * size), "all_reduce into a dict")
    tried.exact(named["b"], torch.full((2,), 2.0 * size), "all_reduce into a dict")


def asynchronous(tried: Tried, where: Where) -> None:
    group, rank, size = where
    last = size - 1
    xs = [make(of, (2 * size, 3), torch.float32) for of in range(size)]
    x, total = xs[rank], reduced("sum", xs)
    splits = even(total, size, 0)
    started: list[tuple[str, devices.Work[Any], Any]] = []
    for turn, op in itertools.product(range(3), ("sum", "max")):
        expected = reduced(op, xs)
        started.append((f"all_reduce {op} {turn}", devices.all_reduce(x, group, op=op, async_op=True), expected))
    started += [
        ("all_gather", devices.all_gather(x, group, dim=1, async_op=True), joined(xs, 1)),
        ("reduce_scatter", devices.reduce_scatter(x, group, async_op=True), part_of(total, splits, rank, 0)),
        (
            "all_to_all",
            devices.all_to_all(x, group, async_op=True),
            joined([part_of(other, splits, rank, 0) for other in xs], 0),
        ),
        ("broadcast", devices.broadcast(x, group, src=last, async_op=True), xs[last]),
        ("permute", devices.permute(x, group, pairs=[(last, 0)], async_op=True), xs[last] if rank == 0 else 0 * x),
        ("reduce", devices.reduce(x, group, dst=last, async_op=True), total if rank == last else None),
        ("gather", devices.gather(x, group, dst=last, async_op=True), joined(xs, 0) if rank == last else None),
        ("barrier", devices.barrier(group, async_op=True), None),
        ("weighted", devices.all_reduce(x, group, op="avg", weight=2.0, async_op=True), total / size),
    ]
    x_list = devices.all_reduce([x, x.to(torch.float64)], group, async_op=True)
    scattered = devices.scatter(x if rank == 0 else None, group, async_op=True)
    for name, work, expected in reversed(started):
        found = work.result()
        tried.exact(work.is_completed(), True, name, "is completed")
        tried.exact(work.wait(), True, name, "waited for again")
        if expected is None:
            tried.exact(found, None, name)
        else:
            tried.close(found, expected.abs() if name == "permute" and rank else expected, name)
            tried.exact(work.result() is found, True, name, "returns the same again")
    tried.close(x_list.result()[0], total, "list")
    tried.close(scattered.result(), part_of(xs[0], splits, rank, 0), "scatter")
    out = torch.empty_like(x)
    work = devices.all_reduce(x, group, out=out, async_op=True)
    tried.exact(work.result() is out, True, "out= of a work")
    tried.close(out, total, "out= of a work")


def messages(tried: Tried, where: Where) -> None:
    group, rank, size = where
    if size == 1:
        return
    after, before = (rank + 1) % size, (rank - 1) % size
    for dtype, shape in itertools.product((torch.float32, torch.bool, torch.float8_e5m2), ((3, 2), (), (0,))):
        xs = [make(of, shape, dtype) for of in range(size)]
        work = devices.send(xs[rank], group, dst=after, async_op=True)
        found = _unchanged(tried, devices.recv, torch.zeros_like(xs[rank]), group, src=before)
        tried.exact(found, xs[before], "recv", dtype, shape)
        tried.exact(work.result(), None, "send")
        # Of what is received into nothing is read, so that the result may lie there.
        x = torch.zeros_like(xs[rank])
        work = devices.send(xs[rank], group, dst=after, async_op=True)
        tried.exact(devices.recv(x, group, src=before, out=x) is x, True, "recv into itself", dtype, shape)
        tried.exact(x, xs[before], "recv into itself", dtype, shape)
        work.wait()
    x = make(rank, (4, 3), torch.float32)
    if rank == 0:
        devices.send(x.t(), group, dst=1)
        devices.send([x, x.to(torch.int32)], group, dst=1)
        first = devices.send(torch.tensor([1]), group, dst=1, tag=1, async_op=True)
        second = devices.send(torch.tensor([2]), group, dst=1, tag=2, async_op=True)
        first.wait()
        second.wait()
    if rank == 1:
        other = make(0, (4, 3), torch.float32)
        out = torch.empty(3, 4)
        tried.exact(devices.recv(torch.empty(3, 4), group, src=0, out=out) is out, True, "recv with out=")
        tried.exact(out, other.t().contiguous(), "recv of a transposed tensor")
        found = devices.recv([torch.empty(4, 3), torch.empty(4, 3, dtype=torch.int32)], group, src=0)
        tried.exact(found[0], other, "recv of a list")
        tried.exact(found[1], other.to(torch.int32), "recv of a list")
        late = devices.recv(torch.tensor([0]), group, src=0, tag=1, async_op=True)
        tried.exact(devices.recv(torch.tensor([0]), group, src=0, tag=2), torch.tensor([2]), "recv by tag")
        tried.exact(late.result(), torch.tensor([1]), "recv by tag")


def large(tried: Tried, where: Where) -> None:
    """Enough elements, and oddly many, that schedules go by chunks and parts differ."""
    group, rank, size = where
    for count in (65_537, 1_000_003):
        xs = [torch.arange(count, dtype=torch.float32) % (of + 7) for of in range(size)]
        x, total = xs[rank], torch.stack(xs).sum(0)
        sizes = [count - sum(range(1, size)), *range(1, size)]
        tried.exact(devices.all_reduce(x, group), total, "all_reduce", count)
        tried.exact(devices.all_reduce(x, group, op="max"), torch.stack(xs).amax(0), "all_reduce max", count)
        tried.exact(devices.all_gather(x, group), torch.cat(xs), "all_gather", count)
        tried.exact(devices.broadcast(x, group, src=size - 1), xs[-1], "broadcast", count)
        found = devices.reduce_scatter(x, group, sizes=sizes)
        tried.exact(found, part_of(total, sizes, rank, 0), "reduce_scatter", count)
        found = devices.reduce(x, group, op="min")
        tried.exact(found, torch.stack(xs).amin(0) if rank == 0 else None, "reduce min", count)
        found = devices.all_to_all(x, group, sizes=[sizes] * size)
        tried.exact(found, torch.cat([part_of(other, sizes, rank, 0) for other in xs]), "all_to_all", count)


def subgroups(tried: Tried, where: Where) -> None:
    """The verbs over parts of the world, whose ranks are counted from 0 in each."""
    _, rank, size = where
    members = [[*range(0, size, 2)], [*range(1, size, 2)], [*reversed(range(size))]]
    for ranks in members:
        if not ranks:
            continue
        group = dist.new_group(ranks)
        if rank not in ranks:
            try:
                devices.all_reduce(torch.ones(1), group)
            except devices.errors.WorldError as error:
                tried.exact(f"rank {rank} of {size}" in str(error), True, "says which rank")
            else:
                tried.exact("no error", "an error", "off the group")
            continue
        # torch itself sorts the ranks of a group.
        place, last = sorted(ranks).index(rank), len(ranks) - 1
        xs = [make(of, (len(ranks), 2), torch.float32) for of in sorted(ranks)]
        tried.close(devices.all_reduce(xs[place], group), reduced("sum", xs), "all_reduce over", ranks)
        tried.exact(devices.broadcast(xs[place], group, src=last), xs[last], "broadcast over", ranks)
        tried.exact(devices.all_gather(xs[place], group), joined(xs, 0), "all_gather over", ranks)
        found = devices.gather(xs[place], group, dst=last)
        tried.exact(found, joined(xs, 0) if place == last else None, "gather over", ranks)
        devices.barrier(group)
    for shape in _meshes(size):
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
        for axis in ("dp", "tp"):
            over = mesh[axis].mesh.tolist()
            xs = [make(of, (len(over), 2), torch.float32) for of in over]
            place = over.index(rank)
            tried.close(devices.all_reduce(xs[place], mesh[axis]), reduced("sum", xs), "all_reduce over", axis, shape)
            tried.exact(devices.broadcast(xs[place], mesh[axis], src=0), xs[0], "broadcast over", axis, shape)
            found = devices.scatter(xs[place] if place == 0 else None, mesh[axis])
            tried.exact(found, part_of(xs[0], [1] * len(over), place, 0), "scatter over", axis, shape)
            devices.barrier(mesh[axis])


def _meshes(size: int) -> Iterator[tuple[int, int]]:
    yield from ((first, size // first) for first in range(1, size + 1) if size % first == 0)


def weighted(tried: Tried, where: Where) -> None:
    group, rank, size = where
    weights = [float(3 * of) for of in range(1, size)] + [0.0] if size > 1 else [2.0]
    for dtype in (*plain.FLOATS, *plain.COMPLEX):
        xs = [make(of, (3, 2), dtype) for of in range(size)]
        wide = torch.complex128 if dtype in plain.COMPLEX else torch.float64
        total = sum(weight * x.to(wide) for weight, x in zip(weights, xs, strict=True))
        expected = (total / sum(weights)).to(dtype)
        found = _unchanged(tried, devices.all_reduce, xs[rank], group, op="avg", weight=weights[rank])
        tried.close(found, expected, "weighted mean", dtype)
        weight = torch.tensor(int(weights[rank]))
        tried.close(devices.all_reduce(xs[rank], group, op="avg", weight=weight), expected, "weight a tensor", dtype)
    pair = [[make(of, (2,), torch.float32), make(of, (3,), torch.float64)] for of in range(size)]
    found = devices.all_reduce(dict(zip("ab", pair[rank], strict=True)), group, op="avg", weight=0.1 * (rank + 1))
    for at, key in enumerate("ab"):
        total = sum(0.1 * (of + 1) * one[at].double() for of, one in enumerate(pair))
        mean = total / sum(0.1 * (of + 1) for of in range(size))
        tried.close(found[key], mean.to(pair[0][at].dtype), "weighted means in a dict", key)
    nothing = devices.all_reduce(torch.ones(2), group, op="avg", weight=0)
    tried.exact(bool(nothing.isnan().all()), True, "the mean of no samples is NaN")


def grad_modes(tried: Tried, where: Where) -> None:
    """A node of a graph is made when, and only when, a gradient is needed."""
    group, _, size = where
    x = torch.ones(size, requires_grad=True)
    tried.exact(devices.all_reduce(torch.ones(size), group).grad_fn, None, "no gradient needed")
    tried.exact(devices.all_reduce(x, group).requires_grad, True, "a gradient needed")
    with torch.no_grad():
        for verb in (devices.all_reduce, devices.all_gather, devices.reduce_scatter, devices.broadcast):
            found = verb(x, group)
            tried.exact((found.requires_grad, found.grad_fn), (False, None), "no_grad", verb.__name__)
    with torch.inference_mode():
        tried.exact(devices.all_reduce(torch.ones(2), group, op="max"), torch.ones(2), "inference mode")
        tried.exact(devices.all_gather(torch.ones(1), group), torch.ones(size), "inference mode")
    parameter = torch.nn.Parameter(torch.ones(2))
    tried.exact(devices.all_reduce(parameter, group).requires_grad, True, "a parameter")
    tried.exact(type(devices.all_reduce(parameter, group)), torch.Tensor, "a parameter's sum")
    work = devices.all_reduce(x, group, async_op=True)
    with torch.no_grad():
        tried.exact(work.result().requires_grad, True, "waited for without grad")
    mixed = devices.all_reduce([x, torch.ones(2), torch.ones(1, dtype=torch.int32)], group)
    tried.exact([one.requires_grad for one in mixed], [True, True, False], "a list")
    # Results may be written to in place, gradient or none.
    mixed[0].add_(1)
    mixed[1].mul_(2)
    tried.exact(mixed[0].detach(), torch.full((size,), size + 1.0), "written in place")


SECTIONS: tuple[Callable[[Tried, Where], None], ...] = (
    reductions, bits, moves_of_every_dtype, shapes, layouts, uneven, coalesced, written_in_place, asynchronous,
    messages, large, subgroups, weighted, grad_modes,
)  # fmt: skip

if __name__ == "__main__":
    for name, (count, wrong) in run_all(os.environ.get("TRANSPORT", "devices")).items():
        print(name, count, *wrong[:20], sep="\n  ")
