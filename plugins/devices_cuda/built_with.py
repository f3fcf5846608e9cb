"""Which CUDA the installed torch was built with, read from its files: importing it would take a second."""

from __future__ import annotations

import ast
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What the file `torch/version.py` says.

    Args:
        version: torch's own version.
        cuda: the version of CUDA that it was built with, "12.8" say; None if it was built without.
    """

    version: str
    cuda: str | None

    @property
    def cuda_major(self) -> int | None:
        """The first number of `cuda`: within one, a driver serves every later version."""
        head = (self.cuda or "").partition(".")[0]
        return int(head) if head.isdecimal() else None


def torch_build() -> TorchBuild | None:
    """Return how the installed torch was built; None where its file does not say."""
    if (loaded := sys.modules.get("torch.version")) is not None:
        version, cuda = getattr(loaded, "__version__", None), getattr(loaded, "cuda", None)
        return TorchBuild(str(version), str(cuda) if cuda else None) if version else None
    try:
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            return None
        return read_version_file(Path(found.origin).with_name("version.py").read_text(encoding="utf-8"))
    except (OSError, ValueError, ImportError):
        return None


def read_version_file(text: str) -> TorchBuild | None:
    """Return what the text of a `torch/version.py` says; None if it lacks a version, or is no Python."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    said: dict[str, object] = {}
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant):  # type: ignore[attr-defined]
                said[target.id] = node.value.value  # type: ignore[attr-defined]
    version, cuda = said.get("__version__"), said.get("cuda", ...)
    if not isinstance(version, str) or not (cuda is None or isinstance(cuda, str)):
        return None
    return TorchBuild(version, cuda or None)
