"""Every error that `devices` raises. Each is also the builtin that a caller would expect.

DevicesError
├── BackendNotFoundError (LookupError)          no plugin provides that name
├── BackendUnavailableError (RuntimeError)      its plugin is here, its hardware is not
├── PluginError (ImportError)                   a plugin is broken, misspelt, or claims a taken name
├── UnsupportedError (NotImplementedError)      this backend cannot do that, and nothing composes it
├── WorldError (RuntimeError)                   no world is open, it is closed, or its variables disagree
├── MeshError (ValueError)                      axes that do not fit the world or do not exist
├── PlacementError (ValueError)                 dims, axes or patterns that match nothing
├── ArgumentError (ValueError)                  a verb was given a shape, rank, op or size that cannot be right
├── DtypeError (TypeError)                      a dtype that the op has no meaning for
├── TargetNotFoundError (LookupError)           the catalogue has no target, part or figure of that name
├── CatalogueError (ValueError)                 a file of the catalogue is wrong
├── TopologyError (ValueError)                  a graph that contradicts itself, or lacks what a question needs
├── RankFailedError (RuntimeError)              a rank in a process of its own raised, died or did not finish
└── CollectiveError (RuntimeError)              a verb failed on its way: a peer died or left
    ├── CollectiveTimeoutError (TimeoutError)   ... or did not come in time
    ├── MismatchError (ValueError)              ... or made another call than its peers
    ├── DeadlockError                           ... or waits for what no rank will do
    └── RaceError                               ... or lost its tensor to a change on its way
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DevicesError(Exception):
    """The root of all errors of `devices`."""


class BackendNotFoundError(DevicesError, LookupError):
    """No plugin provides a backend of that name."""


class BackendUnavailableError(DevicesError, RuntimeError):
    """The backend's plugin is installed, its hardware is not here; the message says why."""


class PluginError(DevicesError, ImportError):
    """A plugin is broken: it fails to import, misspells a hook, or claims a taken name."""


class UnsupportedError(DevicesError, NotImplementedError):
    """The backend cannot do what was asked, and nothing that it has composes it."""


class WorldError(DevicesError, RuntimeError):
    """No world is open, it was closed, or the variables that describe it disagree."""


class MeshError(DevicesError, ValueError):
    """Mesh axes that do not fit the world, or that do not exist."""


class PlacementError(DevicesError, ValueError):
    """A placement names an axis, a dim or a pattern that matches nothing."""


class ArgumentError(DevicesError, ValueError):
    """A verb was given a shape, a rank, an op or a size that cannot be right."""


class DtypeError(DevicesError, TypeError):
    """The reduce op has no meaning for that dtype."""


class RankFailedError(DevicesError, RuntimeError):
    """A rank in a process of its own raised, died or did not finish.

    Args:
        message: what happened, in full.
        rank: which rank.
        traceback: the traceback of what it raised, or the stacks that it had when its time was over, as text.
    """

    def __init__(self, message: str, rank: int = -1, traceback: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.traceback = traceback


class TargetNotFoundError(DevicesError, LookupError):
    """The catalogue has no target of that name, or the target has no such part, figure, limit or setting."""


class CatalogueError(DevicesError, ValueError):
    """A file of the catalogue is wrong; the message names the file, the table and the key."""


class TopologyError(DevicesError, ValueError):
    """A topology contradicts itself, is not connected, or lacks a figure that a question needs."""


class CollectiveError(DevicesError, RuntimeError):
    """A verb failed on its way; the message names the rank, the verb and the group."""


class CollectiveTimeoutError(CollectiveError, TimeoutError):
    """A verb did not finish within the group's timeout."""


class MismatchError(CollectiveError, ValueError):
    """The ranks of a group made different calls as one collective; the message names ranks, field, values and lines."""


class DeadlockError(CollectiveError):
    """Every rank waits for another; the message says where each one waits, and for what."""


class RaceError(CollectiveError):
    """A tensor was changed while a verb that had been started, and not waited for, was reading it."""


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'cuda'?" for the nearest of `known`, or nothing if none is near.

    >>> did_you_mean("cdua", ["cpu", "cuda"])
    "; did you mean 'cuda'?"
    """
    near = difflib.get_close_matches(asked, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
