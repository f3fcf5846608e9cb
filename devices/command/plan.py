"""The command `devices plan`: its options, and what it does. What that needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys

from devices._option import Option
from devices.errors import ArgumentError
from devices.topology.model import TASKS, WIDTHS, Model


def add(option: Option) -> None:
    """Add the options of the command."""
    option("task", "what the model is wanted for", choices=TASKS)
    option("--targets", "targets of the catalogue, with commas", required=True)
    option(
        "--mesh",
        "a mesh to try, as dp=8,tp=8, the last on the nearest links; more than once for more; all if not said",
        action="append",
        type=_mesh,
        metavar="AXES",
    )
    option("--batch", "sequences at a time, of all ranks; several with commas (64)", default="64")
    option("--chips", "how many of each target; all of it if not said", type=int)
    option("--parameters", "of the model, as 70e9", type=float, required=True)
    option("--active", "parameters that a token meets; all if not said", type=float)
    for name in ("layers", "hidden", "heads", "sequence"):
        option(f"--{name}", "of the model", type=int, required=True)
    option("--kv-heads", "heads of keys and values; as many as heads if not said", type=int)
    option("--dtype", "what it computes in (bfloat16)", default="bfloat16", choices=tuple(WIDTHS))
    option("--watts", "what a chip takes, where the catalogue does not say", type=float)
    option("--price", "what an hour of a chip costs, where the catalogue does not say", type=float)


def run(options: argparse.Namespace) -> int:
    """Print the choices and return the exit status."""
    from devices.command import plan_view
    from devices.topology.planning import choices

    model = Model(
        parameters=options.parameters,
        active=options.active,
        layers=options.layers,
        hidden=options.hidden,
        heads=options.heads,
        kv_heads=options.kv_heads,
        sequence=options.sequence,
        dtype=options.dtype,
    )
    found = choices(
        model,
        [name.strip() for name in options.targets.split(",")],
        task=options.task,
        batches=_numbers(options.batch),
        meshes=options.mesh,
        chips=options.chips,
        watts=options.watts,
        price=options.price,
    )
    if options.json:
        print(json.dumps(found.as_data(), indent=2))
    else:
        plan_view.show(found, sys.stdout)
    return 0 if any(choice.run.fits for choice in found.found) else 1


def _numbers(text: str) -> list[int]:
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        raise ArgumentError(f"--batch is a number, or several with commas, not {text!r}") from None
    if min(found) < 1:
        raise ArgumentError(f"--batch {min(found)}: there is at least one sequence at a time")
    return found


def _mesh(text: str) -> dict[str, int]:
    try:
        pairs = [each.split("=") for each in text.split(",")]
        return {name.strip(): int(length) for name, length in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"a mesh is written as dp=8,tp=8, not {text!r}") from None
