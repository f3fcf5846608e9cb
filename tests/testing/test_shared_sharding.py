"""DTensor on thread ranks, which share how an op is sharded: each rank gets what it would by itself."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication, register_sharding

import devices.testing
from devices import World

pytestmark = pytest.mark.slow

Tensor = torch.Tensor
METHOD = "propagate_op_sharding_non_cached"


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    """Return how often each op's sharding is worked out, whoever asks."""
    propagator = DTensor._op_dispatcher.sharding_propagator
    counts: Counter[Any] = Counter()
    original = getattr(propagator, METHOD)

    def counting(schema: Any) -> Any:
        counts[schema.op] += 1
        return original(schema)

    monkeypatch.setattr(propagator, METHOD, counting)
    return counts


def square(world: World) -> DeviceMesh:
    return world.mesh({"dp": 2, "tp": 2})


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


PLACEMENTS: list[tuple[Placement, Placement]] = [
    (Replicate(), Shard(0)),
    (Shard(0), Replicate()),
    (Shard(0), Shard(1)),
    (Shard(1), Shard(0)),
]

# None of the sizes is a multiple of 2, so ranks hold parts of different sizes, of which DTensor refuses some.
CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ x.T,
    "softmax": lambda x: x.softmax(-1),
    "sum": lambda x: x.sum(0),
    "norm": lambda x: torch.linalg.vector_norm(x),
    "view": lambda x: x.view(5, 7, 1).expand(5, 7, 3).reshape(5, 21),
    "flatten": lambda x: x.view(-1),
    "cat": lambda x: torch.cat([x, 2 * x]),
    "split": lambda x: x.split(3, dim=1)[-1],
    "layer norm": lambda x: F.layer_norm(x, (7,)),
    "zeros": lambda x: torch.zeros_like(x) + x.new_ones(7),
    "where": lambda x: torch.where(x > 0, x, x * 1.0),
    "scalars": lambda x: (x * 1 + x * 1.0) * True,
    "embedding": lambda x: F.embedding(torch.tensor([4, 0, 2]), x),
}


def tried(world: World, case: Callable[[Tensor], Tensor], placements: tuple[Placement, Placement]) -> list[object]:
    """Return what a rank gets: its part of an op's result and of the gradient, or an error."""
    mesh = square(world)
    x = distribute_tensor(values(5, 7), mesh, placements).requires_grad_()
    got: list[object] = []
    try:
        with implicit_replication():
            found = case(x)
            got += [str(found.placements), found.to_local().tolist(), found.device_mesh is mesh]
            (found * found).sum().backward()
            got += [str(x.grad.placements), x.grad.to_local().tolist(), x.grad.device_mesh is mesh]
    except Exception as error:
        got += [type(error), str(error)]
    return got


@pytest.mark.parametrize("placements", PLACEMENTS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_rank_gets_what_it_gets_when_it_works_out_all_by_itself(
    case: Callable[[Tensor], Tensor], placements: tuple[Placement, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = devices.testing.run(tried, case, placements, ranks=4)
    monkeypatch.setattr("devices.testing._rank_state.shared_sharding", contextlib.nullcontext)
    assert shared == devices.testing.run(tried, case, placements, ranks=4)


@pytest.mark.parametrize("case", ["matmul", "softmax", "cat", "where", "scalars", "view"])
def test_an_op_and_its_gradient_give_what_they_give_on_one_plain_tensor(case: str) -> None:
    plain = values(5, 7).requires_grad_()
    expected = CASES[case](plain)
    (expected * expected).sum().backward()

    def on_rank(world: World) -> None:
        x = distribute_tensor(values(5, 7), square(world), [Shard(0), Replicate()]).requires_grad_()
        found = CASES[case](x)
        assert isinstance(found, DTensor)
        torch.testing.assert_close(found.full_tensor(), expected)
        (found * found).sum().backward()
        assert isinstance(x.grad, DTensor)
        torch.testing.assert_close(x.grad.full_tensor(), plain.grad)

    devices.testing.run(on_rank, ranks=4)


def test_an_embedding_split_by_rows_masks_what_other_ranks_hold() -> None:
    """Its placement keeps a mask, which is a rank's own."""
    table, tokens = values(6, 3), torch.tensor([5, 0, 3, 2, 2])

    def on_rank(world: World) -> None:
        mesh = square(world)
        for part in range(2):
            mine = tokens.roll(part)
            weight = distribute_tensor(table, mesh["tp"], [Shard(0)])
            found = F.embedding(distribute_tensor(mine, mesh["tp"], [Replicate()]), weight)
            torch.testing.assert_close(found.full_tensor(), table[mine])

    devices.testing.run(on_rank, ranks=4)


@pytest.mark.parametrize("how", [{}, {"seed": 3}, {"parallel": True}], ids=str)
def test_ranks_whose_tensors_lie_in_different_ways_do_not_mix_them_up(how: dict[str, Any]) -> None:
    """Each pair of ranks has a mesh of its own, of one shape with the other's."""

    def on_rank(world: World) -> tuple[tuple[Placement, ...], list[int]]:
        mesh = square(world)["tp"]
        pair = world.rank // 2
        x = distribute_tensor(values(4, 6), mesh, [Shard(pair)])
        found = x.sum(1)
        assert found.device_mesh is mesh
        torch.testing.assert_close(found.full_tensor(), values(4, 6).sum(1))
        return found.placements, list(found.to_local().shape)

    found = devices.testing.run(on_rank, ranks=4, **how)
    assert found == [((Shard(0),), [2])] * 2 + [((Partial(),), [4])] * 2


def test_what_one_rank_worked_out_the_others_take(worked_out: Counter[Any]) -> None:
    def on_rank(world: World) -> None:
        mesh = square(world)
        for _ in range(2):
            x = distribute_tensor(values(4, 4), mesh, [Shard(0), Replicate()])
            _ = (x @ x.T).relu()

    devices.testing.run(on_rank, ranks=4)
    assert worked_out[torch.ops.aten.mm.default] == worked_out[torch.ops.aten.relu.default] == 1


def test_of_an_op_that_takes_a_shape_each_rank_works_out_its_own(worked_out: Counter[Any]) -> None:
    def on_rank(world: World) -> list[int]:
        x = distribute_tensor(values(5, 2, 2), square(world), [Shard(0), Replicate()])
        return list(x.view(5, 4).to_local().shape)

    assert devices.testing.run(on_rank, ranks=4) == [[3, 4], [3, 4], [2, 4], [2, 4]]
    assert worked_out[torch.ops.aten.view.default] == 4


def test_a_strategy_of_the_programs_own_is_asked_on_each_rank() -> None:
    asked = []

    @torch.library.custom_op("devices_tests::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    @doubled.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    @register_sharding(torch.ops.devices_tests.doubled.default)
    def _(x: Any) -> Any:
        asked.append(x)
        return [([Replicate()], [Replicate()]), ([Shard(0)], [Shard(0)])]

    def on_rank(world: World) -> None:
        x = distribute_tensor(values(4, 4), square(world), [Shard(0), Replicate()])
        torch.testing.assert_close(doubled(x).full_tensor(), 2 * values(4, 4))

    devices.testing.run(on_rank, ranks=4)
    assert len(asked) == 4


def test_torchs_own_is_back_when_the_run_is_over() -> None:
    propagator = DTensor._op_dispatcher.sharding_propagator
    before = getattr(propagator, METHOD)
    with pytest.raises(ZeroDivisionError):
        devices.testing.run(lambda world: 1 / 0, ranks=2)
    assert getattr(propagator, METHOD) == before
