"""The fenced blocks of the README and of docs/, which tests run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        document: where it stands.
        line: the line of its first fence.
        language: the word behind that fence.
        text: what is between the fences.
        file: the file that the line before introduces it as, "`name`: ...", if it does.
    """

    document: Path
    line: int
    language: str
    text: str
    file: str | None

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def ranks(self) -> int:
        """How many ranks its first line says that it runs on."""
        match = re.match(r"# torchrun --nproc-per-node=(\d+)\n", self.text)
        return int(match[1]) if match else 1


def blocks(document: Path) -> list[Block]:
    return list(_blocks(document))


def _blocks(document: Path) -> Iterator[Block]:
    lines = iter(enumerate(document.read_text().splitlines(), 1))
    said = ""
    for number, line in lines:
        if not line.startswith("```"):
            said = line or said
            continue
        language, text = line.removeprefix("```"), []
        for _, inner in lines:
            if inner == "```":
                break
            text.append(inner)
        else:
            raise ValueError(f"{document.name}:{number}: the block is not closed")
        introduced = re.match(r"`([\w.]+)`[:;]", said)
        yield Block(document, number, language, "\n".join(text) + "\n", introduced[1] if introduced else None)
        said = ""


def environment_of(folder: Path, first: Path | None = None) -> dict[str, str]:
    """Return a shell's variables: `python` and `torchrun` are those of the Python that runs the tests, or of `first`.

    Args:
        folder: where the two commands are put.
        first: the `bin` of another environment.
    """
    commands = folder / "bin"
    commands.mkdir()
    python = first / "python" if first else sys.executable
    for name, module in (("python", ""), ("torchrun", "-m torch.distributed.run ")):
        (commands / name).write_text(f'#!/bin/sh\nexec {python} {module}"$@"\n')
        (commands / name).chmod(0o755)
    # A launcher or a switch that the tests themselves run under must not be taken for that of the block.
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_", "GLOO_", "SLURM_", "DEVICES_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = [str(commands), *([str(first)] if first else []), os.environ["PATH"]]
    # Nothing is fetched: what an installation needs is here.
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_DEPS": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return {**inherited, **offline, "PATH": ":".join(path), "OMP_NUM_THREADS": "1"}


def empty_environment(folder: Path) -> Path:
    """Return the `bin` of a new environment that has what this Python has, `devices` alone left to be installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    [site] = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched last, and the .pth files in it are not read: no editable install.
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    (folder / "bin" / "pip").write_text(f'#!/bin/sh\nexec {folder}/bin/python -m pip "$@"\n')
    (folder / "bin" / "pip").chmod(0o755)
    return folder / "bin"


def run(command: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float = 400) -> str:
    """Run a command and return what it printed; it must end well."""
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
