"""Every block of the README and of docs/ runs, those of documents that bring files of their own elsewhere."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import ranks
from doc_blocks import DOCUMENTS, ROOT, Block, blocks, empty_environment, environment_of, run
from shared_memory import needs_shared_memory

pytestmark = pytest.mark.slow

BLOCKS = [
    block
    for document in DOCUMENTS
    for block in blocks(document)
    if document.name not in ("backend.md", "hooks.md", "topology.md")
]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [block for block in BLOCKS if block.language == "bash"]

# What marks a block of commands that is not run here, and the test that runs it.
ELSEWHERE = {
    "make ": "tests/docs/test_readme.py",  # whether make would run something; CI runs the targets themselves
    "--nnodes": "tests/hosts/test_two_hosts.py",
    "kubectl": "tests/hosts/test_kubernetes.py",
    "sbatch": "tests/docs/test_slurm.py",
    "docs/ray_train.py": "tests/docs/test_ray_train.py",
    "examples/train_mixed.py": "tests/examples/test_train_mixed.py",
}


def elsewhere(block: Block) -> list[str]:
    return [test for mark, test in ELSEWHERE.items() if mark in block.text]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_block_runs_as_it_stands(block: Block, tmp_path: Path) -> None:
    if "fabric=True" in block.text or "DEVICES_DOMAIN" in block.text or "open_fabric" in block.text:
        needs_shared_memory()
    program = tmp_path / "block.py"
    program.write_text(block.text)
    names = ("devices.testing", "subprocess", "multiprocessing", "os._exit", "init_process_group")
    if "devices" in block.text and not any(name in block.text for name in names):
        # Ranks that have torch loaded when they start, and torchrun's variables.
        ranks.run(block.ranks, _run, program)
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={block.ranks}"]
    command = [sys.executable, *(launcher if block.ranks > 1 else []), str(program)]
    run(command, tmp_path, environment_of(tmp_path))


def _run(program: Path) -> None:
    os.chdir(program.parent)
    if os.environ["WORLD_SIZE"] == "1":
        # What is not said to run on several ranks runs without a launcher.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
    runpy.run_path(str(program), run_name="__main__")


def test_every_block_is_run_by_some_test() -> None:
    assert len(PYTHON) >= 7
    assert {block.language for block in BLOCKS} == {"python", "bash"}
    for block in COMMANDS:
        assert len(set(elsewhere(block))) <= 1, f"{block} needs to be split"
    for mark, test in ELSEWHERE.items():
        assert any(mark in block.text for block in COMMANDS), f"no block holds {mark!r}"
        assert (ROOT / test).exists()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, for commands that write."""
    copy = tmp_path_factory.mktemp("checkout") / "devices"
    left_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "out", "build", "dist")
    return Path(shutil.copytree(ROOT, copy, ignore=left_out))


def test_the_commands_run_as_they_stand(checkout: Path, tmp_path: Path) -> None:
    here = [block for block in COMMANDS if not elsewhere(block)]
    assert here[0].text.startswith("pip install .")
    environment = environment_of(tmp_path, empty_environment(tmp_path / "venv"))
    printed = [run(["bash", "-euxc", block.text], checkout, environment) for block in here]
    assert "auto   cpu: the best that is present" in printed[0]
    quickstart = printed[1]
    assert here[1].text.splitlines()[0] == "python examples/quickstart.py"
    # Without a launcher and under torchrun, where one rank of four tells the results.
    assert quickstart.count("as expected") == 2 * 6
    assert "{'dp': 2, 'tp': 2}" in quickstart
    installed = run(["python", "-c", "import devices; print(devices.__file__)"], tmp_path, environment)
    assert installed.startswith(str(tmp_path / "venv")), "what ran was not what was installed"


@pytest.mark.parametrize("target", re.findall(r"make ([\w-]+)", "".join(block.text for block in COMMANDS)))
def test_make_has_the_target_and_something_to_run(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs the command 'make', which is not installed")
    told = run(["make", "-n", target], ROOT, dict(os.environ))
    assert "python" in told


def test_every_file_that_a_document_links_to_exists() -> None:
    links = [
        (document, link)
        for document in DOCUMENTS
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text())
        if "://" not in link
    ]
    assert len(links) > 5
    assert [f"{document.name}: {link}" for document, link in links if not (document.parent / link).exists()] == []
