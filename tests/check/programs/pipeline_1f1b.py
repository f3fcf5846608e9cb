"""Train over a pipeline of GPUs, one forward one backward, activations and gradients by send and recv.

torchrun --nproc-per-node=4 pipeline_1f1b.py --microbatches 8
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import cuda, nn  # expect: device-module

CLASSES = 10


def build_layers(width, layers):
    """Return all layers of the model, made from one seed on every rank, of which a stage keeps its own."""
    torch.manual_seed(3)
    hidden = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)]
    return [*hidden, nn.Linear(width, CLASSES)]


class Stage:
    """This rank's layers, and what goes to the stage before and to the stage after."""

    def __init__(self, args):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.first, self.last = self.rank == 0, self.rank == self.size - 1
        layers = build_layers(args.width, args.layers)
        ends = [len(layers) * stage // self.size for stage in range(self.size + 1)]
        self.module = nn.Sequential(*layers[ends[self.rank] : ends[self.rank + 1]]).cuda()  # expect: device-method
        self.shape = (args.batch // args.microbatches, args.width)
        self.microbatches = args.microbatches
        self.waiting = []

    def exchange(self, send=None, send_to=None, recv_from=None):
        """Send one tensor and receive one, both at once so that neighbours never wait for each other."""
        received, operations = None, []
        if send is not None and 0 <= send_to < self.size:
            operations.append(dist.P2POp(dist.isend, send.detach().contiguous(), send_to))
        if recv_from is not None and 0 <= recv_from < self.size:
            received = torch.empty(self.shape, device="cuda")  # expect: device-string
            operations.append(dist.P2POp(dist.irecv, received, recv_from))
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            cuda.synchronize()  # expect: device-module
        return received

    def forward(self, x, targets):
        """Run the layers on one microbatch; return what the next stage is to get."""
        if not self.first:
            x.requires_grad_()
        y = self.module(x)
        if self.last:
            y = nn.functional.cross_entropy(y, targets) / self.microbatches
            self.loss += y.detach()
        self.waiting.append((x, y))
        return y

    def backward(self, grad):
        """Run the oldest microbatch back; return the gradient that the stage before is to get."""
        x, y = self.waiting.pop(0)
        y.backward(None if self.last else grad)
        return x.grad

    def step(self, inputs, targets):
        """Run all microbatches forth and back, so few of them waiting as the pipeline is deep."""
        before, after = self.rank - 1, self.rank + 1
        self.loss = torch.zeros((), device=torch.device("cuda"))  # expect: device-string
        warmup = min(self.size - self.rank - 1, self.microbatches)
        feed = iter(zip(inputs, targets, strict=True))

        def forward(received):
            mine, target = next(feed)
            return self.forward(mine if self.first else received, target)

        for _ in range(warmup):
            self.exchange(forward(self.exchange(recv_from=before)), after)
        received = self.exchange(recv_from=before) if warmup < self.microbatches else None
        for index in range(self.microbatches - warmup):
            output = forward(received)
            grad = self.exchange(None if self.last else output, after, after)
            more = index < self.microbatches - warmup - 1
            received = self.exchange(self.backward(grad), before, before if more else None)
        for _ in range(warmup):
            grad = self.exchange(recv_from=after)
            self.exchange(self.backward(grad), before)
        return self.loss


def batches(args):
    """Yield one batch over and over, in microbatches on the GPU: the class is where the first inputs are greatest."""
    inputs = torch.randn(args.batch, args.width, generator=torch.Generator().manual_seed(5))
    targets = inputs[:, :CLASSES].argmax(1)
    while True:
        both = inputs.to("cuda"), targets.to("cuda")  # expect: device-string, device-string
        yield tuple(each.chunk(args.microbatches) for each in both)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="nccl")  # expect: backend
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers", type=int, default=5)
    args = parser.parse_args()

    if not cuda.is_available():  # expect: device-module
        raise SystemExit("this program needs a CUDA device for each stage")
    cuda.set_device(int(os.environ["LOCAL_RANK"]) % cuda.device_count())  # expect: device-module, device-module
    dist.init_process_group(args.backend)
    stage = Stage(args)
    optimizer = torch.optim.SGD(stage.module.parameters(), lr=0.5)
    began, ended = (cuda.Event(enable_timing=True) for _ in range(2))  # expect: device-module
    for step, (inputs, targets) in zip(range(args.steps), batches(args), strict=False):
        began.record()
        optimizer.zero_grad()
        loss = stage.step(inputs, targets)
        optimizer.step()
        ended.record()
        cuda.synchronize()  # expect: device-module
        dist.broadcast(loss, src=stage.size - 1)
        if stage.first:
            print(f"step {step} loss {loss.item():.6f} in {began.elapsed_time(ended):.1f} ms")
    peak = cuda.max_memory_allocated() / 2**20  # expect: device-module
    print(f"stage {stage.rank}: {peak:.1f} MiB at most")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
