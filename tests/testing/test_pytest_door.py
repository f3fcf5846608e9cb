"""The pytest door, each time by a pytest of its own: a fresh one where ranks are processes, else one that is forked."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks
from forked_pytest import run_forked

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A suite that has the door open."""
    pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    pytester.makeconftest('pytest_plugins = ["devices.testing.pytest"]')
    return pytester


BODIES = """
    import pytest
    import torch
    import torch.distributed as dist
    import devices

    @pytest.fixture(scope="module")
    def numbers():
        print("set up once")
        return [1.0, 2.0]

    @pytest.mark.ranks(3)
    def test_total(world, numbers):
        assert devices.all_reduce(torch.tensor(numbers)).tolist() == [3.0, 6.0]
        assert world.size == 3

    @pytest.mark.ranks(2, 4)
    @pytest.mark.parametrize("op", ["sum", "max"])
    def test_sizes(op, world):
        expected = world.size if op == "sum" else 1
        assert devices.all_reduce(torch.ones(()), op=op).item() == expected

    @pytest.mark.ranks(2)
    def test_without_world(tmp_path):
        assert dist.get_world_size() == 2
        (tmp_path / str(dist.get_rank())).touch()

    @pytest.mark.ranks(2)
    class TestInAClass:
        number = 5

        def test_method(self, world):
            assert devices.all_reduce(torch.tensor(self.number)).item() == 10

    @pytest.mark.ranks(2)
    def test_skips(world):
        pytest.skip("not today")

    @pytest.mark.ranks(2)
    def test_xfails(world):
        pytest.xfail("some day")

    @pytest.mark.xfail(raises=ZeroDivisionError, strict=True)
    def test_off_the_ranks():
        1 / 0
"""


@pytest.mark.parametrize("backend", [None, "cpu"])
def test_a_marked_test_runs_on_its_ranks(suite: pytest.Pytester, backend: str | None) -> None:
    suite.makepyfile(BODIES)
    if backend:
        result = suite.runpytest_subprocess("-v", "-rs", f"--devices-backend={backend}")
    else:
        result = run_forked(suite, "-v", "-rs")
    result.assert_outcomes(passed=7, skipped=1, xfailed=2)
    result.stdout.fnmatch_lines(
        [
            *(["devices: ranks are processes on backend 'cpu'"] if backend else []),
            "*::test_total PASSED*",
            "*::test_sizes[[]ranks2-sum[]] PASSED*",
            "*::test_sizes[[]ranks4-max[]] PASSED*",
            "*::TestInAClass::test_method PASSED*",
            "SKIPPED *: not today",
        ]
    )


FAILURES = """
    import pytest
    import torch
    import devices
    import helper

    @pytest.mark.ranks(4{options})
    def test_assert(world):
        number = world.rank
        print(f"number is {{number}}")
        if world.rank != 3:
            devices.barrier()
        assert number == 4

    @pytest.mark.ranks(2{options})
    def test_list(world):
        assert [1, world.size, 3] == [1, 5, 3], "with words"

    @pytest.mark.ranks(2{options})
    def test_error(world):
        if world.rank == 1:
            raise ValueError("no luck")
        devices.barrier()

    @pytest.mark.ranks(2{options})
    def test_fail(world):
        if world.rank == 1:
            pytest.fail("given up")
        devices.barrier()

    @pytest.mark.ranks(2{options})
    def test_in_a_helper(world):
        if world.rank == 1:
            helper.check(world.rank)
        devices.barrier()
"""
HELPER = """
    def check(number):
        assert number == 7
"""


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_a_failure_names_its_rank_and_tells_the_assertion_as_pytest_does(
    suite: pytest.Pytester, processes: bool, mode: str
) -> None:
    suite.makeconftest(
        'import pytest\npytest_plugins = ["devices.testing.pytest"]\npytest.register_assert_rewrite("helper")\n'
    )
    suite.makepyfile(helper=HELPER)
    folder = suite.mkpydir("within") if mode == "prepend" else suite.mkdir("within")
    source = FAILURES.format(options=", processes=True" if processes else "")
    (folder / "test_failing.py").write_text("\n".join(line.removeprefix("    ") for line in source.splitlines()))
    options = (f"--import-mode={mode}", "-o", "pythonpath=.")
    result = suite.runpytest_subprocess(*options) if processes else run_forked(suite, *options)
    result.assert_outcomes(failed=5)
    said = result.stdout.str()
    for told in (
        r"rank 3 of 4: assert 3 == 4",
        r"rank [01] of 2: (AssertionError: )?with words\n",
        r"assert \[1, 2, 3\] == \[1, 5, 3\]",
        r"At index 1 diff: 2 != 5",
        r"ValueError: no luck",
        r"Failed: given up",
        r"rank 1 of 2: assert 1 == 7",
        r">       assert number == 4",
        r"number is 3",
    ):
        assert re.search(told, said), told
    for frame in ("_process_child.py", "_processes.py", "testing/pytest.py", "_baton.py"):
        assert frame not in said
    # The place that an editor jumps to.
    assert "within/test_failing.py:13: AssertionError" in said
    if processes:
        assert "rank 1 of 2: ValueError: no luck" in said
        assert "    @pytest.mark.ranks(4, processes=True)\n    def test_assert(world):\n" in said
    else:
        assert "raised by rank 1 of 2" in said


def test_what_stands_in_a_mark_is_checked(suite: pytest.Pytester) -> None:
    for number, mark in enumerate(["()", "('4')", "(0)", "(2, sed=1)", "(2, processes=True, seed=1)"]):
        suite.makepyfile(**{f"test_{number}": f"import pytest\n@pytest.mark.ranks{mark}\ndef test_it(): ..."})
    result = run_forked(suite)
    result.assert_outcomes(errors=5)
    result.stdout.fnmatch_lines(
        [
            "*mark.ranks(): say on how many ranks, by one or more whole numbers, as in ranks(2, 8)",
            "*mark.ranks('4'): say on how many ranks, *",
            "*mark.ranks(0): say on how many ranks, *",
            "*mark.ranks(2, sed=1): there is no 'sed'; did you mean 'seed'[?]; known are processes, *",
            "*mark.ranks(2, processes=True, seed=1): seed is for ranks that are threads, not for processes",
        ]
    )


def test_what_cannot_run_on_ranks_is_refused(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import unittest
        import pytest
        from hypothesis import given, strategies

        def test_world_without_a_mark(world): ...

        @pytest.fixture
        def size(world):
            return world.size

        @pytest.mark.ranks(2)
        def test_world_in_a_fixture(size): ...

        @pytest.mark.ranks(2)
        class TestOfUnittest(unittest.TestCase):
            def test_it(self): ...

        @pytest.mark.ranks(2)
        @given(strategies.integers())
        def test_hypothesis(world, number): ...

        @pytest.mark.ranks(2, processes=True)
        def test_fixture_that_cannot_be_sent(world, request): ...
        """
    )
    result = run_forked(suite)
    result.assert_outcomes(errors=4, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*the test asks for `world`, but has no mark that says on how many: @pytest.mark.ranks(4)",
            "*world.size: fixtures are set up once, outside of the ranks, where there is no world*",
            "*not for the methods of a unittest.TestCase",
            "*hypothesis would draw other examples on each rank*",
            "*the fixture 'request', of type TopRequest, cannot be sent to a rank's process: *",
        ]
    )


def test_keywords_of_thread_ranks_are_passed_on(suite: pytest.Pytester) -> None:
    """To a stand-in for `run`, so that what it is given shows."""
    suite.makepyfile(
        """
        import pytest
        import devices.testing

        given = []

        @pytest.fixture(autouse=True)
        def stand_in(monkeypatch):
            monkeypatch.setattr(devices.testing, "run", lambda fn, **keywords: given.append(keywords))

        @pytest.mark.ranks(2)
        def test_plain(): ...

        @pytest.mark.ranks(2, 3, seed=4, schedules=5, parallel=True, timeout=6)
        def test_keywords(): ...

        @pytest.mark.ranks(2, target="mine")
        def test_own_target(): ...

        @pytest.mark.ranks(2, target=None)
        def test_no_target(): ...

        def test_what_was_given():
            more = dict(seed=4, schedules=5, parallel=True, timeout=6)
            assert given == [
                dict(ranks=2, **target),
                dict(ranks=2, **more, **target),
                dict(ranks=3, **more, **target),
                dict(ranks=2, target="mine"),
                dict(ranks=2),
            ]
        """
    )
    path = Path("test_keywords_of_thread_ranks_are_passed_on.py")
    text = path.read_text()
    path.write_text("target = {}\n" + text)
    run_forked(suite).assert_outcomes(passed=6)
    path.write_text('target = {"target": "trainium2"}\n' + text)
    result = run_forked(suite, "--devices-target=trainium2")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["devices: ranks are threads, as if on target 'trainium2'"])


def test_a_target_of_two_kinds_has_ranks_of_both(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.makepyfile("""
        import pytest
        import torch
        import devices

        @pytest.mark.ranks(4)
        def test_both(world):
            assert world.backend == ("trainium4 (speculative)" if world.rank < 2 else "rubin")
            assert devices.all_reduce(torch.tensor(1)).item() == 4
            assert "between them EFA" in devices.explain()

        @pytest.mark.ranks(4, assume={"mixed_domain": "one"})
        def test_one_domain():
            assert "one domain of nvlink-fusion (speculative)" in devices.explain()
    """)
    monkeypatch.setenv("DEVICES_ASSUME", "mixed_domain=two")
    result = run_forked(suite, "--devices-target=trainium4-nvlink-fusion")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["devices: ranks are threads, as if on target 'trainium4-nvlink-fusion' (speculative)"])


def test_a_target_is_not_for_processes_and_a_backend_not_for_a_target(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.ranks(2, target="trainium3")
        def test_of_a_target(): ...

        @pytest.mark.ranks(2, processes=True)
        def test_processes(): ...

        def test_fixture(process_ranks): ...
        """
    )
    result = run_forked(suite, "--devices-target=trainium2", "-rs", "-k", "not of_a_target")
    result.assert_outcomes(skipped=2, deselected=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED *: process ranks do not emulate a target, and --devices-target=trainium2 is given"]
    )
    result = suite.runpytest_subprocess("--devices-backend=cpu", "-rs")
    result.assert_outcomes(skipped=1, passed=2)
    result.stdout.fnmatch_lines(["SKIPPED *: is about target 'trainium3', not about backend 'cpu'"])
    both = run_forked(suite, "--devices-target=trainium2", "--devices-backend=cpu")
    assert both.ret == pytest.ExitCode.USAGE_ERROR
    both.stderr.fnmatch_lines(
        ["ERROR: --devices-target=trainium2 emulates and --devices-backend=cpu runs on real devices: give one of them"]
    )
    for option in ("--devices-backend=cpi", "--devices-target=trainium22"):
        unknown = run_forked(suite, option)
        assert unknown.ret == pytest.ExitCode.USAGE_ERROR
        unknown.stderr.fnmatch_lines([f"ERROR: {option}: no *; did you mean '*"])


def test_the_limits_of_a_target_hold_for_the_suite(suite: pytest.Pytester) -> None:
    """Trainium2 has worlds of 1, 2, 4, 8 and 16 ranks and of multiples of 32, and no 64-bit floats."""
    suite.makepyfile(
        """
        import pytest
        import torch
        import torch.distributed as dist
        from devices.errors import UnsupportedError

        @pytest.mark.ranks(3)
        def test_size(): ...

        @pytest.mark.ranks(3, target=None)
        def test_no_target(): ...

        @pytest.mark.ranks(4)
        def test_dtype():
            with pytest.raises(UnsupportedError):
                dist.all_reduce(torch.ones(2, dtype=torch.float64))

        @pytest.mark.xfail(raises=UnsupportedError, strict=True)
        @pytest.mark.ranks(4)
        def test_the_error_is_its_own():
            dist.all_reduce(torch.ones(2, dtype=torch.float64))
        """
    )
    result = run_forked(suite, "--devices-target=trainium2-ultraserver")
    result.assert_outcomes(passed=2, failed=1, xfailed=1)
    result.stdout.fnmatch_lines(["E  *UnsupportedError: trainium2-ultraserver refuses: a world of 3 ranks: *"])
    assert "_run.py" not in result.stdout.str()


def test_a_deadlock_is_told_and_so_is_its_place(suite: pytest.Pytester) -> None:
    path = suite.makepyfile(
        """
        import pytest
        import devices

        @pytest.mark.ranks(3)
        def test_it(world):
            if world.rank:
                devices.barrier()
        """
    )
    result = run_forked(suite)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Error: *", f"*rank 1 of 3 waits *{path.name}:7*"])
    assert "_run.py" not in result.stdout.str()


def test_a_backend_with_too_few_devices_skips_with_the_reason(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two backends of a plugin that is made for it: one is absent, one has two devices."""
    metadata = suite.mkdir("few-1.0.dist-info")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: few\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[devices]\nfew = few\n")
    suite.makepyfile(
        few="""
        from devices import Backend, Device, Probe, hookimpl

        class Absent(Backend):
            name = "absent"
            device_type = "cuda"

            def probe(self):
                return Probe(present=False, reason="no driver was found")

            def devices(self):
                return ()

            def capabilities(self, device):
                raise NotImplementedError

            def open(self, group):
                raise NotImplementedError

        class Two(Absent):
            name = "two"

            def probe(self):
                return Probe(present=True, reason="two cards")

            def devices(self):
                return (Device("two", "cuda", 0), Device("two", "cuda", 1))

        @hookimpl
        def devices_backend():
            return [Absent(), Two()]
        """,
        test_few="""
        import pytest

        @pytest.fixture
        def costly():
            raise AssertionError("fixtures of a test that cannot run are not set up")

        @pytest.mark.ranks(8)
        def test_eight(costly): ...

        def test_fixture(process_ranks):
            process_ranks(test_eight, 4)
        """,
    )
    monkeypatch.setenv("PYTHONPATH", str(suite.path), prepend=os.pathsep)
    for name, found in (("absent", "0: no driver was found"), ("two", "2: two cards")):
        result = run_forked(suite, f"--devices-backend={name}", "-rs")
        result.assert_outcomes(skipped=2)
        result.stdout.fnmatch_lines(
            [f"SKIPPED *: needs 8 {name} devices, found {found}", f"SKIPPED *: needs 4 {name} devices, found {found}"],
            consecutive=False,
        )


def test_the_fixture_runs_functions_of_the_test_module(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest
        import torch
        import devices
        from devices.errors import RankFailedError

        def total(world, number):
            return devices.all_reduce(torch.tensor(number)).item()

        def fails(world):
            numbers = {"a": world.size}
            assert numbers == {"a": 3}

        def test_total(process_ranks):
            assert process_ranks(total, 3, 5) == [15] * 3

        def test_fails(process_ranks):
            with pytest.raises(RankFailedError, match=r"rank [01] of 2: assert \\{'a': 2\\} == \\{'a': 3\\}") as caught:
                process_ranks(fails, 2)
            assert "{'a': 2} != {'a': 3}" in caught.value.traceback

        def test_fails_openly(process_ranks):
            process_ranks(fails, 2)
        """
    )
    result = suite.runpytest_subprocess()
    result.assert_outcomes(passed=2, failed=1)
    assert "_processes.py" not in result.stdout.str()


def test_warnings_are_errors_on_processes_where_they_are_here(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import warnings
        import pytest

        @pytest.mark.ranks(2, processes=True)
        def test_warns():
            warnings.warn("beware")

        @pytest.mark.filterwarnings("ignore:beware")
        @pytest.mark.ranks(2, processes=True)
        def test_warns_and_may():
            warnings.warn("beware")
        """
    )
    result = suite.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*UserWarning: beware*"])


def test_each_worker_of_xdist_has_a_server_that_ends_with_it(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.makepyfile(
        """
        import os
        from pathlib import Path
        import pytest
        import torch
        import devices

        @pytest.mark.parametrize("number", range(6))
        @pytest.mark.ranks(2, processes=True)
        def test_it(world, number):
            assert devices.all_reduce(torch.tensor(1)).item() == 2
            (Path(os.environ["NOTES"]) / f"{os.environ['PYTEST_XDIST_WORKER']}-{os.getppid()}").touch()
        """
    )
    notes = suite.mkdir("notes")
    monkeypatch.setenv("NOTES", str(notes))
    result = suite.runpytest_subprocess("-n", "2")
    result.assert_outcomes(passed=6)
    found = [path.name.split("-") for path in notes.iterdir()]
    assert sorted(worker for worker, _ in found) == ["gw0", "gw1"]
    servers = {Path(f"/proc/{server}") for _, server in found}
    assert len(servers) == 2
    deadline = time.monotonic() + 5
    while any(server.exists() for server in servers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(server.exists() for server in servers)


def test_help_names_the_mark_and_the_options(suite: pytest.Pytester) -> None:
    run_forked(suite, "--markers").stdout.fnmatch_lines(["@pytest.mark.ranks(*sizes, *"])
    run_forked(suite, "--help").stdout.fnmatch_lines(["*--devices-target=NAME*", "*--devices-backend=NAME*"])


def test_the_document_runs(suite: pytest.Pytester) -> None:
    document = [block for block in blocks(ROOT / "docs" / "testing.md") if block.file]
    assert [block.file for block in document] == ["conftest.py", "test_total.py", "test_processes.py"]
    for block in document:
        (suite.path / str(block.file)).write_text(block.text)
    result = suite.runpytest_subprocess("-v")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["*::test_extremes[[]ranks2-min[]] *", "*::test_extremes[[]ranks4-max[]] *"])
