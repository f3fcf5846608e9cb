"""How the axes of a mesh lie on a torus: `devices.topology.layout` beside JAX's `create_device_mesh`, in one run.

Run `python benchmarks/layout.py`; with JAX installed it compares, without it our layouts are scored alone. Every mesh
of one to four axes of each torus is laid by both, JAX with physical axes kept whole, as by default, and split. Its
devices are stand-ins with coordinates, as in JAX's own tests; of 4 x 4 and 8 x 8 both TPU v4 and TPU v5e.

The score is neither's own: along an axis each rank says a byte to the next and to the one before, all groups at once,
a message goes by the shortest way along the first axis of the torus first, and a link's load is the bytes that cross
it, or half of them where there are two cables. An axis has the bandwidth of a link divided by the greatest load. A
mesh's time is what its axes take one after the other, the last with ten times the bytes of the one before it.

Then it counts on which meshes of other machines it is proven that no order of all chips is faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from devices.topology import Topology, fat_tree, layout, machines, of_target, rails, switch, torus

SHAPES = ((2, 2, 1), (2, 2), (4, 4), (2, 2, 4), (8, 8), (4, 4, 4), (2, 4, 8), (4, 4, 8))
TENFOLD = 10.0
MACHINES: dict[str, Callable[[], Topology]] = {
    "trn2.48xlarge": lambda: of_target("trn2.48xlarge"),
    "trn1.32xlarge": lambda: of_target("trn1.32xlarge"),
    "inf2.48xlarge": lambda: of_target("inf2.48xlarge"),
    "Trn2 UltraServer": lambda: of_target("trainium2-ultraserver"),
    # Nobody has published these bandwidths.
    "Trn3 UltraServer Gen1, assumed rates": lambda: given(of_target("trainium3-ultraserver-gen1"), 200e9, 100e9),
    "DGX": lambda: switch(8, 450e9),
    "2 x DGX": lambda: machines(2, 8, 450e9, 50e9),
    "8 x DGX": lambda: machines(8, 8, 450e9, 50e9),
    "4 x DGX on rails": lambda: rails(4, 8, 450e9, 50e9),
    "8 x DGX on rails": lambda: rails(8, 8, 450e9, 50e9),
    "NVL72": lambda: switch(72, 900e9),
    "4 domains of 16": lambda: machines(4, 16, 900e9, 50e9),
    "4 domains of 18": lambda: machines(4, 18, 900e9, 50e9),
    "6 domains of 4": lambda: machines(6, 4, 900e9, 50e9),
    "fat tree of 8 x 8": lambda: fat_tree(8, 8, 4, 50e9),
    "fat tree of 8 x 8, half the uplinks": lambda: fat_tree(8, 8, 4, 50e9, 50e9),
    "fat tree of 4 x 8, half the uplinks": lambda: fat_tree(4, 8, 2, 50e9, 50e9),
    "fat tree of 6 x 4, half the uplinks": lambda: fat_tree(6, 4, 2, 50e9, 50e9),
    "grid 4x4": lambda: torus((4, 4), 50e9, wrap=False),
    "grid 8x8": lambda: torus((8, 8), 50e9, wrap=False),
    "torus 6x6": lambda: torus((6, 6), 50e9),
    "torus 4x16": lambda: torus((4, 16), 50e9),
    "torus 2x32": lambda: torus((2, 32), 50e9),
    "torus 3x3x4": lambda: torus((3, 3, 4), 50e9),
    "ring of 24": lambda: torus((24,), 50e9),
}

try:
    import jax
    from jax.experimental import mesh_utils
except ImportError:
    jax = None


@dataclass(frozen=True)
class Chip:
    """What JAX asks of a device."""

    id: int
    device_kind: str
    coords: tuple[int, int, int]
    platform: str = "tpu"
    process_index: int = 0
    core_on_chip: int = 0


def given(topology: Topology, inside: float, across: float) -> Topology:
    """Return a topology with bandwidths: of the links of a machine's switch, and of all others."""
    links = [
        dataclasses.replace(link, bandwidth=inside if "switch" in link.source + link.target else across)
        for link in topology.links
    ]
    return Topology(topology.nodes, links)


def meshes(count: int, axes: int) -> Iterator[tuple[int, ...]]:
    """Yield the lengths of so many axes, all longer than 1."""
    if axes == 1:
        yield from [(count,)] * (count > 1)
        return
    for first in range(2, count):
        if count % first == 0:
            yield from ((first, *rest) for rest in meshes(count // first, axes - 1))


def greatest_loads(shape: Sequence[int], sizes: Sequence[int], order: Sequence[int]) -> list[float]:
    """Return for each axis of the mesh the load of the link that most messages cross."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    found = []
    for axis, length in enumerate(sizes):
        load: dict[tuple[int, int], float] = {}
        stride = math.prod(sizes[axis + 1 :])
        for place, step in itertools.product(range(len(order)), (1, -1)):
            at = place // stride % length
            here, there = order[place], order[place + ((at + step) % length - at) * stride]
            for long, far in zip(shape, strides, strict=True):
                apart = (there // far - here // far) % long
                way = 1 if apart <= long - apart else -1
                for _ in range(min(apart, long - apart)):
                    on = here + ((here // far + way) % long - here // far % long) * far
                    load[here, on] = load.get((here, on), 0.0) + (0.5 if long == 2 else 1.0)
                    here = on
            assert here == there
        found.append(max(load.values()))
    return found


def seconds(sizes: Sequence[int], loads: Sequence[float]) -> float:
    """Return the time of all axes: a ring's ranks pass on (n - 1) / n of the bytes each way."""
    return sum(
        load * (size - 1) / size * TENFOLD ** (place + 1 - len(sizes))
        for place, (size, load) in enumerate(zip(sizes, loads, strict=True))
    )


def by_jax(shape: Sequence[int], kind: str, split: bool) -> Callable[[Sequence[int]], list[int] | None]:
    """Return what lays a mesh as JAX does, None where it refuses."""
    three = (*shape, *[1] * (3 - len(shape)))
    coords = sorted(itertools.product(*map(range, three)), key=lambda at: at[::-1])
    chips = [Chip(number, kind, at) for number, at in enumerate(coords)]

    def lay(sizes: Sequence[int]) -> list[int] | None:
        try:
            mesh = mesh_utils.create_device_mesh(sizes, chips, allow_split_physical_axes=split)
        except NotImplementedError:
            return None
        _, y, z = three
        return [(chip.coords[0] * y + chip.coords[1]) * z + chip.coords[2] for chip in mesh.flatten()]

    return lay


def prove(name: str, topology: Topology) -> None:
    """Print on how many meshes of a machine no order is faster, and how long it takes to say so."""
    count = len(topology.devices)
    wanted = [sizes for many in range(1, 5) for sizes in meshes(count, many)]
    proven, ratio, slowest = 0, 1.0, 0.0
    for sizes in wanted:
        begun = time.process_time()
        found = layout(topology, {f"a{place}": size for place, size in enumerate(sizes)})
        slowest = max(slowest, time.process_time() - begun)
        proven += found.proven
        ratio = max(ratio, 1.0 if found.proven else found.ratio)
    print(f"{name:38} {count:4} {len(wanted):7} {proven:7}  {ratio:10.3f} {slowest:7.3f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", help="for instance 4x4,2x2x4; all if not given")
    parser.add_argument("--machines", action="store_true", help="only how many meshes of machines are proven")
    parser.add_argument("--meshes", action="store_true", help="a line for each mesh too")
    arguments = parser.parse_args()
    shapes = SHAPES
    if arguments.machines:
        shapes = ()
    elif arguments.shapes:
        shapes = tuple(tuple(map(int, shape.split("x"))) for shape in arguments.shapes.split(","))
    print(f"-- beside JAX {jax.__version__}" if jax else "-- JAX is not installed: our layouts alone")
    print(
        "torus    by          meshes refused  ours faster  equal  slower  axes slower  JAX's time / ours  max s  proven"
    )
    worse = 0
    for shape in shapes:
        topology, count = torus(shape, 1.0), math.prod(shape)
        wanted = [sizes for many in range(1, 5) for sizes in meshes(count, many)]
        ours, slowest, proven = {}, 0.0, 0
        for sizes in wanted:
            begun = time.process_time()
            found = layout(topology, {f"a{place}": size for place, size in enumerate(sizes)})
            slowest = max(slowest, time.process_time() - begun)
            proven += found.proven
            ours[sizes] = greatest_loads(shape, sizes, found.order)
        name = "x".join(map(str, shape))
        print(f"{name:8} ours        {len(wanted):6} {0:7} {'':53} {slowest:6.3f}  {proven}")
        kinds = ["TPU v4", "TPU v5 lite"] if len(shape) == 2 else ["TPU v4"]
        for kind, split in itertools.product(kinds, (False, True)) if jax else ():
            lay, counts, ratios, slower, slowest = by_jax(shape, kind, split), [0, 0, 0, 0], [], 0, 0.0
            for sizes in wanted:
                begun = time.process_time()
                order = lay(sizes)
                slowest = max(slowest, time.process_time() - begun)
                if order is None:
                    counts[0] += 1
                    continue
                theirs = greatest_loads(shape, sizes, order)
                ratio = seconds(sizes, theirs) / seconds(sizes, ours[sizes])
                ratios.append(ratio)
                counts[1 if ratio > 1 + 1e-9 else 3 if ratio < 1 - 1e-9 else 2] += 1
                slower += sum(mine > other + 1e-9 for mine, other in zip(ours[sizes], theirs, strict=True))
                if arguments.meshes:
                    print(f"  {name} {sizes} JAX {theirs} ours {ours[sizes]}")
            worse += counts[3]
            by = f"{kind[4:]}{', split' if split else ''}"
            gain = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else ""
            print(
                f"{name:8} {by:15} {'':2} {counts[0]:7} {counts[1]:12} {counts[2]:6} {counts[3]:7} {slower:12}  "
                f"{gain:17} {slowest:6.3f}"
            )
    if arguments.machines or not arguments.shapes:
        print("-- proven that no order is faster; of the others the worst time to its bound, and seconds of one core")
        print(f"{'':38} chips  meshes  proven  worst ratio  max s")
        for name, make in MACHINES.items():
            prove(name, make())
    if arguments.machines:
        return 0
    print("No mesh is slower than JAX lays it." if not worse else f"{worse} meshes are slower than JAX lays them.")
    return worse > 0


if __name__ == "__main__":
    sys.exit(main())
