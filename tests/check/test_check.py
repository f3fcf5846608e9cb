"""`devices check` on programs as people write them for torchrun, each with the list that a reader of it would make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from devices.errors import ArgumentError, TargetNotFoundError
from devices.testing import Checked, check

# What torch says of the ways in which people write for GPUs.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

PROGRAMS = Path(__file__).with_name("programs")
ROOT = PROGRAMS.parents[2]

# What Trainium2 refuses of each: a part of the line that calls it, and the verb.
REFUSED = {
    "ddp_classifier": set(),
    "fsdp2_language_model": {
        ("loss.backward()", "reduce_scatter"),  # FSDP2 averages the gradients
        ("dist.all_reduce(mean, op=dist.ReduceOp.AVG)", "all_reduce"),
    },
    "megatron_tensor_parallel": set(),
    "pipeline_1f1b": {
        ("dist.batch_isend_irecv(operations)", "send"),
        ("dist.batch_isend_irecv(operations)", "recv"),
    },
    "tensor_parallel_decode": set(),
}


def source(name: str) -> Path:
    return PROGRAMS / f"{name}.py"


def expected_findings(name: str) -> list[tuple[int, str]]:
    """Return the lines that say themselves that they are bound to a vendor, and how."""
    found = []
    for number, line in enumerate(source(name).read_text().splitlines(), 1):
        _, mark, kinds = line.partition("# expect: ")
        found += [(number, kind.strip()) for kind in kinds.split(",") if mark]
    return sorted(found)


def refused(checked: Checked, name: str) -> set[tuple[str, str]]:
    """Return what was refused, by the text of its line."""
    assert checked.report is not None
    lines = source(name).read_text().splitlines()
    found = set()
    for each in checked.report.refused:
        path, _, number = each.line.rpartition(":")
        assert Path(path) == source(name)
        found.add((lines[int(number) - 1], each.verb))
    return found


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_program_written_for_gpus_runs_to_its_end_with_all_listed_that_a_target_refuses(name: str) -> None:
    checked = check(source(name), ranks=4, target="trainium2")
    assert checked.error == ""
    assert sorted((each.line, each.kind) for each in checked.findings) == expected_findings(name)
    expected = REFUSED[name]
    found = refused(checked, name)
    assert len(found) == len(expected)
    assert all(any(part in line and verb == other for line, other in found) for part, verb in expected), found
    assert not checked.is_portable
    assert not dist.is_initialized()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_gpu_refuses_nothing_of_what_was_written_for_it(name: str) -> None:
    checked = check(source(name), ranks=2, target="p5.48xlarge")
    assert checked.error == ""
    assert checked.report is not None
    assert not checked.report.refused
    assert checked.report.asked


def program(folder: Path, text: str) -> Path:
    path = folder / "program.py"
    path.write_text(text)
    return path


OURS = """
import sys
import torch, devices, own
with devices.init() as world:
    total = devices.all_reduce(torch.tensor(float(own.NUMBER)))
    print("rank", world.rank, "of", world.size, "got", total.item(), sys.argv[1:])
"""


def test_a_portable_program_with_modules_of_its_own_has_an_empty_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text("NUMBER = 5\n")
    checked = check(program(tmp_path, OURS), ["--steps", "3"], ranks=3, target="trainium3-ultraserver-gen1")
    assert checked.report is not None
    assert [each.verb for each in checked.report.refused] == ["world"]  # 3 ranks
    checked = check(program(tmp_path, OURS), ["--steps", "3"], ranks=4, target="trainium3-ultraserver-gen1")
    assert checked.is_portable
    assert "rank 3 of 4 got 20.0 ['--steps', '3']" in capsys.readouterr().out
    assert "own" not in sys.modules


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise ValueError('too bad')", "ValueError at {path}:1: too bad"),
        ("import sys\nsys.exit(3)", "exit status 3"),
        ("import devices\nw = devices.init()\nif w.rank == 0:\n    devices.barrier()", "rank 0 of 2 waits for rank 1"),
    ],
    ids=["an exception", "an exit status", "a deadlock"],
)
def test_what_ends_a_program_is_told_with_its_rank_and_line(tmp_path: Path, text: str, says: str) -> None:
    path = program(tmp_path, text)
    checked = check(path)
    assert says.format(path=path) in checked.error
    assert not checked.is_portable


def test_a_program_that_ends_itself_well_is_no_error(tmp_path: Path) -> None:
    assert check(program(tmp_path, "import sys\nsys.exit(0)")).is_portable


def test_a_program_that_is_not_there_or_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"nothing\.py"):
        check(tmp_path / "nothing.py")
    with pytest.raises(ArgumentError, match=r"program\.py:1"):
        check(program(tmp_path, "def ("))
    with pytest.raises(TargetNotFoundError, match="did you mean"):
        check(program(tmp_path, ""), target="trainium22")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "devices", "check", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_the_command_has_an_exit_status_and_prints_text_or_json(tmp_path: Path) -> None:
    listed = command(source("pipeline_1f1b"), "--target", "trainium2", "--json", "--ranks", "2", "--steps", "1")
    assert listed.returncode == 1
    data = json.loads(listed.stdout)
    assert data["portable"] is False
    assert {row["verb"] for row in data["report"]["asked"] if row["outcome"] == "refused"} == {"send", "recv"}
    assert {row["path"] for row in data["findings"]} == {str(source("pipeline_1f1b"))}

    well = command("--ranks", "2", ROOT / "examples" / "quickstart.py")
    assert well.returncode == 0, well.stderr
    assert "portable" in well.stdout
    assert "as expected" in well.stderr  # what the program prints

    passed_on = command(program(tmp_path, "import sys\nassert sys.argv[1:] == ['--ranks', '7']"), "--", "--ranks", "7")
    assert passed_on.returncode == 0, passed_on.stdout

    missing = command(tmp_path / "nothing.py")
    assert missing.returncode == 2
    assert "nothing.py" in missing.stderr


AS_UNDER_TORCHRUN = """
import dataclasses, os, pickle, sys
import torch.distributed as dist

@dataclasses.dataclass
class Settings:
    rate: int = 1

dist.init_process_group("devices")
assert dataclasses.fields(Settings)[0].type is int  # no annotation of it has become text
assert pickle.loads(pickle.dumps(Settings(2))) == Settings(2)
settings = [Settings(dist.get_rank())]
dist.broadcast_object_list(settings)
assert settings == [Settings(0)]
sys.argv = sys.argv[:1]
dist.barrier()
os.chdir("/")
assert os.path.isabs(__file__)
if dist.get_rank() == 1:
    os._exit(END)
"""


def test_a_program_finds_what_it_finds_under_torchrun(tmp_path: Path) -> None:
    before, folder = sys.argv, Path.cwd()
    path = program(tmp_path, AS_UNDER_TORCHRUN.replace('"devices"', "").replace("END", "0"))
    checked = check(path, ["--rate", "3"], ranks=3)
    assert checked.error == ""
    assert checked.is_portable
    assert (sys.argv, Path.cwd()) == (before, folder)
    assert sys.modules["__main__"].__dict__.get("Settings") is None


def test_a_program_that_leaves_at_once_with_a_status_has_failed(tmp_path: Path) -> None:
    checked = check(program(tmp_path, AS_UNDER_TORCHRUN.replace('"devices"', "").replace("END", "7")), ranks=3)
    assert "exit status 7" in checked.error
