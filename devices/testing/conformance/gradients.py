"""The law of gradients: they are those of the sum over ranks of each rank's loss.

All ranks' inputs go through a plain function in one process, which torch differentiates, and each rank's gradient is
compared with that; the second one too.
"""

from __future__ import annotations

from typing import Any

import torch

import devices
from devices.testing.conformance.check import Check
from devices.testing.conformance.laws import has, law
from devices.testing.conformance.subject import Subject


def gradients_of(world: devices.World, verb: str, dtype: str) -> None:
    size, rank, device = world.size, world.rank, world.device
    even, uneven = [2] * size, [*range(size)][::-1]
    table = [[(of + to) % size for to in range(size)] for of in range(size)]
    around, ahead = [(of, (of + 1) % size) for of in range(size)], [(of, of + 1) for of in range(size - 1)]
    weights = [0.5 + of for of in range(size)]

    def part(x: torch.Tensor, sizes: list[int], of: int) -> torch.Tensor:
        return x.narrow(0, sum(sizes[:of]), sizes[of])

    # What is given to the verb, the number of rows of a rank's input, and the plain function: from all ranks' inputs
    # to one rank's output.
    cases: dict[str, list[Any]] = {
        "all_reduce": [
            ({}, lambda of: 4, lambda xs, of: sum(xs)),
            ({"op": "avg"}, lambda of: 4, lambda xs, of: sum(xs) / size),
            ({"op": "avg", "weight": weights[rank]}, lambda of: 4,
             lambda xs, of: sum(w * x for w, x in zip(weights, xs, strict=True)) / sum(weights)),
        ],
        "all_gather": [
            ({}, lambda of: 2, lambda xs, of: torch.cat(xs)),
            ({"sizes": uneven}, lambda of: uneven[of], lambda xs, of: torch.cat(xs)),
        ],
        "reduce_scatter": [
            ({}, lambda of: 2 * size, lambda xs, of: part(torch.stack(xs).sum(0), even, of)),
            ({"op": "avg"}, lambda of: 2 * size, lambda xs, of: part(torch.stack(xs).mean(0), even, of)),
            ({"sizes": uneven}, lambda of: sum(uneven), lambda xs, of: part(torch.stack(xs).sum(0), uneven, of)),
        ],
        "all_to_all": [
            ({}, lambda of: 2 * size, lambda xs, of: torch.cat([part(x, even, of) for x in xs])),
            ({"sizes": table}, lambda of: sum(table[of]),
             lambda xs, of: torch.cat([part(x, table[at], of) for at, x in enumerate(xs)])),
        ],
        "broadcast": [({"src": src}, lambda of: 3, lambda xs, of, src=src: xs[src] * 1) for src in (0, size - 1)],
        "scatter": [
            ({"src": 0}, lambda of: 2 * size, lambda xs, of: part(xs[0], even, of)),
            ({"src": size - 1, "sizes": uneven}, lambda of: sum(uneven), lambda xs, of: part(xs[-1], uneven, of)),
        ],
        "permute": [
            ({"pairs": around}, lambda of: 3, lambda xs, of: xs[of - 1] * 1),
            ({"pairs": ahead}, lambda of: 3, lambda xs, of: xs[of - 1] * 1 if of else 0 * xs[0]),
        ],
    }  # fmt: skip

    def loss_of(output: torch.Tensor, of: int, seed: int) -> torch.Tensor:
        # Another on each rank and not linear, so that there is a second derivative.
        chance = torch.Generator().manual_seed(seed + of)
        factor = torch.randn(output.shape, generator=chance, dtype=torch.float64).to(output)
        return (factor * output * output * (1 + output)).sum()

    for given, rows, plain in cases[verb]:
        inputs = [torch.randn((rows(of), 3), generator=torch.Generator().manual_seed(of), dtype=torch.float64)
                  for of in range(size)]  # fmt: skip
        for way in ("sync", "async", "a transposed view"):
            is_view = way == "a transposed view"
            # Of a scatter there is an input on one rank, and no second gradient.
            is_given = verb != "scatter" or rank == given["src"]
            orders = 1 if verb == "scatter" else 2
            leaves = [(one.t() if is_view else one).contiguous().requires_grad_() for one in inputs]
            x = leaves[rank].detach().to(device, getattr(torch, dtype)).requires_grad_()
            result = getattr(devices, verb)(
                (x.t() if is_view else x) if is_given else None, async_op=way == "async", **given
            )
            output = result.result() if way == "async" else result
            outputs = [plain([leaf.t() for leaf in leaves] if is_view else leaves, of) for of in range(size)]
            mine = loss_of(output, rank, 100)
            all_of_them = torch.stack([loss_of(one, of, 100) for of, one in enumerate(outputs)]).sum()
            for order in range(1, orders + 1):
                is_last = order == orders
                expected = torch.autograd.grad(
                    all_of_them, leaves, create_graph=not is_last, allow_unused=True, materialize_grads=True
                )
                if not is_given:
                    mine.backward()
                    continue
                (found,) = torch.autograd.grad(mine, x, create_graph=not is_last)
                wanted = expected[rank].detach()
                # Of a few sums of products, each rounded some tens of times.
                near = 200 * size * torch.finfo(found.dtype).eps * max([1.0, *wanted.abs().flatten().tolist()])
                distance = max([0.0, *(found.detach().cpu().double() - wanted).abs().flatten().tolist()])
                assert distance <= near, (
                    f"rank {rank}: gradient {order} of {verb} with {given}, {way}, is {found.tolist()}, expected "
                    f"{wanted.tolist()} within {near:.1e}"
                )
                mine = loss_of(found, rank, 200)
                all_of_them = torch.stack([loss_of(one, of, 200) for of, one in enumerate(expected)]).sum()


def _verb(name: str, sentence: str) -> Check:
    def cases(subject: Subject) -> tuple[tuple[object, ...], ...]:
        return ((name, "float64" if has(subject, "float64") else "float32"),)

    return law(f"gradients.{name}", sentence, gradients_of, cases=cases)


CHECKS = [
    _verb(
        "all_reduce", "The gradient of all_reduce, for sum, avg and weights, is that of the sum of all ranks' losses."
    ),
    _verb("all_gather", "The gradient of all_gather is the sum over ranks of what each gives to this rank's part."),
    _verb("reduce_scatter", "The gradient of reduce_scatter, for sum and avg, is what each rank has for its part."),
    _verb("all_to_all", "The gradient of all_to_all goes the way back, of parts of unequal size too."),
    _verb("broadcast", "The gradient of broadcast is, on its source, the sum over ranks, and zero elsewhere."),
    _verb("scatter", "The gradient of scatter is, on its source, what each rank has for its part."),
    _verb("permute", "The gradient of permute goes the way back of each pair, and is zero where nothing was sent."),
]
