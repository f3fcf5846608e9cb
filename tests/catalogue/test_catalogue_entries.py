"""The numbers of the built-in entries, against what AWS's pages and the tables of others print.

The literals are those of the pages that `sources.toml` names, so far as an entry does not state them itself: sums over
an UltraServer, which the catalogue computes from its chips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import date

import pytest
import torch
from catalogue_copies import FOLDER

from devices.catalogue import STATUSES, Figure, Limits, Target, load, names
from devices.catalogue.reader import SOURCES, read_entry, read_sources
from devices.catalogue.units import DTYPES, OPS, VERBS

GIB = 2**30
GATHERED = date(2026, 11, 30)
"""No source of the entries is newer."""


def every_figure() -> Iterator[Figure]:
    sources = read_sources(FOLDER / SOURCES)
    for file in sorted(FOLDER.glob("*.toml")):
        if file.name != SOURCES:
            entry = read_entry(file, sources)
            ruled = (figure for figures in entry.rulings.values() for figure in figures)
            for figure in (*entry.figures.values(), *entry.limits.values(), *ruled):
                yield figure
                yield from figure.others


@pytest.mark.parametrize("name", names())
def test_every_limit_says_where_it_is_from(name: str) -> None:
    target = load(name)
    by_definition = {"chip", "nodes", "chips_per_node"}
    for field in dataclasses.fields(Limits):
        origin = target.provenance(field.name)
        assert origin.value == getattr(target.limits, field.name)
        assert origin.figures or (field.name in by_definition and origin.how)
        if origin.value is None:
            assert origin.reason
        assert origin.status in (*STATUSES, None)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("ruling", "about"), [("dtypes", DTYPES), ("verbs", VERBS), ("reductions", OPS)])
def test_every_verb_dtype_and_op_says_why_it_is_there_or_not(name: str, ruling: str, about: tuple[str, ...]) -> None:
    target = load(name)
    there = getattr(target.limits, ruling)
    for one in about:
        origin = target.provenance(f"{ruling}.{one}")
        assert origin.figures or origin.how == f"no source for {target.limits.chip} names it"
        if there is None:
            assert origin.value is None
            assert {figure.absent for figure in target.provenance(ruling).figures} == {"unknown"}
        else:
            assert bool(origin.value) == (one in there)


def test_every_figure_has_a_source_a_date_and_a_status_or_says_why_it_is_not_known() -> None:
    figures = list(every_figure())
    assert len(figures) > 150
    for figure in figures:
        assert figure.unit
        assert date.fromisoformat((figure.date + "-01-01")[:10]) <= GATHERED
        if figure.absent == "unknown":
            assert figure.value is None
            assert figure.reason
        else:
            assert figure.source
            assert figure.status in STATUSES
            assert (figure.value is None) == (figure.absent == "none")
        assert bool(figure.others) <= bool(figure.reason)
        assert figure.status != "assumed", "what the press says is never a default"


def test_every_source_is_cited() -> None:
    cited = {figure.source for figure in every_figure()}
    assert sorted(set(read_sources(FOLDER / SOURCES).values()) - cited) == []


def test_every_dtype_is_one_of_torchs() -> None:
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)


def test_what_is_printed_is_what_is_stated() -> None:
    """The reader checks it; here, that it has something to check, byte counts above all."""
    sizes = [figure for figure in every_figure() if figure.unit == "bytes" and figure.value is not None]
    assert sizes
    assert all(figure.printed for figure in sizes)


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        (
            "trainium2",  # AWS's page on the chip, of 2025-12-02
            {
                "cores": 8,
                "default_lnc": 2,
                "memory": 96 * GIB,
                "memory_bandwidth": 2.9e12,
                "dma_bandwidth": 3.5e12,
                "on_chip_memory": 224 * 2**20,
                "link_bandwidth": 1.28e12,
                "fp4": None,
                "fp8": 1299e12,
                "bf16": 667e12,
                "bf16_sparse": 2563e12,
                "fp32": 181e12,
            },
        ),
        (
            "trainium3",  # AWS's page on the chip, of 2025-12-02
            {
                "cores": 8,
                "default_lnc": 2,
                "memory": 144 * GIB,
                "memory_bandwidth": 4.9e12,
                "dma_bandwidth": 4.9e12,
                "on_chip_memory": 256 * 2**20,
                "fp4": 2517e12,
                "fp8": 2517e12,
                "bf16": 671e12,
                "bf16_sparse": 2517e12,
                "fp32": 183e12,
            },
        ),
        (
            "h100",  # the tables of ml-engineering, of 2026-08-22
            {
                "memory": 80 * 10**9,
                "memory_bandwidth": 3.35e12,
                "links": 18,
                "link_bandwidth_one_way": 450e9,
                "fp4": None,
                "fp8": 1979e12,
                "bf16": 989e12,
                "fp32": 67e12,
            },
        ),
    ],
)
def test_a_chip_is_as_its_page_states(name: str, stated: dict[str, float | None]) -> None:
    target = load(name)
    assert {figure: target.figure(figure).value for figure in stated} == stated


@pytest.mark.parametrize(
    ("name", "machines", "chips", "gib", "tb_per_s", "fp8", "bf16", "fp32", "cpus", "host_gib"),
    [
        ("trn2.48xlarge", 1, 16, 1536, 46.4, 20.8, 10.7, 2.9, 192, 2048),
        ("trainium2-ultraserver", 4, 64, 6144, 185.6, 83.2, 42.8, 11.6, 768, 8192),
        ("trainium3-ultraserver-gen1", 4, 64, 9216, 313.6, 161.1, 42.9, 11.7, 768, 8192),
        ("trainium3-ultraserver-gen2", 36, 144, 20736, 705.6, 362.4, 96.6, 26.4, 2304, 27648),
    ],
)
def test_the_sums_are_those_of_the_pages_on_trn2_and_trn3(
    name: str,
    machines: int,
    chips: int,
    gib: int,
    tb_per_s: float,
    fp8: float,
    bf16: float,
    fp32: float,
    cpus: int,
    host_gib: int,
) -> None:
    target = load(name)
    assert (target.count("machine"), target.count("chip")) == (machines, chips)
    assert (target.limits.nodes, target.limits.chips_per_node) == (machines, chips // machines)
    assert target.total("chip.memory") == gib * GIB
    assert target.total("chip.memory_bandwidth") == pytest.approx(tb_per_s * 1e12)
    # The pages print one decimal, and the Trn2 UltraServer's row is 4 times the rounded row of its machine.
    assert [total(target, f"chip.{one}") for one in ("fp8", "bf16", "fp32")] == [
        pytest.approx(printed, abs=0.15) for printed in (fp8, bf16, fp32)
    ]
    assert target.total("machine.host_cpus") == cpus
    assert target.total("machine.host_memory") == host_gib * GIB


def total(target: Target, name: str) -> float:
    """Return a sum in units of 10^15."""
    value = target.total(name)
    assert value is not None
    return value / 1e15


def test_the_links_of_trainium2_sum_up_to_the_chips() -> None:
    target = load("trainium2-ultraserver")
    for ending in ("link_bandwidth", "link_bandwidth_one_way"):
        parts = [target.figure(f"{kind}.{ending}").value for kind in ("machine", "ultraserver")]
        assert sum(parts) == target.figure(f"chip.{ending}").value  # type: ignore[arg-type]


def test_the_tiers_of_trainium3_are_four_five_and_two_links_of_pcie_gen6() -> None:
    target = load("trainium3-ultraserver-gen2")
    link = 64e9 * 8 / 8  # 64 GT/s on 8 lanes, in bytes
    tiers = [
        target.figure(name).value
        for name in (
            "machine.link_bandwidth_one_way",
            "ultraserver.link_bandwidth_one_way",
            "ultraserver.rack_link_bandwidth_one_way",
        )
    ]
    assert tiers == [4 * link, 5 * link, 2 * link]
    assert sum(tiers) == target.figure("chip.link_bandwidth_one_way").value == 704e9  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "gbps", "per_chip"),
    [
        ("trn2.48xlarge", 3200, 200),
        ("trainium2-ultraserver", 12800, 200),
        ("trainium3-ultraserver-gen1", 12800, 200),
        ("trainium3-ultraserver-gen2", 28800, 200),
        ("p5.48xlarge", 3200, 400),
    ],
)
def test_the_network_is_so_much_per_chip(name: str, gbps: int, per_chip: int) -> None:
    target = load(name)
    assert target.figure("nic_bandwidth").value == gbps * 1e9 / 8
    assert gbps == per_chip * target.count("chip")
    assert target.total("machine.nic_bandwidth") == gbps * 1e9 / 8


@pytest.mark.parametrize(
    ("name", "lnc", "ranks", "gib"),
    [
        ("trainium2", 2, 4, 24),
        ("trainium2", 1, 8, 12),
        ("trn2.48xlarge", 2, 64, 24),
        ("trainium2-ultraserver", 2, 256, 24),
        ("trainium2-ultraserver", 1, 512, 12),
        ("trainium3", 2, 4, 36),
        ("trainium3-ultraserver-gen1", 2, 256, 36),
        ("trainium3-ultraserver-gen2", 2, 576, 36),
        ("trainium3-ultraserver-gen2", 1, 1152, 18),
    ],
)
def test_a_rank_has_its_cores_share_of_the_memory(name: str, lnc: int, ranks: int, gib: int) -> None:
    target = load(name, lnc=lnc)
    assert target.limits.ranks == ranks
    assert target.limits.memory_per_rank == gib * GIB
    assert target.limits.memory_per_rank * ranks == target.total("chip.memory")
    assert target.provenance("memory_per_rank").status == "inferred"
    assert target.provenance("memory_per_rank").how == f"the chip's memory / {8 // lnc} ranks"


def test_an_h100_is_one_rank_with_all_its_memory() -> None:
    target = load("p5.48xlarge")
    assert (target.limits.ranks, target.limits.memory_per_rank, target.limits.lnc) == (8, 80 * 10**9, None)
    assert target.provenance("memory_per_rank").status == "documented"
    assert target.figure("chip.link_bandwidth").value == 2 * 450e9
    assert target.figure("chip.links").value == 18


@pytest.mark.parametrize(
    ("name", "figure", "chosen", "others"),
    [
        ("trainium2", "collective_cores", 16, [20]),
        ("trainium2", "link_bandwidth_one_way", 640e9, [1280e9]),
        ("trainium3", "memory_bandwidth", 4.9e12, [4.7e12]),
        ("trainium3", "link_bandwidth", 2048 * GIB, [2.56e12]),
        ("trainium2-ultraserver", "nic_bandwidth", 1600e9, [400e9]),
    ],
)
def test_where_pages_disagree_both_values_are_kept_and_one_is_chosen_with_a_reason(
    name: str, figure: str, chosen: float, others: list[float]
) -> None:
    found = load(name).figure(figure)
    assert found.value == chosen
    assert [other.value for other in found.others] == others
    assert found.reason


@pytest.mark.parametrize(
    ("field", "others"),
    [
        ("max_groups", [12]),
        ("world_sizes", [(1, 4, 16, 64), (1, 2, 8, 16)]),
        ("uneven_splits", [True]),
        ("dtypes.float64", [True]),
    ],
)
def test_limits_too_keep_what_else_is_said(field: str, others: list[object]) -> None:
    [figure] = load("trainium2").provenance(field).figures
    assert [other.value for other in figure.others] == others
    assert figure.reason


def test_the_text_of_a_provenance_has_value_status_source_date_and_reason() -> None:
    text = str(load("trainium2").provenance("max_groups"))
    assert text.startswith(
        "max_groups = 16\n    neuron.toml [limits.max_groups]: 16 (documented, AWS Neuron SDK 2.32.0"
    )
    assert "2026-08-17): the notes say that 2.32 raised it from 12" in text
    text = str(load("trainium2").provenance("verbs.send"))
    assert text.startswith("verbs.send = False\n    neuron.toml [limits.verbs]: unknown (2026-11-23): unproved")
