"""Installs `mail_plugin`, so that ranks which are processes find it."""

from __future__ import annotations

from pathlib import Path

import pytest


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the plugin in `folder` until the test is over, and let what it leaves be there."""
    metadata = folder / "conformance_mail-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: conformance-mail\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[devices]\nmail = mail_plugin\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("TMPDIR", str(folder))
