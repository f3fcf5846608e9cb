"""docs/backend.md from beginning to end: the package it writes is installed, probed and used as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks, empty_environment, environment_of, run

pytestmark = pytest.mark.slow

EVERY_VERB = """
import torch
import devices

with devices.init("files") as world:
    rank, size = world.rank, world.size
    mine = torch.tensor([rank + 1, 10 * (rank + 1), 100 * (rank + 1)])
    assert devices.all_reduce(mine).tolist() == [6, 60, 600]
    assert devices.all_reduce(mine.double(), op="avg").tolist() == [2.0, 20.0, 200.0]
    assert devices.all_gather(mine[:1]).tolist() == [1, 2, 3]
    assert devices.all_gather(mine[:rank], sizes=[0, 1, 2]).tolist() == [2, 3, 30]
    assert devices.reduce_scatter(mine).tolist() == [[6], [60], [600]][rank]
    assert devices.all_to_all(mine).tolist() == [10**rank * (other + 1) for other in range(size)]
    assert devices.broadcast(mine, src=1).tolist() == [2, 20, 200]
    total = devices.reduce(mine, dst=2, op="max")
    assert (total.tolist() == [3, 30, 300]) if rank == 2 else total is None
    everyone = devices.gather(mine[:1], dst=1)
    assert (everyone.tolist() == [1, 2, 3]) if rank == 1 else everyone is None
    assert devices.scatter(mine if rank == 0 else None, src=0).tolist() == [10**rank]
    assert devices.permute(mine[:1], pairs=[(0, 1), (1, 2), (2, 0)]).item() == (rank - 1) % 3 + 1
    if rank == 0:
        devices.send(mine, dst=2, tag=7)
    if rank == 2:
        assert devices.recv(mine, src=0, tag=7).tolist() == [1, 10, 100]
    assert devices.all_reduce(mine, async_op=True).result().tolist() == [6, 60, 600]
    devices.barrier()
"""

BOTH = """
import runpy

runpy.run_path("use.py", run_name="__main__")
runpy.run_path("every_verb.py", run_name="__main__")
"""


def test_the_package_of_the_document_is_a_complete_backend(tmp_path: Path) -> None:
    document = blocks(ROOT / "docs" / "backend.md")
    package, scratch = tmp_path / "package", tmp_path / "tmp"
    package.mkdir()
    scratch.mkdir()
    bin_folder = empty_environment(tmp_path / "venv")
    environment = environment_of(tmp_path, bin_folder) | {"TMPDIR": str(scratch)}
    run(["pip", "install", "."], ROOT, environment)
    (package / "every_verb.py").write_text(EVERY_VERB)
    said = {}
    for block in document:
        if block.file:
            (package / block.file).write_text(block.text)
        elif block.language == "bash":
            said[block.line] = run(["bash", "-euc", block.text], package, environment)
        else:
            (package / "use.py").write_text(block.text)
            launch = ["torchrun", "--standalone", f"--nproc-per-node={block.ranks}"]
            # Both on the same processes: most of what these take is the import of torch.
            (package / "both.py").write_text(BOTH)
            run([*launch, "both.py"], package, environment)
    [doctor] = said.values()
    assert "files present devices-files 0.1.0 every machine has files" in " ".join(doctor.split())
    assert list(scratch.glob("devices-*")) == [], "folders were left behind"


def test_the_backend_is_as_long_as_the_documents_say() -> None:
    [module] = [block for block in blocks(ROOT / "docs" / "backend.md") if block.file == "devices_files.py"]
    lines = [line for line in module.text.splitlines() if line.strip()]
    assert 60 < len(lines) < 100
    for document in ("README.md", "docs/backend.md"):
        assert "under 100 lines" in (ROOT / document).read_text()


def test_each_law_of_the_document_is_proved_by_checks_that_there_are() -> None:
    from devices.testing.conformance.kit import CHECKS

    names = {check.name for check in CHECKS}
    areas = {name.partition(".")[0] for name in names}
    text = (ROOT / "docs" / "backend.md").read_text()
    laws = text[text.index("## What the interface asks") :]
    cells = [line.split("|")[2] for line in laws.splitlines() if line.startswith("| ") and "| law |" not in line]
    cited = {name for cell in cells for name in re.findall(r"`(\w+\.[\w*]+)`", cell)}
    assert len(cells) > 20
    assert len(cited) > 30
    unknown = {name for name in cited if name not in names and not (name[-1] == "*" and name[:-2] in areas)}
    assert unknown == set()
    assert {name.partition(".")[0] for name in cited} == areas
