"""The ranks of a world meet: each once, all of one world, and with a secret only those that know it."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import Future

import pytest
import ranks
import torch
import torch.distributed as dist

import devices
from devices.errors import WorldError
from devices.meeting.rendezvous import is_loopback, serve
from devices.meeting.secret import authenticate
from devices.testing import run_processes

SECRET = "correct horse battery staple"


def opened(variables: dict[int, dict[str, str]], timeout: float = 30.0) -> str:
    """Return what `devices.init` says on a rank, some of whose variables are changed.

    Args:
        variables: the changes, by the rank that it would have without them.
        timeout: how long it waits.
    """
    changed = variables.get(int(os.environ["RANK"]), {})
    os.environ.update(changed)
    if changed.get("TORCHELASTIC_USE_AGENT_STORE") == "":
        del os.environ["TORCHELASTIC_USE_AGENT_STORE"]
    try:
        with devices.init(timeout=timeout) as world:
            devices.all_reduce(torch.ones(1))
            return world.explain()
    except WorldError as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(autouse=True)
def _no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVICES_SECRET", raising=False)


def test_two_first_ranks_without_a_launcher_are_named_on_both() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "", "MASTER_PORT": port}
    for said in ranks.run(2, opened, {0: alone, 1: alone}):
        assert "RANK is 0 in two processes: process " in said


def test_worlds_without_a_launcher_open_one_after_another() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"TORCHELASTIC_USE_AGENT_STORE": "", "MASTER_PORT": port, "MASTER_ADDR": "localhost"}
    for said in ranks.run(2, _opened_often, {0: alone, 1: alone}):
        assert f"2 ranks met at localhost:{port}" in said


def _opened_often(variables: dict[int, dict[str, str]]) -> str:
    opened(variables)
    # Whichever rank is the first to come for the next world while the other closes the one before.
    return [opened({}) for _ in range(10)][-1]


# With a secret.


def test_with_one_secret_the_world_opens_and_says_that_its_ranks_are_authenticated() -> None:
    for said in ranks.run(2, opened, {}, env={"DEVICES_SECRET": SECRET}):
        assert "; ranks are authenticated by DEVICES_SECRET" in said


def test_without_one_the_world_says_that_its_ranks_are_not() -> None:
    [said] = ranks.run(1, opened, {})
    assert "; ranks are not authenticated, for DEVICES_SECRET is not set" in said


def test_a_rank_with_another_secret_is_refused_by_the_others_and_told_so_itself() -> None:
    first, second, third = ranks.run(3, opened, {2: {"DEVICES_SECRET": "x" * 20}}, env={"DEVICES_SECRET": SECRET})
    assert first == "WorldError: rank 0 of 3: DEVICES_SECRET is another here than on rank 2; nothing was sent"
    assert second == "WorldError: rank 1 of 3: DEVICES_SECRET is another here than on rank 2; nothing was sent"
    assert third == "WorldError: rank 2 of 3: DEVICES_SECRET is another here than on ranks 0, 1; nothing was sent"


def test_a_rank_without_the_secret_is_refused_on_every_rank() -> None:
    for said in ranks.run(2, opened, {1: {"DEVICES_SECRET": ""}}, env={"DEVICES_SECRET": SECRET}):
        assert 'DEVICES_SECRET is "set" on rank 0, and "not set" on rank 1' in said


def _opened_by_torch(rank: int) -> str:
    if int(os.environ["RANK"]) == rank:
        os.environ["DEVICES_SECRET"] = "x" * 20
    with pytest.raises(WorldError) as caught:
        dist.init_process_group("devices")
    return str(caught.value)


def test_a_world_that_torch_opens_asks_for_the_secret_too() -> None:
    first, second = ranks.run(2, _opened_by_torch, 1, env={"DEVICES_SECRET": SECRET})
    assert "DEVICES_SECRET is another here than on rank 1" in first
    assert "DEVICES_SECRET is another here than on rank 0" in second


def test_a_secret_that_is_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICES_SECRET", "hunter2")
    with pytest.raises(WorldError, match="DEVICES_SECRET is 7 characters long; 16 are the least"):
        authenticate(dist.HashStore(), 0, 1)


def proved(store: dist.Store, rank: int, size: int) -> Future[None]:
    """Start to be a rank, on a thread of its own."""
    done: Future[None] = Future()

    def be() -> None:
        try:
            done.set_result(authenticate(store, rank, size))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=be, daemon=True).start()
    return done


def test_the_secret_itself_is_not_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICES_SECRET", SECRET)
    store = dist.HashStore()
    for done in [proved(store, rank, 2) for rank in range(2)]:
        done.result(60)
    kept = [store.get(f"secret/{kind}/{rank}") for kind in ("drawn", "proof") for rank in range(2)]
    assert len(set(kept)) == 4
    assert not any(SECRET.encode() in value for value in kept)
    assert store.num_keys() == 4


@pytest.mark.parametrize("repeats", [False, True], ids=["makes_something_up", "repeats_what_another_says"])
def test_a_stranger_is_refused_whatever_it_says_in_the_store(repeats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICES_SECRET", SECRET)
    store = dist.HashStore()
    first = proved(store, 0, 2)
    store.set("secret/drawn/1", store.get("secret/drawn/0") if repeats else json.dumps("0" * 32))
    store.set("secret/proof/1", store.get("secret/proof/0") if repeats else json.dumps("0" * 64))
    with pytest.raises(WorldError, match="rank 0 of 2: DEVICES_SECRET is another here than on rank 1"):
        first.result(60)


def test_a_proof_of_another_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICES_SECRET", SECRET)
    before, now = dist.HashStore(), dist.HashStore()
    for done in [proved(before, rank, 2) for rank in range(2)]:
        done.result(60)
    for kind in ("drawn", "proof"):
        now.set(f"secret/{kind}/1", before.get(f"secret/{kind}/1"))
    # Not even one who also takes the first rank's number from it.
    first = proved(now, 0, 2)
    now.set("secret/drawn/0", before.get("secret/drawn/0"))
    with pytest.raises(WorldError, match="rank 0 of 2: DEVICES_SECRET is another here than on rank"):
        first.result(60)


def _secret_and_note(world: devices.World) -> tuple[str, str]:
    return os.environ["DEVICES_SECRET"], world.explain()


def test_ranks_that_we_launch_have_a_secret_of_their_run() -> None:
    runs = [run_processes(_secret_and_note, 2) for _ in range(2)]
    secrets = {secret for run in runs for secret, _ in run}
    assert len(secrets) == 2
    assert all(len(secret) >= 64 for secret in secrets)
    assert all("; ranks are authenticated by DEVICES_SECRET" in note for run in runs for _, note in run)


# Where the store listens.


def test_a_store_on_the_loopback_is_not_reached_by_another_address() -> None:
    store = serve("127.0.0.1", 0)
    # Another address of this host, as every one that begins with 127 is.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", store.port), timeout=5).close()
    socket.create_connection(("127.0.0.1", store.port), timeout=5).close()


@pytest.mark.parametrize(
    ("host", "is_so"),
    [("localhost", True), ("127.0.0.1", True), ("127.0.1.1", True), ("10.0.0.1", False), ("node-7", False)],
)
def test_only_a_name_that_is_always_this_host_is_taken_for_the_loopback(host: str, is_so: bool) -> None:
    assert is_loopback(host) is is_so
