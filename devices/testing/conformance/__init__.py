"""The conformance kit: every law that a backend must keep, each a check.

`conform("name")` looks at a backend; `Conformance` is the same as tests, and alone imports pytest.

>>> from devices.testing.conformance import conform
>>> conform("cpu", only="probe.reason").is_proved
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devices.testing.conformance.kit import CHECKS, Report, conform
    from devices.testing.conformance.suite import Conformance

_LAZY = {
    **dict.fromkeys(("CHECKS", "Report", "conform"), "devices.testing.conformance.kit"),
    "Conformance": "devices.testing.conformance.suite",
}

__all__ = ["CHECKS", "Conformance", "Report", "conform"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _LAZY:
        from devices.errors import did_you_mean

        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{did_you_mean(name, __all__)}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
