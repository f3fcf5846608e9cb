"""Train the same GPT on 1 rank and on 4 ranks (dp 2 x tp 2), and compare the two loss curves.

    python examples/demo.py

Fails if they differ by more than rounding explains. Options that train_gpt.py knows are passed on to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).with_name("train_gpt.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
TOLERANCE = 1e-3  # relative, in float32; in float64 the curves agree to 1e-12


def run(title: str, out: Path, command: list[str], options: list[str], **variables: str) -> dict[str, Any]:
    """Train in a new process and return what it left in losses.json."""
    print(f"\n== {title}\n", flush=True)
    begin = time.monotonic()
    command = [sys.executable, *command, *options, "--out", str(out)]
    if code := subprocess.run(command, env={**os.environ, **variables}, check=False).returncode:
        raise SystemExit(f"{title}: the training ended with exit code {code}; its own message is above")
    print(f"{time.monotonic() - begin:.0f} s")
    result: dict[str, Any] = json.loads((out / "losses.json").read_text())
    return result


def draw(path: Path, curves: dict[str, list[float]], differences: list[float]) -> None:
    from matplotlib.figure import Figure  # without pyplot it draws by Agg, and needs no display

    figure = Figure(layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    for (title, losses), style in zip(curves.items(), ("-", "--"), strict=True):
        above.plot(range(1, len(losses) + 1), losses, style, label=title)
    above.set(ylabel="loss (nats per byte)")
    above.legend()
    below.semilogy(range(1, len(differences) + 1), [max(difference, 1e-9) for difference in differences])
    below.axhline(TOLERANCE, color="gray", linestyle=":")
    below.set(xlabel="step", ylabel="relative difference")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR")
    options, passed_on = parser.parse_known_args()

    begin = time.monotonic()
    one = run("1 rank", options.out / "one", [str(TRAIN)], passed_on)
    # The ranks share the machine's cores: one thread each, or they would wait for one another's threads.
    four = run("4 ranks, dp 2 x tp 2", options.out / "four", [*TORCHRUN, str(TRAIN), "--tp", "2"], passed_on,
               OMP_NUM_THREADS="1")  # fmt: skip

    pairs = list(zip(one["losses"], four["losses"], strict=True))
    differences = [abs(a - b) / abs(a) for a, b in pairs]
    picture = options.out / "curves.png"
    draw(picture, {"1 rank": one["losses"], "4 ranks, dp 2 x tp 2": four["losses"]}, differences)

    print("\n== compared\n")
    for title, result in {"1 rank ": one, "4 ranks": four}.items():
        first, last, held_out = result["losses"][0], result["losses"][-1], result["held_out"]
        print(f"{title}   loss {first:.4f} -> {last:.4f}, held out {held_out:.4f}")
    print(f"largest relative difference along the curves: {max(differences):.1e} (allowed: {TOLERANCE:.0e})")
    print(f"both curves are in {picture}; {time.monotonic() - begin:.0f} s in all")
    # A NaN compares false: asked this way round, it fails too.
    if not all(difference < TOLERANCE for difference in differences):
        step = next(i for i, difference in enumerate(differences) if not difference < TOLERANCE)
        a, b = pairs[step]
        raise SystemExit(f"FAILED: the two curves part at step {step + 1}: 1 rank {a:.6f}, 4 ranks {b:.6f}")


if __name__ == "__main__":
    main()
