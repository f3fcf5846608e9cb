"""What a backend says of itself on one host: whether it is here, which devices there are and what they can do.

Each law is a function of the backend alone, whose source is the program that shows a failure.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The sources of the laws are shown, and are to be read by themselves.

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

from devices.testing.conformance.check import Check, Tally
from devices.testing.conformance.source import host_program
from devices.testing.conformance.subject import Subject


def on_host(name: str, law: str, function: Callable[[Any], None]) -> Check:
    """Return the check that `function(backend)` raises nothing.

    Args:
        name: the check's.
        law: its sentence.
        function: as for `on_ranks`, but of the backend.
    """

    def run(subject: Subject, tally: Tally) -> None:
        try:
            function(subject.backend)
        except unittest.SkipTest as skipped:
            tally.skip(str(skipped))
        except AssertionError as error:
            tally.fail(str(error), host_program(function, subject.backend))
        except (Exception, SystemExit) as error:
            told = f"it raised {type(error).__name__}: {error}"
            tally.fail(told, host_program(function, subject.backend))
        else:
            tally.prove()

    return Check(name, law, run)


def attributes_are_plain(backend):
    from devices import INTERFACE_VERSION

    for what in ("name", "device_type", "verified"):
        value = getattr(backend, what)
        fine = isinstance(value, str) and value.strip()
        assert fine, f"{what} is {value!r}, expected words"
    whole = type(backend.priority) is int or backend.priority is None
    assert whole, f"priority is {backend.priority!r}, expected a whole number or None"
    assert type(backend.interface) is int, f"interface is {backend.interface!r}, expected a version, a whole number"
    assert 1 <= backend.interface <= INTERFACE_VERSION, f"interface {backend.interface} is not known here"
    assert type(backend.thread_ranks) is bool, f"thread_ranks is {backend.thread_ranks!r}, expected True or False"


def probe_says_why(backend):
    from devices import Probe

    found = backend.probe()
    assert type(found) is Probe, f"probe() returned {found!r}, expected a devices.Probe"
    assert type(found.present) is bool, f"present is {found.present!r}, expected True or False"
    said = isinstance(found.reason, str) and found.reason.strip()
    assert said, f"the reason is {found.reason!r}, expected words that a user can act on"


def probe_is_repeatable(backend):
    answers = [backend.probe() for _ in range(3)]
    same = all(answer == answers[0] for answer in answers)
    assert same, f"asked three times, probe() said {answers}, expected the same each time"
    found = len(backend.devices())
    if answers[0].present:
        assert found, "probe() says present, and devices() lists none"
    else:
        assert not found, f"probe() says absent, and devices() lists {found}, expected none"


def probe_is_quick(backend):
    import time

    seconds = []
    for _ in range(3):
        begin = time.monotonic()
        backend.probe()
        seconds.append(time.monotonic() - begin)
    # The first may import something, and another program may have had the processor.
    assert min(seconds) < 1, f"probe() took {min(seconds):.2f} s, expected less than 1 s"


def probe_opens_nothing(backend):
    import subprocess
    import sys
    from importlib.metadata import entry_points

    package = type(backend).__module__.partition(".")[0]
    mine = [plugin for plugin in entry_points(group="devices") if plugin.module.partition(".")[0] == package]
    mine.sort(key=lambda plugin: plugin.name != backend.name)
    if not mine:
        import unittest

        raise unittest.SkipTest("needs a plugin, and this backend is none's")
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"import {mine[0].module} as module\n"
        "offered = module.devices_backend()\n"
        "offered = offered if isinstance(offered, (list, tuple)) else [offered]\n"
        f"found = next(each for each in offered if each.name == {backend.name!r})\n"
        "found.probe()\n"
        "torch = sys.modules.get('torch')\n"
        "if torch is not None:\n"
        "    print('torch was imported')\n"
        "    module = getattr(torch, found.device_type, None)\n"
        "    if getattr(module, 'is_initialized', bool)():\n"
        "        print('a context was opened on', found.device_type)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert not done.returncode, f"in a process of its own, probe() ended with status {done.returncode}: {done.stderr}"
    assert not done.stdout, f"by probe(), in a process of its own: {' and '.join(done.stdout.splitlines())}"


def devices_are_listed_alike(backend):
    from dataclasses import replace

    first, again = ([replace(device, free=None) for device in backend.devices()] for _ in range(2))
    assert first == again, f"asked twice, devices() said {first} and then {again}, expected the same"


def devices_are_the_backends(backend):
    from devices import Device

    for device in backend.devices():
        assert isinstance(device, Device), f"devices() holds {device!r}, expected a devices.Device"
        assert device.backend == backend.name, f"{device!r} is of backend {device.backend!r}, not {backend.name!r}"
        assert device.type == backend.device_type, f"{device!r} is of type {device.type!r}, not {backend.device_type!r}"


def devices_are_in_order(backend):
    found = [device.index for device in backend.devices()]
    whole = all(type(index) is int and index >= 0 for index in found)
    assert whole, f"the indices are {found}, expected whole numbers, 0 or more"
    assert found == sorted(set(found)), f"the indices are {found}, expected each once, in order"


def devices_have_memory(backend):
    for device in backend.devices():
        for what in ("memory", "free"):
            value = getattr(device, what)
            fine = value is None or (type(value) is int and value >= 0)
            assert fine, f"{device}: {what} is {value!r}, expected bytes, or None where it is unknown"
        if device.memory is not None:
            assert device.memory > 0, f"{device}: memory is {device.memory}, expected bytes, or None"
        if device.memory is not None and device.free is not None:
            assert device.free <= device.memory, f"{device}: {device.free} bytes are free of {device.memory}"


def capabilities_are_equal(backend):
    from dataclasses import replace

    from devices import Capabilities

    for device in backend.devices():
        found = [backend.capabilities(each) for each in (device, device, replace(device))]
        for each in found:
            assert isinstance(each, Capabilities), f"capabilities({device}) is {each!r}, expected devices.Capabilities"
            assert each == found[0], f"capabilities({device}) is {found[0]} and then {each}, expected the same"


def dtypes_are_dtypes(backend):
    import torch

    for device in backend.devices():
        found = backend.capabilities(device).dtypes
        fine = isinstance(found, frozenset) and found
        assert fine, f"{device}: dtypes is {found!r}, expected a frozenset of some"
        for dtype in found:
            assert isinstance(dtype, torch.dtype), f"{device}: dtypes holds {dtype!r}, expected a torch.dtype"


def tensors_of_dtypes(world, places):
    import warnings

    import torch

    for label, place, dtypes in places:
        for dtype in dtypes:
            try:
                with warnings.catch_warnings():
                    # torch's own, about complex32.
                    warnings.simplefilter("ignore")
                    tensor = torch.empty(3, dtype=getattr(torch, dtype), device=place)
                    tensor.copy_(tensor.clone())
            except Exception as error:
                raise AssertionError(f"{label}: no tensor can be of {dtype}, which is declared: {error}") from error


def reductions_have_a_meaning(backend):
    from collections.abc import Mapping

    from devices import REDUCE_OPS

    for device in backend.devices():
        found = backend.capabilities(device)
        assert isinstance(found.reductions, Mapping), f"{device}: reductions is {found.reductions!r}"
        for op, dtypes in found.reductions.items():
            assert op in REDUCE_OPS, f"{device}: there is no reduce op {op!r}; known are {', '.join(REDUCE_OPS)}"
            assert isinstance(dtypes, frozenset), f"{device}: reductions[{op!r}] is {dtypes!r}, expected a frozenset"
            strangers = sorted(map(str, dtypes - found.dtypes))
            assert not strangers, f"{device}: {op} is declared on {strangers}, which dtypes does not have"
            for dtype in dtypes:
                is_number = dtype.is_floating_point or dtype.is_complex
                narrow = dtype.is_floating_point and dtype.itemsize == 1
                means = {"avg": is_number, "min": not dtype.is_complex, "max": not dtype.is_complex}
                meaning = means.get(op, op in ("sum", "prod") or not is_number) and not narrow
                assert meaning, f"{device}: {op} is declared on {dtype}, on which it has no meaning"


def limits_are_numbers(backend):
    for device in backend.devices():
        found = backend.capabilities(device)
        sizes = found.group_sizes
        fine = sizes is None or (sizes and all(type(size) is int and size >= 1 for size in sizes))
        assert fine, f"{device}: group_sizes is {sizes!r}, expected sizes of 1 and more, or None"
        for what in ("group_size_multiple", "max_groups", "max_streams"):
            value = getattr(found, what)
            fine = value is None or (type(value) is int and value >= 1)
            assert fine, f"{device}: {what} is {value!r}, expected 1 or more, or None"


def links_lead_to_devices(backend):
    import math

    from devices import Link

    known = {str(device) for device in backend.devices()}
    for device in backend.devices():
        for link in backend.capabilities(device).links:
            assert isinstance(link, Link), f"{device}: links holds {link!r}, expected a devices.Link"
            assert link.peer != str(device), f"{device}: a link leads back to it"
            own = link.peer.rpartition(":")[0] == backend.name
            assert not own or link.peer in known, f"{device}: a link leads to {link.peer!r}; there are {sorted(known)}"
            for what in ("bandwidth", "latency"):
                value = getattr(link, what)
                fine = value is None or (math.isfinite(value) and value > 0)
                assert fine, f"{device}: {what} to {link.peer} is {value!r}, expected more than 0, or None"


def a_group_of_all_opens(world):
    import torch

    import devices

    found = devices.all_gather(torch.tensor([world.rank], device=world.device)).tolist()
    assert found == list(range(world.size)), f"found {found}, expected {list(range(world.size))}"


def as_many_groups_open(world, count):
    import torch
    import torch.distributed as dist

    import devices

    # The world is one of them.
    groups = [dist.new_group() for _ in range(count - 1)]
    for number, group in enumerate(groups):
        given = torch.tensor([float(number + world.rank)], device=world.device)
        found = devices.all_gather(given, group).tolist()
        expected = [float(number + rank) for rank in range(world.size)]
        assert found == expected, f"group {number} of {count}: found {found}, expected {expected}"
    for group in groups:
        dist.destroy_process_group(group)


_GROUPS = 24
"""How many groups are opened of a backend that allows as many, or any number."""


_declared = on_host("capabilities.dtypes", "", dtypes_are_dtypes)


def _dtypes_are_there(subject: Subject, tally: Tally) -> None:
    _declared.run(subject, tally)
    if tally.failed:
        return
    places = []
    for device in subject.backend.devices():
        names = sorted(str(dtype).removeprefix("torch.") for dtype in subject.backend.capabilities(device).dtypes)
        place = device.type if device.type == "cpu" else f"{device.type}:{device.index}"
        places.append((str(device), place, tuple(names)))
    # On a rank and not here: some hardware gives a device to the first process that touches it, until that ends.
    tally.hold(subject, tensors_of_dtypes, 1, tuple(places))


def _sizes_open(subject: Subject, tally: Tally) -> None:
    for size in subject.sizes:
        if not tally.hold(subject, a_group_of_all_opens, size):
            return


def _groups_open(subject: Subject, tally: Tally) -> None:
    sizes = [size for size in subject.sizes if size > 1]
    if not sizes:
        tally.skip(f"needs 2 ranks, and there may be {subject.sizes_in_words}")
        return
    most = subject.capabilities.max_groups
    tally.hold(subject, as_many_groups_open, sizes[0], _GROUPS if most is None else min(most, _GROUPS))


CHECKS: tuple[Check, ...] = (
    on_host("backend.attributes", "A backend's attributes are what the interface says.", attributes_are_plain),
    on_host("probe.reason", "`probe` returns a `Probe` that says whether it is here and why.", probe_says_why),
    on_host(
        "probe.repeatable",
        "`probe` says the same each time, and `devices` lists some if it is here and none if not.",
        probe_is_repeatable,
    ),
    on_host("probe.quick", "`probe` answers within a second.", probe_is_quick),
    on_host("probe.opens_nothing", "`probe` opens no context, and does not import torch.", probe_opens_nothing),
    on_host("devices.alike", "`devices` lists the same devices each time.", devices_are_listed_alike),
    on_host("devices.own", "Each device is of the backend's own name and type.", devices_are_the_backends),
    on_host("devices.order", "Devices come in the order of their indices, each once.", devices_are_in_order),
    on_host("devices.memory", "A device's memory is bytes or unknown, and no more is free.", devices_have_memory),
    on_host(
        "capabilities.equal", "`capabilities` are equal for equal devices, whenever asked.", capabilities_are_equal
    ),
    Check("capabilities.dtypes", "A tensor on the device can be of each dtype that is declared.", _dtypes_are_there),
    on_host(
        "capabilities.reductions",
        "Reductions are declared of known ops, on dtypes that are declared and on which they have a meaning.",
        reductions_have_a_meaning,
    ),
    on_host("capabilities.limits", "Sizes and numbers of groups and streams are 1 and more.", limits_are_numbers),
    on_host("capabilities.links", "A link leads to another device, which is there.", links_lead_to_devices),
    Check("capabilities.group_sizes", "A group of each size that is declared opens.", _sizes_open),
    Check("capabilities.max_groups", "As many groups as are declared are open at once.", _groups_open),
)
