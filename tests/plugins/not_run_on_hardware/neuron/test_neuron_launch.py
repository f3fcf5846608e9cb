"""What ranks are to be started with on the machines that are laid out here, and what contradicts itself there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from laid_out import MACHINES, give_neuron_ls, lay_out, write

from devices.errors import UnsupportedError
from devices_neuron import NeuronBackend
from devices_neuron.software import Software

FITTING = Software("2.13.3.0", "2.13.0", (3, 12))


def backend(name: str, root: Path, **environment: str) -> NeuronBackend:
    return NeuronBackend(lay_out(name, root), environment, FITTING)


def shared(neuron: NeuronBackend, ranks: int | None = None) -> dict[str, str]:
    return {variable.name: variable.value for variable in neuron.launch_environment(ranks)}


def core_of(neuron: NeuronBackend, ranks: int | None, rank: int) -> int:
    [variable] = neuron.launch_environment(ranks, rank)
    assert variable.name == "NEURON_RT_VISIBLE_CORES"
    assert variable.why
    return int(variable.value)


def hold(root: Path, held: dict[int, dict[str, object]], name: str = "trn2.48xlarge-lnc2") -> None:
    """Let processes hold chips, as neuron-ls tells of it."""
    records = json.loads((MACHINES / f"{name}.neuron-ls.json").read_text())
    for chip, process in held.items():
        records[chip]["neuron_processes"] = [process]
    give_neuron_ls(root, json.dumps(records))


@pytest.mark.parametrize(
    ("name", "ranks", "variables"),
    [
        ("trn2.48xlarge-lnc2", 64, {"NEURON_LOGICAL_NC_CONFIG": "2"}),
        ("trn2.48xlarge-lnc1", 128, {"NEURON_LOGICAL_NC_CONFIG": "1"}),
        ("trn3e.24xlarge", 16, {"NEURON_LOGICAL_NC_CONFIG": "2"}),
        ("trn1.32xlarge", 32, {}),
    ],
)
def test_ranks_have_one_core_each_in_order_and_meet_at_one_address_not_run_on_hardware(
    at: Callable[[str], Path], name: str, ranks: int, variables: dict[str, str]
) -> None:
    neuron = backend(name, at(name))
    assert shared(neuron) == variables | {"NEURON_RT_ROOT_COMM_ID": "127.0.0.1:62182"}
    assert [core_of(neuron, None, rank) for rank in range(ranks)] == list(range(ranks))
    with pytest.raises(UnsupportedError, match=f"there is no local rank {ranks}, with {ranks} ranks"):
        neuron.launch_environment(None, ranks)


def test_ranks_of_several_machines_meet_at_the_first_on_a_port_that_is_not_torchruns(at: Callable[[str], Path]) -> None:
    neuron = backend("trn2.3xlarge", at("trn2.3xlarge"), MASTER_ADDR="10.0.0.7", MASTER_PORT="29500")
    assert shared(neuron)["NEURON_RT_ROOT_COMM_ID"] == "10.0.0.7:29501"


def test_efa_cards_are_used_where_there_are_some(tmp_path: Path) -> None:
    neuron = backend("trn2u.48xlarge", tmp_path)
    assert "FI_PROVIDER" not in shared(neuron)
    for card in range(16):
        write(tmp_path / f"sys/class/infiniband/rdmap{card}s0/device/vendor", "0x1d0f")
        write(tmp_path / f"sys/class/infiniband/rdmap{card}s0/device/device", "0xefa3")
    assert {name: value for name, value in shared(neuron).items() if name.startswith("FI_")} == {
        "FI_PROVIDER": "efa",
        "FI_EFA_USE_DEVICE_RDMA": "1",
    }
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('NAME="Amazon Linux"\nVERSION_ID="2"\nID="amzn"\n')
    assert shared(neuron)["FI_EFA_FORK_SAFE"] == "1"


def test_cores_follow_each_other_from_a_multiple_of_their_number_and_are_free(tmp_path: Path) -> None:
    neuron = backend("trn2.48xlarge-lnc2", tmp_path)
    hold(tmp_path, {0: {"pid": 4000000, "command": "python serve.py"}, 4: {"pid": 4000001}})
    # 0-15 has the first chip in it, 16-31 the fifth.
    assert [core_of(neuron, 16, rank) for rank in (0, 15)] == [32, 47]
    assert core_of(neuron, 4, 0) == 4
    # The fourth and the fifth chip follow each other and are not joined; eight cores are never on those.
    starts = [start for start in range(0, 64, 8) if start // 4 not in (0, 4)]
    assert core_of(neuron, 8, 0) == starts[0] == 8


def test_of_cores_that_a_variable_allows_those_from_a_multiple_are_taken(at: Callable[[str], Path]) -> None:
    neuron = backend("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"), NEURON_RT_VISIBLE_CORES="2-9")
    assert [core_of(neuron, 4, rank) for rank in range(4)] == [4, 5, 6, 7]
    with pytest.raises(UnsupportedError, match="no 8 cores that follow each other from a multiple of 8"):
        neuron.launch_environment(8)


def test_at_lnc_1_too_cores_whose_chip_is_held_are_passed_over(tmp_path: Path) -> None:
    neuron = backend("trn2.48xlarge-lnc1", tmp_path, NEURON_RT_VISIBLE_CORES="16-47")
    # A chip has 8 cores then: 16 from 16 are of neuron2 and neuron3, 16 from 32 of neuron4 and neuron5.
    assert core_of(neuron, 16, 0) == 16
    hold(tmp_path, {2: {"pid": 4000000}}, "trn2.48xlarge-lnc1")
    neuron = NeuronBackend(tmp_path, {"NEURON_RT_VISIBLE_CORES": "16-47"}, FITTING)
    assert core_of(neuron, 16, 0) == 32


def test_ranks_of_a_part_of_the_machine_are_told_of_their_part_and_then_find_it_whoever_was_started_before(
    tmp_path: Path,
) -> None:
    neuron = backend("trn2.48xlarge-lnc2", tmp_path)
    hold(tmp_path, {0: {"pid": 4000000}})
    assert shared(neuron, 16)["NEURON_RT_VISIBLE_CORES"] == "16-31"
    # Some of them run, and hold their cores, when others ask.
    hold(tmp_path, {0: {"pid": 4000000}, 4: {"pid": 4000001}, 5: {"pid": 4000002}})
    for rank in range(16):
        inherited = {
            "NEURON_RT_VISIBLE_CORES": "16-31",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "16",
        }
        started = NeuronBackend(tmp_path, inherited, FITTING)
        assert core_of(started, None, rank) == 16 + rank
        assert shared(started)["NEURON_RT_ROOT_COMM_ID"] == shared(neuron, 16)["NEURON_RT_ROOT_COMM_ID"]


def test_ranks_that_were_told_nothing_before_find_one_core_each_all_the_same(tmp_path: Path) -> None:
    lay_out("trn2.48xlarge-lnc2", tmp_path)
    hold(tmp_path, {0: {"pid": 4000000}})
    found = [
        core_of(NeuronBackend(tmp_path, {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "8"}, FITTING), None, rank)
        for rank in range(8)
    ]
    assert found == list(range(8))


def test_a_core_that_is_known_to_be_free_is_taken_though_its_chip_is_held(tmp_path: Path) -> None:
    neuron = backend("trn2.48xlarge-lnc2", tmp_path)
    hold(tmp_path, {0: {"pid": 4000000, "neuroncore_ids": [0, 1]}})
    assert core_of(neuron, 2, 0) == 2


def test_tools_that_look_hold_no_core(tmp_path: Path) -> None:
    neuron = backend("trn2.48xlarge-lnc2", tmp_path)
    hold(tmp_path, {0: {"pid": 4000000, "command": "/opt/aws/neuron/bin/neuron-monitor -c x"}})
    assert core_of(neuron, None, 0) == 0
    assert neuron.contradictions() == ()


@pytest.mark.parametrize(
    ("name", "ranks", "told"),
    [
        (
            "trn2.48xlarge-lnc2",
            12,
            r"12 is no number of ranks that the runtime takes: \[1, 2, 4, 8, 16\] or a multiple",
        ),
        ("trn2.48xlarge-lnc2", 65, "65 ranks, and 64 logical cores"),
        ("trn1.32xlarge", 4, r"4 is no number of ranks that the runtime takes: \[1, 2, 8, 16\] or a multiple of 32"),
        ("no-device", None, "no AWS Neuron device"),
    ],
)
def test_ranks_that_cannot_be_started_are_refused(
    at: Callable[[str], Path], name: str, ranks: int | None, told: str
) -> None:
    with pytest.raises(UnsupportedError, match=told):
        backend(name, at(name)).launch_environment(ranks)


def test_ranks_that_find_no_free_cores_are_refused_with_who_has_them(tmp_path: Path) -> None:
    neuron = backend("trn2.3xlarge", tmp_path)
    hold(tmp_path, {0: {"pid": 4000000, "command": "python serve.py"}}, "trn2.3xlarge")
    with pytest.raises(UnsupportedError, match=r"no 4 cores are free .* process 4000000 \(python serve.py\) has them"):
        neuron.launch_environment(4)


# What contradicts itself.


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (
            {"NEURON_LOGICAL_NC_CONFIG": "1", "NEURON_RT_VIRTUAL_CORE_SIZE": "2"},
            "NEURON_LOGICAL_NC_CONFIG=1 and NEURON_RT_VIRTUAL_CORE_SIZE=2 are two names of one setting",
        ),
        (
            {"NEURON_LOGICAL_NC_CONFIG": "2", "NEURON_CC_FLAGS": "-O2 --lnc=1"},
            "NEURON_CC_FLAGS compiles for LNC 1, and the runtime has LNC 2 by NEURON_LOGICAL_NC_CONFIG=2",
        ),
        ({"NEURON_CC_FLAGS": "--logical-nc-config 1"}, "the runtime has LNC 2 by the machine's setting"),
        ({"NEURON_CC_FLAGS": "-lnc=1", "NEURON_RT_VIRTUAL_CORE_SIZE": "2"}, "by NEURON_RT_VIRTUAL_CORE_SIZE=2"),
        ({"NEURON_LOGICAL_NC_CONFIG": "8"}, "NEURON_LOGICAL_NC_CONFIG=8: a Trainium2 has LNC 1 and 2"),
        (
            {"NEURON_RT_VISIBLE_CORES": "0-3", "NEURON_RT_NUM_CORES": "8"},
            "NEURON_RT_VISIBLE_CORES=0-3 and NEURON_RT_NUM_CORES=8 are both set; the first holds",
        ),
        (
            {"NEURON_RT_VISIBLE_CORES": "60-67"},
            "there is no logical core 64 that this process may use; there are 0 to 63",
        ),
        ({"NEURON_RT_VISIBLE_CORES": "2-5"}, "4 cores begin at a multiple of 4, at 0 or 4"),
        ({"NEURON_RT_VISIBLE_CORES": "12-19"}, "is of neuron3, neuron4, which are not joined to each other"),
        ({"NEURON_RT_VISIBLE_CORES": "0-11"}, "12 is no number of ranks that the runtime takes"),
        ({"NEURON_RT_VISIBLE_CORES": "0,4"}, "the runtime takes cores that follow each other"),
        ({"NEURON_RT_NUM_CORES": "100"}, "NEURON_RT_NUM_CORES=100: there are 64 logical cores"),
        (
            {"LOCAL_WORLD_SIZE": "128"},
            "LOCAL_WORLD_SIZE=128: each rank has a logical core of its own, and there are 64",
        ),
        ({"NEURON_RT_ROOT_COMM_ID": "10.0.0.1"}, "NEURON_RT_ROOT_COMM_ID=10.0.0.1 is no address and port"),
        (
            {"NEURON_RT_ROOT_COMM_ID": "10.0.0.1:29500", "MASTER_PORT": "29500"},
            "has the port of MASTER_PORT, where torchrun listens",
        ),
        ({"FI_PROVIDER": "efa"}, "FI_PROVIDER=efa, and this machine has no EFA card"),
        ({"NEURONCORE_GROUP_SIZES": "4"}, "NEURONCORE_GROUP_SIZES=4 does nothing"),
        ({"NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "4"}, "does nothing: SDK 2.32 took it away"),
        ({"PJRT_DEVICE": "NEURON"}, "PJRT_DEVICE=NEURON does nothing: it is torch-xla's"),
    ],
)
def test_a_contradiction_is_a_sentence_that_says_what_is_set(
    at: Callable[[str], Path], environment: dict[str, str], told: str
) -> None:
    found = backend("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"), **environment).contradictions()
    assert len([each for each in found if told in each]) == 1, found


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NEURON_LOGICAL_NC_CONFIG": "2", "NEURON_RT_VIRTUAL_CORE_SIZE": "2", "NEURON_CC_FLAGS": "--lnc=2"},
        {"NEURON_RT_VISIBLE_CORES": "16-23"},
        {"NEURON_RT_VISIBLE_CORES": "16-31"},
        {"NEURON_RT_VISIBLE_CORES": "5"},
        {"NEURON_RT_NUM_CORES": "8", "LOCAL_WORLD_SIZE": "8"},
        {"NEURON_RT_ROOT_COMM_ID": "host-1:62182", "MASTER_PORT": "29500"},
        {"PJRT_DEVICE": "CPU"},
    ],
)
def test_settings_that_agree_are_no_contradiction(at: Callable[[str], Path], environment: dict[str, str]) -> None:
    assert backend("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"), **environment).contradictions() == ()


def test_cores_that_another_process_holds_are_one_with_who_it_is(tmp_path: Path) -> None:
    neuron = backend("trn2.48xlarge-lnc2", tmp_path, NEURON_RT_VISIBLE_CORES="4-7")
    hold(tmp_path, {0: {"pid": 4000000}, 1: {"pid": 4000001, "command": "python serve.py"}})
    [told] = neuron.contradictions()
    assert told.startswith("4 cores from 4 to 7 cannot be had: process 4000001 (python serve.py) has them")


def test_a_provider_that_leaves_efa_cards_unused_is_one(tmp_path: Path) -> None:
    neuron = backend("trn2u.48xlarge", tmp_path, FI_PROVIDER="tcp")
    assert neuron.contradictions() == ()
    write(tmp_path / "sys/class/infiniband/rdmap0s0/device/vendor", "0x1d0f")
    write(tmp_path / "sys/class/infiniband/rdmap0s0/device/device", "0xefa3")
    [told] = neuron.contradictions()
    assert "FI_PROVIDER=tcp, and this machine has 1 EFA cards" in told


def test_a_half_broken_driver_is_told_of_and_the_chips_that_work_are_used(at: Callable[[str], Path]) -> None:
    neuron = backend("half-broken-driver", at("half-broken-driver"))
    found = neuron.contradictions()
    assert any("neuron-ls cannot be used: it ended with status 1: cannot read the devices" in each for each in found)
    assert any("/dev has neuron5, neuron11, and the driver's folder in /sys has not" in each for each in found)
    assert "of which `devices doctor` tells" in neuron.probe().reason


def test_a_machine_without_chips_has_none(at: Callable[[str], Path]) -> None:
    neuron = backend("no-device", at("no-device"), NEURON_RT_VISIBLE_CORES="all", NEURON_RT_NUM_CORES="4")
    assert neuron.contradictions() == ()
