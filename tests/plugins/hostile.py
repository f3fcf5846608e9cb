"""Plugins that are broken, each in its own way, and what must be said of each."""

from __future__ import annotations

from throwaway_plugins import GOOD_HOOK, PREAMBLE


def _hook(body: str) -> str:
    return f"{PREAMBLE}\n@hookimpl\ndef devices_backend():\n    {body}\n"


def _with(name: str, **replaced: str) -> str:
    """Return a plugin whose backend `name` has some of its methods or attributes replaced."""
    lines = [f"Throwaway.name = {name!r}"]
    for attribute, body in replaced.items():
        if attribute in ("probe", "devices"):
            lines += [f"def {attribute}(self):", f"    {body}", f"Throwaway.{attribute} = {attribute}"]
        elif attribute == "capabilities":
            lines += ["def capabilities(self, device):", f"    {body}", "Throwaway.capabilities = capabilities"]
        else:
            lines.append(f"Throwaway.{attribute} = {body}")
    return PREAMBLE + "\n".join(lines) + "\n" + GOOD_HOOK


IMPORTS = {
    "no_module": ("import a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
    "syntax": ("def f(:", "SyntaxError"),
    "raises": ("raise ValueError('no licence')", "ValueError: no licence"),
    "sys_exit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "system_exit": ("raise SystemExit('enough')", "SystemExit: enough"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "base": ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
    "speechless": (
        "class Odd(Exception):\n    def __str__(self):\n        raise OSError\nraise Odd",
        "Odd, whose message cannot be had: OSError",
    ),
    "os_exit": ("import os; os._exit(3)", "its import's process exited with status 3"),
    "os_exit_0": ("import os; os._exit(0)", "its import's process ended before it answered"),
    "last_words": ("import os, sys; print('no bus', file=sys.stderr); sys.stderr.flush(); os._exit(9)", "9: no bus"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "its import's process was killed by SIGSEGV"),
    "killed": ("import os; os.kill(os.getpid(), 9)", "its import's process was killed by SIGKILL"),
    "kills_its_parent": (
        "import os; os.kill(os.getppid(), 9); import time; time.sleep(600)",
        "its import ended the process that was to",
    ),
    "stops": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "its import did not finish within 5 s"),
    "hangs": ("import time; time.sleep(600)", "its import did not finish within 5 s and was killed"),
    "deaf": (
        "import signal, time\nfor each in (15, 2, 1):\n    signal.signal(each, signal.SIG_IGN)\ntime.sleep(600)",
        "its import did not finish within 5 s and was killed",
    ),
    "spins": ("while True: pass", "its import did not finish within 5 s and was killed"),
    "recursion": ("def f():\n    f()\nf()", "RecursionError"),
    "memory": ("bytearray(1 << 60)", "MemoryError"),
    "closes_all": ("import os; os.closerange(0, 4096)", "its import's process ended before it answered"),
    "breaks_json": ("import json; json.dumps = None", "its import's process ended before it answered"),
    "chatter": ("print('x' * 50_000_000); raise ValueError('said enough')", "ValueError: said enough"),
    "asks_for_all": ("import devices; devices.backends()", "it asks what other plugins there are while it is itself"),
}
"""What goes wrong on import."""

_NO_REPR = """
class Odd:
    def __repr__(self):
        raise OSError

@hookimpl
def devices_backend():
    return Odd()
"""

_ABSTRACT = """
from devices import Backend, hookimpl

class Half(Backend):
    name = device_type = "half"

@hookimpl
def devices_backend():
    return Half()
"""

HOOKS = {
    "no_hook": ("x = 1", "it implements no hook; write a function `devices_backend`"),
    "undecorated": (PREAMBLE + "def devices_backend():\n    return Throwaway()", "decorated with `@devices.hookimpl`"),
    "misspelt": (
        PREAMBLE + "@hookimpl\ndef devices_backends():\n    return Throwaway()",
        "a hook 'devices_backends' that does not exist; did you mean 'devices_backend'?",
    ),
    "unknown_hook": (PREAMBLE + "@hookimpl\ndef devices_cooling():\n    return 1", "has devices_backend, devices_"),
    "arguments": (
        PREAMBLE + "@hookimpl\ndef devices_backend(world):\n    return 1",
        "Argument(s) {'world'} are declared",
    ),
    "hook_raises": (_hook("1 / 0"), "ZeroDivisionError"),
    "hook_interrupt": (_hook("raise KeyboardInterrupt"), "KeyboardInterrupt"),
    "returns_none": (_hook("return None"), "returned no backend"),
    "returns_empty": (_hook("return []"), "returned no backend"),
    "returns_text": (_hook("return 'toy'"), "'toy', which is no devices.Backend"),
    "returns_class": (_hook("return Throwaway"), "the class Throwaway; return an instance of it"),
    "no_repr": (PREAMBLE + _NO_REPR, "a Odd whose repr raises OSError, which is no devices.Backend"),
    "abstract": (_ABSTRACT, "TypeError: Can't instantiate abstract class Half"),
    "name_none": (PREAMBLE + "Throwaway.name = None" + GOOD_HOOK, "Throwaway.name must be a word, got None"),
    "name_number": (PREAMBLE + "Throwaway.name = 7" + GOOD_HOOK, "Throwaway.name must be a word, got 7"),
    "name_spaced": (PREAMBLE + "Throwaway.name = 'my toy'" + GOOD_HOOK, "must be a word, got 'my toy'"),
    "name_auto": (PREAMBLE + "Throwaway.name = 'auto'" + GOOD_HOOK, "already means the best that is present"),
    "no_type": (PREAMBLE + "del Throwaway.device_type" + GOOD_HOOK, "Throwaway.device_type must be a word, got None"),
    "next_year": (
        PREAMBLE + "Throwaway.interface = 2" + GOOD_HOOK,
        "for version 2 of the plugin interface; this is version 1",
    ),
    "next_year_module": ("interface = 2\n" + PREAMBLE + GOOD_HOOK, "for version 2 of the plugin interface; this is"),
    "interface_text": (PREAMBLE + "Throwaway.interface = '1'" + GOOD_HOOK, "its interface is '1'; it must be a whole"),
    "priority_text": (
        PREAMBLE + "Throwaway.priority = 'high'" + GOOD_HOOK,
        "must be a whole number or None, got 'high'",
    ),
    "verified_true": (PREAMBLE + "Throwaway.verified = True" + GOOD_HOOK, "Throwaway.verified must be a text"),
    "takes_cpu": (
        PREAMBLE + "Throwaway.name = 'cpu'" + GOOD_HOOK,
        "claims the backend name 'cpu', which plugin 'cpu' of",
    ),
    "takes_good": (
        PREAMBLE + "Throwaway.name = 'good'" + GOOD_HOOK,
        "claims the backend name 'good', which plugin 'good'",
    ),
    "two_alike": (_hook("return [Throwaway(), Throwaway()]"), "it provides two backends named 'toy'"),
}
"""What goes wrong with hooks and what they return."""

PROBES = {
    "probe_raises": ({"probe": "raise OSError('no bus')"}, "its probe raised OSError: no bus"),
    "probe_exits": ({"probe": "import sys; sys.exit(4)"}, "its probe raised SystemExit: 4"),
    "probe_interrupt": ({"probe": "raise KeyboardInterrupt"}, "its probe raised KeyboardInterrupt"),
    "probe_bool": ({"probe": "return True"}, "its probe returned True, not a Probe"),
    "probe_none": ({"probe": "return None"}, "its probe returned None, not a Probe"),
    "probe_untyped": ({"probe": "return Probe('yes', None)"}, "`present` must be a bool and `reason` a text"),
    "probe_segfault": (
        {"probe": "import ctypes; ctypes.string_at(0)"},
        "its probe's process was killed by SIGSEGV",
    ),
    "probe_os_exit": ({"probe": "import os; os._exit(0)"}, "its probe's process ended before it answered"),
    "probe_hangs": ({"probe": "import time; time.sleep(600)"}, "its probe did not finish within 5 s and was killed"),
    "probe_endless": ({"probe": "return Probe(True, 'x' * 10_000_000)"}, "its probe gave an answer without end"),
    "devices_none": ({"devices": "return None"}, "listing its devices raised TypeError"),
    "devices_garbage": ({"devices": "return [3]"}, "listing its devices raised TypeError: 3 is no devices.Device"),
    "devices_endless": (
        {"devices": "import itertools; return (Device('x', 'cpu', i) for i in itertools.count())"},
        "listing its devices gave more than 100000",
    ),
    "devices_of_others": ({"devices": "return [Device('cpu', 'cpu', 0)]"}, "whose `backend` is 'cpu'; it must be"),
    "devices_index": ({"devices": "return [Device(self.name, 'cpu', '0')]"}, "`index` is '0', not a whole number"),
    "devices_exits": ({"devices": "import os; os._exit(5)"}, "listing its devices's process exited with status 5"),
    "capable_of_none": ({"capabilities": "return None"}, "can do gave None, which is no devices.Capabilities"),
    "capable_raises": ({"capabilities": "1 / 0"}, "can do raised ZeroDivisionError"),
    "capable_links": (
        {"capabilities": "return Capabilities(frozenset(), links=('cpu:0',))"},
        "has 'cpu:0', which is no devices.Link",
    ),
}
"""What goes wrong when a backend is asked."""

BROKEN = {**IMPORTS, **HOOKS}
ASKED = {
    # "auto" takes none that is present and only then shows that it is broken.
    name: (_with(name, priority="100" if "probe" in replaced else "None", **replaced), fault)
    for name, (replaced, fault) in PROBES.items()
}

ODD = {
    "leaves_threads": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n",
    "at_exit": "import atexit, time\natexit.register(time.sleep, 600)\n",
    "talks": "print('hello from a plugin')\nimport sys; sys.stderr.write('and more')\n",
    "leaves_a_child": "import subprocess\nsubprocess.Popen(['sleep', '20'])\n",
    "no_stdout": "import sys\nsys.stdout = sys.stderr = None\n",
    "chdir": "import os\nos.chdir('/')\n",
}
"""What is odd, and not wrong."""


def odd(name: str) -> str:
    """Return one of the odd plugins, whose backend has its name."""
    return ODD[name] + _with(name, priority="None")
