"""Real plugins for one test: packages with metadata in a folder that a fresh interpreter has on its path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

PREAMBLE = """
from devices import Backend, Capabilities, Device, Probe, hookimpl


class Throwaway(Backend):
    name = "toy"
    device_type = "cpu"

    def probe(self):
        return Probe(True, "it is a toy")

    def devices(self):
        return (Device(self.name, "cpu", 0),)

    def capabilities(self, device):
        return Capabilities(frozenset())

    def open(self, group):
        raise NotImplementedError
"""

GOOD_HOOK = """
@hookimpl
def devices_backend():
    return Throwaway()
"""


class Site:
    """A folder of throwaway plugins, and a fresh interpreter that finds them."""

    def __init__(self, folder: Path, timeout: float = 400) -> None:
        self.folder = folder
        self.timeout = timeout

    def add(self, name: str, source: str, *, distribution: str | None = None, version: str = "1.2") -> None:
        """Install a plugin whose entry point is `name`."""
        distribution = distribution or f"some-{name}"
        module = f"throwaway_{name}_{distribution.replace('-', '_')}"
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source))
        self.add_entry_point(name, module, distribution=distribution, version=version)

    def add_entry_point(self, name: str, value: str, *, distribution: str | None = None, version: str = "1.2") -> None:
        """Install a distribution that has an entry point, and no module."""
        distribution = distribution or f"some-{name}"
        metadata = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[devices]\n{name} = {value}\n")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter with `arguments`, no variable of ours set but `environment`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DEVICES_")}
        path = os.pathsep.join(filter(None, [str(self.folder), inherited.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, *arguments],
            env={**inherited, "PYTHONPATH": path, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=self.timeout,
        )

    def python(self, code: str, **environment: str) -> str:
        """Return what `code` prints; it must succeed."""
        done = self.run("-c", textwrap.dedent(code), **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def refusal(self, code: str, **environment: str) -> str:
        """Return the `DevicesError` that `code` raises, as "Type: message"."""
        lines = textwrap.indent(textwrap.dedent(code), "    ")
        return self.python(
            f"import devices\nfrom devices import _choice, _registry\ntry:\n{lines}\n"
            "except devices.errors.DevicesError as error:\n    print(f'{type(error).__name__}: {error}')\n"
            "else:\n    raise SystemExit('nothing was raised')",
            **environment,
        )

    def doctor(self, **environment: str) -> tuple[int, dict[str, Any]]:
        """Return the exit status and the report of `devices doctor --json`."""
        done = self.run("-m", "devices", "doctor", "--json", **environment)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)
