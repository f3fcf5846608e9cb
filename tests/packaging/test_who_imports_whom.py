from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from source_files import CORE, PLUGINS, ROOT, attribute_chains, imports, module_name, sources

# Each part of `devices` imports from its own row and from those above it.
ORDER: tuple[tuple[str, ...], ...] = (
    ("errors",),
    (
        "topology.graph",
        "topology.files",
        "fabric.interface",
        "_store",
        "_backend",
        "_communicator",
        "_device",
        "_group",
        "_interop",
        "_observer",
        "_watched",
        "_work",
        "recorder.files",
        "recorder.record",
    ),
    ("_choice", "_hookspecs", "_registry", "_torch", "_torch_groups", "_capture", "roster"),
    ("algorithms", "fabric", "topology", "catalogue", "_gloo_messages", "_process_group", "_staged"),
    ("domains",),
    (
        "_autoload",
        "_collectives",
        "_explain",
        "_fabric_memory",
        "_fit",
        "_mesh",
        "_mesh_order",
        "_observing",
        "_open",
        "_placement",
        "_world",
        "c10d",
        "calls",
        "meeting",
    ),
    ("_option", "_terminal"),
    ("testing", "__main__", "command", "recorder", "roster.survey_child"),
)
ROW = {part: row for row, parts in enumerate(ORDER) for part in parts}
PUBLIC = {"devices", "devices.errors", "devices.testing"}
# What of `devices` a plugin may read beside that, what is plain data in the main: the names that each of them exports.
DATA = {name: set(importlib.import_module(f"devices.{name}").__all__) for name in ("catalogue", "topology")}


def part_of(name: str) -> str | None:
    """Return the part of `devices` that a full name lies in; None for the package itself and what it exports."""
    parts = name.split(".")
    if parts[0] != "devices":
        return None
    return next((part for part in (".".join(parts[1:3]), ".".join(parts[1:2])) if part in ROW), None)


def at(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_part_of_devices_has_its_place_in_the_order() -> None:
    found = {module_name(path).split(".")[1] for path in sources(CORE) if path != CORE / "__init__.py"}
    assert sorted(found - ROW.keys()) == [], "say in ORDER where these belong"


def test_imports_flow_one_way() -> None:
    upward = [
        f"{at(path, line)}: {part} imports {name}"
        for path in sources(CORE)
        if (part := part_of(module_name(path)))
        for line, name in imports(path)
        if (other := part_of(name)) and ROW[other] > ROW[part]
    ]
    assert upward == []


def test_the_lower_parts_do_not_import_through_the_package() -> None:
    """What `devices/__init__.py` exports lies anywhere, so a part names the file that it needs."""
    through = [
        f"{at(path, line)}: {name}"
        for path in sources(CORE)
        if (part := part_of(module_name(path))) and ROW[part] < len(ORDER) - 1
        for line, name in imports(path)
        if name == "devices" or (name.startswith("devices.") and part_of(name) is None)
    ]
    assert through == []


def test_the_core_never_names_a_plugin() -> None:
    plugins = tuple(folder.name for folder in PLUGINS)
    assert "devices_cpu" in plugins
    named = [
        f"{at(path, line)}: {text.strip()}"
        for path in sources(CORE)
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(plugin in text for plugin in plugins)
    ]
    assert named == []


def test_plugins_import_only_the_public_api_and_never_each_other() -> None:
    private = [
        f"{at(path, line)}: {name}"
        for folder in PLUGINS
        for path in sources(folder)
        for line, name in (*imports(path), *attribute_chains(path))
        if name.startswith("devices") and not is_allowed_in(folder.name, name)
    ]
    assert private == []


def is_allowed_in(plugin: str, name: str) -> bool:
    top, *rest = name.split(".")
    if top != "devices":
        return top == plugin
    if rest and rest[0] in DATA:
        return len(rest) == 1 or rest[1] in DATA[rest[0]]
    return name in PUBLIC or not any(
        part.startswith("_") or part in ROW.keys() - {"errors", "testing"} for part in rest
    )


def is_private(name: str) -> bool:
    top, *rest = name.split(".")
    return top == "torch" and any(part.startswith("_") and not part.startswith("__") for part in rest)


def test_private_names_of_torch_are_in_two_files() -> None:
    elsewhere = {
        f"{at(path, line)}: {name}"
        for folder in (CORE, *PLUGINS)
        for path in sources(folder)
        if path not in (CORE / "_torch.py", CORE / "_torch_groups.py")
        for line, name in (*imports(path), *attribute_chains(path))
        if is_private(name)
    }
    assert sorted(elsewhere) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\nx = torch._C._get()", True),
        ("import torch.distributed as dist\ndist.distributed_c10d._world", True),
        ("from torch.distributed import distributed_c10d as c10d\nc10d._world.pg_map", True),
        ("from torch.testing._internal import common_utils", True),
        ("def f():\n    import torch._dynamo", True),
        ("import torch\ntorch.__version__\ntorch.distributed.Backend", False),
    ],
)
def test_the_reader_of_sources_sees_a_private_name_however_it_is_reached(
    tmp_path: Path, source: str, found: bool
) -> None:
    path = tmp_path / "sample.py"
    path.write_text(source)
    assert any(is_private(name) for _, name in (*imports(path), *attribute_chains(path))) is found
