"""A message whose data is asked for once what is told of it has come: which it is, is not known before."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch

from devices._backend import Group, Pending
from devices.algorithms.concurrency import concurrency
from devices.algorithms.started import go_on_beside, wait_however_long
from devices.errors import CollectiveTimeoutError


@final
class OnArrival:
    """A receive, which a thread goes on with, by `listen`: its sender may wait for it while this rank goes on.

    Args:
        group: the members.
        hears: what is told of it.
        ask: asks for its data, or raises what is wrong with it.
        what: what it is, for errors.
    """

    def __init__(self, group: Group, hears: Pending, ask: Callable[[], Pending], what: str) -> None:
        self._group, self._what = group, what
        self._hears, self._ask = hears, ask
        self._is_inference = torch.is_inference_mode_enabled()
        self._data: Pending | None = None
        self._error: BaseException | None = None
        self._is_cooperative = concurrency().is_cooperative
        self._heard = concurrency().event()

    def listen(self) -> None:
        """Wait for what is told of it, and ask for its data."""
        try:
            with torch.inference_mode() if self._is_inference else torch.no_grad():
                wait_however_long(self._hears)
                self._data = self._ask()
                go_on_beside(self._data)
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._heard.set()

    def wait(self) -> None:
        if self._is_cooperative:
            self._heard.wait()
        elif not self._heard.wait(self._group.timeout.total_seconds()):  # type: ignore[call-arg]
            group = self._group
            seconds = group.timeout.total_seconds()
            raise CollectiveTimeoutError(f"{group}: {self._what}: nothing came within {seconds:g} s, the timeout")
        self._end()

    def wait_however_long(self) -> None:
        """Wait while the program does other things."""
        self._heard.wait()
        self._end()

    def _end(self) -> None:
        if self._error is not None:
            raise self._error
        if self._data is not None:
            self._data.wait()

    def is_completed(self) -> bool:
        return self._heard.is_set() and (self._data is None or self._data.is_completed())
