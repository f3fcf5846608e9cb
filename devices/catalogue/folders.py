"""The catalogue: folders of entries, read when they are first asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from devices.catalogue.assembly import assemble
from devices.catalogue.figures import fault
from devices.catalogue.reader import KINDS, SOURCES, Entry, read_entry, read_sources
from devices.catalogue.targets import Target
from devices.errors import TargetNotFoundError, did_you_mean

Folder = Path | Mapping[str, str]
"""A folder of entries; or the text of each file that one would hold, by its name."""


class Catalogue:
    """The entries of one or more folders.

    A file is read when it is first asked for, so that a broken one is an error for whoever asks for it.

    Args:
        folders: an entry may be made of entries of any of them, and cite the sources of those before its own.
    """

    def __init__(self, *folders: Folder) -> None:
        self._files: dict[str, tuple[Path, dict[str, str], str | None]] = {}
        self._entries: dict[str, Entry] = {}
        self._targets: dict[tuple[str, int | None], Target] = {}
        sources: dict[str, str] = {}
        for folder in folders:
            files = _files(folder)
            for file, text in files.items():
                if file.name == SOURCES:
                    own = read_sources(file, text)
                    for key in own.keys() & sources.keys():
                        fault(file, "", key, "another folder has a source of that name")
                    sources = {**sources, **own}
            for file, text in files.items():
                if file.name == SOURCES:
                    continue
                name = file.name.removesuffix(".toml")
                if name in self._files:
                    fault(file, "", "", f"{self._files[name][0].parent.name} has an entry of that name")
                self._files[name] = file, sources, text

    def names(self, kind: str | None = None) -> tuple[str, ...]:
        """Return the names of all targets, or of those of a kind, "chip" or "machine" say."""
        kinds = [known for known in KINDS if known != "software"]
        if kind is not None and kind not in kinds:
            known = ", ".join(kinds)
            raise TargetNotFoundError(f"no kind of target {kind!r}{did_you_mean(kind, kinds)} (there are {known})")
        entries = (self._entry(name) for name in sorted(self._files))
        return tuple(entry.name for entry in entries if entry.kind in kinds and kind in (None, entry.kind))

    def has(self, name: str) -> bool:
        """Return whether there is a target of that name or alias."""
        return name in self._files or name in self._by_alias()

    def check(self) -> None:
        """Raise unless every entry is right."""
        for name in self._files:
            self._entry(name)
        self._by_alias()
        for name in self.names():
            self.load(name)

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
            first = parts[0]
            for claim in first.claims:
                # The other is not read for that: a damaged file is no error of whoever asks for another.
                if claim.than not in self._files:
                    near = did_you_mean(claim.than, self._files)
                    fault(first.file, f"claims, {claim.of}", "than", f"no target named {claim.than!r}{near}")
            beside = self.load(self._referred(first, "beside").name) if "beside" in first.refers else None
            self._targets[name, lnc] = assemble(parts, self._referred(parts[-1], "software"), lnc, beside)
        return self._targets[name, lnc]

    def _named(self, name: str) -> Entry:
        if name in self._files and self._entry(name).kind != "software":
            return self._entry(name)
        known = self._by_alias()
        if name not in known:
            lists = f"`devices catalogue` lists all {len(self.names())}, as devices.catalogue.names() does"
            raise TargetNotFoundError(f"no target named {name!r}{_nearest(str(name), known)}; {lists}")
        return known[name]

    def _by_alias(self) -> dict[str, Entry]:
        known: dict[str, Entry] = {}
        for one in self.names():
            entry = self._entry(one)
            for alias in (one, *entry.aliases):
                if alias in known:
                    fault(entry.file, "", "aliases", f"{alias!r} is {known[alias].name} already")
                known[alias] = entry
        return known

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            self._entries[name] = read_entry(*self._files[name])
        return self._entries[name]

    def _referred(self, entry: Entry, key: str) -> Entry:
        name, kinds = entry.refers[key], KINDS[entry.kind].refers[key]
        if name not in self._files:
            fault(entry.file, "", key, f"no entry named {name!r}{did_you_mean(name, self._files)}")
        found = self._entry(name)
        if found.kind not in kinds:
            fault(entry.file, "", key, f"{name!r} is a {found.kind} and must be a {' or a '.join(kinds)}")
        if found.speculative and not entry.speculative:
            fault(
                entry.file, "", key, f"{name!r} is speculative, and so must be what is made of it: speculative = true"
            )
        return found


def _nearest(asked: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'a' or 'b'?" for the names that are nearest, at most three."""
    near = difflib.get_close_matches(asked, list(known))
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _files(folder: Folder) -> dict[Path, str | None]:
    """Return the files of a folder, with the text of those that are none."""
    if isinstance(folder, Path):
        return dict.fromkeys(sorted(folder.glob("*.toml")))
    return {Path("data") / name: text for name, text in sorted(folder.items())}
