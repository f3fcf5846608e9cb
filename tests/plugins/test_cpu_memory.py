"""How much memory of the host is free."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import devices_cpu
from devices_cpu import CPUBackend

MEMINFO = """MemTotal:       65536000 kB
MemFree:         1048576 kB
MemAvailable:   33554432 kB
Buffers:          204800 kB
"""


def free(monkeypatch: pytest.MonkeyPatch, file: Path, text: str) -> int | None:
    file.write_text(text)
    monkeypatch.setattr(devices_cpu, "_MEMINFO", file)
    return CPUBackend().devices()[0].free


def test_what_the_kernel_has_in_caches_until_somebody_asks_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert free(monkeypatch, tmp_path / "meminfo", MEMINFO) == 32 * 2**30


@pytest.mark.parametrize("text", ["", MEMINFO.replace("MemAvailable", "Mem"), MEMINFO.replace("33554432 kB", "lots")])
def test_where_no_file_says_it_the_pages_that_nothing_is_in_are_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000, "SC_AVPHYS_PAGES": 10}.__getitem__)
    assert free(monkeypatch, tmp_path / "meminfo", text) == 40_960
