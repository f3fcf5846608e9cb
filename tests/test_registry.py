from __future__ import annotations

from pathlib import Path

import pytest
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

from devices import _registry
from devices.errors import BackendNotFoundError

BROKEN = {
    "missing_import": ("import a_module_that_nobody_has", "No module named 'a_module_that_nobody_has'"),
    "syntax": ("def f(:", "SyntaxError"),
    "leaves": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "misspelt": (
        PREAMBLE + "@hookimpl\ndef devices_backends():\n    return Throwaway()",
        "a hook 'devices_backends' that does not exist; did you mean 'devices_backend'?",
    ),
    "undecorated": (PREAMBLE + "def devices_backend():\n    return Throwaway()", "decorated with `@devices.hookimpl`"),
    "arguments": (
        PREAMBLE + "@hookimpl\ndef devices_backend(world):\n    return Throwaway()",
        "Argument(s) {'world'} are declared",
    ),
    "raises": (PREAMBLE + "@hookimpl\ndef devices_backend():\n    1 / 0", "ZeroDivisionError"),
    "empty": (PREAMBLE + "@hookimpl\ndef devices_backend():\n    return []", "returned no backend"),
    "text": (PREAMBLE + "@hookimpl\ndef devices_backend():\n    return 'toy'", "'toy', which is no devices.Backend"),
    "uncalled": (
        PREAMBLE + "@hookimpl\ndef devices_backend():\n    return Throwaway",
        "the class Throwaway; return an instance of it",
    ),
    "nameless": (PREAMBLE + "Throwaway.name = None" + GOOD_HOOK, "Throwaway.name must be a word, got None"),
    "auto": (PREAMBLE + "Throwaway.name = 'auto'" + GOOD_HOOK, "already means the best that is present"),
    "newer": (PREAMBLE + "Throwaway.interface = 2" + GOOD_HOOK, "version 2 of the plugin interface; this is version 1"),
    "taken": (PREAMBLE + "Throwaway.name = 'cpu'" + GOOD_HOOK, "claims the backend name 'cpu', which plugin 'cpu' of"),
    "twice": (
        PREAMBLE + "@hookimpl\ndef devices_backend():\n    return [Throwaway(), Throwaway()]",
        "two backends named 'toy'",
    ),
}

BAD_PROBES = {
    "raising": ("raise OSError('no bus')", "its probe raised OSError: no bus"),
    "leaving": ("raise SystemExit(4)", "its probe raised SystemExit: 4"),
    "untyped": ("return True", "its probe returned True, not a Probe"),
    "segfault": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
    "silent": ("import os; os._exit(0)", "ended before it answered"),
    "abrupt": ("import os, sys; print('bus error', file=sys.stderr); os._exit(9)", "exited with status 9: bus error"),
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def with_probe(body: str, name: str = "toy") -> str:
    return f"{PREAMBLE}\ndef probe(self):\n    {body}\nThrowaway.probe = probe\nThrowaway.name = {name!r}\n{GOOD_HOOK}"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_an_error_for_whoever_asks_for_it_and_the_rest_load(site: Site, kind: str) -> None:
    source, fault = BROKEN[kind]
    site.add(kind, source)
    site.add("zebra", PREAMBLE + "Throwaway.name = 'zebra'" + GOOD_HOOK)  # loads after the broken one
    told = site.refusal(
        f"""
        assert (devices.backends()[0], devices.backends()[-1]) == ("cpu", "zebra"), devices.backends()
        assert _choice.choose("cpu").backend.name == "cpu"
        import sys
        assert not [name for name in sys.modules if name.startswith("throwaway")]  # nobody has asked for one
        _registry.backend({kind!r})
        """
    )
    assert told.startswith(f"PluginError: plugin {kind!r} of some-{kind} 1.2 is broken: ")
    assert fault in told


def test_a_broken_import_says_at_which_line_of_the_plugin(site: Site) -> None:
    site.add("broken", "x = 1\nimport a_module_that_nobody_has")
    code = "from devices import _choice, _registry; print(*_registry.plugins()[-1].error.__notes__)"
    told = site.python(code)
    assert 'throwaway_broken_some_broken.py", line 2, in <module>' in told
    assert told.endswith("ModuleNotFoundError: No module named 'a_module_that_nobody_has'")


def test_a_backend_for_a_newer_interface_is_an_error_under_its_own_name_too(site: Site) -> None:
    site.add("entry", PREAMBLE + "Throwaway.interface = 2" + GOOD_HOOK)
    assert "upgrade devices" in site.refusal("_registry.backend('toy')")


def test_of_two_strangers_with_one_backend_name_the_first_by_distribution_has_it(site: Site) -> None:
    site.add("toy", PREAMBLE + GOOD_HOOK, distribution="aaa-toys")
    site.add("toy", PREAMBLE + GOOD_HOOK, distribution="bbb-toys")
    code = """
        from devices import _choice, _registry
        assert _registry.backend("toy").probe().present
        for plugin in _registry.plugins():
            print(plugin.distribution, plugin.backends, plugin.error)
    """
    *_, first, second = site.python(code).splitlines()
    assert first == "aaa-toys ('toy',) None"
    assert second.startswith("bbb-toys () plugin 'toy' of bbb-toys 1.2 is broken: it claims the backend name 'toy'")


def test_a_stranger_that_sorts_before_us_cannot_take_cpu(site: Site) -> None:
    site.add("aaa", PREAMBLE + "Throwaway.name = 'cpu'" + GOOD_HOOK, distribution="aaa-thief")
    code = """
        from devices import _choice, _registry
        print(type(_registry.backend("cpu")).__name__, _registry.plugins()[0].own)
        print(*(plugin.error for plugin in _registry.plugins() if plugin.name == "aaa"))
    """
    first, told = site.python(code).splitlines()
    assert first == "CPUBackend True"
    assert told.startswith("plugin 'aaa' of aaa-thief 1.2 is broken: it claims the backend name 'cpu'")


def test_one_plugin_may_provide_several_backends(site: Site) -> None:
    other = "class Other(Throwaway):\n    name = 'other'\n"
    site.add("several", PREAMBLE + other + GOOD_HOOK.replace("Throwaway()", "[Throwaway(), Other()]"))
    assert site.python("import devices; print(*devices.backends())").endswith(" toy other")


@pytest.mark.parametrize("kind", BAD_PROBES)
def test_a_probe_that_fails_is_that_plugins_error_and_auto_goes_on(site: Site, kind: str) -> None:
    body, fault = BAD_PROBES[kind]
    site.add("toy", with_probe(body))
    told = site.refusal(
        """
        choice = _choice.choose("auto")
        assert choice.backend.name == "cpu", choice
        assert not dict(choice.considered)["toy"].present
        assert "toy would come before it" in choice.reason
        _choice.choose("toy")
        """
    )
    assert told.startswith("PluginError: backend 'toy': ")
    assert fault in told


def test_a_probe_that_hangs_is_killed_with_all_that_it_started(site: Site) -> None:
    # The grandchild holds the probe's stdout and stderr, which must not keep us waiting.
    body = (
        "import subprocess, sys, time, pathlib; p = subprocess.Popen([sys.executable, '-c', 'import time; "
        "time.sleep(100)']); pathlib.Path('grandchild').write_text(str(p.pid)); time.sleep(100)"
    )
    site.add("toy", with_probe(body))
    code = """
        import time
        from importlib.metadata import entry_points
        from devices.roster import survey
        start = time.monotonic()
        [answer] = survey.ask(list(entry_points(group="devices", name="toy")), ["probe"], deadline=1.5)
        assert time.monotonic() - start < 60
        print(answer.errors["probe", "toy"])
    """
    assert "its probe did not finish within 1.5 s and was killed" in site.python(code)
    assert not is_running(int((site.folder / "grandchild").read_text()))


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_strangers_probe_does_not_run_in_this_process_and_what_it_prints_is_not_its_answer(site: Site) -> None:
    body = (
        "import os; print('chatter', flush=True); os.system('echo more chatter'); return Probe(True, str(os.getpid()))"
    )
    site.add("toy", with_probe(body))
    code = """
        import os
        from devices import _choice, _registry
        assert _registry.probe("toy") is _registry.probe("toy")
        print(_registry.probe("toy").reason == str(os.getpid()))
    """
    assert site.python(code) == "False"


def test_a_probe_in_a_child_finds_modules_that_only_this_process_has_on_its_path(site: Site, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    hidden = Site(tmp_path / "more")
    hidden.add("toy", PREAMBLE + GOOD_HOOK)
    code = """
        import sys
        sys.path.insert(0, "more")
        from devices import _choice, _registry
        print(_registry.probe("toy").reason)
    """
    assert site.python(code) == "it is a toy"


def test_auto_takes_the_present_backend_of_the_highest_priority(site: Site) -> None:
    site.add("low", PREAMBLE + "Throwaway.name = 'low'; Throwaway.priority = 7" + GOOD_HOOK)
    site.add("high", PREAMBLE + "Throwaway.name = 'high'; Throwaway.priority = 8" + GOOD_HOOK)
    site.add("gone", with_probe("return Probe(False, 'left the bus')", "gone"))  # priority 100
    site.add("named", PREAMBLE + "Throwaway.name = 'named'; Throwaway.priority = None" + GOOD_HOOK)
    code = """
        from devices import _choice, _registry
        choice = _choice.choose()
        print(choice)
        assert _choice.choose("named").backend.name == "named"
    """
    assert site.python(code, DEVICES_PLUGINS="low,high,gone,named").splitlines() == [
        "backend 'high': the best that is present; gone would come before it",
        "  gone: absent, left the bus",
        "  high: present, it is a toy",
    ]


def test_a_backend_without_priority_is_never_taken_by_auto(site: Site) -> None:
    site.add("toy", PREAMBLE + "Throwaway.priority = None" + GOOD_HOOK)
    site.add("gone", with_probe("return Probe(False, 'left the bus')", "gone"))
    told = site.refusal("_choice.choose()", DEVICES_PLUGINS="toy,gone")
    assert told.splitlines()[1:] == ["  gone: left the bus"]
    assert told.startswith("BackendUnavailableError: no backend is available here:")


def test_devices_backend_is_what_auto_means_and_a_name_goes_before_it(site: Site) -> None:
    site.add("toy", PREAMBLE + GOOD_HOOK)
    code = """
        from devices import _choice, _registry
        print(_choice.choose().backend.name, _choice.choose("toy").backend.name, _choice.choose().reason)
    """
    assert site.python(code, DEVICES_BACKEND="cpu") == "cpu toy DEVICES_BACKEND=cpu asked for it"


def test_a_typo_in_devices_backend_is_an_error_that_names_the_variable(site: Site) -> None:
    told = site.refusal("_choice.choose()", DEVICES_BACKEND="cpuu")
    assert told.startswith(
        "BackendNotFoundError: DEVICES_BACKEND=cpuu: no plugin provides a backend named 'cpuu'; did you mean 'cpu'?"
    )


def test_a_named_backend_that_is_absent_is_refused_with_its_reason(site: Site) -> None:
    site.add("toy", with_probe("return Probe(False, 'left the bus')"))
    told = site.refusal("_choice.choose('toy')")
    assert told.startswith("BackendUnavailableError: backend 'toy' is installed, but not available here: left the bus")


def test_an_unknown_backend_names_those_installed_and_those_broken(site: Site) -> None:
    site.add("zebra", PREAMBLE + "Throwaway.name = 'zebra'" + GOOD_HOOK)
    site.add("yak", "import a_module_that_nobody_has")
    told = site.refusal("_registry.backend('zerba')")
    assert told.startswith(
        "BackendNotFoundError: no plugin provides a backend named 'zerba'; did you mean 'zebra'? Installed: cpu, "
    )
    assert told.endswith(", zebra. Broken: yak; `devices doctor` says why.")


def test_devices_plugins_keeps_others_from_being_imported(site: Site) -> None:
    site.add("toy", "raise SystemExit('imported')")
    code = """
        from devices import _choice, _registry
        print([(plugin.name, plugin.allowed, plugin.error) for plugin in _registry.plugins()])
    """
    said = site.python(code, DEVICES_PLUGINS=" cpu ,")
    assert said.startswith("[('cpu', True, None), (")
    assert said.endswith(", ('toy', False, None)]")
    told = site.refusal("_registry.backend('toy')", DEVICES_PLUGINS="cpu")
    assert "plugin 'toy' is installed, but not among those that DEVICES_PLUGINS allows" in told


def test_an_empty_devices_plugins_allows_all(site: Site) -> None:
    site.add("toy", PREAMBLE + GOOD_HOOK)
    assert site.python("import devices; print('toy' in devices.backends())", DEVICES_PLUGINS="") == "True"


def test_available_lists_the_devices_of_every_present_backend_and_survives_one_that_cannot(site: Site) -> None:
    site.add("toy", PREAMBLE + GOOD_HOOK)
    site.add("gone", with_probe("return Probe(False, 'left the bus')", "gone"))
    site.add("bad", PREAMBLE + "Throwaway.name = 'bad'\nThrowaway.devices = lambda self: [3]" + GOOD_HOOK)
    code = """
        import devices
        print([str(device) for device in devices.available()])
    """
    assert site.python(code) == "['cpu:0', 'toy:0']"
    told = site.refusal("devices.available(); _choice.choose('bad')")
    assert "backend 'bad': listing its devices raised TypeError: 3 is no devices.Device" in told


def test_sixteen_threads_that_ask_at_once_load_and_probe_once(site: Site) -> None:
    body = "open('asked', 'a').write('x'); return Probe(True, 'here')"
    site.add("toy", "open('loaded', 'a').write('x')\n" + with_probe(body))
    code = """
        from concurrent.futures import ThreadPoolExecutor
        from devices import _choice, _registry
        with ThreadPoolExecutor(16) as pool:
            print(set(pool.map(lambda _: _choice.choose().backend.name, range(64))))
    """
    assert site.python(code) == "{'toy'}"
    assert (site.folder / "asked").read_text() == "x"
    assert (site.folder / "loaded").read_text() == "xx"  # here, and in the child that probed it


def test_finding_and_choosing_a_backend_does_not_import_torch(site: Site) -> None:
    code = """
        import sys
        from devices import _choice, _registry
        _choice.choose("cpu")
        _registry.available()
        print("torch" in sys.modules)
    """
    assert site.python(code) == "False"


def test_reset_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("DEVICES_PLUGINS", "none_of_them")
        _registry.reset()
        with pytest.raises(BackendNotFoundError, match="installed, but not among those"):
            _registry.backend("cpu")
        monkeypatch.delenv("DEVICES_PLUGINS")
        _registry.reset()
        assert _registry.backend("cpu").name == "cpu"
    finally:
        _registry.reset()


def test_without_our_own_distribution_the_error_says_that_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_registry, "installed", list)
    try:
        _registry.reset()
        with pytest.raises(BackendNotFoundError, match="`devices` itself is not installed"):
            _registry.backend("cpu")
    finally:
        _registry.reset()
