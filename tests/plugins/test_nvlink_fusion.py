"""Trainium4 and GPUs in one run, by emulation: right under each assumption, and what each of them changes."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import fusion_cases as cases
import pytest
import ranks
import torch
import torch.distributed as dist
from doc_blocks import ROOT
from torch import nn
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel

import devices
import devices.testing
from devices import Device, Fabric, Group, Interop, Store, World, catalogue
from devices.errors import ArgumentError, CollectiveError, RaceError, UnsupportedError
from devices.fabric.host.meeting import why_not_here
from devices.fabric.mark import Mark
from devices.testing import Mixed
from devices.testing._baton import Baton
from devices.testing._thread_fabric import Memories, ThreadFabric
from devices_trainium4.backend import Trainium4Backend
from devices_trainium4.fusion import NVLinkFusion
from devices_trainium4.memory import FusionMemory
from devices_trainium4.prediction import EFA, NVLINK

BOTH = {"trainium4": 2, "rubin": 2}
TABLE = catalogue.load("trainium4-nvlink-fusion").assumptions
CHOICES = [(row.name, choice) for row in TABLE for choice in row.choices if choice != row.assumed]
ONE, TWO = "one domain", "two domains"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 8, generator=generator), torch.randn(rows, 3, generator=generator)


def step(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()


def program(world: World) -> list[torch.Tensor]:
    """Add up known numbers, train one step on this rank's rows, and return the weights."""
    total = devices.all_reduce(torch.arange(3.0) + world.rank)
    assert total.tolist() == [world.size * place + sum(range(world.size)) for place in range(3)]
    model = net()
    inputs, targets = batch(2 * world.size)
    mine = slice(2 * world.rank, 2 * world.rank + 2)
    step(DistributedDataParallel(model), inputs[mine], targets[mine])
    return [each.detach() for each in model.parameters()]


def check_weights(found: list[list[torch.Tensor]]) -> None:
    """Compare the weights of all ranks with those of one process that had all the rows."""
    alone = net()
    step(alone, *batch(2 * len(found)))
    for weights in found:
        for mine, expected in zip(weights, alone.parameters(), strict=True):
            torch.testing.assert_close(mine, expected.detach(), rtol=1e-5, atol=1e-6)
            assert mine.equal(found[0][[each is mine for each in weights].index(True)]), "the ranks' bits differ"


def test_a_program_is_right_as_all_is_assumed() -> None:
    mixed = Mixed(BOTH)
    check_weights(devices.testing.run(program, ranks=mixed))
    assert dict(mixed.report.assumed) == {row.name: row.assumed for row in TABLE}


@pytest.mark.parametrize(("name", "choice"), CHOICES)
def test_a_program_is_right_if_an_assumption_is_wrong(name: str, choice: str) -> None:
    mixed = Mixed(BOTH, assume={name: choice})
    check_weights(devices.testing.run(program, ranks=mixed))
    assert mixed.assumed[name] == choice
    assert f"{name}={choice}" in str(mixed.report)
    others = {row.name: row.assumed for row in TABLE if row.name != name}
    assert {each: mixed.assumed[each] for each in others} == others


def test_the_table_has_what_nobody_has_announced() -> None:
    asked = {"mixed_domain", "peer_memory", "coherence", "atomics", "in_switch_reduction", "domain_size",
             "link_bandwidth", "bridge", "collective_stack", "device_type"}  # fmt: skip
    assert {row.name for row in TABLE} == asked


def test_72_ranks_of_both_kinds_train_a_step_as_one_process_does() -> None:
    check_weights(devices.testing.run(program, ranks={"trainium4": 36, "rubin": 36}))


@pytest.mark.slow
def test_72_ranks_in_two_domains_do_too() -> None:
    found = devices.testing.run(program, ranks={"trainium4": 36, "rubin": 36}, assume={"mixed_domain": "two"})
    check_weights(found)


@pytest.mark.parametrize(
    ("assume", "says"),
    [
        ({}, "one domain of nvlink-fusion (speculative) with memory that each maps of the others"),
        ({"peer_memory": "messages"}, "one domain of nvlink-fusion (speculative) with messages"),
        ({"mixed_domain": "two"}, "between them EFA of 200 Gbps a chip (speculative)"),
        ({"mixed_domain": "two", "bridge": "400 Gbps"}, "between them EFA of 400 Gbps a chip (speculative)"),
        ({"device_type": "cuda"}, "torch's type of a Trainium4 is 'cuda'"),
    ],
    ids=str,
)
def test_explain_says_what_is_assumed_and_that_it_is_speculative(assume: dict[str, str], says: str) -> None:
    def told(world: World) -> tuple[str, str]:
        return devices.explain(), repr(world)

    found = devices.testing.run(told, ranks=BOTH, assume=assume)
    assert all(says in explained for explained, _ in found)
    assert "backend='trainium4 (speculative)'" in found[0][1]
    assert "backend='rubin'" in found[3][1]


def test_a_report_compares_one_domain_with_two() -> None:
    mixed = Mixed({"trainium4": 2, "rubin": 2}, assume={"mixed_domain": "two"})
    size = 1 << 20
    devices.testing.run(lambda world: devices.all_reduce(torch.ones(size // 4)), ranks=mixed)
    report = mixed.report
    one, two = report.ways[ONE]["all_reduce"], report.ways[TWO]["all_reduce"]
    # One domain: each of 4 ranks sends 2 * 3/4 of M over its link of 1.8 TB/s.
    assert one.sent == {NVLINK: 4 * 1.5 * size, EFA: 0}
    assert one.seconds.low == pytest.approx(1.5 * size / 1.8e12)
    # Two: M crosses each way, half of it by each of a domain's 2 ranks, there and back; inside each sends 2 * 1/2 of M.
    assert two.sent == {NVLINK: 4 * size, EFA: 2 * size}
    assert two.seconds.low == pytest.approx(size / 2 / 25e9 + 2 * 15e-6)
    # What did cross, apart from the words by which the two compare the call.
    assert 2 * size <= report.crossed <= 2 * size + 4 * 1024
    assert report.running == TWO
    assert "2 trainium4 (speculative) + 2 rubin, joined by nvlink-fusion:" in str(report)
    assert report.as_data()["ways"][TWO]["all_reduce"]["sent"] == {NVLINK: 4 * size, EFA: 2 * size}


def predicted(verb: str, size: int = 4 << 20, counts: tuple[int, int] = (2, 2), **assume: str) -> Any:
    assumed = {row.name: row.assumed for row in TABLE} | assume
    sides = Mixed({"trainium4": counts[0], "rubin": counts[1]}).sides
    return NVLinkFusion().predicted(verb, size, 0, sides, assumed)


def test_what_an_assumption_changes_of_a_prediction() -> None:
    size = 4 << 20
    assert predicted("all_reduce", size, in_switch_reduction="yes").sent[NVLINK] == 4 * size
    assert predicted("all_reduce", size).sent[NVLINK] == 4 * 2 * 3 / 4 * size
    whole, half = (predicted("all_gather", link_bandwidth=each).expected for each in ("full", "half"))
    assert half == pytest.approx(2 * whole)
    slow, fast = (predicted("broadcast", mixed_domain="two", bridge=each).low for each in ("200 Gbps", "400 Gbps"))
    assert slow - 15e-6 == pytest.approx(2 * (fast - 15e-6))


@pytest.mark.parametrize(
    ("verb", "crosses"),
    [
        # Of 1 + 3 ranks and 4 MB: what goes over EFA, both ways together, and at the rank that has most of it.
        ("all_reduce", (8, 4)),
        ("all_gather", (4, 3)),
        ("reduce_scatter", (4, 3)),
        ("all_to_all", (1 * 3 + 3 * 1, 3)),
        ("broadcast", (4, 4)),
        ("gather", (3, 3)),
        ("scatter", (3, 3)),
        ("send", (4, 4)),
        ("barrier", (0, 0)),
    ],
)
def test_what_crosses_between_domains_of_unequal_size(verb: str, crosses: tuple[float, float]) -> None:
    found = predicted(verb, 4_000_000, (1, 3), mixed_domain="two")
    crossings = 2 if verb in ("all_reduce", "barrier") else 1
    assert found.sent[EFA] == crosses[0] * 1e6
    assert found.low == pytest.approx(crosses[1] * 1e6 / 25e9 + crossings * 15e-6)
    assert found.low <= found.expected <= found.high


# What is refused.


def test_more_ranks_than_a_domain_is_assumed_to_have_are_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"73 ranks, 37 trainium4 \(speculative\) and 36 rubin, are more than the"
    ):
        devices.testing.run(program, ranks={"trainium4": 37, "rubin": 36})
    assert Mixed({"trainium4": 72, "rubin": 72}, assume={"domain_size": "144"}).size == 144
    assert Mixed({"trainium4": 72, "rubin": 72}, assume={"mixed_domain": "two"}).size == 144
    with pytest.raises(UnsupportedError, match=r"73 ranks, 73 rubin, are more than the 72"):
        Mixed({"trainium4": 1, "rubin": 73}, assume={"mixed_domain": "two"})


def test_what_a_gpu_lacks_is_refused_on_both_kinds() -> None:
    def asked(world: World) -> str:
        with pytest.raises(UnsupportedError) as caught:
            devices.broadcast(torch.ones(2, dtype=torch.uint16))
        return str(caught.value)

    for said in devices.testing.run(asked, ranks=BOTH):
        assert "trainium4 (speculative) (ranks 0, 1) and rubin (ranks 2, 3): rubin refuses it: uint16" in said


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float8_e4m3fn], ids=str)
def test_with_neurons_stack_a_trainium4_lacks_what_a_trainium3_lacks(dtype: torch.dtype) -> None:
    software = catalogue.load("trainium3").limits
    name = str(dtype).removeprefix("torch.")
    lacks = name not in (software.dtypes or ()) or name not in (software.moved_dtypes or {name})

    def asked(world: World) -> str:
        try:
            devices.broadcast(torch.ones(2).to(dtype))
        except UnsupportedError as error:
            return str(error)
        return ""

    for said in devices.testing.run(asked, ranks=BOTH, assume={"collective_stack": "neuron"}):
        assert bool(said) == lacks
        assert not said or "and rubin (ranks 2, 3): trainium4 (speculative) refuses it: " in said
    assert devices.testing.run(asked, ranks=BOTH) == [""] * 4, "of what is not known nothing is refused"


def test_with_neurons_stack_a_domain_has_a_number_of_ranks_that_neuron_takes() -> None:
    three = {"trainium4": 3, "rubin": 3}
    with pytest.raises(
        UnsupportedError, match=r"rubin \(ranks 3 to 5\): trainium4 \(speculative\) refuses it: 6 is no"
    ):
        devices.testing.run(program, ranks=three, assume={"collective_stack": "neuron"})
    check_weights(devices.testing.run(program, ranks=three))


@pytest.mark.parametrize(
    ("assume", "says"),
    [
        ({"brdge": "200 Gbps"}, "no assumption 'brdge'; did you mean 'bridge'"),
        ({"bridge": "100 Gbps"}, "bridge is '200 Gbps' or '400 Gbps', not '100 Gbps'"),
    ],
)
def test_an_assumption_that_there_is_not_is_an_error(
    assume: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(says)):
        Mixed(BOTH, assume=assume)
    monkeypatch.setenv("DEVICES_ASSUME", ",".join(f"{name}={choice}" for name, choice in assume.items()))
    with pytest.raises(ArgumentError, match=rf"DEVICES_ASSUME=.*{re.escape(says)}"):
        Mixed(BOTH)


def test_the_variable_says_what_is_assumed_unless_the_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICES_ASSUME", "mixed_domain=two, bridge=400 Gbps")
    assert Mixed(BOTH).assumed["mixed_domain"] == "two"
    found = Mixed(BOTH, assume={"mixed_domain": "one"}).assumed
    assert (found["mixed_domain"], found["bridge"]) == ("one", "400 Gbps")
    monkeypatch.setenv("DEVICES_ASSUME", "two")
    with pytest.raises(ArgumentError, match="'two' says no choice"):
        Mixed(BOTH)


# The memory.


def memories(**promises: bool) -> tuple[FusionMemory, FusionMemory, FusionMemory]:
    """Return the memory of two Trainium4 and a GPU, seen from each."""
    run, store = Memories(), Store(HashStore())
    found = []
    for rank in range(3):
        group = Group((0, 1, 2), rank, Device("threads", "cpu", 0), store, timedelta(seconds=5), "a group")
        base: Fabric = ThreadFabric(run, Baton(0), group)
        found.append(FusionMemory(base, ["trainium4", "trainium4", "rubin"], **promises))
    first, second, third = found
    return first, second, third


MARK = Mark("all_reduce", "a group", 1, "float32", 2, "sum", -1, 0, "program.py:1", ())


def test_without_coherence_what_was_written_is_not_read_before_a_signal_that_follows() -> None:
    writer, _, reader = memories(maps_peers=True, watches_signals=True)
    writer.signal(0, 1)
    writer.export("x", torch.ones(2), MARK, readers=2)
    with pytest.raises(CollectiveError, match="before that rank has signalled: coherence=none is assumed"):
        reader.open(0, "x")
    assert writer.open(0, "x")[1] is MARK, "a rank sees its own memory"
    writer.signal(0, 2)
    tensor, note = reader.open(0, "x")
    assert (tensor is not None and tensor.tolist(), note) == ([1.0, 1.0], MARK)


def test_with_coherence_it_is() -> None:
    writer, _, reader = memories(maps_peers=True, watches_signals=False)
    writer.export("x", torch.ones(2), MARK, readers=1)
    assert reader.open(0, "x")[1] is MARK


def test_where_no_peer_is_mapped_messages_alone_go_to_the_other_kind() -> None:
    writer, alike, other = memories(maps_peers=False, watches_signals=False)
    writer.export("x", torch.ones(2), MARK, readers=2)
    writer.export(("message", 2, 1), torch.ones(2), MARK, readers=1)
    assert alike.open(0, "x")[1] is MARK
    assert other.open(0, ("message", 2, 1))[1] is MARK
    with pytest.raises(UnsupportedError, match=r"rank 2, a rubin, does not map the memory of rank 0 .* a trainium4"):
        other.open(0, "x")


def test_a_tensor_that_is_changed_while_the_other_kind_reads_it_is_found() -> None:
    def careless(world: World) -> None:
        x = torch.ones(4)
        if world.rank == 0:
            work = devices.broadcast(x, src=0, out=x, async_op=True)
            x.add_(1)
            work.wait()
        else:
            devices.broadcast(x, src=0)

    with pytest.raises(RaceError, match=r"rank 0 changed a tensor in place that a verb, started at .*fusion"):
        devices.testing.run(careless, ranks=BOTH)


# Processes, pytest, and what is said of it.


@pytest.mark.slow
@pytest.mark.parametrize("way", ["one", "two"])
def test_processes_are_of_both_kinds_too(way: str) -> None:
    found = devices.testing.run_processes(told_by_a_process, BOTH, assume={"mixed_domain": way})
    check_weights([weights for weights, *_ in found])
    joined = "trainium4 (speculative) and rubin on nvlink-fusion (ranks 0, 1, 2, 3); one domain of nvlink-fusion"
    apart = "trainium4 (speculative) (ranks 0, 1) and rubin (ranks 2, 3); inside of "
    for rank, (_, world, group, shown, refused) in enumerate(found):
        for said in (world, group):
            assert (joined if way == "one" else apart) in said
            assert ("with EFA of 200 Gbps a chip (speculative) between" in said) == (way == "two")
        assert "\n  not on ranks 2, 3 (rubin): " in group
        assert "\n  predicted for 64 MiB, SPECULATIVE: all_reduce " in group
        crosses = "384 MiB over NVLink" if way == "one" else "256 MiB over NVLink, 128 MiB over EFA"
        assert f"as nvlink-fusion has it, an all_reduce sending {crosses}" in group
        assert ("backend='trainium4 (speculative)'" if rank < 2 else "backend='rubin'") in shown
        assert "and rubin (ranks 2, 3): rubin refuses it: uint16" in refused


def told_by_a_process(world: World) -> tuple[list[torch.Tensor], str, str, str, str]:
    with pytest.raises(UnsupportedError) as caught:
        devices.broadcast(torch.ones(2, dtype=torch.uint16))
    return program(world), devices.explain(), devices.explain(dist.group.WORLD), repr(world), str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not_here()), reason=f"needs shared memory: {why_not_here()}")
def test_processes_that_the_fabric_does_not_join_have_a_bridge_and_what_cannot_open_names_both_sides() -> None:
    *living, (state, _) = ranks.outcomes(4, cases.in_a_row, timeout=120)
    assert state == "died"
    for state, told in living:
        assert state == "returned", told
        assert told["off"]["sum"] == [6.0, 10.0, 14.0]
        for said in (told["off"]["world"], told["off"]["group"]):
            assert "trainium4 (speculative) (ranks 0, 1) and rubin (ranks 2, 3); inside of " in said
            assert "nvlink-fusion does not join ranks 0, 1 (trainium4 (speculative)) and 2, 3 (rubin): " in said
            assert "DEVICES_FABRIC=off" in said
        assert "\n  not predicted: the bandwidth of each rank's way to " in told["off"]["group"]
        both = "ranks 0 (trainium4 (speculative)) and {} (rubin) are on nvlink-fusion "
        assert both.format(2) + "by two versions of its plugin: " in told["versions"]
        assert "of 2026 on rank 0 and rubin of 2027 on rank 2; install the same on all" in told["versions"]
        assert both.format(3) + "and assume different things of it: mixed_domain is 'one' on rank 0" in told["assumed"]
        assert "no bridge between ranks 0, 1 (trainium4 (speculative)) and 2, 3 (rubin): " in told["no bridge"]
        assert told["memory"].startswith("WorldError: ")
        assert "nvlink-fusion did not open on rank 1: the switch is off" in told["memory"]
        text, seconds = told["dies"]
        assert text.startswith("CollectiveError: ")
        assert "rank 3 " in text
        assert "died" in text
        # Two seconds are promised; a machine that does other things may take longer.
        assert seconds < 20


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not_here()), reason=f"needs shared memory: {why_not_here()}")
def test_the_ranks_of_a_fabric_that_are_left_recover_as_one_domain_or_with_a_bridge_where_there_is_no_memory() -> None:
    ended = ranks.outcomes(5, cases.recovers, timeout=120, grace=90)
    assert [state for state, _ in ended] == ["returned", "died", "returned", "died", "died"], ended
    both, joined = (
        "trainium4 (speculative) and rubin on nvlink-fusion ",
        "one domain of nvlink-fusion (speculative) with",
    )
    for _, (beside, whole, pair, apart) in (ended[0], ended[2]):
        assert f"{both}(ranks 0, 1, 2) and cpu on " in beside["world"]
        assert " (ranks 3, 4); inside of " in beside["world"], "the CPU ranks are one domain"
        assert f"{both}(ranks 0, 1, 2); {joined}" in whole["world"]
        assert "ranks 0, 1, 2 of a world of 5 went on after an error" in whole["world"]
        assert f"{both}(ranks 0, 1); {joined}" in pair["world"]
        assert "trainium4 (speculative) (rank 0) and rubin (rank 1); between them host memory: gloo" in apart["world"]
        assert "DEVICES_FABRIC=off" in apart["world"]
        assert "trainium4 (speculative) (ranks 0, 1) and rubin (rank 2): rubin refuses it: uint16" in whole["refused"]
        for each in (pair, apart):
            assert "trainium4 (speculative) (rank 0) and rubin (rank 1): rubin refuses it: uint16" in each["refused"]


def test_a_target_of_two_kinds_has_half_of_its_ranks_of_each() -> None:
    def told(world: World) -> str:
        return world.backend

    found = devices.testing.run(told, ranks=5, target="trainium4-nvlink-fusion")
    assert found == ["trainium4 (speculative)"] * 3 + ["rubin"] * 2
    assert devices.testing.run(told, ranks=1, target="nvlink-fusion") == ["trainium4 (speculative)"]
    with pytest.raises(ArgumentError, match="say how many of each, by 'trainium4' and 'rubin'"):
        devices.testing.run(told, ranks={"trainium4-nvlink-fusion": 4})


def test_the_core_names_neither_the_chip_nor_its_fabric() -> None:
    named = [
        f"{path}:{number}"
        for path in sorted((ROOT / "devices").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"trainium4|nvlink.?fusion", line, re.IGNORECASE)
    ]
    assert named == []


def rows_of(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading of the page, in cells."""
    text = (ROOT / "docs" / "trainium4.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


def test_the_page_has_each_assumption_as_the_table_has_it() -> None:
    assert [(cells[0], cells[1]) for cells in rows_of("What is assumed")] == [
        (f"`{row.name}`", ", ".join(f"**{each}**" if each == row.assumed else each for each in row.choices))
        for row in TABLE
    ]


def test_the_page_lists_all_that_the_plugin_implements() -> None:
    listed = {name.strip("` ") for cells in rows_of("When the hardware comes") for name in cells[0].split(",")}
    own = {
        f"{kind.__name__}.{name}"
        for kind, abstract in ((Trainium4Backend, devices.Backend), (NVLinkFusion, Interop), (FusionMemory, Fabric))
        for name in vars(kind)
        if not name.startswith("_") and name in {*dir(abstract), *abstract.__annotations__}
    }
    assert listed == own | {"devices_targets"}
