"""Those who do the verbs: `devices` on private tensors and in fabric memory, torch over gloo and over us, Open MPI."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from collectives.data import Case, input_of

Call = Callable[[], object]


class Devices:
    """`devices` through its public API.

    Args:
        fabric: whether the tensors lie in fabric memory.
    """

    def __init__(self, *, fabric: bool = False) -> None:
        import devices

        self._devices, self._fabric = devices, fabric
        world = devices.init()
        self.rank, self.size = world.rank, world.size
        self.note = devices.explain()
        if fabric:
            devices.empty(1, fabric=True)

    def tensor(self, count: int) -> torch.Tensor:
        found: torch.Tensor = self._devices.empty(count, fabric=True) if self._fabric else torch.empty(count)
        return found.zero_()

    def prepare(self, case: Case) -> tuple[Call, torch.Tensor, torch.Tensor]:
        """Return the call, its input, and where its result will be."""
        d, rank, size = self._devices, self.rank, self.size
        x = self.tensor(case.given)
        y = x if case.verb in IN_PLACE else self.tensor(case.gotten)
        ring = [(each, (each + 1) % size) for each in range(size)]

        def send() -> None:
            if rank == 0:
                d.send(x, dst=1)
                d.recv(y, src=1, out=y)
            elif rank == 1:
                d.recv(y, src=0, out=y)
                d.send(x, dst=0)

        calls: dict[str, Call] = {
            "all_reduce": lambda: d.all_reduce(x, out=x),
            "all_gather": lambda: d.all_gather(x, out=y),
            "reduce_scatter": lambda: d.reduce_scatter(x, out=y),
            "all_to_all": lambda: d.all_to_all(x, out=y),
            "broadcast": lambda: d.broadcast(x, src=0, out=x),
            "reduce": lambda: d.reduce(x, dst=0, out=x),
            "gather": lambda: d.gather(x, dst=0, out=y),
            "scatter": lambda: d.scatter(x if rank == 0 else None, src=0, out=y),
            "permute": lambda: d.permute(x, pairs=ring, out=y),
            "send": send,
            "barrier": d.barrier,
        }
        return calls[case.verb], x, y

    def barrier(self) -> None:
        self._devices.barrier()


IN_PLACE = frozenset({"all_reduce", "broadcast", "reduce"})
"""Verbs whose result takes the place of the input, as torch and MPI have it."""


class Torch:
    """torch's own verbs.

    Args:
        backend: "gloo", or "devices".
    """

    def __init__(self, backend: str) -> None:
        import torch.distributed as dist

        dist.init_process_group(backend)
        self._dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.note = f"torch {torch.__version__}"

    def prepare(self, case: Case) -> tuple[Call, torch.Tensor, torch.Tensor]:
        dist, rank, size = self._dist, self.rank, self.size
        x = torch.zeros(case.given)
        y = x if case.verb in IN_PLACE else torch.zeros(case.gotten)
        parts, rows = list(x.chunk(size)), list(y.chunk(size))

        def send() -> None:
            if rank == 0:
                dist.send(x, dst=1)
                dist.recv(y, src=1)
            elif rank == 1:
                dist.recv(y, src=0)
                dist.send(x, dst=0)

        def permute() -> None:
            there, back = (rank + 1) % size, (rank - 1) % size
            works = dist.batch_isend_irecv([dist.P2POp(dist.isend, x, there), dist.P2POp(dist.irecv, y, back)])
            for work in works:
                work.wait()

        calls: dict[str, Call] = {
            "all_reduce": lambda: dist.all_reduce(x),
            "all_gather": lambda: dist.all_gather_into_tensor(y, x),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(y, x),
            "all_to_all": lambda: dist.all_to_all_single(y, x),
            "broadcast": lambda: dist.broadcast(x, 0),
            "reduce": lambda: dist.reduce(x, 0),
            "gather": lambda: dist.gather(x, rows if rank == 0 else None, 0),
            "scatter": lambda: dist.scatter(y, parts if rank == 0 else None, 0),
            "permute": permute,
            "send": send,
            "barrier": dist.barrier,
        }
        return calls[case.verb], x, y

    def barrier(self) -> None:
        self._dist.barrier()


class MPI:
    """Open MPI, or what mpi4py was built on, on numpy's view of the tensors."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        self.note = MPI.Get_library_version().partition(",")[0].strip()

    def prepare(self, case: Case) -> tuple[Call, torch.Tensor, torch.Tensor]:
        world, rank, size, here = self._world, self.rank, self.size, self._mpi.IN_PLACE
        x = torch.zeros(case.given)
        y = x if case.verb in IN_PLACE else torch.zeros(case.gotten)
        a: np.ndarray[Any, Any] = x.numpy()
        b: np.ndarray[Any, Any] = y.numpy()

        def send() -> None:
            if rank == 0:
                world.Send(a, 1)
                world.Recv(b, 1)
            elif rank == 1:
                world.Recv(b, 0)
                world.Send(a, 0)

        calls: dict[str, Call] = {
            "all_reduce": lambda: world.Allreduce(here, a),
            "all_gather": lambda: world.Allgather(a, b),
            "reduce_scatter": lambda: world.Reduce_scatter_block(a, b),
            "all_to_all": lambda: world.Alltoall(a, b),
            "broadcast": lambda: world.Bcast(a, 0),
            "reduce": lambda: world.Reduce(here, a, root=0) if rank == 0 else world.Reduce(a, None, root=0),
            "gather": lambda: world.Gather(a, b if rank == 0 else None, 0),
            "scatter": lambda: world.Scatter(a if rank == 0 else None, b, 0),
            "permute": lambda: world.Sendrecv(a, (rank + 1) % size, 0, b, (rank - 1) % size, 0),
            "send": send,
            "barrier": world.Barrier,
        }
        return calls[case.verb], x, y

    def barrier(self) -> None:
        self._world.Barrier()


class DeepSpeed:
    """DeepSpeed's all-reduce in shared memory, which it compiles when it is first asked for."""

    def __init__(self) -> None:
        import torch.distributed as dist

        os.environ.setdefault("LOCAL_SIZE", os.environ["WORLD_SIZE"])
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from deepspeed.accelerator import get_accelerator

        dist.init_process_group("gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._op = get_accelerator().create_op_builder("ShareMemCommBuilder").load()
        self._op.initialize(self.size, self.rank)
        self._dist = dist
        self.note = f"DeepSpeed {importlib.import_module('deepspeed').__version__}"

    def prepare(self, case: Case) -> tuple[Call, torch.Tensor, torch.Tensor]:
        x = torch.zeros(case.given)
        if case.verb != "all_reduce":
            raise NotImplementedError("DeepSpeed's shared memory has an all-reduce only")
        return lambda: torch.ops.deepspeed.inference_all_reduce_(x), x, x

    def barrier(self) -> None:
        self._dist.barrier()


def missing(name: str) -> str:
    """Return what is missing for a contender to take part; nothing if it can."""
    if name == "Open MPI" and shutil.which("mpirun") is None:
        return "mpirun is not installed"
    module = {"Open MPI": "mpi4py", "DeepSpeed": "deepspeed"}.get(name)
    return f"{module} is not installed" if module and importlib.util.find_spec(module) is None else ""


OPEN: dict[str, Callable[[], Any]] = {
    "devices": Devices,
    "fabric memory": lambda: Devices(fabric=True),
    "torch over devices": lambda: Torch("devices"),
    "gloo": lambda: Torch("gloo"),
    "Open MPI": MPI,
    "DeepSpeed": DeepSpeed,
}


def fill(case: Case, rank: int, x: torch.Tensor) -> None:
    """Give a call the input whose result is known."""
    x.copy_(input_of(case, rank))
