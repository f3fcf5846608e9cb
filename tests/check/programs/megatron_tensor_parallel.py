"""Tensor parallel times data parallel as Megatron does it: our own linears, autograd functions, nccl groups.

torchrun --nproc-per-node=8 megatron_tensor_parallel.py --tensor-parallel 4
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

TENSOR_GROUP = DATA_GROUP = None
VOCABULARY = 48


# The identity whose gradient is summed over the tensor-parallel GPUs.
class CopyToTensorGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=TENSOR_GROUP)
        return grad


# The sum over the tensor-parallel GPUs, whose gradient is the identity.
class ReduceFromTensorGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous().clone()
        dist.all_reduce(x, group=TENSOR_GROUP)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


# The parts of all tensor-parallel GPUs, along the last dim; the gradient is this GPU's part.
class GatherFromTensorGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(TENSOR_GROUP))]
        dist.all_gather(parts, x.contiguous(), group=TENSOR_GROUP)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx, grad):
        return grad.chunk(dist.get_world_size(TENSOR_GROUP), dim=-1)[dist.get_rank(TENSOR_GROUP)].contiguous()


def part(master, dim):
    """Return this GPU's part of a weight that every rank made from the same seed."""
    parts = master.chunk(dist.get_world_size(TENSOR_GROUP), dim)
    return nn.Parameter(parts[dist.get_rank(TENSOR_GROUP)].contiguous().cuda())  # expect: device-method


class ColumnParallelLinear(nn.Module):
    def __init__(self, inputs, outputs, gather=False):
        super().__init__()
        self.weight = part(torch.randn(outputs, inputs) / inputs**0.5, 0)
        self.bias = part(torch.zeros(outputs), 0)
        self.gather = gather

    def forward(self, x):
        y = F.linear(CopyToTensorGroup.apply(x), self.weight, self.bias)
        return GatherFromTensorGroup.apply(y) if self.gather else y


class RowParallelLinear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = part(torch.randn(outputs, inputs) / inputs**0.5, 1)
        self.bias = nn.Parameter(torch.zeros(outputs, device=torch.cuda.current_device()))  # expect: device-module

    def forward(self, x):
        return ReduceFromTensorGroup.apply(F.linear(x, self.weight)) + self.bias


class Model(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(VOCABULARY, dim), nn.LayerNorm(dim)
        self.up, self.down = ColumnParallelLinear(dim, 4 * dim), RowParallelLinear(4 * dim, dim)
        self.head = ColumnParallelLinear(dim, VOCABULARY, gather=True)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


def initialize(tensor_parallel):
    """Open the groups: neighbouring ranks share a model, ranks with the same part share gradients."""
    global TENSOR_GROUP, DATA_GROUP
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"  # expect: environment
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # expect: device-module
    dist.init_process_group("nccl")  # expect: backend
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = torch.arange(size).view(-1, tensor_parallel)
    for ranks in rows.tolist():
        group = dist.new_group(ranks, backend="nccl")  # expect: backend
        TENSOR_GROUP = group if rank in ranks else TENSOR_GROUP
    for ranks in rows.T.tolist():
        group = dist.new_group(ranks, backend="nccl")  # expect: backend
        DATA_GROUP = group if rank in ranks else DATA_GROUP


def batch(size, length, generator):
    """Return sequences in which each token is seven more than the one before, and what follows each."""
    start = torch.randint(VOCABULARY, (size, 1), generator=generator)
    tokens = (start + 7 * torch.arange(length + 1)) % VOCABULARY
    mine = tokens.chunk(dist.get_world_size(DATA_GROUP))[dist.get_rank(DATA_GROUP)]
    return mine[:, :-1].cuda(), mine[:, 1:].cuda()  # expect: device-method, device-method


def main():
    parser = argparse.ArgumentParser()
    for name, default in (("tensor-parallel", 2), ("steps", 5), ("dim", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    initialize(args.tensor_parallel)
    torch.manual_seed(1234)
    torch.cuda.manual_seed(1234)  # expect: device-module
    model = Model(args.dim).cuda()  # expect: device-method
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for step in range(args.steps):
        tokens, targets = batch(8, 6, generator)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        for value in (loss, *(parameter.grad for parameter in model.parameters())):
            dist.all_reduce(value, group=DATA_GROUP)
            value /= dist.get_world_size(DATA_GROUP)
        optimizer.step()
        if dist.get_rank() == 0:
            used = torch.cuda.memory_allocated() >> 20  # expect: device-module
            print(f"step {step} loss {loss.item():.6f} ({used} MiB)")
    torch.cuda.synchronize()  # expect: device-module
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
