"""The processes of one contender, started as torchrun starts ranks, each in a session of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK = Path(__file__).with_name("rank.py")
START_SECONDS = {"DeepSpeed": 900.0}
"""DeepSpeed compiles what it needs when it is first asked for."""
ANSWER_SECONDS = 180.0


class LeftOutError(Exception):
    """A contender, or a cell of it, cannot be measured; says why."""


class _Line:
    """The connection to one rank."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lines = connection, connection.makefile("rw")

    def write(self, asked: dict[str, Any]) -> None:
        self._lines.write(json.dumps(asked) + "\n")
        self._lines.flush()

    def read(self, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Return what comes.

        Raises:
            LeftOutError: nothing does in time, or the rank has ended.
        """
        if not select.select([self._connection], [], [], max(0.0, seconds))[0]:
            raise LeftOutError("did not answer")
        line = self._lines.readline()
        if not line:
            raise LeftOutError("ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._lines.close()
        self._connection.close()


class World:
    """The ranks of one contender.

    Args:
        name: the contender's.
        ranks: how many.
    """

    def __init__(self, name: str, ranks: int) -> None:
        self.name, self.ranks, self.note = name, ranks, ""
        self._folder = tempfile.TemporaryDirectory(prefix="devices-benchmark-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: list[_Line] = []
        self._store: Any = None
        self._secret = secrets.token_hex(16)
        listener = socket.socket(socket.AF_UNIX)
        address = f"{self._folder.name}/socket"
        try:
            listener.bind(address)
            listener.listen(ranks)
            with Path(f"{self._folder.name}/output").open("wb") as output:
                self._start(address, output)
            self._accept(listener)
        except BaseException:
            self.end()
            raise
        finally:
            listener.close()

    def _start(self, address: str, output: Any) -> None:
        program = [sys.executable, str(RANK), self.name, address, self._secret]
        # DeepSpeed compiles by the ninja that was installed with it.
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        common = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
        if self.name == "Open MPI":
            # Told that there are fewer slots than ranks, Open MPI yields while it waits, as it must.
            cores = os.cpu_count() or 1
            command = ["mpirun", "-n", str(self.ranks), "--host", f"localhost:{cores}"]
            more = ["--oversubscribe"] if self.ranks > cores else []
            common |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
            self._add([*command, *more, *program], common, output)
            return
        from torch.distributed import TCPStore

        # The store is here, as torchrun's agent has it.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
        common |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        common |= {"WORLD_SIZE": str(self.ranks), "LOCAL_WORLD_SIZE": str(self.ranks)}
        for rank in range(self.ranks):
            self._add(program, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, output)

    def _add(self, command: list[str], environment: dict[str, str], output: Any) -> None:
        self._processes.append(
            subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        )

    def _accept(self, listener: socket.socket) -> None:
        seconds = START_SECONDS.get(self.name, 180.0)
        deadline = time.monotonic() + seconds
        by_rank: dict[int, _Line] = {}
        connections = []
        while len(by_rank) < self.ranks:
            ready, _, _ = select.select([listener, *connections], [], [], 1.0)
            for each in ready:
                if each is listener:
                    connections.append(listener.accept()[0])
                    continue
                connections.remove(each)
                line = _Line(each)
                hello = line.read()
                if hello.get("secret") != self._secret:
                    each.close()
                    continue
                if "error" in hello:
                    raise LeftOutError(f"rank {hello['rank']}: {hello['error']}")
                by_rank[hello["rank"]] = line
                self.note = hello["note"]
            if any(process.poll() is not None for process in self._processes):
                raise LeftOutError(f"a rank ended at its start: {self._printed()}")
            if time.monotonic() > deadline:
                raise LeftOutError(f"the ranks did not start within {seconds:g} s: {self._printed()}")
        self._lines = [by_rank[rank] for rank in range(self.ranks)]

    def ask(self, do: str, **more: Any) -> list[dict[str, Any]]:
        """Let all ranks do something together; return what each one answers.

        Raises:
            LeftOutError: one cannot, or does not answer in time.
        """
        for line in self._lines:
            line.write({"do": do, **more})
        deadline = time.monotonic() + ANSWER_SECONDS
        answers = []
        for rank, line in enumerate(self._lines):
            try:
                answers.append(line.read(deadline - time.monotonic()))
            except LeftOutError as error:
                said = f"rank {rank} {error}: {self._printed()}"
                self.end()
                raise LeftOutError(said) from None
        if errors := {answer["error"] for answer in answers if "error" in answer}:
            raise LeftOutError("; ".join(sorted(errors)))
        return answers

    @property
    def is_running(self) -> bool:
        return bool(self._processes)

    def _printed(self) -> str:
        with contextlib.suppress(OSError):
            return (
                Path(f"{self._folder.name}/output").read_text(errors="replace").strip()[-300:] or "it printed nothing"
            )
        return ""

    def end(self) -> None:
        """End the ranks, whatever they do."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                # mpirun ends its ranks itself if it is asked to.
                os.killpg(process.pid, signal.SIGTERM if self.name == "Open MPI" else signal.SIGKILL)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._lines, self._processes, self._store = [], [], None
        self._folder.cleanup()
