"""`check()`: an existing torchrun program, unchanged, on thread ranks under a target, and all that does not fit."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist

from devices.catalogue import load
from devices.errors import ArgumentError
from devices.meeting.launch import launch
from devices.testing._device_tensors import device_tensors
from devices.testing._emulation import emulate
from devices.testing._portability import Finding, as_data, find
from devices.testing._report import Report
from devices.testing._run import run_program


@final
@dataclass(frozen=True, slots=True)
class Checked:
    """What came of a program.

    Args:
        script: the program.
        ranks: on how many it ran.
        findings: what in its source is bound to one vendor.
        report: what it asked of the target; None where no target was named.
        error: what ended it before its end, "" if nothing did; with the rank and the line.
        stands_in: what answered for a device that is not here, "" if nothing had to.
    """

    script: str
    ranks: int
    findings: tuple[Finding, ...]
    report: Report | None
    error: str
    stands_in: str

    @property
    def is_portable(self) -> bool:
        """Whether it runs to its end, is bound to no vendor and asks for nothing that the target refuses."""
        return not (self.error or self.findings or (self.report is not None and self.report.refused))

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data that JSON can carry."""
        return {
            "script": self.script,
            "ranks": self.ranks,
            "portable": self.is_portable,
            "findings": as_data(self.findings),
            "report": None if self.report is None else self.report.as_data(),
            "error": self.error,
            "stands_in": self.stands_in,
        }


def check(
    script: str | Path,
    arguments: Sequence[str] = (),
    *,
    ranks: int = 2,
    target: str | None = None,
    timeout: float = 600.0,
) -> Checked:
    """Run `script` as torchrun would, on thread ranks, and return all in it that is bound to a vendor or refused.

    The program runs to its end: what the target refuses is listed, not raised, and what our verbs compose is listed
    apart. Where it asks for CUDA and this machine has none, its tensors are marked as on such a device, else as on
    the target's, and lie in the CPU's memory.

    Args:
        script: a Python program that is started by torchrun.
        arguments: its own.
        ranks: how many.
        target: its name in the catalogue; None checks the source, and runs it with no limits.
        timeout: seconds that it may take.

    Raises:
        ArgumentError: there is no such program, or it cannot be parsed.
        TargetNotFoundError: there is no such target.
    """
    path = Path(script).resolve()
    findings = find(script)
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    # What our verbs compose they compose there too; torch's own go straight to the vendor's group.
    limits = emulate(target, compose=True, enforce=False) if target is not None else contextlib.nullcontext()
    stands_in = _device_type(findings, target)
    error = ""
    with limits as emulation, _as_the_main_program(path, arguments), _process_groups_of_ours():
        try:
            run_program(functools.partial(_program, code, path, stands_in), ranks=ranks, timeout=timeout)
        except Exception as caught:
            error = _told(caught, path)
    report = None if emulation is None else emulation.report
    return Checked(str(script), ranks, findings, report, error, stands_in)


def _device_type(findings: Sequence[Finding], target: str | None) -> str:
    """Return the type of device that the program is to find: CUDA's where it asks for that, else the target's own."""
    found = "cuda" if findings else load(target).limits.device_type if target is not None else ""
    return "" if found == "cuda" and torch.cuda.is_available() else found


def _program(code: Any, path: Path, device_type: str) -> None:
    """Be the program, on one rank's thread."""
    rank = int(os.environ["LOCAL_RANK"])
    # What the program looks up in its own module, to pickle a class of its own for instance, it finds there.
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = str(path)
    on: AbstractContextManager[object] = device_tensors(device_type, rank) if device_type else contextlib.nullcontext()
    with on:
        try:
            exec(code, vars(main))
        except SystemExit as end:
            if end.code not in (None, 0):
                raise ArgumentError(f"the program ended itself with exit status {end.code!r}") from end


@contextlib.contextmanager
def _as_the_main_program(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Let the program find its arguments and its own modules."""
    argv, searched, modules, exit_at_once = sys.argv, sys.path[:], set(sys.modules), os._exit
    folder = str(path.parent)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, folder)
    os._exit = lambda status: sys.exit(status)
    try:
        yield
    finally:
        sys.argv, sys.path[:], os._exit = argv, searched, exit_at_once
        # Another check may bring modules of the same names.
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(folder + os.sep):
                del sys.modules[name]


@contextlib.contextmanager
def _process_groups_of_ours() -> Iterator[None]:
    """Let a thread rank that asks torch for a process group, of whatever backend, have one over its peers."""
    module = dist.distributed_c10d
    init, new = module.init_process_group, module.new_group

    @functools.wraps(init)
    def init_process_group(
        backend: str | None = None, init_method: str | None = None, timeout: timedelta | None = None, *args: Any,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        if told := launch():
            init("devices", None, timeout, told.size, told.rank, told.store)
        else:
            init(backend, init_method, timeout, *args, **kwargs)

    @functools.wraps(new)
    def new_group(ranks: Any = None, timeout: Any = None, backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        return new(ranks, timeout, backend if launch() is None else None, *args, **kwargs)

    changed = {"init_process_group": init_process_group, "new_group": new_group}
    before = {name: getattr(module, name) for name in changed}
    for where in (module, dist):
        for name, function in changed.items():
            setattr(where, name, function)
    try:
        yield
    finally:
        for where in (module, dist):
            for name, function in before.items():
                setattr(where, name, function)


def _told(error: Exception, path: Path) -> str:
    """Return an error with its rank and the program's line that led to it."""
    notes = "; ".join(getattr(error, "__notes__", ()))
    lines = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    mine = [line for line in lines if line.startswith(str(path.parent))]
    where = f" at {mine[-1]}" if mine else ""
    return f"{type(error).__name__}{where}: {error}" + (f" ({notes})" if notes else "")
