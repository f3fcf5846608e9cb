"""docs/hooks.md from beginning to end: the plugins that it writes are there, and do what it says."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from doc_blocks import ROOT, Block, blocks, environment_of, run

from devices import _hookspecs

DOCUMENT = ROOT / "docs" / "hooks.md"
PROGRAM = """
import torch
import torch.distributed as dist

dist.init_process_group("devices")
dist.all_reduce(torch.ones(4))
dist.destroy_process_group()
"""


def install(document: list[Block], folder: Path) -> None:
    """Put the modules of the document into a folder, with the metadata that its pyproject.toml makes."""
    for block in document:
        if block.file:
            (folder / block.file).write_text(block.text)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    metadata = folder / "devices_watch-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["devices"].items())
    (metadata / "entry_points.txt").write_text(f"[devices]\n{points}")


@pytest.mark.slow
def test_the_plugins_of_the_document_do_what_it_says(tmp_path: Path) -> None:
    document = blocks(DOCUMENT)
    install(document, tmp_path)
    environment = environment_of(tmp_path) | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    }
    (tmp_path / "train.py").write_text(PROGRAM)
    ran = 0
    for block in document:
        if block.file:
            continue
        ran += 1
        if block.language == "bash":
            run(["bash", "-euc", block.text], tmp_path, environment)
            continue
        (tmp_path / "use.py").write_text(block.text)
        launch = ["torchrun", "--standalone", f"--nproc-per-node={block.ranks}"] if block.ranks > 1 else ["python"]
        run([*launch, "use.py"], tmp_path, environment)
    assert ran == 4
    traced = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert sorted(line["pid"] for line in traced if line["name"] == "all_reduce") == [0, 1]
    for line in traced:
        if line["name"] == "all_reduce":
            assert (line["args"]["bytes"], line["args"]["op"], line["args"]["outcome"]) == (16, "sum", "done")
            assert line["dur"] > 0
    doctor = run(["python", "-m", "devices", "doctor"], tmp_path, environment)
    assert "counting" in doctor
    assert "Problems" not in doctor


def test_every_hook_is_in_the_document() -> None:
    text = DOCUMENT.read_text()
    hooks = [name for name in vars(_hookspecs) if name.startswith("devices_")]
    assert len(hooks) == 4
    for hook in hooks:
        assert f"| `{hook}` |" in text
        assert f"def {hook}(" in text or hook == "devices_backend"
