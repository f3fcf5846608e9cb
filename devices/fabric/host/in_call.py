"""Being in a call of a group: one at a time, and none is left without the peers being told."""

from __future__ import annotations

import threading
from typing import final

from devices.errors import DevicesError
from devices.fabric.host.watch import Watch


@final
class InCall:
    """Held while this rank is in a call: what ends the call and is none of ours, as an interruption, peers are told.

    Args:
        lock: lets one call in at a time.
        watch: tells them.
    """

    def __init__(self, lock: threading.Lock, watch: Watch) -> None:
        self._lock = lock
        self._watch = watch

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.failed(error)
        self._lock.release()

    def failed(self, error: BaseException) -> None:
        """Hear what a call has ended by."""
        if not isinstance(error, DevicesError):
            self._watch.give_up(error, f"call {self._watch.number()} of the group")
