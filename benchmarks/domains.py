"""Groups of two domains over a slow link: `devices` against plain TCP, gloo over all ranks, and steps in sequence.

Run `python benchmarks/domains.py` as root, with `ip` and `tc`. It makes two network namespaces joined by a cable,
shapes the cable to a bandwidth in each direction, and starts ranks in both: those of one namespace are a domain,
which shares memory. The bound is the bytes that must cross over the goodput of plain TCP across the cable, both
directions at once, by as many streams as the larger domain has ranks, in the same run. A figure is the slowest
rank's median; the contenders take turns. Then each rank of a domain has a cable of its own, of unequal rates, and
parts as the cables carry are measured against equal parts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

ADDRESSES = ("198.51.100.1", "198.51.100.2")
CABLE = "eth0"
CABLES = ("eth0", "eth1")
PORT = 29_617
STREAMED = 32 << 20
"""The bytes that plain TCP carries in each direction."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--split", default="2+2,1+3", help="ranks of the two domains")
    parser.add_argument("--rate", default="1gbit,200mbit", help="of the cable, in each direction, as tc says it")
    parser.add_argument("--bytes", type=int, default=64 << 20)
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--lanes", default="1000:500,1000:250,200:100,200:50", help="Mbit/s of two ranks' own cables")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        case = json.loads(options.here)
        (measure_lanes if "rates" in case else measure)(case)
        return
    if why := missing():
        print(f"not run: {why}")
        return
    for rate in filter(None, options.rate.split(",")):
        for split in options.split.split(","):
            sizes = [int(size) for size in split.split("+")]
            case = {"sizes": sizes, "bytes": options.bytes, "verbs": options.verbs.split(","), "turns": options.turns}
            with cables([rate]) as namespaces:
                show(rate, sizes, run(namespaces, case))
    for lanes in filter(None, options.lanes.split(",")):
        rates = [int(rate) for rate in lanes.split(":")]
        case = {
            "sizes": [2, 2],
            "bytes": options.bytes,
            "rates": rates,
            "turns": options.turns,
            "verbs": options.verbs.split(","),
        }
        with cables([f"{rate}mbit" for rate in rates]) as namespaces:
            show_lanes(rates, run(namespaces, case))


def missing() -> str:
    if os.geteuid():
        return "network namespaces need root"
    lacking = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"there is no {' and no '.join(lacking)}; they are of iproute2" if lacking else ""


@contextlib.contextmanager
def cables(rates: Sequence[str]) -> Iterator[list[str]]:
    """Make two namespaces with cables of those rates between them."""
    names = [f"devices-benchmark-{os.getpid()}-{at}" for at in (0, 1)]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for at, (rate, cable) in enumerate(zip(rates, CABLES, strict=False)):
            ip(*f"link add {cable} netns {names[0]} type veth peer name {cable} netns {names[1]}".split())
            for name, address in zip(names, ADDRESSES, strict=True):
                # The cables' networks: 198.51.100 and 198.51.101.
                here = address.replace(".100.", f".{100 + at}.")
                ip("-n", name, "addr", "add", f"{here}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "up")
                shape = f"qdisc add dev {cable} root tbf rate {rate} burst 256kb latency 50ms"
                subprocess.run(["ip", "netns", "exec", name, "tc", *shape.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def run(namespaces: Sequence[str], case: dict[str, object]) -> list[dict[str, float]]:
    """Return what rank 0 says."""
    sizes: list[int] = case["sizes"]  # type: ignore[assignment]
    ranks = [at for at, size in enumerate(sizes) for _ in range(size)]
    processes = []
    for rank, at in enumerate(ranks):
        place = {"RANK": str(rank), "WORLD_SIZE": str(len(ranks)), "LOCAL_RANK": str(rank - ranks.index(at))}
        meet = {
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": CABLES[rank - ranks.index(at)] if "rates" in case else CABLE,
            "OMP_NUM_THREADS": "1",
        }
        command = ["ip", "netns", "exec", namespaces[at], sys.executable, __file__, "--here", json.dumps(case)]
        processes.append(
            subprocess.Popen(command, env={**os.environ, **place, **meet}, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a rank failed")
    found: list[dict[str, float]] = json.loads(said[0].splitlines()[-1])
    return found


def show(rate: str, sizes: Sequence[int], rows: Sequence[dict[str, float]]) -> None:
    speed = rows[0]["goodput"] / 1e6
    print(f"\n{' + '.join(map(str, sizes))} ranks, {rate} in each direction, of which TCP carries {speed:.1f} MB/s")
    print("verb               bound s   devices  of bound      gloo   times  in sequence   times")
    for row in rows:
        ours, gloo, steps = row["devices"], row["gloo"], row["in sequence"]
        print(
            f"{row['verb']:16}{row['bound']:10.3f}{ours:10.3f}{ours / row['bound']:9.2f}x"
            f"{gloo:10.3f}{gloo / ours:7.1f}x{steps:13.3f}{steps / ours:7.1f}x"
        )


def show_lanes(rates: Sequence[int], rows: Sequence[dict[str, float]]) -> None:
    speed, possible = rows[0]["goodput"] / 1e6, sum(rates) / 2 / min(rates)
    print(f"\n2 + 2 ranks, each with a cable of its own: {' and '.join(map(str, rates))} Mbit/s in each direction, of")
    print(f"which TCP carries {speed:.1f} MB/s; no parts are more than {possible:.2f} times as fast as equal ones")
    print("verb               bound s  equal parts   as told  of bound  times  as measured  of bound  times")
    for row in rows:
        bound, equal = row["bound"], row["equal"]
        found = "".join(
            f"{row[name]:{width}.3f}{row[name] / bound:9.2f}x{equal / row[name]:6.2f}x"
            for name, width in (("told", 10), ("measured", 13))
        )
        print(f"{row['verb']:16}{bound:10.3f}{equal:13.3f}{found}")


# What each rank does.


def measure_lanes(case: dict[str, object]) -> None:
    """Let groups of equal parts, and of parts as their cables carry, take turns."""
    import torch
    import torch.distributed as dist

    import devices
    from devices.domains.bandwidth import MEASURE, VARIABLE

    torch.set_num_threads(1)
    rates: list[int] = case["rates"]  # type: ignore[assignment]
    size: int = case["bytes"]  # type: ignore[assignment]
    with devices.init(timeout=300) as world:
        groups: dict[str, dist.ProcessGroup | None] = {"equal": None}
        for name, said in (("told", str(rates[int(os.environ["LOCAL_RANK"])] * 125_000)), ("measured", MEASURE)):
            os.environ[VARIABLE] = said
            groups[name] = dist.new_group()
            if world.rank == 0:
                print(name, devices.explain(groups[name]), file=sys.stderr)
        speeds = devices.all_gather(torch.tensor([own_cable(rates, world.rank)]))
        goodput = sum(min(speeds[lane], speeds[lane + 2]).item() for lane in (0, 1))
        x, part = torch.ones(size // 4), torch.ones(size // 16)
        y = torch.empty_like(x)
        verbs: dict[str, Callable[[dist.ProcessGroup | None], object]] = {
            "all_reduce": lambda group: devices.all_reduce(x, group, out=x),
            "all_gather": lambda group: devices.all_gather(part, group, out=x),
            "reduce_scatter": lambda group: devices.reduce_scatter(x, group, out=part),
            "broadcast": lambda group: devices.broadcast(x, group, src=0, out=x),
            "all_to_all": lambda group: devices.all_to_all(x, group, out=y),
        }
        rows = []
        for verb in case["verbs"]:  # type: ignore[attr-defined]
            call = verbs[verb]
            seen: dict[str, list[float]] = {name: [] for name in groups}
            for _ in range(case["turns"]):  # type: ignore[call-overload]
                for name, group in groups.items():
                    devices.barrier()
                    start = time.perf_counter()
                    call(group)
                    seen[name].append(time.perf_counter() - start)
            slowest = {name: devices.all_reduce(torch.tensor(times), op="max") for name, times in seen.items()}
            crossing = size // 2 if verb in ("all_gather", "reduce_scatter") else size
            figures = {name: times.median().item() for name, times in slowest.items()}
            rows.append({"verb": verb, "goodput": goodput, "bound": crossing / goodput, **figures})
        if world.rank == 0:
            print(json.dumps(rows))


def measure(case: dict[str, object]) -> None:
    import torch
    import torch.distributed as dist

    import devices
    from devices.domains import communicator

    torch.set_num_threads(1)
    sizes: list[int] = case["sizes"]  # type: ignore[assignment]
    turns: int = case["turns"]  # type: ignore[assignment]
    with devices.init(timeout=300) as world:
        if world.rank == 0:
            print(devices.explain(), file=sys.stderr)
        flat = dist.new_group(backend="gloo")
        rows = []
        for verb in case["verbs"]:  # type: ignore[attr-defined]
            call, plain, crossing = VERBS[verb](case["bytes"], sizes, world.rank, flat)
            pieces = communicator.PIECE
            seen: dict[str, list[float]] = {"devices": [], "gloo": [], "in sequence": []}
            goodput = []
            for _ in range(turns):
                devices.barrier()
                goodput.append(streams(sizes, world.rank))
                for name in seen:
                    communicator.PIECE = 1 << 40 if name == "in sequence" else pieces
                    devices.barrier()
                    start = time.perf_counter()
                    (plain if name == "gloo" else call)()
                    seen[name].append(time.perf_counter() - start)
            communicator.PIECE = pieces
            slowest = {name: devices.all_reduce(torch.tensor(times), op="max") for name, times in seen.items()}
            speed = devices.all_reduce(torch.tensor(goodput), op="min").median().item()
            figures = {name: statistics.median(times.tolist()) for name, times in slowest.items()}
            rows.append({"verb": verb, "goodput": speed, "bound": crossing / speed, **figures})
        if world.rank == 0:
            print(json.dumps(rows))


def streams(sizes: Sequence[int], rank: int) -> float:
    """Return the bytes a second that all streams carry together in one direction, the other going on beside."""
    first, second = sizes
    lanes = max(sizes)
    mine = [lane for lane in range(lanes) if (lane % first if rank < first else first + lane % second) == rank]
    times: list[float] = []

    def carry(lane: int) -> None:
        with connected(lane, listens=rank < first) as way:
            times.append(swapped(way, STREAMED // lanes))

    threads = [threading.Thread(target=carry, args=(lane,)) for lane in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return STREAMED / max(times)


def own_cable(rates: Sequence[int], rank: int) -> float:
    """Return the bytes a second that this rank's own cable carries in one direction, all being in use in both."""
    lane = rank % 2
    each = STREAMED * rates[lane] // sum(rates)
    with connected(lane, listens=rank < 2, cable=lane) as way:
        return each / swapped(way, each)


def swapped(way: socket.socket, size: int) -> float:
    """Send and receive so many bytes at once; return how long it took."""
    start = time.perf_counter()
    sender = threading.Thread(target=way.sendall, args=(bytes(size),))
    sender.start()
    left = size
    while left:
        left -= len(way.recv(min(left, 1 << 20)))
    sender.join()
    return time.perf_counter() - start


def connected(lane: int, *, listens: bool, cable: int = 0) -> socket.socket:
    address = ADDRESSES[0].replace(".100.", f".{100 + cable}.")
    if listens:
        with socket.create_server((address, PORT + 1 + lane)) as server:
            way = server.accept()[0]
        way.sendall(b"!")
        way.recv(1)
        return way
    while True:
        try:
            way = socket.create_connection((address, PORT + 1 + lane))
        except OSError:
            time.sleep(0.01)
            continue
        way.recv(1)
        way.sendall(b"!")
        return way


Case = tuple[Callable[[], object], Callable[[], object], int]
"""The call of ours, that of gloo, and the bytes that must cross in the busier direction."""


def all_reduce(size: int, sizes: Sequence[int], rank: int, flat: object) -> Case:
    import torch
    import torch.distributed as dist

    import devices

    x = torch.ones(size // 4)
    return lambda: devices.all_reduce(x, out=x), lambda: dist.all_reduce(x, group=flat), size


def all_gather(size: int, sizes: Sequence[int], rank: int, flat: object) -> Case:
    import torch
    import torch.distributed as dist

    import devices

    x = torch.ones(size // 4 // sum(sizes))
    y = torch.empty(x.numel() * sum(sizes))
    crossing = max(sizes) * x.nbytes
    return lambda: devices.all_gather(x, out=y), lambda: dist.all_gather_into_tensor(y, x, group=flat), crossing


def reduce_scatter(size: int, sizes: Sequence[int], rank: int, flat: object) -> Case:
    import torch
    import torch.distributed as dist

    import devices

    x = torch.ones(size // 4 // sum(sizes) * sum(sizes))
    y = torch.empty(x.numel() // sum(sizes))
    crossing = max(sizes) * y.nbytes
    return lambda: devices.reduce_scatter(x, out=y), lambda: dist.reduce_scatter_tensor(y, x, group=flat), crossing


def broadcast(size: int, sizes: Sequence[int], rank: int, flat: object) -> Case:
    import torch
    import torch.distributed as dist

    import devices

    x = torch.ones(size // 4)
    return lambda: devices.broadcast(x, src=0, out=x), lambda: dist.broadcast(x, 0, group=flat), size


def all_to_all(size: int, sizes: Sequence[int], rank: int, flat: object) -> Case:
    import torch
    import torch.distributed as dist

    import devices

    n = sum(sizes)
    x = torch.ones(size // 4 // n * n)
    y = torch.empty_like(x)
    crossing = sizes[0] * sizes[1] * (x.nbytes // n)

    def plain() -> None:
        parts, rows = list(x.chunk(n)), list(y.chunk(n))
        works = [dist.irecv(rows[peer], peer, group=flat) for peer in range(n) if peer != rank]
        works += [dist.isend(parts[peer], peer, group=flat) for peer in range(n) if peer != rank]
        rows[rank].copy_(parts[rank])
        for work in works:
            work.wait()

    return lambda: devices.all_to_all(x, out=y), plain, crossing


VERBS = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "broadcast": broadcast,
    "all_to_all": all_to_all,
}


if __name__ == "__main__":
    main()
