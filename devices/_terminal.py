"""How our commands print: titled sections, coloured in a terminal, and the same words without colour in a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text


def show(sections: Iterable[tuple[str, RenderableType]], file: TextIO) -> None:
    """Print each section's title, and its body below."""
    console = Console(file=file, highlight=False)
    with console.capture() as captured:
        for title, body in sections:
            console.print(Text(title, style="bold"))
            console.print(Padding(body, (0, 0, 0, 2)))
            console.print()
    # Tables are padded to the full width, which is noise in a file.
    file.write("\n".join(line.rstrip() for line in captured.get().splitlines()).rstrip() + "\n")
