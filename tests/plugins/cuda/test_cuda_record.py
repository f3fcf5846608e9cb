"""A machine as JSON: there and back, and every way of damage refused."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cuda_claims import wrong
from cuda_machines import RECORDS, machine, text

from devices.errors import TopologyError
from devices.topology import Topology
from devices_cuda.graph import topology
from devices_cuda.record import RecordError, from_json, to_json

Path = tuple[str | int, ...]


@pytest.mark.parametrize("name", RECORDS)
def test_a_machine_is_the_same_after_it_was_written_down(name: str) -> None:
    assert from_json(to_json(machine(name))) == machine(name)


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_says_where_it_is_from(name: str) -> None:
    assert len(machine(name).source) > 20


def fields(data: Any, at: Path = ()) -> Iterator[Path]:
    """Yield the path of every field of a record; of what is in a list, those of one."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*at, key)
            yield from fields(value, (*at, key))
    elif isinstance(data, list) and data:
        place = 0 if len(at) < 2 else len(data) // 2
        yield from fields(data[place], (*at, place))


def changed(data: Any, at: Path, change: Callable[[Any, str | int], None]) -> str:
    """Return the text of a record in which a value was changed."""
    other = copy.deepcopy(data)
    holder = other
    for step in at[:-1]:
        holder = holder[step]
    change(holder, at[-1])
    return json.dumps(other)


def is_right_or_refused(damaged: str, name: str) -> bool:
    """Return whether it was refused; what it describes, if it was not, is no more than is true."""
    try:
        graph = topology(from_json(damaged))
    except (RecordError, TopologyError) as error:
        return len(str(error)) > 10
    assert wrong(graph, truth(name)) == []
    return False


@functools.cache
def truth(name: str) -> Topology:
    return topology(machine(name))


DAMAGED = ("gb200-tray.json", "a100-pcie-bridges.json", "mig.json")


@pytest.mark.parametrize("name", DAMAGED)
def test_without_any_one_value_it_is_refused_or_right(name: str) -> None:
    data = json.loads(text(name))
    required = [
        at for at in fields(data) if is_right_or_refused(changed(data, at, lambda holder, key: holder.pop(key)), name)
    ]
    assert ("format",) in required
    assert ("source",) in required
    assert ("gpus", 0, "index") in required


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("value", [None, -1, "x", True, 2.5, [], {}, 2**70], ids=repr)
def test_with_any_one_value_of_another_type_it_is_refused_or_right(name: str, value: object) -> None:
    data = json.loads(text(name))

    def put(holder: Any, key: str | int) -> None:
        holder[key] = value

    for at in fields(data):
        if at[-1] == "name" and isinstance(value, str):
            continue  # another name is as good
        is_right_or_refused(changed(data, at, put), name)


@pytest.mark.parametrize("name", DAMAGED)
def test_cut_off_anywhere_it_is_refused(name: str) -> None:
    whole = text(name).rstrip()
    for kept in range(0, len(whole), 37):
        with pytest.raises(RecordError, match="no JSON"):
            from_json(whole[:kept])


def with_gpu(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["gpus"][0].update(fields)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "MiB": (with_gpu(memory=81559, free=81000), "GPU 0: memory=81559 is no GPU's memory in bytes"),
    "kilobytes": (with_gpu(memory=83516416, free=0), "memory=83516416 is no GPU's memory in bytes"),
    "bits": (with_gpu(memory=85520809984 * 1000), "is no GPU's memory in bytes"),
    "text of a size": (with_gpu(memory="80 GiB"), "the record.gpus[0].memory is '80 GiB', not of type int"),
    "more free than there is": (with_gpu(free=2**42), "GPU 0: free=4398046511104 of memory="),
    "a float": (with_gpu(memory=8.5e10), "memory is 85000000000.0, not of type int"),
    "a bool for a number": (with_gpu(numa=True), "numa is True, not of type int"),
    "a number for a bool": (with_gpu(mig=1), "mig is 1, not of type bool"),
    "capability 90": (with_gpu(capability=[90, 10]), "GPU 0: capability=(90, 10)"),
    "capability as text": (with_gpu(capability="9.0"), "capability is '9.0', not a list"),
    "capability of three": (with_gpu(capability=[9, 0, 0]), "capability has 3 values, not 2"),
    "no NUMA node": (with_gpu(numa=-1), "GPU 0: numa=-1, not from 0 to 65536"),
    "a generation of 128": (with_gpu(pcie_generation=128), "pcie_generation=128, not from 1 to 9"),
    "NVML's spelling of PCI": (with_gpu(pci="00000000:1B:00.0", path=None), "'00000000:1B:00.0' with None is no place"),
    "a path to another": (with_gpu(path=["0000:00:01.0", "0000:02:00.0"]), "is no place on the PCI bus"),
    "a path in a circle": (with_gpu(path=["0000:01:00.0"] * 2, pci="0000:01:00.0"), "is no place on the PCI bus"),
    "an empty path": (with_gpu(path=[]), "is no place on the PCI bus"),
    "no UUID": (with_gpu(uuid="0"), "uuid='0' does not begin with 'GPU-'"),
    "NVML's code for a version": (with_gpu(nvlinks=[{"number": 0, "version": 6}]), "version is 6, not of type str"),
    "a bare version": (with_gpu(nvlinks=[{"number": 0, "version": "6"}]), "version='6'; it is one such as '4.0'"),
    "a 37th link": (with_gpu(nvlinks=[{"number": 36}]), "NVLink 36: there are at most 36"),
    "a link twice": (with_gpu(nvlinks=[{"number": 1}, {"number": 1}]), "GPU 0 has one NVLink twice"),
    "another maker's": (with_gpu(nvlinks=[{"number": 0, "remote": "trainium"}]), "remote='trainium'; it is"),
    "a peer that is no address": (with_gpu(nvlinks=[{"number": 0, "peer": "GPU1"}]), "peer='GPU1' is no PCI address"),
    "a state that is none": (with_gpu(fabric={"state": "done"}), "fabric state 'done'; it is one of"),
    "a short cluster": (with_gpu(fabric={"state": "completed", "cluster": "12ab"}), "cluster='12ab' is not 32"),
    "instances without MIG": (with_gpu(mig=False, instances=[{"uuid": "MIG-1"}]), "has MIG instances, but mig=False"),
    "an instance that is a GPU": (with_gpu(mig=True, instances=[{"uuid": "GPU-1"}]), "does not begin with 'MIG-'"),
    "a field of the future": (with_gpu(warp=9), "the record.gpus[0] has 'warp', which no Gpu has"),
    "another format": (lambda data: data.update(format="devices-cuda-machine-2"), "this has 'devices-cuda-machine-2'"),
    "GPUs in disorder": (lambda data: data["gpus"].reverse(), "the GPUs are not numbered 0, 1, ..."),
    "a GPU twice": (lambda data: data["gpus"][1].update(uuid=data["gpus"][0]["uuid"]), "two GPUs have one uuid"),
    "a pair of one": (lambda data: data["pairs"][0].update(second=0), "GPUs 0 and 0 are no two GPUs of"),
    "a pair backwards": (lambda data: data["pairs"][0].update(first=1, second=0), "GPUs 1 and 0 are no two GPUs of"),
    "a pair past the last": (lambda data: data["pairs"][0].update(second=64), "GPUs 0 and 64 are no two GPUs of"),
    "a pair twice": (lambda data: data["pairs"].append(data["pairs"][0]), "GPUs 0 and 1 are there twice"),
    "nvidia-smi's word": (lambda data: data["pairs"][0].update(ancestor="PIX"), "ancestor='PIX'; it is one of"),
    "too many links": (lambda data: data["pairs"][0].update(nvlinks=600), "GPUs 0 and 1: nvlinks=600"),
    "near to nothing": (
        lambda data: data.update(nearness=[{"gpu": 0, "nic": "eth7", "ancestor": "node"}]),
        "GPU 0 and network device 'eth7' are not both there",
    ),
    "two of one name": (lambda data: data.update(nics=[{"name": "a"}] * 2), "two network devices have one name"),
    "a GPU's address": (
        lambda data: data.update(nics=[{"name": "a", "pci": data["gpus"][0]["pci"]}]),
        "a GPU and network device ['a'] have one PCI address",
    ),
    "CUDA as NVML has it": (lambda data: data.update(cuda=[12080, 0]), "no driver serves CUDA (12080, 0)"),
    "an object for a list": (lambda data: data.update(gpus={}), "the record.gpus is {}, not a list"),
}  # fmt: skip
"""What is done to a record, and what is said of it."""


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told_of_by_the_value_and_what_is_wrong(kind: str) -> None:
    damage, told = DAMAGE[kind]
    data = json.loads(text("a100-pcie-bridges.json"))
    damage(data)
    with pytest.raises(RecordError, match=re.escape(told)):
        from_json(json.dumps(data))


@pytest.mark.parametrize("damaged", ["", "[]", "null", "7", "{}", "[" * 100_000, '{"format": 1}', "\x00"])
def test_what_is_no_record_is_refused(damaged: str) -> None:
    with pytest.raises(RecordError, match="a machine's record"):
        from_json(damaged)
