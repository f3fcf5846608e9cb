"""A machine's files, read from a folder that stands for "/": the machine's own, or one that was laid out for a test."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import final

_MOST = 1 << 16
"""Bytes: no file that is read here is longer. A longer one is no file of the driver's."""


@final
class Tree:
    """Reads small text files, and keeps what is wrong with them.

    Args:
        root: what stands for "/".

    Attributes:
        faults: a sentence for each file that is there and cannot be used.
        denied: the paths that this user may not read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[str] = []
        self.denied: list[str] = []

    def text(self, path: str) -> str | None:
        """Return what a file says, without the line's end; None if it is not there or cannot be read."""
        try:
            # A FIFO or a device node would keep us waiting; a driver's file is a regular one.
            if not stat.S_ISREG((self.root / path).stat().st_mode):
                self.faults.append(f"/{path} is no file")
                return None
            with (self.root / path).open("rb") as file:
                data = file.read(_MOST + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            self.denied.append(f"/{path}")
            return None
        except OSError as error:
            self.faults.append(f"/{path} cannot be read: {error.strerror or error}")
            return None
        if len(data) > _MOST:
            self.faults.append(f"/{path} is longer than {_MOST} bytes")
            return None
        try:
            text = data.decode("ascii").strip()
        except UnicodeDecodeError:
            self.faults.append(f"/{path} holds no text")
            return None
        if not text.isprintable():
            self.faults.append(f"/{path} holds {text[:40]!r}")
            return None
        return text

    def number(self, path: str, lowest: int, highest: int) -> int | None:
        """Return the whole number that a file says; what is no such number, or out of that range, is a fault."""
        text = self.text(path)
        if not text:
            return None
        if not re.fullmatch(r"-?\d{1,20}", text) or not lowest <= int(text) <= highest:
            self.faults.append(f"/{path} says {text[:40]!r}, which is no number from {lowest} to {highest}")
            return None
        return int(text)

    def numbered(self, folder: str, prefix: str) -> dict[int, Path]:
        """Return what lies in a folder under that prefix and a number, in the order of the numbers."""
        try:
            names = [path.name for path in (self.root / folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except PermissionError:
            self.denied.append(f"/{folder}")
            return {}
        except OSError as error:
            self.faults.append(f"/{folder} cannot be listed: {error.strerror or error}")
            return {}
        # A number has one spelling: "neuron01" is nothing that the driver makes.
        found = {int(match[1]): name for name in names if (match := re.fullmatch(prefix + r"(0|[1-9]\d{0,3})", name))}
        return {number: self.root / folder / found[number] for number in sorted(found)}
