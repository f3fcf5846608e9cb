"""`out=` that lies in memory otherwise than it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import devices
import devices.testing
from devices import World


@pytest.mark.parametrize("kind", ["conj", "neg"])
def test_out_may_be_a_conjugate_or_a_negative_view(kind: str) -> None:
    """It reads as the result; the memory below it holds what that view is of."""

    def writes(world: World) -> list[bool]:
        x = torch.tensor([1 + 2j, 3 - 1j]) * (world.rank + 1)
        given, results = x if kind == "conj" else x.imag, []
        total, peer = given / (world.rank + 1) * 3, 1 - world.rank

        def out(size: int = 2) -> torch.Tensor:
            memory = torch.zeros(size, dtype=torch.complex64)
            # The imaginary part of a conjugate is a negative view.
            view = memory.conj() if kind == "conj" else memory.conj().imag
            assert view.is_conj() if kind == "conj" else view.is_neg()
            return view

        each = [given / (world.rank + 1) * (rank + 1) for rank in range(2)]
        cases: list[tuple[Callable[[torch.Tensor], Any], torch.Tensor]] = [
            (lambda to: devices.all_reduce(given, out=to), total),
            (lambda to: devices.broadcast(given, src=1, out=to), each[1]),
            (lambda to: devices.permute(given, pairs=[(0, 1), (1, 0)], out=to), each[peer]),
            (lambda to: devices.all_reduce(given, out=to, async_op=True).result(), total),
            (lambda to: devices.all_to_all(given, out=to), torch.stack([one[world.rank] for one in each])),
        ]
        for verb, expected in cases:
            target = out()
            verb(target)
            results.append(torch.equal(target.resolve_conj().resolve_neg(), expected))
        target = out(4)
        devices.all_gather(given, out=target)
        results.append(torch.equal(target.resolve_conj().resolve_neg(), torch.cat(each)))
        target = out(2)
        target.copy_(given)
        devices.all_reduce(target, out=target)
        results.append(torch.equal(target.resolve_conj().resolve_neg(), total))
        return results

    assert devices.testing.run(writes, ranks=2) == [[True] * 7] * 2


def test_what_is_written_into_out_is_counted_as_a_change_in_place() -> None:
    """A gradient that has saved the tensor then raises, where it would be wrong."""

    def writes(world: World) -> list[str]:
        size, rank = world.size, world.rank
        peer, uncounted = 1 - rank, []

        def message(given: torch.Tensor, out: torch.Tensor) -> None:
            work = devices.send(given.clone(), dst=peer, async_op=True)
            devices.recv(given, src=peer, out=out)
            work.wait()

        swap = [(0, 1), (1, 0)]
        verbs: dict[str, tuple[int, int, Callable[[torch.Tensor, torch.Tensor], Any]]] = {
            "all_reduce": (4, 4, lambda x, out: devices.all_reduce(x, out=out)),
            "broadcast": (4, 4, lambda x, out: devices.broadcast(x, src=0, out=out)),
            "all_gather": (4, 4 * size, lambda x, out: devices.all_gather(x, out=out)),
            "reduce_scatter": (4 * size, 4, lambda x, out: devices.reduce_scatter(x, out=out)),
            "all_to_all": (4, 4, lambda x, out: devices.all_to_all(x, out=out)),
            "scatter": (4 * size, 4, lambda x, out: devices.scatter(x, src=0, out=out)),
            "permute": (4, 4, lambda x, out: devices.permute(x, pairs=swap, out=out)),
            "all_reduce, async": (4, 4, lambda x, out: devices.all_reduce(x, out=out, async_op=True).result()),
            "all_gather of a list": (4, 4 * size, lambda x, out: devices.all_gather([x], out=[out])),
            "message": (4, 4, message),
        }
        for name, (given, gotten, verb) in verbs.items():
            one, factor = torch.ones(gotten), torch.ones(gotten, requires_grad=True)
            product = factor * one
            verb(torch.ones(given), one)
            try:
                product.sum().backward()
                uncounted.append(name)
            except RuntimeError as error:
                if "modified by an inplace operation" not in str(error):
                    raise
        for name, in_place in {"all_reduce": devices.all_reduce, "broadcast": devices.broadcast}.items():
            one = torch.ones(4)
            before = one._version
            in_place(one, out=one)
            if one._version == before:
                uncounted.append(f"{name} in place")
        one = torch.ones(4)
        before = one._version
        message(one, one)
        if one._version == before:
            uncounted.append("message in place")
        return uncounted

    assert devices.testing.run(writes, ranks=2) == [[], []]
