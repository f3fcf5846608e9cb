"""`devices.device(memory=...)` looks at the memory that is free as it is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from throwaway_plugins import PREAMBLE, Site

pytestmark = pytest.mark.slow

# Two devices, whose free memory is what a file says at the moment.
TWO_DEVICES = """
def devices(self):
    from pathlib import Path
    free = (int(line) for line in Path({path!r}).read_text().split())
    return [Device(self.name, "meta", index, memory=100 << 30, free=each << 30) for index, each in enumerate(free)]
Throwaway.devices = devices
Throwaway.device_type = "meta"
"""

HOOK = """
@hookimpl
def devices_backend():
    return Throwaway()
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.add("toy", PREAMBLE + TWO_DEVICES.format(path=str(tmp_path / "free")) + HOOK)
    return site


def test_the_device_with_most_free_memory_is_found_anew_at_each_call(site: Site) -> None:
    code = """
        import devices, pathlib
        free, found = pathlib.Path("free"), []
        for now in ("80 10", "10 80", "30 20"):
            free.write_text(now)
            found.append(devices.device(memory="16 GiB", backend="toy").index)
        print(found)
    """
    assert site.python(code) == "[0, 1, 0]"


def test_what_is_in_use_does_not_count_and_each_device_says_what_it_has(site: Site) -> None:
    (site.folder / "free").write_text("3 5")
    refusal = site.refusal('devices.device(memory="16 GiB", backend="toy")')
    assert refusal == (
        "BackendUnavailableError: no device has 16 GiB free:\n  toy:0: 3.0 GiB free\n  toy:1: 5.0 GiB free"
    )


MINE = """
    import os, pathlib
    from devices import _registry
    from devices._open import my_device
    pathlib.Path("free").write_text("10 80 80")
    toy = _registry.backend("toy")
    found = [my_device(toy, is_alone=True).index, *(my_device(toy, rank).index for rank in (0, 1, 5))]
    os.environ["LOCAL_RANK"] = "2"
    print([*found, my_device(toy, 0, is_alone=True).index])
"""


def test_a_program_of_one_process_has_the_freest_device_and_one_of_many_that_of_its_rank(site: Site) -> None:
    assert site.python(MINE) == "[1, 0, 1, 2, 2]"


CURRENT = """
    import torch, pathlib
    from types import SimpleNamespace
    from devices import _registry
    from devices._open import my_device
    pathlib.Path("free").write_text("10 80 80")
    torch.meta = SimpleNamespace(is_initialized=lambda: True, current_device=lambda: 2)
    print(my_device(_registry.backend("toy"), is_alone=True).index)
"""


def test_the_device_that_a_program_has_made_the_current_one_is_its_own(site: Site) -> None:
    assert site.python(CURRENT) == "2"
