"""The targets: what machines there are, what each of them holds and what it refuses, with the source of every figure.

Each file `*.toml` here is one entry: the software that answers torch on a chip, a chip, a machine made of chips, an
UltraServer made of machines. `load` puts an entry and its parts together. A plugin may add more. Nothing here imports
torch.
"""

from __future__ import annotations

from devices.catalogue.figures import STATUSES, Figure, Provenance
from devices.catalogue.folders import Catalogue
from devices.catalogue.installed import faults, load, names
from devices.catalogue.limits import Limits
from devices.catalogue.targets import Target

__all__ = ["STATUSES", "Catalogue", "Figure", "Limits", "Provenance", "Target", "faults", "load", "names"]
