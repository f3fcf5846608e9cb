"""The catalogue: folders of entries, read when they are first asked for."""

from __future__ import annotations

import functools
from pathlib import Path

from devices.catalogue.assembly import assemble
from devices.catalogue.figures import fault
from devices.catalogue.reader import KINDS, SOURCES, Entry, read_entry, read_sources
from devices.catalogue.targets import Target
from devices.errors import TargetNotFoundError, did_you_mean


class Catalogue:
    """The entries of one or more folders.

    A file is read when it is first asked for, so that a broken one is an error for whoever asks for it.

    Args:
        folders: an entry may be made of entries of any of them, and cite the sources of those before its own.
    """

    def __init__(self, *folders: Path) -> None:
        self._files: dict[str, tuple[Path, dict[str, str]]] = {}
        self._entries: dict[str, Entry] = {}
        self._targets: dict[tuple[str, int | None], Target] = {}
        sources: dict[str, str] = {}
        for folder in folders:
            if (folder / SOURCES).exists():
                own = read_sources(folder / SOURCES)
                for key in own.keys() & sources.keys():
                    fault(folder / SOURCES, "", key, "another folder has a source of that name")
                sources = {**sources, **own}
            for file in sorted(folder.glob("*.toml")):
                if file.name == SOURCES:
                    continue
                name = file.name.removesuffix(".toml")
                if name in self._files:
                    fault(file, "", "", f"{self._files[name][0].parent.name} has an entry of that name")
                self._files[name] = file, sources

    def names(self, kind: str | None = None) -> tuple[str, ...]:
        """Return the names of all targets, or of those of a kind: "chip", "machine" or "ultraserver"."""
        kinds = [known for known in KINDS if known != "software"]
        if kind is not None and kind not in kinds:
            known = ", ".join(kinds)
            raise TargetNotFoundError(f"no kind of target {kind!r}{did_you_mean(kind, kinds)} (there are {known})")
        entries = (self._entry(name) for name in sorted(self._files))
        return tuple(entry.name for entry in entries if entry.kind in kinds and kind in (None, entry.kind))

    def load(self, name: str, *, lnc: int | None = None) -> Target:
        """Return the target of that name or alias.

        Args:
            name: as `names()` lists it, or another name that it goes by.
            lnc: how many physical cores of a Neuron chip are one device; the chip's default if None.
        """
        if (name, lnc) not in self._targets:
            parts = [self._named(name)]
            while "of" in parts[-1].refers:
                parts.append(self._referred(parts[-1], "of"))
            self._targets[name, lnc] = assemble(parts, self._referred(parts[-1], "software"), lnc)
        return self._targets[name, lnc]

    def _named(self, name: str) -> Entry:
        if name in self._files and self._entry(name).kind != "software":
            return self._entry(name)
        known: dict[str, Entry] = {}
        for one in self.names():
            entry = self._entry(one)
            for alias in (one, *entry.aliases):
                if alias in known:
                    fault(entry.file, "", "aliases", f"{alias!r} is {known[alias].name} already")
                known[alias] = entry
        if name not in known:
            there = ", ".join(self.names())
            raise TargetNotFoundError(f"no target named {name!r}{did_you_mean(name, known)} (there are {there})")
        return known[name]

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            self._entries[name] = read_entry(*self._files[name])
        return self._entries[name]

    def _referred(self, entry: Entry, key: str) -> Entry:
        name, kind = entry.refers[key], KINDS[entry.kind].refers[key]
        if name not in self._files:
            fault(entry.file, "", key, f"no entry named {name!r}{did_you_mean(name, self._files)}")
        found = self._entry(name)
        if found.kind != kind:
            fault(entry.file, "", key, f"{name!r} is a {found.kind} and must be a {kind}")
        return found


@functools.cache
def built_in() -> Catalogue:
    """Return the catalogue that comes with `devices`."""
    return Catalogue(Path(__file__).parent)


def load(name: str, *, lnc: int | None = None) -> Target:
    """Return a target that comes with `devices`.

    >>> limits = load("trainium2").limits
    >>> limits.ranks_per_chip, limits.memory_per_rank / 2**30, sorted(limits.reductions)
    (4, 24.0, ['max', 'min', 'sum'])
    >>> load("trainium2", lnc=1).limits.ranks_per_chip
    8
    """
    return built_in().load(name, lnc=lnc)


def names(kind: str | None = None) -> tuple[str, ...]:
    """Return the names of the targets that come with `devices`.

    >>> names("ultraserver")
    ('trainium2-ultraserver', 'trainium3-ultraserver-gen1', 'trainium3-ultraserver-gen2')
    """
    return built_in().names(kind)
