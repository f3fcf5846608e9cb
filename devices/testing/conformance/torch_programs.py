"""The laws of torch's own verbs, and of what torch builds on them, over the backend's process group.

Each is compared with the same in plain torch, on what all ranks have, in one process.
"""

from __future__ import annotations

import threading
import unittest

import torch
import torch.distributed as dist

import devices
from devices.testing.conformance.laws import law


def collectives(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    last = size - 1
    # Whole numbers, so that no order of adding them up matters.
    everyone = [torch.arange(2.0 * size) + 10 * of for of in range(size)]
    total, largest = torch.stack(everyone).sum(0), everyone[-1]
    mine = everyone[rank].to(device)
    results: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    # By their names of torch 2.13, if they have them: the older ones warn there.
    all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

    for op, wanted in ((dist.ReduceOp.SUM, total), (dist.ReduceOp.MAX, largest), (dist.ReduceOp.AVG, total / size)):
        x = mine.clone()
        dist.all_reduce(x, op)
        results.append((f"all_reduce by {op}", x, wanted))
    x = mine.clone()
    work = dist.all_reduce(x, async_op=True)
    assert work is not None, f"rank {rank}: torch's all_reduce with async_op=True returned no work"
    work.wait()
    results.append(("all_reduce with async_op", x, total))
    # In the memory of a larger tensor, as DDP's buckets are, the rest of which stays as it is.
    margin = torch.full((3,), -5.0)
    for name, inside in (("all_reduce", total), ("broadcast", everyone[last])):
        whole = torch.cat([margin.to(device), mine, margin.to(device)])
        if name == "all_reduce":
            dist.all_reduce(whole[3:-3])
        else:
            dist.broadcast(whole[3:-3], last)
        results.append((f"{name} of a view, and what is around it,", whole, torch.cat([margin, inside, margin])))
    out = torch.empty(size * mine.numel(), device=device)
    all_gather_single(out, mine)
    results.append(("all_gather_into_tensor", out, torch.cat(everyone)))
    parts = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(parts, mine)
    results += [(f"all_gather, part {of}", parts[of], everyone[of]) for of in range(size)]
    out = torch.empty(2, device=device)
    reduce_scatter_single(out, mine)
    results.append(("reduce_scatter_tensor", out, total[2 * rank : 2 * rank + 2]))
    out = torch.empty(2, device=device)
    dist.reduce_scatter(out, list(mine.chunk(size)))
    results.append(("reduce_scatter", out, total[2 * rank : 2 * rank + 2]))
    swapped = torch.cat([x[2 * rank : 2 * rank + 2] for x in everyone])
    out = torch.empty_like(mine)
    dist.all_to_all_single(out, mine)
    results.append(("all_to_all_single", out, swapped))
    parts = [torch.empty(2, device=device) for _ in range(size)]
    dist.all_to_all(parts, list(mine.chunk(size)))
    results.append(("all_to_all", torch.cat(parts), swapped))
    x = mine.clone()
    dist.broadcast(x, last)
    results.append(("broadcast", x, everyone[last]))
    x = mine.clone()
    dist.reduce(x, last)
    if rank == last:
        results.append(("reduce", x, total))
    parts = [torch.empty_like(mine) for _ in range(size)]
    dist.gather(mine, parts if rank == 0 else None, 0)
    if rank == 0:
        results.append(("gather", torch.cat(parts), torch.cat(everyone)))
    out = torch.empty(2, device=device)
    dist.scatter(out, list(mine.chunk(size)) if rank == last else None, last)
    results.append(("scatter", out, everyone[last][2 * rank : 2 * rank + 2]))
    dist.barrier()
    for name, found, wanted in results:
        assert torch.equal(found.cpu(), wanted), (
            f"rank {rank}: torch's {name} returned {found.tolist()}, expected {wanted.tolist()}"
        )


def messages(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    after, before = (rank + 1) % size, (rank - 1) % size
    mine, wanted = torch.full((1000,), float(rank), device=device), torch.full((1000,), float(before))
    works = [dist.isend(mine, after), dist.irecv(out := torch.empty(1000, device=device), before)]
    for work in works:
        assert work is not None, f"rank {rank}: torch's isend or irecv returned no work"
        work.wait()
    assert torch.equal(out.cpu(), wanted), f"rank {rank}: irecv from rank {before} brought {out[:3].tolist()}"
    out = torch.empty(1000, device=device)
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, mine, after), dist.P2POp(dist.irecv, out, before)]):
        work.wait()
    assert torch.equal(out.cpu(), wanted), f"rank {rank}: batch_isend_irecv brought {out[:3].tolist()}"
    out = torch.empty(1000, device=device)
    # Around the ranks, so nobody waits for one who waits.
    if rank:
        dist.recv(out, before)
    dist.send(mine, after)
    if not rank:
        dist.recv(out, before)
    assert torch.equal(out.cpu(), wanted), f"rank {rank}: recv from rank {before} brought {out[:3].tolist()}"


def objects(world: devices.World) -> None:
    size, rank = world.size, world.rank
    found: list[object] = [None] * size
    dist.all_gather_object(found, {"rank": rank})
    wanted = [{"rank": of} for of in range(size)]
    assert found == wanted, f"rank {rank}: torch's all_gather_object returned {found}, expected {wanted}"
    said = [f"from rank {rank}"]
    dist.broadcast_object_list(said, src=0)
    assert said == ["from rank 0"], f"rank {rank}: torch's broadcast_object_list returned {said}, sent from rank 0"


def data_parallel(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    batches = [torch.randn(4, 6, generator=torch.Generator().manual_seed(of)) for of in range(size)]

    def model_of() -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))
        # Ranks that are threads share torch's own generator.
        chance = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=chance)
        return model

    alone, ours = model_of(), model_of().to(device)
    parallel = torch.nn.parallel.DistributedDataParallel(ours, bucket_cap_mb=0.0005)
    for model, x in ((alone, torch.cat(batches)), (parallel, batches[rank].to(device))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for (name, wanted), found in zip(alone.named_parameters(), ours.parameters(), strict=True):
        distance = (found.detach().cpu() - wanted.detach()).abs().max().item()
        # Float32 sums in another order, three steps long.
        assert distance <= 1e-5, (
            f"rank {rank}: after three steps of DistributedDataParallel, {name} differs by {distance:.1e} from the "
            "same steps on all ranks' batches in one process; expected no more than 1e-5"
        )


def fully_sharded(world: devices.World) -> None:
    from torch.distributed.fsdp import fully_shard

    size, rank, device = world.size, world.rank, world.device
    batches = [torch.randn(4, 6, generator=torch.Generator().manual_seed(of)) for of in range(size)]

    def model_of() -> torch.nn.Sequential:
        # Of 5 and 7 rows, which most numbers of ranks do not divide.
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 7))
        # Ranks that are threads share torch's own generator.
        chance = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=chance)
        return model

    alone, ours = model_of(), model_of().to(device)
    mesh = world.mesh({"dp": size})
    for layer in (ours[0], ours[2], ours):
        fully_shard(layer, mesh=mesh)
    for model, x in ((alone, torch.cat(batches)), (ours, batches[rank].to(device))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for (name, wanted), found in zip(alone.named_parameters(), ours.parameters(), strict=True):
        distance = (found.full_tensor().detach().cpu() - wanted.detach()).abs().max().item()  # type: ignore[attr-defined]
        assert distance <= 1e-5, (
            f"rank {rank}: after three steps of fully_shard, {name} differs by {distance:.1e} from the same steps on "
            "all ranks' batches in one process; expected no more than 1e-5"
        )


def dtensors(world: devices.World) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    size, rank, device = world.size, world.rank, world.device
    mesh = world.mesh({"tp": size})
    # Whole numbers, and sizes that most numbers of ranks do not divide.
    a, b = torch.arange(35.0).view(5, 7) - 17, torch.arange(42.0).view(7, 6) - 20
    places = (Replicate(), Shard(0), Shard(1))
    for before in places:
        placed = distribute_tensor(a.to(device), mesh, [before])
        for after in places:
            found = placed.redistribute(mesh, [after]).full_tensor().cpu()
            assert torch.equal(found, a), (
                f"rank {rank}: a DTensor that was moved from {before} to {after} is {found.tolist()}, "
                f"expected {a.tolist()}"
            )
    partial = DTensor.from_local(torch.full((5, 2), rank + 1.0, device=device), mesh, [Partial()])
    wanted = torch.full((5, 2), float(sum(range(1, size + 1))))
    for after in places:
        found = partial.redistribute(mesh, [after]).full_tensor().cpu()
        assert torch.equal(found, wanted), (
            f"rank {rank}: a partial DTensor that was moved to {after} is {found.tolist()}, expected {wanted.tolist()}"
        )
    for left in places:
        for right in places:
            x = distribute_tensor(a.to(device), mesh, [left]).requires_grad_()
            y = distribute_tensor(b.to(device), mesh, [right]).requires_grad_()
            product = x @ y
            found = product.full_tensor().detach().cpu()  # type: ignore[attr-defined]
            assert torch.equal(found, a @ b), (
                f"rank {rank}: the product of DTensors that lie as {left} and {right} differs by "
                f"{(found - a @ b).abs().max().item()} from that of the plain tensors"
            )
            product.sum().backward()
            for name, leaf, plain in (("left", x, torch.ones(5, 6) @ b.t()), ("right", y, a.t() @ torch.ones(5, 6))):
                gradient = leaf.grad.full_tensor().cpu()  # type: ignore[union-attr]
                assert torch.equal(gradient, plain), (
                    f"rank {rank}: the gradient of the {name} factor, as {left} and {right}, is {gradient.tolist()}, "
                    f"expected {plain.tolist()}"
                )


def tensor_parallel(world: devices.World) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    size, rank, device = world.size, world.rank, world.device
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))

    def model_of() -> torch.nn.Sequential:
        model = torch.nn.Sequential(torch.nn.Linear(6, 4 * size), torch.nn.GELU(), torch.nn.Linear(4 * size, 3))
        # Ranks that are threads share torch's own generator.
        chance = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=chance)
        return model

    alone = model_of()
    mesh = world.mesh({"tp": size})
    ours = parallelize_module(model_of().to(device), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    wanted, found = alone(x), ours(x.to(device))
    distance = (found.detach().cpu() - wanted.detach()).abs().max().item()
    assert distance <= 1e-5, (
        f"rank {rank}: a tensor parallel model's output differs by {distance:.1e} from the plain one's; expected no "
        "more than 1e-5"
    )
    torch.nn.functional.mse_loss(wanted, torch.zeros_like(wanted)).backward()
    torch.nn.functional.mse_loss(found, torch.zeros_like(found)).backward()
    for (name, one), other in zip(alone.named_parameters(), ours.parameters(), strict=True):
        assert one.grad is not None
        gradient = other.grad.full_tensor()  # type: ignore[union-attr]
        distance = (gradient.cpu() - one.grad).abs().max().item()
        assert distance <= 1e-5, (
            f"rank {rank}: the gradient of {name} in a tensor parallel model differs by {distance:.1e} from the plain "
            "one's; expected no more than 1e-5"
        )


def meshes(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    first = next((part for part in range(2, size) if size % part == 0), 1)
    mesh = world.mesh({"dp": first, "tp": size // first})
    for axis in ("dp", "tp"):
        members = mesh[axis].mesh.tolist()
        x = torch.full((3,), 10.0 + rank, device=device)
        dist.all_reduce(x, group=mesh.get_group(axis))
        wanted = [float(sum(10 + of for of in members))] * 3
        assert x.tolist() == wanted, (
            f"rank {rank}: torch's all_reduce along {axis!r}, over ranks {members}, is {x.tolist()}, expected {wanted}"
        )
        found = devices.all_reduce(torch.full((3,), 10.0 + rank, device=device), mesh[axis])
        assert found.tolist() == wanted, (
            f"rank {rank}: all_reduce along {axis!r}, over ranks {members}, is {found.tolist()}, expected {wanted}"
        )


def compiled(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: threads share torch's compiler")
    size, rank, device = world.size, world.rank, world.device

    def program(x: torch.Tensor) -> torch.Tensor:
        gathered: torch.Tensor = devices.all_gather(devices.all_reduce(x * 2))
        return gathered + 1

    found = torch.compile(program, backend="aot_eager", fullgraph=True)(torch.full((2,), float(rank), device=device))
    wanted = [2.0 * sum(range(size)) + 1] * 2 * size
    torch.compiler.reset()
    assert found.tolist() == wanted, f"rank {rank}: compiled verbs returned {found.tolist()}, expected {wanted}"


CHECKS = [
    law("torch.collectives", "torch's own collectives over the backend's group are right.", collectives),
    law("torch.messages", "torch's own sends and receives are right, alone and in batches.", messages, messages=True),
    law("torch.objects", "torch's collectives of Python objects are right.", objects),
    law("torch.meshes", "Each axis of a DeviceMesh has a group of its own, for torch's verbs and for ours.", meshes,
        size=4),
    law("torch.ddp", "Steps of DistributedDataParallel are those of one process with all ranks' batches.",
        data_parallel, dtypes=("float32", "int32", "int64", "uint8")),  # torch tells of its buckets by whole numbers
    law("torch.fsdp2", "Steps of fully_shard are those of one process with all ranks' batches.", fully_sharded),
    law("torch.dtensor", "DTensors move between placements, are multiplied and differentiated as plain tensors.",
        dtensors),
    law("torch.tensor_parallel", "A tensor parallel model and its gradients are those of the plain one.",
        tensor_parallel),
    law("torch.compile", "Compiled verbs return what those that are not compiled do.", compiled, size=2),
]  # fmt: skip
