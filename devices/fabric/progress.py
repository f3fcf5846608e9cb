"""Verbs on their way: each a generator that yields what it waits for, all of a rank driven together.

A rank that waits for one of them drives the others too, so that none holds up a peer because its turn has not come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import final

import torch

from devices.errors import CollectiveError, DeadlockError
from devices.fabric.interface import Condition, Fabric
from devices.fabric.mark import Mark

Steps = Generator[Condition, None, None]
"""A verb: it runs until it has to wait and yields for what."""


@final
class FabricWork:
    """One verb of one rank. A `Pending`.

    Args:
        progress: what drives it.
        fabric: what its conditions are about.
        mark: which call it is.
        steps: the verb.
    """

    def __init__(self, progress: Progress, fabric: Fabric, mark: Mark, steps: Steps) -> None:
        self.fabric = fabric
        self.mark = mark
        self.condition: Condition | None = None
        self._progress = progress
        self._is_inference = torch.is_inference_mode_enabled()
        self._steps: Steps | None = steps
        self.error: BaseException | None = None
        self._is_told = False

    @property
    def is_done(self) -> bool:
        """Whether it was through at the last look."""
        return self._steps is None

    def advance(self) -> bool:
        """Run as far as it goes without waiting; return whether it is through."""
        if self._steps is None:
            return True
        try:
            if self.condition is None or self.fabric.holds(self.condition):
                # It may be waited for in another grad mode than it was called in.
                with torch.inference_mode() if self._is_inference else torch.no_grad():
                    self.condition = next(self._steps)
                    while self.fabric.holds(self.condition):
                        self.condition = next(self._steps)
        except StopIteration:
            self._steps = self.condition = None
        except BaseException as error:
            self.fail(error)
            self.fabric.give_up(error)
        return self._steps is None

    def fail(self, error: BaseException, *, is_told: bool = False) -> None:
        """Be through, with an error for whoever waits; `is_told` says that the program knows of it already."""
        self._steps = self.condition = None
        self.error, self._is_told = error, is_told
        self._progress.failed.append(self)

    @property
    def untold(self) -> BaseException | None:
        """What went wrong, if nobody has waited for the verb since."""
        return None if self._is_told else self.error

    def wait(self) -> None:
        self._progress.finish(self)
        if self.error is not None:
            self._is_told = True
            raise self.error

    def is_completed(self) -> bool:
        return self._progress.poll(self)

    def __str__(self) -> str:
        return str(self.mark)


@final
class Progress:
    """All verbs of one rank that are on their way.

    Args:
        between: called before each verb begins and once one was waited for; where ranks take turns it may let
            another go first.
    """

    def __init__(self, between: Callable[[], None] = lambda: None) -> None:
        self.failed: list[FabricWork] = []
        self._between = between
        self._active: list[FabricWork] = []
        # A thread of the rank's own may drive them beside the rank.
        self._lock = threading.RLock()

    def start(self, work: FabricWork) -> FabricWork:
        """Run `work` as far as it goes at once."""
        self._between()
        with self._lock:
            if not work.advance():
                self._active.append(work)
        return work

    def advance(self) -> list[tuple[Fabric, Condition]]:
        """Run all verbs as far as they go; return what they then wait for."""
        with self._lock:
            self._active = [each for each in self._active if not each.advance()]
            return [(each.fabric, each.condition) for each in self._active if each.condition is not None]

    def finish(self, work: FabricWork) -> None:
        """Block until `work` is through."""
        while not work.is_done:
            awaited = self.advance()
            if awaited and not work.is_done:
                awaited.sort(key=lambda each: each[1] is not work.condition)
                try:
                    work.fabric.wait(awaited, work)
                except CollectiveError as error:
                    self.abandon(work.fabric, error)
        self._between()

    def finish_all(self) -> None:
        """Block until nothing is on its way, and raise what went wrong with a verb that nobody has waited for."""
        while self._active:
            self.finish(self._active[0])
        for work in self.failed:
            if (error := work.untold) is not None:
                raise error

    def abandon(self, fabric: Fabric, error: CollectiveError) -> None:
        """Let all verbs over `fabric`, which was aborted, fail."""
        with self._lock:
            lost = [work for work in self._active if work.fabric is fabric]
            self._active = [work for work in self._active if work.fabric is not fabric]
            for work in lost:
                work.fail(error, is_told=True)

    def poll(self, work: FabricWork) -> bool:
        """Return whether `work` is through; if not, let others go on before the last look."""
        if not work.is_done:
            self.advance()
        if not work.is_done:
            conditions = [] if work.condition is None else [(work.fabric, work.condition)]
            try:
                work.fabric.pause(work, conditions)
            except DeadlockError:
                # It ends the whole run of the thread ranks.
                raise
            except CollectiveError as error:
                self.abandon(work.fabric, error)
            self.advance()
        return work.is_done
