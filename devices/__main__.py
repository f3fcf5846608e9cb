"""The command `devices`. What a subcommand needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence

from devices import __version__, _plan, _topo
from devices.errors import did_you_mean

_COMMANDS = {
    "doctor": "say what is installed, what is here, what `auto` would choose, and what is broken",
    "env": "print the variables that a program's ranks on this machine are to be started with, and why",
    "check": "run a torchrun program on thread ranks, and list what in it is bound to a vendor or refused by a target",
    "new-plugin": "write the package of a new backend, complete, to begin from",
    "conformance": "prove that a backend keeps every law of the interface, or show how it does not",
    "plan": "compare targets, meshes and batches for a model: what is fastest, cheapest, takes least energy, fits",
    "topo": "show the devices, switches and links of this host or of a target, and what collectives reach on them",
    "calibrate": "measure how fast this host's own collectives are, for predictions",
    "catalogue": "list the targets that there are, and show every figure of one with its source, date and status",
    "flight": "print what the flight recorders of a program's ranks left: who called what when, and who is behind",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, options = _parsers()
    command = next((each for each in given if not each.startswith("-")), None)
    if command is not None and command not in _COMMANDS:
        parser.error(f"there is no command {command!r}{did_you_mean(command, _COMMANDS)}")
    ours, after = _split(given) if command == "check" else (given, [])
    known, unknown = parser.parse_known_args(ours)
    if unknown and command != "check":
        kind = "option" if unknown[0].startswith("-") else "argument"
        parser.error(f"there is no {kind} {unknown[0]!r}{did_you_mean(unknown[0], options)}")
    if known.version:
        print(f"devices {__version__}")
        return 0
    if known.command is None:
        parser.print_help()
        return 0
    try:
        if known.command == "doctor":
            return _doctor(as_json=known.json)
        if known.command == "env":
            return _env(known)
        if known.command == "new-plugin":
            return _new_plugin(known.name, known.into)
        if known.command == "conformance":
            from devices.testing.conformance import command as conformance

            return conformance.run(known)
        if known.command == "calibrate":
            return _calibrate(known)
        if known.command == "plan":
            return _plan.run(known)
        if known.command == "topo":
            return _topo.run(known)
        if known.command == "catalogue":
            from devices import _catalogue_command

            return _catalogue_command.run(known)
        return _flight(known) if known.command == "flight" else _check(known, [*unknown, *after])
    except BrokenPipeError:
        # The reader, `head` say, has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parsers() -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser, and all options that it knows."""
    parser = argparse.ArgumentParser(
        prog="devices",
        description="One placement and collectives API on torch, each kind of hardware a plugin.",
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
    env = commands.add_parser(
        "env",
        help=_COMMANDS["env"],
        description="Print the variables that a program's ranks on this machine are to be started with, as lines for a "
        "shell, each with its reason.",
        epilog="Exit status: 0 if it is said, 2 if it cannot be.",
        allow_abbrev=False,
    )
    env.add_argument("--backend", default="auto", metavar="NAME", help="for this backend, present or not (auto)")
    env.add_argument("--ranks", type=int, metavar="N", help="how many ranks on this machine (as many as devices)")
    env.add_argument("--local-rank", type=int, metavar="N", help="with what this rank alone is to have")
    env.add_argument("--json", action="store_true", help="print all of it as JSON")
    check = commands.add_parser(
        "check",
        help=_COMMANDS["check"],
        description="Run a program that torchrun starts, unchanged, on ranks that are threads of this process, and "
        "list by line what in it is bound to one vendor and what the target would refuse.",
        epilog="All after -- goes to the program. Exit status: 0 if there is nothing to list and the program ends "
        "well, 1 if not, 2 if it cannot be read.",
        allow_abbrev=False,
    )
    check.add_argument("--target", help="a target of the catalogue whose limits hold; none do otherwise")
    check.add_argument("--ranks", type=int, default=2, help="how many ranks (2)")
    check.add_argument("--timeout", type=float, default=600.0, help="seconds that it may take (600)")
    check.add_argument("--json", action="store_true", help="print all of it as JSON")
    check.add_argument("script", help="the program; what follows it and is no option above are its own arguments")
    conformance = commands.add_parser(
        "conformance",
        help=_COMMANDS["conformance"],
        description="Look whether a backend keeps every law of the interface, and print what was proved, what was "
        "refused rightly, what was skipped and why, and for each failure a program that shows it.",
        epilog="Exit status: 0 if all is proved, 1 if something is wrong, 2 if the backend cannot be looked at.",
        allow_abbrev=False,
    )
    conformance.add_argument(
        "--ranks", choices=("threads", "processes"), help="what ranks are; threads if the backend can"
    )
    conformance.add_argument("--only", default="*", metavar="PATTERN", help="of the names of checks: 'verbs.*'")
    conformance.add_argument("--seed", type=int, default=0, help="random programs are drawn from it (0)")
    conformance.add_argument("--json", action="store_true", help="print all of it as JSON")
    conformance.add_argument("name", help="the backend's name")
    catalogue = commands.add_parser(
        "catalogue",
        help=_COMMANDS["catalogue"],
        description="List the targets of the catalogue, those that plugins add too, or show one: every figure with "
        "its unit, value, status, source and date, and the values that were not chosen with the reason.",
        epilog="Exit status: 0 if all is well, 1 if a plugin's targets are wrong, 2 if there is no such target.",
        allow_abbrev=False,
    )
    catalogue.add_argument("--json", action="store_true", help="print all of it as JSON")
    catalogue.add_argument("--kind", help="list those of one kind: chip, machine, ultraserver, cluster, domain")
    catalogue.add_argument("--lnc", type=int, metavar="N", help="show a Neuron chip with N cores as one device")
    catalogue.add_argument("what", nargs="*", metavar="show NAME", help="the target of which all is to be printed")
    flight = commands.add_parser(
        "flight",
        help=_COMMANDS["flight"],
        description="Print what the flight recorders of a program's ranks left in the folder that DEVICES_FLIGHT "
        "named: the calls of all ranks side by side, and which rank is behind, called something else, or failed.",
        epilog="Exit status: 0 if nothing is wrong, 1 if something is, 2 if the files cannot be read.",
        allow_abbrev=False,
    )
    flight.add_argument("--trace", metavar="FILE", help="write a trace there, for ui.perfetto.dev or chrome://tracing")
    flight.add_argument("--last", type=int, default=40, metavar="N", help="how many calls to print, the last (40)")
    flight.add_argument("folder", help="the folder")
    plan = commands.add_parser(
        "plan",
        help=_COMMANDS["plan"],
        description="Predict what training or serving a model takes, for each target, mesh and batch.",
        epilog="Exit status: 0 if something fits, 1 if nothing does, 2 if it cannot be said.",
        allow_abbrev=False,
    )
    _plan.add(plan)
    topo = commands.add_parser(
        "topo",
        help=_COMMANDS["topo"],
        description="Show a topology: this host's, as far as its backends know it, a target's, or "
        "that of a file; what is not known is a question mark.",
        epilog="Exit status: 0 if it is shown, 2 if it cannot be.",
        allow_abbrev=False,
    )
    _topo.add(topo)
    calibrate = commands.add_parser(
        "calibrate",
        help=_COMMANDS["calibrate"],
        description="Measure the collectives of ranks that are processes of this host, and keep what was found where "
        "predictions for the target `cpu` read it.",
        epilog="Exit status: 0 if it was measured, 2 if it cannot be.",
        allow_abbrev=False,
    )
    calibrate.add_argument("--ranks", type=int, default=2, help="how many ranks (2)")
    calibrate.add_argument("--seconds", type=float, default=10.0, help="how long it measures (10)")
    calibrate.add_argument("--into", metavar="FILE", help="where it is kept, if not in the user's cache")
    calibrate.add_argument("--json", action="store_true", help="print all of it as JSON")
    new_plugin = commands.add_parser(
        "new-plugin",
        help=_COMMANDS["new-plugin"],
        description="Write a package with a backend that works and keeps every law, its parts marked to be replaced.",
        epilog="Exit status: 0 if it was written, 2 if it cannot be.",
        allow_abbrev=False,
    )
    new_plugin.add_argument("--into", default=".", metavar="DIR", help="where its folder is to be (.)")
    new_plugin.add_argument("name", help="the backend's name, a word in lower case")
    options = [
        "--help",
        "--into",
        "--version",
        "--json",
        "--target",
        "--backend",
        "--ranks",
        "--local-rank",
        "--timeout",
        "--trace",
        "--last",
        "--only",
        "--seed",
        "--seconds",
        *_plan.OPTIONS,
        *_topo.OPTIONS,
        "--kind",
        "--lnc",
    ]
    return parser, options


def _new_plugin(name: str, into: str) -> int:
    from pathlib import Path

    from devices import _new_plugin
    from devices.errors import DevicesError

    try:
        folder = _new_plugin.write(name, Path(into))
    except (DevicesError, OSError) as error:
        print(f"devices new-plugin: {error}", file=sys.stderr)
        return 2
    print(f"{folder} is there. Next: cd {folder}; pip install --editable .; devices conformance {name}")
    return 0


def _env(options: argparse.Namespace) -> int:
    from devices import _env
    from devices.errors import DevicesError

    try:
        found = _env.examine(options.backend, options.ranks, options.local_rank)
    except DevicesError as error:
        print(f"devices env: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if options.json else _env.as_script(found))
    sys.stdout.flush()
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from pathlib import Path

    from devices import _calibrate
    from devices.errors import DevicesError

    try:
        found = _calibrate.calibrate(options.ranks, options.seconds)
        file = _calibrate.keep(found, Path(options.into) if options.into else None)
    except (DevicesError, OSError) as error:
        print(f"devices calibrate: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found.as_data(), indent=2))
    else:
        _calibrate.show(found, options.ranks, sys.stdout)
        print(f"kept in {file}")
    return 0


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


def _split(given: list[str]) -> tuple[list[str], list[str]]:
    """Return what comes before "--", and what comes after it."""
    at = given.index("--") if "--" in given else len(given)
    return given[:at], given[at + 1 :]


def _check(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from devices.errors import DevicesError
    from devices.testing import _check, _check_view

    try:
        # What the program prints goes to stderr, so that stdout holds the answer alone.
        with contextlib.redirect_stdout(sys.stderr):
            checked = _check.check(
                options.script, arguments, ranks=options.ranks, target=options.target, timeout=options.timeout
            )
    except DevicesError as error:
        print(f"devices check: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(checked.as_data(), indent=2))
    else:
        _check_view.show(checked, sys.stdout)
    sys.stdout.flush()
    return 0 if checked.is_portable else 1


def _flight(options: argparse.Namespace) -> int:
    from pathlib import Path

    from devices import _flight_read, _flight_trace, _flight_view
    from devices.errors import DevicesError

    try:
        if options.last < 1:
            raise DevicesError(f"--last {options.last}: at least one call is to be printed")
        found = _flight_read.read(Path(options.folder))
        if options.trace:
            _flight_trace.write(found, Path(options.trace))
    except (DevicesError, OSError) as error:
        print(f"devices flight: {error}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    is_well = _flight_view.show(found, options.last, sys.stdout)
    sys.stdout.flush()
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
