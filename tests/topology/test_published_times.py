from __future__ import annotations

import statistics

import pytest
from published_tables import HERE, MACHINES, NOISE, Row, rows

from devices.topology import predict

MEGABYTE = 1 << 20


def error(row: Row) -> float:
    found = predict(row.verb, row.size, row.on, row.ranks, one_process=row.one_process)
    return abs(found.seconds.expected / row.seconds - 1)


def is_inside(row: Row) -> bool:
    found = predict(row.verb, row.size, row.on, row.ranks, one_process=row.one_process)
    return found.seconds.low <= row.seconds <= found.seconds.high


def test_every_table_that_is_there_is_asked_of() -> None:
    assert sorted(MACHINES) == sorted(file.stem for file in HERE.glob("*.csv"))


@pytest.mark.parametrize("table", sorted(MACHINES.keys() - {NOISE}))
def test_half_of_a_tables_rows_are_within_10_percent_from_1_mb_on_and_25_below(table: str) -> None:
    found = list(rows(table))
    large = [error(row) for row in found if row.size >= MEGABYTE]
    small = [error(row) for row in found if row.size < MEGABYTE]
    assert large
    assert statistics.median(large) <= 0.10
    assert not small or statistics.median(small) <= 0.25


def test_so_are_half_of_the_rows_of_all_tables_together_the_noisy_one_too() -> None:
    found = [row for table in MACHINES for row in rows(table)]
    assert len(found) > 200
    assert statistics.median(error(row) for row in found if row.size >= MEGABYTE) <= 0.10
    assert statistics.median(error(row) for row in found if row.size < MEGABYTE) <= 0.25


def test_nine_of_ten_measurements_lie_in_the_interval() -> None:
    found = [row for table in MACHINES for row in rows(table)]
    assert sum(map(is_inside, found)) >= 0.9 * len(found)


@pytest.mark.parametrize("table", ["neuron_r16_allreduce_algo_doc", "h200_8x_collectives_stas00"])
def test_the_algorithm_is_the_one_that_was_printed(table: str) -> None:
    for row in rows(table):
        found = predict(row.verb, row.size, row.on, row.ranks).algorithm
        assert found.partition(",")[0].lower() == row.algorithm.lower()


@pytest.mark.parametrize(("ranks", "algorithm"), [(4, "ring, Simple"), (5, "NVLS"), (8, "NVLS")])
def test_nccl_takes_nvls_from_five_h200_on(ranks: int, algorithm: str) -> None:
    assert predict("all_reduce", 8 << 30, MACHINES["h200_gpu_count_sweep_stas00"], ranks).algorithm == algorithm
