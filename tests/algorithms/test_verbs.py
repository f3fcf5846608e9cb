"""Every verb over communicators that have much or little of their own, against plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from in_memory import KINDS, Gather, GatherPlus, Point, Whole, on_all_ranks
from meaning import COMPLEX, FLOAT8, FLOATS, INTEGERS, MEANT, reduced, same, same_bits, values

from devices.algorithms import by_gather
from devices.algorithms.started import DONE
from devices.algorithms.verbs import Verbs

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

# What is composed of messages alone has another form for powers of two. One rank alone has no communicator to speak of,
# and the fourth kind differs from the second in two verbs only.
on_many_groups = pytest.mark.parametrize(
    ("kind", "size"),
    [
        *itertools.product((Point,), (1, 2, 3, 4, 5)),
        pytest.param(Point, 8, marks=pytest.mark.slow),
        *itertools.product((Gather,), (2, 3, 5)),
        *itertools.product((Whole,), (2, 3, 4)),
        *itertools.product((GatherPlus,), (2, 3)),
    ],
)
EVERY_DTYPE = (*FLOATS, *COMPLEX, *INTEGERS, *FLOAT8, torch.bool)


def same_everywhere(results: Sequence[torch.Tensor], expected: torch.Tensor, what: Any) -> None:
    for rank, result in enumerate(results):
        assert same(result, expected), (what, rank, result, expected)
        assert same_bits(result, results[0]), (what, rank)


def plans(size: int) -> list[tuple[str, torch.dtype, int, bool]]:
    """Return (op, dtype, numel, async_op) for reductions: all pairs at one size, one pair at all sizes."""
    pairs = [(op, dtype, 5, place % 2 == 0) for place, (op, dtype) in enumerate(MEANT)]
    lengths = [("sum", torch.float32, numel, numel % 2 == 1) for numel in (0, 1, 2, 7, size, size + 1, 20_001)]
    return pairs + lengths


@on_many_groups
def test_all_reduce_is_the_reduction_with_the_same_bits_everywhere(kind: type, size: int) -> None:
    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for op, dtype, numel, async_op in plans(size):
            tensor = values(numel, dtype, rank)
            verbs.all_reduce(tensor, op, async_op=async_op).wait()
            results.append(tensor)
        return results

    results = on_all_ranks(kind, size, program)
    for place, (op, dtype, numel, _) in enumerate(plans(size)):
        expected = reduced(op, [values(numel, dtype, rank) for rank in range(size)])
        same_everywhere([result[place] for result in results], expected, (op, dtype, numel))


@on_many_groups
def test_reduce_changes_the_root_alone(kind: type, size: int) -> None:
    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for place, (op, dtype, numel, async_op) in enumerate(plans(size)):
            tensor = values(numel, dtype, rank)
            verbs.reduce(tensor, place % size, op, async_op=async_op).wait()
            results.append(tensor)
        return results

    results = on_all_ranks(kind, size, program)
    for place, (op, dtype, numel, _) in enumerate(plans(size)):
        given = [values(numel, dtype, rank) for rank in range(size)]
        for rank in range(size):
            found = results[rank][place]
            if rank == place % size:
                assert same(found, reduced(op, given)), (op, dtype, numel)
            else:
                assert same_bits(found, given[rank]), (op, dtype, numel)


def uneven(size: int, seed: int, most: int = 4) -> list[int]:
    """Return counts with zeros and repeats in them."""
    return [(rank * 7 + seed * 5 + rank * seed) % most for rank in range(size)]


@on_many_groups
def test_reduce_scatter_gives_each_rank_its_part_and_leaves_the_input_unchanged(kind: type, size: int) -> None:
    cases = [
        (op, dtype, [3] * size if place % 2 else uneven(size, place), place % 3 == 0)
        for place, (op, dtype) in enumerate(MEANT)
    ]
    cases += [("sum", torch.float32, [length] * size, True) for length in (0, 1, 5000)]
    cases += [("max", torch.float32, [5000 + rank for rank in range(size)], False)]

    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for op, dtype, counts, async_op in cases:
            input = values(sum(counts), dtype, rank)
            output = torch.empty(counts[rank], dtype=dtype)
            given = None if len(set(counts)) == 1 else counts
            verbs.reduce_scatter(output, input, op, given, async_op=async_op).wait()
            assert same_bits(input, values(sum(counts), dtype, rank))
            results.append(output)
        return results

    results = on_all_ranks(kind, size, program)
    for place, (op, dtype, counts, _) in enumerate(cases):
        parts = reduced(op, [values(sum(counts), dtype, rank) for rank in range(size)]).split(counts)
        for rank in range(size):
            assert same(results[rank][place], parts[rank]), (op, dtype, counts, rank)


def movements(size: int) -> list[tuple[torch.dtype, list[int], bool]]:
    cases = [
        (dtype, uneven(size, place) if place % 2 else [place % 4] * size, place % 3 == 0)
        for place, dtype in enumerate(EVERY_DTYPE * 2)
    ]
    cases += [(torch.float32, [0] * size, False), (torch.float32, [0] * (size - 1) + [9], True)]
    # Larger than what is done in one step.
    return [*cases, (torch.float64, [9000] * size, False), (torch.float64, [9000 + rank for rank in range(size)], True)]


@on_many_groups
def test_all_gather_puts_the_parts_in_rank_order(kind: type, size: int) -> None:
    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for dtype, counts, async_op in movements(size):
            input, output = values(counts[rank], dtype, rank), torch.empty(sum(counts), dtype=dtype)
            given = None if len(set(counts)) == 1 and async_op else counts
            verbs.all_gather(output, input, given, async_op=async_op).wait()
            assert same_bits(input, values(counts[rank], dtype, rank))
            results.append(output)
        return results

    results = on_all_ranks(kind, size, program)
    for place, (dtype, counts, _) in enumerate(movements(size)):
        expected = torch.cat([values(counts[rank], dtype, rank).view(torch.uint8) for rank in range(size)])
        for result in results:
            assert torch.equal(result[place].view(torch.uint8), expected), (dtype, counts)


@on_many_groups
def test_gather_fills_the_root_and_scatter_undoes_it(kind: type, size: int) -> None:
    def program(verbs: Verbs, rank: int) -> list[torch.Tensor | None]:
        results: list[torch.Tensor | None] = []
        for place, (dtype, counts, async_op) in enumerate(movements(size)):
            root = place % size
            input = values(counts[rank], dtype, rank)
            output = torch.empty(sum(counts), dtype=dtype) if rank == root else None
            given = counts if len(set(counts)) > 1 else None
            verbs.gather(output, input, root, given, async_op=async_op).wait()
            assert same_bits(input, values(counts[rank], dtype, rank))
            back = torch.empty_like(input)
            kept = None if output is None else output.clone()
            verbs.scatter(back, output, root, given, async_op=async_op).wait()
            assert same_bits(back, input), (dtype, counts)
            assert output is None or same_bits(output, kept)
            results.append(output)
        return results

    results = on_all_ranks(kind, size, program)
    for place, (dtype, counts, _) in enumerate(movements(size)):
        expected = torch.cat([values(counts[rank], dtype, rank).view(torch.uint8) for rank in range(size)])
        assert torch.equal(results[place % size][place].view(torch.uint8), expected), (dtype, counts)


@on_many_groups
def test_broadcast_carries_the_bits_of_the_source(kind: type, size: int) -> None:
    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for place, (dtype, counts, async_op) in enumerate(movements(size)):
            tensor = values(sum(counts), dtype, rank)
            verbs.broadcast(tensor, place % size, async_op=async_op).wait()
            results.append(tensor)
        return results

    results = on_all_ranks(kind, size, program)
    for place, (dtype, counts, _) in enumerate(movements(size)):
        for result in results:
            assert same_bits(result[place], values(sum(counts), dtype, place % size)), (dtype, counts)


@on_many_groups
def test_all_to_all_transposes_the_parts(kind: type, size: int) -> None:
    def sent(dtype: torch.dtype, seed: int, rank: int, even: bool) -> tuple[list[int], torch.Tensor]:
        counts = [seed % 4] * size if even else uneven(size, seed + rank)
        return counts, values(sum(counts), dtype, rank)

    cases = [(dtype, place, place % 2 == 0, place % 3 == 0) for place, dtype in enumerate(EVERY_DTYPE)]

    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for dtype, seed, even, async_op in cases:
            counts, input = sent(dtype, seed, rank, even)
            received = [sent(dtype, seed, peer, even)[0][rank] for peer in range(size)]
            output = torch.empty(sum(received), dtype=dtype)
            if even:
                verbs.all_to_all(output, input, async_op=async_op).wait()
            else:
                verbs.all_to_all(output, input, received, counts, async_op=async_op).wait()
            assert same_bits(input, sent(dtype, seed, rank, even)[1])
            results.append(output)
        return results

    results = on_all_ranks(kind, size, program)
    for place, (dtype, seed, even, _) in enumerate(cases):
        for rank in range(size):
            parts = []
            for peer in range(size):
                counts, input = sent(dtype, seed, peer, even)
                parts.append(input.view(torch.uint8).split([count * dtype.itemsize for count in counts])[rank])
            assert torch.equal(results[rank][place].view(torch.uint8), torch.cat(parts)), (dtype, even)


@on_many_groups
def test_permute_carries_inputs_along_the_pairs_and_touches_nothing_else(kind: type, size: int) -> None:
    shift = [(rank, (rank + 1) % size) for rank in range(size)]
    cases = [shift, [(rank, rank) for rank in range(size)], [(0, size - 1)], [], [(size - 1, 0), *[(0, 1)][: size - 1]]]

    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for place, pairs in enumerate(cases):
            input = values(3, torch.float64, rank + 1)
            output = torch.full((3,), 99.0, dtype=torch.float64)
            gets_one = any(target == rank for _, target in pairs)
            verbs.permute(output if gets_one or place % 2 else None, input, pairs, async_op=place % 2 == 1).wait()
            empty = torch.empty(0)
            verbs.permute(empty, empty.clone(), pairs).wait()
            results.append(output)
        return results

    results = on_all_ranks(kind, size, program)
    for place, pairs in enumerate(cases):
        for rank in range(size):
            sources = [source for source, target in pairs if target == rank]
            expected = values(3, torch.float64, sources[0] + 1) if sources else torch.full((3,), 99.0).double()
            assert torch.equal(results[rank][place], expected)


@on_many_groups
def test_no_rank_leaves_a_barrier_before_the_last_has_come(kind: type, size: int) -> None:
    arrived: list[int] = []

    def program(verbs: Verbs, rank: int) -> list[int]:
        seen = []
        for number in range(1, 6):
            arrived.append(rank)
            verbs.barrier(async_op=number % 2 == 0).wait()
            seen.append(len(arrived) >= number * size)
        return seen

    assert all(all(seen) for seen in on_all_ranks(kind, size, program))


@pytest.mark.parametrize("kind", [Point, Whole])
def test_point_to_point_messages_keep_their_order_by_tag(kind: type) -> None:
    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        a, b, c = torch.empty(3), torch.empty(2, dtype=torch.int16), torch.empty(0, dtype=torch.complex64)
        if rank == 0:
            works = [
                verbs.send(torch.tensor([1.0, 2.0, 3.0]), 1, 5, async_op=True),
                verbs.send(torch.tensor([4, 5], dtype=torch.int16), 1, async_op=True),
                verbs.send(c, 1, 5, async_op=True),
            ]
        elif rank == 1:
            works = [
                verbs.recv(b, 0, async_op=True),
                verbs.recv(a, 0, 5, async_op=True),
                verbs.recv(c, 0, 5, async_op=True),
            ]
        else:
            works = []
        for work in works:
            work.wait()
            assert work.is_completed()
        return [a, b]

    results = on_all_ranks(kind, 3, program)
    assert results[1][0].tolist() == [1.0, 2.0, 3.0]
    assert results[1][1].tolist() == [4, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_input_may_be_the_output(kind: type) -> None:
    size = 3

    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for counts in ([2, 2, 2], [1, 0, 4]):
            everything = torch.zeros(sum(counts))
            mine = everything.split(counts)[rank]
            mine.copy_(values(counts[rank], torch.float32, rank))
            verbs.all_gather(everything, mine, counts).wait()
            scattered = everything.clone()
            part = scattered.split(counts)[rank]
            verbs.reduce_scatter(part, scattered, "sum", counts).wait()
            results += [everything, part]
        return results

    results = on_all_ranks(kind, size, program)
    for place, counts in enumerate(([2, 2, 2], [1, 0, 4])):
        expected = torch.cat([values(counts[rank], torch.float32, rank) for rank in range(size)])
        for rank in range(size):
            assert torch.equal(results[rank][2 * place], expected)
            assert torch.equal(results[rank][2 * place + 1], size * expected.split(counts)[rank])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_goes_through_min_and_max_with_the_same_bits_everywhere(kind: type, dtype: torch.dtype) -> None:
    nan, zeros = float("nan"), [0.0, -0.0]

    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for op in ("min", "max"):
            tensor = torch.tensor([nan if rank == 1 else 1.0, float(rank), zeros[rank % 2]] * 20, dtype=dtype)
            verbs.all_reduce(tensor, op)
            results.append(tensor)
        return results

    results = on_all_ranks(kind, 5, program)
    for place, extreme in enumerate((0.0, 4.0)):
        for result in results:
            assert result[place][0::3].isnan().all()
            assert (result[place][1::3] == extreme).all()
            assert same_bits(result[place], results[0][place])


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("op", ["sum", "prod", "min", "max"])
def test_nans_of_different_bits_end_up_with_the_same_bits_everywhere(op: str, size: int) -> None:
    """Torch's sum keeps the bits of one operand by its place, so all ranks must have them in one order."""

    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        results = []
        for numel in (3, 40_000):
            tensor = torch.full((numel,), 0x7FC00000 + rank, dtype=torch.int32).view(torch.float32)
            verbs.all_reduce(tensor, op)
            results.append(tensor)
        return results

    for kind in (Point, Gather):
        results = on_all_ranks(kind, size, program)
        for result in results:
            for tensor, first in zip(result, results[0], strict=True):
                assert tensor.isnan().all()
                assert same_bits(tensor, first)


def test_data_that_is_gathered_in_pieces_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_gather, "_PIECE", 100)

    def program(verbs: Verbs, rank: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        product, copy = values(50, torch.int16, rank), values(50, torch.int16, rank)
        verbs.all_reduce(product, "prod")
        verbs.broadcast(copy, 1)
        communicator: Any = verbs._communicator
        return product, copy, len(communicator.called)

    for product, copy, calls in on_all_ranks(Gather, 3, program):
        assert same(product, reduced("prod", [values(50, torch.int16, rank) for rank in range(3)]))
        assert same_bits(copy, values(50, torch.int16, 1))
        assert calls > 2


@pytest.mark.parametrize("kind", KINDS)
def test_broadcast_carries_nan(kind: type) -> None:
    def program(verbs: Verbs, rank: int) -> torch.Tensor:
        tensor = torch.tensor([float("nan"), 1.0]) if rank == 1 else torch.tensor([0.0, float("inf")])
        verbs.broadcast(tensor, 1)
        return tensor

    for result in on_all_ranks(kind, 3, program):
        assert result[0].isnan()
        assert result[1] == 1


@pytest.mark.parametrize("kind", [Point, Gather, GatherPlus])
def test_sums_of_16_bit_floats_are_rounded_once(kind: type) -> None:
    # In bfloat16 256 + 1 is 256, so a sum that is rounded on its way stays at 256.
    def program(verbs: Verbs, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.tensor([256.0 if rank == 0 else 1.0], dtype=torch.bfloat16)
        mean = total.clone()
        verbs.all_reduce(total)
        verbs.all_reduce(mean, "avg")
        return total, mean

    for total, mean in on_all_ranks(kind, 5, program):
        assert total.item() == 260
        assert mean.item() == 52


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_require_grad_are_written_as_plain_ones(kind: type) -> None:
    def program(verbs: Verbs, rank: int) -> list[torch.Tensor]:
        half = torch.full((3,), 1.0 + rank, dtype=torch.float16, requires_grad=True)
        full = torch.full((3,), 1.0 + rank, requires_grad=True)
        output = torch.empty(6)
        verbs.all_reduce(half, async_op=True).wait()
        verbs.all_reduce(half)
        verbs.all_gather(output, full)
        verbs.broadcast(full, 1)
        assert not output.requires_grad
        return [half.detach(), full.detach(), output]

    for half, full, output in on_all_ranks(kind, 2, program):
        assert half.tolist() == [6, 6, 6]
        assert full.tolist() == [2, 2, 2]
        assert output.tolist() == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_inference_tensors_are_written_under_inference_mode(kind: type) -> None:
    def program(verbs: Verbs, rank: int) -> torch.Tensor:
        with torch.inference_mode():
            tensor = torch.ones(3, dtype=torch.int16)
            verbs.all_reduce(tensor, async_op=True).wait()
            verbs.all_reduce(tensor)
        return tensor

    assert [result.tolist() for result in on_all_ranks(kind, 3, program)] == [[9, 9, 9]] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_asynchronous_verbs_keep_their_order_whether_native_or_composed(kind: type) -> None:
    """The communicators refuse collectives that come out of order, and the values tell too."""

    def program(verbs: Verbs, rank: int) -> list[list[float]]:
        works, tensors = [], []
        for turn in range(20):
            half = torch.tensor([1.0 + rank + turn], dtype=torch.bfloat16)
            mine, source, everyone = torch.tensor([1.0 + rank]), torch.tensor([1.0 + rank + turn]), torch.empty(4)
            works.append(verbs.all_reduce(half, "max", async_op=True))
            works.append(verbs.all_gather(everyone, mine, [1, 1, 1, 1], async_op=True))
            works.append(verbs.broadcast(source, 3, async_op=True))
            works.append(verbs.barrier(async_op=True))
            tensors.append([half, source, everyone])
        last = torch.tensor([1.0 + rank])
        verbs.all_reduce(last, "sum")
        for work in reversed(works):
            work.wait()
            work.wait()
            assert work.is_completed()
        return [[value for tensor in turn for value in tensor.tolist()] for turn in tensors] + [last.tolist()]

    expected = [[4.0 + turn, 4.0 + turn, 1.0, 2.0, 3.0, 4.0] for turn in range(20)] + [[10.0]]
    assert on_all_ranks(kind, 4, program) == [expected] * 4


def test_point_to_point_passes_what_is_queued() -> None:
    def program(verbs: Verbs, rank: int) -> float:
        tensor = torch.tensor([float(rank)])
        if rank == 0:
            verbs.recv(tensor, 1)
            work = verbs.all_reduce(torch.ones(1), async_op=True)
        else:
            # Rank 0 joins the reduction only after it has the message.
            work = verbs.all_reduce(torch.ones(1), async_op=True)
            verbs.send(tensor, 0)
        work.wait()
        return tensor.item()

    assert on_all_ranks(Point, 2, program) == [1.0, 1.0]


def test_native_verbs_are_used_where_they_fit() -> None:
    def program(verbs: Verbs, rank: int) -> list[str]:
        communicator: Any = verbs._communicator
        x, x4, half = torch.ones(4), torch.ones(16), torch.ones(4, dtype=torch.bfloat16)
        verbs.all_reduce(x)
        verbs.all_reduce(x, "avg")
        verbs.all_reduce(half, "avg")
        verbs.all_reduce(half, "max")
        verbs.all_reduce(torch.ones(4, dtype=torch.bool), "prod")
        verbs.all_reduce(torch.ones(4, dtype=torch.complex128))
        verbs.all_reduce(torch.ones(4, dtype=torch.uint32), "sum")
        verbs.reduce(x, 1, "min")
        verbs.reduce_scatter(x, x4)
        verbs.all_gather(x4, x)
        verbs.all_to_all(x4, x4.clone())
        verbs.broadcast(x, 2)
        verbs.gather(x4 if rank == 1 else None, x, 1)
        verbs.scatter(x, x4 if rank == 0 else None, 0)
        verbs.barrier()
        return communicator.called

    expected = [
        "all_reduce sum", "all_reduce avg", "all_reduce avg", "all_reduce max", "all_reduce min", "all_reduce sum",
        "all_reduce sum", "reduce min 1", "reduce_scatter sum", "all_gather", "all_to_all", "broadcast 2", "gather 1",
        "scatter 0", "barrier",
    ]  # fmt: skip
    assert on_all_ranks(Whole, 4, program) == [expected] * 4


def test_one_rank_alone_needs_no_communicator() -> None:
    from in_memory import CAPABILITIES, group_of

    verbs = Verbs(None, group_of(1, 0), CAPABILITIES[Point])
    x, out = torch.tensor([1.0, 2.0]), torch.empty(2)
    assert verbs.all_reduce(x, "avg") is DONE
    assert x.tolist() == [1.0, 2.0]
    for pending in (
        verbs.all_gather(out, x), verbs.broadcast(x, 0), verbs.barrier(), verbs.reduce(x, 0), verbs.exchange([], [])
    ):  # fmt: skip
        assert pending.is_completed()
    assert out.tolist() == [1.0, 2.0]
    verbs.close()
