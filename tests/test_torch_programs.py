"""What torch builds on a process group, over ours and over gloo: the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

pytestmark = pytest.mark.slow


def over_both(program: Callable[..., Any], tolerance: float, args: tuple[Any, ...]) -> None:
    """Run the program over gloo, then over ours, in worlds one after the other, and compare what it returns."""
    results = {}
    for backend in ("gloo", "devices"):
        torch.manual_seed(0)
        dist.init_process_group(backend)
        results[backend] = program(*args)
        dist.destroy_process_group()
    torch.testing.assert_close(results["devices"], results["gloo"], rtol=tolerance, atol=tolerance)


def same(size: int, program: Callable[..., Any], *args: Any, tolerance: float = 0.0) -> None:
    ranks.run(size, over_both, program, tolerance, args)


class MLP(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def batch(step: int, *shape: int, rank: int | None = None) -> torch.Tensor:
    """Return a step's input: of this rank, unless another is named."""
    generator = torch.Generator().manual_seed(100 * step + (dist.get_rank() if rank is None else rank))
    return torch.randn(*shape, generator=generator)


def train(model: nn.Module, steps: int = 3, rank: int | None = None) -> list[torch.Tensor]:
    """Train and return all losses."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(batch(step, 4, 8, rank=rank)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers, whole."""
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in model.state_dict().items()
    }


# Data parallel.


def sent_as_bfloat16(_, bucket):  # type: ignore[no-untyped-def] - torch refuses annotations that are strings
    # By another name than torch's own, which it refuses where there is no NCCL.
    return bf16_compress_hook(None, bucket)


def data_parallel(hook: Any, options: dict[str, Any]) -> Any:
    model = nn.parallel.DistributedDataParallel(nn.Sequential(MLP(), nn.BatchNorm1d(8), MLP()), **options)
    if hook:
        model.register_comm_hook(None, hook)
    if "static_graph" not in options:
        with model.no_sync():
            model(batch(9, 4, 8)).sum().backward()
    return train(model), state(model)


@pytest.mark.parametrize(
    ("hook", "options"),
    [
        (None, {}),
        (None, {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.001}),
        (None, {"static_graph": True}),
        (fp16_compress_hook, {}),
        (sent_as_bfloat16, {}),
    ],
    ids=["plain", "many buckets", "static graph", "float16 on the way", "bfloat16 on the way"],
)
def test_distributed_data_parallel(hook: Any, options: dict[str, Any]) -> None:
    same(2, data_parallel, hook, options)


class Branching(nn.Module):
    """Uses one branch on each rank, and on the last step the same one."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([MLP(), MLP(), MLP()])

    def forward(self, x: torch.Tensor, branch: int) -> torch.Tensor:
        return self.branches[branch](x)


def unused_parameters() -> Any:
    model = nn.parallel.DistributedDataParallel(Branching(), find_unused_parameters=True)
    for step in range(2):
        model(batch(step, 4, 8), dist.get_rank() if step == 0 else 1).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def test_data_parallel_finds_parameters_that_a_rank_did_not_use() -> None:
    same(2, unused_parameters)


def uneven_inputs() -> Any:
    model = nn.parallel.DistributedDataParallel(MLP())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with model.join():
        for step in range(2 + 2 * dist.get_rank()):
            optimizer.zero_grad()
            model(batch(step, 4, 8)).square().mean().backward()
            optimizer.step()
    return state(model)


def test_data_parallel_joins_ranks_that_have_fewer_inputs() -> None:
    same(2, uneven_inputs)


# Fully sharded.


def fully_sharded(mixed: bool) -> Any:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    model = nn.Sequential(MLP(), MLP())
    for layer in model:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    losses = train(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    return losses, norm.full_tensor(), state(model)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed precision"])
def test_fully_sharded_data_parallel(mixed: bool) -> None:
    same(2, fully_sharded, mixed)


TENSOR_PARALLEL = {
    "norm": SequenceParallel(),
    "up": ColwiseParallel(input_layouts=Shard(1)),
    "down": RowwiseParallel(output_layouts=Shard(1)),
}


def two_dimensional() -> Any:
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return train(model, rank=mesh.get_local_rank("dp")), state(model)


@pytest.mark.slow
def test_fully_sharded_over_one_axis_and_tensor_parallel_over_the_other() -> None:
    # Four ranks' sums may be ordered otherwise.
    same(4, two_dimensional, tolerance=1e-6)


# Tensor parallel and DTensor.


def tensor_parallel() -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    whole = MLP()
    expected = whole(batch(0, 2, 4, 8, rank=0))
    model = parallelize_module(whole, mesh, TENSOR_PARALLEL)
    x = batch(0, 2, 4, 8, rank=0)
    mine = distribute_tensor(x, mesh, [Shard(1)])
    # The residual is added to local parts.
    out = mine.to_local() + model.down(F.gelu(model.up(model.norm(mine))))
    out.square().sum().backward()
    part = expected.chunk(dist.get_world_size(), 1)[dist.get_rank()]
    torch.testing.assert_close(out, part)
    return out.detach(), [parameter.grad.full_tensor() for parameter in model.parameters()]


def test_tensor_and_sequence_parallel() -> None:
    same(2, tensor_parallel)


def placements() -> Any:
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    results: list[Any] = []
    x = batch(0, 5, 7, rank=0)  # sizes that no number of ranks here divides
    for before in (Replicate(), Shard(0), Shard(1)):
        placed = distribute_tensor(x, mesh, [before]).requires_grad_()
        for after in (Replicate(), Shard(0), Shard(1)):
            moved = placed.redistribute(mesh, [after])
            (gradient,) = torch.autograd.grad((moved * moved).sum(), placed, retain_graph=True)
            torch.testing.assert_close(gradient.full_tensor(), 2 * x)
            results += [moved.to_local().detach(), gradient.to_local()]
    partial = type(placed).from_local(torch.ones(4, 2) * (dist.get_rank() + 1), mesh, [Partial()])
    results += [partial.redistribute(mesh, [where]).to_local() for where in (Replicate(), Shard(0))]
    logits = distribute_tensor(batch(1, 4, 6, rank=0), mesh, [Shard(1)]).requires_grad_()
    with loss_parallel():
        loss = F.cross_entropy(logits, torch.arange(4))
        loss.backward()
    return [*results, loss.full_tensor().detach(), logits.grad.full_tensor()]


def test_dtensors_of_uneven_sizes_move_between_all_placements() -> None:
    same(2, placements)


def mesh_of_groups() -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found = []
    for axis in ("dp", "tp"):
        total = torch.tensor([10.0 ** dist.get_rank()])
        dist.all_reduce(total, group=mesh.get_group(axis))
        found.append(total)
    flat = mesh["dp", "tp"]._flatten("all")
    everyone = torch.ones(1)
    dist.all_reduce(everyone, group=flat.get_group())
    return [*found, everyone]


def test_a_device_mesh_has_a_group_for_each_axis() -> None:
    same(4, mesh_of_groups)


def ours_for_one_axis() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"), backend_override={"tp": "devices"})
    assert dist.get_backend(mesh.get_group("tp")) == "devices"
    assert dist.get_backend(mesh.get_group("dp")) == "gloo"
    x = distribute_tensor(torch.arange(4.0), mesh["tp"], [Shard(0)])
    assert x.sum().full_tensor().item() == 6.0
    dist.destroy_process_group()


def test_a_mesh_of_another_group_may_take_ours_for_one_axis() -> None:
    ranks.run(2, ours_for_one_axis)


# Pipelines.


def pipeline(schedule: str) -> Any:
    from torch.distributed import pipelining

    rank, size = dist.get_rank(), dist.get_world_size()
    layers = nn.Sequential(*[MLP() for _ in range(size)])
    stage = pipelining.PipelineStage(layers[rank], rank, size, torch.device("cpu"))
    runner = getattr(pipelining, schedule)(stage, 4, loss_fn=F.mse_loss)
    losses: list[torch.Tensor] = []
    x, target = batch(0, 8, 8, rank=0), batch(1, 8, 8, rank=0)
    if rank == 0:
        runner.step(x)
    elif rank == size - 1:
        runner.step(target=target, losses=losses)
    else:
        runner.step()
    return [loss.detach() for loss in losses], [parameter.grad for parameter in layers[rank].parameters()]


@pytest.mark.parametrize("schedule", ["ScheduleGPipe", "Schedule1F1B"])
def test_pipeline_schedules(schedule: str) -> None:
    same(2, pipeline, schedule)


# Checkpoints.


def checkpoint(directory: str, later: bool = True) -> Any:
    from torch.distributed import checkpoint as dcp

    rank = dist.get_rank()
    directory = f"{directory}/{dist.get_backend()}"
    line = init_device_mesh("cpu", (4,), mesh_dim_names=("all",))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    x = batch(0, 7, 6, rank=0)
    dcp.save({"x": distribute_tensor(x, line, [Shard(0)]), "step": 5}, checkpoint_id=directory)
    # Into another mesh, laid otherwise.
    empty = distribute_tensor(torch.zeros(7, 6), square, [Shard(1), Shard(0)])
    loaded = {"x": empty, "step": 0}
    dcp.load(loaded, checkpoint_id=directory)
    assert loaded["step"] == 5
    assert torch.equal(loaded["x"].full_tensor(), x)
    if later:
        with contextlib.suppress(ImportError):
            # Saved while the program goes on: a group of CPU tensors is asked for.
            dcp.async_save({"y": torch.full((2,), float(rank))}, checkpoint_id=f"{directory}/later").result()
    return loaded["x"].to_local()


@pytest.mark.slow
def test_a_checkpoint_is_loaded_into_another_mesh(tmp_path: Any) -> None:
    same(4, checkpoint, str(tmp_path))


# Functional collectives, and torch.compile.


def functional() -> Any:
    import torch.distributed._functional_collectives as funcol

    group, size, rank = dist.group.WORLD, dist.get_world_size(), dist.get_rank()
    results: list[Any] = []
    x = batch(0, 4, 6)
    results.append(funcol.all_reduce(x, "sum", group))
    results.append(funcol.all_reduce(x, "max", group))
    results.append(funcol.all_gather_tensor(x, 1, group))
    results.append(funcol.reduce_scatter_tensor(x, "sum", 0, group))
    results.append(funcol.broadcast(x, 1, group))
    results.append(funcol.permute_tensor(x.flatten(), [1, 0], group))
    results.append(funcol.all_to_all_single(x, None, None, group))
    splits = [1, 3] if rank == 0 else [3, 1]
    results.append(funcol.all_to_all_single(x, splits, splits, group))
    results += funcol.all_reduce_coalesced([x, 2 * x], "sum", group)
    results += funcol.all_gather_into_tensor_coalesced([x, x[:2]], group)
    results += funcol.reduce_scatter_tensor_coalesced([x, x[:2]], "sum", [0, 0], group)
    y = x.clone().requires_grad_()
    gathered = funcol.all_gather_tensor_autograd(y, 0, group)
    scattered = funcol.reduce_scatter_tensor_autograd(gathered.square(), "sum", 0, group)
    scattered = funcol.all_to_all_single_autograd(scattered.contiguous(), None, None, group)
    scattered.sum().backward()
    assert size == 2
    return [*map(torch.clone, results), y.grad]


def test_functional_collectives() -> None:
    same(2, functional)


def compiled() -> Any:
    import torch.distributed._functional_collectives as funcol

    group = dist.group.WORLD
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))

    def program(x: torch.Tensor) -> torch.Tensor:
        return funcol.all_gather_tensor(funcol.all_reduce(x.sin(), "sum", group) * 2, 0, group).cos()

    x = batch(0, 3, 4)
    results = [torch.compile(program, backend="aot_eager", fullgraph=True)(x)]
    assert torch.equal(results[0], program(x))

    model = parallelize_module(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), mesh,
        {"0": ColwiseParallel(), "2": RowwiseParallel()},
    )  # fmt: skip
    y = batch(1, 4, 8, rank=0)
    expected = model(y)
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(y)
    assert torch.equal(found, expected)
    found.sum().backward()
    results += [found.detach(), *(parameter.grad.full_tensor() for parameter in model.parameters())]

    replicated = nn.parallel.DistributedDataParallel(MLP())
    losses = train(torch.compile(replicated, backend="aot_eager"), steps=2)
    torch._dynamo.reset()
    return [*results, *losses, *state(replicated).values()]


@pytest.mark.slow
def test_compiled_functional_tensor_parallel_and_data_parallel_programs() -> None:
    same(2, compiled)
