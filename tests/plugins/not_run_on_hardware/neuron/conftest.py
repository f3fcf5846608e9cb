from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from laid_out import chip_folder, lay_out, take_neuron_ls

from devices_neuron import NeuronBackend
from devices_neuron.software import FITTING


@pytest.fixture(scope="session")
def at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives the folder of a machine that is laid out once, for tests that only read it."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = lay_out(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture
def as_a_user() -> Iterator[Path]:
    """Return a machine whose driver lets root alone read which chips are joined, and open a chip; seen by another user.

    `neuron-ls` is not installed there.
    """
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        # pytest's own folder is closed to other users.
        Path(folder).chmod(0o755)
        root = lay_out("trn2.48xlarge-lnc2", Path(folder))
        take_neuron_ls(root)
        for chip in range(16):
            for name in ("connected_devices", "core_count"):
                (chip_folder(root, chip) / name).chmod(0o400 if is_root else 0)
            (root / f"dev/neuron{chip}").chmod(0o600 if is_root else 0)
        # Code and catalogue are read now: the other user may not be able to.
        NeuronBackend(root, {}, FITTING).probe()
        if is_root:
            os.seteuid(65534)
        try:
            if not os.access(root / "sys", os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
                pytest.skip(f"needs a folder for temporary files that every user may look into, and {folder} is none")
            yield root
        finally:
            if is_root:
                os.seteuid(0)
