"""Runs all that needs an NVIDIA GPU, what tells most first, each with a time limit, and writes down what came out.

    python tests/judge/on_a_gpu.py FOLDER [SECONDS]

It takes the Python that it is started with and what that has installed; `devices` and its plugins it takes from this
repository, installed or not. FOLDER gets what each part printed, and summary.json. What is not done after SECONDS is
ended or left out, which the summary says. The exit status is 0 if all passed, 1 if not, 2 if there is nothing to run
on: no GPU, or a package is missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"torch": "torch", "numpy": "numpy", "pluggy": "pluggy", "rich": "rich", "pynvml": "nvidia-ml-py"}
TRAINING = {"tqdm": "tqdm", "matplotlib": "matplotlib"}
TESTING = {"pytest": "pytest", "pytest_timeout": "pytest-timeout", "hypothesis": "hypothesis"}
GRACE = 5.0
"""Seconds for which a part that is ended may clean up."""
PEERS = 20.0
"""Seconds that the others of a part have, once one has failed, to notice and to say so."""


@dataclass(frozen=True)
class Part:
    """One thing to run.

    Args:
        name: what it is called.
        seconds: how long it may take.
        commands: what is run at the same time, each with variables of its own.
        needs: modules, and the packages that they are of.
    """

    name: str
    seconds: float
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]]
    needs: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Args:
        name: the part's.
        said: "passed", "failed", "late" or "not run".
        seconds: how long it took.
        why: in words, where it did not pass.
    """

    name: str
    said: str
    seconds: float
    why: str = ""


def parts(folder: Path) -> Iterator[Part]:
    """Yield what is to be run, what tells most first."""
    python, cuda = sys.executable, {"DEVICES_BACKEND": "cuda"}
    # Of another version of torch some warnings are to be expected, and no reason to stop.
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    tests = "tests/plugins/cuda/test_cuda_on_a_gpu.py"
    yield Part("machine", 60, [([python, "-m", "devices_cuda"], {})], {})
    yield Part("doctor", 60, [([python, "-m", "devices", "doctor"], {})], {})
    yield Part("tests", 240, [([*pytest, tests], {})], TESTING)
    overhead = [python, "benchmarks/overhead.py", "--cuda"]
    yield Part("overhead", 90, [(overhead, {})], {})
    mixed = [python, "examples/train_mixed.py", "--steps=20", f"--out={folder / 'mixed'}"]
    yield Part("mixed: a GPU and two CPU ranks", 90, list(_ranks(mixed, ["cuda", "cpu", "cpu"])), TRAINING)
    gpt = [python, "examples/train_gpt.py", "--steps=100", "--sample=40", f"--out={folder / 'gpt'}"]
    yield Part("train_gpt", 90, [(gpt, cuda)], TRAINING)
    yield Part(
        "mixed: two ranks on the GPU and one on a CPU", 90, list(_ranks(mixed, ["cuda", "cuda", "cpu"])), TRAINING
    )
    yield Part("kit", 240, [([python, "-m", "devices", "conformance", "cuda"], {})], TESTING)
    # What of the others calls NCCL and CUDA's libraries themselves, where torch was built with them.
    others = "tests/plugins/not_run_on_hardware/cuda"
    groups = [f"{others}/test_cuda_{what}.py" for what in ("groups", "memory", "presence")]
    yield Part("tests that need no GPU", 120, [([*pytest, *groups], {})], TESTING)


def _ranks(command: Sequence[str], backends: Sequence[str]) -> Iterator[tuple[Sequence[str], Mapping[str, str]]]:
    """Yield a command for each rank of a world on this host, with the backend that it is to have."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank, backend in enumerate(backends):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(backends), "LOCAL_WORLD_SIZE": len(backends)}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DEVICES_BACKEND": backend}
        yield command, {name: str(value) for name, value in told.items()} | where


def missing(packages: Mapping[str, str]) -> list[str]:
    """Return the packages that this Python has not."""
    return [package for module, package in packages.items() if importlib.util.find_spec(module) is None]


def why_not() -> str:
    """Return why nothing can be run here, in words; "" if it can."""
    if lacking := missing(PACKAGES):
        return f"{sys.executable} has no {', '.join(lacking)}; install them: pip install {' '.join(lacking)}"
    # In a process of its own: one that has used CUDA holds memory of the GPU.
    code = "import torch; print(torch.version.cuda or '', torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        return f"torch cannot be imported: {done.stderr.strip()[-500:]}"
    *cuda, count = done.stdout.split()
    if not cuda:
        return "this torch was built without CUDA; install one that is built with it"
    return "" if int(count) else "there is no NVIDIA GPU that torch can use: `devices doctor` says why"


def installed(folder: Path) -> None:
    """Let Python find the plugins of this repository where it is not installed: by their entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / "devices-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: devices\nVersion: 0\n")
    groups = project["entry-points"]
    lines = [line for group in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in groups[group].items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def run(part: Part, log: Path, environment: Mapping[str, str]) -> Outcome:
    """Run a part, and return what became of it; what it prints goes to `log`."""
    if lacking := missing(part.needs):
        return Outcome(part.name, "not run", 0.0, f"there is no {', '.join(lacking)}")
    if part.seconds <= 0:
        return Outcome(part.name, "not run", 0.0, "no time is left")
    began, processes = time.monotonic(), []
    with log.open("wb") as output:
        for command, more in part.commands:
            processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env={**environment, **more}, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip
        try:
            have_ended = _wait(processes, began + part.seconds)
        finally:
            for process in processes:
                _end(process)
    seconds = round(time.monotonic() - began, 1)
    if not have_ended:
        return Outcome(part.name, "late", seconds, f"it was not done in {part.seconds:g} s; see {log.name}")
    codes = [process.returncode for process in processes]
    if any(codes):
        return Outcome(part.name, "failed", seconds, f"exit status {', '.join(map(str, codes))}; see {log.name}")
    return Outcome(part.name, "passed", seconds)


def _wait(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> bool:
    """Wait until all have ended, or one has failed and its peers have had time to say so; return whether that came."""
    failed_at = None
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if failed_at is None and any(process.returncode for process in processes):
            failed_at = now
        if failed_at is not None and now > failed_at + PEERS:
            return True
        if now > deadline:
            return failed_at is not None
        time.sleep(0.05)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process if it still runs, and all that it has started, which may run on without it."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _terminated(*_: object) -> None:
    """End by an exception, so that what runs is ended: it is in sessions of its own."""
    sys.exit(128 + signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Run all parts; return the exit status."""
    signal.signal(signal.SIGTERM, _terminated)
    folder = Path(arguments[0] if arguments else "gpu-results").absolute()
    deadline = time.monotonic() + float(arguments[1] if len(arguments) > 1 else "inf")
    if reason := why_not():
        print(f"nothing was run: {reason}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        installed(Path(scratch))
        found = [str(ROOT), str(ROOT / "plugins"), scratch, os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found)), "PYTHONUNBUFFERED": "1"}
        for number, part in enumerate(parts(folder), 1):
            name = "".join(letter if letter.isalnum() else "-" for letter in part.name)
            left = deadline - time.monotonic() - 2 * GRACE
            shortened = replace(part, seconds=min(part.seconds, left))
            outcome = run(shortened, folder / f"{number}-{name}.txt", environment)
            outcomes.append(outcome)
            print(f"{outcome.said:8} {outcome.seconds:6.1f} s  {outcome.name}  {outcome.why}".rstrip(), flush=True)
            # After each, for all may be ended before it is done.
            (folder / "summary.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
    return 0 if all(outcome.said == "passed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
