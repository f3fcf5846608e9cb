"""`devices conformance NAME`."""

from __future__ import annotations

import argparse
import json
import sys

from devices.testing.conformance import view
from devices.testing.conformance.kit import conform


def run(options: argparse.Namespace) -> int:
    """Look whether a backend keeps the laws, print what was found, and return the exit status."""
    report = conform(
        options.name,
        ranks=options.ranks,
        only=options.only,
        seed=options.seed,
        told=lambda outcome: print(view.row_of(outcome), file=sys.stderr, flush=True),
    )
    if options.json:
        print(json.dumps(view.as_data(report), indent=2))
    else:
        view.show(report, sys.stdout)
    return 2 if report.is_empty else 0 if report.is_proved else 1
