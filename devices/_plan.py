"""The command `devices plan`: its options, and what it does. What that needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys

from devices.errors import DevicesError
from devices.topology.model import TASKS, WIDTHS, Model

OPTIONS = (
    "--targets", "--mesh", "--batch", "--chips", "--parameters", "--active", "--layers", "--hidden", "--heads",
    "--kv-heads", "--sequence", "--dtype", "--watts", "--price",
)  # fmt: skip
"""The options, for suggestions."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("task", choices=TASKS, help="what the model is wanted for")
    parser.add_argument("--targets", required=True, help="targets of the catalogue, with commas")
    parser.add_argument(
        "--mesh",
        action="append",
        type=_mesh,
        metavar="AXES",
        help="a mesh to try, as dp=8,tp=8, the last on the nearest links; more than once for more; all if not said",
    )
    parser.add_argument("--batch", default="64", help="sequences at a time, of all ranks; several with commas (64)")
    parser.add_argument("--chips", type=int, help="how many of each target; all of it if not said")
    parser.add_argument("--parameters", type=float, required=True, help="of the model, as 70e9")
    parser.add_argument("--active", type=float, help="parameters that a token meets; all if not said")
    for name in ("layers", "hidden", "heads", "sequence"):
        parser.add_argument(f"--{name}", type=int, required=True, help="of the model")
    parser.add_argument("--kv-heads", type=int, help="heads of keys and values; as many as heads if not said")
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(WIDTHS), help="what it computes in (bfloat16)")
    parser.add_argument("--watts", type=float, help="what a chip takes, where the catalogue does not say")
    parser.add_argument("--price", type=float, help="what an hour of a chip costs, where the catalogue does not say")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the choices and return the exit status."""
    from devices import _plan_view
    from devices.topology.planning import choices

    try:
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
    except (DevicesError, ValueError) as error:
        print(f"devices plan: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found.as_data(), indent=2))
    else:
        _plan_view.show(found, sys.stdout)
    sys.stdout.flush()
    return 0 if any(choice.run.fits for choice in found.found) else 1


def _numbers(text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"--batch is a number, or several with commas, not {text!r}") from None


def _mesh(text: str) -> dict[str, int]:
    try:
        pairs = [each.split("=") for each in text.split(",")]
        return {name.strip(): int(length) for name, length in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"a mesh is written as dp=8,tp=8, not {text!r}") from None
