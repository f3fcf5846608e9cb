"""Groups of three domains behind unequal links: schedules that a group makes for itself against the verbs' own ways.

Run `python benchmarks/domain_schedules.py` as root, with `ip` and `tc`. It makes a network namespace for each host with
one cable, shaped in both directions, to a bridge in one more, and starts ranks in them, which are told what their cable
carries. A group with its schedules and one without take turns. A figure is the slowest rank's median.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from domains import PORT, ip, missing

CABLE = "eth0"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", default="3@100+1@200+1@200", help="ranks @ Mbit/s of each host, joined by +")
    parser.add_argument("--bytes", type=int, default=32 << 20)
    parser.add_argument("--verbs", default="all_reduce,all_gather,reduce_scatter")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(json.loads(options.here))
        return
    if why := missing():
        print(f"not run: {why}")
        return
    for hosts in options.hosts.split(","):
        sizes, rates = zip(*[map(int, host.split("@")) for host in hosts.split("+")], strict=True)
        case = {
            "sizes": sizes,
            "rates": rates,
            "bytes": options.bytes,
            "verbs": options.verbs.split(","),
            "turns": options.turns,
        }
        with star(rates) as namespaces:
            show(case, run(namespaces, case))


@contextlib.contextmanager
def star(rates: Sequence[int]) -> Iterator[list[str]]:
    """Make a namespace for each host, with a cable of that many Mbit/s in each direction to one that bridges them."""
    hub = f"devices-benchmark-{os.getpid()}-hub"
    names = [f"devices-benchmark-{os.getpid()}-{at}" for at in range(len(rates))]
    try:
        ip("netns", "add", hub)
        ip("-n", hub, *["link", "add", "bridge", "type", "bridge"])
        ip("-n", hub, *["link", "set", "bridge", "up"])
        for at, (name, rate) in enumerate(zip(names, rates, strict=True)):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip(*f"link add {CABLE} netns {name} type veth peer name port{at} netns {hub}".split())
            ip("-n", name, "addr", "add", f"198.51.100.{at + 1}/24", "dev", CABLE)
            ip("-n", hub, *f"link set port{at} master bridge".split())
            for place, end in ((name, CABLE), (hub, f"port{at}")):
                ip("-n", place, "link", "set", end, "up")
                shape = f"qdisc add dev {end} root tbf rate {rate}mbit burst 256kb latency 50ms"
                subprocess.run(["ip", "netns", "exec", place, "tc", *shape.split()], check=True)
        yield names
    finally:
        for name in (*names, hub):
            subprocess.run(["ip", "netns", "del", name], check=False)


def run(namespaces: Sequence[str], case: dict[str, object]) -> list[dict[str, float]]:
    """Return what rank 0 says."""
    sizes: Sequence[int] = case["sizes"]  # type: ignore[assignment]
    rates: Sequence[int] = case["rates"]  # type: ignore[assignment]
    ranks = [at for at, size in enumerate(sizes) for _ in range(size)]
    processes = []
    for rank, at in enumerate(ranks):
        meet = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(ranks)),
            "LOCAL_RANK": str(rank - ranks.index(at)),
            "MASTER_ADDR": "198.51.100.1",
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": CABLE,
            "OMP_NUM_THREADS": "1",
            # Those of a host share its cable.
            "DEVICES_LINK_BANDWIDTH": str(rates[at] * 125_000 / sizes[at]),
        }
        command = ["ip", "netns", "exec", namespaces[at], sys.executable, __file__, "--here", json.dumps(case)]
        processes.append(subprocess.Popen(command, env={**os.environ, **meet}, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a rank failed")
    found: list[dict[str, float]] = json.loads(said[0].splitlines()[-1])
    return found


def show(case: dict[str, object], rows: Sequence[dict[str, float]]) -> None:
    hosts = " + ".join(f"{size}@{rate}" for size, rate in zip(case["sizes"], case["rates"], strict=True))  # type: ignore[call-overload]
    print(f"\n{hosts} (ranks @ Mbit/s in each direction), {case['bytes']} bytes")
    print("verb              own way s  schedule s   times  predicted")
    for row in rows:
        own, ours = row["own"], row["schedule"]
        print(f"{row['verb']:16}{own:11.3f}{ours:12.3f}{own / ours:7.2f}x{row['predicted']:10.2f}x")


# What each rank does.


def measure(case: dict[str, object]) -> None:
    import torch
    import torch.distributed as dist

    import devices
    from devices.calls.groups import own_verbs
    from devices.domains import planned

    torch.set_num_threads(1)
    size: int = case["bytes"]  # type: ignore[assignment]
    most = planned.MOST
    with devices.init(timeout=300) as world:
        groups = {"schedule": dist.new_group()}
        planned.MOST = 0
        groups["own"] = dist.new_group()
        planned.MOST = most
        if world.rank == 0:
            print(devices.explain(groups["schedule"]), file=sys.stderr)
        n = world.size
        x, part = torch.ones(size // 4 // n * n), torch.ones(size // 4 // n)
        verbs: dict[str, Callable[[dist.ProcessGroup], object]] = {
            "all_reduce": lambda group: devices.all_reduce(x, group, out=x),
            "all_gather": lambda group: devices.all_gather(part, group, out=x),
            "reduce_scatter": lambda group: devices.reduce_scatter(x, group, out=part),
        }
        rows = []
        for verb in case["verbs"]:  # type: ignore[attr-defined]
            plans = own_verbs(groups["schedule"]).plans.of(verb)  # type: ignore[union-attr]
            predicted = float(plans[0].why.split()[1]) if plans and plans[0].least <= size else 1.0
            seen: dict[str, list[float]] = {name: [] for name in groups}
            for _ in range(case["turns"]):  # type: ignore[call-overload]
                for name, group in groups.items():
                    x.fill_(1)
                    devices.barrier()
                    start = time.perf_counter()
                    verbs[verb](group)
                    seen[name].append(time.perf_counter() - start)
            slowest = {name: devices.all_reduce(torch.tensor(times), op="max") for name, times in seen.items()}
            figures = {name: times.median().item() for name, times in slowest.items()}
            rows.append({"verb": verb, "predicted": predicted, **figures})
        if world.rank == 0:
            print(json.dumps(rows))


if __name__ == "__main__":
    main()
