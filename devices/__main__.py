"""The command `devices`. What a subcommand needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from devices import __version__
from devices._option import Option
from devices.command import plan, topo
from devices.errors import DevicesError, did_you_mean

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
        if unknown[0] in options[command or ""]:
            parser.error(f"{unknown[0]!r} is an option of {command!r}; write it after that")
        kind = "option" if unknown[0].startswith("-") else "argument"
        parser.error(f"there is no {kind} {unknown[0]!r}{did_you_mean(unknown[0], options[command or ''])}")
    if known.version:
        print(f"devices {__version__}")
        return 0
    if known.command is None:
        parser.print_help()
        return 0
    try:
        status = _run(known, [*unknown, *after])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` say, has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DevicesError, OSError) as error:
        print(f"devices {known.command}: {error}", file=sys.stderr)
        return 2
    return status


def _run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command that is named, and return the exit status. What it needs is imported here."""
    # A plugin's words may hold characters that the terminal's encoding has not.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if options.command == "conformance":
        from devices.testing.conformance import command as conformance

        return conformance.run(options)
    if options.command == "catalogue":
        from devices.command import catalogue as command_catalogue

        return command_catalogue.run(options)
    if options.command == "check":
        return _check(options, rest)
    here = {
        "doctor": _doctor,
        "env": _env,
        "new-plugin": _new_plugin,
        "calibrate": _calibrate,
        "plan": plan.run,
        "topo": topo.run,
        "flight": _flight,
    }
    return here[options.command](options)


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, list[str]]]:
    """Return the parser, and the options of each command, and of none."""
    parser = argparse.ArgumentParser(
        prog="devices",
        description="One placement and collectives API on torch, each kind of hardware a plugin.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="command")
    options = {"": ["--help", "--version"]}

    def command(name: str, description: str, statuses: str, json: bool = True) -> Option:
        """Add a command, and return what adds an option or an argument to it."""
        one = commands.add_parser(
            name, help=_COMMANDS[name], description=description, epilog=f"Exit status: {statuses}", allow_abbrev=False
        )
        options[name] = ["--help"]
        if json:
            one.add_argument("--json", action="store_true", help="print all of it as JSON")
            options[name].append("--json")

        def option(option: str, help: str, **how: Any) -> None:
            one.add_argument(option, help=help, **how)
            if option.startswith("-"):
                options[name].append(option)

        return option

    command(
        "doctor",
        "Say what is installed, what is here, what `auto` would choose, and what is broken.",
        "0 if the CPU backend works, 1 if it does not.",
    )
    add = command(
        "env",
        "Print the variables that a program's ranks on this machine are to be started with, as lines for a shell, each "
        "with its reason.",
        "0 if it is said, 2 if it cannot be.",
    )
    add("--backend", "for this backend, present or not (auto)", default="auto", metavar="NAME")
    add("--ranks", "how many ranks on this machine (as many as devices)", type=int, metavar="N")
    add("--local-rank", "with what this rank alone is to have", type=int, metavar="N")
    add = command(
        "check",
        "Run a program that torchrun starts, unchanged, on ranks that are threads of this process, and list by line "
        "what in it is bound to one vendor and what the target would refuse. All after -- goes to the program.",
        "0 if there is nothing to list and the program ends well, 1 if not, 2 if it cannot be read.",
    )
    add("--target", "a target of the catalogue whose limits hold; none do otherwise")
    add("--ranks", "how many ranks (2)", type=int, default=2)
    add("--timeout", "seconds that it may take (600)", type=float, default=600.0)
    add("script", "the program; what follows it and is no option above are its own arguments")
    add = command(
        "conformance",
        "Look whether a backend keeps every law of the interface, and print what was proved, what was refused rightly, "
        "what was skipped and why, and for each failure a program that shows it.",
        "0 if all is proved, 1 if something is wrong, 2 if the backend cannot be looked at.",
    )
    add("--ranks", "what ranks are; threads if the backend can", choices=("threads", "processes"))
    add("--only", "of the names of checks: 'verbs.*'", default="*", metavar="PATTERN")
    add("--seed", "random programs are drawn from it (0)", type=int, default=0)
    add("name", "the backend's name")
    add = command(
        "catalogue",
        "List the targets of the catalogue, those that plugins add too, or show one: every figure with its unit, "
        "value, status, source and date, and the values that were not chosen with the reason.",
        "0 if all is well, 1 if a plugin's targets are wrong, 2 if there is no such target.",
    )
    add("--kind", "list those of one kind: chip, machine, ultraserver, cluster, domain")
    add("--lnc", "show a Neuron chip with N cores as one device", type=int, metavar="N")
    add("what", "the target of which all is to be printed", nargs="*", metavar="show NAME")
    add = command(
        "flight",
        "Print what the flight recorders of a program's ranks left in the folder that DEVICES_FLIGHT named: the calls "
        "of all ranks side by side, and which rank is behind, called something else, or failed.",
        "0 if nothing is wrong, 1 if something is, 2 if the files cannot be read.",
        json=False,
    )
    add("--trace", "write a trace there, for ui.perfetto.dev or chrome://tracing", metavar="FILE")
    add("--last", "how many calls to print, the last (40)", type=int, default=40, metavar="N")
    add("folder", "the folder")
    plan.add(
        command(
            "plan",
            "Predict what training or serving a model takes, for each target, mesh and batch.",
            "0 if something fits, 1 if nothing does, 2 if it cannot be said.",
        )
    )
    topo.add(
        command(
            "topo",
            "Show a topology: this host's, as far as its backends know it, a target's, or that of a file; what is not "
            "known is a question mark.",
            "0 if it is shown, 2 if it cannot be.",
        )
    )
    add = command(
        "calibrate",
        "Measure the collectives of ranks that are processes of this host, and keep what was found where predictions "
        "for the target `cpu` read it.",
        "0 if it was measured, 2 if it cannot be.",
    )
    add("--ranks", "how many ranks (2)", type=int, default=2)
    add("--seconds", "how long it measures (10)", type=float, default=10.0)
    add("--into", "where it is kept, if not in the user's cache", metavar="FILE")
    add = command(
        "new-plugin",
        "Write a package with a backend that works and keeps every law, its parts marked to be replaced.",
        "0 if it was written, 2 if it cannot be.",
        json=False,
    )
    add("--into", "where its folder is to be (.)", default=".", metavar="DIR")
    add("name", "the backend's name, a word in lower case")
    return parser, options


def _new_plugin(options: argparse.Namespace) -> int:
    from pathlib import Path

    from devices.command import new_plugin

    folder = new_plugin.write(options.name, Path(options.into))
    print(f"{folder} is there. Next: cd {folder}; pip install --editable .; devices conformance {options.name}")
    return 0


def _env(options: argparse.Namespace) -> int:
    from devices.command import env

    found = env.examine(options.backend, options.ranks, options.local_rank)
    print(json.dumps(found, indent=2) if options.json else env.as_script(found))
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from pathlib import Path

    from devices.command import calibrate

    into = Path(options.into) if options.into else None
    if into is not None and into.is_dir():
        raise DevicesError(f"--into {into}: that is a folder; say the file")
    found = calibrate.calibrate(options.ranks, options.seconds)
    file = calibrate.keep(found, into)
    if options.json:
        print(json.dumps(found.as_data(), indent=2))
    else:
        calibrate.show(found, options.ranks, sys.stdout)
        print(f"kept in {file}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from devices.command import doctor, doctor_view

    report = doctor.examine()
    if options.json:
        print(json.dumps(report, indent=2, default=str))
    else:
        doctor_view.show(report, sys.stdout)
    return 0 if report["cpu"]["works"] else 1


def _split(given: list[str]) -> tuple[list[str], list[str]]:
    """Return what comes before "--", and what comes after it."""
    at = given.index("--") if "--" in given else len(given)
    return given[:at], given[at + 1 :]


def _check(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    import threading

    from devices.testing import _check, _check_view

    if options.ranks < 1:
        raise DevicesError(f"--ranks {options.ranks}: a program runs on one rank at least")
    if not 0 < options.timeout <= threading.TIMEOUT_MAX:
        raise DevicesError(f"--timeout {options.timeout:g}: it is a number of seconds above 0")
    # What the program prints goes to stderr, so that stdout holds the answer alone.
    with contextlib.redirect_stdout(sys.stderr):
        checked = _check.check(
            options.script, arguments, ranks=options.ranks, target=options.target, timeout=options.timeout
        )
    if options.json:
        print(json.dumps(checked.as_data(), indent=2))
    else:
        _check_view.show(checked, sys.stdout)
    return 0 if checked.is_portable else 1


def _flight(options: argparse.Namespace) -> int:
    from pathlib import Path

    from devices.recorder import reading, view
    from devices.recorder import trace as recorder_trace

    if options.last < 1:
        raise DevicesError(f"--last {options.last}: at least one call is to be printed")
    found = reading.read(Path(options.folder))
    if options.trace:
        recorder_trace.write(found, Path(options.trace))
    return 0 if view.show(found, options.last, sys.stdout) else 1


if __name__ == "__main__":
    sys.exit(main())
