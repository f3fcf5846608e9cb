"""The targets of Trainium4: announced multiples, what follows from them, and nothing else; by name alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import devices
import devices.testing
from devices import catalogue
from devices.errors import BackendUnavailableError

TARGETS = ("trainium4", "trainium4-nvlink-fusion")


def test_what_is_announced_is_so_many_times_a_trainium3() -> None:
    chip = catalogue.load("trainium4")
    claims = {each.of: (each.than, each.figure.value, each.figure.date, each.figure.status) for each in chip.claims}
    assert claims == {
        "fp4": ("trainium3", 6, "2025-12-02", "announced"),
        "fp8": ("trainium3", 3, "2025-12-02", "announced"),
        "memory_bandwidth": ("trainium3", 4, "2025-12-02", "announced"),
        "memory": ("trainium3", 2, "2026-02-05", "announced"),
    }


def test_what_follows_by_arithmetic_is_inferred_and_the_rest_is_not_known() -> None:
    chip = catalogue.load("trainium4")
    known = {name: figure.value for name, figure in chip.figures.items() if figure.value is not None}
    assert known == {
        "memory": 2 * 144 * 2**30, "memory_bandwidth": pytest.approx(4 * 4.9e12), "fp4": 6 * 2517e12, "fp8": 3 * 2517e12
    }  # fmt: skip
    assert {chip.figure(name).status for name in known} == {"inferred"}
    assert {figure.absent for name, figure in chip.figures.items() if name not in known} == {"unknown"}


def test_the_domain_is_the_platforms_and_its_switch_is_not_known() -> None:
    domain = catalogue.load("trainium4-nvlink-fusion")
    assert domain.of is not None
    assert domain.beside is not None
    assert (domain.kind, domain.of.name, domain.beside.name) == ("domain", "trainium4", "rubin")
    assert (domain.count("chip"), domain.figure("link_bandwidth_one_way").value) == (72, 1.8e12)
    assert pytest.approx(260e12, rel=0.01) == 72 * 3.6e12  # of the whole rack
    for name in ("switch_reduces", "coherent", "atomics", "link_latency"):
        assert domain.figure(name).absent == "unknown"
    assert domain.total("chip.memory") is None, "how many are of which kind is not stated"


@pytest.mark.parametrize("name", TARGETS)
def test_a_speculative_target_says_so_and_refuses_nothing_that_nobody_knows(name: str) -> None:
    target = catalogue.load(name)
    assert target.speculative
    assert target.status == "speculative"
    assert "(speculative)" in str(target)
    limits = target.limits
    assert (limits.verbs, limits.dtypes, limits.reductions, limits.ranks, limits.process_group) == (None,) * 5
    assert limits.device_type == "neuron"


def test_each_assumption_names_its_choices_its_ground_and_what_changes() -> None:
    assumptions = {each.name: each for each in catalogue.load("trainium4-nvlink-fusion").assumptions}
    asked = {"coherence", "atomics", "in_switch_reduction", "domain_size", "collective_stack"}
    assert asked <= assumptions.keys()
    for each in assumptions.values():
        assert each.assumed in each.choices
        assert len(each.choices) >= 2
        assert each.because
        assert each.if_wrong
        assert each.date >= "2025-12-02"
        assert each.source or "nothing is announced" in each.because


def test_no_other_target_is_speculative_and_none_is_detected() -> None:
    speculative = tuple(name for name in catalogue.names() if catalogue.load(name).speculative)
    assert speculative == TARGETS
    code = (
        "import json, devices; from devices import _registry;"
        "print(json.dumps([devices.explain(), [str(d) for d in devices.available()], list(_registry.auto_order())]))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    explained, available, order = json.loads(run.stdout)
    assert "trainium4" not in order
    assert "cpu" in order
    assert not [device for device in available if "trainium4" in device]
    assert "chose 'trainium4" not in explained


def test_the_backend_is_absent_everywhere_and_says_that_it_is_speculative() -> None:
    with pytest.raises(BackendUnavailableError, match=r"'trainium4' is installed, but not available here: speculative"):
        devices.init("trainium4")


def test_an_emulation_of_it_is_marked() -> None:
    with devices.testing.emulate("trainium4-nvlink-fusion") as emulation:
        assert devices.testing.run(lambda world: world.size, ranks=3) == [3, 3, 3]
    assert "trainium4-nvlink-fusion (speculative)" in str(emulation.report)
    assert emulation.report.as_data()["target"] == "trainium4-nvlink-fusion (speculative)"


def test_without_the_plugin_its_targets_are_not_there() -> None:
    code = "from devices import catalogue; print([name for name in catalogue.names() if 'trainium4' in name])"
    environment = {**os.environ, "DEVICES_PLUGINS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "[]"


def test_all_of_it_lies_in_the_plugin() -> None:
    core = Path(catalogue.__file__).parent
    assert not list(core.glob("trainium4*"))
    assert [file.name for file in core.glob("*.toml") if "speculative = true" in file.read_text()] == []
