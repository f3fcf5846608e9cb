"""The laws of what is refused: at once, on the rank that asks, in clear words, and the group goes on.

What is wrong is asked for on rank 0 alone, so that nothing can have been sent.
"""

from __future__ import annotations

from typing import Any

import torch

import devices
from devices.testing.conformance.check import Broken, Check, Skipped, Tally
from devices.testing.conformance.laws import has, law
from devices.testing.conformance.subject import SIZES, Subject


def undeclared_dtypes(world: devices.World, dtypes: tuple[str, ...]) -> None:
    size, rank, device = world.size, world.rank, world.device
    calls: list[tuple[str, dict[str, Any]]] = [
        ("all_reduce", {}), ("all_reduce", {"op": "max"}), ("all_gather", {}), ("reduce_scatter", {}),
        ("all_to_all", {}), ("broadcast", {"src": 0}), ("reduce", {"dst": 0}), ("gather", {"dst": 0}),
        ("permute", {"pairs": [(0, 1)]}), ("send", {"dst": 1}), ("recv", {"src": 1}),
    ]  # fmt: skip
    for dtype in dtypes if rank == 0 else ():
        try:
            x = torch.empty(2 * size, dtype=getattr(torch, dtype), device=device)
        except (RuntimeError, TypeError):
            continue  # nor does the device have tensors of it
        for verb, given in calls:
            for async_op in (False, True):
                try:
                    getattr(devices, verb)(x, async_op=async_op, **given)
                except devices.errors.UnsupportedError:
                    continue
                except devices.errors.DtypeError:
                    if "reduce" in verb:
                        continue  # the op has no meaning on it
                    raise
                raise AssertionError(
                    f"{verb} with {given} of {x.dtype}, which the backend does not declare, raised no UnsupportedError"
                )
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after what rank 0 was refused the sum of ones is {total}, not {size}"


def ops_without_meaning(world: devices.World, pairs: tuple[tuple[str, str], ...]) -> None:
    size, rank, device = world.size, world.rank, world.device
    for op, dtype in (*pairs, ("median", "float32")) if rank == 0 else ():
        expected = devices.errors.ArgumentError if op == "median" else devices.errors.DtypeError
        x = torch.ones(2 * size, dtype=getattr(torch, dtype), device=device)
        for verb in ("all_reduce", "reduce_scatter", "reduce"):
            for async_op in (False, True):
                try:
                    getattr(devices, verb)(x, op=op, async_op=async_op)
                except expected as error:
                    said = str(error)
                except Exception as error:
                    raise AssertionError(
                        f"{verb} with op {op!r} of {x.dtype} raised {type(error).__name__}: {error}; "
                        f"expected a {expected.__name__}"
                    ) from error
                else:
                    raise AssertionError(f"{verb} with op {op!r} of {x.dtype}, which has no meaning, raised nothing")
                assert repr(op) in said, f"the error of {verb} with op {op!r} of {x.dtype} does not name the op: {said}"
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after what rank 0 was refused the sum of ones is {total}, not {size}"


def wrong_arguments(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    x = torch.ones(2 * size, 3, device=device)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("all_gather", {"sizes": [2] * (size + 1)}),
        ("all_gather", {"sizes": [1] * size}),
        ("all_gather", {"dim": 2}),
        ("reduce_scatter", {"sizes": [1] * size}),
        ("reduce_scatter", {"sizes": [-1, *[2] * (size - 2), 5]}),
        ("reduce_scatter", {"dim": 1} if size != 3 else {"dim": -3}),
        ("all_to_all", {"sizes": [[1] * size] * size}),
        ("broadcast", {"src": size}),
        ("broadcast", {"src": -1}),
        ("reduce", {"dst": size}),
        ("gather", {"dst": size}),
        ("scatter", {"src": size}),
        ("permute", {"pairs": [(0, 1), (0, 0)]}),
        ("permute", {"pairs": [(0, size)]}),
        ("send", {"dst": 0}),
        ("send", {"dst": size}),
        ("send", {"dst": 1, "tag": -1}),
        ("send", {"dst": 1, "tag": 2**30}),
        ("recv", {"src": 0}),
        ("recv", {"src": 1, "tag": 2**30}),
        ("all_reduce", {"out": torch.empty(3, device=device)}),
        ("all_gather", {"out": torch.empty(2 * size, 3, device=device)}),
        ("all_reduce", {"op": "sum", "weight": 2.0}),
        ("all_reduce", {"op": "avg", "weight": -1.0}),
    ]
    for verb, given in calls if rank == 0 else []:
        for async_op in (False, True):
            try:
                getattr(devices, verb)(x, async_op=async_op, **given)
            except devices.errors.ArgumentError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"{verb} of a tensor of {tuple(x.shape)} with {given} raised {type(error).__name__}: {error}; "
                    "expected an ArgumentError"
                ) from error
            raise AssertionError(f"{verb} of a tensor of {tuple(x.shape)} with {given} raised no ArgumentError")
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after what rank 0 was refused the sum of ones is {total}, not {size}"


def gradients_that_are_not_defined(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    unsupported, argument = devices.errors.UnsupportedError, devices.errors.ArgumentError
    x = torch.ones(2 * size, device=device, requires_grad=True)
    attempts: list[tuple[str, type[Exception], Any]] = []
    for op in ("min", "max", "prod"):
        for verb in ("all_reduce", "reduce_scatter"):
            result = getattr(devices, verb)(x, op=op)
            attempts.append((f"backward of {verb} with op {op!r}", unsupported, result.sum().backward))
    for verb in ("reduce", "gather"):
        result = getattr(devices, verb)(x, dst=size - 1)
        if rank == size - 1:
            attempts.append((f"backward of {verb}", unsupported, result.sum().backward))
    out = torch.empty(2 * size, device=device)
    weight = torch.tensor(1.0, device=device, requires_grad=True)
    attempts += [
        ("all_reduce with out= of what requires grad", argument, lambda: devices.all_reduce(x, out=out)),
        ("broadcast with out= of what requires grad", argument, lambda: devices.broadcast(x, out=out)),
        ("send of what requires grad", argument, lambda: devices.send(x, dst=(rank + 1) % size)),
        ("a weight that requires grad", argument, lambda: devices.all_reduce(x, op="avg", weight=weight)),
    ]
    for what, expected, attempt in attempts:
        try:
            attempt()
        except expected:
            continue
        except Exception as error:
            raise AssertionError(
                f"rank {rank}: {what} raised {type(error).__name__}: {error}; expected a {expected.__name__}"
            ) from error
        raise AssertionError(f"rank {rank}: {what} raised nothing; expected a {expected.__name__}")
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after what was refused the sum of ones is {total}, not {size}"


def illegal_groups(world: devices.World, illegal: tuple[int, ...]) -> None:
    import torch.distributed as dist

    size, rank, device = world.size, world.rank, world.device
    for wrong in illegal:
        try:
            group = dist.new_group(list(range(wrong)))
        except devices.errors.UnsupportedError as error:
            said = str(error)
            assert str(wrong) in said, f"rank {rank}: the error of a group of {wrong} does not name the size: {said}"
            continue
        if rank < wrong:
            # It is of domains of sizes that are.
            assert f"no groups of {wrong};" in devices.explain(group), (
                f"rank {rank}: a group of {wrong}, a size that is not declared, raised nothing"
            )
            total = devices.all_reduce(torch.ones(1, device=device), group).item()
            assert total == wrong, f"rank {rank}: in a group of {wrong} the sum of ones is {total}"
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after groups were refused the world's sum of ones is {total}, not {size}"


def composed_world(world: devices.World) -> None:
    """Use a world of a size that is not declared: it is of domains of sizes that are."""
    said = devices.explain()
    assert f"no groups of {world.size};" in said, f"rank {world.rank}: opened, and it is not told of what: {said}"
    ones = torch.ones(5, device=world.device)
    total = devices.all_reduce(ones).cpu()
    assert torch.equal(total, torch.full((5,), float(world.size))), f"rank {world.rank}: the sum of ones is {total}"


def _illegal_groups(subject: Subject, tally: Tally) -> None:
    allows = subject.capabilities.allows_group_of
    illegal = tuple(size for size in SIZES if size > 1 and not allows(size))
    if not illegal:
        tally.skip(f"needs a size that is not legal, and groups may have {subject.sizes_in_words} ranks")
        return
    largest = max(subject.sizes)
    if within := tuple(size for size in illegal if size < largest):
        tally.hold(subject, illegal_groups, largest, within)
    if subject.ranks != "processes":
        return
    for size in illegal:
        try:
            subject.on_ranks(composed_world, size)
        except Broken as broken:
            if "UnsupportedError" not in broken.what:
                tally.fail(f"a world of {size} ranks, a size that is not declared: {broken.what}")
            else:
                tally.refuse(f"worlds of {size} ranks")
        else:
            tally.prove()


_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint64",
    "uint32", "uint16", "bool", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2",
)  # fmt: skip


def _undeclared(subject: Subject) -> tuple[tuple[object, ...], ...]:
    """Return dtypes that the backend does not declare."""
    # Bytes are what every transport carries, declared or not.
    found = tuple(name for name in _DTYPES if hasattr(torch, name) and not has(subject, name))
    if not found:
        raise Skipped("needs a dtype that is not declared, and all are")
    return ((found,),)


def _meaningless(subject: Subject) -> tuple[tuple[object, ...], ...]:
    pairs = [
        ("band", "float32"), ("bxor", "float64"), ("bor", "bfloat16"), ("avg", "int64"), ("avg", "bool"),
        ("max", "complex64"), ("min", "complex128"),
    ]  # fmt: skip
    return ((tuple(pair for pair in pairs if has(subject, pair[1])),),)


CHECKS = [
    law("refusals.dtypes", "A dtype that is not declared is an UnsupportedError before anything is sent.",
        undeclared_dtypes, cases=_undeclared),
    law("refusals.ops", "A reduce op that has no meaning on a dtype is a DtypeError before anything is sent.",
        ops_without_meaning, cases=_meaningless),
    law("refusals.arguments", "Sizes, ranks, tags and outputs that cannot be right are ArgumentErrors on their rank.",
        wrong_arguments),
    law("refusals.gradients", "A gradient that is not defined is an error that says so, and never a wrong one.",
        gradients_that_are_not_defined),
    Check(
        "refusals.group_sizes",
        "A group of a size that is not declared is an UnsupportedError, or composed of others, as a world of one is.",
        _illegal_groups,
    ),
]  # fmt: skip
