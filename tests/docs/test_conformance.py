"""docs/conformance.md lists the checks that there are, each with its law."""

from __future__ import annotations

import re

from doc_blocks import ROOT

from devices.testing.conformance import CHECKS

DOCUMENT = ROOT / "docs" / "conformance.md"


def test_the_table_holds_every_check_with_its_law() -> None:
    rows = re.findall(r"^\| `([\w.]+\.[\w]+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [(check.name, check.law) for check in CHECKS]


def test_no_two_checks_share_a_name_and_each_law_is_a_sentence() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for check in CHECKS:
        assert re.fullmatch(r"[a-z0-9]+\.[a-z0-9_]+", check.name)
        assert check.law.endswith(".")
        assert "|" not in check.law


def test_every_option_that_it_names_is_there() -> None:
    from devices.__main__ import _parsers

    _, options = _parsers()
    named = set(re.findall(r"`(--[a-z]+)", DOCUMENT.read_text()))
    assert named >= {"--ranks", "--only", "--seed", "--json"}
    assert named <= set(options["conformance"])
