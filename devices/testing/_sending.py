"""What is sent to a rank's process: a function, by the name that it has in its module, and its arguments.

A test module is often not importable by name, as pytest loads it from its file. So the files of the modules that are
needed are sent along, and the process finds the modules there.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from io import BytesIO
from types import FunctionType, ModuleType
from typing import Any, final

from devices.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a module was loaded from.

    Args:
        file: its file; None for a package that is only a folder.
        folders: where its submodules are; None if it is no package.
        rewritten: whether pytest rewrote its assertions.
    """

    file: str | None
    folders: tuple[str, ...] | None
    rewritten: bool


@dataclass(frozen=True, slots=True)
class Parcel:
    """A function and its arguments, pickled, and where the modules that they need are."""

    pickled: bytes
    origins: Mapping[str, Origin]


def pack(function: Callable[..., Any], arguments: Sequence[Any], names: Sequence[str] = ()) -> Parcel:
    """Return `function` and `arguments`, ready to be sent.

    Args:
        function: what the processes call.
        arguments: what they call it with.
        names: what each argument is called in an error; "argument 1" and so on if there are none.

    Raises:
        ArgumentError: one of them cannot be sent.
    """
    _check_module(function)
    try:
        pickled, modules = _pickle((function, tuple(arguments)))
    except Exception:
        _blame(function, arguments, names)
        raise
    return Parcel(pickled, _origins(modules))


def unpack(parcel: Parcel, rewriter: Loader | None = None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the function and the arguments, importing their modules.

    Args:
        parcel: what `pack` returned, in the process that started this one.
        rewriter: loads the modules whose assertions pytest rewrote; None to load them as all others.
    """
    rewritten = {name: origin for name, origin in parcel.origins.items() if origin.rewritten}
    others = {name: origin for name, origin in parcel.origins.items() if not origin.rewritten}
    # What can be imported as usual is; but not what pytest rewrote, of which that would make a plain copy.
    sys.meta_path.insert(0, _Finder(rewritten, rewriter))
    sys.meta_path.append(_Finder(others, None))
    function, arguments = pickle.loads(parcel.pickled)  # noqa: S301 - it comes from the process that started this one
    return function, arguments


@final
class _Finder(MetaPathFinder):
    """Finds modules at the files that they were loaded from elsewhere."""

    def __init__(self, origins: Mapping[str, Origin], loader: Loader | None) -> None:
        self._origins = origins
        self._loader = loader

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if (origin := self._origins.get(name)) is None:
            return None
        folders = None if origin.folders is None else list(origin.folders)
        if origin.file is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = folders
            return spec
        return importlib.util.spec_from_file_location(
            name, origin.file, loader=self._loader, submodule_search_locations=folders
        )


@final
class _Pickler(pickle.Pickler):
    """Notes the modules of the functions and classes that it meets."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.modules: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, (FunctionType, type)):
            self.modules.add(value.__module__)
        return NotImplemented


def _pickle(value: object) -> tuple[bytes, set[str]]:
    # Not the pickler of `multiprocessing`, through which tensors would share memory between the ranks.
    file = BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.modules


def _origins(needed: set[str]) -> dict[str, Origin]:
    """Return where the modules that are needed are, their packages, and all whose assertions pytest rewrote."""
    packages = {name.rsplit(".", count)[0] for name in needed for count in range(1, name.count(".") + 1)}
    found = {}
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        rewritten = type(getattr(spec, "loader", None)).__module__ == "_pytest.assertion.rewrite"
        if not (rewritten or name in needed or name in packages):
            continue
        file = getattr(spec, "origin", None) or getattr(module, "__file__", None)
        folders = getattr(module, "__path__", () if name in packages else None)
        if name != "__main__" and (folders is not None or file):
            is_file = isinstance(file, str) and file not in ("built-in", "frozen", "namespace")
            found[name] = Origin(
                file if is_file else None, None if folders is None else tuple(map(str, folders)), rewritten
            )
    return found


def _check_module(function: Callable[..., Any]) -> None:
    if getattr(function, "__module__", None) == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ArgumentError(
            f"{_described(function)} cannot be sent to a rank's process: it is defined in a session, not in a file; "
            "write it in a module"
        )


def _blame(function: Callable[..., Any], arguments: Sequence[Any], names: Sequence[str]) -> None:
    """Raise what says which of them cannot be sent, and why."""
    try:
        _pickle(function)
    except Exception as error:
        name = getattr(function, "__qualname__", "")
        inside = "<lambda>" in name or "<locals>" in name
        advice = "; write it at the top level of a module, where a process finds it by name" if inside else ""
        raise ArgumentError(f"{_described(function)} cannot be sent to a rank's process: {error}{advice}") from error
    for place, argument in enumerate(arguments):
        try:
            _pickle(argument)
        except Exception as error:
            name = names[place] if names else f"argument {place + 1}"
            raise ArgumentError(
                f"{name}, of type {type(argument).__name__}, cannot be sent to a rank's process: {error}"
            ) from error


def _described(function: object) -> str:
    name = getattr(function, "__qualname__", None)
    return f"the function {name!r}" if name else f"{function!r}"
