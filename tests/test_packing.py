"""Many tensors as one flat one, and back; no process group is needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devices.calls.packing import pack, pack_parts, row_of, unpack, unpack_parts, unwrap
from devices.errors import ArgumentError

shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(torch.Size), min_size=1, max_size=4)


def _tensors(found: list[torch.Size]) -> list[torch.Tensor]:
    return [torch.randn(shape).movedim(0, -1) if shape else torch.randn(()) for shape in found]


@given(shapes)
def test_what_was_packed_comes_out_as_it_went_in(found: list[torch.Size]) -> None:
    tensors = _tensors(found)
    for one, other in zip(unpack(pack(tensors), [x.shape for x in tensors]), tensors, strict=True):
        assert torch.equal(one, other)


@given(shapes, st.data())
def test_parts_come_out_joined_along_their_dims(found: list[torch.Size], data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, 4))
    tensors = _tensors(found)
    dims = [data.draw(st.integers(0, max(x.ndim - 1, 0))) for x in tensors]
    sizes = []
    for tensor, dim in zip(tensors, dims, strict=True):
        length = tensor.shape[dim] if tensor.ndim else 1
        cuts = sorted(data.draw(st.integers(0, length)) for _ in range(ranks - 1))
        sizes.append([end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)])
    rows = [row_of(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]
    out = unpack_parts(pack_parts(tensors, dims, sizes), rows, dims, sizes)
    for one, other in zip(out, tensors, strict=True):
        assert torch.equal(one, other if other.ndim else other.reshape(1))


def test_parts_lie_rank_by_rank_and_within_a_rank_tensor_by_tensor() -> None:
    a, b = torch.tensor([1, 2, 3]), torch.tensor([[10, 20], [30, 40]])
    assert pack_parts([a, b], [0, 1], [[2, 1], [1, 1]]).tolist() == [1, 2, 10, 30, 3, 20, 40]


def test_a_dict_is_packed_in_the_order_of_its_names_and_comes_back_in_its_own() -> None:
    tensors, rebuild = unwrap({"b": torch.tensor(1), "a": torch.tensor(2)})
    assert [x.item() for x in tensors] == [2, 1]
    assert list(rebuild(tensors).items()) == [("b", torch.tensor(1)), ("a", torch.tensor(2))]


@pytest.mark.parametrize("wrong", [1.0, "x", [torch.ones(1), None], {"a": 1}, {torch.ones(1)}])
def test_what_is_no_tensor_is_refused(wrong: object) -> None:
    with pytest.raises(ArgumentError):
        unwrap(wrong)  # type: ignore[arg-type]
