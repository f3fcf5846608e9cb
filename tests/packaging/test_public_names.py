from __future__ import annotations

import re
import types

import pytest
from doc_blocks import ROOT

import devices
import devices.errors

PROMISED = {
    *("init", "World", "place", "Shard", "Replicate", "Partial", "Work", "available", "explain", "backends", "errors"),
    *("Backend", "Communicator", "Group", "Capabilities", "Probe", "hookimpl"),
    *("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter"),
    *("permute", "send", "recv", "barrier"),
}


def test_all_names_each_public_name_once_and_none_that_was_promised_is_missing() -> None:
    assert len(devices.__all__) == len(set(devices.__all__))
    assert set(devices.__all__) >= PROMISED


@pytest.mark.parametrize("name", devices.__all__)
def test_a_public_name_can_be_imported_and_is_no_private_module(name: str) -> None:
    value = getattr(devices, name)
    assert not isinstance(value, types.ModuleType) or name == "errors"


def test_each_public_name_is_on_a_page_of_the_documents() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    # As itself, or as what a snippet imports.
    imported = {
        name for line in re.findall(r"^from devices import (.*)$", pages, re.MULTILINE) for name in line.split(", ")
    }
    absent = [
        name for name in devices.__all__ if not re.search(rf"\bdevices\.{name}\b", pages) and name not in imported
    ]
    assert [name for name in absent if not re.search(rf"`{name}\b", pages)] == []


def test_dir_shows_no_public_name_that_all_lacks() -> None:
    for name in devices.__all__:
        getattr(devices, name)  # those that come late are here now
    ours = {
        name
        for name, value in vars(devices).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("devices")
    }
    assert ours <= set(devices.__all__)


def test_no_public_function_has_the_name_of_a_module() -> None:
    """`devices.backend` would be both; the underscore of our modules prevents it."""
    from source_files import CORE

    modules = {path.stem for path in CORE.glob("*.py")} | {path.name for path in CORE.iterdir() if path.is_dir()}
    assert set(devices.__all__) & modules == {"errors"}


def test_every_error_is_a_devices_error_and_the_builtin_that_a_caller_expects() -> None:
    found = [
        value for value in vars(devices.errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    root = devices.errors.DevicesError
    assert len(found) > 5
    for error in found:
        assert issubclass(error, root)
        if error is not root:
            assert any(base.__module__ == "builtins" and base is not Exception for base in error.__mro__[:-3]), error


def test_a_misspelt_name_says_what_was_meant() -> None:
    with pytest.raises(AttributeError, match="did you mean 'all_reduce'"):
        devices.all_redcue  # noqa: B018
