"""A world, a mesh, a placed tensor and a few verbs, each checked against plain arithmetic.

    python examples/quickstart.py
    torchrun --nproc-per-node=4 examples/quickstart.py

It is right on any number of ranks.
"""

from __future__ import annotations

import torch

import devices
from devices import Shard


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(1024, 1024, generator=torch.Generator().manual_seed(seed))


def check(what: str, found: torch.Tensor, expected: torch.Tensor | float) -> None:
    """Print a result on rank 0; on any rank, stop if it is not the expected one."""
    torch.testing.assert_close(found.cpu(), torch.as_tensor(expected, dtype=found.dtype), rtol=1e-4, atol=1e-4)
    if torch.distributed.get_rank() == 0:
        shown = f"{found.item():.4f}" if found.ndim == 0 else str(found.tolist())
        print(f"{what:<46} {shown:<24} as expected")


def main() -> None:
    with devices.init() as world:  # torchrun's variables, or a world of one
        rank, size, device = world.rank, world.size, world.device
        if rank == 0:
            print(devices.explain())

        # A mesh is torch's DeviceMesh, a placed tensor its DTensor. Each rank draws other numbers; rank 0's are
        # those that all of them get.
        tp = 2 if size % 2 == 0 else 1
        mesh = world.mesh({"dp": -1, "tp": tp})
        w = devices.place(numbers(seed=rank).to(device), mesh, tp=Shard(1))
        assert w.to_local().shape == (1024, 1024 // tp)
        if rank == 0:
            print(f"{size} rank(s), mesh {dict(zip(('dp', 'tp'), mesh.shape, strict=True))}, {w.placements}")

        total = devices.all_reduce(w.to_local().sum(), mesh["tp"])
        check("sum of the sharded tensor", total, numbers(seed=0).sum())

        # The verbs take a mesh axis, a process group, or nothing: the world.
        mine = torch.tensor([float(rank)], device=device)
        check("ranks, gathered", devices.all_gather(mine), torch.arange(float(size)))
        check("ranks, averaged", devices.all_reduce(mine, op="avg"), torch.tensor([(size - 1) / 2]))
        check("the last rank's, broadcast", devices.broadcast(mine, src=size - 1), torch.tensor([size - 1.0]))

        # A list is done in one call. With a weight it is a weighted mean: here rank r has r + 1 samples.
        samples = rank + 1
        mean, _ = devices.all_reduce([mine, mine * 2], op="avg", weight=samples)
        expected = sum(r * (r + 1) for r in range(size)) / sum(r + 1 for r in range(size))
        check("ranks, weighted by samples", mean, torch.tensor([expected]))

        # The verbs are differentiable: each rank's loss is (sum over ranks of x)², and the gradient is that of the
        # sum of all ranks' losses.
        x = torch.tensor(rank + 1.0, device=device, requires_grad=True)
        devices.all_reduce(x).square().backward()
        assert x.grad is not None
        check("gradient of all losses", x.grad, size * 2 * sum(r + 1.0 for r in range(size)))


if __name__ == "__main__":
    main()
