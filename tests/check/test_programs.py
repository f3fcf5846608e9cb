"""The programs are right: on CPU ranks, ported as findings say, two of them compute what one does."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import on_cpu
import pytest
import ranks
import torch

from devices.testing._portability import find

pytestmark = pytest.mark.slow


def losses(printed: str) -> list[float]:
    return [float(each) for each in re.findall(r"loss (\S+)", printed)]


@pytest.mark.parametrize(
    ("program", "alone", "on"),
    [
        ("ddp_classifier", "", 2),
        ("fsdp2_language_model", "", 2),
        ("fsdp2_language_model", "", 4),
        ("megatron_tensor_parallel", "--tensor-parallel 1", 2),
        ("megatron_tensor_parallel", "--tensor-parallel 1", 4),
        ("pipeline_1f1b", "", 2),
        ("pipeline_1f1b", "", 4),
    ],
)
def test_many_ranks_have_the_loss_of_one_and_it_falls(tmp_path: Path, program: str, alone: str, on: int) -> None:
    [reference] = on_cpu.run(program, *alone.split(), on=1, folder=tmp_path)
    first, *others = on_cpu.run(program, on=on, folder=tmp_path)
    assert losses(first) == pytest.approx(losses(reference), rel=1e-4)
    assert losses(first)[-1] < losses(first)[0] - 0.1
    assert not any(losses(other) for other in others)


@pytest.mark.parametrize(("program", "option"), [("ddp_classifier", "--amp"), ("fsdp2_language_model", "--bf16")])
def test_mixed_precision_has_nearly_the_same_loss(tmp_path: Path, program: str, option: str) -> None:
    [reference] = on_cpu.run(program, on=1, folder=tmp_path)
    mixed, _ = on_cpu.run(program, option, on=2, folder=tmp_path)
    assert losses(mixed) == pytest.approx(losses(reference), rel=0.05)
    assert losses(mixed) != losses(reference)


@pytest.mark.parametrize("on", [2, 4])
def test_decoding_on_many_ranks_gives_the_tokens_of_one(tmp_path: Path, on: int) -> None:
    [reference] = on_cpu.run("tensor_parallel_decode", on=1, folder=tmp_path)
    printed, *_ = on_cpu.run("tensor_parallel_decode", on=on, folder=tmp_path)
    tokens = re.findall(r"^tokens (.*)$", printed, re.MULTILINE)
    assert tokens == re.findall(r"^tokens (.*)$", reference, re.MULTILINE)
    assert len(tokens) == 2
    assert len(set(" ".join(tokens).split())) > 10


def test_decoding_with_a_cache_gives_the_tokens_that_it_gives_without(tmp_path: Path) -> None:
    path = tmp_path / "decode.py"
    path.write_text(on_cpu.port(on_cpu.PROGRAMS / "tensor_parallel_decode.py"))
    assert ranks.run(1, _decode_both_ways, str(path)) == [True]


def _decode_both_ways(path: str) -> bool:
    program = on_cpu.load(path, "program")
    torch.distributed.init_process_group("devices")
    args = argparse.Namespace(batch=2, prompt_tokens=5, new_tokens=12, layers=2, heads=4, dim=32, seed=0)
    prompt = torch.randint(program["VOCABULARY"], (2, 5), generator=torch.Generator().manual_seed(2))
    cached = program["generate"](program["Decoder"](args, torch.float32), prompt, 12)
    seen = prompt
    for _ in range(12):
        scores = program["Decoder"](args, torch.float32)(seen, 0)
        seen = torch.cat([seen, scores.argmax(-1, keepdim=True)], dim=1)
    torch.distributed.destroy_process_group()
    return torch.equal(cached, seen)


@pytest.mark.parametrize("path", sorted(on_cpu.PROGRAMS.glob("*.py")), ids=lambda path: path.stem)
def test_in_a_ported_program_only_what_a_cpu_does_not_read_is_left(tmp_path: Path, path: Path) -> None:
    (tmp_path / path.name).write_text(on_cpu.port(path))
    left = {each for each in find(tmp_path / path.name) if "import" not in each.code}
    assert {each.kind for each in left} <= {"environment", "torch-backends"}
