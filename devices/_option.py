"""What `devices.__main__` hands a command so that it adds its options."""

from __future__ import annotations

from collections.abc import Callable

Option = Callable[..., None]
"""Adds an option or an argument: its name, its help, and by keyword how argparse is to take it."""
