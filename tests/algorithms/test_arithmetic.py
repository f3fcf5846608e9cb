"""Which reductions have a meaning, and the ways to do one by means of another."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from meaning import COMPLEX, FLOAT8, FLOATS, INTEGERS, MEANT, reduced, same, values
from torch.utils._python_dispatch import TorchDispatchMode

from devices._backend import REDUCE_OPS
from devices.algorithms.arithmetic import Carrier, carriers, check_reduction, combine, local_carrier
from devices.errors import ArgumentError, DtypeError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def test_exactly_the_meaningful_pairs_of_op_and_dtype_are_accepted() -> None:
    accepted = set()
    for op, dtype in itertools.product(REDUCE_OPS, (*FLOATS, *COMPLEX, *INTEGERS, *FLOAT8, torch.bool)):
        with contextlib.suppress(DtypeError):
            check_reduction(op, dtype)
            accepted.add((op, dtype))
    assert accepted == set(MEANT)


@pytest.mark.parametrize(
    ("op", "dtype", "message"),
    [
        ("avg", torch.int32, "take the sum and divide"),
        ("avg", torch.bool, "it is for floating and complex dtypes"),
        ("band", torch.float32, "it is for integers and bool"),
        ("max", torch.complex64, "complex numbers have no order"),
        ("sum", torch.float8_e4m3fn, "can be moved but not reduced"),
        ("max", torch.float8_e8m0fnu, "can be moved but not reduced"),
    ],
)
def test_a_refusal_says_why(op: str, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(DtypeError, match=message):
        check_reduction(op, dtype)


def test_an_unknown_op_is_met_with_a_suggestion() -> None:
    with pytest.raises(ArgumentError, match=r"no reduce op 'summ'; did you mean 'sum'\?"):
        check_reduction("summ", torch.float32)


def by_way_of(carrier: Carrier, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the reduction, done on a carrier whose own reduction is taken from its definition."""
    target = torch.empty_like(tensors[0])
    carrier.decode(reduced(carrier.op, [carrier.encode(tensor) for tensor in tensors]), target, len(tensors))
    return target


@pytest.mark.parametrize(("op", "dtype"), MEANT)
def test_every_carrier_of_a_reduction_leads_to_it(op: str, dtype: torch.dtype) -> None:
    tensors = [values(40, dtype, seed) for seed in range(3)]
    found = carriers(op, dtype)
    assert (found[0].op, found[0].dtype) == (op, dtype)
    for carrier in found:
        assert same(by_way_of(carrier, tensors), reduced(op, tensors)), carrier
        encoded = carrier.encode(tensors[0])
        assert encoded.dtype == carrier.dtype
        assert encoded.numel() == 40 * carrier.factor
        assert (encoded.data_ptr() == tensors[0].data_ptr()) == carrier.shares


@pytest.mark.parametrize(("op", "dtype"), MEANT)
def test_torch_can_do_every_reduction_by_its_local_carrier(op: str, dtype: torch.dtype) -> None:
    first, second = values(40, dtype, 1), values(40, dtype, 2)
    carrier = local_carrier(op, dtype)
    total = carrier.encode(first).clone()
    combine(carrier.op, total, carrier.encode(second), total)
    target = torch.empty_like(first)
    carrier.decode(total, target, 2)
    assert same(target, reduced(op, [first, second]))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_order_is_kept_above_the_sign_bit(dtype: torch.dtype) -> None:
    top = 2 ** torch.iinfo(dtype).bits - 1
    pair = [torch.tensor([0, top, top - 1], dtype=dtype), torch.tensor([top, 1, top], dtype=dtype)]
    for carrier in carriers("max", dtype):
        assert by_way_of(carrier, pair).tolist() == [top, top, top]
    for carrier in carriers("min", dtype):
        assert by_way_of(carrier, pair).tolist() == [0, 1, top - 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex32])
@pytest.mark.parametrize("op", ["sum", "avg", "prod"])
def test_16_bit_floats_are_reduced_in_32_bits(op: str, dtype: torch.dtype) -> None:
    assert local_carrier(op, dtype).dtype in (torch.float32, torch.complex64)


class Divisors(TorchDispatchMode):
    """Keeps what tensors are divided or multiplied by: the device and dtype of it, None for a bare number."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype] | None] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten.div_, torch.ops.aten.div, torch.ops.aten.mul_):
            by = args[1]
            self.seen.append((by.device.type, by.dtype) if isinstance(by, torch.Tensor) else None)
        return function(*args, **(kwargs or {}))


def divisors(dtype: torch.dtype, device: str, size: int, over: torch.dtype | None = None) -> list[Any]:
    """Return what a sum of `over`, or of `dtype`, is divided by for an average."""
    carrier = next(each for each in carriers("avg", dtype) if (each.op, each.dtype) == ("sum", over or dtype))
    total = torch.empty(4, dtype=carrier.dtype, device=device)
    with Divisors() as found:
        carrier.decode(total, torch.empty(4, dtype=dtype, device=device), size)
    return found.seen


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_average_on_a_device_is_divided_by_a_tensor_of_it_as_a_number_is_made_a_reciprocal_there(
    dtype: torch.dtype,
) -> None:
    wide = dtype if dtype.itemsize > 2 else torch.float32
    assert divisors(dtype, "meta", 3) == [("meta", wide)]
    assert divisors(dtype, "meta", 3, wide) == [("meta", wide)]
    # Of a power of two the reciprocal is exact: no tensor is made.
    assert divisors(dtype, "meta", 4, wide) != [("meta", wide)]


@pytest.mark.parametrize("size", [3, 6, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_average_has_the_bits_that_torch_has_by_a_number_and_by_a_tensor(dtype: torch.dtype, size: int) -> None:
    total = torch.randn(4096, generator=torch.Generator().manual_seed(size), dtype=dtype) * 1e3
    found = total.clone()
    next(each for each in carriers("avg", dtype) if each.op == "sum").decode(found, found, size)
    assert found.equal(total / size)
    assert found.equal(total / torch.tensor(size, dtype=dtype))
