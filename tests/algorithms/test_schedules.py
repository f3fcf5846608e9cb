"""Every generated schedule computes its verb: proved by replay against plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.algorithms import direct, dissemination, pairwise, recursive, ring, trees
from devices.algorithms.choose import choose
from devices.algorithms.layout import Layout
from devices.algorithms.replay import replay
from devices.algorithms.schedule import Chunk, Copy, Program, Recv, Schedule, Send, parts
from devices.errors import ArgumentError

SIZES = (*range(1, 10), 16, 33)
ROOTED: list[Callable[[int, int], Schedule]] = [
    trees.broadcast, trees.reduce, trees.gather, trees.scatter, direct.gather, direct.scatter
]  # fmt: skip
REGULAR: list[Callable[[int], Schedule]] = [
    ring.all_gather, ring.reduce_scatter, ring.all_reduce, recursive.doubling, recursive.halving, pairwise.all_to_all,
    pairwise.all_gather, pairwise.reduce_scatter, dissemination.barrier,
]  # fmt: skip
EVERY = [(make, size, None) for make in REGULAR for size in SIZES] + [
    (make, size, root) for make in ROOTED for size in SIZES for root in sorted({0, size // 2, size - 1})
]


def label(value: object) -> str | None:
    return f"{value.__module__.rpartition('.')[2]}.{value.__name__}" if callable(value) else None


def counts_of(size: int) -> list[int]:
    """Return uneven counts, zeros among them."""
    return [(rank * 5 + 3) % 7 for rank in range(size)]


def numbers(numel: int, rank: int) -> torch.Tensor:
    return torch.arange(numel) * 1000 + rank + 1


def play(schedule: Schedule, counts: Sequence[int], numel: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return what each rank had, and what it then has, by the verb's law; integers, so that order plays no part."""
    size, verb = schedule.size, schedule.verb
    has_parts = verb in ("all_gather", "reduce_scatter", "gather", "scatter", "all_to_all")
    sizes = list(counts) if has_parts else [numel]
    inputs, outputs, layouts = [], [], []
    for rank in range(size):
        if verb == "all_to_all":
            sizes = [(rank + 2 * peer) % 5 for peer in range(size)]
            given, result = numbers(sum(sizes), rank), torch.zeros(sum((peer + 2 * rank) % 5 for peer in range(size)))
            result = result.long()
            received = [(peer + 2 * rank) % 5 for peer in range(size)]
            place = dict(enumerate(given.split(sizes))), dict(enumerate(result.split(received)))
        elif verb in ("all_gather", "gather"):
            given, result = numbers(counts[rank], rank), torch.zeros(sum(counts)).long()
            place = {rank: given}, dict(enumerate(result.split(sizes)))
        elif verb in ("reduce_scatter", "scatter"):
            given, result = numbers(sum(counts), rank), torch.zeros(counts[rank]).long()
            place = dict(enumerate(given.split(sizes))), {rank: result}
        elif verb in ("permute", "barrier"):
            given, result = numbers(numel, rank), torch.zeros(numel).long()
            place = {0: given}, {0: result}
        else:
            given = numbers(numel, rank)
            result = given.clone()
            place = {}, {0: result}
        if verb in ("gather", "scatter") and rank != schedule.root:
            # What only the root has is not there at all.
            place = (place[0], {}) if verb == "gather" else ({}, place[1])
        inputs.append(given.clone())
        outputs.append(result)
        layouts.append((given, Layout(schedule, sizes, given, *place)))
    replay(schedule, [layout for _, layout in layouts])
    for (given, _), before in zip(layouts, inputs, strict=True):
        assert torch.equal(given, before), "the input was written"
    return inputs, outputs


def expected_of(schedule: Schedule, inputs: list[torch.Tensor], counts: Sequence[int]) -> list[torch.Tensor | None]:
    """Return each rank's result; None where it is undefined."""
    size, root = schedule.size, schedule.root
    match schedule.verb:
        case "all_reduce":
            return [torch.stack(inputs).sum(0)] * size
        case "all_gather":
            return [torch.cat(inputs)] * size
        case "reduce_scatter":
            return list(torch.stack(inputs).sum(0).split(list(counts)))
        case "broadcast":
            return [inputs[root or 0]] * size
        case "reduce":
            return [torch.stack(inputs).sum(0) if rank == root else inputs[rank] for rank in range(size)]
        case "gather":
            return [torch.cat(inputs) if rank == root else None for rank in range(size)]
        case "scatter":
            return list(inputs[root or 0].split(list(counts)))
        case "all_to_all":
            split = [given.split([(rank + 2 * peer) % 5 for peer in range(size)]) for rank, given in enumerate(inputs)]
            return [torch.cat([pieces[rank] for pieces in split]) for rank in range(size)]
    return [None] * size


@pytest.mark.parametrize(("make", "size", "root"), EVERY, ids=label)
def test_a_generated_schedule_is_valid_and_computes_its_verb(
    make: Callable[..., Schedule], size: int, root: int | None
) -> None:
    schedule = make(size) if root is None else make(size, root)
    assert schedule.validate() is schedule
    for counts, numel in ((counts_of(size), 2 * size + 1), ([2] * size, max(1, size - 1)), ([0] * size, 0)):
        inputs, outputs = play(schedule, counts, numel)
        for found, expected in zip(outputs, expected_of(schedule, inputs, counts), strict=True):
            assert expected is None or torch.equal(found, expected)


@pytest.mark.parametrize(("make", "size", "root"), [case for case in EVERY if case[1] in (1, 2, 5)], ids=label)
def test_a_schedule_survives_json(make: Callable[..., Schedule], size: int, root: int | None) -> None:
    schedule = make(size) if root is None else make(size, root)
    back = Schedule.from_json(schedule.to_json())
    assert back == schedule
    assert hash(back) == hash(schedule)
    assert back.to_json() == schedule.to_json()


@pytest.mark.parametrize("size", SIZES)
def test_the_barrier_hears_of_every_rank(size: int) -> None:
    """Knowledge spreads along the messages: at the end each rank has heard, directly or not, from all."""
    schedule = dissemination.barrier(size)
    known = [{rank} for rank in range(size)]
    for step in range(max(len(schedule.program(rank)) for rank in range(size))):
        before = [set(ranks) for ranks in known]
        for rank in range(size):
            for action in schedule.program(rank)[step]:
                if isinstance(action, Recv):
                    known[rank] |= before[action.peer]
    assert known == [set(range(size))] * size


@given(st.data())
def test_a_permute_carries_each_pair(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6))
    ranks = st.permutations(range(size))
    pairs = tuple(zip(data.draw(ranks), data.draw(ranks), strict=True))[: data.draw(st.integers(0, size))]
    schedule = direct.permute(size, pairs).validate()
    inputs, outputs = play(schedule, (), 3)
    sources = {target: source for source, target in pairs}
    for rank in range(size):
        expected = inputs[sources[rank]] if rank in sources else torch.zeros(3).long()
        assert torch.equal(outputs[rank], expected)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_chunks_split_a_part_by_their_weights(weights: list[int], numel: int) -> None:
    schedule = Schedule("broadcast", 1, tuple(Chunk("output", 0, weight) for weight in weights), lambda rank: (), 0)
    tensor = torch.arange(numel)
    layout = Layout(schedule, (numel,), tensor, {}, {0: tensor})
    pieces = [layout[chunk] for chunk in range(len(weights))]
    assert torch.equal(torch.cat(pieces), tensor)
    for weight, piece in zip(weights, pieces, strict=True):
        assert abs(piece.numel() - numel * weight / sum(weights)) < 1


def weighted_broadcast() -> Schedule:
    """Two trees with weights 1 and 3: the root sends a quarter through rank 1 and the rest through rank 2."""
    chunks = (Chunk("output", 0, 1), Chunk("output", 0, 3))
    programs: tuple[Program, ...] = (
        ((Send(1, 0), Send(2, 1)),),
        ((Recv(0, 0),), (Send(2, 0), Recv(2, 1))),
        ((Recv(0, 1),), (Send(1, 1), Recv(1, 0))),
    )
    return Schedule("broadcast", 3, chunks, programs.__getitem__, 0)


@pytest.mark.parametrize("numel", [0, 1, 2, 3, 4, 11])
def test_a_schedule_of_weighted_trees_computes_its_verb(numel: int) -> None:
    schedule = weighted_broadcast().validate()
    inputs, outputs = play(Schedule.from_json(schedule.to_json()), (), numel)
    for output in outputs:
        assert torch.equal(output, inputs[0])


def test_a_copy_can_reduce() -> None:
    chunks = (*parts("output", 1), *parts("scratch", 1))

    def program(rank: int) -> Program:
        peer = 1 - rank
        return ((Send(peer, 0), Recv(peer, 1)), (Copy(1, 0, reduce=True),))

    schedule = Schedule("all_reduce", 2, chunks, program).validate()
    inputs, outputs = play(schedule, (), 4)
    assert torch.equal(outputs[0], inputs[0] + inputs[1])
    assert torch.equal(outputs[1], inputs[0] + inputs[1])


def test_the_ring_costs_each_rank_its_own_program_alone() -> None:
    made: list[int] = []
    whole = ring.all_reduce(144)

    def program(rank: int) -> Program:
        made.append(rank)
        return whole.generate(rank)

    schedule = Schedule("all_reduce", 144, whole.chunks, program)
    assert schedule.program(7) is schedule.program(7)
    assert made == [7]
    assert len(schedule.program(7)) == 2 * 143


def test_the_choice_depends_on_bytes_and_size() -> None:
    assert choose("all_reduce", 8, 1024) is recursive.doubling(8)
    assert choose("all_reduce", 8, 1 << 20) is recursive.halving(8)
    assert choose("all_reduce", 6, 1 << 20) is ring.all_reduce(6)
    assert choose("all_reduce", 8, 1 << 24) is ring.all_reduce(8)
    assert choose("reduce_scatter", 8, 1024) is pairwise.reduce_scatter(8)
    assert choose("reduce_scatter", 144, 1024) is ring.reduce_scatter(144)
    assert choose("gather", 8, 1 << 20, 3) is direct.gather(8, 3)


def two(*programs: Program, verb: str = "broadcast", chunks: tuple[Chunk, ...] = (Chunk("output", 0),)) -> Schedule:
    return Schedule(verb, len(programs), chunks, programs.__getitem__, 0)


INPUT = (Chunk("output", 0), Chunk("input", 0))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (two(((Send(1, 0),),), ()), "rank 0 sends chunk 0 to rank 1 in step 0, which has no matching receive"),
        (two((), ((Recv(0, 0),),)), "rank 1 receives chunk 0 from rank 0 in step 0, which has no matching send"),
        (two(((Send(0, 0),),), ()), "the rank itself as its peer"),
        (two(((Send(2, 0),),), ()), "a peer outside of the group's 2 ranks"),
        (two(((Send(1, 1),),), ((Recv(0, 0),),)), "uses chunk 1, but there are 1"),
        (two(((Copy(0, -1),),), ()), "uses chunk -1"),
        (two(((Send(1, 1),),), ((Recv(0, 1),),), chunks=INPUT), "writes chunk 1 of the input, which is only read"),
        (two(((Copy(0, 1),),), (), chunks=INPUT), "writes chunk 1 of the input"),
        (two(((Send(1, 0), Recv(1, 0)),), ((Send(0, 0), Recv(0, 0)),)), "received while it is also sent or reduced"),
        (two(((Send(1, 0), Send(1, 0)),), ((Recv(0, 0), Recv(0, 0)),)), "chunk 0 is received twice"),
        (
            two(((Send(1, 0),),), ((Recv(0, 1),),), chunks=(Chunk("output", 0), Chunk("output", 0, 2))),
            "receives in step 0 as chunk 1 of another size",
        ),
        (two(((Copy(0, 1),),), chunks=(Chunk("output", 0), Chunk("output", 1), Chunk("output", 1))), "unequal size"),
        (two((), chunks=(Chunk("outptu", 0),)), "none of input, output, scratch"),
        (two((), chunks=(Chunk("output", 0, 0),)), "a weight is a positive integer"),
        (two((), chunks=(Chunk("output", -1),)), "parts are numbered from 0"),
        (two((), verb="brodcast"), "no verb 'brodcast' to schedule; did you mean 'broadcast'?"),
        (Schedule("broadcast", 2, (), lambda rank: (), 2), "root 2 is not among 2 ranks"),
        (Schedule("broadcast", 0, (), lambda rank: ()), "at least one rank"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_place(schedule: Schedule, message: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        schedule.validate()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"verb":"barrier","size":2,"root":null,"chunks":[],"programs":[[]]}',
        '{"verb":"barrier","size":1,"root":null,"chunks":[],"programs":[[[["jump",0,0]]]]}',
        '{"verb":"barrier","size":1,"root":null,"chunks":[],"programs":[[[["send","0",0]]]]}',
        '{"verb":"barrier","size":1,"root":null,"chunks":[["output",0,1.5]],"programs":[[]]}',
        '{"verb":"barrier","size":2,"root":null,"chunks":[["output",0,1]],"programs":[[[["send",1,0]]],[]]}',
    ],
)  # fmt: skip
def test_json_that_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError):
        Schedule.from_json(text)


def test_replay_names_the_ranks_of_a_deadlock() -> None:
    # Each waits for the other's message before it sends its own.
    chunks = (*parts("output", 1), *parts("scratch", 1))
    schedule = Schedule("all_reduce", 2, chunks, lambda rank: (((Recv(1 - rank, 1),)), ((Send(1 - rank, 0),))))
    schedule.validate()
    with pytest.raises(ArgumentError, match="deadlock; rank 0 waits in step 0 to receive from rank 1; rank 1 waits"):
        play(schedule, (), 3)


def test_replay_takes_a_blocking_send_for_a_deadlock() -> None:
    """Two sends that wait for their receives hang on a transport without buffers, if not on every one."""
    chunks = (*parts("output", 1), *parts("scratch", 1))
    schedule = Schedule("all_reduce", 2, chunks, lambda rank: (((Send(1 - rank, 0),)), ((Recv(1 - rank, 1),))))
    with pytest.raises(ArgumentError, match="deadlock"):
        play(schedule.validate(), (), 3)


def test_replay_finds_messages_of_unequal_size() -> None:
    schedule = two(((Send(1, 0),),), ((Recv(0, 0),),))
    layouts = []
    for numel in (2, 3):
        tensor = torch.zeros(numel)
        layouts.append(Layout(schedule, (numel,), tensor, {}, {0: tensor}))
    with pytest.raises(ArgumentError, match="rank 0 sends 2 elements in step 0, which rank 1 receives in step 0 as 3"):
        replay(schedule, layouts)


def test_replay_finds_a_message_that_nobody_sends() -> None:
    with pytest.raises(ArgumentError, match="deadlock; rank 1 waits in step 0 to receive from rank 0"):
        play(two((), ((Recv(0, 0),),)), (), 3)


@pytest.mark.parametrize("break_it", ["peer", "chunk", "reduce"])
def test_replay_tells_a_broken_ring_from_a_right_one(break_it: str) -> None:
    """The proof can fail: one wrong action in one step of one rank is seen."""
    right = ring.all_reduce(4)

    def program(rank: int) -> Program:
        steps = [list(step) for step in right.program(rank)]
        send, recv = steps[2]
        assert isinstance(send, Send)
        assert isinstance(recv, Recv)
        if rank == 1:
            if break_it == "peer":
                steps[2] = [Send((send.peer + 1) % 4, send.chunk), recv]
            elif break_it == "chunk":
                steps[2] = [Send(send.peer, (send.chunk + 1) % 4), recv]
            else:
                steps[2] = [send, Recv(recv.peer, recv.chunk, not recv.reduce)]
        return tuple(map(tuple, steps))

    schedule = Schedule("all_reduce", 4, right.chunks, program)
    try:
        inputs, outputs = play(schedule, (), 8)
    except ArgumentError:
        return
    assert any(not torch.equal(output, torch.stack(inputs).sum(0)) for output in outputs)
