"""`devices env`: what a backend's ranks are to be started with; and what `devices doctor` says of contradictions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

from devices import Variable
from devices.__main__ import main
from devices_cpu.launch import contradictions, default_interface, interfaces, variables

SAYING = """
from devices import Variable
from devices.errors import UnsupportedError


def launch_environment(self, ranks=None, local_rank=None):
    if ranks == 7:
        raise UnsupportedError("7 ranks, and 4 toys")
    if local_rank is None:
        return [Variable("TOY_MODE", "it's fast", "toys are slow otherwise")]
    return [Variable("TOY_PART", str(local_rank), "which part is whose")]


Throwaway.launch_environment = launch_environment
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_it_prints_lines_for_a_shell_each_with_its_reason(site: Site) -> None:
    site.add("toy", PREAMBLE + SAYING + GOOD_HOOK)
    done = site.run("-m", "devices", "env", "--backend", "toy", "--ranks", "6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "# backend toy: asked for by name",
        "",
        "# toys are slow otherwise",
        "export TOY_MODE='it'\"'\"'s fast'",
        "",
        '# and each rank has variables of its own, which torchrun does not set: let the ranks run `eval "$(devices env',
        '# --local-rank $LOCAL_RANK)"` before the program',
        "#   local rank 0: TOY_PART=0",
        "#   local rank 1: TOY_PART=1",
        "#   local rank 2: TOY_PART=2",
        "#   ...",
        "#   local rank 5: TOY_PART=5",
    ]


def test_a_shell_takes_what_it_prints_for_one_rank(site: Site) -> None:
    site.add("toy", PREAMBLE + SAYING + GOOD_HOOK)
    script = site.run("-m", "devices", "env", "--backend", "toy", "--local-rank", "3").stdout
    done = subprocess.run(
        ["sh", "-c", f'{script}\necho "$TOY_MODE, $TOY_PART"'], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "it's fast, 3\n"


def test_what_is_a_ranks_own_narrows_what_all_have(site: Site) -> None:
    saying = SAYING.replace('"TOY_PART", str(local_rank)', '"TOY_MODE", "own"')
    site.add("toy", PREAMBLE + saying + GOOD_HOOK)
    script = site.run("-m", "devices", "env", "--backend", "toy", "--local-rank", "3").stdout
    assert [line for line in script.splitlines() if line.startswith("export")] == ["export TOY_MODE=own"]


def test_json_has_each_ranks_own_variables(site: Site) -> None:
    site.add("toy", PREAMBLE + SAYING + GOOD_HOOK)
    found = json.loads(site.run("-m", "devices", "env", "--backend", "toy", "--ranks", "2", "--json").stdout)
    assert (found["schema"], found["backend"], found["local_rank"]) == (1, "toy", None)
    assert [variable["name"] for variable in found["variables"]] == ["TOY_MODE"]
    assert [each["variables"][0]["value"] for each in found["of_ranks"]] == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--backend", "toy", "--ranks", "7"], "devices env: 7 ranks, and 4 toys"),
        (["--backend", "toi"], "devices env: no plugin provides a backend named 'toi'; did you mean 'toy'?"),
        (["--ranks", "0"], "devices env: --ranks 0: there is at least one rank"),
        (["--ranks", "2", "--local-rank", "2"], "devices env: --local-rank 2: ranks on a machine are 0 to 1"),
        (["--local-rank", "-1"], "devices env: --local-rank -1: ranks on a machine are 0 to"),
    ],
)
def test_what_cannot_be_said_is_one_line_on_stderr(site: Site, arguments: list[str], told: str) -> None:
    site.add("toy", PREAMBLE + SAYING + GOOD_HOOK)
    done = site.run("-m", "devices", "env", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(told)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise OSError('no bus')", "raised OSError: no bus"),
        ("return ['A=1']", "gave 'A=1', which is no devices.Variable"),
        ("return [Variable('A B', '1')]", "a name is a word"),
        ("return [Variable('A', 1)]", "a name is a word"),
        ("return [Variable('A', '1\\n2')]", "its value and reason one line of text"),
        ("return [Variable('A', '1'), Variable('A', '2')]", "gave A twice"),
        ("return 3", "raised TypeError"),
        ("return ()\nThrowaway.local_ranks = lambda self: -1", "asking how many ranks a host has gave -1"),
        ("return ()\nThrowaway.local_ranks = lambda self: 'many'", "asking how many ranks a host has gave 'many'"),
        ("return ()\nThrowaway.local_ranks = lambda self: 1 / 0", "raised ZeroDivisionError"),
    ],
)
def test_a_plugin_that_says_what_is_no_variable_is_at_fault(site: Site, body: str, told: str) -> None:
    hook = f"\nfrom devices import Variable\ndef say(self, ranks=None, local_rank=None):\n    {body}\n"
    site.add("toy", PREAMBLE + hook + "Throwaway.launch_environment = say" + GOOD_HOOK)
    done = site.run("-m", "devices", "env", "--backend", "toy")
    assert done.returncode == 2
    assert told in done.stderr


def test_a_backend_that_is_absent_can_be_asked_for_by_name_and_says_so(site: Site) -> None:
    gone = "\nThrowaway.probe = lambda self: Probe(False, 'left the bus')"
    site.add("toy", PREAMBLE + SAYING + gone + GOOD_HOOK)
    done = site.run("-m", "devices", "env", "--backend", "toy", "--local-rank", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# backend toy: asked for by name; it is absent here: left the bus\n")


def test_a_backend_that_asks_for_nothing_says_so(site: Site) -> None:
    site.add("toy", PREAMBLE + GOOD_HOOK)
    done = site.run("-m", "devices", "env", "--backend", "toy")
    assert done.stdout.splitlines() == ["# backend toy: asked for by name", "", "# it asks for no variable"]


# On CPUs.


def test_this_machine_is_told_how_many_threads_a_rank_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--backend", "cpu", "--ranks", "1"]) == 0
    assert f"export OMP_NUM_THREADS={len(os.sched_getaffinity(0))}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ranks", "environment", "shares"),
    [(1, {}, 1), (2, {}, 2), (10**6, {}, 10**6), (None, {}, 1), (None, {"LOCAL_WORLD_SIZE": "2"}, 2)],
)
def test_threads_are_shared_out_and_a_rank_has_at_least_one(
    ranks: int | None, environment: dict[str, str], shares: int
) -> None:
    [threads, *_] = variables(ranks, environment)
    assert (threads.name, threads.value) == ("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // shares)))


def test_gloo_is_given_the_interface_of_the_default_route_where_there_are_several(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    names = interfaces()
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    routes.write_text(
        f"{head}other0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        f"{names[0] if names else 'eth0'}\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    assert default_interface(routes) == (names[0] if names else "eth0")
    found = {variable.name: variable.value for variable in variables(1, {}, routes)}
    assert found.get("GLOO_SOCKET_IFNAME") == (names[0] if len(names) > 1 else None)


def test_without_a_default_route_no_interface_is_chosen(tmp_path: Path) -> None:
    assert default_interface(tmp_path / "none") == ""
    assert [variable.name for variable in variables(1, {}, tmp_path / "none")] == ["OMP_NUM_THREADS"]


def test_an_interface_that_is_not_there_is_a_contradiction() -> None:
    assert contradictions({}) == []
    assert contradictions({"GLOO_SOCKET_IFNAME": "lo"}) == []
    [told] = contradictions({"GLOO_SOCKET_IFNAME": "lo,nowhere9"})
    assert told.startswith("GLOO_SOCKET_IFNAME=lo,nowhere9: this host has no interface 'nowhere9'; there are lo")


# What `devices doctor` says of contradictions.


@pytest.mark.slow
def test_doctor_lists_contradictions_of_present_and_absent_backends_by_the_backends_name(site: Site) -> None:
    says = "\nThrowaway.contradictions = lambda self: ['TOY=1 and TOY_MODE=2 cannot both be']"
    gone = "\nThrowaway.name = 'gone'\nThrowaway.probe = lambda self: Probe(False, 'left the bus')"
    site.add("toy", PREAMBLE + says + GOOD_HOOK)
    site.add("gone", PREAMBLE + says + gone + GOOD_HOOK)
    status, report = site.doctor(GLOO_SOCKET_IFNAME="nowhere9")
    assert status == 0
    assert "toy: TOY=1 and TOY_MODE=2 cannot both be" in report["problems"]
    assert "gone: TOY=1 and TOY_MODE=2 cannot both be" in report["problems"]
    assert any(each.startswith("cpu: GLOO_SOCKET_IFNAME=nowhere9") for each in report["problems"])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise OSError('no bus')", "looking for settings that contradict each other raised OSError: no bus"),
        ("return ['']", "looking for settings that contradict each other gave '', which is no sentence"),
        ("import os; os._exit(3)", "looking for settings that contradict each other's process exited with status 3"),
    ],
)
def test_a_plugin_that_cannot_look_for_contradictions_is_a_problem_of_doctor(site: Site, body: str, told: str) -> None:
    hook = f"\ndef look(self):\n    {body}\nThrowaway.contradictions = look"
    site.add("toy", PREAMBLE + hook + GOOD_HOOK)
    said = site.python("from devices import _registry; print(*_registry.contradictions())")
    assert told in said
    assert "'toy'" in said


def test_a_variable_is_plain_data() -> None:
    assert Variable("A", "1") == Variable("A", "1", "")
