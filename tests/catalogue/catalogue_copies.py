"""Copies of the catalogue's folder, to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import devices.catalogue

FOLDER = Path(devices.catalogue.__file__).parent


def copy_of(folder: Path) -> Path:
    """Return a new folder inside `folder` with the files of the built-in catalogue."""
    copy = folder / "copy"
    copy.mkdir()
    for file in FOLDER.glob("*.toml"):
        shutil.copy(file, copy)
    return copy


def replace(file: Path, old: str, new: str) -> None:
    """Replace what is in a file once, or at first where it begins with a table's head."""
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{file.name} has no {old!r}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
