"""What ranks do whose world is of several backends: CPU ranks and ranks on the stand-in of torch_neuronx."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import devices
from devices import errors


def opened(backends: list[str], hosts: str = "", dtypes: tuple[torch.dtype, ...] = ()) -> devices.World:
    """Open a world in which rank r is of `backends[r]`, on a host that `hosts[r]` stands for."""
    rank = int(os.environ["RANK"])
    os.environ["DEVICES_BACKEND"] = backends[rank]
    if hosts:
        os.environ["DEVICES_DOMAIN"] = f"island-{hosts[rank]}"
    return devices.init(timeout=60, dtypes=dtypes)


def said(call: Callable[[], Any]) -> str:
    """Return the error of a call in words, "" if it raises none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def of(rank: int, size: int) -> torch.Tensor:
    """Return numbers of a rank's own, whose sums are exact."""
    return (torch.arange(size) % 97 + 3 * rank).float()


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0)


def check_verbs(w: devices.World, size: int) -> None:
    me, n, here = w.rank, w.size, w.device
    xs = [of(rank, size) for rank in range(n)]
    blocks = [of(rank, size * n) for rank in range(n)]
    mine, block = xs[me].to(here), blocks[me].to(here)
    same(devices.all_reduce(mine), torch.stack(xs).sum(0))
    same(devices.all_reduce(mine, op="max"), torch.stack(xs).amax(0))
    same(devices.all_reduce(mine.bfloat16(), op="avg"), torch.stack(xs).bfloat16().float().mean(0).bfloat16())
    same(devices.all_reduce(mine.int()), torch.stack(xs).sum(0).int())
    same(devices.all_gather(mine), torch.cat(xs))
    same(devices.reduce_scatter(block), torch.stack(blocks).sum(0).chunk(n)[me])
    same(devices.all_to_all(block), torch.cat([each.chunk(n)[me] for each in blocks]))
    same(devices.permute(mine, pairs=[(rank, (rank + 1) % n) for rank in range(n)]), xs[me - 1])
    for root in range(n):
        same(devices.broadcast(mine, src=root), xs[root])
        gathered = devices.gather(mine, dst=root)
        reduced = devices.reduce(mine, dst=root)
        if me == root:
            same(gathered, torch.cat(xs))
            same(reduced, torch.stack(xs).sum(0))
        same(devices.scatter(blocks[root].to(here) if me == root else None, src=root), blocks[root].chunk(n)[me])
    work = devices.all_reduce(mine, async_op=True)
    same(devices.all_gather(mine), torch.cat(xs))
    same(work.result(), torch.stack(xs).sum(0))
    sizes = [rank * 3 for rank in range(n)]
    same(
        devices.all_gather(of(me, sizes[me]).to(here), sizes=sizes),
        torch.cat([of(rank, sizes[rank]) for rank in range(n)]),
    )
    devices.barrier()


def every_verb(backends: list[str], hosts: str) -> dict[str, Any]:
    from devices.domains import communicator

    served = count_of_stores()
    communicator.PIECE = 1 << 17
    with opened(backends, hosts) as w:
        # The last one's are in several pieces.
        for size in (1, 5, 70_001):
            check_verbs(w, size)
        return {"explained": devices.explain(), "bits": bits(w), "stores": len(served), **lacking(w)}


def count_of_stores() -> list[str]:
    """Return what gets longer with each store that this rank serves for a recovery."""
    from devices.domains import recovery

    served: list[str] = []
    serve = recovery._serve

    def count_and_serve(address: str, timeout: Any) -> Any:
        served.append(address)
        return serve(address, timeout)

    recovery._serve = count_and_serve
    return served


def bits(w: devices.World) -> list[bytes]:
    """Return sums that depend on the order, as bits, twice."""
    torch.manual_seed(w.rank)
    x = (torch.randn(3001) * 10.0**w.rank).to(w.device)
    return [devices.all_reduce(x).cpu().numpy().tobytes() for _ in range(2)]


def lacking(w: devices.World) -> dict[str, Any]:
    """Call verbs with what not all ranks have."""
    here = w.device
    return {
        "float64": said(lambda: devices.all_reduce(torch.ones(2, dtype=torch.float64, device=here))),
        "float64 moved": said(lambda: devices.broadcast(torch.ones(2, dtype=torch.float64, device=here), src=0)),
        "on the CPU": said(lambda: devices.all_reduce(torch.ones(2))) if here.type != "cpu" else "",
    }


def with_torch(backends: list[str]) -> dict[str, Any]:
    """Use torch's own verbs, groups, tensors of a mesh and DDP, each rank with tensors on its own device."""
    with opened(backends) as w:
        check_torchs_verbs(w)
        doubled = torch.compile(lambda x: devices.all_reduce(x) * 2, fullgraph=True, backend="aot_eager")
        same(doubled(torch.ones(2, device=w.device)), torch.full((2,), 2.0 * w.size))
        ddp, fsdp = trains(w, DistributedDataParallel), trains(w, sharded)
        return {**groups(w, backends), "ddp": ddp, "fsdp": fsdp}


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model, its parameters sharded over all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = next(model.parameters()).device.type
    fully_shard(model, mesh=init_device_mesh(kind, (dist.get_world_size(),)))
    return model


def check_torchs_verbs(w: devices.World) -> None:
    me, n, here = w.rank, w.size, w.device
    x = torch.tensor([1.0, 2.0], device=here) * (me + 1)
    dist.all_reduce(x)
    same(x, torch.tensor([1.0, 2.0]) * sum(range(1, n + 1)))
    outputs = [torch.empty(1, device=here) for _ in range(n)]
    dist.all_gather(outputs, torch.tensor([float(me)], device=here))
    same(torch.cat(outputs), torch.arange(float(n)))
    told: list[Any] = [None] * n
    dist.all_gather_object(told, {"rank": me})
    assert told == [{"rank": rank} for rank in range(n)]
    dist.barrier()
    if me == 0:
        dist.send(torch.arange(3.0, device=here), n - 1)
    if me == n - 1:
        came = torch.empty(3, device=here)
        dist.recv(came, 0)
        same(came, torch.arange(3.0))


def groups(w: devices.World, backends: list[str]) -> dict[str, str]:
    """Use groups inside of one domain, and over two."""
    me, n, here = w.rank, w.size, w.device
    alike = [[rank for rank in range(n) if backends[rank] == backend] for backend in dict.fromkeys(backends)]
    mine = dist.new_subgroups_by_enumeration(alike)[0]
    peers = next(ranks for ranks in alike if me in ranks)
    same(devices.all_reduce(torch.ones(2, device=here) * me, mine), torch.full((2,), float(sum(peers))))
    ends = dist.new_group([0, n - 1])
    if me in (0, n - 1):
        same(devices.all_gather(torch.tensor([float(me)], device=here), ends), torch.tensor([0.0, n - 1.0]))
    mesh = w.mesh({"dp": 2, "tp": n // 2})
    assert mesh.device_type == here.type
    total = devices.all_reduce(torch.ones(1, device=here) * 10**me, mesh["dp"]).item()
    assert total == sum(10**rank for rank in range(n) if rank % (n // 2) == me % (n // 2)), total
    full = torch.arange(32.0).view(4, 8)
    left = devices.place(full.to(here), mesh, dp=devices.Shard(0), tp=devices.Shard(1)).requires_grad_()
    right = devices.place(full.T.contiguous().to(here), mesh, tp=devices.Shard(0))
    product = (left @ right).full_tensor()
    product.sum().backward()
    same(product, full @ full.T)
    same(left.grad.full_tensor(), full.sum(0).expand(4, 8))
    return {"alike": devices.explain(mine), "across": devices.explain(mesh["dp"])}


def trains(w: devices.World, wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> list[float]:
    """Return the losses of three steps of a small model, each rank on a part of the batch of its own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).to(w.device)
    model = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        batch = batch_of(step)[w.rank :: w.size].to(w.device)
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(devices.all_reduce(loss.detach(), op="avg").item())
    return losses


def batch_of(step: int) -> torch.Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(step))


def goes_wrong(backends: list[str], odd: int, how: str) -> tuple[str, str, float]:
    """Let one rank do something else than the others; return what this rank is told, and after how long."""
    w = opened(backends)
    devices.barrier()
    x = torch.ones(8, device=w.device)
    devices.all_reduce(x)
    start = time.monotonic()
    is_odd = w.rank == odd
    try:
        if is_odd and how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if is_odd and how == "dies inside":
            # In its domain it has come to the call, and does not go on with it.
            _die_after_agreeing(w)
        if is_odd and how == "is refused":
            # The other rank of its domain is not, and waits for it in there.
            _refuse(torch.int32)
        if how == "is refused":
            x = x.int()
        if is_odd and how == "raises":
            with w:
                raise ValueError("batch 7 is bad")
        devices.all_reduce(x[:7] if is_odd and how == "another size" else x)
    except errors.CollectiveError as error:
        return type(error).__name__, str(error), time.monotonic() - start
    raise AssertionError("no error")


def _refuse(dtype: torch.dtype) -> None:
    """Let this rank's vendor refuse a dtype."""
    from devices.domains.natively import Natively

    reduce_scatter = Natively.reduce_scatter

    def refusing(self: Natively, output: torch.Tensor, input: torch.Tensor, op: str) -> Any:
        if input.dtype is dtype:
            raise errors.UnsupportedError(f"this chip reduces no {dtype}")
        return reduce_scatter(self, output, input, op)

    Natively.reduce_scatter = refusing


def _die_after_agreeing(w: devices.World) -> None:
    """Die where this rank's domain waits for it in the vendor's own verb, and nobody else waits for it."""
    from devices.domains.inside import Inside

    agree = Inside.agree

    def agree_and_die(self: Inside, call: Any) -> None:
        agree(self, call)
        os.kill(os.getpid(), signal.SIGKILL)

    Inside.agree = agree_and_die


def cannot_open(backends: list[str]) -> dict[str, str]:
    """Open worlds that cannot be, and then one that can."""
    from devices import _registry

    rank = int(os.environ["RANK"])
    answers = {}
    release = _registry.release
    if rank == 1:
        _registry.release = lambda name: "other 9.9"
    answers["versions"] = said(lambda: opened(backends))
    _registry.release = release
    backend = _registry.backend(backends[rank])
    if rank == 3:
        type(backend).interface = 7
    answers["interface"] = said(lambda: opened(backends))
    type(backend).interface = 1
    find = _registry.of_device_type
    if rank == 2:
        _registry.of_device_type = _no_backend
    answers["no bridge"] = said(lambda: opened(backends))
    _registry.of_device_type = find
    if backends[rank] == "neuron":
        os.environ["NEURON_RT_VISIBLE_CORES"] = "3"
    answers["domain"] = said(lambda: opened(backends))
    os.environ.pop("NEURON_RT_VISIBLE_CORES", None)
    with opened(backends) as w:
        assert devices.all_reduce(torch.ones(1, device=w.device)).item() == w.size
    return answers


def needs_dtypes(backends: list[str]) -> tuple[str, str, str]:
    """Open worlds whose program needs what not all devices have, or is not the same on all ranks, and then one."""
    lacking, few = (torch.float64, torch.int64, torch.float8_e4m3fn), (torch.float32,)
    refused = said(lambda: opened(backends, "", lacking))
    differ = said(lambda: opened(backends, "", (*few, torch.float64)[: 1 + int(os.environ["RANK"])]))
    with opened(backends, "", few) as w:
        assert devices.all_reduce(torch.ones(1, device=w.device)).item() == w.size
        return refused, differ, devices.explain()


def _no_backend(kind: str) -> None:
    raise errors.BackendNotFoundError(f"no plugin provides a backend whose devices are of type {kind!r}")


def groups_of(backends: list[str]) -> dict[str, str]:
    """Use groups of a world of which one vendor's ranks are several domains."""
    with opened(backends) as w:
        return groups(w, backends)


def parts_of(backends: list[str], members: list[int]) -> tuple[str, list[str], str]:
    """Use groups of a world that one vendor opens: some ranks of which it has no group, and two of which it has one."""
    with opened(backends) as w:
        me, here = w.rank, w.device
        few, pair = dist.new_group(members), dist.new_group(members[-2:])
        explained = ""
        if me in members:
            xs, place = [of(rank, 70_001) for rank in members], members.index(me)
            same(devices.all_reduce(xs[place].to(here), few), torch.stack(xs).sum(0))
            same(devices.all_gather(xs[place].to(here), few), torch.cat(xs))
            block = torch.cat(xs).to(here)
            same(devices.reduce_scatter(block, few), xs[place] * len(members))
            same(devices.broadcast(xs[place].to(here), few, src=members[0]), xs[0])
            explained = devices.explain(few)
        twice = devices.explain(pair) if me in members[-2:] else ""
        same(devices.all_reduce(torch.ones(2, device=here)), torch.full((2,), float(w.size)))
        lacks = said(lambda: devices.all_reduce(torch.ones(2, dtype=torch.float64, device=here), few))
        return devices.explain(), [explained, twice], lacks


def _let_all_pass(what: str, count: int) -> None:
    """Return once so many ranks are here, which no group has a part in: one that dies now leaves none of its verbs."""
    folder = Path(os.environ["NEURON_STANDIN_MACHINE"])
    Path(folder, f"{what}: {os.getpid()}").touch()
    while len(list(folder.glob(f"{what}: *"))) < count:
        time.sleep(0.01)


def recovers(backends: list[str], dying: list[int], hosts: str = "") -> list[str]:
    """Let ranks of the first world die, one after another, the first in a verb; return what carries each of the worlds.

    A vendor's own world does not notice who dies: it recovers because the program asks for it.
    """
    w = opened(backends, hosts)
    first = w.rank
    notes = [devices.explain()]
    check_verbs(w, 5)
    for each in dying:
        _let_all_pass(f"before {each} dies", w.size)
        is_composed = ") and " in notes[-1]
        if first == each and not (is_composed and each == dying[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        if first == each:
            _die_after_agreeing(w)
        if is_composed:
            error = said(partial(devices.all_reduce, torch.ones(8, device=w.device)))
            assert error.startswith("CollectiveError: "), error
        w = w.recover()
        check_verbs(w, 5)
        notes.append(devices.explain())
    w.close()
    return notes
