"""The figures, number by number, against what was read by hand from the vendors' pages and others' tables."""

from __future__ import annotations

import pytest

from devices.catalogue import Target, load, names

GIB, MIB = 2**30, 2**20
TERA, PETA = 1e12, 1e15

CHIPS = {
    # cores, memory, bytes/s of it, FP8, BF16, FP32, DMA, SBUF, cores for collectives, links
    "trainium1": (2, 32 * GIB, 820 * GIB, 190, 190, 47.5, 1e12, 48 * MIB, 6, 384e9),
    "inferentia2": (2, 32 * GIB, 820 * GIB, 190, 190, 47.5, 1e12, 48 * MIB, 6, 192 * GIB),
    "trainium2": (8, 96 * GIB, 2.9e12, 1299, 667, 181, 3.5e12, 224 * MIB, 16, 1.28e12),
    "trainium3": (8, 144 * GIB, 4.9e12, 2517, 671, 183, 4.9e12, 256 * MIB, 16, 2048 * GIB),
}


@pytest.mark.parametrize("name", CHIPS)
def test_a_neuron_chip_has_what_its_page_prints(name: str) -> None:
    cores, memory, bandwidth, fp8, bf16, fp32, dma, sbuf, collective, links = CHIPS[name]
    chip = load(name)
    assert values(chip, "cores", "memory", "memory_bandwidth", "fp8", "bf16", "fp32") == [
        *(cores, memory, pytest.approx(bandwidth), fp8 * TERA, bf16 * TERA, fp32 * TERA)
    ]
    assert values(chip, "dma_bandwidth", "on_chip_memory", "collective_cores") == [dma, sbuf, collective]
    assert chip.figure("link_bandwidth").value == links


GPUS = {
    # GB, TB/s, BF16, FP8, FP4, FP32, links, GB/s one way
    "a100": (80, 2.0, 312, None, None, 19.5, 12, 300),
    "h100": (80, 3.35, 989, 1979, None, 67, 18, 450),
    "h200": (141, 4.8, 989, 1979, None, 67, 18, 450),
    "b200": (180, 8, 2250, 4500, 9000, None, 18, 900),
    "gb200": (186, 8, 2500, 5000, 10000, None, 18, 900),
    "b300": (288, 8, 2250, 4500, 12600, None, 18, 900),
    "gb300": (288, 8, 2500, 5000, 15000, None, 18, 900),
    "rubin": (288, 22, 4000, 17500, 35000, None, 36, 1800),
}


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_has_what_the_table_prints(name: str) -> None:
    memory, bandwidth, bf16, fp8, fp4, fp32, links, one_way = GPUS[name]
    chip = load(name)
    assert values(chip, "memory", "memory_bandwidth") == [memory * 10**9, pytest.approx(bandwidth * TERA)]
    for figure, tera in {"bf16": bf16, "fp8": fp8, "fp4": fp4, "fp32": fp32}.items():
        assert chip.figure(figure).value == (None if tera is None else tera * TERA)
    assert values(chip, "links", "link_bandwidth_one_way", "link_bandwidth") == [
        *(links, one_way * 1e9, 2 * one_way * 1e9)
    ]
    assert chip.limits.device_type == "cuda"
    assert chip.status == ("announced" if name == "rubin" else "documented")


@pytest.mark.parametrize(
    ("name", "figure", "others"),
    [
        ("b200", "memory", [192 * 10**9]),
        ("gb200", "memory", [192 * 10**9]),
        ("b300", "memory", [268 * 10**9]),
        ("gb300", "memory", [284_208 * MIB]),
        ("b300", "fp4", [15 * PETA]),
        ("rubin", "fp4", [50 * PETA]),
        ("trainium3", "memory_bandwidth", [4.7e12]),
        ("trainium3", "link_bandwidth", [2.56e12]),
        ("trainium2", "collective_cores", [20]),
        ("trn1.2xlarge", "nic_bandwidth", [25e9 / 8]),
        ("gb300", "host_bandwidth_one_way", [211e9, 193e9]),
    ],
)
def test_what_else_is_printed_is_kept_with_the_reason(name: str, figure: str, others: list[float]) -> None:
    found = load(name).figure(figure)
    assert [other.value for other in found.others] == others
    assert found.reason
    assert found.value not in others


MACHINES = {
    # chips, chip, shape, NICs, Gbps
    "trn1.2xlarge": (1, "trainium1", "line 1", None, 12.5),
    "trn1.32xlarge": (16, "trainium1", "torus 4x4", 8, 800),
    "trn1n.32xlarge": (16, "trainium1", "torus 4x4", 16, 1600),
    "inf2.24xlarge": (6, "inferentia2", "line 6", None, None),
    "inf2.48xlarge": (12, "inferentia2", "ring 12", None, None),
    "trn2.3xlarge": (1, "trainium2", "line 1", None, None),
    "trn2.48xlarge": (16, "trainium2", "torus 4x4", 16, 3200),
    "p4d.24xlarge": (8, "a100-40gb", "switch", 4, 400),
    "p4de.24xlarge": (8, "a100", "switch", 4, 400),
    "p5.48xlarge": (8, "h100", "switch", 32, 3200),
    "p5e.48xlarge": (8, "h200", "switch", 32, 3200),
    "p5en.48xlarge": (8, "h200", "switch", 16, 3200),
    "p6-b200.48xlarge": (8, "b200", "switch", 8, 3200),
    "p6-b300.48xlarge": (8, "b300", "switch", 16, 6400),
    "p6e-gb200.36xlarge": (4, "gb200", "switch", None, 3200),
}


@pytest.mark.parametrize("name", MACHINES)
def test_an_instance_has_its_chips_and_its_network(name: str) -> None:
    chips, chip, shape, nics, gbps = MACHINES[name]
    machine = load(name)
    assert (machine.count("chip"), machine.limits.chip, machine.figure("topology").value) == (chips, chip, shape)
    assert machine.figure("nics").value == nics
    assert machine.figure("nic_bandwidth").value == (None if gbps is None else gbps * 1e9 / 8)


@pytest.mark.parametrize(
    ("name", "gbps"),
    [("p4d.24xlarge", 50), ("p5.48xlarge", 400), ("p5en.48xlarge", 400), ("p6-b200.48xlarge", 400),
     ("p6-b300.48xlarge", 800), ("p6e-gb200.36xlarge", 800), ("trn2.48xlarge", 200)],
)  # fmt: skip
def test_the_network_of_an_accelerator(name: str, gbps: int) -> None:
    machine = load(name)
    assert machine.total("nic_bandwidth") == gbps * 1e9 / 8 * machine.count("chip")


@pytest.mark.parametrize(
    ("name", "petaflops", "memory", "bandwidth"),
    [
        ("trn1.32xlarge", (3.04, 3.04, 0.76), 512, 13_120 * GIB),
        ("trn1n.32xlarge", (3.04, 3.04, 0.76), 512, 13_120 * GIB),
        ("trn2.48xlarge", (20.8, 10.7, 2.9), 1_536, 46.4e12),
        ("trainium2-ultraserver", (83.2, 42.8, 11.6), 6_144, 185.6e12),
        ("trainium3-ultraserver-gen1", (161.1, 42.9, 11.7), 9_216, 313.6e12),
        ("trainium3-ultraserver-gen2", (362.4, 96.6, 26.4), 20_736, 705.6e12),
    ],
)
def test_the_sums_over_chips_are_those_that_are_printed(
    name: str, petaflops: tuple[float, ...], memory: int, bandwidth: float
) -> None:
    target = load(name)
    assert [target.total(f"chip.{one}") for one in ("fp8", "bf16", "fp32")] == [
        pytest.approx(printed * PETA, abs=0.15 * PETA) for printed in petaflops
    ]
    assert target.total("chip.memory") == memory * GIB
    assert target.total("chip.memory_bandwidth") == pytest.approx(bandwidth)
    assert 144 * 144 == 20_736


@pytest.mark.parametrize(
    ("name", "printed"),
    [("gb200-nvl72", 130e12), ("gb300-nvl72", 130e12), ("p6e-gb200-ultraserver", 130e12), ("vera-rubin-nvl72", 260e12)],
)
def test_a_rack_of_72_has_the_nvlink_that_is_printed(name: str, printed: float) -> None:
    rack = load(name)
    assert (rack.count("machine"), rack.count("chip")) == (18, 72)
    links = rack.figure("link_bandwidth").value
    assert links == rack.figure("chip.link_bandwidth").value
    assert isinstance(links, float)
    assert 72 * links == pytest.approx(printed, rel=0.01)


def test_the_racks_of_blackwell_and_rubin_hold_and_compute_what_is_printed() -> None:
    gb300, rubin = load("gb300-nvl72"), load("vera-rubin-nvl72")
    assert gb300.total("chip.memory_bandwidth") == 576e12
    assert gb300.total("chip.fp4") == 1_080 * PETA
    assert gb300.total("chip.memory") == pytest.approx(20e12, rel=0.04)
    assert rubin.total("chip.memory") == pytest.approx(20.7e12, rel=0.01)
    [to_infer] = rubin.figure("chip.fp4").others
    assert isinstance(to_infer.value, float)
    assert 72 * to_infer.value == 3.6e18


def test_the_three_tiers_of_an_ultraserver_of_trainium3() -> None:
    target = load("trainium3-ultraserver-gen2")
    tiers = ("machine.link_bandwidth", "ultraserver.link_bandwidth", "ultraserver.rack_link_bandwidth")
    assert [target.figure(tier).value for tier in tiers] == [256e9, 320e9, 128e9]
    assert [target.figure(f"{tier}_one_way").value for tier in tiers] == [256e9, 320e9, 128e9]
    assert target.figure("racks").value == 2
    assert target.figure("racks").status == "inferred"
    assert (target.count("machine"), target.members * 4) == (36, 144)


def test_the_link_of_a_tray_and_a_rack_is_stated_once() -> None:
    rack = load("gb300-nvl72")
    assert rack.figure("machine.link_bandwidth_one_way").absent == "none"
    assert rack.figure("link_bandwidth_one_way").value == 900e9
    assert load("hgx-h100").figure("link_bandwidth_one_way").absent == "none"


@pytest.mark.parametrize(
    ("name", "most", "chips"),
    [
        ("trainium3-ultracluster-gen1", 1_000_000, 15_625 * 64),
        ("trainium3-ultracluster", 1_000_000, 6_944 * 144),
        ("project-rainier", 500_000, 7_812 * 64),
        ("trainium1-ultracluster", 100_000, 6_250 * 16),
    ],
)
def test_a_cluster_has_as_many_machines_as_there_is_room_for(name: str, most: int, chips: int) -> None:
    cluster = load(name)
    assert cluster.figure("chips").value == most
    assert cluster.count("chip") == chips
    assert cluster.of is not None
    assert most - cluster.of.count("chip") < chips <= most
    assert cluster.limits.nodes == cluster.count("machine")


def test_claims_are_those_of_the_launch() -> None:
    [energy] = load("trainium3").claims
    assert (energy.of, energy.than, energy.figure.value) == ("energy_efficiency", "trainium2", 1.4)
    assert (energy.figure.status, energy.figure.date) == ("announced", "2025-12-02")
    ultraserver = load("trainium3-ultraserver-gen2")
    assert {each.of: each.figure.value for each in ultraserver.claims} == {
        "compute": 4.4, "memory_bandwidth": 4, "energy_efficiency": 4
    }  # fmt: skip
    older = load("trainium2-ultraserver")
    times = {name: ratio(ultraserver, older, f"chip.{name}") for name in ("fp8", "memory_bandwidth")}
    assert times == {"fp8": pytest.approx(4.4, abs=0.1), "memory_bandwidth": pytest.approx(4, abs=0.25)}


def test_power_is_of_one_chip_and_unknown_where_no_source_was_read() -> None:
    known = {name: load(name).figures["power"].value for name in names("chip") if load(name).figures["power"].value}
    assert known == {"a100": 400, "a100-40gb": 400, "h100": 700, "h200": 700, "b200": 1000}


def test_prices_are_of_an_hour_of_the_machine() -> None:
    known = {name: load(name).figures["price"].value for name in names("machine") if load(name).figures["price"].value}
    assert known == {
        "p4d.24xlarge": 21.957642,
        "p4de.24xlarge": 27.44705,
        "p5.48xlarge": 55.04,
        "p5en.48xlarge": 63.296,
    }


@pytest.mark.parametrize("name", names())
def test_every_entry_states_each_figure_of_its_kind(name: str) -> None:
    for figure in load(name).figures.values():
        assert figure.date, f"{figure.place} is left out"
        assert (figure.value is None) == (figure.absent is not None)
        assert figure.source or figure.absent == "unknown"


def values(target: Target, *figures: str) -> list[object]:
    return [target.figure(figure).value for figure in figures]


def ratio(one: Target, other: Target, figure: str) -> float:
    above, below = one.total(figure), other.total(figure)
    assert above is not None
    assert below is not None
    return above / below
