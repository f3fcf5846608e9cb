"""The source files of the checkout, parsed, and what each imports."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "devices"
PLUGINS = sorted(folder for folder in (ROOT / "plugins").iterdir() if (folder / "__init__.py").exists())


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name of a file of `devices` or of a plugin."""
    base = ROOT if path.is_relative_to(CORE) else ROOT / "plugins"
    parts = list(path.relative_to(base).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Return the line and the full name of everything that `path` imports, wherever it does so."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; the rules below read full names"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def attribute_chains(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of every `a.b.c` in `path` that starts at an imported module or name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        attributes: list[str] = []
        part: ast.expr | None = node if isinstance(node, ast.Attribute) else None
        while isinstance(part, ast.Attribute):
            attributes.append(part.attr)
            part = part.value
        if isinstance(part, ast.Name) and part.id in names:
            yield part.lineno, ".".join([names[part.id], *reversed(attributes)])
