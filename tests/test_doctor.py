from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

import devices
from devices.__main__ import main
from devices.command import doctor_view

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def backends_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {backend["name"]: backend for plugin in report["plugins"] for backend in plugin["backends"]}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Return what the installed command says of this machine."""
    command = Path(sys.executable).with_name("devices")
    done = subprocess.run([command, "doctor", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr or done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_doctor_says_what_is_here(report: dict[str, Any]) -> None:
    assert report["schema"] == 1
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["devices"] == devices.__version__
    assert report["torch"] == {"imports": True, "registered": True, "error": None}
    assert report["auto"]["backend"] == "cpu"
    assert report["cpu"]["works"] is True
    assert report["problems"] == []
    cuda = backends_of(report)["cuda"]
    assert cuda["reason"]
    assert cuda["verified"].startswith("not run on hardware")
    cpu = backends_of(report)["cpu"]
    assert cpu["present"]
    assert cpu["verified"]
    assert cpu["devices"][0]["label"] == "cpu:0"
    assert cpu["devices"][0]["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_doctor_fails_when_the_cpu_backend_is_not_there(site: Site) -> None:
    status, report = site.doctor(DEVICES_PLUGINS="cup")
    assert status == 1
    assert not report["cpu"]["works"]
    [problem] = report["problems"]
    assert problem.startswith("DEVICES_PLUGINS names 'cup', but no such plugin is installed; did you mean 'cpu'?;")


def test_doctor_shows_the_switches_that_are_set_and_what_auto_then_means(site: Site) -> None:
    status, report = site.doctor(DEVICES_BACKEND="cpu", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert status == 0
    assert {switch["name"] for switch in report["switches"]} == {"DEVICES_BACKEND", "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    assert report["auto"] == {"backend": "cpu", "reason": "DEVICES_BACKEND=cpu asked for it"}
    assert report["problems"] == []


def test_doctor_lists_a_backend_that_was_asked_for_and_is_not_there(site: Site) -> None:
    _, report = site.doctor(DEVICES_BACKEND="abacus")
    assert report["auto"]["backend"] is None
    assert report["problems"] == [report["auto"]["reason"]]
    assert "DEVICES_BACKEND=abacus: no plugin provides a backend named 'abacus'" in report["problems"][0]


def test_doctor_survives_a_torch_that_cannot_be_imported(site: Site) -> None:
    (site.folder / "torch.py").write_text("raise OSError('libtorch.so: not found')")
    status, report = site.doctor()
    assert status == 1
    assert "torch cannot be imported: OSError: libtorch.so: not found" in report["problems"]


def test_entry_points_that_cannot_be_read_are_a_problem_of_their_distribution_and_the_rest_are_there(
    site: Site,
) -> None:
    site.add_entry_point("odd", "x\nthis is no entry point")
    site.add("toy", PREAMBLE + GOOD_HOOK)
    _, report = site.doctor()
    assert set(backends_of(report)) > {"cpu", "toy"}
    [problem] = [line for line in report["problems"] if line.startswith("the entry points of some-odd 1.2")]
    assert "cannot be read" in problem
    assert "install it anew, or uninstall it" in problem


def test_a_pipe_gets_the_same_words_without_colour_or_padding(site: Site) -> None:
    site.add("broken", "raise OSError('[red]no bus[/red] \\N{SNOWMAN}')")
    done = site.run("-m", "devices", "doctor", PYTHONIOENCODING="ascii", COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() and len(line) <= 60 for line in done.stdout.splitlines())
    words = " ".join(done.stdout.split())
    assert r"OSError: [red]no bus[/red] \u2603" in words
    for title in ("Versions", "Plugins", "Devices", "Choice", "Has run on", "Problems"):
        assert title in done.stdout.splitlines()


def test_a_terminal_gets_colour(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    doctor_view.show(report, sys.stdout)
    assert "\x1b[" in capsys.readouterr().out


def test_a_reader_that_leaves_early_gets_no_traceback(site: Site) -> None:
    command = [sys.executable, "-m", "devices", "doctor", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as doctor:
        assert doctor.stdout is not None
        assert doctor.stderr is not None
        doctor.stdout.close()
        assert doctor.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["docter"], "there is no command 'docter'; did you mean 'doctor'?"),
        (["doctor", "--jsno"], "there is no option '--jsno'; did you mean '--json'?"),
        (["doctor", "now"], "there is no argument 'now'"),
        (["train"], "there is no command 'train'"),
        (["topo", "--targets", "h100"], "there is no option '--targets'\n"),  # plan has one
        (["--json", "doctor"], "'--json' is an option of 'doctor'; write it after that\n"),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


MODEL = "plan train --targets h100 --layers 2 --hidden 8 --heads 4 --sequence 16"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("check --ranks 0 program.py", "--ranks 0: a program runs on one rank at least"),
        ("check --timeout nan program.py", "--timeout nan: it is a number of seconds above 0"),
        ("check --timeout inf program.py", "--timeout inf: it is a number of seconds above 0"),
        (f"{MODEL} --parameters inf", "`parameters` of a model is a number above 0, got inf"),
        (f"{MODEL} --parameters 1e9 --batch 8,0", "--batch 0: there is at least one sequence at a time"),
        (f"{MODEL} --parameters 1e9 --kv-heads 3", "kv_heads=3 does not divide the 4 heads"),
        (f"{MODEL} --parameters 1e9 --price -1", "`price` of a chip is a number above 0, got -1.0"),
        ("calibrate --into .", "--into .: that is a folder; say the file"),
    ],
)
def test_a_number_that_cannot_be_is_told_in_one_line(
    command: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"devices {command.split()[0]}: ")
    assert told in said
    assert len(said.splitlines()) == 1


def test_version_prints_the_version_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"devices {devices.__version__}\n"


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "doctor" in capsys.readouterr().out
