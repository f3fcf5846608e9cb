from __future__ import annotations

import sys
from pathlib import Path

# The machines, and what is claimed of them.
sys.path.append(str(Path(__file__).parents[2] / "cuda"))
