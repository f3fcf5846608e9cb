"""Runs torch's own suite of distributed tests over one process group; prints one JSON object per test.

    python tests/judge/torch_suite.py --group devices --ranks 2 [--decide-as mpi] [test ...]

The suite reads its backend and its world size when it is imported, so one run is one process group on one number of
ranks. As in torch's own runs every test has processes and a process group of its own. Here they are forked from a
process that has imported torch, instead of importing it anew, and four tests run side by side: half a minute for what
takes half an hour otherwise.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

# A process group's methods that communicate.
VERBS = [
    "_allgather_base",
    "_reduce_scatter_base",
    "all_gather_single",
    "all_gather_single_coalesced",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "monitored_barrier",
    "recv",
    "recv_anysource",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "scatter",
    "send",
]

SECONDS_PER_TEST = 120

imported: type[unittest.TestCase]


class Name(str):
    """A process group's name that also equals the name of the backend whose tests it is to take."""

    decided_as: str

    def __eq__(self, other: object) -> bool:
        return other == self.decided_as or str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def import_suite(group: str, ranks: int, decided_as: str) -> type[unittest.TestCase]:
    """Return the suite's tests as one class that opens `group`, of the tests that are there for `decided_as`."""
    os.environ.update(
        BACKEND=decided_as,
        WORLD_SIZE=str(ranks),
        INIT_METHOD="file://set anew for each test",
        DISTRIBUTED_TESTS_DEFAULT_TIMEOUT=str(SECONDS_PER_TEST),
        # The CPU is judged, on every machine.
        CUDA_VISIBLE_DEVICES="",
        DEVICES_BACKEND="cpu",
        OMP_NUM_THREADS="1",
    )
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed import distributed_test as suite

    if group == "devices":
        importlib.import_module("devices.c10d.create")  # once, instead of in every rank of every test
    # The tests were chosen for `decided_as` while the suite was imported; what they open from here on is `group`.
    suite.BACKEND = Name(group)
    suite.BACKEND.decided_as = decided_as
    # Tests on the group of ranks 1 and 2 say that they need 8 ranks unless the backend is MPI; they need 3.
    os.environ["BACKEND"] = decided_as if ranks >= 3 else "gloo"

    class Suite(suite.TestDistBackend, suite.DistributedTest._DistTestBase):
        skip_reason = ""

        def setUp(self) -> None:
            super().setUp()
            self._start_processes(torch.multiprocessing.get_context("fork").Process)

        @classmethod
        def _run(cls, rank: int, test_name: str, file_name: str, pipe: Any, **kwargs: Any) -> None:
            torch.set_num_threads(1)  # a forked process must not use the threads that stayed with its parent
            suite.INIT_METHOD = os.environ["INIT_METHOD"]  # what a spawned rank reads when it imports the suite
            calls = count_calls(dist, group)
            try:
                super()._run(rank, test_name, file_name, pipe, **kwargs)
            finally:
                notes = {"calls": calls, "skip": cls.skip_reason}
                Path(os.environ["TEMP_DIR"], f"notes{rank}").write_text(json.dumps(notes))

        def run_test(self, test_name: str, parent_pipe: Any) -> None:
            test = getattr(self, test_name)

            def note_why_it_skips() -> None:
                try:
                    test()
                except unittest.SkipTest as skip:
                    type(self).skip_reason = str(skip)
                    raise

            setattr(self, test_name, note_why_it_skips)
            super().run_test(test_name, parent_pipe)

        # torch's tests of all_reduce work out what should come of it and then compare nothing: what stays behind here
        # is compared with what they worked out.
        all_reduced: Any = None

        def _test_all_reduce_helper(
            self, group: Any, group_id: Any, rank: int, op: Any, master: Any, worker: Any, expected: Any, *args: Any,
            **kwargs: Any,
        ) -> None:  # fmt: skip
            self.all_reduced = expected
            super()._test_all_reduce_helper(group, group_id, rank, op, master, worker, expected, *args, **kwargs)
            self.all_reduced = None

        def call_dist_op(self, title: str, is_async: bool, op: Any, *args: Any, **kwargs: Any) -> None:
            super().call_dist_op(title, is_async, op, *args, **kwargs)
            if self.all_reduced is not None:
                self.assertEqual(args[0], torch.full_like(args[0], self.all_reduced))  # noqa: PT009

        def tearDown(self) -> None:
            directory = Path(os.environ["TEMP_DIR"])
            self.notes = [json.loads(path.read_text()) for path in sorted(directory.glob("notes*"))]
            super().tearDown()

    return Suite


def count_calls(dist: Any, group: str) -> dict[str, int]:
    """Return a count, kept from now on, of this process's calls of the verbs of the class that `group` is made of."""
    calls: dict[str, int] = {}

    def counted(name: str, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return method(*args, **kwargs)

        return call

    def watch(kind: type) -> None:
        for name in VERBS:
            if name in vars(kind):
                setattr(kind, name, counted(name, getattr(kind, name)))

    if group == "gloo":
        watch(dist.ProcessGroup)
        return calls
    plugin, watched = dist.Backend._plugins[group.upper()], set[type]()

    def create(*args: Any) -> Any:
        made = plugin.creator_fn(*args)
        if type(made) not in watched and type(made) is not dist.ProcessGroup:  # that would be a group of torch's own
            watched.add(type(made))
            watch(type(made))
        return made

    dist.Backend._plugins[group.upper()] = plugin._replace(creator_fn=create)
    return calls


class Outcome(unittest.TestResult):
    """What became of one test, and why."""

    outcome, reason = "passed", ""

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.outcome, self.reason = "failed", self.failures[-1][1]

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.outcome, self.reason = "failed", self.errors[-1][1]

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcome, self.reason = "skipped", reason


def run_one(name: str) -> dict[str, Any]:
    """Run one test of `imported`, which a forked worker has from its parent, and return what is to be known of it."""
    test, result, start = imported(name), Outcome(), time.monotonic()
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        test.run(result)
        log.seek(0)
        printed = log.read().decode(errors="replace")
    notes: list[dict[str, Any]] = getattr(test, "notes", [])
    reasons = [note["skip"] for note in notes if note["skip"]]
    calls: dict[str, int] = {}
    for note in notes:
        for verb, count in note["calls"].items():
            calls[verb] = calls.get(verb, 0) + count
    return {
        "test": name,
        "outcome": result.outcome,
        "reason": reasons[0] if result.outcome == "skipped" and reasons else result.reason,
        "printed": printed[-4000:] if result.outcome == "failed" else "",
        "calls": calls,
        "seconds": round(time.monotonic() - start, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", required=True, help="the process group's name: gloo, devices")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--decide-as", choices=("gloo", "mpi"), default="gloo", help="whose tests to run")
    parser.add_argument("--jobs", type=int, default=4, help="how many tests run side by side")
    parser.add_argument("tests", nargs="*")
    arguments = parser.parse_args()
    global imported
    imported = import_suite(arguments.group, arguments.ranks, arguments.decide_as)
    names = arguments.tests or unittest.TestLoader().getTestCaseNames(imported)
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("fork")) as workers:
        for future in concurrent.futures.as_completed([workers.submit(run_one, name) for name in names]):
            print(json.dumps(future.result()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
