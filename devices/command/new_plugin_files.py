"""What `devices new-plugin` writes: a complete backend, whose parts are to be replaced one by one."""

from __future__ import annotations

PROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "devices-NAME"
version = "0.1.0"
description = "A backend of `devices`: NAME."
requires-python = ">=3.11"
dependencies = ["devices"]

[project.optional-dependencies]
test = ["devices[testing]"]

# What makes it a plugin: the module that is named here is asked for its hooks.
[project.entry-points.devices]
NAME = "devices_NAME"

[tool.hatch.build]
# An editable install then finds the module by its folder.
dev-mode-dirs = ["."]

[tool.hatch.build.targets.wheel]
only-include = ["devices_NAME.py"]
"""

MODULE = '''\
"""A backend of `devices`: NAME. Works as it stands; what is marked REPLACE is to become your hardware's."""

import os
import threading
import time
import uuid
from collections import Counter

from devices import Backend, Capabilities, Communicator, Device, Probe, hookimpl

_BOXES: dict[str, dict[str, bytes]] = {}  # what was sent to each communicator of this process and not yet received


class KINDCommunicator(Communicator):
    """Carries messages; every verb is composed from `exchange`."""

    def __init__(self, group):
        self.group, self.process, self.box = group, os.getpid(), uuid.uuid4().hex
        self.lock, self.numbers, self.is_over = threading.Lock(), Counter(), False
        _BOXES[self.box] = {}
        group.store.set(f"home/{group.rank}", [self.process, self.box])
        self.homes = [group.store.get(f"home/{rank}") for rank in range(group.size)]

    def send(self, peer, key, data):
        """REPLACE: start to send bytes. Here: to a thread of this process by its box, to a process by the store."""
        process, box = self.homes[peer]
        if process == self.process:
            _BOXES.get(box, {})[key] = data
        else:
            self.group.store.torch.set(key, data)

    def receive(self, peer, key):
        """REPLACE: return the bytes of a message if it is here, else None; the same message is not asked for twice."""
        if self.homes[peer][0] == self.process:
            return _BOXES.get(self.box, {}).pop(key, None)
        store = self.group.store.torch
        if not store.check([key]):
            return None
        data = store.get(key)
        store.delete_key(key)
        return data

    def exchange(self, sends, recvs):
        me = self.group.rank
        with self.lock:  # two threads may call at once, with different tags
            for message in sends:
                self.send(message.peer, self.next(me, message.peer, message.tag), message.tensor.numpy().tobytes())
            return Arriving(self, [(message, self.next(message.peer, me, message.tag)) for message in recvs])

    def next(self, source, to, tag):
        """Return the key of the next message from one rank to another: those of one tag arrive in the order sent."""
        self.numbers[source, to, tag] += 1
        return f"{source}-{to}-{tag}-{self.numbers[source, to, tag]}"

    def abort(self):
        self.is_over = True

    def close(self):
        self.is_over = True
        _BOXES.pop(self.box, None)


class Arriving:
    """What `exchange` returns: messages that are still to come."""

    def __init__(self, communicator, messages):
        self.communicator, self.messages, self.lock = communicator, messages, threading.Lock()

    def is_completed(self):
        import torch

        with self.lock:
            late = []
            for message, key in self.messages:
                data = self.communicator.receive(message.peer, key)
                if data is None:
                    late.append((message, key))
                elif data:
                    message.tensor.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            self.messages = late
        return not late or self.communicator.is_over

    def wait(self):
        seconds = self.communicator.group.timeout.total_seconds()
        begin = time.monotonic()
        while not self.is_completed():
            if time.monotonic() - begin > seconds:
                raise TimeoutError(f"nothing came from rank {self.messages[0][0].peer} in {seconds:g} s")
            time.sleep(0.0005)
        if self.messages:
            raise RuntimeError("the group was aborted or closed")


class KINDBackend(Backend):
    name = "NAME"
    device_type = "cpu"  # REPLACE: torch's type of the tensors, "cuda" say
    priority = None  # REPLACE: a number lets "auto" choose it, where it is present and no other has a higher one
    interface = 1
    thread_ranks = True  # REPLACE: whether ranks may be threads of one process
    verified = "processes and threads of one host"  # REPLACE: what it has run on

    def probe(self):
        """REPLACE: look for the hardware, with nothing heavy imported and no device opened."""
        return Probe(present=True, reason="every machine has memory")

    def devices(self):
        """REPLACE: list what this process may use."""
        return [Device(self.name, self.device_type, 0)]

    def capabilities(self, device):
        """REPLACE: say what is there. What is not declared is composed from `exchange`, or refused."""
        import torch

        names = ("float32", "float64", "bfloat16", "int32", "int64", "uint8", "bool")
        return Capabilities(dtypes=frozenset(getattr(torch, name) for name in names))

    def open(self, group):
        return KINDCommunicator(group)


@hookimpl
def devices_backend():
    return KINDBackend()
'''

TEST = """\
from devices.testing.conformance import Conformance


class TestConformance(Conformance):
    backend = "NAME"
"""

README = """\
# devices-NAME

A backend of `devices`. It works as it stands: its messages go through memory between threads, and through the group's
store between processes. `devices_NAME.py` marks with REPLACE what is to become your hardware's.

```bash
pip install --editable ".[test]"
devices doctor
devices conformance NAME
pytest
```

`devices doctor` says whether it was found, `devices conformance NAME` whether it keeps every law of the interface, and
pytest does the same by `tests/test_NAME.py`. What each method must do is said in `devices.Communicator` and
`devices.Backend`.
"""

FILES = {
    "pyproject.toml": PROJECT,
    "devices_NAME.py": MODULE,
    "tests/test_NAME.py": TEST,
    "README.md": README,
}
"""The text of each file; NAME and KIND stand for the backend's name, the second as a class has it."""
