"""Bad input: a clear error on the calling rank, before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate

import devices
import devices.testing
from devices.errors import ArgumentError, CollectiveError, DtypeError, MeshError, PlacementError, WorldError

Tensor = torch.Tensor
Bad = tuple[Callable[[], Any], type[Exception], str]
WHOLE, REAL = torch.ones(4, dtype=torch.int32), torch.ones(4)
FLOAT8 = torch.ones(4).to(torch.float8_e4m3fn)
COMPLEX = torch.ones(4, dtype=torch.complex64)


def _reductions() -> list[Bad]:
    return [
        (lambda: devices.all_reduce(REAL, op="summ"), ArgumentError, "no reduce op 'summ'; did you mean 'sum'?"),
        (lambda: devices.reduce(REAL, op="average"), ArgumentError, "no reduce op 'average'"),
        (lambda: devices.reduce_scatter(REAL, op=None), ArgumentError, "no reduce op None"),  # type: ignore[arg-type]
        (lambda: devices.all_reduce(WHOLE, op="avg"), DtypeError, "op 'avg' has no meaning on torch.int32"),
        (lambda: devices.reduce_scatter(WHOLE, op="avg"), DtypeError, "op 'avg' has no meaning on torch.int32"),
        (lambda: devices.reduce(REAL, op="band"), DtypeError, "op 'band' has no meaning on torch.float32"),
        (lambda: devices.all_reduce([WHOLE, REAL], op="bxor"), DtypeError, "op 'bxor' has no meaning on torch.float32"),
        (lambda: devices.all_reduce(COMPLEX, op="max"), DtypeError, "complex numbers have no order"),
        (lambda: devices.all_reduce(FLOAT8), DtypeError, "can be moved but not reduced"),
        (lambda: devices.all_reduce(WHOLE, op="avg", weight=1.0), DtypeError, "op 'avg' has no meaning on torch.int32"),
        (lambda: devices.all_reduce(REAL, weight=1.0), ArgumentError, "weight= goes with op='avg', not with op='sum'"),
        (lambda: devices.all_reduce(REAL, op="avg", weight=-1.0), ArgumentError, "finite and not negative, got -1.0"),
        (lambda: devices.all_reduce(REAL, op="avg", weight=float("nan")), ArgumentError, "not negative, got nan"),
        (lambda: devices.all_reduce(REAL, op="avg", weight="2"), ArgumentError, "this rank; got '2'"),  # type: ignore[arg-type]
        (lambda: devices.all_reduce(REAL, op="avg", weight=REAL), ArgumentError, "one number, that of this rank"),
    ]


def _ranks_and_sizes(size: int) -> list[Bad]:
    odd = torch.ones(size + 1, 2)
    return [
        (lambda: devices.broadcast(REAL, src=size), ArgumentError, f"src={size}, but the group's ranks are 0 to"),
        (lambda: devices.broadcast(REAL, src=-1), ArgumentError, "src=-1, but the group's ranks are 0 to"),
        (lambda: devices.reduce(REAL, dst=size), ArgumentError, f"dst={size}, but the group's ranks are"),
        (lambda: devices.gather(REAL, dst=1.0), ArgumentError, "dst=1.0, but the group's ranks are"),  # type: ignore[arg-type]
        (lambda: devices.scatter(REAL, src=size), ArgumentError, f"src={size}, but the group's ranks are"),
        (lambda: devices.send(REAL, dst=size), ArgumentError, f"dst={size}, but the group's ranks are"),
        (lambda: devices.recv(REAL, src=-2), ArgumentError, "src=-2, but the group's ranks are"),
        (lambda: devices.send(REAL, dst=dist.get_rank()), ArgumentError, "is this rank itself"),
        (lambda: devices.send(REAL, dst=(dist.get_rank() + 1) % size, tag=-1), ArgumentError, "tag=-1 is not between"),
        (lambda: devices.permute(REAL, pairs=[(0, size)]), ArgumentError, f"a destination={size}, but"),
        (lambda: devices.permute(REAL, pairs=[(0, 1), (0, 0)]), ArgumentError, "a rank is twice a source"),
        (lambda: devices.permute(REAL, pairs=[(0, 1, 2)]), ArgumentError, "does; got [(0, 1, 2)]"),  # type: ignore[list-item]
        (lambda: devices.permute(REAL, pairs=1), ArgumentError, "(source, destination), as"),  # type: ignore[arg-type]
        (lambda: devices.permute(REAL, pairs=[(0, 1), (1, 1)]), ArgumentError, "a rank is twice a destination"),
        (lambda: devices.reduce_scatter(odd), ArgumentError, f"dim 0 has size {size + 1}, which {size} ranks do not"),
        (lambda: devices.all_to_all(odd), ArgumentError, f"dim 0 has size {size + 1}, which {size} ranks do not"),
        (lambda: devices.all_gather(REAL, dim=1), ArgumentError, "dim=1, but the tensor of shape (4,) has 1 dims"),
        (lambda: devices.all_gather(REAL, sizes=[4]), ArgumentError, f"sizes= must hold {size} sizes"),
        (lambda: devices.all_gather(REAL, sizes=[5] * size), ArgumentError, "whose input has size 4 along dim 0"),
        (lambda: devices.gather(REAL, sizes=[-4] * size), ArgumentError, "none negative; got [-4"),
        (lambda: devices.reduce_scatter(REAL, sizes=[4] * size), ArgumentError, f"adds up to {4 * size}, but dim 0"),
        (lambda: devices.all_to_all(REAL, sizes=[[4]]), ArgumentError, f"must hold {size} rows"),
        (lambda: devices.all_to_all(REAL, sizes=4), ArgumentError, f"must hold {size} rows"),  # type: ignore[arg-type]
        (lambda: devices.all_to_all(REAL, sizes=[4] * size), ArgumentError, "sizes[0]= must hold"),  # type: ignore[list-item]
        (lambda: devices.all_gather(REAL, sizes=4), ArgumentError, "each rank; got 4"),  # type: ignore[arg-type]
        (lambda: devices.all_to_all(REAL, sizes=[[1] * (size + 1)] * size), ArgumentError, "sizes[0]= must hold"),
        (lambda: devices.all_to_all(REAL, sizes=[[0] * size] * size), ArgumentError, "adds up to 0, but dim 0 has"),
    ]


def _outputs(size: int) -> list[Bad]:
    needs_gradient = torch.ones(4, requires_grad=True)
    return [
        (lambda: devices.all_reduce(REAL, out=torch.empty(3)), ArgumentError, "out= is of shape (3,)"),
        (lambda: devices.all_gather(REAL, out=torch.empty(4)), ArgumentError, f"result is of shape ({4 * size},)"),
        (
            lambda: devices.all_reduce(REAL, out=torch.empty(4).double()),
            ArgumentError,
            "out= is of shape (4,)",
        ),
        (lambda: devices.all_reduce(REAL, out=torch.empty(4, device="meta")), ArgumentError, "torch.float32 on meta"),
        (lambda: devices.all_reduce(REAL, out=needs_gradient), ArgumentError, "out= requires grad"),
        (lambda: devices.all_reduce(needs_gradient, out=torch.empty(4)), ArgumentError, "the input requires grad"),
        (
            lambda: devices.all_reduce(REAL, out=[torch.empty(4)] * 2),
            ArgumentError,
            "out= holds 2 tensors",
        ),
        (lambda: devices.broadcast(REAL, out=torch.empty(1).expand(4)), ArgumentError, "out= is expanded"),
        (
            lambda: devices.all_reduce(REAL, op="avg", weight=1, out=torch.empty(3)),
            ArgumentError,
            "out= is of shape",
        ),
    ]


def _inputs(world: devices.World) -> list[Bad]:
    mesh = world.mesh({"dp": 1, "tp": -1})
    placed = devices.place(torch.ones(4), mesh, tp=Replicate())
    meta = torch.ones(4, device="meta")
    return [
        (lambda: devices.all_reduce(REAL, mesh), MeshError, "this mesh has 2 (dp, tp); pass mesh['tp']"),
        (lambda: devices.barrier(mesh), MeshError, "this mesh has 2 (dp, tp)"),
        (lambda: devices.all_reduce(REAL, "tp"), ArgumentError, "got str 'tp'; pass mesh['tp']"),  # type: ignore[arg-type]
        (lambda: devices.all_reduce(REAL, "avg"), ArgumentError, "got str 'avg'; pass op='avg'"),  # type: ignore[arg-type]
        (lambda: devices.barrier([0, 1]), ArgumentError, "got list; torch.distributed.new_group"),  # type: ignore[arg-type]
        (lambda: world.mesh([2]), MeshError, "names and lengths, as {'dp': -1, 'tp': 2} has; got [2]"),  # type: ignore[arg-type]
        (lambda: devices.place(REAL, {"tp": 2}), PlacementError, "lays on a DeviceMesh"),  # type: ignore[call-overload]
        (lambda: devices.all_reduce(placed), ArgumentError, "a DTensor was given; pass x.to_local()"),
        (lambda: devices.all_gather([REAL, placed]), ArgumentError, "a DTensor was given"),
        (lambda: devices.all_reduce(meta), ArgumentError, "the tensor is on 'meta'"),
        (lambda: devices.all_gather([REAL, meta]), ArgumentError, "the tensors lie on cpu and on meta"),
        (lambda: devices.all_reduce(REAL.to_sparse()), ArgumentError, "layout torch.sparse_coo"),
        (lambda: devices.all_reduce([]), ArgumentError, "the list of tensors is empty"),
        (lambda: devices.all_gather({}), ArgumentError, "the dict of tensors is empty"),
        (lambda: devices.broadcast(3.0), ArgumentError, "takes a tensor, or a list, tuple or dict"),  # type: ignore[arg-type]
        (lambda: devices.broadcast([REAL, 1]), ArgumentError, "item 1 is not a tensor"),  # type: ignore[list-item]
    ]


def _said(bad: Bad) -> str:
    function, kind, part = bad
    with pytest.raises(kind, match=re.escape(part)) as error:
        function()
    return str(error.value)


def _alone_on_rank_0() -> tuple[int, list[str]]:
    """Let rank 0 alone call what is bad, then all ranks a barrier: had anything been sent, it would be in the way."""
    with devices.init(timeout=100) as world:
        said = []
        inputs = _inputs(world)
        if world.rank == 0:
            bad = [*_reductions(), *_ranks_and_sizes(world.size), *_outputs(world.size), *inputs]
            said = [_said(one) for one in bad]
        devices.barrier()
        assert devices.all_reduce(torch.ones(1)).item() == world.size
        return len(said), [one for one in said if f"rank 0 of {world.size}" not in one]


@pytest.mark.parametrize("size", [2, 3])
def test_bad_input_is_an_error_on_the_calling_rank_before_anything_is_sent(size: int) -> None:
    (count, without_rank), *others = ranks.run(size, _alone_on_rank_0)
    assert count > 40
    assert not without_rank, "these do not say which rank of how many"
    assert all(other == (0, []) for other in others)


def _bad_scatter() -> list[str]:
    with devices.init(timeout=100) as world:
        bad: list[tuple[Any, dict[str, Any]]] = [
            (None, {}),
            (torch.ones(4), {}),
            (torch.ones(3), {"sizes": [1, 1, 2]}),
            (torch.ones(3), {"sizes": 5}),
            (torch.ones(3), {"dim": 1}),
            ([], {}),
        ]
        said = []
        for x, arguments in bad:
            with pytest.raises(ArgumentError) as error:
                devices.scatter(x if world.rank == 1 else None, src=1, **arguments)
            said.append(str(error.value))
        if world.rank == 1:
            with pytest.raises(ArgumentError) as error:
                devices.scatter(torch.ones(3), src=1, out=torch.empty(2))
        else:
            with pytest.raises(ArgumentError) as error:
                devices.scatter(src=1)
        said.append(str(error.value))
        # The group goes on as if nothing had been.
        many = {f"tensor {at}": torch.full((3, at), float(at)) for at in range(200)}
        found = devices.scatter(many if world.rank == 1 else None, src=1)
        assert all(torch.equal(found[key], many[key][world.rank : world.rank + 1]) for key in many)
        return said


def test_bad_input_to_scatter_is_an_error_on_every_rank_for_all_wait_for_its_source() -> None:
    parts = [
        "x is None on src=1",
        "dim 0 has size 4, which 3 ranks do not divide",
        "adds up to 4, but dim 0 has size 3",
        "sizes= must hold 3 sizes, one for each rank; got 5",
        "dim=1, but the tensor of shape (3,) has 1 dims",
        "the list of tensors is empty",
        "out= is of shape (2,)",
    ]
    for rank, said in enumerate(ranks.run(3, _bad_scatter)):
        for one, part in zip(said, parts, strict=True):
            assert part in one
            assert rank == 1 or f"scatter on rank {rank} of 3: it failed on rank 1" in one


def test_a_rank_that_scatters_along_another_dim_than_the_source_is_told_both() -> None:
    def scatters(world: devices.World) -> None:
        devices.scatter(torch.ones(4, 4) if world.rank == 0 else None, dim=world.rank)

    both = "scatter on rank 1 of 2: dim=1, but rank 0, whose tensors it scatters, has dim=0"
    with pytest.raises(ArgumentError, match=both):
        devices.testing.run(scatters, ranks=2)


def test_a_verb_without_a_world_says_how_to_open_one() -> None:
    for verb in (devices.all_reduce, devices.all_gather, devices.scatter, devices.broadcast):
        with pytest.raises(WorldError, match=r"no world is open; call devices\.init\(\)"):
            verb(REAL)
    with pytest.raises(WorldError, match="no world is open"):
        devices.barrier()


def test_a_verb_over_a_closed_world_says_that_it_is_closed() -> None:
    with devices.init() as world:
        axis, group = world.mesh({"dp": 1})["dp"], dist.group.WORLD
    with pytest.raises(WorldError, match="no world is open"):
        devices.all_reduce(REAL)
    for verb in (devices.all_reduce, devices.all_gather):
        with pytest.raises(WorldError, match="is closed; open one by"):
            verb(REAL, axis)
        with pytest.raises(WorldError, match=r"rank 0 of 1 .* closed"):
            verb(REAL, group)


def test_a_verb_over_a_destroyed_group_of_torchs_own_says_so() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    assert torch.equal(devices.all_reduce(REAL, group), REAL)
    with pytest.raises(ArgumentError, match="rank 0 of 1: the tensor is on 'meta'"):
        devices.all_reduce(torch.ones(1, device="meta"), group)
    dist.destroy_process_group()
    with pytest.raises(WorldError, match="was destroyed"):
        devices.all_reduce(REAL, group)


def _late() -> str:
    with devices.init(timeout=5) as world:
        if world.rank == 1:
            # It waits on the store, not in a verb: it is there and yet does not come.
            dist.group.WORLD.get_group_store().wait(["done"], timedelta(seconds=40))  # type: ignore[union-attr]
            return ""
        with pytest.raises(CollectiveError) as error:
            devices.all_reduce(torch.ones(1))
        dist.group.WORLD.get_group_store().set("done", "")  # type: ignore[union-attr]
        return f"{type(error.value).__name__}: {error.value}"


def test_a_rank_that_does_not_come_is_an_error_within_the_timeout() -> None:
    said, _ = ranks.run(2, _late)
    assert re.match(r"CollectiveTimeoutError: rank 0 of 2 in group '0': all_reduce.* failed: ", said)
