"""The outside judge: torch's own suite of distributed tests, run over our process group and over gloo. `make judge`.

What is run is `torch/testing/_internal/distributed/distributed_test.py` as it ships in torch's wheel, nothing of it
changed or left out, on 2, 3 and 4 ranks. What is asked: every test that passes over gloo passes over "devices", none
fails, and each exception is listed below with its reason.

The suite picks its tests by the backend's name. It is imported as if the backend under test were gloo, so that it picks
gloo's tests, and from then on opens "devices" wherever it would open gloo. What it skipped it is then asked for again
as if the backend were MPI: that adds all-to-all on CPU tensors, and the tests on a group of some of the ranks, which it
otherwise wants 8 ranks for. All of that is done to both process groups alike. The calls that reach the process group's
methods are counted in each rank, and a test that reaches gloo's has to reach ours.

One thing is not asked of us: where a test looks for "gloo:all_reduce" and the like in a profile, it does so for the
backends on a list of torch's own, on which a new name is not; the rest of such a test runs.

How to read the tables: `passed` of which `reached` called the process group from Python or through ours from C++;
`skipped` is followed by the reasons, which for "devices" are only those that gloo did not have too.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

RANKS = (2, 3, 4)
GROUPS = ("gloo", "devices")
SECONDS_PER_RUN = 900

# What a group cannot pass: the test, what it then says, and why.
BY_NAME = (
    "monitored_barrier is only implemented for GLOO backend",
    (
        "torch.distributed.monitored_barrier refuses every backend that is not named gloo; our group's own method "
        "monitored_barrier is judged by test_monitored_barrier_gloo_rank_0_timeout"
    ),
)
EQUAL_SIZES = ("ProcessGroupGloo::alltoall: invalid tensor size", "gloo's alltoall takes tensors of one size only")
LISTED = {
    "devices": {
        "test_monitored_barrier_gloo": BY_NAME,
        "test_monitored_barrier_gloo_subgroup": BY_NAME,
    },
    "gloo": {
        "test_all_to_all": EQUAL_SIZES,
        "test_all_to_all_complex": EQUAL_SIZES,
        "test_all_to_all_full_group": EQUAL_SIZES,
        "test_all_to_all_group": EQUAL_SIZES,
    },
}

pytestmark = pytest.mark.timeout(4 * SECONDS_PER_RUN)
on_each_number_of_ranks = pytest.mark.parametrize("ranks", RANKS)


@functools.cache
def judged(group: str, ranks: int) -> dict[str, dict[str, Any]]:
    """Return what became of each test, by name; a listed failure counts as skipped."""
    records = run_suite(group, ranks, "gloo")
    skipped = [name for name, record in records.items() if record["outcome"] == "skipped"]
    for name, record in run_suite(group, ranks, "mpi", *skipped).items():
        if record["outcome"] != "skipped":
            records[name] = record
    for name, (says, reason) in LISTED[group].items():
        if records[name]["outcome"] == "failed" and says in records[name]["reason"]:
            records[name].update(outcome="skipped", reason=reason)
    return records


def run_suite(group: str, ranks: int, decide_as: str, *tests: str) -> dict[str, dict[str, Any]]:
    script = Path(__file__).with_name("torch_suite.py")
    arguments = ["--group", group, "--ranks", str(ranks), "--decide-as", decide_as, *tests]
    run = subprocess.Popen(
        [sys.executable, script, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        printed, errors = run.communicate(timeout=SECONDS_PER_RUN)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, f"torch_suite.py {' '.join(arguments)}:\n{errors}"
    return {record["test"]: record for record in map(json.loads, printed.splitlines())}


def names(records: dict[str, dict[str, Any]], outcome: str) -> set[str]:
    return {name for name, record in records.items() if record["outcome"] == outcome}


def reached(records: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name in names(records, "passed") if records[name]["calls"]}


def table(group: str, ranks: int) -> str:
    records = judged(group, ranks)
    calls = sum((Counter(record["calls"]) for record in records.values()), Counter[str]())
    lines = [
        "",
        (
            f"{group} on {ranks} ranks: {len(records)} tests, {len(names(records, 'passed'))} passed, of which "
            f"{len(reached(records))} reached the group, {len(names(records, 'failed'))} failed, "
            f"{len(names(records, 'skipped'))} skipped"
        ),
        "  calls: " + ", ".join(f"{verb} {count}" for verb, count in calls.most_common()),
    ]
    reasons: dict[str, list[str]] = {}
    for name in sorted(names(records, "skipped")):
        reason = records[name]["reason"]
        if group == "gloo" or reason != judged("gloo", ranks)[name]["reason"]:
            reasons.setdefault(reason, []).append(name)
    for reason, tests in sorted(reasons.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(tests[:3]) + (", ..." if len(tests) > 3 else "")
        lines.append(f"  skipped {len(tests):3}: {reason}  [{shown}]")
    return "\n".join(lines)


@on_each_number_of_ranks
@pytest.mark.parametrize("group", GROUPS)
def test_no_test_fails_that_is_not_listed_and_each_skip_has_its_reason(
    group: str, ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    records = judged(group, ranks)
    with capsys.disabled():
        print(table(group, ranks))
    failed = [f"{name}:\n{records[name]['reason']}\n{records[name]['printed']}" for name in names(records, "failed")]
    assert not failed, "\n".join(failed)
    assert not [name for name in names(records, "skipped") if not records[name]["reason"].strip()]


@on_each_number_of_ranks
def test_devices_passes_all_that_gloo_passes_except_what_is_listed(ranks: int) -> None:
    gloo, ours = judged("gloo", ranks), judged("devices", ranks)
    assert names(gloo, "passed") - names(ours, "passed") == set(LISTED["devices"])
    assert names(ours, "passed") - names(gloo, "passed") == {
        name for name in LISTED["gloo"] if gloo[name]["reason"] == EQUAL_SIZES[1]
    }


@on_each_number_of_ranks
def test_each_test_that_reaches_gloo_reaches_our_group(ranks: int) -> None:
    through_gloo, through_ours = reached(judged("gloo", ranks)), reached(judged("devices", ranks))
    assert len(through_ours) >= 80
    assert through_gloo - through_ours == set(LISTED["devices"])
