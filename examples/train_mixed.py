"""Train the small GPT of train_gpt.py on ranks that are not alike: of several vendors, or some faster than others.

    torchrun --nproc-per-node 3 examples/train_mixed.py

Each rank has the part of every global batch that it is done with when the others are: they measure how many windows a
second they compute, tell each other, and `devices.topology.shares` splits the batch. The mean of the gradients is
weighted by these parts, so that a step is that of one process with the whole batch, however it is split: the losses
differ by the rounding of sums, no more. Each rank's backend is what DEVICES_BACKEND says in its process, or the best
that it finds: ranks on CPUs, NVIDIA GPUs and Trainium train one model.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW
from train_gpt import GPT, learning_rate, loss_of, read_text

import devices
from devices.topology import shares


class Batches:
    """This rank's windows of each global batch, which depends on the seed and the step alone."""

    def __init__(self, text: Tensor, options: argparse.Namespace, device: torch.device) -> None:
        self.text, self.batch, self.context, self.device = text, options.batch, options.context, device
        self.seed = options.seed

    def __call__(self, step: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_000 + step)
        starts = torch.randint(len(self.text) - self.context, (self.batch,), generator=generator)
        mine = starts[first : first + count]
        windows = self.text[mine[:, None] + torch.arange(self.context + 1)].long().to(self.device)
        return windows[:, :-1], windows[:, 1:]


def split(world: devices.World, batch: int, speed: float) -> list[int]:
    """Return how many windows of a batch each rank has, by the windows that each computes in a second."""
    told = devices.all_gather(torch.tensor([speed], device=world.device)).tolist()
    return list(shares(batch, told).sizes)


def gradients_of(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Leave the gradients of this rank's windows in the parameters, and return their mean loss."""
    model.zero_grad()
    if not len(inputs):
        # A rank that is too slow for a single window still takes part: with weight 0.
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return torch.zeros((), dtype=next(model.parameters()).dtype, device=inputs.device)
    loss = loss_of(model, inputs, targets)
    loss.backward()
    return loss.detach()


def train(world: devices.World, options: argparse.Namespace) -> list[float]:
    """Return the loss of each global batch."""
    torch.manual_seed(options.seed)
    model = GPT(options.layers, options.width, options.heads).to(world.device, getattr(torch, options.dtype))
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    batches = Batches(read_text()[0], options, world.device)
    speed = options.speeds[world.rank] if options.speeds else 1.0
    sizes = split(world, options.batch, speed)
    losses: list[float] = []
    computed, seconds = 0, 0.0
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.learning_rate)
        first, mine = list(accumulate(sizes, initial=0))[world.rank], sizes[world.rank]
        start = time.perf_counter()
        loss = gradients_of(model, *batches(step, first, mine))
        loss.item()  # an accelerator is done only now
        computed, seconds = computed + mine, seconds + time.perf_counter() - start
        means = [loss, *(parameter.grad for parameter in model.parameters())]
        devices.all_reduce(means, op="avg", weight=mine, out=means)
        optimizer.step()
        losses.append(means[0].item())
        # The first step of all makes what the others find made, and is of no batch's usual time.
        if step == 0:
            computed, seconds = 0, 0.0
        elif not options.speeds and step % options.measure == 0:
            speed = computed / seconds if computed else speed
            sizes = split(world, options.batch, speed)
            computed, seconds = 0, 0.0
        if world.rank == 0 and (step % 20 == 0 or step == options.steps - 1):
            print(f"step {step + 1}: loss {losses[-1]:.4f}, windows by rank {', '.join(map(str, sizes))}")
    return losses


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=60)
    add("--batch", type=int, default=32, help="windows in a global batch")
    add("--context", type=int, default=64, help="bytes in a window")
    add("--layers", type=int, default=2)
    add("--width", type=int, default=64)
    add("--heads", type=int, default=4)
    add("--learning-rate", type=float, default=5e-3)
    add("--dtype", choices=["float32", "float64"], default="float32")
    add("--seed", type=int, default=0)
    add("--speeds", type=lambda text: [float(each) for each in text.split(",")], default=None, metavar="A,B,...",
        help="windows a second of each rank, instead of measuring them")  # fmt: skip
    add("--measure", type=int, default=10, metavar="STEPS", help="split the batch anew after so many steps")
    add("--out", type=Path, default=None, metavar="DIR", help="for losses.json")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with devices.init() as world:
        if options.speeds and len(options.speeds) != world.size:
            raise SystemExit(f"--speeds has {len(options.speeds)} numbers, and there are {world.size} ranks")
        if world.rank == 0:
            print(devices.explain())
        losses = train(world, options)
        if world.rank == 0 and options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
