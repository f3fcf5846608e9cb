"""`devices new-plugin NAME`: writes the package of a backend."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from devices import _registry
from devices.command.new_plugin_files import FILES
from devices.errors import ArgumentError, BackendNotFoundError, PluginError


def write(name: str, into: Path) -> Path:
    """Write the package of a backend into a new folder, and return the folder.

    Args:
        name: the backend's; a word in lower case.
        into: where the folder is to be.

    Raises:
        ArgumentError: the name cannot be one or is taken, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name == "auto":
        raise ArgumentError(
            f"{name!r} cannot be a backend's name: it is a word in lower case, such as 'toy' or 'my_chip'"
        )
    if (holder := _holder(name)) is not None:
        raise ArgumentError(f"a backend named {name!r} is installed, by {holder}; take another name")
    folder = into / f"devices-{name.replace('_', '-')}"
    if folder.exists():
        raise ArgumentError(f"{folder} is there already; take another name, or --into another folder")
    kind = "".join(word.capitalize() for word in name.split("_"))
    for path, text in FILES.items():
        file = folder / path.replace("NAME", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("NAME", name).replace("KIND", kind), encoding="utf-8")
    return folder


def _holder(name: str) -> str | None:
    """Return the distribution that has a backend of that name, if one does."""
    try:
        _registry.facts(name)
    except BackendNotFoundError:
        return None
    except PluginError as error:
        return str(error)
    return next(plugin.distribution for plugin in _registry.plugins() if name in plugin.backends)
