from __future__ import annotations

from dataclasses import replace

import pytest
from published_tables import DGX_A100, HGX_H200

from devices.errors import ArgumentError, TargetNotFoundError, TopologyError
from devices.topology import Machine, predict

SMALL = 8


def test_a_few_bytes_take_the_base_of_ll_and_a_step_for_each_of_14() -> None:
    found = predict("all_reduce", SMALL, "p5.48xlarge")
    assert found.algorithm == "ring, LL"
    assert found.latency == pytest.approx((6.6 + 14 * 0.6) * 1e-6)
    assert found.transfer < 1e-9
    assert found.seconds.expected == pytest.approx(found.latency + found.transfer)


def test_many_bytes_take_what_the_links_of_a_ring_carry() -> None:
    # 18 NVLinks at the 20.6 GB/s that NCCL gets of one.
    found = predict("all_gather", 16 << 30, HGX_H200)
    assert found.algorithm == "ring, Simple"
    assert found.transfer == pytest.approx((16 << 30) * 7 / 8 / (18 * 20.6e9))
    assert found.latency == pytest.approx((8.4 + 7 * 3.4) * 1e-6)


def test_nvls_moves_an_eighth_more_than_the_bytes_over_each_link() -> None:
    found = predict("all_reduce", 16 << 30, HGX_H200)
    assert found.algorithm == "NVLS"
    assert found.transfer == pytest.approx((16 << 30) * (1 + 1 / 8) / (18 * 20.6e9 * 0.825))


def test_a_gpu_without_nvls_has_rings_and_trees_only() -> None:
    found = {predict("all_reduce", 1 << power, DGX_A100).algorithm.partition(",")[0] for power in range(3, 34)}
    assert found <= {"ring", "tree"}


def test_each_step_over_a_network_that_is_five_times_as_slow_takes_five_times_as_long() -> None:
    near, far = (
        predict("broadcast", SMALL, replace(HGX_H200, network_latency=2.8e-6 * times), 16).latency for times in (1, 5)
    )
    # One of a broadcast's steps is between the two machines, 2.7 us with LL.
    assert far - near == pytest.approx(4 * 2.7e-6)


def test_an_all_to_all_waits_for_the_bytes_that_cross_the_network() -> None:
    size = 1 << 30
    found = predict("all_to_all", size, HGX_H200, 16)
    assert found.transfer == pytest.approx(size * 8 / 16 / 50e9)


def test_one_process_that_drives_all_gpus_starts_them_one_after_the_other() -> None:
    alone = predict("all_reduce", SMALL, DGX_A100, one_process=True).latency
    assert alone - predict("all_reduce", SMALL, DGX_A100).latency == pytest.approx(8 * 3.5e-6)


@pytest.mark.parametrize(
    ("size", "algorithm"),
    [(999_999, "mesh"), (1_000_000, "RDH"), (56_000_000, "RDH"), (56_000_001, "KangaRing")],
)
def test_a_full_trn2_changes_its_algorithm_where_the_documentation_says(size: int, algorithm: str) -> None:
    assert predict("all_reduce", size, "trn2.48xlarge", 64).algorithm == algorithm


@pytest.mark.parametrize("target", ["p5.48xlarge", "trn1.32xlarge", "trn2.48xlarge", "trainium3-ultraserver-gen2"])
@pytest.mark.parametrize("verb", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send"])
def test_it_is_always_an_interval_and_the_sum_of_its_parts(target: str, verb: str) -> None:
    for size in (0, 1, 5000, 1 << 20, 1 << 33):
        found = predict(verb, size, target)
        assert 0 < found.seconds.low < found.seconds.expected < found.seconds.high
        assert found.seconds.expected == pytest.approx(found.latency + found.transfer)
        assert found.basis
        assert not found.speculative


def test_one_rank_waits_for_nobody() -> None:
    assert predict("all_reduce", 1 << 30, "p5.48xlarge", 1).seconds.high == 0
    assert predict("all_reduce", 1 << 30, "trn2.48xlarge", 1).seconds.high == 0


def test_what_is_announced_marks_the_answer() -> None:
    found = predict("all_reduce", 1 << 20, replace(HGX_H200, speculative=True))
    assert found.speculative
    assert "SPECULATIVE" in str(found)
    assert found.as_data()["speculative"] is True


def test_software_that_no_model_is_of_gives_a_wide_interval_and_says_so() -> None:
    found = predict("all_reduce", 1 << 30, replace(HGX_H200, software="other"))
    assert "no model of the collectives of 'other'" in found.basis
    assert found.transfer == pytest.approx(2 * 7 / 8 * (1 << 30) / (450e9 * 0.75))
    assert found.seconds.high / found.seconds.low > 5


def test_a_figure_that_is_needed_and_not_known_is_named() -> None:
    alone: Machine = replace(HGX_H200, network=None)
    assert predict("all_reduce", 1 << 20, alone, 8).seconds.expected > 0
    with pytest.raises(TopologyError, match=r"hgx-h200.*network is not known \(figure nic_bandwidth\)"):
        predict("all_reduce", 1 << 20, alone, 16)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ArgumentError, match="there is no time of 'all_reduc'; did you mean 'all_reduce'"):
        predict("all_reduc", 8, "p5.48xlarge")
    with pytest.raises(TargetNotFoundError, match=r"did you mean 'p5\.48xlarge'"):
        predict("all_reduce", 8, "p5.48xlarg")
    with pytest.raises(ArgumentError, match="12 ranks on hgx-h200 are more than one domain's 8 and not all of several"):
        predict("all_reduce", 8, HGX_H200, 12)
    with pytest.raises(ArgumentError, match="a number of bytes, got -1"):
        predict("all_reduce", -1, HGX_H200)
    with pytest.raises(ArgumentError, match="at least 1, got 0"):
        predict("all_reduce", 8, HGX_H200, 0)
    with pytest.raises(ArgumentError, match="not 5"):
        predict("all_reduce", 8, 5)  # type: ignore[arg-type]


def test_a_target_of_the_catalogue_that_is_announced_marks_the_answer() -> None:
    assert predict("all_reduce", 1 << 20, "vera-rubin-nvl72").speculative
    assert not predict("all_reduce", 1 << 20, "gb200-nvl72").speculative


def test_a_cluster_is_its_domains_on_their_network() -> None:
    whole = predict("all_reduce", 1 << 20, "trainium3-ultracluster")
    assert whole.seconds == predict("all_reduce", 1 << 20, "trainium3-ultraserver-gen2", 999_936 * 4).seconds


def test_efa_is_as_slow_everywhere_as_it_was_measured_to_be_and_the_answer_says_so() -> None:
    found = predict("broadcast", SMALL, "p5en.48xlarge", 16)
    assert found.latency == pytest.approx(predict("broadcast", SMALL, "p5.48xlarge", 16).latency)
    assert any("nic_latency of p5en.48xlarge is that of EFA" in doubt for doubt in found.doubts)
