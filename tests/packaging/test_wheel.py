from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_files import CORE, PLUGINS, ROOT

import devices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    [path] = folder.iterdir()
    assert path.name == f"devices-{devices.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_sources_of_the_core_and_of_each_plugin_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    metadata = f"devices-{devices.__version__}.dist-info"
    listed = {f"{metadata}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    for folder in (CORE, *PLUGINS):
        listed |= {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if is_source(path)}
    assert set(wheel.namelist()) == listed


def is_source(path: Path) -> bool:
    return path.is_file() and path.suffix in (".py", ".toml", ".typed")


def test_every_package_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    for folder in (CORE, *PLUGINS):
        assert f"{folder.name}/py.typed" in wheel.namelist()


def test_every_plugin_has_its_entry_point_and_torch_has_ours(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(name).decode()
    for folder in PLUGINS:
        assert f"{folder.name.removeprefix('devices_')} = {folder.name}\n" in text
    assert "[torch.backends]\ndevices = devices._autoload:register\n" in text
    assert "[console_scripts]\ndevices = devices.__main__:main\n" in text


def test_the_licence_is_apache_2(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith("METADATA")]
    assert "License-Expression: Apache-2.0\n" in wheel.read(name).decode()
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
