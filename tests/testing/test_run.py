"""What `devices.testing.run` promises: results, errors, a process left as it was, and ranks that share nothing."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import devices.testing
from devices import World
from devices.errors import (
    ArgumentError,
    CollectiveTimeoutError,
    DeadlockError,
    MismatchError,
    RaceError,
    RankFailedError,
    WorldError,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*returned a view tensor:UserWarning"),
]

HOWS = [{}, {"seed": 1}, {"parallel": True}]


# Results.


@pytest.mark.parametrize("ranks", [1, 2, 5, 144])
@pytest.mark.parametrize("how", HOWS, ids=str)
def test_results_come_in_rank_order(ranks: int, how: dict[str, Any]) -> None:
    def told(world: World, factor: int, names: list[str]) -> tuple[int, int, float, str]:
        assert (dist.get_rank(), dist.get_world_size()) == (world.rank, world.size)
        total = devices.all_reduce(torch.tensor(float(world.rank)))
        return world.rank * factor, world.size, total.item(), names[0]

    expected = [(rank * 10, ranks, ranks * (ranks - 1) / 2, "a") for rank in range(ranks)]
    assert devices.testing.run(told, 10, ["a", "b"], ranks=ranks, **how) == expected


def test_torchruns_variables_are_those_of_the_rank() -> None:
    def variables(world: World) -> list[str]:
        dist.barrier()
        return [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")]

    assert devices.testing.run(variables, ranks=3) == [[str(rank), str(rank), "3", "3"] for rank in range(3)]


def test_a_hundred_orders_of_ranks_give_one_result() -> None:
    def step(world: World) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(world.rank)
        model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2), bucket_cap_mb=0.00001)
        model(torch.randn(4, 3)).square().sum().backward()
        return tuple(parameter.grad for parameter in model.parameters() if parameter.grad is not None)

    results = devices.testing.run(step, ranks=3, schedules=100)
    for mine in results[1:]:
        torch.testing.assert_close(mine, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("variable", [None, "2"])
def test_a_rank_computes_on_one_core_as_under_torchrun(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found = devices.testing.run(lambda world: torch.get_num_threads(), ranks=3)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert found == [1 if variable is None else 2] * 3


@pytest.mark.parametrize("how", [{"ranks": 0}, {"ranks": -1}, {"ranks": 2, "schedules": 0}], ids=str)
def test_numbers_that_cannot_be_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        devices.testing.run(lambda world: None, **how)


# Errors.


class OfOneRankError(Exception):
    pass


def line_of(function: Callable[..., Any], text: str) -> int:
    code = function.__code__
    lines = Path(code.co_filename).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if number > code.co_firstlineno and text in line)


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 9])
def test_an_error_keeps_its_type_and_traceback_and_names_its_rank(ranks: int, how: dict[str, Any]) -> None:
    def fails(world: World) -> None:
        if world.rank == world.size - 1:
            raise OfOneRankError("it is enough")  # here
        dist.barrier()

    with pytest.raises(OfOneRankError) as raised:
        devices.testing.run(fails, ranks=ranks, **how)
    assert str(raised.value) == "it is enough"
    assert any(f"rank {ranks - 1} of {ranks}" in note for note in raised.value.__notes__)
    at = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert (at.name, at.lineno) == ("fails", line_of(fails, "# here"))


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_others_are_released_through_their_finally_blocks(how: dict[str, Any]) -> None:
    left: list[int] = []

    def waits(world: World) -> None:
        try:
            dist.barrier()
            if world.rank == 2:
                raise OfOneRankError
            while True:
                dist.all_reduce(torch.ones(1))
        except Exception:
            assert world.rank == 2, "only the rank that failed has an error to handle"
            raise
        finally:
            left.append(world.rank)

    with pytest.raises(OfOneRankError):
        devices.testing.run(waits, ranks=5, **how)
    assert sorted(left) == [0, 1, 2, 3, 4]


def test_the_first_error_counts() -> None:
    def fails(world: World) -> None:
        try:
            if world.rank == 1:
                raise OfOneRankError("the first")
            dist.barrier()
        finally:
            if world.rank == 0:
                raise ValueError("while it is released")

    with pytest.raises(OfOneRankError, match="the first"):
        devices.testing.run(fails, ranks=2)


def test_a_run_within_a_run_is_refused() -> None:
    def nested(world: World) -> None:
        with pytest.raises(WorldError, match="a run on thread ranks is under way"):
            devices.testing.run(lambda _: None, ranks=2)

    devices.testing.run(nested, ranks=2)


def test_a_second_run_beside_the_first_is_refused() -> None:
    found: list[BaseException] = []

    def beside() -> None:
        try:
            devices.testing.run(lambda _: None, ranks=2)
        except WorldError as error:
            found.append(error)

    def starts(world: World) -> None:
        if world.rank == 0:
            thread = threading.Thread(target=beside)
            thread.start()
            thread.join()

    devices.testing.run(starts, ranks=2)
    assert len(found) == 1
    assert "under way" in str(found[0])


def test_a_verb_on_a_thread_that_is_none_of_the_ranks_is_refused() -> None:
    found: list[str] = []

    def calls(group: Any) -> None:
        try:
            dist.all_reduce(torch.ones(1), group=group)
        except Exception as error:
            found.append(str(error))

    def starts(world: World) -> None:
        thread = threading.Thread(target=calls, args=(dist.group.WORLD,))
        thread.start()
        thread.join()

    devices.testing.run(starts, ranks=2)
    assert found
    assert all("thread" in said or "group" in said for said in found)


# The process afterwards.


def of_its_own(world: World) -> None:
    if world.rank == 1:
        raise OfOneRankError
    dist.barrier()


def deadlock(world: World) -> None:
    dist.recv(torch.ones(1), src=1 - world.rank)


def mismatch(world: World) -> None:
    dist.all_reduce(torch.ones(1 + world.rank))


def race(world: World) -> None:
    x = torch.ones(4)
    work = dist.all_reduce(x, async_op=True)
    x.add_(1)
    work.wait()


def ends_itself(world: World) -> None:
    dist.barrier()
    if world.rank == 0:
        sys.exit(3)
    dist.barrier()


def interrupts_itself(world: World) -> None:
    if world.rank == 0:
        raise KeyboardInterrupt
    dist.barrier()


def in_a_helper(world: World) -> None:
    work = devices.permute(torch.ones(2), pairs=[(0, 1)], async_op=True)
    if world.rank == 1:
        raise OfOneRankError
    work.wait()
    dist.barrier()


def computes_for_ever(world: World) -> None:
    while world.rank == 1:
        pass
    dist.barrier()


def fine(world: World) -> None:
    dist.barrier()


ENDS: list[tuple[Callable[[World], None], type[BaseException] | None]] = [
    (fine, None),
    (of_its_own, OfOneRankError),
    (deadlock, DeadlockError),
    (mismatch, MismatchError),
    (race, RaceError),
    (ends_itself, RankFailedError),
    (interrupts_itself, RankFailedError),
    (in_a_helper, OfOneRankError),
    (computes_for_ever, CollectiveTimeoutError),
]


def snapshot() -> dict[str, Any]:
    """Return all that a run must leave as it was."""
    return {
        "group": dist.is_initialized(),
        "account": id(dist.distributed_c10d._world),
        "variables": dict(os.environ),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(numpy.random.get_state()),
        "dtype": torch.get_default_dtype(),
        "cores": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "filters": list(warnings.filters),
        "threads": [thread.name for thread in threading.enumerate()],
        "modules": [type(module).__name__ for module in (sys.stdout, sys.stderr)],
    }


# Where threads run freely a race may not show.
@pytest.mark.parametrize(
    ("end", "kind", "how"),
    [(*end, how) for end in ENDS for how in HOWS if end[1] is not RaceError or "parallel" not in how],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_process_is_as_before(end: Callable[[World], None], kind: type[BaseException] | None, how: Any) -> None:
    def changes(world: World) -> None:
        torch.manual_seed(world.rank)
        torch.rand(3)
        random.seed(world.rank)
        numpy.random.seed(world.rank)
        numpy.random.rand(2)
        torch.set_default_dtype(torch.float64)
        os.environ["DEVICES_TEST_OF_A_RUN"] = str(world.rank)
        warnings.simplefilter("ignore", ResourceWarning)
        world.mesh({"dp": 2})
        dist.new_group([0, 1])
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float32)
        end(world)

    devices.testing.run(fine, ranks=2)
    before = snapshot()
    if kind is None:
        devices.testing.run(changes, ranks=2, **how)
    else:
        with pytest.raises(kind):
            devices.testing.run(changes, ranks=2, **how, timeout=0.3 if kind is CollectiveTimeoutError else 60)
    after = snapshot()
    assert {name: (before[name], after[name]) for name in before if before[name] != after[name]} == {}
    assert devices.testing.run(lambda world: devices.all_reduce(torch.ones(1)).item(), ranks=3) == [3.0] * 3


@pytest.mark.parametrize("parallel", [False, True])
def test_a_rank_that_computes_for_ever_is_named_with_its_line(parallel: bool) -> None:
    def counts(world: World) -> None:
        number = 0
        dist.barrier()
        while world.rank == 1:
            number += 1  # here
        dist.barrier()

    began = time.monotonic()
    with pytest.raises(CollectiveTimeoutError) as raised:
        devices.testing.run(counts, ranks=3, timeout=0.5, parallel=parallel)
    assert time.monotonic() - began < 60
    line, said = line_of(counts, "# here"), str(raised.value)
    assert any(f"rank 1 of 3 is at {__file__}:{number}" in said for number in (line - 1, line))
    assert "rank 0 of 3 is at" not in said


def test_a_rank_that_sleeps_is_left_behind_and_said_so() -> None:
    woken = threading.Event()

    def sleeps(world: World) -> None:
        if world.rank == 0:
            dist.barrier()
        woken.wait()

    began = time.monotonic()
    try:
        with pytest.raises(CollectiveTimeoutError) as raised:
            devices.testing.run(sleeps, ranks=2, timeout=0.2)
        assert time.monotonic() - began < 60
        assert any("could not be ended" in note and note.endswith(": 1") for note in raised.value.__notes__)
    finally:
        woken.set()
    for thread in threading.enumerate():
        if thread.name.startswith("rank"):
            thread.join(10)
    assert devices.testing.run(lambda world: world.rank, ranks=2) == [0, 1]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also where pytest was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("busy", [True, False], ids=["in verbs", "computing"])
@pytest.mark.parametrize("how", HOWS, ids=str)
def test_an_interrupt_by_the_user_ends_the_run_cleanly(busy: bool, how: dict[str, Any], interruptible: None) -> None:
    left: list[int] = []
    begun = threading.Event()

    def never_ends(world: World) -> None:
        try:
            begun.set()
            while busy or world.rank == 0:
                if busy:
                    dist.all_reduce(torch.ones(2))
            dist.barrier()
        finally:
            left.append(world.rank)

    def interrupt() -> None:
        begun.wait()
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    before = snapshot()
    killer = threading.Thread(target=interrupt)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        devices.testing.run(never_ends, ranks=3, **how)
    killer.join()
    assert 0 in left
    assert snapshot() == before
    assert devices.testing.run(lambda world: world.rank, ranks=2) == [0, 1]


def test_a_world_that_is_open_in_the_process_stays_so() -> None:
    with devices.init() as world:
        group = dist.group.WORLD
        assert devices.testing.run(lambda inner: inner.size, ranks=3) == [3, 3, 3]
        assert dist.group.WORLD is group
        assert devices.all_reduce(torch.ones(1)).item() == 1
        assert (world.rank, world.size) == (0, 1)
    assert not dist.is_initialized()


# Random numbers.


DRAWS = """
import torch

def draws(pause):
    found = []
    for seed in (0, 1234):
        pause()
        torch.manual_seed(seed)
        found.append(torch.initial_seed())
        for _ in range(3):
            pause()
            found.append(torch.randn(3).tolist())
            found.append(torch.nn.functional.dropout(torch.ones(4)).tolist())
            pause()
            found.append(torch.randperm(5).tolist())
    kept = torch.get_rng_state()
    found.append(torch.rand(1).item())
    pause()
    torch.set_rng_state(kept)
    found.append(torch.rand(1).item())
    with torch.random.fork_rng():
        pause()
        torch.manual_seed(7)
        found.append(torch.rand(1).item())
    pause()
    found.append(torch.rand(1).item())
    return found
"""


@pytest.mark.slow
def test_random_numbers_are_those_of_a_process_of_its_own() -> None:
    script = f"{DRAWS}\nimport json\nprint(json.dumps(draws(lambda: None)))"
    alone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names: dict[str, Any] = {}
    exec(DRAWS, names)
    for seed in (0, 1, 2):
        found = devices.testing.run(lambda world: names["draws"](dist.barrier), ranks=3, seed=seed)
        assert found == [json.loads(alone.stdout)] * 3, seed


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranks_draw_from_generators_of_their_own(seed: int) -> None:
    def draws(world: World) -> list[list[float]]:
        random.seed(world.rank)
        numpy.random.seed(world.rank)
        torch.manual_seed(world.rank)
        found = []
        for _ in range(3):
            dist.barrier()
            found.append([random.random(), float(numpy.random.rand()), torch.rand(1).item()])
        return found

    expected = []
    for rank in range(4):
        python, generator, legacy = (
            random.Random(rank),
            torch.Generator().manual_seed(rank),
            numpy.random.RandomState(rank),
        )
        expected.append(
            [[python.random(), float(legacy.rand()), torch.rand(1, generator=generator).item()] for _ in range(3)]
        )
    assert devices.testing.run(draws, ranks=4, seed=seed) == expected


def test_what_is_not_seeded_is_the_same_in_each_run_and_differs_by_rank() -> None:
    def draws(world: World) -> tuple[float, float, float]:
        return random.random(), float(numpy.random.rand()), torch.rand(1).item()

    first, second = (devices.testing.run(draws, ranks=3) for _ in range(2))
    assert first == second
    assert [len(set(column)) for column in zip(*first, strict=True)] == [3, 3, 3]


def test_the_default_dtype_is_the_ranks_own() -> None:
    def sets(world: World) -> torch.dtype:
        if world.rank == 1:
            torch.set_default_dtype(torch.float64)
        dist.barrier()
        return torch.ones(1).dtype

    assert devices.testing.run(sets, ranks=3) == [torch.float32, torch.float64, torch.float32]


# Ranks share no tensors.


def torch_all_reduce(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    dist.all_reduce(x)
    return [x]


def torch_broadcast(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    dist.broadcast(x, src=1)
    return [x]


def torch_all_gather(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(x) for _ in range(world.size)]
    dist.all_gather(parts, x)
    return [x, *parts]


def torch_all_gather_single(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    whole = x.new_empty(world.size * x.numel())
    dist.all_gather_into_tensor(whole, x)
    return [x, whole]


def torch_reduce_scatter(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    out = torch.empty_like(x)
    dist.reduce_scatter(out, [x + rank for rank in range(world.size)])
    return [x, out]


def torch_reduce_scatter_single(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    given = torch.cat([x] * world.size)
    out = torch.empty_like(x)
    dist.reduce_scatter_tensor(out, given)
    return [given, out]


def torch_all_to_all(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    given = [x + rank for rank in range(world.size)]
    taken = [torch.empty_like(x) for _ in range(world.size)]
    dist.all_to_all(taken, given)
    return [*given, *taken]


def torch_all_to_all_single(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    given = torch.cat([x] * world.size)
    taken = torch.empty_like(given)
    dist.all_to_all_single(taken, given)
    return [given, taken]


def torch_gather(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(x) for _ in range(world.size)] if world.rank == 1 else None
    dist.gather(x, parts, dst=1)
    return [x, *(parts or [])]


def torch_scatter(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    parts = [x + rank for rank in range(world.size)] if world.rank == 1 else None
    out = torch.empty_like(x)
    dist.scatter(out, parts, src=1)
    return [out, *(parts or [])]


def torch_reduce(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    dist.reduce(x, dst=1)
    return [x]


def torch_send_and_recv(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    received = torch.empty_like(x)
    to, source = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, to), dist.P2POp(dist.irecv, received, source)]):
        work.wait()
    return [x, received]


def torch_objects(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, {"x": x})
    shared = [x if world.rank == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, [x] * world.size if world.rank == 0 else None, src=0)
    assert shared[0] is not None
    return [x, *(each["x"] for each in gathered), shared[0], mine[0]]


def torch_coalesced(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    y = x + 1
    with dist._coalescing_manager(async_ops=False):
        dist.all_reduce(x)
        dist.all_reduce(y)
    return [x, y]


def torch_functional(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    functional = torch.distributed._functional_collectives
    group = dist.group.WORLD
    assert group is not None
    found = [
        functional.all_reduce(x, "sum", group),
        functional.all_gather_tensor(x, 0, group),
        functional.all_to_all_single(torch.cat([x] * world.size), None, None, group),
        functional.broadcast(x, 0, group),
    ]
    return [x, *(each.wait() if hasattr(each, "wait") else each for each in found)]


def ours(verb: str, **arguments: Any) -> Callable[[World, torch.Tensor], list[torch.Tensor]]:
    def call(world: World, x: torch.Tensor) -> list[torch.Tensor]:
        given = torch.cat([x] * world.size)
        result = getattr(devices, verb)(given, **arguments)
        return [given] if result is None else [given, result]

    call.__name__ = f"our {verb} {arguments or ''}".strip()
    return call


def dtensors(world: World, x: torch.Tensor) -> list[torch.Tensor]:
    mesh = world.mesh({"tp": world.size})
    sharded = distribute_tensor(torch.cat([x] * world.size), mesh, [Shard(0)])
    whole = sharded.redistribute(placements=[Replicate()])
    return [sharded.to_local(), whole.to_local(), sharded.full_tensor()]


MOVERS: list[Callable[[World, torch.Tensor], list[torch.Tensor]]] = [
    torch_all_reduce, torch_broadcast, torch_all_gather, torch_all_gather_single, torch_reduce_scatter,
    torch_reduce_scatter_single, torch_all_to_all, torch_all_to_all_single, torch_gather, torch_scatter, torch_reduce,
    torch_send_and_recv, torch_objects, torch_coalesced, torch_functional, dtensors,
    ours("all_reduce"), ours("all_gather"), ours("reduce_scatter"), ours("all_to_all"), ours("broadcast", src=1),
    ours("reduce", dst=1), ours("gather", dst=1), ours("scatter", src=1), ours("all_reduce", op="avg"),
    ours("permute", pairs=[(0, 1), (1, 2), (2, 0)]), ours("permute", pairs=[(0, 0), (1, 2), (2, 1)]),
]  # fmt: skip


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("move", MOVERS, ids=lambda move: move.__name__)
def test_a_rank_that_changes_its_tensors_never_changes_anothers(move: Any, dtype: torch.dtype, how: Any) -> None:
    """Each rank fills all that it has with a number of its own, and finds nothing else there when all have."""

    def fills(world: World) -> tuple[list[list[float]], bool]:
        held = move(world, torch.arange(4.0).to(dtype) + world.rank)
        dist.barrier()
        places = {tensor.untyped_storage().data_ptr() for tensor in held}
        for tensor in held:
            tensor.fill_(world.rank + 1)
        dist.barrier()
        everyones: list[Any] = [None] * world.size
        dist.all_gather_object(everyones, places)
        others = set().union(*(each for rank, each in enumerate(everyones) if rank != world.rank))
        return [tensor.flatten().tolist() for tensor in held], not places & others

    for rank, (held, is_apart) in enumerate(devices.testing.run(fills, ranks=3, **how)):
        assert held
        assert all(number == rank + 1 for numbers in held for number in numbers)
        assert is_apart


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_hooks_and_gradients_stay_on_their_rank(how: dict[str, Any]) -> None:
    def trains(world: World) -> tuple[list[int], list[int], bool, torch.Tensor]:
        seen: list[int] = []
        here = threading.current_thread()
        x = torch.full((3,), float(world.rank), requires_grad=True)
        y = devices.all_reduce(x * (world.rank + 1))
        y.register_hook(lambda gradient: seen.append(world.rank))
        x.register_hook(lambda gradient: seen.append(dist.get_rank()))
        x.register_post_accumulate_grad_hook(lambda _: seen.append(id(threading.current_thread()) == id(here) and 7))
        layer = nn.Linear(3, 3)
        nn.init.ones_(layer.weight)
        calls: list[int] = []
        layer.register_forward_hook(lambda *_: calls.append(dist.get_rank()))
        layer.register_full_backward_hook(lambda *_: calls.append(dist.get_rank()))
        dist.barrier()
        layer(y).sum().backward()
        dist.barrier()
        assert x.grad is not None
        return seen, calls, torch.is_grad_enabled(), x.grad

    for rank, (seen, calls, is_on, gradient) in enumerate(devices.testing.run(trains, ranks=4, **how)):
        assert seen == [rank, rank, 7]
        assert calls == [rank, rank]
        assert is_on
        # Each of four ranks' losses has three outputs, and x a factor of its own in each.
        assert gradient.tolist() == [4 * 3 * (rank + 1)] * 3


def test_no_grad_and_autocast_stay_on_their_rank() -> None:
    def changes(world: World) -> tuple[bool, torch.dtype, bool]:
        x = torch.ones(2, 2, requires_grad=True)
        with torch.no_grad() if world.rank == 0 else torch.enable_grad():
            dist.barrier()
            has_gradient = (x * 2).requires_grad
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=world.rank == 1):
                dist.barrier()
                product = x @ x
            with torch.inference_mode(world.rank == 2):
                dist.barrier()
                return has_gradient, product.dtype, torch.ones(1).is_inference()

    assert devices.testing.run(changes, ranks=3) == [
        (False, torch.float32, False), (True, torch.bfloat16, False), (True, torch.float32, True)
    ]  # fmt: skip


# Many ranks, and for long.


@pytest.mark.slow
def test_144_ranks_pass_messages_reduce_and_train_on_a_mesh() -> None:
    def works(world: World) -> float:
        mesh = world.mesh({"dp": 72, "tp": 2})
        x = torch.full((2,), float(world.rank))
        received = devices.permute(x, pairs=[(rank, (rank + 1) % world.size) for rank in range(world.size)])
        assert received.tolist() == [(world.rank - 1) % world.size] * 2
        assert devices.all_reduce(x, mesh["dp"]).tolist() == [sum(range(world.rank % 2, 144, 2))] * 2
        weight = distribute_tensor(torch.ones(4, 4), mesh, [Replicate(), Shard(0)]).requires_grad_()
        out = DTensor.from_local(torch.ones(1, 4), mesh, [Shard(0), Replicate()]) @ weight.t()
        out.full_tensor().sum().backward()
        assert weight.grad is not None
        return float(weight.grad.full_tensor().sum())

    began = time.monotonic()
    results = devices.testing.run(works, ranks=144)
    assert time.monotonic() - began < 30
    assert len(set(results)) == 1


@pytest.mark.slow
def test_free_threads_stand_stress() -> None:
    def stress(world: World) -> list[float]:
        store, found = dist.distributed_c10d._get_default_store(), []
        peer = world.rank ^ 1
        for step in range(10):
            x = torch.full((5 + 40000 * (step % 2),), float(world.rank + step))
            work = dist.all_reduce(x, async_op=True)
            y = torch.ones(world.rank % 2 + 1, dtype=torch.bfloat16)
            later = devices.all_gather(y, sizes=[1, 2, 1, 2], async_op=True)
            ring = devices.permute(torch.tensor([world.rank]), pairs=[(0, 1), (1, 2), (2, 3), (3, 0)])
            if world.rank % 2:
                devices.send(torch.full((2,), float(step)), dst=peer)
            else:
                found += devices.recv(torch.empty(2), src=peer).tolist()
            work.wait()
            number = store.add(f"step {step}", 1)
            dist.barrier()
            assert 1 <= number <= store.add(f"step {step}", 0) == 4
            found += [x[0].item(), x[-1].item(), later.result().sum().item(), ring.item()]
        return found

    expected = [
        [
            number
            for step in range(10)
            for number in ([step] * 2 if rank % 2 == 0 else []) + [6 + 4 * step, 6 + 4 * step, 6, (rank - 1) % 4]
        ]
        for rank in range(4)
    ]
    for _ in range(20):
        assert devices.testing.run(stress, ranks=4, parallel=True, timeout=60) == expected


@pytest.mark.slow
def test_a_rank_more_takes_less_than_a_megabyte() -> None:
    script = textwrap.dedent("""
        import os, sys, torch, devices, devices.testing

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def measured(world):
            x = torch.ones(16, requires_grad=True)
            devices.all_reduce(x).sum().backward()
            world.mesh({"dp": -1, "tp": 2})
            devices.barrier()
            return resident()

        few = max(devices.testing.run(measured, ranks=4))
        many = max(devices.testing.run(measured, ranks=132))
        print((many - few) / 128)
    """)
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to tell how much memory a process has")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 1e6


def alive() -> Counter[str]:
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects())


OURS = (
    "_Export", "DevicesGroup", "FabricCommunicator", "Verbs", "Worker", "Task", "FabricWork", "Mark", "Sent", "Thread"
)  # fmt: skip


def assert_nothing_stays(counts: list[Counter[str]]) -> None:
    first, last = counts
    assert {name: (first[name], last[name]) for name in OURS if last[name] > first[name] + 4} == {}


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"seed": 1}, {"parallel": True}], ids=str)
def test_hundreds_of_groups_opened_and_closed_leave_nothing(how: dict[str, Any]) -> None:
    def opens(world: World) -> list[Counter[str]]:
        counts = []
        for number in range(301):
            group = dist.new_group([0, 1])
            dist.all_reduce(torch.ones(2), group=group)
            if number % 10 == 0:
                devices.permute(torch.ones(2), group, pairs=[(0, 1)], async_op=True).wait()
            dist.destroy_process_group(group)
            dist.barrier()
            if world.rank == 0 and number in (100, 300):
                counts.append(alive())
            dist.barrier()
        return counts

    assert_nothing_stays(devices.testing.run(opens, ranks=2, **how)[0])


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"seed": 1}, {"parallel": True}], ids=str)
def test_thousands_of_collectives_leave_no_exports(how: dict[str, Any]) -> None:
    def calls(world: World) -> list[Counter[str]]:
        counts = []
        x = torch.ones(4)
        for number in range(301):
            x.fill_(1)
            dist.all_reduce(x)
            dist.broadcast(x, 0)
            dist.reduce(x, 1)
            devices.all_to_all(x[:2])
            devices.gather(x, dst=1)
            devices.scatter(x if world.rank == 0 else None)
            devices.permute(x, pairs=[(0, 1)])
            devices.all_gather(x[: world.rank + 1], sizes=[1, 2])
            devices.reduce_scatter(x)
            devices.all_reduce(x.bfloat16(), async_op=True).wait()
            dist.barrier()
            if world.rank == 0 and number in (100, 300):
                counts.append(alive())
            dist.barrier()
        return counts

    assert_nothing_stays(devices.testing.run(calls, ranks=2, **how)[0])


def test_no_garbage_is_collected_while_all_threads_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In CPython 3.11 the end of a `threading.local` would then stop the process, pytest's time limit included."""
    collects = []
    for name in ("_current_frames", "_current_exceptions"):
        original = getattr(sys, name)
        monkeypatch.setattr(sys, name, lambda original=original: (collects.append(gc.isenabled()), original())[1])
    with pytest.raises(DeadlockError):
        devices.testing.run(deadlock, ranks=2)
    assert collects == [False, False]
    assert gc.isenabled()


def test_a_run_leaves_no_objects() -> None:
    def works(world: World) -> None:
        devices.all_reduce(torch.ones(4).bfloat16(), async_op=True).wait()
        dist.new_group([0, 1])

    before = alive()
    for _ in range(3):
        devices.testing.run(works, ranks=3)
        with pytest.raises(DeadlockError):
            devices.testing.run(deadlock, ranks=2)
    after = alive()
    assert {name: (before[name], after[name]) for name in OURS if after[name] > before[name]} == {}
