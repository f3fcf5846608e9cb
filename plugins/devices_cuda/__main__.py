"""`python -m devices_cuda` writes down this machine, for a bug report or a test; with a file, it shows that one."""

from __future__ import annotations

import sys

from devices.errors import TopologyError
from devices_cuda.files import read_machine
from devices_cuda.graph import doubts, topology
from devices_cuda.presence import AbsentError, host
from devices_cuda.record import RecordError, to_json


def main(arguments: list[str]) -> int:
    """Print the record of this machine, or the graph of the one that a file describes; return the exit status."""
    try:
        if not arguments:
            sys.stdout.write(to_json(host()))
            return 0
        machine = read_machine(arguments[0])
        graph, told = topology(machine), doubts(machine)
    except (AbsentError, RecordError, TopologyError) as error:
        print(f"devices_cuda: {error}", file=sys.stderr)
        return 1
    for node in graph.nodes:
        print(f"{node.kind} {node.name}")
    for link in graph.links:
        rate = "" if link.bandwidth is None else f", {link.bandwidth / 1e9:g} GB/s"
        print(f"{link.source} -> {link.target} over {link.kind}{rate}")
    for doubt in told:
        print(f"not known: {doubt}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
