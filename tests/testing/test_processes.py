"""Ranks that are processes: what they get, what comes back, what is said of one that fails, and who is left behind."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import devices
from devices.errors import ArgumentError, RankFailedError
from devices.testing._processes import run_processes

pytestmark = pytest.mark.slow


def add(world: devices.World, number: int) -> tuple[int, int]:
    return world.rank, devices.all_reduce(torch.tensor(number + world.rank)).item()


def test_results_come_in_rank_order_and_the_world_is_open() -> None:
    assert run_processes(add, 4, 10) == [(rank, 46) for rank in range(4)]


def surroundings(world: devices.World) -> dict[str, str]:
    return dict(os.environ) | {"folder": str(Path.cwd()), "torch": str(dist.get_rank()), "world": str(world.rank)}


def test_ranks_have_the_variables_of_torchrun_of_this_process_and_those_that_are_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OF_THIS_PROCESS", "here")
    monkeypatch.setenv("RANK", "17")
    monkeypatch.chdir(tmp_path)
    for rank, found in enumerate(run_processes(surroundings, 2, env={"GIVEN": "1"})):
        expected = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        expected |= {"OF_THIS_PROCESS": "here", "GIVEN": "1", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        expected |= {"folder": str(tmp_path), "torch": str(rank), "world": str(rank)}
        assert found.items() >= expected.items()


def server(world: devices.World) -> tuple[int, int]:
    return os.getppid(), id(torch)


def test_all_runs_fork_from_one_server_that_has_torch_loaded() -> None:
    found = {*run_processes(server, 2), *run_processes(server, 8)}
    # Where each had loaded it by itself it would not be at the same address.
    [(pid, _)] = found
    assert b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert pid != os.getpid()


def change(world: devices.World, tensor: torch.Tensor) -> torch.Tensor:
    tensor += world.rank
    return torch.cat([tensor, torch.zeros(2_000_000)])


def test_tensors_go_and_come_as_copies() -> None:
    tensor = torch.tensor([1.0, 2.0])
    results = run_processes(change, 3, tensor)
    assert tensor.tolist() == [1.0, 2.0]
    assert [result[:2].tolist() for result in results] == [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]
    assert all(result.numel() == 2_000_002 for result in results)


def draw(world: devices.World) -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), torch.rand(()).item()


def test_random_numbers_are_those_of_a_fresh_process() -> None:
    python, numpy, ours = zip(*run_processes(draw, 4), strict=True)
    assert len(set(python)) == len(set(numpy)) == 4
    # torch's seed, unless one is set, is the same in every process.
    assert len(set(ours)) == 1


def speak(world: devices.World) -> None:
    print(f"this is {world.rank}")
    if world.rank == 1:
        os.write(2, b"and this\n")


def test_what_ranks_print_is_printed_here(capsys: pytest.CaptureFixture[str]) -> None:
    run_processes(speak, 2)
    assert capsys.readouterr().out == "rank 0 of 2 printed:\nthis is 0\nrank 1 of 2 printed:\nthis is 1\nand this\n"


def read(world: devices.World) -> list[int]:
    return [int(batch) for batch in DataLoader([1, 2, 3], batch_size=None, num_workers=1)]  # type: ignore[arg-type]


def test_a_rank_may_start_processes_of_its_own() -> None:
    assert run_processes(read, 1) == [[1, 2, 3]]


def raise_on_two(world: devices.World) -> None:
    print(f"rank {world.rank} was here")
    if world.rank == 2:
        raise ValueError("no luck")
    devices.barrier()


def test_the_error_of_a_rank_names_it_and_shows_its_traceback_and_what_was_printed() -> None:
    start = time.monotonic()
    with pytest.raises(RankFailedError) as caught:
        run_processes(raise_on_two, 4)
    assert time.monotonic() - start < 50, "the ranks that waited were not ended"
    said = str(caught.value)
    assert said.startswith("rank 2 of 4: ValueError: no luck\n")
    assert caught.value.rank == 2
    assert 'raise ValueError("no luck")' in caught.value.traceback
    assert caught.value.traceback in said
    assert "_process_child.py" not in said
    assert "rank 2 of 4 printed:\nrank 2 was here" in said


def several(world: devices.World) -> None:
    devices.barrier()
    if world.rank:
        raise ValueError(f"no luck on {world.rank}")
    devices.barrier()


def test_other_ranks_that_failed_are_named() -> None:
    with pytest.raises(RankFailedError) as caught:
        run_processes(several, 3)
    first, other = (1, 2) if caught.value.rank == 1 else (2, 1)
    assert f"rank {first} of 3: ValueError: no luck on {first}\n" in str(caught.value)
    assert f"\nrank {other} too: ValueError: no luck on {other}\n" in str(caught.value) + "\n"


def die(world: devices.World, how: Callable[..., object], *args: Any) -> None:
    if world.rank == 1:
        how(*args)
    devices.barrier()


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)


def fall() -> None:
    ctypes.string_at(0)


def test_a_rank_that_is_killed_is_named_with_the_signal_and_not_those_that_fail_since() -> None:
    with pytest.raises(RankFailedError) as caught:
        run_processes(die, 3, kill_self, int(signal.SIGKILL))
    assert str(caught.value).startswith("rank 1 of 3: was killed by SIGKILL")
    assert caught.value.rank == 1


def test_a_rank_that_crashes_shows_where() -> None:
    with pytest.raises(RankFailedError, match="rank 1 of 2: was killed by SIGSEGV") as caught:
        run_processes(die, 2, fall)
    assert "in fall\n" in caught.value.traceback


def test_a_rank_that_exits_is_named_with_its_status() -> None:
    with pytest.raises(RankFailedError, match="rank 1 of 2: exited with status 3 before it returned"):
        run_processes(die, 2, os._exit, 3)
    with pytest.raises(RankFailedError, match="rank 1 of 2: SystemExit: 4"):
        run_processes(die, 2, sys.exit, 4)


def test_a_rank_that_does_not_finish_shows_where_it_is() -> None:
    start = time.monotonic()
    with pytest.raises(RankFailedError) as caught:
        run_processes(die, 3, time.sleep, 600, timeout=4)
    assert time.monotonic() - start < 60
    said = str(caught.value)
    assert said.startswith("rank 0 of 3: did not finish within 4 s; nor did ranks 1, 2\n")
    alone, together = said.index("rank 1:\n"), said.index("ranks 0, 2:\n")
    assert alone < together, "what differs comes first"
    assert f'"{__file__}", line {die.__code__.co_firstlineno + 2} in die' in said[alone:together]
    assert f'"{__file__}", line {die.__code__.co_firstlineno + 3} in die' in said[together:]
    assert "in barrier" in said[together:]


def note(world: devices.World, folder: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    (folder / f"{os.getpid()}").touch()
    (folder / f"{child.pid}").touch()
    (folder.parent / "server").write_text(str(os.getppid()))
    devices.barrier()
    if folder.name == "raises" and world.rank == 0:
        raise ValueError
    if folder.name == "waits" or (folder.name == "raises" and world.rank == 1):
        time.sleep(600)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def are_gone(folder: Path, within: float) -> bool:
    pids = [int(path.name) for path in folder.iterdir()]
    assert len(pids) == 4
    deadline = time.monotonic() + within
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


@pytest.mark.parametrize("how", ["returns", "raises", "waits"])
def test_no_rank_is_left_behind_nor_what_it_started(how: str, tmp_path: Path) -> None:
    folder = tmp_path / how
    folder.mkdir()
    if how == "returns":
        run_processes(note, 2, folder)
    else:
        with pytest.raises(RankFailedError):
            run_processes(note, 2, folder, timeout=60 if how == "raises" else 2)
    assert are_gone(folder, 15)


PROGRAM = """
import sys, time
from pathlib import Path
import devices.testing._processes as processes

sys.path.insert(0, sys.argv[1])
import test_processes

def where(world):
    return __name__, world.rank

if __name__ == "__main__":
    assert [rank for _, rank in processes.run_processes(where, 2)] == [0, 1]
    print("functions of a program work", flush=True)
    processes.run_processes(test_processes.note, 2, Path(sys.argv[2]))
"""


def test_no_rank_is_left_behind_by_a_program_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "waits"
    folder.mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(Path(__file__).parent), str(folder)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "functions of a program work\n"
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [is_alive(int(path.name)) for path in folder.iterdir()] == [True] * 4
        forkserver = int((tmp_path / "server").read_text())
        assert is_alive(forkserver)
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
    assert are_gone(folder, 30)
    deadline = time.monotonic() + 30
    while is_alive(forkserver) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(forkserver)


def give_back(world: devices.World) -> object:
    return lambda: None


def test_what_cannot_be_sent_is_said_before_anything_is_started() -> None:
    with pytest.raises(ArgumentError, match=r"'.*<lambda>' cannot be sent.*top level of a module"):
        run_processes(lambda world: world.rank, 2)

    def inside(world: devices.World) -> None: ...

    with pytest.raises(ArgumentError, match=r"inside' cannot be sent.*top level of a module"):
        run_processes(inside, 2)
    with pytest.raises(ArgumentError, match=r"argument 2, of type generator, cannot be sent.*"):
        run_processes(add, 2, 1, (number for number in range(3)))


def test_what_cannot_be_sent_back_is_said() -> None:
    with pytest.raises(RankFailedError, match="what it returned, of type function, cannot be sent back"):
        run_processes(give_back, 2)


def test_a_backend_that_is_not_there_is_said() -> None:
    with pytest.raises(RankFailedError, match="BackendNotFoundError: no plugin provides a backend named 'cdua'"):
        run_processes(add, 2, 1, backend="cdua")


@pytest.mark.parametrize(("ranks", "timeout"), [(0, 60), (2.0, 60), (2, 0)])
def test_a_number_that_makes_no_sense_is_refused(ranks: Any, timeout: float) -> None:
    with pytest.raises(ArgumentError):
        run_processes(add, ranks, 1, timeout=timeout)


def test_a_module_that_no_name_leads_to_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest's import mode `importlib` leaves test modules."""
    (tmp_path / "helper.py").write_text("number = 5\n")
    (tmp_path / "test_far.py").write_text(
        textwrap.dedent("""
            from dataclasses import dataclass
            from .helper import number

            @dataclass
            class Far:
                value: int

            def double(world, far):
                return Far(far.value * 2 + number)
        """)
    )
    package = importlib.util.module_from_spec(importlib.util.spec_from_loader("far_away", None, is_package=True))  # type: ignore[arg-type]
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "far_away", package)
    spec = importlib.util.spec_from_file_location("far_away.test_far", tmp_path / "test_far.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "far_away.test_far", module)
    monkeypatch.setattr(package, "test_far", module, raising=False)
    spec.loader.exec_module(module)
    assert run_processes(module.double, 2, module.Far(4)) == [module.Far(13)] * 2
