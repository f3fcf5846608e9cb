"""What CUDA_VISIBLE_DEVICES leaves, as CUDA's documents say it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cuda_machines import machine

from devices_cuda.visibility import visible

A100 = "GPU-a0000000-0000-4000-8000-000000000000"
MIG = "MIG-0000000{}-1111-5222-8333-444444444444"


def seen(name: str, setting: str | None) -> list[int]:
    return [each.gpu.index for each in visible(machine(name), setting).seen]


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("", []),
        ("  ", []),
        ("0", [0]),
        ("3,1", [3, 1]),
        (" 3 , 1 ", [3, 1]),
        ("+2", [2]),
        ("0,2,-1,1", [0, 2]),
        ("-1", [])
        ,
        ("-1,0", []),
        ("0,8,1", [0]),
        ("8", []),
        ("99999999999999999999", []),
        ("0,,1", [0]),
        ("0,x,1", [0]),
        ("none", []),
        ("NoDevFiles", []),
        ("1gpu,2ampere", [1, 2]),
        ("1,1", []),
        ("2,1,2", []),
        ("GPU-a0000003", [3]),
        ("GPU-a0000003,GPU-a0000001", [3, 1]),
        (A100, [0]),
        ("GPU-a0000003,2", [3]),
        ("2,GPU-a0000003", [2]),
        ("GPU-a000000", []),
        ("GPU-a0000001,GPU-a0000001-0000", []),
        ("GPU-a0000001,GPU-ffff,GPU-a0000002", [1]),
        ("gpu-a0000003", []),
        ("MIG-GPU-a0000003-0000-4000-8000-000000000003/1/0", []),
    ],
)  # fmt: skip
def test_the_setting_leaves_what_cuda_says(setting: str | None, left: list[int]) -> None:
    assert seen("dgx-a100.json", setting) == left


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("", "CUDA_VISIBLE_DEVICES is empty, which hides all GPUs (8 here)"),
        ("-1", "CUDA_VISIBLE_DEVICES=-1: '-1' is none of 0 to 7, and ends the list"),
        ("0,8", "CUDA_VISIBLE_DEVICES=0,8: '8' is none of 0 to 7, and ends the list"),
        ("1,1", "CUDA_VISIBLE_DEVICES=1,1 names '1' twice, which hides all GPUs"),
        ("GPU-a000000", "'GPU-a000000' begins the UUIDs of 8, and ends the list"),
        ("GPU-ffff", "'GPU-ffff' is no GPU's UUID here"),
        ("GPU-a0000003,2", "'2' is no UUID, and the first entry is one"),
        ("none", "'none' is no index of a GPU"),
        ("MIG-GPU-a0000003-0000-4000-8000-000000000003/1/0", "is an instance's name of drivers before R470"),
    ],
)
def test_what_ends_the_list_is_named(setting: str, told: str) -> None:
    assert told in visible(machine("dgx-a100.json"), setting).reason


def test_of_a_machine_with_mig_a_process_sees_one_instance_and_nothing_else() -> None:
    left = visible(machine("mig.json"), None)
    assert [(each.gpu.index, each.instance and each.instance.uuid) for each in left.seen] == [(0, MIG.format(0))]
    assert "a process sees one MIG instance and nothing else" in left.reason


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ("0", [(0, MIG.format(0))]),
        ("1", [(1, None)]),
        ("1,0", [(0, MIG.format(0))]),
        (MIG.format(1), [(0, MIG.format(1))]),
        ("MIG-00000001", [(0, MIG.format(1))]),
        ("MIG-0000000", []),
        ("MIG-ffff", []),
        ("GPU-a0000000", [(0, MIG.format(0))]),
        ("GPU-a0000001", [(1, None)]),
    ],
)
def test_an_instance_is_named_by_its_uuid_or_found_first(setting: str, left: list[tuple[int, str | None]]) -> None:
    found = visible(machine("mig.json"), setting)
    assert [(each.gpu.index, each.instance.uuid if each.instance else None) for each in found.seen] == left
    assert found.seen or found.reason


def test_a_gpu_in_mig_mode_without_instances_is_none_and_the_reason_says_how_to_make_one() -> None:
    truth = machine("mig.json")
    empty = replace(truth, gpus=(replace(truth.gpus[0], instances=()),))
    for setting in (None, "0"):
        left = visible(empty, setting)
        assert left.seen == ()
        assert "GPU 0 is in MIG mode, and no instance of it was made" in left.reason


def test_where_the_driver_does_not_say_uuids_none_is_found_by_one() -> None:
    left = visible(machine("half-broken.json"), "GPU-ffff")
    assert left.seen == ()
    assert "the driver does not say every GPU's UUID" in left.reason
