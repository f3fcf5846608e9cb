"""Observers of collectives: who is told what, in which order, and what an observer can stop."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from throwaway_plugins import Site

import devices
import devices.testing
from devices import Called, Ended, Group, Observer, _observing
from devices.algorithms.verbs import Verbs
from devices.calls.groups import verbs_over
from devices.errors import ArgumentError, PluginError, UnsupportedError

pytestmark = pytest.mark.slow

OBSERVER = """
from devices import Observer, hookimpl

class Loud(Observer):
    def called(self, call):
        print("heard", call.verb, call.group.rank, flush=True)

@hookimpl
def devices_observer():
    return Loud()
"""


class Heard(Observer):
    """Keeps all that it hears."""

    def __init__(self, name: str = "", into: list[tuple[str, str]] | None = None) -> None:
        self.name = name
        self.order = [] if into is None else into
        self.calls: list[Called] = []
        self.ends: list[Ended] = []
        self.groups: list[tuple[str, int, bool]] = []
        self.lock = threading.Lock()

    def opening(self, group: Group, *, is_world: bool) -> None:
        self.groups.append(("opening", group.size, is_world))

    def closed(self, group: Group) -> None:
        self.groups.append(("closed", group.size, False))

    def called(self, call: Called) -> None:
        with self.lock:
            self.calls.append(call)
            self.order.append((self.name, "called"))

    def ended(self, ended: Ended) -> None:
        with self.lock:
            self.ends.append(ended)
            self.order.append((self.name, "ended"))


class Refusing(Heard):
    def called(self, call: Called) -> None:
        super().called(call)
        raise UnsupportedError(f"{call.group}: no {call.verb} today")


def every_verb(world: devices.World) -> None:
    rank, size = world.rank, world.size
    x = torch.full((size,), float(rank))
    devices.all_reduce(x, op="max")
    devices.all_gather(x, sizes=[size] * size)
    devices.reduce_scatter(x)
    devices.all_to_all(x)
    devices.broadcast(x, src=1)
    devices.reduce(x, dst=1)
    devices.gather(x, dst=1)
    devices.scatter(x, src=1)
    devices.permute(x, pairs=[(0, 1)])
    devices.barrier()
    if rank == 0:
        devices.send(x, dst=1)
    if rank == 1:
        devices.recv(x, src=0)
    torch.distributed.all_reduce(x)


def test_an_observer_hears_of_every_verb_with_what_it_was_called_with_and_how_it_ended() -> None:
    heard = Heard()
    with devices.observe(heard) as found:
        devices.testing.run(every_verb, ranks=3)
    assert found == (heard,)
    by_rank = Counter((call.group.rank, call.verb) for call in heard.calls if call.is_ours)
    collectives = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather")
    for rank in range(3):
        for verb in (*collectives, "scatter", "permute", "barrier"):
            # scatter tells by a broadcast what shape the others get.
            assert by_rank[rank, verb] == (2 if verb == "broadcast" else 1), (rank, verb)
    assert by_rank[0, "send"] == by_rank[1, "recv"] == 1
    assert sum(by_rank.values()) == 3 * 11 + 2
    assert [call.op for call in heard.calls if call.verb == "all_reduce" and call.is_ours] == ["max"] * 3
    assert [call.peer for call in heard.calls if call.verb == "broadcast"] == [1] * 6
    assert [call.peer for call in heard.calls if call.verb == "send"] == [1]
    assert [call.nbytes for call in heard.calls if call.verb in ("reduce", "barrier")].count(12) == 3
    assert Counter(call.verb for call in heard.calls if not call.is_ours)["all_reduce"] == 3
    assert len(heard.ends) == len(heard.calls)
    assert {ended.outcome for ended in heard.ends} == {"done"}
    assert all(ended.seconds > 0 for ended in heard.ends)
    assert {id(ended.call) for ended in heard.ends} == {id(call) for call in heard.calls}
    assert heard.groups.count(("opening", 3, True)) == heard.groups.count(("closed", 3, False)) == 3


def test_a_call_that_an_observer_refuses_is_not_made_and_the_program_gets_its_error() -> None:
    refusing = Refusing()

    def asks(world: devices.World) -> list[float]:
        x = torch.full((2,), float(world.rank))
        with pytest.raises(UnsupportedError, match=f"rank {world.rank} of 2 in group .* no all_reduce today"):
            torch.distributed.all_reduce(x)
        with pytest.raises(UnsupportedError, match="no all_reduce today"):
            devices.all_reduce(x, async_op=True)
        return x.tolist()

    with devices.observe(refusing):
        assert devices.testing.run(asks, ranks=2) == [[0.0, 0.0], [1.0, 1.0]]
    assert len(refusing.calls) == 4
    assert refusing.ends == []  # it has not let them pass


def test_what_an_observer_raises_when_a_group_opens_refuses_the_group() -> None:
    class NoGroups(Observer):
        def opening(self, group: Group, *, is_world: bool) -> None:
            if not is_world:
                raise UnsupportedError(f"{group}: the world is enough")

    def asks(world: devices.World) -> None:
        with pytest.raises(UnsupportedError, match="the world is enough"):
            dist.new_group([0, 1])

    with devices.observe(NoGroups()):
        devices.testing.run(asks, ranks=2)


def test_several_observers_are_told_in_the_order_in_which_they_came() -> None:
    order: list[tuple[str, str]] = []
    with devices.init("cpu"), devices.observe(Heard("first", order), Heard("second", order)):
        with devices.observe(Heard("third", order)):
            devices.all_reduce(torch.ones(2))
        devices.barrier()
    names = ["first", "second", "third"]
    told = [(name, what) for what in ("called", "ended") for name in names]
    assert order == told + [(name, what) for what in ("called", "ended") for name in names[:2]]


def test_those_who_let_a_call_pass_hear_that_another_has_refused_it() -> None:
    first, refusing, last = Heard(), Refusing(), Heard()
    refused = pytest.raises(UnsupportedError, match="no all_reduce today")
    with devices.init("cpu"), devices.observe(first, refusing, last), refused:
        devices.all_reduce(torch.ones(2))
    [ended] = first.ends
    assert (ended.outcome, type(ended.error)) == ("failed", UnsupportedError)
    assert last.calls == last.ends == refusing.ends == []


def test_a_call_that_fails_ends_with_its_error() -> None:
    heard = Heard()

    def fails(world: devices.World) -> None:
        with pytest.raises(devices.errors.DevicesError):
            verbs_over(None, torch.ones(1)).all_reduce(torch.ones(2, dtype=torch.int64), "avg")

    with devices.observe(heard):
        devices.testing.run(fails, ranks=2)
    assert [ended.outcome for ended in heard.ends] == ["failed"] * 2
    assert all(isinstance(ended.error, devices.errors.DevicesError) for ended in heard.ends)


def test_an_asynchronous_call_ends_when_it_is_waited_for_and_once() -> None:
    heard = Heard()

    def waits(world: devices.World) -> None:
        before = len(heard.ends)
        work = devices.all_reduce(torch.ones(2), async_op=True)
        assert len(heard.ends) == before
        work.wait()
        work.wait()
        assert work.is_completed()

    with devices.observe(heard):
        devices.testing.run(waits, ranks=1)
    assert [call.is_async for call in heard.calls] == [True]
    assert len(heard.ends) == 1


def test_an_observer_in_the_function_of_a_thread_rank_hears_of_that_rank_alone() -> None:
    everywhere = Heard()

    def mine(world: devices.World) -> list[int]:
        here = Heard()
        with devices.observe(here):
            devices.all_reduce(torch.ones(1))
        devices.barrier()
        return [call.group.rank for call in here.calls]

    with devices.observe(everywhere):
        assert devices.testing.run(mine, ranks=3) == [[0], [1], [2]]
    assert Counter(call.verb for call in everywhere.calls) == {"all_reduce": 3, "barrier": 3}


def test_an_observer_and_an_emulated_target_watch_together_and_of_two_targets_the_inner_one_counts() -> None:
    heard = Heard()

    def asks(world: devices.World) -> float:
        with devices.testing.emulate("trainium2", compose=True):
            return devices.all_reduce(torch.tensor(2.0), op="prod").item()

    with devices.observe(heard), devices.testing.emulate("trainium2"):
        assert devices.testing.run(asks, ranks=4) == [16.0] * 4  # which trainium2 alone refuses
        with pytest.raises(UnsupportedError, match="trainium2 refuses"):
            devices.testing.run(lambda world: devices.all_reduce(torch.tensor(2.0), op="prod"), ranks=4)
    assert {call.verb for call in heard.calls} == {"all_reduce"}
    assert [ended.outcome for ended in heard.ends].count("failed") >= 1


def test_the_cases_of_torchs_own_group_are_heard_where_our_verbs_are_called_over_it() -> None:
    heard = Heard()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with devices.observe(heard):
            devices.all_reduce(torch.ones(2))
            dist.all_reduce(torch.ones(2))  # goes straight to gloo
    finally:
        dist.destroy_process_group()
    assert [call.verb for call in heard.calls] == ["all_reduce"]


def test_where_nobody_watches_the_verbs_are_what_they_are_without_observers() -> None:
    with devices.init("cpu"):
        plain = verbs_over(None, torch.ones(1))
        assert type(plain) is Verbs
        with devices.observe(Heard()):
            assert verbs_over(None, torch.ones(1)) is not plain
        assert verbs_over(None, torch.ones(1)) is plain
    assert not _observing.is_on


def test_what_is_no_observer_is_refused_before_it_watches() -> None:
    with pytest.raises(ArgumentError, match=r"3 is no devices\.Observer"):
        devices.observe(3).__enter__()  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="no plugin is named 'cup'; did you mean 'cpu'"):
        devices.observe("cup").__enter__()
    with pytest.raises(PluginError, match=r"plugin 'cpu' of devices .* has no hook `devices_observer`"):
        devices.observe("cpu").__enter__()
    assert not _observing.is_on


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_an_installed_observer_watches_only_a_program_that_names_it(site: Site) -> None:
    site.add("loud", OBSERVER)
    code = """
        import sys, torch, devices
        with devices.init("cpu"):
            devices.all_reduce(torch.ones(2))
        print(any("throwaway" in name for name in sys.modules), devices._observing.is_on)
    """
    assert site.python(code) == "False False"
    assert site.python(code, DEVICES_OBSERVERS="loud").splitlines() == ["heard all_reduce 0", "True True"]


def test_an_observer_that_is_not_allowed_is_refused(site: Site) -> None:
    site.add("loud", OBSERVER)
    told = site.refusal("devices.init('cpu')", DEVICES_OBSERVERS="loud", DEVICES_PLUGINS="cpu")
    assert told.startswith("PluginError: plugin 'loud' is installed, but not among those that DEVICES_PLUGINS allows")


def test_the_variable_also_holds_for_a_program_that_knows_only_torch(site: Site) -> None:
    site.add("loud", OBSERVER)
    code = """
        import torch, torch.distributed as dist
        dist.init_process_group("devices", store=dist.HashStore(), rank=0, world_size=1)
        dist.all_reduce(torch.ones(2))
        dist.destroy_process_group()
    """
    assert site.python(code, DEVICES_OBSERVERS=" loud, ") == "heard all_reduce 0"


FAULTY = {
    "missing": ("import a_module_that_nobody_has", "is broken: ModuleNotFoundError: No module named"),
    "killed": ("import os; os.kill(os.getpid(), 11)", "is broken: its import's process was killed by SIGSEGV"),
    "raising": (OBSERVER.replace("return Loud()", "1 / 0"), "hook `devices_observer` raised ZeroDivisionError"),
    "classy": (
        OBSERVER.replace("return Loud()", "return Loud"),
        "returned <class 'throwaway_classy_some_classy.Loud'>, which is",
    ),
    "nobody": (
        OBSERVER.replace("return Loud()", "return None"),
        "hook `devices_observer` returned None, which is no",
    ),
}


def test_an_observer_that_cannot_be_had_is_an_error_of_its_plugin(site: Site) -> None:
    for name, (source, _) in FAULTY.items():
        site.add(name, source)
    # One program asks for each of them.
    told = site.python(f"""
        import os, devices
        for name in {list(FAULTY)}:
            os.environ["DEVICES_OBSERVERS"] = name
            try:
                devices.init("cpu")
                print("nothing was raised")
            except devices.errors.DevicesError as error:
                print(f"{{type(error).__name__}}: {{error}}".replace(chr(10), " "))
    """).splitlines()
    for (name, (_, fault)), said in zip(FAULTY.items(), told, strict=True):
        assert said.startswith(f"PluginError: plugin {name!r} of some-{name} 1.2")
        assert fault in said


def test_importing_devices_and_its_observers_does_not_import_torch() -> None:
    code = "import sys, devices; devices.Observer, devices.Called, devices.Ended; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
