"""The verbs inside a compiled graph: custom ops of torch, where a group goes by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from devices import _torch
from devices.calls.flat import Call, in_memory
from devices.calls.groups import verbs_over

Tensor = torch.Tensor


@torch.library.custom_op("devices::call", mutates_args=())
def compiled_call(
    given: Tensor,
    verb: str,
    op: str,
    root: int,
    counts: Sequence[int],
    sent: Sequence[int],
    is_even: bool,
    sizes: Sequence[int],
    pairs: Sequence[int],
    rank: int,
    group: str,
) -> Tensor:
    """Run a call in a compiled graph, where the group goes by its name and `pairs` are flattened."""
    call = _call(verb, op, root, counts, sent, is_even, sizes, pairs)
    verbs = verbs_over(_torch.resolve_group(group), given)
    _, result = call.start(verbs, given, None, async_op=False)
    return result.contiguous()


@compiled_call.register_fake
def _(given: Tensor, verb: str, op: str, root: int, counts: Sequence[int], sent: Sequence[int], is_even: bool,
      sizes: Sequence[int], pairs: Sequence[int], rank: int, group: str) -> Tensor:  # fmt: skip
    return given.new_empty(Call(verb, counts=tuple(counts)).numel(given.numel(), rank))


def _call(verb: str, op: str, root: int, counts: Sequence[int], sent: Sequence[int], is_even: bool,
          sizes: Sequence[int], pairs: Sequence[int]) -> Call:  # fmt: skip
    # A graph has no gradients of gradients, so the reduce and the gather that are refused one need no telling from
    # those that carry another verb's gradient.
    ends = tuple(zip(pairs[::2], pairs[1::2], strict=True))
    return Call(verb, op, root, tuple(counts), tuple(sent), is_even, tuple(sizes), ends, gradient=False)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, verb, op, root, counts, sent, is_even, sizes, pairs, ctx.rank, ctx.group = inputs
    ctx.call = _call(verb, op, root, counts, sent, is_even, sizes, pairs)


def _compiled_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    call, divisor = ctx.call.adjoint()
    back = apply_compiled(call, gradient, ctx.rank, ctx.group)
    return (back / divisor if divisor != 1 else back), *[None] * 10


compiled_call.register_autograd(_compiled_backward, setup_context=_keep)


def apply_compiled(call: Call, given: Tensor, rank: int, group: str) -> Tensor:
    """Apply `call` in a graph that is being compiled."""
    flat_pairs = [end for pair in call.pairs for end in pair]
    lists = list(call.counts), list(call.sent), call.is_even, list(call.sizes), flat_pairs
    result: Tensor = compiled_call(given, call.verb, call.op, call.root, *lists, rank, group)
    return result


@torch.library.custom_op("devices::send", mutates_args=())
def compiled_send(given: Tensor, dst: int, tag: int, group: str) -> None:
    """Send `given` in a compiled graph."""
    verbs_over(_torch.resolve_group(group), given).send(in_memory(given), dst, tag)


@torch.library.custom_op("devices::recv", mutates_args=())
def compiled_recv(like: Tensor, src: int, tag: int, group: str) -> Tensor:
    """Receive a tensor as large as `like` in a compiled graph."""
    result = torch.empty_like(like)
    verbs_over(_torch.resolve_group(group), like).recv(result, src, tag)
    return result


@torch.library.custom_op("devices::barrier", mutates_args=())
def compiled_barrier(on: Tensor, group: str) -> None:
    """Wait for every rank in a compiled graph; `on` only tells the device."""
    verbs_over(_torch.resolve_group(group), on).barrier()


compiled_send.register_fake(lambda given, dst, tag, group: None)
compiled_recv.register_fake(lambda like, src, tag, group: torch.empty_like(like))
compiled_barrier.register_fake(lambda on, group: None)
# All take part in a verb, also the ranks that make no use of its result: nothing may be dropped or change places.
for _op in ("devices::call", "devices::send", "devices::recv", "devices::barrier"):
    _torch.order_effects_of(_op)
