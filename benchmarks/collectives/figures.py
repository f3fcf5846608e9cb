"""What was measured, as a table in nccl-tests' columns and as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collectives.data import REDUCING, ROOTED, Case


@dataclass(frozen=True)
class Figure:
    """One cell: a contender's time for one verb at one size.

    Args:
        by: the contender.
        verb: what it did.
        ranks: how many took part.
        count: elements, of 4 bytes.
        seconds: of one call: the slowest rank's median.
        wrong: how many elements were wrong.
    """

    by: str
    verb: str
    ranks: int
    count: int
    seconds: float
    wrong: int

    @property
    def case(self) -> Case:
        return Case(self.verb, self.ranks, self.count)

    @property
    def algorithm_bandwidth(self) -> float:
        return self.case.bytes / self.seconds / 1e9


@dataclass(frozen=True)
class Results:
    """All that one run measured.

    Args:
        about: the machine, the versions, when.
        figures: the cells.
        bandwidth: bytes per second that so many ranks together read and write when they copy, by their number.
        left_out: why a contender, or a cell of it, is not there.
    """

    about: dict[str, str]
    figures: list[Figure]
    bandwidth: dict[int, float]
    left_out: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Results:
        figures = [Figure(**each) for each in data["figures"]]
        bandwidth = {int(ranks): speed for ranks, speed in data["bandwidth"].items()}
        return Results(data["about"], figures, bandwidth, data["left_out"])

    def of(self, verb: str, ranks: int, by: str) -> list[Figure]:
        """Return a curve, in order of size."""
        found = [each for each in self.figures if (each.verb, each.ranks, each.by) == (verb, ranks, by)]
        return sorted(found, key=lambda each: each.count)

    def like(self, figure: Figure, by: str) -> Figure | None:
        """Return the same cell of another contender."""
        return next((each for each in self.of(figure.verb, figure.ranks, by) if each.count == figure.count), None)

    def bound(self, figure: Figure) -> float | None:
        """Return the seconds that memory takes for an all-reduce: N(3 - 1/N)S bytes at the bandwidth measured."""
        if figure.verb != "all_reduce" or figure.ranks not in self.bandwidth:
            return None
        ranks = figure.ranks
        return ranks * (3 - 1 / ranks) * figure.case.bytes / self.bandwidth[ranks]


RIVALS = ("gloo", "Open MPI", "DeepSpeed")


def ordered(names: Sequence[str]) -> list[str]:
    """Return each name once, in the order of the first appearance."""
    return list(dict.fromkeys(names))


def table(results: Results) -> str:
    """Return the table: nccl-tests' columns, then how many times as fast as each rival, and the share of the bound."""
    lines = [f"# {name}: {value}" for name, value in results.about.items()]
    lines += [
        f"# memory, {ranks} ranks copying: {speed / 1e9:.1f} GB/s read and written"
        for ranks, speed in sorted(results.bandwidth.items())
    ]
    lines += [f"# left out: {why}" for why in results.left_out]
    rivals = [name for name in RIVALS if any(each.by == name for each in results.figures)]
    for ranks in sorted({each.ranks for each in results.figures}):
        for verb in ordered([each.verb for each in results.figures if each.ranks == ranks]):
            lines += ["", f"# {verb}, {ranks} ranks", _head(rivals)]
            cells = [each for each in results.figures if (each.verb, each.ranks) == (verb, ranks)]
            places = {name: at for at, name in enumerate(ordered([each.by for each in results.figures]))}
            lines += [
                _row(each, results, rivals) for each in sorted(cells, key=lambda each: (each.count, places[each.by]))
            ]
    return "\n".join(lines)


def _head(rivals: Sequence[str]) -> str:
    columns = f"#{'size':>11}{'count':>11}{'type':>7}{'redop':>7}{'root':>6}  {'by':<20}"
    columns += f"{'time':>11}{'algbw':>8}{'busbw':>8}{'#wrong':>8}"
    ratios = "".join(f"{'x ' + name:>12}" for name in rivals)
    units = (
        f"#{'(B)':>11}{'(elements)':>11}{'':>7}{'':>7}{'':>6}  {'':<20}{'(us)':>11}{'(GB/s)':>8}{'(GB/s)':>8}{'':>8}"
    )
    return f"{columns}{ratios}{'of bound':>10}\n{units}"


def _row(figure: Figure, results: Results, rivals: Sequence[str]) -> str:
    case = figure.case
    op = "sum" if case.verb in REDUCING else "none"
    root = 0 if case.verb in ROOTED else -1
    speed = figure.algorithm_bandwidth
    line = f"{case.bytes:>12}{case.count:>11}{'float':>7}{op:>7}{root:>6}  {figure.by:<20}"
    line += f"{figure.seconds * 1e6:>11.2f}{speed:>8.2f}{speed * case.bus_factor:>8.2f}{figure.wrong:>8}"
    for name in rivals:
        other = None if name == figure.by else results.like(figure, name)
        line += f"{other.seconds / figure.seconds if other else float('nan'):>12.2f}" if other else f"{'':>12}"
    bound = results.bound(figure)
    return f"{line}{f'{bound / figure.seconds:.0%}' if bound else '':>10}"


COLORS = {
    "devices": "#0b6e99", "fabric memory": "#17a398", "torch over devices": "#7fb7d4", "gloo": "#b0413e",
    "Open MPI": "#e08e45", "DeepSpeed": "#8d6a9f",
}  # fmt: skip


def draw(results: Results, path: Path) -> None:
    """Draw the curves: time over size, one picture for each verb and number of ranks."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file.
    mpl.rcParams.update(
        {"svg.hashsalt": "devices", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    )
    from matplotlib import pyplot as plt

    verbs = [verb for verb in ordered([each.verb for each in results.figures]) if verb != "barrier"]
    numbers = sorted({each.ranks for each in results.figures})
    columns = min(4, len(verbs))
    rows_each = -(-len(verbs) // columns)
    shape = (rows_each * len(numbers), columns)
    figure, grid = plt.subplots(*shape, figsize=(3 * columns, 2.4 * shape[0]), squeeze=False, layout="constrained")
    names = ordered([each.by for each in results.figures])
    for axes in grid.flat:
        axes.set_visible(False)
    for block, ranks in enumerate(numbers):
        for place, verb in enumerate(verbs):
            axes = grid[block * rows_each + place // columns][place % columns]
            axes.set_visible(True)
            _curves(axes, results, verb, ranks, names)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.supxlabel("size in bytes")
    figure.supylabel("time of one call in microseconds")
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def _curves(axes: Any, results: Results, verb: str, ranks: int, names: Sequence[str]) -> None:
    for name in names:
        curve = results.of(verb, ranks, name)
        sizes, times = [each.case.bytes for each in curve], [each.seconds * 1e6 for each in curve]
        axes.plot(sizes, times, marker=".", linewidth=1.2, color=COLORS.get(name), label=name)
    axes.set(title=f"{verb}, {ranks} ranks", xscale="log", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks([4, 1 << 10, 1 << 18, 1 << 26], ["4", "1 Ki", "256 Ki", "64 Mi"])
    axes.grid(visible=True, which="major", linewidth=0.3)
