"""What ranks do on the stand-in; at the top level of a module, as they are processes."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import devices

EXAMPLE = Path(__file__).parents[4] / "examples" / "train_gpt.py"


def said(call: Callable[[], Any]) -> str:
    """Return the error of a call in words, "" if it raises none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# Over devices.init("neuron").


def verbs(world: Any) -> dict[str, Any]:
    """Call the verbs that the hardware has, and those that it has not."""
    here, rank, size = world.device, world.rank, world.size
    x = torch.tensor([1.0, 2.0], device=here) * (rank + 1)
    large = torch.tensor([2**40 + rank, -(2**62) + rank], device=here)
    odd = torch.tensor([float("nan"), -0.0, float("inf")], device=here)
    halves = dist.new_subgroups_by_enumeration([list(range(0, size, 2)), list(range(1, size, 2))])[0]
    found = {
        "device": here,
        "current": torch.neuron.current_device(),
        "sum": devices.all_reduce(x),
        "avg of bfloat16": devices.all_reduce(x.bfloat16(), op="avg"),
        "prod": devices.all_reduce(x, op="prod"),
        "max with NaN": devices.all_reduce(torch.tensor([float("nan") if rank == 1 else 1.0], device=here), op="max"),
        "sum of int64": devices.all_reduce(large),
        "gathered int64": devices.all_gather(large[:1]),
        "broadcast": devices.broadcast(odd if rank == 1 else torch.ones(3, device=here), src=1).cpu().view(torch.int32),
        "uneven all_to_all": devices.all_to_all(
            torch.arange(sum(range(1, size + 1)), device=here) + 100 * rank, sizes=[[*range(1, size + 1)]] * size
        ),
        "even all_to_all": devices.all_to_all(torch.arange(size, device=here) + 10 * rank),
        "of every other rank": devices.all_to_all(torch.arange(size // 2, device=here) + 10 * rank, halves),
        "permuted": devices.permute(x, pairs=[(0, 1), (1, 0)]),
        "scattered": devices.scatter(torch.arange(2 * size, device=here) * (rank == 0), src=0),
        "empty": devices.all_gather(torch.empty(0, 3, device=here)),
        "float8": devices.all_gather(torch.tensor([1.5], device=here).to(torch.float8_e5m2)).float(),
        "explained": world.explain(),
        "sent around": around(x),
        "sent on the host": between_two(torch.tensor([rank])),
        "float64": said(lambda: devices.all_reduce(x.double())),
    }  # fmt: skip
    return {name: value.tolist() if isinstance(value, torch.Tensor) else str(value) for name, value in found.items()}


def around(x: torch.Tensor) -> torch.Tensor:
    """Send `x` to the next rank, and return what the one before has sent."""
    rank, size = dist.get_rank(), dist.get_world_size()
    sent = devices.send(x, dst=(rank + 1) % size, tag=3, async_op=True)
    came = devices.recv(torch.empty_like(x), src=(rank - 1) % size, tag=3)
    sent.wait()
    return came


def between_two(x: torch.Tensor) -> torch.Tensor:
    """Send `x` from rank 1 to rank 2, in which no other rank takes part."""
    if dist.get_rank() == 1:
        devices.send(x, dst=2)
    return devices.recv(torch.empty_like(x), src=1) if dist.get_rank() == 2 else x


def placed(world: Any) -> tuple[list[Any], list[Any]]:
    """Lay a tensor over two axes, multiply it, and differentiate."""
    from devices import Shard

    mesh = world.mesh({"dp": 2, "tp": world.size // 2})
    full = torch.arange(32.0).view(4, 8)
    left = devices.place(full.to(world.device), mesh, tp=Shard(1)).requires_grad_()
    right = devices.place(full.T.contiguous().to(world.device), mesh, tp=Shard(0))
    product = (left @ right).full_tensor()
    product.sum().backward()
    return product.tolist(), left.grad.full_tensor().tolist()


def trained(world: Any, tp: int, folder: str) -> Any:
    """Train the example's model for three steps; return what it writes down."""
    example = runpy.run_path(str(EXAMPLE))
    sys.argv = [
        "train_gpt.py", "--batch=6", "--context=16", "--layers=1", "--width=16", "--heads=4", "--sample=8", "--steps=3",
        f"--tp={tp}", f"--out={folder}",
    ]  # fmt: skip
    example["train"](world, example["parse"]())
    return json.loads(Path(folder, "losses.json").read_text()) if world.rank == 0 else None


# Worlds that cannot open: these begin over the CPU and leave that world.


def open_with(world: Any, variables: dict[str, str]) -> str:
    """Open a world of Neuron devices with other variables."""
    world.close()
    os.environ.update(variables)
    return said(lambda: devices.init("neuron"))


def on_cores_of_their_own(world: Any) -> tuple[str, float, int]:
    """Open a world whose ranks were each given a core, as `devices env` does, and another one after it."""
    world.close()
    os.environ["NEURON_RT_VISIBLE_CORES"] = str(8 + world.rank)
    for _ in range(2):
        with devices.init("neuron") as world:
            total = devices.all_reduce(torch.ones(1, device=world.device)).item()
            devices.barrier()
    return str(world.device), total, torch.neuron.current_device()


def open_touched(world: Any, toucher: int) -> str:
    """Open a world of Neuron devices after one rank has made a tensor on one."""
    world.close()
    import torch_neuronx  # noqa: F401

    if world.rank == toucher:
        os.environ["NEURON_RT_VISIBLE_CORES"] = str(world.rank)
        torch.ones(1, device="neuron:0")
    return said(lambda: devices.init("neuron"))


def on_two_hosts(world: Any, cores: list[str]) -> dict[str, str]:
    """Open a world of two hosts of two cores, and groups of it."""
    world.close()
    host, place = divmod(world.rank, 2)
    socket.gethostname = lambda: f"host{host}"
    os.environ |= {
        "NEURON_STANDIN_MACHINE": cores[host],
        "NEURON_STANDIN_CORES": "2",
        "LOCAL_RANK": str(place),
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": str(host),
    }
    with devices.init("neuron") as world:
        ones = torch.ones(1, device=world.device)
        symmetric, other = dist.new_group([0, 2]), dist.new_group([0, 3])
        composed = world.rank in (0, 3)
        return {
            "world": str(devices.all_reduce(ones).item()),
            "symmetric": str(devices.all_reduce(ones, symmetric).item()) if place == 0 else "",
            "not symmetric": str(devices.all_reduce(ones, other).item()) if composed else "",
            "explained": devices.explain(other) if composed else "",
        }


def dies_while_it_opens(dying: int) -> tuple[str, float]:
    """Open a world of Neuron devices in which one rank is killed as the vendor's group opens; return the error."""
    import torch_neuronx.group as vendors

    if int(os.environ["RANK"]) == dying:
        vendors.ProcessGroupNeuron._check_places = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    return said(lambda: devices.init("neuron", timeout=300)), time.monotonic() - began


# Over the vendor's process group itself, to see that the stand-in is as strict as the documents.


def over_the_vendors(world: Any) -> dict[str, Any]:
    """Call torch's verbs over the group "neuron"."""
    world.close()
    import torch_neuronx  # noqa: F401

    dist.init_process_group("neuron")
    rank, size = dist.get_rank(), dist.get_world_size()
    here = torch.device("neuron", torch.neuron.current_device())
    x = torch.tensor([1.0, -0.0], device=here)
    wide = torch.full((2,), 2**40 + 7, device=here)
    gathered = torch.empty(2 * size, dtype=torch.int64, device=here)
    dist.all_gather_single(gathered, wide)
    from_zero = torch.tensor([-0.0], device=here)
    dist.broadcast(from_zero, src=0)
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    answers: dict[str, Any] = {
        "int64 is narrowed": gathered.tolist(),
        "sign of a zero": torch.signbit(from_zero.cpu()).tolist(),
        "prod": said(lambda: dist.all_reduce(x, dist.ReduceOp.PRODUCT)),
        "avg": said(lambda: dist.all_reduce(x, dist.ReduceOp.AVG)),
        "int32": said(lambda: dist.all_reduce(x.int())),
        "send": said(lambda: dist.send(x, (rank + 1) % size)),
        "recv": said(lambda: dist.recv(x, (rank + 1) % size)),
        "zero size": said(lambda: dist.all_reduce(torch.empty(0, device=here))),
        "uneven": said(
            lambda: dist.all_to_all_single(torch.empty(size + 1, device=here), torch.empty(size + 1, device=here),
                                           [2, *[1] * (size - 1)], [2, *[1] * (size - 1)])
        ),
        "barrier": said(lambda: dist.barrier(pair)),
        "another's device": said(lambda: torch.ones(1, device=f"neuron:{(rank + 1) % size}")),
        "complex": said(lambda: torch.ones(1, dtype=torch.complex64, device=here)),
        "float8_e4m3fn": said(lambda: torch.ones(1, dtype=torch.float32, device=here).to(torch.float8_e4m3fn)),
        "float64": (torch.tensor([1.0 + 2.0**-40], dtype=torch.float64).to(here) == 1.0).item(),
        "a tensor on the CPU": said(lambda: x + torch.ones(2)),
        "groups": "",
    }  # fmt: skip
    groups = []
    while len(groups) < 20 and not answers["groups"]:
        answers["groups"] = said(lambda: groups.append(dist.new_group()))
    answers["how many groups"] = len(groups)
    dist.destroy_process_group()
    return answers


def owned_twice(world: Any) -> str:
    """Take a core that another process has."""
    world.close()
    import torch_neuronx  # noqa: F401

    os.environ["NEURON_RT_VISIBLE_CORES"] = "3"
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
    if world.rank == 1:
        store.get("owned")
    answer = said(lambda: torch.ones(1, device="neuron"))
    if world.rank == 0:
        # It has the core as long as it lives, and so until the other one has tried.
        store.set("owned", "yes")
        store.get("tried")
    else:
        store.set("tried", "yes")
    return answer


def counted(world: Any, cores: str) -> tuple[int, str]:
    """Return how many devices there are with those visible cores, and what the first tensor says."""
    world.close()
    import torch_neuronx  # noqa: F401

    os.environ["NEURON_RT_VISIBLE_CORES"] = cores
    said_of_tensor = said(lambda: torch.ones(1, device="neuron"))
    return (0, said_of_tensor) if said_of_tensor else (torch.neuron.device_count(), "")
