"""`devices.device(memory=...)` looks at the memory that is free as it is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from throwaway_plugins import PREAMBLE, Site

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
