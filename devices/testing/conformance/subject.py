"""The backend that is looked at, and ranks of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from devices import _choice
from devices._backend import Backend, Capabilities, Device
from devices.errors import ArgumentError, BackendUnavailableError, DevicesError, PluginError, RankFailedError
from devices.testing.conformance.check import Broken, Skipped
from devices.testing.conformance.source import program_of

SIZES = (1, 2, 3, 4)
"""The sizes of the worlds that the laws are looked at in, where the backend allows them."""

OWN_THREADS = "cpu"
"""The backend that thread ranks of `devices.testing` stand for: they share memory as its processes do."""


@final
@dataclass(frozen=True)
class Subject:
    """The backend that is looked at.

    Args:
        backend: the backend.
        device: its first device.
        capabilities: that device's.
        ranks: "threads" or "processes".
        sizes: the sizes of worlds that it allows, of those that the laws are looked at in.
        seed: random programs are drawn from it.
        quick: whether to draw fewer of them.
        stands_in: whether the threads are those of `devices.testing` itself, not the backend's.
        timeout: seconds that one run on ranks may take, unless its law says otherwise.
        kept: what checks have found out already and share.
    """

    backend: Backend
    device: Device
    capabilities: Capabilities
    ranks: str
    sizes: tuple[int, ...]
    seed: int = 0
    quick: bool = False
    stands_in: bool = False
    timeout: float = 60.0
    kept: dict[object, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    @property
    def sizes_in_words(self) -> str:
        """The sizes, for a sentence."""
        return ", ".join(map(str, self.sizes)) or "none"

    def on_ranks(self, function: Callable[..., Any], size: int, *args: Any, timeout: float | None = None) -> list[Any]:
        """Call `function(world, *args)` on `size` ranks of the backend; return the results in rank order.

        Args:
            function: at the top level of a module, where ranks may be processes.
            size: how many ranks.
            args: plain data; a copy to each rank, or the same object where ranks are threads.
            timeout: seconds that it may take; the subject's if not said.

        Raises:
            Broken: a rank raised, died or did not finish; the message names the rank.
        """
        try:
            return self._run(function, size, args, self.timeout if timeout is None else timeout)
        except RankFailedError as error:
            raise Broken(_first_lines(str(error))) from error
        except (Exception, SystemExit) as error:
            raise Broken(_told(error)) from error

    def _run(self, function: Callable[..., Any], size: int, args: tuple[Any, ...], timeout: float) -> list[Any]:
        if self.ranks == "processes":
            from devices.testing._processes import run_processes

            return run_processes(function, size, *args, timeout=timeout, backend=self.name)
        from devices.testing._run import run

        backend = None if self.stands_in else self.backend
        return run(function, *args, ranks=size, timeout=timeout, backend=backend)

    def hold(self, law: Callable[..., None], size: int, *args: object, timeout: float | None = None) -> None:
        """Run `law(world, *args)` on `size` ranks.

        Raises:
            Broken: it raised on some rank; with the program that shows it.
            Skipped: a rank raised `unittest.SkipTest`, for what the law is about is not here.
        """
        try:
            self.on_ranks(law, size, *args, timeout=timeout)
        except Broken as broken:
            if (reason := _skipped(broken)) is not None:
                raise Skipped(reason) from None
            raise Broken(broken.what, program_of(law, self.name, size, *args)) from broken.__cause__


def subject(
    backend: str | Backend, *, ranks: str | None = None, seed: int = 0, quick: bool = False, timeout: float = 60.0
) -> Subject:
    """Return the subject that a backend is.

    Args:
        backend: a name, or a backend that no plugin provides, whose ranks are then threads.
        ranks: "threads" or "processes"; threads if the backend can, unless said.
        seed: random programs are drawn from it.
        quick: whether to draw fewer of them.
        timeout: seconds that one run on ranks may take, unless its law says otherwise.

    Raises:
        DevicesError: no plugin provides it, its hardware is not here, or it cannot have such ranks.
    """
    found = backend if isinstance(backend, Backend) else _choice.choose(backend).backend
    if ranks not in (None, "threads", "processes"):
        raise ArgumentError(f"ranks={ranks!r}: ranks are 'threads' or 'processes'")
    is_own = found.name == OWN_THREADS and not found.thread_ranks and isinstance(backend, str)
    ranks = ranks or ("threads" if found.thread_ranks or not isinstance(backend, str) else "processes")
    if ranks == "threads" and not (found.thread_ranks or is_own):
        raise ArgumentError(
            f"backend {found.name!r} does not say that its ranks may be threads (Backend.thread_ranks); "
            "let them be processes"
        )
    try:
        devices = found.devices()
        capabilities = found.capabilities(devices[0]) if devices else None
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"backend {found.name!r}: listing its devices and capabilities raised {type(error).__name__}: {error}"
        ) from error
    if capabilities is None:
        raise BackendUnavailableError(f"backend {found.name!r} lists no device on this host")
    # Ranks that share a device would be refused by most hardware.
    most = max(SIZES) if devices[0].type == "cpu" else len(devices)
    sizes = tuple(size for size in SIZES if size <= most and (size == 1 or capabilities.allows_group_of(size)))
    return Subject(found, devices[0], capabilities, ranks, sizes, seed, quick, ranks == "threads" and is_own, timeout)


def _told(error: BaseException) -> str:
    notes = "; ".join(getattr(error, "__notes__", ()))
    kind = "" if isinstance(error, (AssertionError, DevicesError)) else f"{type(error).__name__}: "
    return f"{kind}{error}" + (f" ({notes})" if notes else "")


def _first_lines(text: str, count: int = 40) -> str:
    lines = text.splitlines()
    return "\n".join(lines[:count] + (["..."] if len(lines) > count else []))


def _skipped(broken: Broken) -> str | None:
    cause = broken.__cause__
    if type(cause).__name__ == "SkipTest":
        return str(cause)
    if isinstance(cause, RankFailedError) and "SkipTest: " in cause.traceback:
        return cause.traceback.rpartition("SkipTest: ")[2].strip()
    return None
