"""A million Trainium3 chips: their topology, the layout of a mesh of four axes, and the time of a training step.

Run `python benchmarks/million.py`. All of it runs in a child process, from its start to its end, with what it imports;
the time is that of the wall and of the processor, the memory the most that the child ever had. The limits are those
that the project sets itself: 10 s and 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

TARGET = "trainium3-ultracluster"
MESH = {"pp": 16, "dp": 434, "fsdp": 9, "tp": 64}
"""4 ranks on each of 999,936 chips: as many UltraServers of 144 as a million chips have room for."""

BATCH = 434 * 9 * 64
SECONDS, BYTES = 10.0, 2e9


def work() -> None:
    """Ask all of it and print what was found."""
    from devices.topology import Model, layout, of_target, traffic, training_step

    model = Model(parameters=1e12, layers=128, hidden=16384, heads=128, kv_heads=16, sequence=8192)
    cluster = of_target(TARGET)
    last = cluster.devices[-1]
    found = layout(cluster, MESH, traffic(model, MESH, BATCH))
    step = training_step(model, TARGET, MESH, BATCH, strides=found.strides)
    farthest = found.rank({name: length - 1 for name, length in MESH.items()})
    print(
        json.dumps(
            {
                "chips": len(cluster.devices),
                "the last chip reaches": cluster.neighbours(last.name),
                "neighbours of an axis are so far apart": dict(found.strides),
                "the last place of the mesh has rank": farthest,
                "a step": str(step),
            }
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().child:
        work()
        return 0
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, __file__, "--child"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        return child.returncode
    for what, value in json.loads(said).items():
        print(f"{what}: {value}")
    # In KiB on Linux.
    peak = used.ru_maxrss * 1024
    print(f"{wall:.2f} s, {used.ru_utime + used.ru_stime:.2f} s of the processor, of {SECONDS:g} s")
    print(f"{peak / 1e6:.0f} MB of {BYTES / 1e6:.0f} MB")
    return int(wall > SECONDS or peak > BYTES)


if __name__ == "__main__":
    sys.exit(main())
