"""Reads the matrix that `nvidia-smi topo -m` prints, whole or as somebody has pasted it, as a `Machine`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from devices_cuda.machine import MAX_LINKS, Gpu, Machine, Nearness, Nic, Pair
from devices_cuda.record import RecordError, checked

_ANCESTORS = {
    "PIX": "single",
    "PXB": "multiple",
    "PHB": "hostbridge",
    "NODE": "node",
    "SYS": "system",
    "SOC": "system",  # until 2018
}
_AFFINITIES = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_GPU = re.compile(r"GPU(\d+)")
_NVLINKS = re.compile(r"NV(\d+)")
_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_RENAMED = re.compile(r"\s*(NIC\d+)\s*:\s*(\S+)\s*")
_MOST = 4096


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    name: str
    cells: tuple[str, ...]


def read_matrix(text: str) -> Machine:
    """Return the machine that the text of `nvidia-smi topo -m` shows.

    Raises:
        RecordError: it is cut off, a row or a column is missing, a word is unknown, or two cells contradict each other;
            the message says in which line.
    """
    lines = _COLOUR.sub("", text).splitlines(keepends=True)
    header, start = _header(lines)
    devices = [name for name in header if name not in _AFFINITIES]
    gpus = [name for name in devices if _GPU.fullmatch(name)]
    if devices[: len(gpus)] != [f"GPU{index}" for index in range(len(gpus))]:
        _refuse(start, f"its columns begin with {', '.join(devices[: len(gpus) + 1])}, not with GPU0, GPU1, ...")
    if len(set(header)) != len(header):
        _refuse(start, "two columns have one name")
    rows = _rows(lines, start, header, devices)
    _check_cells(rows, devices)
    names = _names(lines[start + len(rows) + 1 :], devices[len(gpus) :])
    return checked(
        Machine(
            source="nvidia-smi topo -m",
            gpus=tuple(_gpu(index, rows[index], header) for index in range(len(gpus))),
            nics=tuple(Nic(names[name]) for name in devices[len(gpus) :]),
            pairs=tuple(
                _pair(first, second, rows[first].cells[second])
                for first in range(len(gpus))
                for second in range(first + 1, len(gpus))
            ),
            nearness=tuple(
                Nearness(row, names[devices[column]], _ANCESTORS[rows[row].cells[column]])
                for row in range(len(gpus))
                for column in range(len(gpus), len(devices))
            ),
        )
    )


def _header(lines: list[str]) -> tuple[list[str], int]:
    """Return the names of the columns, and the place of the line that has them."""
    # What somebody has pasted may begin with a prompt.
    place = next((place for place, line in enumerate(lines) if line.split()[:1] == ["GPU0"]), None)
    if place is None:
        raise RecordError("this is no output of `nvidia-smi topo -m`: no line begins with GPU0, as its heading does")
    words: list[str] = []
    rest = lines[place].strip()
    while rest:
        known = next((name for name in _AFFINITIES if rest.startswith(name)), None)
        word = known or re.split(r"\s", rest, maxsplit=1)[0]
        words.append(word)
        rest = rest[len(word) :].lstrip()
    columns = [word for word in words if word not in _AFFINITIES]
    tail = words[len(columns) :]
    if words[: len(columns)] != columns or tail != list(_AFFINITIES[: len(tail)]):
        _refuse(place, f"its columns are {', '.join(words)}; those of affinity come last, in one order")
    if odd := [word for word in columns if not re.fullmatch(r"(?=.*\d)[A-Za-z][\w.-]*", word)]:
        _refuse(place, f"{odd[0]!r} is no name of a device")
    return words, place


def _rows(lines: list[str], start: int, header: list[str], devices: list[str]) -> list[_Row]:
    rows = []
    for place, name in enumerate(devices, start + 1):
        if place >= len(lines) or not lines[place].strip():
            _refuse(place, f"there is no row of {name}: the output was cut off, or a row was left out")
        if not lines[place].endswith("\n"):
            _refuse(place, "it does not end: the output was cut off")
        words = lines[place].split()
        if words[0] != name:
            _refuse(place, f"it is the row of {words[0]!r}, where that of {name} should be")
        is_gpu = _GPU.fullmatch(name) is not None
        # The columns of affinity are left empty in the rows of network devices.
        expected = len(header) if is_gpu else len(devices)
        if len(words) - 1 != expected:
            _refuse(place, f"the row of {name} has {len(words) - 1} values, where the heading has {expected}")
        rows.append(_Row(place, name, tuple(words[1:])))
    return rows


def _check_cells(rows: list[_Row], devices: list[str]) -> None:
    for row, name in enumerate(devices):
        for column, other in enumerate(devices):
            cell, opposite = rows[row].cells[column], rows[column].cells[row]
            if (cell == "X") != (row == column):
                _refuse(rows[row].number, f"{name} to {other} is {cell!r}; X is where a device meets itself")
            if row == column or cell in _ANCESTORS:
                pass
            elif (links := _NVLINKS.fullmatch(cell)) is None:
                _refuse(rows[row].number, f"{name} to {other} is {cell!r}, which is no word for a link that is known")
            elif not (_GPU.fullmatch(name) and _GPU.fullmatch(other) and 1 <= int(links[1]) <= MAX_LINKS):
                _refuse(rows[row].number, f"{name} to {other} is {cell!r}: NVLinks join GPUs, 1 to {MAX_LINKS} of them")
            if cell != opposite:
                _refuse(rows[row].number, f"{name} to {other} is {cell}, and {other} to {name} is {opposite}")


def _gpu(index: int, row: _Row, header: list[str]) -> Gpu:
    said = dict(zip(header, row.cells, strict=True))
    _nodes(row, "CPU Affinity", said)
    nodes = _nodes(row, "NUMA Affinity", said)
    own = _nodes(row, "GPU NUMA ID", said)
    if own is not None and own[0] != own[1]:
        _refuse(row.number, f"the GPU NUMA ID of {row.name} is {said['GPU NUMA ID']!r}, not one number")
    # The nodes of GPUs' own memory may be in the list; the host's comes first.
    return Gpu(index, numa=None if nodes is None else nodes[0], memory_numa=None if own is None else own[0])


def _nodes(row: _Row, column: str, said: dict[str, str]) -> tuple[int, int] | None:
    """Return the first and the last number of a list such as "0,3-9"; None for one that is not there."""
    text = said.get(column, "N/A")
    if text == "N/A":
        return None
    if _RANGES.fullmatch(text) is None:
        _refuse(row.number, f"the {column} of {row.name} is {text!r}, which is no list of numbers")
    numbers = [int(number) for number in re.split("[,-]", text)]
    if numbers != sorted(numbers) or numbers[-1] >= _MOST:
        _refuse(row.number, f"the {column} of {row.name} is {text!r}, whose numbers do not rise to less than {_MOST}")
    return numbers[0], numbers[-1]


def _pair(first: int, second: int, cell: str) -> Pair:
    links = _NVLINKS.fullmatch(cell)
    if links is None:
        return Pair(first, second, ancestor=_ANCESTORS[cell], nvlinks=0)
    # What is between them on PCI is not shown where there are NVLinks.
    return Pair(first, second, nvlinks=int(links[1]))


def _names(lines: list[str], nics: list[str]) -> dict[str, str]:
    """Return the name of each network device, which a legend below the matrix may give to NIC0, NIC1, ..."""
    names = {name: name for name in nics}
    for line in lines:
        found = _RENAMED.fullmatch(line)
        # A last line without an end may be half a name.
        if found is not None and found[1] in names and line.endswith("\n"):
            names[found[1]] = found[2]
    return names


def _refuse(place: int, why: str) -> NoReturn:
    raise RecordError(f"`nvidia-smi topo -m`, line {place + 1}: {why}")
