"""docs/promises.md, cell by cell: what says yes holds, what says no does not."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from doc_blocks import ROOT
from shared_memory import HAS_SHARED_MEMORY

import devices
from devices.errors import (
    ArgumentError,
    CollectiveError,
    CollectiveTimeoutError,
    DtypeError,
    MismatchError,
    RaceError,
    UnsupportedError,
)

pytestmark = pytest.mark.slow

Tensor = torch.Tensor
PATHS = ("ours", "adopted", "compiled", "torch's")
CHECKS: dict[str, Callable[[Any], bool]] = {}


def table() -> dict[str, dict[str, bool]]:
    """Return {promise: {path: whether it holds}}, as the document's first table has it."""
    rows = [
        line
        for line in (ROOT / "docs" / "promises.md").read_text().split("\n## ")[0].splitlines()
        if line.startswith("| ")
    ]
    head, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    assert tuple(head[1:]) == PATHS
    assert {cell.split(":")[0] for row in body for cell in row[1:]} == {"yes", "no"}
    return {row[0]: {path: row[at].startswith("yes") for at, path in enumerate(PATHS, 1)} for row in body}


class Eager:
    """The verbs of `devices`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(devices, name)


class Compiled:
    """The same, each call compiled into one graph."""

    def __getattr__(self, name: str) -> Any:
        verb = getattr(devices, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            # What has no gradient needs no graph of it, which takes its time.
            backend = "aot_eager" if isinstance(args[0], Tensor) and args[0].requires_grad else "eager"
            torch._dynamo.reset()
            return torch.compile(lambda *given: verb(*given, **kwargs), fullgraph=True, backend=backend)(*args)

        return call


class Torchs:
    """torch's verbs, called as ours are where they can be."""

    def all_reduce(self, x: Tensor, op: str = "sum", **more: Any) -> Any:
        work = dist.all_reduce(x, getattr(dist.ReduceOp, op.upper()), **more)
        return work if more.get("async_op") else x

    def all_gather(self, x: Tensor, sizes: list[int], **more: Any) -> Any:
        parts = [x.new_empty(size, *x.shape[1:]) for size in sizes]
        work = dist.all_gather(parts, x, **more)
        return work if more.get("async_op") else torch.cat(parts)

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        dist.broadcast(x, src)
        return x

    def reduce_scatter(self, x: Tensor) -> Tensor:
        output = x.new_empty(x.shape[0] // dist.get_world_size())
        dist.reduce_scatter_tensor(output, x)
        return output


def promise(text: str) -> Callable[[Callable[[Any], bool]], Callable[[Any], bool]]:
    def keep(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
        CHECKS[text] = check
        return check

    return keep


def mine(*numbers: float, **options: Any) -> Tensor:
    """Return 1-based rank times numbers: over two ranks they add up to three times as much."""
    return torch.tensor(numbers, **options) * (dist.get_rank() + 1)


@promise("the input is left unchanged, a new tensor returned")
def _(verbs: Any) -> bool:
    x = mine(1.0, 2.0)
    total = verbs.all_reduce(x)
    assert total.tolist() == [3.0, 6.0]
    return x.equal(mine(1.0, 2.0)) and total is not x


@promise("gradients")
def _(verbs: Any) -> bool:
    x = mine(1.0, 2.0).requires_grad_()
    # Each rank's loss is (x1 + x2)²; the sum of both has the gradient 2 · 2 · (x1 + x2).
    verbs.all_reduce(x).square().sum().backward()
    return x.grad is not None and x.grad.tolist() == [12.0, 24.0]


@promise("gradients of gradients")
def _(verbs: Any) -> bool:
    x = mine(1.0, 2.0).requires_grad_()
    [first] = torch.autograd.grad(verbs.all_reduce(x).square().sum(), x, create_graph=True)
    # The first is 4 · (x1 + x2) on each rank; the sum of both ranks' has the gradient 8.
    [second] = torch.autograd.grad(first.sum(), x)
    return second.tolist() == [8.0, 8.0]


@promise("lists and dicts in one call")
def _(verbs: Any) -> bool:
    both = verbs.all_reduce({"a": mine(1.0), "b": mine(2.0)})
    [alone] = verbs.all_reduce([mine(1.0)])
    return both["a"].item() == 3.0 and both["b"].item() == 6.0 and alone.item() == 3.0


@promise("`out=`")
def _(verbs: Any) -> bool:
    out = torch.zeros(1)
    verbs.all_reduce(mine(1.0), out=out)
    return out.item() == 3.0


@promise("`async_op=True`")
def _(verbs: Any) -> bool:
    x = mine(1.0)
    work = verbs.all_reduce(x, async_op=True)
    work.wait()
    return (work.result() if isinstance(work, devices.Work) else x).item() == 3.0


@promise("an input that changes before its asynchronous verb is waited for is a `RaceError`")
def _(verbs: Any) -> bool:
    x = mine(1.0)
    work = verbs.all_gather(x, sizes=[1, 1], async_op=True)
    x += 1
    return raises(RaceError, work.wait)


@promise("parts of unequal size")
def _(verbs: Any) -> bool:
    rank = dist.get_rank()
    return verbs.all_gather(torch.full((rank + 1,), rank), sizes=[1, 2]).tolist() == [0, 1, 1]


@promise("a weighted mean")
def _(verbs: Any) -> bool:
    # Weights 1 and 2, numbers 1 and 2: (1 + 4) / 3.
    return verbs.all_reduce(mine(1.0), op="avg", weight=dist.get_rank() + 1.0).item() == pytest.approx(5 / 3)


@promise("min and max keep a NaN")
def _(verbs: Any) -> bool:
    alone = mine(float("nan") if dist.get_rank() else 1.0, 1.0 if dist.get_rank() else float("nan"))
    return all(verbs.all_reduce(alone.clone(), op=op).isnan().all().item() for op in ("min", "max"))


@promise("16-bit floats are added up in float32 and rounded once")
def _(verbs: Any) -> bool:
    # The sum is beyond float16's range, the mean is not: it comes out if the sum was not rounded.
    half = torch.tensor([60000.0], dtype=torch.float16)
    return verbs.all_reduce(half, op="avg").item() == torch.tensor(60000.0).half().item()


@promise("float8 tensors are moved")
def _(verbs: Any) -> bool:
    x = mine(0.5, 1.5).to(torch.float8_e4m3fn)
    return verbs.broadcast(x, src=1).float().tolist() == [1.0, 3.0]


def raises(kind: type[Exception], function: Callable[[], Any]) -> bool:
    try:
        function()
    except Exception as error:
        return isinstance(error, kind)
    return False


@promise("avg of integers is a `DtypeError`")
def _(verbs: Any) -> bool:
    return raises(DtypeError, lambda: verbs.all_reduce(mine(1).long(), op="avg"))


@promise("a wrong size is an error before anything is sent")
def _(verbs: Any) -> bool:
    # Rank 1 does not take part: had anything been sent or waited for, the next verb would go wrong.
    told = dist.get_rank() == 1 or raises(ArgumentError, lambda: verbs.reduce_scatter(mine(1.0, 2.0, 3.0)))
    in_step = verbs.all_reduce(mine(1.0)).item() == 3.0
    return told and in_step


@promise("object collectives are refused under `DEVICES_NO_PICKLE=1`")
def _(verbs: Any) -> bool:
    gathered = [None, None]
    return raises(UnsupportedError, lambda: dist.all_gather_object(gathered, "anything"))


def open_path(path: str, timeout: float = 60) -> Any:
    """Open a process group for a path and return its verbs."""
    dist.init_process_group("gloo" if path == "adopted" else "devices", timeout=timedelta(seconds=timeout))
    if path == "adopted":
        devices.init()
    return {"compiled": Compiled, "torch's": Torchs}.get(path, Eager)()


def _kept(path: str) -> dict[str, bool]:
    verbs = open_path(path)
    kept = {}
    for text, check in CHECKS.items():
        try:
            kept[text] = check(verbs)
        except Exception:
            kept[text] = False
        dist.barrier()
    dist.destroy_process_group()
    return kept


WITHOUT_A_PEER: dict[str, tuple[str, Callable[[Exception], bool]]] = {
    "a peer that died is a `CollectiveError`": ("dead", lambda error: isinstance(error, CollectiveError)),
    "a peer that died is named": ("dead", lambda error: "rank 1 " in str(error) and "died" in str(error)),
    "the text of an exception that a peer died of": ("raises", lambda error: "batch 7 is corrupt" in str(error)),
    "a peer that does not come in time is a `CollectiveTimeoutError`": (
        "late",
        lambda error: isinstance(error, CollectiveTimeoutError),
    ),
    "a peer that does not come in time is named": ("late", lambda error: "waits for rank 1 " in str(error)),
    "another call than its peers' is a `MismatchError` on every rank": (
        "other",
        lambda error: (
            isinstance(error, MismatchError) and all(word in str(error) for word in ("op", "'sum'", "'max'", "rank 1"))
        ),
    ),
}
"""What is promised of a rank whose peer, rank 1, fails it: how it does, and what then holds of the rank's error."""

NEED_SHARED_MEMORY = frozenset(text for text in WITHOUT_A_PEER if "`Collective" not in text)


def _with_a_bad_peer(path: str, how: str, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    # gloo waits for all of the timeout where two ranks call different things.
    is_waited_for = how == "late" or (path == "adopted" and how == "other")
    verbs = open_path(path, timeout=3 if is_waited_for else 60)
    verbs.all_reduce(mine(1.0))
    if rank == 1 and how == "dead":
        os._exit(0)
    if rank == 1 and how == "raises":
        # As an uncaught exception ends a program.
        sys.excepthook(ValueError, ValueError("batch 7 is corrupt"), None)
        os._exit(1)
    while rank == 1 and how == "late":
        time.sleep(0.05)
        if (folder / "0").exists():
            os._exit(0)
    told = dict.fromkeys((text for text, (which, _) in WITHOUT_A_PEER.items() if which == how), False)
    try:
        verbs.all_reduce(mine(1.0), op="max" if how == "other" and rank == 1 else "sum")
    except Exception as error:
        told = {text: WITHOUT_A_PEER[text][1](error) for text in told}
    part = folder / f"part {rank}"
    part.write_text(json.dumps(told))
    part.rename(folder / str(rank))
    os._exit(0)


@pytest.mark.parametrize("path", PATHS)
def test_a_promise_is_kept_where_the_table_says_so_and_only_there(path: str, tmp_path: Path) -> None:
    on_ranks = ranks.run(2, _kept, path, env={"DEVICES_NO_PICKLE": "1"})
    found = {text: all(kept[text] for kept in on_ranks) for text in CHECKS}
    for how in ("dead", "raises", "late", "other"):
        folder = tmp_path / how
        folder.mkdir()
        with pytest.raises(ranks.RankFailed):
            ranks.run(2, _with_a_bad_peer, path, how, folder)
        # A rank that still waits has written nothing.
        files = [folder / rank for rank in ("01" if how == "other" else "0")]
        said = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        asked = [text for text, (which, _) in WITHOUT_A_PEER.items() if which == how]
        found |= {text: all(each.get(text, False) for each in said) for text in asked}
    promised = {text: cells[path] for text, cells in table().items()}
    assert promised.keys() == found.keys()
    left_out = frozenset() if HAS_SHARED_MEMORY else NEED_SHARED_MEMORY
    assert {text: kept for text, kept in found.items() if text not in left_out} == {
        text: is_kept for text, is_kept in promised.items() if text not in left_out
    }
