"""torch's programs on thread ranks: the numbers that they give over gloo, on processes."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ranks
import test_torch_programs as programs
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

import devices.testing
from devices import World

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*returned a view tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def one_thread_per_op() -> Iterator[None]:
    """Let torch round as it does in the processes, which have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def over_gloo(program: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    saved = io.BytesIO()
    torch.save(program(*args), saved)
    dist.destroy_process_group()
    return saved.getvalue()


def on_a_thread(_: World, program: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    torch.manual_seed(0)
    return program(*args)


@functools.cache
def expected(size: int, program: Callable[..., Any], args: tuple[Any, ...]) -> list[bytes]:
    return ranks.run(size, over_gloo, program, args)


def same(size: int, program: Callable[..., Any], *args: Any, tolerance: float = 0.0, **how: Any) -> None:
    found = devices.testing.run(on_a_thread, program, args, ranks=size, **how)
    for mine, other in zip(found, expected(size, program, args), strict=True):
        torch.testing.assert_close(mine, torch.load(io.BytesIO(other)), rtol=tolerance, atol=tolerance)


def data_parallel(hook: Any, options: tuple[tuple[str, Any], ...]) -> Any:
    return programs.data_parallel(hook, dict(options))


@pytest.mark.parametrize(
    ("hook", "options"),
    [
        (None, ()),
        (None, (("gradient_as_bucket_view", True), ("bucket_cap_mb", 0.001))),
        (None, (("static_graph", True),)),
        (fp16_compress_hook, ()),
    ],
    ids=["plain", "many buckets", "static graph", "float16 on the way"],
)
def test_distributed_data_parallel(hook: Any, options: tuple[tuple[str, Any], ...]) -> None:
    same(2, data_parallel, hook, options)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("size", "program", "args"),
    [
        (2, programs.unused_parameters, ()),
        (2, programs.uneven_inputs, ()),
        (2, programs.fully_sharded, (False,)),
        (2, programs.fully_sharded, (True,)),
        (4, programs.two_dimensional, ()),
        (2, programs.tensor_parallel, ()),
        (2, programs.placements, ()),
        (4, programs.mesh_of_groups, ()),
        (2, programs.pipeline, ("ScheduleGPipe",)),
        (2, programs.pipeline, ("Schedule1F1B",)),
        (2, programs.functional, ()),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_a_program_gives_the_numbers_that_it_gives_over_gloo(
    size: int, program: Callable[..., Any], args: tuple[Any, ...], seed: int
) -> None:
    # Four ranks' sums may be ordered otherwise.
    same(size, program, *args, tolerance=1e-6 if size > 2 else 0.0, seed=seed)


def test_a_checkpoint_is_loaded_into_another_mesh(tmp_path: Any) -> None:
    devices.testing.run(on_a_thread, programs.checkpoint, (str(tmp_path), False), ranks=4)
