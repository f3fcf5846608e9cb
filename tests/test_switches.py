"""What `devices doctor` says of the variables that are set."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from devices.command.doctor import _switches

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of the README's table of switches, each of which is set here, and no other."""
    table = README.read_text().partition("## Switches")[2].partition("## ")[0]
    names = set(re.findall(r"^\| `(\w+)=", table, re.MULTILINE))
    for name in [name for name in os.environ if name.startswith("DEVICES_")]:
        monkeypatch.delenv(name)
    for name in names:
        monkeypatch.setenv(name, f"value of {name}")
    return names


def test_every_switch_that_is_documented_is_shown_with_what_it_means(documented: set[str]) -> None:
    assert len(documented) > 10
    shown = {each["name"]: each for each in _switches()}
    assert set(shown) == documented
    assert shown["DEVICES_FABRIC"]["value"] == "value of DEVICES_FABRIC"
    assert shown["DEVICES_SECRET"]["value"] == "(not shown)"
    assert not [name for name in documented if "misspelt" in shown[name]["meaning"]]


def test_a_variable_that_is_no_switch_of_devices_is_shown_and_said_to_be_none(
    documented: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICES_FABRICK", "off")
    monkeypatch.setenv("DEVICES_SECRETS", "a slip")
    strangers = {each["name"]: each for each in _switches() if each["name"] not in documented}
    assert {name: each["value"] for name, each in strangers.items()} == {
        "DEVICES_FABRICK": "off",
        "DEVICES_SECRETS": "(not shown)",
    }
    assert all("misspelt" in each["meaning"] for each in strangers.values())
