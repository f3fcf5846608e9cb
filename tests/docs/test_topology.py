"""docs/topology.md from beginning to end."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks


def test_what_the_document_says_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for block in blocks(ROOT / "docs" / "topology.md"):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), {})
            ran += 1
    assert ran == 9
