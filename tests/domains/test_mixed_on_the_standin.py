"""One world over ranks of several vendors: CPU ranks, and ranks on the stand-in of torch_neuronx."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from domains import mixed_cases as cases

from devices.fabric.host.meeting import why_not_here

sys.path.append(str(Path(__file__).parents[1] / "plugins" / "not_run_on_hardware" / "neuron"))
from on_standin import standin, variables

pytestmark = pytest.mark.slow

HALVES = ["cpu", "cpu", "neuron", "neuron"]
ONE = ["cpu", "neuron", "cpu", "cpu"]
THREE = ["cpu", "neuron", "neuron", "neuron"]
Outcomes = list[tuple[str, Any]]


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Outcomes]]:
    """Return what runs a function on ranks of those backends."""

    def run(function: Callable[..., Any], backends: list[str], *args: Any, **more: str) -> Outcomes:
        env = variables(tmp_path_factory.mktemp("trn2")) | more
        return ranks.outcomes(len(backends), function, backends, *args, env=env, timeout=120)

    with standin():
        yield run


def returned(outcomes: Outcomes) -> list[Any]:
    assert [kind for kind, _ in outcomes] == ["returned"] * len(outcomes), outcomes
    return [value for _, value in outcomes]


@pytest.mark.parametrize(
    ("backends", "hosts", "fabric"),
    [(HALVES, "", ""), (ONE, "", ""), (THREE, "", ""), (HALVES, "0101", ""), (HALVES, "", "off")],
    ids=["2 and 2", "3 and 1", "1 and 3", "2 and 2 on two hosts", "2 and 2 over gloo"],
)
def test_every_verb_computes_what_plain_torch_does_over_vendors(
    on: Callable[..., Outcomes], backends: list[str], hosts: str, fabric: str
) -> None:
    found = returned(on(cases.every_verb, backends, hosts, DEVICES_FABRIC=fabric))
    assert len({bits for each in found for bits in each["bits"]}) == 1, "the same bits on all ranks and each time"
    by_memory = not (hosts or fabric or why_not_here())
    assert [each["stores"] for each in found] == [0 if by_memory else 1] * len(backends), "for the world, and no domain"
    for each in found:
        domains = "cpu on island-0 (rank 0) and cpu on island-1 (rank 1)" if hosts else "cpu"
        assert domains in each["explained"]
        divided = "neuron (1) (rank 1) and neuron (2) (ranks 2, 3)"
        assert (divided if backends == THREE else "neuron (rank") in each["explained"]
        for call in ("float64", "float64 moved"):
            assert each[call].startswith("UnsupportedError: "), each[call]
            assert "float64: not there on rank" in each[call]
            assert "(neuron), there on rank" in each[call]
            assert "(cpu)" in each[call]
    on_neuron = found[backends.index("neuron")]["on the CPU"]
    assert on_neuron.startswith("ArgumentError: "), on_neuron
    assert "on its own device" in on_neuron


@pytest.mark.parametrize(
    ("backends", "sides"),
    [
        (["cpu", "neuron"], "not there on rank 1 (neuron), there on rank 0 (cpu)"),
        (["neuron", "neuron"], "not there on ranks 0, 1 (neuron), there on no rank"),
    ],
    ids=["of two vendors", "of one"],
)
def test_a_world_whose_devices_lack_a_dtype_opens_only_where_it_is_not_needed(
    on: Callable[..., Outcomes], backends: list[str], sides: str
) -> None:
    for refused, differ, explained in returned(on(cases.needs_dtypes, backends)):
        assert refused.startswith("UnsupportedError: rank ")
        assert f"float64, float8_e4m3fn are {sides}" in refused
        assert differ.startswith("WorldError: ")
        assert 'dtypes is "float32" on rank 0, and "float32, float64" on rank 1' in differ
        assert "\n  not on" in explained
        assert "float64" in explained


def test_torchs_verbs_groups_and_tensors_of_a_mesh_are_right_over_vendors(on: Callable[..., Outcomes]) -> None:
    found = returned(on(cases.with_torch, HALVES))
    assert "shared memory" in found[0]["alike"] or why_not_here()
    assert "process group 'neuron'" in found[2]["alike"]
    for each in found:
        assert "cpu on " in each["across"]
        assert "\n  not on rank" in each["across"]
        assert "float64" in each["across"]
        assert "\n  all_reduce: " in each["across"]
    for each in found:
        assert each["ddp"] == pytest.approx(alone(), rel=1e-5)
        assert each["fsdp"] == pytest.approx(alone(), rel=1e-5)


def alone() -> list[float]:
    """Return the losses of the same training in one process."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = model(cases.batch_of(step)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("dies", "CollectiveError", ["rank 3", "died"]),
        ("dies inside", "CollectiveError", ["rank 3 died"]),
        ("is refused", "CollectiveError", ["this chip reduces no torch.int32", "rank 3 of neuron"]),
        ("another size", "MismatchError", ["7 on rank 3", "8 on ranks 0, 1, 2", "mixed_cases.py"]),
    ],
)
@pytest.mark.skipif(bool(why_not_here()), reason=f"needs shared memory: {why_not_here()}")
def test_what_goes_wrong_in_one_vendors_domain_is_told_in_the_other(
    on: Callable[..., Outcomes], how: str, kind: str, words: list[str]
) -> None:
    ended = on(cases.goes_wrong, HALVES, 3, how)
    for rank, (state, told) in enumerate(ended):
        if rank == 3 and how.startswith("dies"):
            assert state == "died"
            continue
        assert state == "returned", told
        found, text, seconds = told
        assert found == kind, text
        for word in words:
            assert word in text, text
        # Two seconds are promised, five more where one is refused; the group's timeout is a minute.
        assert seconds < 60


def test_what_cannot_open_is_told_on_every_rank_with_both_sides(on: Callable[..., Outcomes]) -> None:
    by_rank = returned(on(cases.cannot_open, HALVES))
    for each in by_rank:
        versions = each["versions"]
        assert versions.startswith("WorldError: "), versions
        assert "two versions: the plugin is devices" in versions
        assert "on rank 0 and other 9.9 on rank 1" in versions
        interface = each["interface"]
        assert interface.startswith("WorldError: "), interface
        assert "interface 1 on rank 2 and 7 on rank 3" in interface
        no_bridge = each["no bridge"]
        assert no_bridge.startswith("UnsupportedError: "), no_bridge
        assert "no bridge between ranks 0, 1 (cpu) and 2, 3 (neuron)" in no_bridge
        assert "on rank 2: " in no_bridge
        domain = each["domain"]
        assert domain.startswith("WorldError: "), domain
        assert "core 3" in domain, domain
        assert ": domain neuron did not open on rank" in domain, domain


def test_groups_of_a_vendor_that_is_several_domains_are_right(on: Callable[..., Outcomes]) -> None:
    found = returned(on(cases.groups_of, THREE))
    for each in found[1:]:
        assert "neuron (1) (rank 1) and neuron (2) (ranks 2, 3)" in each["alike"]
        assert "they are in different domains of the world" in each["alike"]
    for rank, members in enumerate(((0, 2), (1, 3), (0, 2), (1, 3))):
        assert f"of ranks {members[0]}, {members[1]}: " in found[rank]["across"]
    assert "they are in different domains of the world" in found[1]["across"]


def test_a_group_of_a_vendors_world_that_its_hardware_has_not_is_of_parts_that_it_has(
    on: Callable[..., Outcomes],
) -> None:
    found = returned(on(cases.parts_of, ["neuron"] * 4, [0, 2, 3]))
    for rank, (world, (few, pair), lacks) in enumerate(found):
        assert "; torch's process group 'neuron'; messages" in world
        assert "domain" not in world
        if rank != 1:
            assert "neuron (1) (rank 0) and neuron (2) (ranks 2, 3)" in few
            assert (
                "ranks 0, 2, 3 (neuron) are 2 domains (0 and 2, 3): backend 'neuron' has no groups of 3; legal" in few
            )
            assert lacks.startswith("UnsupportedError: ")
        assert ("torch's process group 'neuron'" in pair and "domain" not in pair) is (rank > 1)


@pytest.mark.skipif(bool(why_not_here()), reason=f"needs shared memory: {why_not_here()}")
def test_ranks_of_a_vendor_that_are_all_left_have_its_group_again(on: Callable[..., Outcomes]) -> None:
    ended = on(cases.recovers, HALVES, [0, 1], "0101")
    assert [state for state, _ in ended] == ["died", "died", "returned", "returned"], ended
    for _, (_, second, third) in ended[2:]:
        assert "cpu on island-1 (rank 0) and neuron (ranks 1, 2); inside of neuron torch's process group" in second
        assert "; torch's process group 'neuron'; messages" in third


@pytest.mark.skipif(bool(why_not_here()), reason=f"needs shared memory: {why_not_here()}")
@pytest.mark.parametrize(
    ("backends", "dying", "last"),
    [
        (["cpu", "neuron", "neuron", "neuron"], [3, 0], "neuron (1) (rank 0) and neuron (2) (rank 1)"),
        (["neuron", "neuron", "neuron"], [0], "neuron (1) (rank 0) and neuron (2) (rank 1)"),
        (["neuron"] * 4, [3], "neuron (1) (rank 0) and neuron (2) (rank 1) and neuron (3) (rank 2)"),
    ],
    ids=["1 and 3", "3 alone", "4 alone"],
)
def test_ranks_whose_vendors_runtime_has_lost_one_go_on_each_for_itself(
    on: Callable[..., Outcomes], backends: list[str], dying: list[int], last: str
) -> None:
    is_native = len(backends) == 4 and "cpu" not in backends
    ended = on(cases.recovers, backends, dying)
    for rank, (state, notes) in enumerate(ended):
        assert state == ("died" if rank in dying else "returned"), notes
        if rank not in dying:
            assert ("no groups of 3" in notes[0]) != is_native
            assert f"{last}; between them host memory" in notes[-1]
            assert "was started before, for " in notes[-1]
            assert "and opens no other groups" in notes[-1]
