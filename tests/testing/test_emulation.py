"""A target's limits, each broken by a program that gets the error which the chip would raise."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

import devices
import devices.testing
from devices import World, catalogue
from devices.errors import TargetNotFoundError, UnsupportedError

GIB = 2**30
TARGETS = (
    *("a100", "b200", "cpu", "h100", "inferentia2", "rubin", "trainium1", "trainium2", "trainium3", "trainium4"),
    *("inf2.48xlarge", "p5.48xlarge", "trn1.32xlarge", "trn2.48xlarge", "gb300-nvl72", "trainium2-ultraserver"),
    *("trainium3-ultraserver-gen2", "trainium3-ultracluster"),
)
QUICK = {"cpu", "h100", "inferentia2", "trainium2", "trainium4", "trainium3-ultraserver-gen2"}
"""Each chip's software, and each shape of what is made of chips; the others differ in figures alone."""
NEURON = [name for name in TARGETS if name.startswith("tr")]


def legal_ranks(limits: catalogue.Limits, wanted: int) -> int:
    """Return a number of ranks, not above `wanted`, that the target has room for."""
    return min(wanted, limits.ranks or wanted)


def moved_badly(limits: catalogue.Limits) -> frozenset[str]:
    """Return the dtypes that tensors may have and that do not go from rank to rank."""
    return frozenset() if limits.moved_dtypes is None else (limits.dtypes or frozenset()) - limits.moved_dtypes


def lacks(listed: Container[str] | None, one: str) -> bool:
    """Return whether it is known what there is, and `one` is not of it."""
    return listed is not None and one not in listed


def reduced_badly(limits: catalogue.Limits) -> frozenset[str]:
    """Return the dtypes that tensors may have and that are not summed."""
    return frozenset() if limits.reductions is None else (limits.dtypes or frozenset()) - limits.reductions["sum"]


@dataclass(frozen=True)
class Limit:
    """One limit of targets, and a program that breaks it.

    Args:
        name: what it is.
        has_it: whether a target has that limit.
        program: breaks it.
        says: a part of the error.
        ranks: how many it takes; a target with room for fewer cannot be asked.
        error: the kind of error.
    """

    name: str
    has_it: Callable[[catalogue.Limits], object]
    program: Callable[[World], Any]
    says: str
    ranks: int = 2
    error: type[Exception] = UnsupportedError


def _asymmetric(world: World) -> None:
    dist.new_group([0, 1, 64])


def _many_groups(world: World) -> None:
    for _ in range(16):  # the world is one more
        dist.new_group([0, 1])


def _many_streams(world: World) -> None:
    groups = [dist.new_group([0, 1]) for _ in range(5)]
    for work in [dist.all_reduce(torch.ones(2), group=group, async_op=True) for group in groups]:
        work.wait()


def _message(world: World) -> None:
    if world.rank == 0:
        devices.send(torch.ones(2), dst=1)
    else:
        devices.recv(torch.ones(2), src=0)


LIMITS = [
    Limit("3 ranks", lambda limits: limits.world_sizes, lambda world: None, "3 is no legal number of ranks", 3),
    Limit("48 ranks", lambda limits: limits.world_sizes, lambda world: None, "48 is no legal number of ranks", 48),
    Limit("96 ranks", lambda limits: limits.whole_nodes and 96 % limits.ranks_per_node, lambda world: None,
          "not all the ranks of several nodes", 96),
    Limit("a group that is not symmetric", lambda limits: limits.symmetric_groups, _asymmetric, "not symmetric", 128),
    Limit("17 groups", lambda limits: limits.max_groups in (12, 16), _many_groups, "groups at once"),
    Limit("5 streams", lambda limits: limits.max_streams == 4, _many_streams, "run on 4 streams at once"),
    Limit("float64", lambda limits: lacks(limits.dtypes, "float64"),
          lambda world: devices.all_gather(torch.ones(2, dtype=torch.float64)), "cannot be float64"),
    Limit("complex64", lambda limits: lacks(limits.dtypes, "complex64"),
          lambda world: devices.broadcast(torch.ones(2, dtype=torch.complex64)), "cannot be complex64"),
    Limit("float8_e4m3fn", lambda limits: lacks(limits.dtypes, "float8_e4m3fn"),
          lambda world: devices.all_gather(torch.ones(2).to(torch.float8_e4m3fn)), "cannot be float8_e4m3fn"),
    *[Limit(f"the reduce op {op}", lambda limits, op=op: lacks(limits.reductions, op),
            lambda world, op=op: devices.all_reduce(torch.ones(2), op=op), f"reduce op '{op}' is not there")
      for op in ("avg", "prod")],
    *[Limit(f"the reduce op {op}", lambda limits, op=op: lacks(limits.reductions, op),
            lambda world, op=op: devices.all_reduce(torch.ones(2, dtype=torch.uint8), op=op),
            f"reduce op '{op}' is not there") for op in ("band", "bor", "bxor")],
    *[Limit(f"sums of {dtype}", lambda limits, dtype=dtype: dtype in reduced_badly(limits),
            lambda world, dtype=dtype: devices.all_reduce(torch.ones(2, dtype=getattr(torch, dtype))),
            dtype) for dtype in ("int32", "int64", "uint32", "bool", "int16")],
    *[Limit(f"{dtype} from rank to rank", lambda limits, dtype=dtype: dtype in moved_badly(limits),
            lambda world, dtype=dtype: devices.broadcast(torch.ones(2, dtype=getattr(torch, dtype))),
            f"{dtype} is not moved") for dtype in ("int16", "uint32")],
    *[Limit(f"torch's {verb}", lambda limits, verb=verb: lacks(limits.verbs, verb), _message,
            "no messages between two ranks") for verb in ("send", "recv")],
    Limit("permute", lambda limits: lacks(limits.verbs, "send"),
          lambda world: devices.permute(torch.ones(2), pairs=[(0, 1)]), "verb is not there"),
    Limit("uneven all_gather", lambda limits: limits.uneven_splits is False,
          lambda world: devices.all_gather(torch.ones(world.rank), sizes=[0, 1]), "unequal size"),
    Limit("uneven reduce_scatter", lambda limits: limits.uneven_splits is False,
          lambda world: devices.reduce_scatter(torch.ones(3), sizes=[2, 1]), "unequal size"),
    Limit("uneven all_to_all", lambda limits: limits.uneven_splits is False,
          lambda world: devices.all_to_all(torch.ones(3), sizes=[[1, 2], [1, 2]]), "unequal size"),
    Limit("an empty tensor", lambda limits: limits.empty_tensors is False,
          lambda world: devices.all_reduce(torch.ones(0)), "empty"),
    Limit("a barrier of a part of the world", lambda limits: limits.subgroup_barrier is False,
          lambda world: devices.barrier(group) if (group := dist.new_group([0, 1])) and world.rank < 2 else None,
          "no barrier", 4),
    Limit("more memory than there is", lambda limits: limits.memory_per_rank,
          lambda world: torch.empty(310 * 10**9, dtype=torch.uint8), "tried to allocate",
          error=torch.OutOfMemoryError),
]  # fmt: skip


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
@pytest.mark.parametrize(
    "target", [target if target in QUICK else pytest.param(target, marks=pytest.mark.slow) for target in TARGETS]
)
def test_what_a_target_refuses_the_emulation_refuses(target: str, limit: Limit) -> None:
    limits = catalogue.load(target).limits
    if legal_ranks(limits, limit.ranks) < limit.ranks:
        with pytest.raises(UnsupportedError, match="ranks are more than the"):
            devices.testing.run(limit.program, ranks=limit.ranks, target=target)
    elif not limit.has_it(limits) and limits.world_refusal(limit.ranks):
        with pytest.raises(UnsupportedError, match="no legal number of ranks"):
            devices.testing.run(limit.program, ranks=limit.ranks, target=target)
    elif not limit.has_it(limits):
        if limit.error is not torch.OutOfMemoryError:
            devices.testing.run(limit.program, ranks=limit.ranks, target=target)
    else:
        with pytest.raises(limit.error, match=re.escape(limit.says)) as caught:
            devices.testing.run(limit.program, ranks=limit.ranks, target=target)
        assert target in str(caught.value)
        assert any(f"of {limit.ranks}, a thread rank" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("target", TARGETS)
def test_each_limit_of_each_target_is_broken_by_some_program_or_known_not_to_be_one(target: str) -> None:
    limits = catalogue.load(target).limits
    # What is not a limit on a call of a verb, a group or memory.
    facts = {"device_type", "process_group", "chip", "lnc", "nodes", "chips_per_node", "ranks_per_chip"}
    tried = {
        "memory_per_rank", "dtypes", "reductions", "verbs", "uneven_splits", "empty_tensors", "subgroup_barrier",
        "world_sizes", "world_size_multiple", "whole_nodes", "symmetric_groups", "max_groups", "max_streams",
        "moved_dtypes",
    }  # fmt: skip
    fields = set(limits.__dataclass_fields__)
    assert fields == facts | tried | {"float8_max"}  # no target takes float8_e4m3fn and bounds it


def test_a_legal_program_runs_on_as_many_ranks_as_an_ultraserver_has() -> None:
    found = devices.testing.run(
        lambda world: devices.all_reduce(torch.ones(2)).tolist(), ranks=256, target="trainium2-ultraserver"
    )
    assert found == [[256.0, 256.0]] * 256


def test_an_unknown_target_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(TargetNotFoundError, match="did you mean 'trainium2'"):
        devices.testing.run(lambda world: None, ranks=2, target="trainum2")


# Composed instead of refused.


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (lambda world: devices.all_reduce(torch.tensor(2.0), op="prod").item(), 16.0),
        (lambda world: devices.all_reduce(torch.tensor(float(world.rank)), op="avg").item(), 1.5),
        (lambda world: devices.all_reduce(torch.tensor(world.rank)).item(), 6),
        (lambda world: devices.all_gather(torch.ones(world.rank), sizes=[0, 1, 2, 3]).sum().item(), 6.0),
        (lambda world: devices.permute(torch.tensor(world.rank), pairs=[(r, 3 - r) for r in range(4)]).item(), None),
        (lambda world: devices.all_reduce(torch.ones(0)).numel(), 0),
    ],
    ids=["prod", "avg", "int64", "uneven", "permute", "empty"],
)
def test_by_a_switch_what_our_verbs_compose_is_allowed_and_listed(program: Callable[..., Any], expected: Any) -> None:
    with devices.testing.emulate("trainium2", compose=True) as emulation:
        found = devices.testing.run(program, ranks=4)
    assert found == ([3, 2, 1, 0] if expected is None else [expected] * 4)
    (composed,) = emulation.report.composed
    assert composed.calls == 4
    assert composed.reason
    assert not emulation.report.refused


def test_torchs_own_verbs_are_not_composed() -> None:
    with (
        devices.testing.emulate("trainium2", compose=True) as emulation,
        pytest.raises(UnsupportedError, match="torch's own verbs are not composed"),
    ):
        devices.testing.run(lambda world: dist.all_reduce(torch.ones(2), op=dist.ReduceOp.PRODUCT), ranks=4)
    assert {asked.verb for asked in emulation.report.refused} == {"all_reduce"}


@pytest.mark.parametrize("program", [_message, lambda world: devices.all_gather(torch.ones(2, dtype=torch.float64))])
def test_what_nothing_composes_is_refused_all_the_same(program: Callable[[World], None]) -> None:
    with devices.testing.emulate("trainium2", compose=True), pytest.raises(UnsupportedError):
        devices.testing.run(program, ranks=2)


def test_without_enforcing_all_that_is_refused_is_listed_and_the_program_goes_on() -> None:
    def program(world: World) -> float:
        devices.all_reduce(torch.ones(2), op="prod")
        dist.all_reduce(torch.ones(2, dtype=torch.float64))
        return devices.all_reduce(torch.ones(2)).sum().item()

    with devices.testing.emulate("trainium2", enforce=False) as emulation:
        assert devices.testing.run(program, ranks=3) == [6.0] * 3
    first = program.__code__.co_firstlineno
    refused = [(asked.verb, asked.line, asked.calls) for asked in emulation.report.refused]
    assert sorted(refused) == [
        ("all_reduce", f"{__file__}:{first + 1}", 3),
        ("all_reduce", f"{__file__}:{first + 2}", 3),
        ("world", "no line of the program", 3),
    ]


# Memory.


def test_memory_is_given_back_when_the_last_view_goes() -> None:
    def program(world: World) -> None:
        x = torch.zeros(1000, 250)  # 1,000,000 bytes
        view = x[3:].t()
        del x
        more = torch.zeros(1000)
        del view, more
        gc.collect()
        torch.zeros(250)

    with devices.testing.emulate("trainium2") as emulation:
        devices.testing.run(program, ranks=1)
    assert emulation.report.peak_memory == {0: 1_004_000}


def test_a_rank_has_its_cores_share_of_its_chips_memory() -> None:
    # 96 GiB of HBM among the 4 logical cores that a Trainium2 has by default, or its 8 physical ones.
    for lnc, share in ((2, 24), (1, 12)):

        def program(world: World, share: int = share) -> str:
            kept = [torch.empty(GIB, dtype=torch.uint8) for _ in range(share)]
            try:
                torch.empty(1, dtype=torch.uint8)
            except torch.OutOfMemoryError as error:
                return f"{len(kept)}: {error}"
            return "nothing was refused"

        with devices.testing.emulate("trainium2", lnc=lnc):
            (said,) = devices.testing.run(program, ranks=1)
        assert said.startswith(f"{share}: rank 0 on trainium2")


# Programs.


def step(world: World) -> float:
    """Return the loss after a step of data parallel x tensor parallel training on the world's ranks."""
    tp = 2 if world.size % 2 == 0 else 1
    mesh = world.mesh({"dp": -1, "tp": tp})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    devices.place(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x = torch.randn(16, 8).chunk(mesh["dp"].size())[mesh.get_local_rank("dp")]
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        for parameter in model.parameters():
            local = parameter.grad.to_local()
            devices.all_reduce(local, mesh["dp"], out=local)
            local /= mesh["dp"].size()
        optimizer.step()
    return devices.all_reduce(loss.detach(), mesh["dp"]).item() / mesh["dp"].size()


def test_a_training_step_within_the_limits_gives_the_same_loss_as_without() -> None:
    (expected,) = devices.testing.run(step, ranks=1)
    with devices.testing.emulate("trainium2-ultraserver", enforce=False) as emulation:
        found = devices.testing.run(step, ranks=8)
    assert found == pytest.approx([expected] * 8, rel=1e-5)
    assert all(peak > 0 for peak in emulation.report.peak_memory.values())
    assert sorted(emulation.report.peak_memory) == list(range(8))


def test_the_report_counts_calls_and_bytes_by_line_and_is_plain_data() -> None:
    def program(world: World) -> None:
        for _ in range(3):
            devices.all_reduce(torch.ones(5))
        dist.broadcast(torch.ones(2, 2, dtype=torch.bfloat16), 0)

    with devices.testing.emulate("trainium3") as emulation:
        devices.testing.run(program, ranks=2)
    first = program.__code__.co_firstlineno
    asked = {each.verb: each for each in emulation.report.asked}
    assert (asked["all_reduce"].calls, asked["all_reduce"].bytes) == (2 * 3, 2 * 3 * 5 * 4)
    assert (asked["broadcast"].calls, asked["broadcast"].bytes) == (2, 2 * 4 * 2)
    assert asked["all_reduce"].line == f"{__file__}:{first + 2}"
    assert asked["broadcast"].line == f"{__file__}:{first + 3}"
    data = json.loads(json.dumps(emulation.report.as_data()))
    assert [row["calls"] for row in data["asked"]] == [6, 2]
    assert "all_reduce" in str(emulation.report)


def test_a_rank_may_enter_a_target_for_itself_alone() -> None:
    def program(world: World) -> str:
        x = torch.ones(2)
        if world.rank:
            return str(devices.all_reduce(x, op="prod").sum().item())
        with devices.testing.emulate("trainium2"):
            try:
                devices.all_reduce(x, op="prod")
            except UnsupportedError as error:
                said = str(error)
        devices.all_reduce(x, op="prod")
        return said

    refused, served = devices.testing.run(program, ranks=2)
    assert "'prod' is not there" in refused
    assert served == "2.0"


def test_a_world_of_one_with_no_run_meets_the_limits_too() -> None:
    with devices.testing.emulate("trainium2"), devices.init():
        assert devices.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]
        with pytest.raises(UnsupportedError, match="cannot be float64"):
            devices.all_reduce(torch.ones(2, dtype=torch.float64))
        with pytest.raises(UnsupportedError, match="'prod' is not there"):
            dist.all_reduce(torch.ones(2), op=dist.ReduceOp.PRODUCT)
    with devices.init():
        assert devices.all_reduce(torch.ones(2, dtype=torch.float64), op="prod").tolist() == [1.0, 1.0]


# Tensors on the target's devices.


def test_by_a_switch_tensors_are_on_the_targets_devices_and_do_not_meet_those_of_the_cpu() -> None:
    def program(world: World) -> tuple[str, float, str]:
        on_device = torch.ones(2, device=world.device)
        total = devices.all_reduce(on_device).sum().item()
        try:
            on_device + torch.ones(2)
        except RuntimeError as error:
            return str(world.device), total, str(error)
        return str(world.device), total, "nothing was refused"

    with devices.testing.emulate("trainium2", device_tensors=True):
        found = devices.testing.run(program, ranks=4)
    for rank, (device, total, said) in enumerate(found):
        assert device == f"neuron:{rank}"
        assert total == 8.0
        assert "same device" in said


def test_limits_do_not_depend_on_where_tensors_are() -> None:
    def program(world: World) -> None:
        devices.all_reduce(torch.ones(2, device=world.device), op="prod")

    with (
        devices.testing.emulate("trainium2", device_tensors=True),
        pytest.raises(UnsupportedError, match="'prod' is not there"),
    ):
        devices.testing.run(program, ranks=2)

    def large(world: World) -> None:
        torch.empty(25 * GIB, dtype=torch.uint8, device=world.device)

    with devices.testing.emulate("trainium2", device_tensors=True), pytest.raises(torch.OutOfMemoryError):
        devices.testing.run(large, ranks=2)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_verb_refuses_tensors_of_two_places_and_of_another_ranks_device() -> None:
    def program(world: World) -> list[str]:
        mine, said = torch.ones(3, device=world.device), []
        other = torch.ones(3, device=f"neuron:{1 - world.rank}")
        for call in (
            lambda: dist.all_gather_into_tensor(torch.empty(6), mine),
            lambda: dist.all_reduce(other),
        ):
            try:
                call()
            except RuntimeError as error:
                said.append(str(error))
        return said

    with devices.testing.emulate("trainium2", device_tensors=True):
        for said in devices.testing.run(program, ranks=2):
            assert len(said) == 2
            assert all("same device" in each for each in said)


# What grows and shrinks.


def test_memory_that_is_resized_is_counted_as_large_as_it_is() -> None:
    def program(world: World) -> None:
        torch.empty(0).resize_(1000)
        kept = torch.empty(10)
        kept.untyped_storage().resize_(6000)
        kept.untyped_storage().resize_(0)
        torch.empty(1250)

    with devices.testing.emulate("trainium2") as emulation:
        devices.testing.run(program, ranks=1)
    assert emulation.report.peak_memory == {0: 6000}
    assert "resize_" not in vars(torch.UntypedStorage)


def test_streams_are_free_again_when_their_collectives_were_waited_for() -> None:
    def program(world: World) -> float:
        groups = [dist.new_group([0, 1]) for _ in range(5)]
        x = torch.ones(1)
        for group in groups:
            work = dist.all_reduce(x, group=group, async_op=True)
            works = [devices.all_gather(x.clone(), group, async_op=True) for _ in range(3)]
            for each in works:
                each.result()
            work.wait()
        return x.item()

    assert devices.testing.run(program, ranks=2, target="trainium2") == [32.0, 32.0]
