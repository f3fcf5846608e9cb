"""Fit a line on Ray Train's workers: Ray opens the process group "devices", and each worker adopts it.

pip install "ray[train]"
python docs/ray_train.py --workers 2
"""

from __future__ import annotations

import argparse
import tempfile

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

import devices


def train(settings: dict[str, float]) -> None:
    with devices.init() as world:
        dp = world.mesh({"dp": -1})["dp"]
        # Each worker has points of its own, on one line: y = 3x - 1.
        x = torch.linspace(-1, 1, 64)[world.rank :: world.size]
        y = 3 * x - 1
        line = torch.zeros(2, requires_grad=True)
        for _ in range(int(settings["steps"])):
            loss = (line[0] * x + line[1] - y).square().mean()
            [gradient] = torch.autograd.grad(loss, line)
            with torch.no_grad():
                line -= settings["rate"] * devices.all_reduce(gradient, dp, op="avg", weight=len(x))
        total = devices.all_reduce(loss.detach(), dp, op="avg", weight=len(x))
        result = {"slope": line[0].item(), "intercept": line[1].item(), "loss": total.item(), "ranks": world.size}
        ray.train.report(result)
        if world.rank == 0:
            print(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--storage", help="a folder that all hosts share; needed on more than one")
    options = parser.parse_args()
    trainer = TorchTrainer(
        train,
        train_loop_config={"steps": 200, "rate": 0.3},
        torch_config=TorchConfig(backend="devices"),
        scaling_config=ScalingConfig(num_workers=options.workers),
        run_config=RunConfig(storage_path=options.storage or tempfile.mkdtemp()),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
