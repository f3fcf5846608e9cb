"""What the command `neuron-ls` says: run, and read in every form that it is known to print."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices_neuron.machine import MOST_CHIPS, Owner

PATH = "opt/aws/neuron/bin/neuron-ls"
"""Where the package aws-neuronx-tools puts it. PATH has that folder in login shells only, and not under sudo."""

WITHIN = 5.0
"""Seconds that it may take."""

_MOST = 1 << 22
_MOST_CORES = 4096
_HEADING = re.compile(r"([a-z][a-z-]*):[ \t]*(\S*)")


@dataclass(frozen=True, slots=True)
class Listed:
    """What it says of one chip; None, or "", for what it does not say."""

    index: int
    cores: int | None = None
    lnc: int | None = None
    memory: int | None = None
    neighbours: tuple[int, ...] | None = None
    core_ids: tuple[int, ...] | None = None
    pci: str = ""
    numa: int | None = None
    cpus: str = ""
    owners: tuple[Owner, ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """All that it says.

    Args:
        chips: by their number.
        instance_type: "" where it says none.
        lnc: None where it says none.
    """

    chips: Mapping[int, Listed]
    instance_type: str = ""
    lnc: int | None = None


class ListingError(ValueError):
    """Its output cannot be used; the message says why."""


def ask(root: Path) -> Listing | None:
    """Run it and return what it says; None if it is not installed.

    Raises:
        ListingError: it failed, came late, or said what cannot be used.
    """
    command = root / PATH
    if not command.is_file():
        return None
    try:
        done = subprocess.run(
            [command, "--json-output"], capture_output=True, timeout=WITHIN, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ListingError(f"it did not answer within {WITHIN:g} s") from error
    except OSError as error:
        raise ListingError(f"it cannot be started: {error.strerror or error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise ListingError(f"it ended with status {done.returncode}{': ' + said[-1][:200] if said else ''}")
    return parse(done.stdout.decode(errors="replace"))


def parse(text: str) -> Listing:
    """Return what its output says: a bare list, one of records with headings, a list in an object, or after lines.

    What is there must be right: one record that is not, and nothing is taken from it.

    Raises:
        ListingError: it is no such output.
    """
    if len(text) > _MOST:
        raise ListingError(f"its output is longer than {_MOST} bytes")
    headings, body = _headings(text.strip())
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ListingError(f"its output is no JSON: {error}") from error
    if isinstance(found, dict):
        headings |= {key.replace("_", "-"): value for key, value in found.items() if not isinstance(value, list)}
        found = found.get("neuron_devices", found.get("devices"))
    if not isinstance(found, list):
        raise ListingError("its output has no list of devices")
    if not all(isinstance(record, dict) for record in found):
        raise ListingError("its list of devices holds something that is no record")
    chips: dict[int, Listed] = {}
    for record in found:
        chip = _chip(record)
        if chip.index in chips:
            raise ListingError(f"it lists device {chip.index} twice")
        chips[chip.index] = chip
    owners: dict[int, int] = {}
    for chip in chips.values():
        for core in chip.core_ids or ():
            if core in owners:
                raise ListingError(f"it gives core {core} to device {owners[core]} and device {chip.index}")
            owners[core] = chip.index
    types = {_text(record, "instance_type") for record in found} | {str(headings.get("instance-type") or "")}
    settings = {chip.lnc for chip in chips.values()} | {_lnc(headings.get("logical-neuroncore-config"))}
    return Listing(chips, _one("instance type", types - {""}) or "", _one("LNC", settings - {None}))


def _headings(text: str) -> tuple[dict[str, Any], str]:
    """Return the lines "name: value" before the JSON, and the JSON."""
    found: dict[str, Any] = {}
    while text and text[0] not in "[{":
        line, _, text = text.partition("\n")
        heading = _HEADING.fullmatch(line.strip())
        if heading is None:
            raise ListingError(f"its output begins with {line[:60]!r}, which is neither a heading nor JSON")
        found[heading[1]] = heading[2]
        text = text.lstrip()
    return found, text


def _chip(record: Mapping[str, Any]) -> Listed:
    index = _whole(record, "neuron_device", 0, MOST_CHIPS - 1)
    if index is None:
        raise ListingError("one of its records has no `neuron_device`")
    ids = _numbers(record, "neuroncore_ids", _MOST_CORES)
    count = _whole(record, "nc_count", 1, _MOST_CORES)
    if count is not None and ids is not None and count != len(ids):
        raise ListingError(f"of device {index} it says nc_count {count} and lists {len(ids)} neuroncore_ids")
    return Listed(
        index=index,
        cores=len(ids) if count is None and ids else count,
        lnc=_lnc(record.get("logical_neuroncore_config")),
        memory=_whole(record, "memory_size", 1, 1 << 60),
        neighbours=_numbers(record, "connected_to", MOST_CHIPS),
        core_ids=ids,
        pci=_pci(record),
        numa=_numa(record),
        cpus=_cpus(record),
        owners=_owners(record),
    )


def _whole(record: Mapping[str, Any], key: str, lowest: int, highest: int) -> int | None:
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ListingError(f"its `{key}` is {_shown(value)}, which is no whole number from {lowest} to {highest}")
    return value


def _numbers(record: Mapping[str, Any], key: str, limit: int) -> tuple[int, ...] | None:
    if key not in record:
        return None
    # A machine with one chip has null for the chips that it is connected to.
    value = record[key] or []
    if not isinstance(value, list):
        raise ListingError(f"its `{key}` is {_shown(value)}, which is no list")
    for each in value:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each < limit:
            raise ListingError(f"its `{key}` holds {_shown(each)}, which is no whole number below {limit}")
    if len(set(value)) < len(value):
        raise ListingError(f"its `{key}` holds one number twice: {_shown(value)}")
    return tuple(value)


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ListingError(f"its `{key}` is {_shown(value)}, which is no text")
    return value


def _lnc(value: object) -> int | None:
    if value is None or value == "":
        return None
    # A heading is text, a record's field a number.
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 64:
        raise ListingError(f"its logical NeuronCore config is {_shown(value)}")
    return value


def _pci(record: Mapping[str, Any]) -> str:
    text = _text(record, "bdf").lower()
    if not text:
        return ""
    if re.fullmatch(r"[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", text):
        # The JSON of older versions leaves out the domain.
        return f"0000:{text}"
    if not re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", text):
        raise ListingError(f"its `bdf` is {_shown(text)}, which is no place on a PCI bus")
    return text


def _cpus(record: Mapping[str, Any]) -> str:
    text = _text(record, "cpu_affinity")
    if text and not re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", text):
        raise ListingError(f"its `cpu_affinity` is {_shown(text)}, which is no list of CPUs")
    return text


def _numa(record: Mapping[str, Any]) -> int | None:
    value = record.get("numa_node")
    # It is a text, and "-1" where there are no NUMA nodes.
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not re.fullmatch(r"-1|\d{1,4}", str(value)):
        raise ListingError(f"its `numa_node` is {_shown(value)}, which is no number of a node")
    return int(value) if int(value) >= 0 else None


def _owners(record: Mapping[str, Any]) -> tuple[Owner, ...]:
    value = record.get("neuron_processes") or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ListingError(f"its `neuron_processes` is {_shown(value)}, which is no list of records")
    found = []
    for each in value:
        pid = _whole(each, "pid", 1, 1 << 32)
        if pid is not None:
            found.append(Owner(pid, _text(each, "command"), _numbers(each, "neuroncore_ids", _MOST_CORES) or ()))
    return tuple(found)


def _one(what: str, values: set[Any]) -> Any:
    if len(values) > 1:
        raise ListingError(f"it says more than one {what}: {', '.join(sorted(map(str, values)))}")
    return next(iter(values), None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
