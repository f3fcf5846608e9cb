"""examples/devices_toy: what `devices new-plugin` writes, and a tutorial whose commands are run in an empty venv."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks, empty_environment, environment_of, run

from devices.__main__ import main

EXAMPLE = ROOT / "examples" / "devices_toy"


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return the folder that the command writes."""
    assert main(["new-plugin", "toy", "--into", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "devices-toy"
    assert str(folder) in said
    assert "pip install --editable ." in said
    return folder


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_example_is_what_the_command_writes_but_for_its_readme(written: Path) -> None:
    ours, its = files(EXAMPLE), files(written)
    assert set(ours) == set(its) == {"pyproject.toml", "devices_toy.py", "tests/test_toy.py", "README.md"}
    del ours["README.md"], its["README.md"]
    assert ours == its


def test_it_is_short_and_says_what_is_to_be_replaced(written: Path) -> None:
    text = (written / "devices_toy.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) < 100
    for method in ("def probe", "def devices", "def capabilities", "def send", "def receive"):
        following = text[text.index(method) :].splitlines()[1]
        assert "REPLACE" in following, method
    assert len([line for line in (written / "tests" / "test_toy.py").read_text().splitlines() if line.strip()]) == 3


@pytest.mark.parametrize("name", ["Toy", "2toy", "to-y", "auto", "class", "", "cpu"])
def test_a_name_that_cannot_be_a_backends_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Options first, for a name may be empty.
    assert main(["new-plugin", "--into", str(tmp_path), name]) == 2
    told = capsys.readouterr().err
    assert told.startswith("devices new-plugin: ")
    assert repr(name) in told
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_as_it_is(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(written)
    (written / "devices_toy.py").write_text("mine")
    assert main(["new-plugin", "toy", "--into", str(written.parent)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert files(written) == {**before, "devices_toy.py": "mine"}


def test_a_name_of_two_words_gives_a_distribution_and_a_class_of_them(tmp_path: Path) -> None:
    assert main(["new-plugin", "my_chip", "--into", str(tmp_path)]) == 0
    folder = tmp_path / "devices-my-chip"
    assert "class MyChipBackend(Backend):" in (folder / "devices_my_chip.py").read_text()
    assert 'my_chip = "devices_my_chip"' in (folder / "pyproject.toml").read_text()
    assert not re.search("NAME|KIND", "".join(files(folder).values()))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_tutorial_runs_in_an_empty_environment(tmp_path: Path) -> None:
    bin_folder = empty_environment(tmp_path / "venv")
    environment = environment_of(tmp_path, bin_folder)
    run(["pip", "install", "."], ROOT, environment)
    (bin_folder / "pytest").write_text(f'#!/bin/sh\nexec {bin_folder}/python -m pytest "$@"\n')
    (bin_folder / "pytest").chmod(0o755)
    folder, said = tmp_path, {}
    for block in blocks(EXAMPLE / "README.md"):
        if block.file:
            (folder / block.file).write_text(block.text)
            continue
        # A command may change the folder, for those after it.
        told = run(["bash", "-euc", f"{block.text}\npwd"], folder, environment, timeout=600)
        *said[block.text.splitlines()[0]], last = told.splitlines()
        folder = Path(last)
    assert folder == tmp_path / "devices-toy"
    # The table is as wide as its widest word.
    installed = " ".join(" ".join(said["pip install --editable ."]).split())
    assert "toy present devices-toy 0.1.0 every machine has memory" in installed
    trained = "\n".join(said["torchrun --nproc-per-node=2 train.py"])
    losses = re.findall(r"rank (\d) of 2: loss ([\d.]+)", trained)
    assert sorted(rank for rank, _ in losses) == ["0", "1"]
    assert losses[0][1] == losses[1][1]
    assert "not proved" not in "\n".join(said["devices conformance toy"])
    assert len(said["grep -n REPLACE devices_toy.py"]) >= 8
