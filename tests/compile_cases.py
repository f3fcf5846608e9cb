"""The verbs under `torch.compile(fullgraph=True)`, each compared with itself run eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from verb_cases import TIMEOUT, Tried

import devices

Tensor = torch.Tensor
Found = dict[str, tuple[int, list[str]]]
Verb = Callable[[Tensor, Any, int], Any]
"""Of a tensor, a group and the group's size."""


def _ring(size: int) -> list[tuple[int, int]]:
    return [(rank, (rank + 1) % size) for rank in range(size)]


WITH_GRADIENT: dict[str, Verb] = {
    "all_reduce": lambda x, group, size: devices.all_reduce(x, group),
    "all_reduce avg": lambda x, group, size: devices.all_reduce(x.sin(), group, op="avg"),
    "all_reduce weighted": lambda x, group, size: devices.all_reduce(x, group, op="avg", weight=0.5),
    "all_reduce of a list": lambda x, group, size: devices.all_reduce([x, x * 2], group)[1],
    "all_gather": lambda x, group, size: devices.all_gather(x, group, dim=1),
    "all_gather of a dict": lambda x, group, size: devices.all_gather({"b": x, "a": x.long()}, group)["b"],
    "reduce_scatter": lambda x, group, size: devices.reduce_scatter(x, group, op="avg", dim=-1),
    "reduce_scatter uneven": lambda x, group, size: devices.reduce_scatter(x, group, sizes=[4] + [0] * (size - 1)),
    "all_to_all": lambda x, group, size: devices.all_to_all(x, group),
    "broadcast": lambda x, group, size: devices.broadcast(x, group, src=size - 1),
    "scatter": lambda x, group, size: devices.scatter(x, group, src=size - 1),
    "permute": lambda x, group, size: devices.permute(x, group, pairs=_ring(size)),
    "twice": lambda x, group, size: devices.reduce_scatter(devices.all_gather(x, group) ** 2, group),
}

WITHOUT_GRADIENT: dict[str, Verb] = {
    "all_reduce max": lambda x, group, size: devices.all_reduce(x, group, op="max"),
    # Only one rank uses the result; the others must take part all the same.
    "reduce": lambda x, group, size: _or(devices.reduce(x, group, dst=size - 1), x),
    "gather": lambda x, group, size: _or(devices.gather(x, group, dst=size - 1), x),
    "used by one rank": lambda x, group, size: (
        devices.all_reduce(x, group) + 1 if dist.get_rank() == 0 else _and(devices.all_reduce(x, group), x)
    ),
    "barrier": lambda x, group, size: _or(devices.barrier(group), x * 2),
    "all_reduce of whole numbers": lambda x, group, size: devices.all_reduce(x.long(), group, op="bxor"),
}


NAMES = (*WITH_GRADIENT, *WITHOUT_GRADIENT)


def _or(found: Tensor | None, other: Tensor) -> Tensor:
    return other if found is None else found


def _and(_: Tensor, other: Tensor) -> Tensor:
    return other


def _input(rank: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def _agree(tried: Tried, verb: Verb, backend: str, group: Any, with_gradient: bool, what: str) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    x = _input(rank).requires_grad_(with_gradient)
    torch._dynamo.reset()
    compiled = torch.compile(verb, fullgraph=True, backend=backend)
    found, expected = compiled(x, group, size), verb(x, group, size)
    tried.close(found.detach(), expected.detach(), what)
    if with_gradient:
        factor = torch.arange(found.numel(), dtype=torch.float64).view(found.shape) + rank
        gradients = []
        for result in (found, expected):
            x.grad = None
            (factor * result**2).sum().backward()
            # scatter's input is not looked at off its source: no gradient there, or one of zeros.
            gradients.append(torch.zeros_like(x) if x.grad is None else x.grad)
        tried.close(*gradients, what, "gradient")


def compile_all(backend: str, names: tuple[str, ...], every_group: bool) -> Found:
    """Return, for each verb of `names`, how many results were compared and which differ.

    Args:
        backend: torch.compile's.
        names: of verbs.
        every_group: whether to try each verb over each kind of group, or one kind after another by turns.
    """
    found = {}
    with devices.init(timeout=TIMEOUT) as world:
        axis = world.mesh({"dp": 1, "tp": -1})["tp"]
        kinds = [("the world", None), ("a mesh axis", axis), ("a process group", dist.group.WORLD)]
        for turn, name in enumerate(names):
            tried = Tried()
            verb = WITH_GRADIENT.get(name) or WITHOUT_GRADIENT[name]
            for kind, group in kinds if every_group else kinds[turn % 3 : turn % 3 + 1]:
                _agree(tried, verb, backend, group, name in WITH_GRADIENT, f"{name} over {kind}")
            found[name] = tried.count, tried.wrong
    return found


def messages_compiled(backend: str) -> Found:
    """Send around the ring from within a graph."""
    with devices.init(timeout=TIMEOUT) as world:
        tried, rank, size = Tried(), world.rank, world.size

        @torch.compile(fullgraph=True, backend=backend)
        def around(x: Tensor) -> Tensor:
            if rank == 0:
                devices.send(x + 1, dst=1)
                return devices.recv(x, src=size - 1)
            found = devices.recv(x, src=rank - 1)
            devices.send(found + 1, dst=(rank + 1) % size)
            return found

        tried.close(around(torch.zeros(3)), torch.full((3,), float(rank or size)), "around the ring")
    return {"send and recv": (tried.count, tried.wrong)}


def another_group(backend: str) -> Found:
    """Call one compiled function over one group after another, and over a second world."""
    tried = Tried()

    def scale(x: Tensor, group: Any) -> Tensor:
        return devices.all_reduce(x * 2, group)

    def over_world(x: Tensor) -> Tensor:
        return devices.all_gather(x)

    compiled = torch.compile(scale, fullgraph=True, backend=backend)
    compiled_over_world = torch.compile(over_world, fullgraph=True, backend=backend)
    for _ in range(2):
        with devices.init(timeout=TIMEOUT) as world:
            mesh = world.mesh({"dp": 2, "tp": -1})
            alone = [dist.new_group([rank]) for rank in range(world.size)][world.rank]
            groups = {
                "dp": mesh["dp"], "tp": mesh["tp"], "world": None, "alone": alone,
                "tp's group": mesh.get_group("tp"), "dp's group": mesh.get_group("dp"),
            }  # fmt: skip
            for _ in range(2):
                for name, group in groups.items():
                    x = torch.full((2,), 10.0**world.rank)
                    tried.exact(compiled(x, group), scale(x, group), "all_reduce over", name)
            x = torch.tensor([world.rank])
            tried.exact(compiled_over_world(x), torch.arange(world.size), "all_gather over the world")
    return {"one group after another": (tried.count, tried.wrong)}


def shapes_compiled(backend: str) -> Found:
    """Call one compiled function with one size after another: the second lets torch take sizes for variables."""
    with devices.init(timeout=TIMEOUT) as world:
        tried = Tried()
        verbs: dict[str, Callable[[Tensor], Tensor]] = {
            "all_gather": lambda x: devices.all_gather(x.sin(), dim=1),
            "reduce_scatter": lambda x: devices.reduce_scatter(x.sin(), dim=1),
            "all_to_all": lambda x: devices.all_to_all(x.sin(), dim=1),
        }
        for name, verb in verbs.items():
            compiled = torch.compile(verb, fullgraph=True, backend=backend)
            for length in (2, 4, 6, 10):
                x = torch.randn(3, length, dtype=torch.float64) + world.rank
                tried.close(compiled(x), verb(x), name, length)
    return {"one size after another": (tried.count, tried.wrong)}


def everything(backend: str) -> tuple[Found, list[str]]:
    """Return what was compared, and what is said about what is not compiled."""
    found = compile_all(backend, NAMES, every_group=False)
    for part in (messages_compiled, another_group, shapes_compiled):
        found |= part(backend)
    return found, refusals(backend)


def refusals(backend: str) -> list[str]:
    """Return what is said about what is not compiled."""
    said = []
    with devices.init(timeout=TIMEOUT) as world:
        mesh = world.mesh({"dp": 1, "tp": -1})
        wrong: list[Callable[[Tensor], Any]] = [
            lambda x: devices.all_reduce(x, out=torch.empty_like(x)),
            lambda x: devices.all_reduce(x, async_op=True).result(),
            lambda x: devices.barrier(async_op=True).wait(),
            lambda x: devices.scatter(None),
            lambda x: devices.all_reduce(x, mesh),
            lambda x: devices.all_reduce(x, op="summ"),
        ]
        for function in wrong:
            torch._dynamo.reset()
            said.append(_said(torch.compile(function, fullgraph=True, backend=backend)))
        for op in ("max", "prod"):
            x = torch.ones(2, requires_grad=True)
            compiled = torch.compile(lambda x, op=op: devices.all_reduce(x, op=op), fullgraph=True, backend=backend)
            said.append(_said(lambda _, x=x, compiled=compiled: compiled(x).sum().backward()))
        if world.rank == 0:
            # Refused before anything is sent, so no other rank need take part.
            compiled = torch.compile(lambda x: devices.reduce(x), fullgraph=True, backend=backend)
            said.append(_said(lambda _: compiled(torch.ones(2, requires_grad=True)).sum().backward()))
    return said


def _said(function: Callable[[Tensor], Any]) -> str:
    try:
        function(torch.ones(2))
    except Exception as error:
        return str(error)
    return "nothing"
