"""Where in the program a verb was called: the line that an error shows."""

from __future__ import annotations

import sys
import sysconfig
import threading
from functools import lru_cache
from pathlib import Path
from types import FrameType

NOWHERE = "no line of the program"

# Frames of these are not the program's: ours, the standard library's and, below, those of installed packages.
_OTHERS = (f"{Path(__file__).parents[1]}/", f"{sysconfig.get_path('stdlib')}/", "<")

_here = threading.local()


def caller() -> str:
    """Return the line of the program that led here."""
    said: str | None = getattr(_here, "line", None)
    return said if said is not None else line_of(sys._getframe(1))


def speak_for(line: str | None) -> None:
    """Let this thread do from now on what the program called at `line`; None, what it calls itself."""
    _here.line = line


def line_of(frame: FrameType | None) -> str:
    """Return "file:line" of the innermost frame, from `frame` outwards, that is the program's."""
    while frame is not None:
        if is_of_program(name := frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return NOWHERE


@lru_cache(1000)
def is_of_program(file: str) -> bool:
    """Return whether a file of code is the program's: neither ours, nor the standard library's, nor installed."""
    return not (file.startswith(_OTHERS) or "/site-packages/" in file)
