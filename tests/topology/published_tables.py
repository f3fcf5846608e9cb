"""Published measurements of collectives, as their sources print them, and the machines that they were taken on."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from devices import catalogue
from devices.topology import Machine
from devices.topology.machine import machine_of

HERE = Path(__file__).parent / "published"


def of(name: str) -> Machine:
    """Return a machine of the catalogue."""
    found = machine_of(catalogue.load(name))
    assert found.software == "nccl"
    return found


# Of no network that is known: tests that need one say so.
HGX_H200 = replace(of("hgx-h200"), network=50e9)
DGX_A100 = of("dgx-a100")
GB200, GB300 = of("gb200-nvl72"), of("gb300-nvl72")
TWO_RACKS = replace(GB300, name="64 of an nvl72", chips_per_domain=64)


@dataclass(frozen=True)
class Row:
    """One line of a table, and how it is asked for."""

    table: str
    verb: str
    ranks: int
    size: int
    seconds: float
    on: str | Machine
    one_process: bool
    algorithm: str


MACHINES: dict[str, str | Machine] = {
    "h100_8x_p5_allreduce_aws": "p5.48xlarge",
    "h100_16x_p5_efa_allreduce_aws": "p5.48xlarge",
    "h200_8x_collectives_stas00": HGX_H200,
    "h200_gpu_count_sweep_stas00": HGX_H200,
    "a100_8x_allreduce_stas00": DGX_A100,
    "gb200_72x_1rack_allreduce_coreweave": GB200,
    "gb300_4-128_allreduce_alltoall_oci": GB300,
    "neuron_r16_allreduce_algo_doc": "trn2.48xlarge",
    "neuron_r64_2inst_allreduce_doc": "trn1.32xlarge",
    "trn1_64r_2x_nccom_allreduce_aws": "trn1.32xlarge",
}

NOISE = "trn1_64r_2x_nccom_allreduce_aws"
"""Its own notes call it an example of noise: from 64 to 1019 us for a few bytes, up and down."""


def rows(table: str) -> Iterator[Row]:
    """Yield the rows of a table, but those for which NCCL was made to take another algorithm than its own choice."""
    lines = (HERE / f"{table}.csv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        if row["collective"] == "all_reduce" and row["algo"].startswith("Ring"):
            continue
        ranks = int(row["n_ranks"])
        yield Row(
            table=table,
            verb=row["collective"],
            ranks=ranks,
            size=int(row["size_bytes"]),
            seconds=float(row["time_us"]) * 1e-6,
            on=TWO_RACKS if ranks == 128 else MACHINES[table],
            # nccl-tests was given -g 8: one process, and eight GPUs.
            one_process=table.startswith("a100"),
            algorithm=row["algo"],
        )
