"""Every verb from `exchange`: the chosen schedule, run by the executor. All wait until the verb is done.

What only moves data comes as bytes; what reduces comes in a dtype that `arithmetic.combine` takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from devices.algorithms.arithmetic import Carrier, local_carrier
from devices.algorithms.choose import choose
from devices.algorithms.executor import run
from devices.algorithms.layout import Layout
from devices.algorithms.schedule import Schedule
from devices.algorithms.transport import Transport

Tensor = torch.Tensor
Parts = Mapping[int, Tensor]


def carrier(_: Transport, op: str, dtype: torch.dtype) -> Carrier:
    """Return the form in which tensors are reduced here."""
    return local_carrier(op, dtype)


def all_reduce(on: Transport, tensor: Tensor, op: str) -> None:
    whole = {0: tensor}
    _run(on, choose("all_reduce", on.size, tensor.nbytes), (tensor.numel(),), tensor, {}, whole, op)


def all_gather(on: Transport, output: Tensor, input: Tensor, counts: Sequence[int]) -> None:
    schedule = choose("all_gather", on.size, output.nbytes)
    _run(on, schedule, counts, input, {on.rank: input}, _split(output, counts))


def reduce_scatter(on: Transport, output: Tensor, input: Tensor, op: str, counts: Sequence[int]) -> None:
    schedule = choose("reduce_scatter", on.size, input.nbytes)
    _run(on, schedule, counts, input, _split(input, counts), {on.rank: output}, op)


def all_to_all(
    on: Transport, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
) -> None:
    sent, received = _split(input, input_counts), _split(output, output_counts)
    _run(on, choose("all_to_all", on.size), (), input, sent, received)


def broadcast(on: Transport, tensor: Tensor, src: int) -> None:
    schedule = choose("broadcast", on.size, tensor.nbytes, src)
    _run(on, schedule, (tensor.numel(),), tensor, {}, {0: tensor})


def reduce(on: Transport, tensor: Tensor, dst: int, op: str) -> None:
    schedule = choose("reduce", on.size, tensor.nbytes, dst)
    _run(on, schedule, (tensor.numel(),), tensor, {}, {0: tensor}, op)


def gather(on: Transport, output: Tensor | None, input: Tensor, dst: int, counts: Sequence[int]) -> None:
    received = {} if output is None else _split(output, counts)
    _run(on, choose("gather", on.size, sum(counts), dst), counts, input, {on.rank: input}, received)


def scatter(on: Transport, output: Tensor, input: Tensor | None, src: int, counts: Sequence[int]) -> None:
    sent = {} if input is None else _split(input, counts)
    _run(on, choose("scatter", on.size, sum(counts), src), counts, output, sent, {on.rank: output})


def permute(on: Transport, output: Tensor | None, input: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    schedule = choose("permute", on.size, pairs=tuple(pairs))
    _run(on, schedule, (), input, {0: input}, {} if output is None else {0: output})


def barrier(on: Transport) -> None:
    said, heard = torch.zeros(2, 1, dtype=torch.uint8, device=on.device)
    _run(on, choose("barrier", on.size), (1,), said, {0: said}, {0: heard})
    if on.device.type != "cpu":
        # The device was told to wait; a barrier holds the host.
        heard.cpu()


def _split(tensor: Tensor, counts: Sequence[int]) -> Parts:
    return dict(enumerate(tensor.split(list(counts))))


def _run(
    on: Transport, schedule: Schedule, sizes: Sequence[int], like: Tensor, input: Parts, output: Parts, op: str = "sum"
) -> None:
    run(schedule, on.rank, on.communicator.exchange, Layout(schedule, sizes, like, input, output), op)
