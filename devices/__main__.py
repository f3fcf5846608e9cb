"""The command `devices`. What a subcommand needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from devices import __version__
from devices.errors import did_you_mean

_COMMANDS = {"doctor": "say what is installed, what is here, what `auto` would choose, and what is broken"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, options = _parsers()
    command = next((each for each in given if not each.startswith("-")), None)
    if command is not None and command not in _COMMANDS:
        parser.error(f"there is no command {command!r}{did_you_mean(command, _COMMANDS)}")
    known, unknown = parser.parse_known_args(given)
    if unknown:
        kind = "option" if unknown[0].startswith("-") else "argument"
        parser.error(f"there is no {kind} {unknown[0]!r}{did_you_mean(unknown[0], options)}")
    if known.version:
        print(f"devices {__version__}")
        return 0
    if known.command is None:
        parser.print_help()
        return 0
    try:
        return _doctor(as_json=known.json)
    except BrokenPipeError:
        # The reader, `head` say, has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parsers() -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser, and all options that it knows."""
    parser = argparse.ArgumentParser(
        prog="devices",
        description="One placement and collectives API over CUDA, AWS Neuron and CPU.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="command")
    doctor = commands.add_parser(
        "doctor",
        help=_COMMANDS["doctor"],
        description="Say what is installed, what is here, what `auto` would choose, and what is broken.",
        epilog="Exit status: 0 if the CPU backend works, 1 if it does not.",
        allow_abbrev=False,
    )
    doctor.add_argument("--json", action="store_true", help="print all of it as JSON")
    return parser, ["--help", "--version", "--json"]


def _doctor(*, as_json: bool) -> int:
    from devices import _doctor, _doctor_view

    report = _doctor.examine()
    # A plugin's words may hold characters that the terminal's encoding has not.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if as_json:
        print(json.dumps(report, indent=2, default=str))
    else:
        _doctor_view.show(report, sys.stdout)
    sys.stdout.flush()
    return 0 if report["cpu"]["works"] else 1


if __name__ == "__main__":
    sys.exit(main())
