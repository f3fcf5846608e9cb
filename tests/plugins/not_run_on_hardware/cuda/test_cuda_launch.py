"""What ranks on GPUs are to be started with, on machines described by files; none of it has run on hardware."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cuda_machines import machine

from devices.command.env import examine
from devices.errors import UnsupportedError
from devices_cuda import launch
from devices_cuda.launch import contradictions, own_variables, shared_variables
from devices_cuda.machine import Machine

NOWHERE = Path("/nowhere")
FIRST, SECOND = (f"GPU-a000000{index}-0000-4000-8000-00000000000{index}" for index in (0, 1))


def shared(found: Machine, ranks: int | None = None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    return {each.name: each.value for each in shared_variables(found, environment or {}, ranks, NOWHERE)}


@pytest.mark.parametrize("ranks", [None, 8, 16])
def test_as_many_ranks_as_gpus_or_more_need_no_choice_of_them(ranks: int | None) -> None:
    assert shared(machine("dgx-a100.json"), ranks) == {}


def test_fewer_ranks_have_neighbouring_gpus_with_most_free_memory() -> None:
    whole = machine("dgx-a100.json")
    assert shared(whole, 2) == {"CUDA_VISIBLE_DEVICES": f"{FIRST},{SECOND}"}
    assert shared(whole, 1, {"CUDA_VISIBLE_DEVICES": "1,0"}) == {"CUDA_VISIBLE_DEVICES": SECOND}
    busy = replace(whole, gpus=(replace(whole.gpus[0], free=1 << 30), *whole.gpus[1:]))
    uuids = [gpu.uuid for gpu in whole.gpus]
    assert shared(busy, 2) == {"CUDA_VISIBLE_DEVICES": f"{uuids[2]},{uuids[3]}"}
    # Three and three, and the last two are no block.
    assert shared(busy, 3) == {"CUDA_VISIBLE_DEVICES": f"{uuids[3]},{uuids[4]},{uuids[5]}"}


def test_gpus_that_differ_are_to_be_numbered_by_the_bus() -> None:
    whole = machine("dgx-a100.json")
    mixed = replace(whole, gpus=(replace(whole.gpus[0], name="NVIDIA H100"), *whole.gpus[1:]))
    assert shared(mixed) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_under_mig_each_rank_has_its_instance() -> None:
    divided = machine("mig.json")
    assert shared(divided, 3) == {}
    names = [own_variables(divided, {}, 3, rank)[0].value for rank in range(3)]
    assert names == [f"MIG-0000000{part}-1111-5222-8333-444444444444" for part in range(2)] + [SECOND]
    # A rank that is started so asks again, and is told the same.
    [again] = own_variables(divided, {"CUDA_VISIBLE_DEVICES": names[1]}, None, 1)
    assert again.value == names[1]
    with pytest.raises(UnsupportedError, match="there is no local rank 3, with 3 ranks"):
        own_variables(divided, {}, 3, 3)


def test_without_a_number_of_ranks_each_instance_and_gpu_that_is_visible_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launch, "host", lambda: machine("mig.json"))
    instances = [f"MIG-0000000{part}-1111-5222-8333-444444444444" for part in range(2)]
    for setting, expected in ((None, [*instances, SECOND]), (instances[1], instances[1:]), ("1", None)):
        if setting is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
        found = examine("cuda", None, None)
        assert [each["variables"][0]["value"] for each in found["of_ranks"]] == (expected or [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    own = {each["name"]: each["value"] for each in examine("cuda", None, 2)["variables"]}
    assert own["CUDA_VISIBLE_DEVICES"] == SECOND
    with pytest.raises(UnsupportedError, match="there is no local rank 3: 3 MIG instances and GPUs are visible"):
        examine("cuda", None, 3)


def test_a_gpu_in_mig_mode_without_instances_starts_no_rank_and_the_reason_says_how_to_make_one() -> None:
    divided = machine("mig.json")
    empty = replace(divided, gpus=(replace(divided.gpus[0], instances=()),))
    with pytest.raises(
        UnsupportedError, match=r"no GPU is left .* no instance of it was made \(`nvidia-smi mig -cgi`\)"
    ):
        shared(empty)


def test_whole_gpus_are_found_by_local_rank_alone() -> None:
    assert own_variables(machine("dgx-a100.json"), {}, None, 5) == []


def test_where_no_gpu_is_left_no_rank_can_be_started() -> None:
    with pytest.raises(UnsupportedError, match="no GPU is left to start ranks on, of the 8 that are here"):
        shared(machine("dgx-a100.json"), 2, {"CUDA_VISIBLE_DEVICES": "-1"})


def test_of_several_interfaces_nccl_is_given_that_of_the_default_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "br0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "ens5\t00000000\t0100000A\t0003\t0\t0\t512\t00000000\t0\t0\t0\n"
    )
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "br0"), (3, "ens5")])
    whole = machine("hgx-h100.json")
    [told] = shared_variables(whole, {}, None, table)
    assert (told.name, told.value) == ("NCCL_SOCKET_IFNAME", "=ens5")
    assert shared_variables(whole, {"NCCL_SOCKET_IFNAME": "br"}, None, table) == []


@pytest.mark.parametrize(
    ("setting", "is_wrong"),
    [
        ("", False),
        ("eth", False),
        ("=eth0", False),
        ("^docker", False),
        ("=eth", True),
        ("ib", True),
        ("ib,eth0", False),
    ],
)
def test_an_interface_that_is_not_here_is_a_contradiction(
    setting: str, is_wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    said = list(contradictions({"NCCL_SOCKET_IFNAME": setting}))
    assert len(said) == is_wrong
    assert all("it has lo, eth0" in each for each in said)
