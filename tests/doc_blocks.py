"""The fenced blocks of the README and of docs/, which tests run."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
