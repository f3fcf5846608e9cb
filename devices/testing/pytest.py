"""The pytest door: tests that run on many ranks.

Asked for by `pytest_plugins = ["devices.testing.pytest"]` in the conftest.py of a test suite's root:

* `@pytest.mark.ranks(8)` runs the test's body on 8 ranks, each a thread; `processes=True` makes them processes.
* `process_ranks` is a fixture that runs a function on processes.
* `--devices-target=NAME` runs the marked tests as if on that target, `--devices-backend=NAME` on real devices.
"""

from __future__ import annotations

import inspect
import unittest
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, final

import pytest

from devices.errors import ArgumentError, DevicesError, WorldError, did_you_mean

if TYPE_CHECKING:
    from devices.testing._process_child import InPytest

T = TypeVar("T")

_THREADS_ONLY = ("seed", "schedules", "parallel", "target", "assume")
_KEYWORDS = ("processes", "timeout", *_THREADS_ONLY)
_SIZE = "_devices_ranks"

_MARK = (
    "ranks(*sizes, processes=False, timeout=None, seed=0, schedules=1, parallel=False, target=None, assume=None): run "
    "the test's body on that many ranks, once for each size; `world` is the rank's own. Ranks are threads, to which "
    "seed, schedules, parallel, target and assume belong, or processes."
)


@final
class ProcessRanks:
    """What the fixture `process_ranks` gives: call it to run a function on ranks that are processes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def __call__(
        self,
        fn: Callable[..., T],
        ranks: int,
        *args: Any,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        backend: str | None = None,
    ) -> list[T]:
        """Call `fn(world, *args)` on each of `ranks` processes, as `devices.testing.run_processes` does.

        `backend` is that of `--devices-backend`, unless it is said here.
        """
        from devices.testing._processes import run_outcomes, values
        from devices.testing._sending import pack

        __tracebackhide__ = True
        if backend is None and (asked := _backend(self._config)):
            _skip_without(asked, ranks)
        on = backend or _backend(self._config) or "auto"
        parcel = pack(fn, args)
        return values(
            run_outcomes(parcel, ranks, timeout=timeout, env=env, backend=on, in_pytest=_in_pytest(self._config))
        )


@pytest.fixture(scope="session")
def process_ranks(pytestconfig: pytest.Config) -> ProcessRanks:
    """Run a function on ranks that are processes: `process_ranks(function, 4, *arguments)`."""
    if target := _target(pytestconfig):
        pytest.skip(f"process ranks do not emulate a target, and --devices-target={target} is given")
    return ProcessRanks(pytestconfig)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Any:
    """The rank's own world, in the body of a test that is marked `ranks`."""
    if request.node.get_closest_marker("ranks") is None:
        pytest.fail("the test asks for `world`, but has no mark that says on how many: @pytest.mark.ranks(4)", False)
    return _Outside()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("devices")
    group.addoption(
        "--devices-target",
        metavar="NAME",
        help="run the tests that are marked `ranks` as if on that target, unless they name one themselves",
    )
    group.addoption(
        "--devices-backend",
        metavar="NAME",
        help="run the tests that are marked `ranks` on real devices, each rank a process on that backend",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and refuse options that contradict each other or name what there is not."""
    config.addinivalue_line("markers", _MARK)
    backend, target = _backend(config), _target(config)
    if backend and target:
        raise pytest.UsageError(
            f"--devices-target={target} emulates and --devices-backend={backend} runs on real devices: give one of them"
        )
    try:
        if backend:
            from devices import _registry

            _registry.backend(backend)
        if target:
            from devices import catalogue

            catalogue.load(target)
    except DevicesError as error:
        option = f"--devices-backend={backend}" if backend else f"--devices-target={target}"
        raise pytest.UsageError(f"{option}: {error}") from error


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say where the ranks run, where it was asked for."""
    if backend := _backend(config):
        return f"devices: ranks are processes on backend {backend!r}"
    if (target := _target(config)) is None:
        return None
    from devices import catalogue

    mark = " (speculative)" if catalogue.load(target).speculative else ""
    return f"devices: ranks are threads, as if on target {target!r}{mark}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of each size that the mark names."""
    if (ranks := _ranks(metafunc.definition)) and len(ranks.sizes) > 1:
        metafunc.fixturenames.append(_SIZE)
        metafunc.parametrize(_SIZE, ranks.sizes, ids=[f"ranks{size}" for size in ranks.sizes])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the server that process ranks are forked from, so that it is warm when the first test needs it."""
    if session.config.getoption("collectonly"):
        return
    for item in session.items:
        mark = item.get_closest_marker("ranks")
        on_processes = mark is not None and (mark.kwargs.get("processes") or _backend(session.config))
        if on_processes or "process_ranks" in getattr(item, "fixturenames", ()):
            from devices.testing._processes import warm_up

            warm_up()
            return


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or refuse what cannot run on ranks, before its fixtures are set up."""
    if (ranks := _ranks(item)) is None or not isinstance(item, pytest.Function):
        return
    if item.cls is not None and issubclass(item.cls, unittest.TestCase):
        pytest.fail("the mark `ranks` is for plain test functions, not for the methods of a unittest.TestCase", False)
    if inspect.iscoroutinefunction(item.obj):
        pytest.fail("the mark `ranks` is for plain test functions, not for coroutines", False)
    if getattr(item.obj, "is_hypothesis_test", False):
        pytest.fail("hypothesis would draw other examples on each rank; call devices.testing.run in the test", False)
    if backend := _backend(item.config):
        if "target" in ranks.keywords and ranks.keywords["target"] is not None:
            pytest.skip(f"is about target {ranks.keywords['target']!r}, not about backend {backend!r}")
        _skip_without(backend, _size(item, ranks))
    elif ranks.processes and (target := _target(item.config)):
        pytest.skip(f"process ranks do not emulate a target, and --devices-target={target} is given")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the body of a marked test on its ranks."""
    __tracebackhide__ = True
    if (ranks := _ranks(pyfuncitem)) is None:
        return None
    names = [name for name in inspect.signature(pyfuncitem.obj).parameters if name in pyfuncitem.funcargs]
    call = _Call(pyfuncitem, _size(pyfuncitem, ranks), {name: pyfuncitem.funcargs[name] for name in names})
    if ranks.processes or _backend(pyfuncitem.config):
        _on_processes(call, ranks)
    else:
        _on_threads(call, ranks)
    return True


@dataclass(frozen=True, slots=True)
class _Ranks:
    """What a mark says."""

    sizes: tuple[int, ...]
    processes: bool
    keywords: Mapping[str, Any] = field(default_factory=dict)


@final
class _Call:
    """A test's body and the arguments that all ranks have in common."""

    def __init__(self, item: pytest.Function, size: int, arguments: dict[str, Any]) -> None:
        self.item = item
        self.size = size
        # A fixture `world` of the suite's own is an argument like any other.
        self.wants_world = isinstance(arguments.get("world"), _Outside)
        self.arguments = {name: value for name, value in arguments.items() if not isinstance(value, _Outside)}


@final
class _Outside:
    """What stands for `world` outside of the ranks."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise WorldError(
            f"world.{name}: fixtures are set up once, outside of the ranks, where there is no world; use it in the "
            "body of the test"
        )


def _on_threads(call: _Call, ranks: _Ranks) -> None:
    from devices.testing import run

    __tracebackhide__ = True
    raised: list[tuple[int, BaseException]] = []

    def on_rank(world: Any) -> None:
        __tracebackhide__ = True
        own = {"world": world} if call.wants_world else {}
        rank = world.rank
        try:
            call.item.obj(**call.arguments, **own)
        except BaseException as error:
            raised.append((rank, error))
            raise

    keywords = dict(ranks.keywords)
    if (target := _target(call.item.config)) and "target" not in keywords:
        keywords["target"] = target
    try:
        run(on_rank, ranks=call.size, **{name: value for name, value in keywords.items() if value is not None})
    except BaseException as error:
        by = [rank for rank, other in raised if other is error]
        if by and isinstance(error, AssertionError):
            said = str(error.args[0]) if error.args else "AssertionError"
            error.args = (f"rank {by[0]} of {call.size}: {said}", *error.args[1:])
        elif not by and isinstance(error, DevicesError):
            # Of a deadlock, say: the message tells where ranks are, and the frames are those of `run`.
            raise error.with_traceback(None) from error.__cause__
        raise


def _on_processes(call: _Call, ranks: _Ranks) -> None:
    from devices.testing._processes import run_outcomes
    from devices.testing._sending import pack

    config, given = call.item.config, call.arguments
    try:
        parcel = pack(
            _body,
            [call.item.obj, call.wants_world, list(warnings.filters), list(given), *given.values()],
            ["the test", "", "the warning filters", "", *[f"the fixture {name!r}" for name in given]],
        )
    except ArgumentError as error:
        pytest.fail(str(error), pytrace=False)
    outcomes = run_outcomes(
        parcel,
        call.size,
        timeout=ranks.keywords.get("timeout") or 60.0,
        backend=_backend(config) or "auto",
        in_pytest=_in_pytest(config),
    )
    if (failure := outcomes.error()) is None:
        return
    first = outcomes.by_rank[outcomes.failed[0]]
    reason = first.headline.partition(": ")[2]
    if first.kind == "Skipped":
        pytest.skip(reason)
    if first.kind == "XFailed":
        pytest.xfail(reason)
    pytest.fail(str(failure), pytrace=False)


def _body(
    world: Any, test: Callable[..., object], wants_world: bool, filters: list[Any], names: Sequence[str], *values: Any
) -> None:
    """Run a test's body on a rank that is a process."""
    __tracebackhide__ = True
    arguments = dict(zip(names, values, strict=True))
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filters[:] = filters  # type: ignore[index]
        test(**arguments, **({"world": world} if wants_world else {}))


def _ranks(item: pytest.Item) -> _Ranks | None:
    """Return what the mark of `item` says; None if it has none."""
    if (mark := item.get_closest_marker("ranks")) is None:
        return None
    written = (
        f"@pytest.mark.ranks({', '.join([*map(repr, mark.args), *(f'{k}={v!r}' for k, v in mark.kwargs.items())])})"
    )
    if not mark.args or not all(type(size) is int and size >= 1 for size in mark.args):
        pytest.fail(f"{written}: say on how many ranks, by one or more whole numbers, as in ranks(2, 8)", False)
    for name in mark.kwargs:
        if name not in _KEYWORDS:
            known = f"{did_you_mean(name, _KEYWORDS)}; known are {', '.join(_KEYWORDS)}"
            pytest.fail(f"{written}: there is no {name!r}{known}", False)
    keywords = {name: value for name, value in mark.kwargs.items() if name != "processes"}
    processes = bool(mark.kwargs.get("processes"))
    if processes and (wrong := [name for name in keywords if name in _THREADS_ONLY]):
        pytest.fail(f"{written}: {', '.join(wrong)} is for ranks that are threads, not for processes", False)
    return _Ranks(mark.args, processes, keywords)


def _size(item: pytest.Function, ranks: _Ranks) -> int:
    if len(ranks.sizes) == 1:
        return ranks.sizes[0]
    return int(str(item.callspec.params[_SIZE]))


def _backend(config: pytest.Config) -> str | None:
    name: str | None = config.getoption("--devices-backend")
    return name


def _target(config: pytest.Config) -> str | None:
    name: str | None = config.getoption("--devices-target")
    return name


def _skip_without(backend: str, ranks: int) -> None:
    """Skip the test if `backend` has fewer devices than there are ranks."""
    from devices import _registry

    found = _registry.outcome(backend)
    devices = _registry.devices_of(backend) if found.present else ()
    # Any number of ranks may share the processors of a host.
    if len(devices) < ranks and not any(device.type == "cpu" for device in devices):
        pytest.skip(f"needs {ranks} {backend} devices, found {len(devices)}: {found.reason}")


def _in_pytest(config: pytest.Config) -> InPytest:
    from devices.testing._process_child import InPytest

    return InPytest(config.get_verbosity(), "long" if config.getoption("tbstyle") in ("auto", "long") else "short")
