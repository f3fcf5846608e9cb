"""A stranger's plugin is probed by one rank of a host, for all of them."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from test_registry import with_probe
from throwaway_plugins import Site

import devices
from devices import Store, _registry
from devices.errors import DevicesError, PluginError
from devices.roster import once_per_host as roster_once_per_host
from devices.roster.once_per_host import once_per_host

pytestmark = pytest.mark.slow

# A toy that carries messages, so that a world opens on it; who probed it shows in the reason.
HERE = "import os; note(); return Probe(True, f'found by process {os.getpid()}')"
OPEN = """
def open(self, group):
    from torch.distributed import ProcessGroupGloo
    from devices import ProcessGroupCommunicator
    return ProcessGroupCommunicator(ProcessGroupGloo(group.store.torch, group.rank, group.size, group.timeout))
Throwaway.open = open
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def add_toy(site: Site, probe: str) -> Path:
    """Install the backend "toy", whose probe can call `note()`; return the file that has a line for each call."""
    asked = site.folder / "asked"
    note = f"def note():\n    with Path({str(asked)!r}).open('a') as file:\n        file.write('asked\\n')\n"
    site.add("toy", "from pathlib import Path\n" + note + with_probe(probe) + OPEN)
    return asked


def _told(folder: str, by: str, hosts: int = 1) -> tuple[str, float]:
    """Open a world where the plugins in `folder` are installed; return what was chosen, or why nothing was."""
    sys.path.insert(0, folder)
    _registry.reset()
    if hosts > 1:
        name = f"host {int(os.environ['RANK']) * hosts // int(os.environ['WORLD_SIZE'])}"
        roster_once_per_host._host = lambda: name
    start = time.monotonic()
    try:
        if by == "torch":
            dist.init_process_group("devices")
        world = devices.init("auto" if by == "torch" else by)
        assert devices.all_reduce(torch.ones(2)).tolist() == [world.size] * 2
        told = devices.explain().partition("\nrank ")[0]
        world.close()
        if by == "torch":
            dist.destroy_process_group()
    except DevicesError as error:
        told = f"{type(error).__name__}: {error}"
    return told, time.monotonic() - start


@pytest.mark.parametrize("by", ["auto", "toy", "torch"])
def test_four_ranks_of_a_host_start_one_probe_and_all_have_its_answer(site: Site, by: str) -> None:
    asked = add_toy(site, HERE)
    told = {said for said, _ in ranks.run(4, _told, str(site.folder), by)}
    assert len(told) == 1
    assert told.pop().startswith("backend 'toy': ")
    assert asked.read_text() == "asked\n"


def test_an_absence_is_shared_too_and_auto_goes_on_on_every_rank(site: Site) -> None:
    asked = add_toy(site, "note(); return Probe(False, 'left the bus')")
    told = {said for said, _ in ranks.run(4, _told, str(site.folder), "auto")}
    assert len(told) == 1
    assert "backend 'cpu': " in (said := told.pop())
    assert "toy: absent, left the bus" in said
    assert asked.read_text() == "asked\n"


def test_each_host_has_a_probe_of_its_own(site: Site) -> None:
    asked = add_toy(site, HERE)
    told = [said for said, _ in ranks.run(4, _told, str(site.folder), "toy", 2)]
    assert told[0] == told[1] != told[2] == told[3]
    assert asked.read_text() == "asked\n" * 2


@pytest.mark.parametrize("by", ["toy", "torch"])
def test_a_probe_that_dies_is_the_same_error_on_every_rank(site: Site, by: str) -> None:
    asked = add_toy(site, "import os, signal; note(); os.kill(os.getpid(), signal.SIGSEGV)")
    told = ranks.run(4, _told, str(site.folder), by, env={"DEVICES_BACKEND": "toy"})
    assert {said.removeprefix("PluginError: ").removeprefix("DEVICES_BACKEND=toy: ") for said, _ in told} == {
        "backend 'toy': its probe's process was killed by SIGSEGV"
    }
    assert asked.read_text() == "asked\n"


@pytest.mark.slow
def test_a_probe_that_hangs_is_an_error_on_every_rank_in_bounded_time_from_one_child(site: Site) -> None:
    asked = add_toy(site, "import time; note(); time.sleep(100)")
    told = ranks.run(4, _told, str(site.folder), "toy")
    assert len({said for said, _ in told}) == 1
    assert "its probe did not finish within 5 s and was killed" in told[0][0]
    assert max(seconds for _, seconds in told) < roster_once_per_host.PATIENCE
    assert asked.read_text() == "asked\n"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("toyy", "BackendNotFoundError: no plugin provides a backend named 'toyy'; did you mean 'toy'?"),
        ("broken", "PluginError: plugin 'broken' of some-broken 1.2 is broken: ModuleNotFoundError"),
    ],
)
def test_a_wrong_name_and_a_broken_plugin_are_errors_before_anything_waits_for_other_ranks(
    site: Site, asked: str, said: str
) -> None:
    add_toy(site, HERE)
    site.add("broken", "import a_module_that_nobody_has")
    # Rank 0, whose port this is, never comes.
    alone = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    assert site.refusal(f"devices.init({asked!r})", **alone).startswith(said)


# The same without processes, where ranks come one after another.


class Asked:
    """Something that answers, and counts how often."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.times = 0

    def __call__(self) -> Any:
        self.times += 1
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def test_the_second_to_ask_is_told_what_the_first_was() -> None:
    for outcome in ({"toy": [1, None, "left the bus"]}, None):
        store, first, second = Store(dist.HashStore()), Asked(outcome), Asked("another")
        assert once_per_host(store, "toy", first) == outcome
        assert once_per_host(store, "toy", second) == outcome
        assert once_per_host(store, "other", second) == second.outcome
        assert (first.times, second.times) == (1, 1)


def test_who_waits_in_vain_for_a_rank_that_was_lost_asks_for_itself() -> None:
    store, mine = Store(dist.HashStore()), Asked("mine")
    with pytest.raises(KeyboardInterrupt):
        once_per_host(store, "toy", Asked(KeyboardInterrupt()))
    start = time.monotonic()
    assert once_per_host(store, "toy", mine, patience=0.3) == "mine"
    assert 0.3 <= time.monotonic() - start < 30


@pytest.mark.parametrize("fails", ["add", "check", "wait", "get", "set"])
def test_who_loses_the_store_asks_for_itself(fails: str) -> None:
    class Lost:
        """A store whose server is gone by the time of the call named `fails`."""

        def __getattr__(self, name: str) -> Any:
            if name == fails:
                raise dist.DistNetworkError("Broken pipe")
            answers = {"add": 1 if fails == "set" else 2, "check": fails == "get"}
            return lambda *args: answers.get(name)

    ask = Asked(PluginError("it is broken"))
    with pytest.raises(PluginError, match="it is broken"):
        once_per_host(Store(Lost()), "toy", ask)  # type: ignore[arg-type]
    assert ask.times == 1


def test_a_store_says_whether_a_key_comes_in_time() -> None:
    store = Store(dist.HashStore())
    assert [store.add("count", 2), store.add("count", -1), store.get("count")] == [2, 1, 1]
    store.set("here", {"a": [1]})
    assert store.comes("here", 0)
    assert store.get("here") == {"a": [1]}
    start = time.monotonic()
    assert not store.comes("never", 0)
    assert not store.comes("never", 0.2)
    assert 0.2 <= time.monotonic() - start < 30


def test_an_adopted_group_of_torchs_own_shares_a_probe_too(site: Site) -> None:
    asked = add_toy(site, HERE)
    told = ranks.run(3, _adopts_gloo, str(site.folder))
    assert len(set(told)) == 1
    assert asked.read_text() == "asked\n"


def _adopts_gloo(folder: str) -> str:
    sys.path.insert(0, folder)
    _registry.reset()
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    with devices.init("toy"):
        told = devices.explain().partition("\nrank ")[0]
    dist.destroy_process_group()
    return told
