"""What the kit expects, against whole numbers and fractions of Python, which round nothing."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from devices.testing.conformance.calls import Call, laid_out, make
from devices.testing.conformance.expected import answer, has_meaning, reduced

OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def inputs(dtype: str, data: str = "numbers", size: int = 4) -> list[torch.Tensor]:
    return [make(rank, 3, (40,), getattr(torch, dtype), data) for rank in range(size)]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_whole_numbers_wrap(dtype: str) -> None:
    xs = inputs(dtype, "bits")
    bits = xs[0].dtype.itemsize * 8
    for op in ("sum", "prod"):
        found = reduced(op, xs).bits
        assert found is not None
        for place, value in enumerate(found.tolist()):
            numbers = [x.tolist()[place] for x in xs]
            exact = sum(numbers) if op == "sum" else math.prod(numbers)
            assert (value - exact) % 2**bits == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["sum", "avg", "prod"])
def test_any_order_in_the_right_precision_is_within_the_bound(op: str, dtype: str) -> None:
    xs = inputs(dtype)
    working = torch.float32 if xs[0].dtype.itemsize == 2 else xs[0].dtype
    combine = torch.mul if op == "prod" else torch.add
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        total = xs[order[0]].to(working)
        for rank in order[1:]:
            total = combine(total, xs[rank].to(working))
        found = (total / 4 if op == "avg" else total).to(xs[0].dtype)
        assert reduced(op, xs).wrong(found) == ""


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_value_is_the_exact_sum(dtype: str) -> None:
    xs = inputs(dtype)
    found = reduced("sum", xs)
    for place in range(40):
        exact = sum(Fraction(float(x[place])) for x in xs)
        assert abs(Fraction(float(found.value[place])) - exact) <= Fraction(float(found.bound[place]))


@pytest.mark.parametrize(
    ("dtype", "coarse"),
    [("float64", "float32"), ("float32", "bfloat16"), ("float16", "float16"), ("bfloat16", "bfloat16")],
)
def test_what_is_added_up_too_coarsely_is_wrong(dtype: str, coarse: str) -> None:
    xs = inputs(dtype)
    total = xs[0].to(getattr(torch, coarse))
    for x in xs[1:]:
        total = total + x.to(getattr(torch, coarse))
    assert "expected" in reduced("sum", xs).wrong(total.to(xs[0].dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_average_that_is_divided_by_another_count_is_wrong(dtype: str) -> None:
    xs = inputs(dtype)
    total = sum(x.double() for x in xs)
    assert isinstance(total, torch.Tensor)
    assert reduced("avg", xs).wrong((total / 3).to(xs[0].dtype))


def test_a_nan_goes_through_minima_and_maxima_and_zeros_are_equal() -> None:
    xs = [torch.tensor([float("nan"), 0.0, 1.0]), torch.tensor([1.0, -0.0, 2.0])]
    assert reduced("max", xs).wrong(torch.tensor([float("nan"), -0.0, 2.0])) == ""
    assert reduced("max", xs).wrong(torch.tensor([1.0, 0.0, 2.0]))


def test_what_is_moved_is_compared_to_the_bit() -> None:
    quiet, other = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))
    expected = answer(Call("broadcast", shape=(1,)), [quiet, other], 1)
    assert expected is not None
    assert expected.wrong(quiet) == ""
    assert expected.wrong(other)
    zero = answer(Call("broadcast", shape=(1,)), [torch.tensor([0.0]), torch.tensor([1.0])], 1)
    assert zero is not None
    assert zero.wrong(torch.tensor([-0.0]))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "gaps", "offset"])
def test_a_layout_changes_no_value(layout: str) -> None:
    x = make(1, 2, (3, 4), torch.float32, "numbers")
    assert torch.equal(laid_out(x, layout), x)
    assert layout in ("contiguous", "offset") or not laid_out(x, layout).is_contiguous()


def test_which_op_has_a_meaning_on_which_dtype_is_what_torch_can_do() -> None:
    for name in (*FLOATS, *INTEGERS, "bool", "complex64", "complex128", "float8_e5m2"):
        dtype = getattr(torch, name)
        means = {op for op in OPS if has_meaning(op, dtype)}
        if name == "float8_e5m2":
            assert means == set()
        elif dtype.is_complex:
            assert means == {"sum", "avg", "prod"}
        elif dtype.is_floating_point:
            assert means == {"sum", "avg", "min", "max", "prod"}
        else:
            assert means == set(OPS) - {"avg"}


def test_a_result_of_another_shape_or_dtype_is_wrong() -> None:
    expected = reduced("sum", inputs("float32"))
    assert "expected a tensor" in expected.wrong(None)
    assert "shape (2,)" in expected.wrong(torch.zeros(2))
    assert "torch.float64" in expected.wrong(torch.zeros(40, dtype=torch.float64))
