"""The catalogue of this installation: what comes with `devices`, and what plugins add to it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from devices import _registry
from devices.catalogue.folders import Catalogue, Folder
from devices.catalogue.targets import Target
from devices.errors import CatalogueError, PluginError, TargetNotFoundError

_HOME = Path(__file__).parent


@functools.cache
def built_in() -> Catalogue:
    """Return the catalogue that comes with `devices`."""
    return Catalogue(_HOME)


def load(name: str, *, lnc: int | None = None) -> Target:
    """Return a target that comes with `devices`, or else one that a plugin adds by its hook `devices_targets`.

    >>> limits = load("trainium2").limits
    >>> limits.ranks_per_chip, limits.memory_per_rank / 2**30, sorted(limits.reductions)
    (4, 24.0, ['max', 'min', 'sum'])
    >>> load("trainium2", lnc=1).limits.ranks_per_chip
    8
    """
    if built_in().has(name):
        return built_in().load(name, lnc=lnc)
    catalogue, faults = _with_plugins()
    try:
        return catalogue.load(name, lnc=lnc)
    except TargetNotFoundError as error:
        if not faults or catalogue.has(name):
            raise
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise TargetNotFoundError(f"{error}; plugins that were to add targets are broken:{listed}") from error


def names(kind: str | None = None) -> tuple[str, ...]:
    """Return the names of the targets that come with `devices` and of those that plugins add.

    >>> names("cluster")
    ('project-rainier', 'trainium1-ultracluster', 'trainium3-ultracluster', 'trainium3-ultracluster-gen1')
    """
    return _with_plugins()[0].names(kind)


def faults() -> tuple[PluginError, ...]:
    """Return what is wrong with the targets that plugins add; one that adds a wrong one adds none."""
    return _with_plugins()[1]


def origin(name: str) -> str:
    """Return who adds the target of that name: "devices", or a plugin by its name in words.

    >>> origin("trainium2")
    'devices'
    """
    if built_in().has(name):
        return "devices"
    return _with_origins()[2].get(load(name).name, "devices")


def _with_plugins() -> tuple[Catalogue, tuple[PluginError, ...]]:
    catalogue, wrong, _ = _with_origins()
    return catalogue, wrong


def _with_origins() -> tuple[Catalogue, tuple[PluginError, ...], dict[str, str]]:
    said = _registry.targets()
    added = {who: folders for who, folders in said.items() if not isinstance(folders, PluginError)}
    catalogue, wrong, who = _assembled(json.dumps(added))
    return catalogue, (*(each for each in said.values() if isinstance(each, PluginError)), *wrong), who


@functools.lru_cache(maxsize=1)
def _assembled(added: str) -> tuple[Catalogue, tuple[PluginError, ...], dict[str, str]]:
    """Return the catalogue with what plugins add, as JSON has it, why some add nothing, and who added what."""
    plugins: dict[str, list[dict[str, Any]]] = json.loads(added)
    accepted: list[Folder] = []
    origins: dict[str, str] = {}
    catalogue, wrong = built_in(), []
    for who, folders in plugins.items():
        more = [Path(each["folder"]) if "folder" in each else each["files"] for each in folders]
        try:
            tried = Catalogue(_HOME, *accepted, *more)
            tried.check()
        except (CatalogueError, TargetNotFoundError) as error:
            wrong.append(PluginError(f"{who}: a target that it adds is wrong: {error}"))
            continue
        accepted += more
        origins |= dict.fromkeys({*tried.names()} - {*catalogue.names()}, who)
        catalogue = tried
    return catalogue, tuple(wrong), origins
