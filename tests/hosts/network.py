"""Two hosts on one machine: network namespaces joined by a cable, each with its own host name and /etc/hosts.

Files and processors are shared; the network is not: one reaches the other by the cable alone, and nothing else at all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

ADDRESSES = ("198.51.100.1", "198.51.100.2")
INTERFACE = "eth0"

# Run in a namespace for mounts and host name of its own, where it may lay files over those of the machine.
_ENTER = """
set -e
hostname "$1"; mount --bind "$2" /etc/hosts; mount --bind "$3" /etc/nsswitch.conf; mount --bind "$4" /mnt
namespace=$5; shift 5
exec ip netns exec "$namespace" "$@"
"""


@functools.cache
def missing() -> str | None:
    """Return the right or the tool that is missing here for two hosts, or None."""
    for tool, package in (("ip", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(tool) is None:
            return f"needs the command {tool!r} of {package}, which is not installed"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    try:
        with tempfile.TemporaryDirectory() as folder, TwoHosts(("one", "two"), ("", ""), Path(folder)) as hosts:
            process = hosts.start(0, ["true"], Path("/"))
            if process.wait(10) == 0:
                return None
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"needs the right to make network namespaces (CAP_SYS_ADMIN, CAP_NET_ADMIN): {said}"
    return "needs the right to make mount namespaces (CAP_SYS_ADMIN)"


class TwoHosts:
    """A context manager: the hosts are there inside, and gone, with all that runs on them, after it.

    Args:
        names: what each host calls itself.
        etc_hosts: what each has in /etc/hosts beside localhost.
        folder: for files; its subfolder "mnt" is what both see as /mnt.
    """

    def __init__(self, names: Sequence[str], etc_hosts: Sequence[str], folder: Path) -> None:
        self._names, self._etc_hosts, self._folder = names, etc_hosts, folder
        self._namespaces = [f"devices-{os.getpid()}-{at}" for at in (0, 1)]
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> TwoHosts:
        self._files = [self._write(at) for at in (0, 1)]
        try:
            for namespace in self._namespaces:
                _ip("netns", "add", namespace)
            one, two = self._namespaces
            _ip(*f"link add {INTERFACE} netns {one} type veth peer name {INTERFACE} netns {two}".split())
            for namespace, address in zip(self._namespaces, ADDRESSES, strict=True):
                _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", INTERFACE)
                _ip("-n", namespace, "link", "set", INTERFACE, "up")
                _ip("-n", namespace, "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def _write(self, at: int) -> tuple[Path, Path, Path]:
        folder = self._folder / f"{self._namespaces[at]}"
        shared = self._folder / "mnt"
        folder.mkdir()
        shared.mkdir(exist_ok=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{self._etc_hosts[at]}")
        # There is no name server: without this, each look-up would wait for one.
        (folder / "nsswitch.conf").write_text("hosts: files\npasswd: files\ngroup: files\n")
        return folder / "hosts", folder / "nsswitch.conf", shared

    def start(
        self, at: int, command: Iterable[str], cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on host 0 or 1; its output is in host-0.log or host-1.log of the folder."""
        enter = ["unshare", "--mount", "--uts", "sh", "-c", _ENTER, "sh", self._names[at], *map(str, self._files[at])]
        with (self._folder / f"host-{at}.log").open("w") as log:
            process = subprocess.Popen(
                [*enter, self._namespaces[at], *command],
                cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def finish(self, timeout: float) -> list[str]:
        """Wait until all that was started has ended well; return what each host printed."""
        deadline = time.monotonic() + timeout
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        codes = [process.poll() for process in self._processes]
        printed = [(self._folder / f"host-{at}.log").read_text() for at in range(len(codes))]
        both = "\n".join(f"--- host {at}, exit code {code}\n{printed[at]}" for at, code in enumerate(codes))
        assert codes == [0] * len(codes), both
        return printed

    def processes_on(self, at: int) -> list[int]:
        """Return the ids of all that runs on a host."""
        return [int(word) for word in _ip("netns", "pids", self._namespaces[at]).split()]

    def _remove(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()  # on which torchrun ends its ranks
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        existing = _ip("netns", "list")
        for at, namespace in enumerate(self._namespaces):
            if namespace not in existing:
                continue
            # Nothing can be in these namespaces but what was started in them.
            for process_id in self.processes_on(at):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
            _ip("netns", "delete", namespace)
        for process in self._processes:
            process.wait(5)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20).stdout
