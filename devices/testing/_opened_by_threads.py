"""A backend whose ranks are threads of one process: it, and all that they have opened on it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Sequence
from typing import final

from devices._backend import Backend, Capabilities, Communicator, Device, Group, Probe


@final
class OpenedByThreads(Backend):
    """A backend that can end the ranks which wait in it.

    Args:
        backend: the backend.
    """

    # A world asks for these; they are the backend's.
    name = ""
    device_type = ""
    priority = None

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name  # type: ignore[misc]  # of the class, for all others
        self.device_type = backend.device_type  # type: ignore[misc]
        self._opened: weakref.WeakSet[Communicator] = weakref.WeakSet()
        self._lock = threading.Lock()

    def probe(self) -> Probe:
        return self._backend.probe()

    def devices(self) -> Sequence[Device]:
        return self._backend.devices()

    def capabilities(self, device: Device) -> Capabilities:
        return self._backend.capabilities(device)

    def open(self, group: Group) -> Communicator:
        communicator = self._backend.open(group)
        # What is none is refused by whoever asked for it.
        if isinstance(communicator, Communicator):
            with self._lock:
                self._opened.add(communicator)
        return communicator

    def abort(self) -> None:
        """Make every verb that waits in what was opened fail, if the backend does so within seconds."""
        thread = threading.Thread(target=self._abort, daemon=True)
        thread.start()
        thread.join(2.0)

    def _abort(self) -> None:
        with self._lock:
            opened = list(self._opened)
        for communicator in opened:
            # A rank that has failed is told; that others could not be ended is not.
            with contextlib.suppress(Exception):
                communicator.abort()
