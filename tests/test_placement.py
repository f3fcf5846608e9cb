"""place(): tensors and modules on a mesh."""

from __future__ import annotations

from typing import Any

import pytest
import ranks
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

import devices
from devices import Partial, Replicate, Shard
from devices.errors import PlacementError


def _whole(rows: int, columns: int) -> torch.Tensor:
    return torch.arange(float(rows * columns)).reshape(rows, columns)


def _place_tensors() -> dict[str, Any]:
    with devices.init() as world:
        mesh = world.mesh({"dp": 2, "tp": 2})
        x = _whole(5, 3) if world.rank == 0 else torch.full((5, 3), float("nan"))
        by_row = devices.place(x, mesh, tp=Shard(0))
        both = devices.place(x, mesh, dp=Shard(-1), tp=Shard(0))
        partial = devices.place(x, mesh, tp=Partial())
        return {
            "placements": by_row.placements,
            "local": by_row.to_local().tolist(),
            "full": [placed.full_tensor().tolist() for placed in (by_row, both, partial)],
            "both": both.to_local().tolist(),
            "order": both.placements,
        }


def test_a_tensor_lies_as_asked_and_its_whole_is_that_of_the_first_rank() -> None:
    whole = _whole(5, 3)
    for rank, found in enumerate(ranks.run(4, _place_tensors)):
        dp, tp = divmod(rank, 2)
        assert found["placements"] == (Replicate(), Shard(0))
        assert found["local"] == whole.chunk(2, dim=0)[tp].tolist()
        assert found["order"] == (Shard(1), Shard(0))
        assert found["both"] == whole.chunk(2, dim=1)[dp].chunk(2, dim=0)[tp].tolist()
        assert found["full"] == [whole.tolist()] * 3


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x))) * self.scale


def _place_by_styles() -> tuple[list[float], list[list[float]], tuple[int, ...]]:
    torch.manual_seed(0)
    with devices.init() as world:
        mesh = world.mesh({"tp": -1})
        model = devices.place(MLP(), mesh, {"up": ColwiseParallel(), "d*n": RowwiseParallel()})
        output = model(torch.linspace(-1, 1, 12).reshape(2, 6))
        output.sum().backward()
        gradient = model.up.weight.grad
        assert isinstance(gradient, DTensor)
        return output.flatten().tolist(), gradient.full_tensor().tolist(), tuple(model.up.weight.to_local().shape)


def test_a_plan_of_parallel_styles_gives_the_output_and_gradient_of_the_plain_module() -> None:
    torch.manual_seed(0)
    model = MLP()
    output = model(torch.linspace(-1, 1, 12).reshape(2, 6))
    output.sum().backward()
    for found, gradient, shape in ranks.run(2, _place_by_styles):
        torch.testing.assert_close(torch.tensor(found), output.flatten())
        torch.testing.assert_close(torch.tensor(gradient), model.up.weight.grad)
        assert shape == (4, 6)


def _place_by_placements() -> dict[str, Any]:
    torch.manual_seed(0)
    with devices.init() as world:
        mesh = world.mesh({"dp": 1, "tp": -1})
        model = MLP()
        tied = nn.Module()
        tied.a = nn.Linear(4, 4, bias=False)
        tied.b = nn.Linear(4, 4, bias=False)
        tied.b.weight = tied.a.weight
        devices.place(model, mesh, {"*.weight": {"tp": Shard(1)}, "scale": {"tp": Shard(0)}})
        devices.place(tied, mesh["tp"], {"*.weight": Shard(0)})
        return {
            "weight": model.up.weight.placements,
            "whole": model.up.weight.full_tensor().tolist(),
            "bias": isinstance(model.up.bias, DTensor),
            "scale": tuple(model.scale.to_local().shape),
            "parameters": [name for name, _ in model.named_parameters()],
            "in state": "scale" in model.state_dict(),
            "tied": tied.a.weight is tied.b.weight,
        }


def test_a_plan_of_placements_replaces_the_parameters_it_names_and_no_others() -> None:
    torch.manual_seed(0)
    plain = MLP()
    for found in ranks.run(2, _place_by_placements):
        assert found["weight"] == (Replicate(), Shard(1))
        assert found["whole"] == plain.up.weight.tolist()
        assert not found["bias"]
        assert found["scale"] == (3,)
        assert found["parameters"] == ["up.weight", "up.bias", "down.weight", "down.bias"]
        assert found["in state"]
        assert found["tied"]


def test_bad_placements_are_errors_that_say_what_there_is() -> None:
    with devices.init() as world:
        mesh = world.mesh({"dp": 1, "tp": 1})
        x = torch.ones(2, 3)
        for placements, said in [
            ({"tpp": Shard(0)}, "no axis 'tpp'; did you mean 'tp'"),
            ({"tp": Shard(2)}, "has no dim 2"),
            ({"tp": Shard(-3)}, "has no dim -3"),
            ({"tp": 0}, "no placement"),
        ]:
            with pytest.raises(PlacementError, match=said):
                devices.place(x, mesh, **placements)
        for plan, said in [
            ({"upp": ColwiseParallel()}, "acts along one axis"),
            ({"upp": Shard(0)}, "acts along one axis"),
            ({"*.wieght": {"tp": Shard(0)}}, "matches no parameter or buffer"),
            ({"up.weight": {"ttp": Shard(0)}}, "did you mean 'tp'"),
            ({"up.bias": {"tp": Shard(1)}}, "has no dim 1"),
        ]:
            with pytest.raises(PlacementError, match=said):
                devices.place(MLP(), mesh, plan)
        with pytest.raises(PlacementError, match="matches no submodule; did you mean 'up'"):
            devices.place(MLP(), mesh["tp"], {"upp": ColwiseParallel()})
        with pytest.raises(PlacementError, match="a module is placed by a plan"):
            devices.place(MLP(), mesh, tp=Shard(0))
        with pytest.raises(PlacementError, match="a tensor is placed by axis"):
            devices.place(x, mesh, {"*": Shard(0)})
        with pytest.raises(PlacementError, match="takes a leaf tensor"):
            devices.place(torch.ones(2, requires_grad=True) * 2, mesh, tp=Shard(0))
        placed = devices.place(x, mesh, tp=Shard(0))
        assert devices.place(placed, mesh, tp=Shard(0)) is placed
        with pytest.raises(PlacementError, match="redistribute"):
            devices.place(placed, mesh, tp=Shard(1))


def test_a_module_is_left_as_it_was_when_its_plan_is_wrong() -> None:
    with devices.init() as world:
        mesh = world.mesh({"tp": 1})
        model = MLP()
        with pytest.raises(PlacementError):
            devices.place(model, mesh, {"up": ColwiseParallel(), "nowhere": RowwiseParallel()})
        assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
