"""`devices catalogue`: the targets that there are, and all that is known of one, with where it is from."""

from __future__ import annotations

import argparse
import json
import sys

from devices.catalogue.installed import faults, load
from devices.catalogue.shown import listing, whole
from devices.errors import ArgumentError, did_you_mean


def run(options: argparse.Namespace) -> int:
    """Print what was asked for and return the exit status."""
    if not options.what:
        if options.lnc is not None:
            raise ArgumentError("--lnc goes with `show NAME`: a list is the same for all")
        return _list(options.kind, as_json=options.json)
    if options.kind is not None:
        raise ArgumentError("--kind goes with the list, and `show` names one target")
    return _show(options.what, options.lnc, as_json=options.json)


def _list(kind: str | None, *, as_json: bool) -> int:
    found, wrong = listing(kind), faults()
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        from devices.command import catalogue_view as view

        view.show_list(found, sys.stdout)
    for error in wrong:
        print(f"devices catalogue: {error}", file=sys.stderr)
    return 1 if wrong else 0


def _show(what: list[str], lnc: int | None, *, as_json: bool) -> int:
    verb, *named = what
    if verb != "show":
        hint = did_you_mean(verb, ["show"]) or f"; `devices catalogue show {verb}` prints that target"
        raise ArgumentError(f"there is nothing to do by the name of {verb!r}{hint}")
    if len(named) != 1:
        raise ArgumentError(f"`show` takes the name of one target, and got {len(named)}")
    target = whole(load(named[0], lnc=lnc))
    if as_json:
        print(json.dumps(target, indent=2))
    else:
        from devices.command import catalogue_view as view

        view.show_target(target, sys.stdout)
    return 0
