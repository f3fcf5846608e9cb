"""docs/promises.md, its second table: what `devices.*` promises over a vendor's own process group; gloo stands in."""

from __future__ import annotations

import sys
from pathlib import Path

import native_site
import pytest
import ranks
from doc_blocks import ROOT

sys.path.insert(0, str(ROOT / "tests" / "docs"))

import test_promises as promises

ROUNDED = "16-bit floats are added up in float32 and rounded once"


def table() -> dict[str, bool]:
    """Return whether each promise holds."""
    text = (ROOT / "docs" / "promises.md").read_text().split("\n## ")[1]
    head, _, *rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert head[1].strip() == "`devices.*`"
    return {promise.strip(): cell.strip().startswith("yes") for promise, cell in rows}


def kept(folder: str) -> dict[str, bool]:
    native_site.find(folder)
    return promises._kept("ours")


@pytest.mark.slow
def test_over_a_vendors_group_a_promise_is_kept_where_the_table_says_so(tmp_path: Path) -> None:
    native_site.install(tmp_path)
    environment = {**native_site.ENVIRONMENT, "DEVICES_NO_PICKLE": "1"}
    on_ranks = ranks.run(2, kept, str(tmp_path), env=environment)
    promised = table()
    assert set(promises.CHECKS) <= promised.keys()
    for text in promises.CHECKS:
        # gloo reduces no 16-bit floats here, so they are composed; NCCL does.
        if text != ROUNDED:
            assert all(found[text] for found in on_ranks) is promised[text], text
