"""Train a small language model with FSDP2 on NVIDIA GPUs, batches copied on a CUDA stream of their own.

torchrun --nproc-per-node=8 fsdp2_language_model.py --steps 100 --bf16
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

DEVICE = "cuda"  # expect: device-string
VOCABULARY = 64


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, dim, layers, heads, length):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, dim)
        self.positions = nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Batches:
    """Sequences that count up by a step of their own; the next batch is copied while the present one is used."""

    def __init__(self, batch, length, rank, world_size):
        self.batch, self.length = batch, length
        self.mine = slice(rank * batch // world_size, (rank + 1) * batch // world_size)
        self.stream = torch.cuda.Stream()  # expect: device-module
        self.generator = torch.Generator().manual_seed(7)
        self.fetch()

    def fetch(self):
        start = torch.randint(VOCABULARY, (self.batch, 1), generator=self.generator)
        step = torch.randint(1, 4, (self.batch, 1), generator=self.generator)
        tokens = (start + step * torch.arange(self.length + 1)) % VOCABULARY
        # The copy may land where the model's last tokens lay, so it waits until they were used.
        self.stream.wait_stream(torch.cuda.current_stream())  # expect: device-module
        with torch.cuda.stream(self.stream):  # expect: device-module
            self.ready = tokens[self.mine].to(DEVICE, non_blocking=True)

    def next(self):
        torch.cuda.current_stream().wait_stream(self.stream)  # expect: device-module
        tokens = self.ready
        self.fetch()
        return tokens[:, :-1], tokens[:, 1:]


def build(args, mesh):
    torch.manual_seed(0)
    model = Transformer(args.dim, args.layers, args.heads, args.length).to(device="cuda")  # expect: device-string
    policy = MixedPrecisionPolicy()
    if args.bf16 and torch.cuda.is_bf16_supported():  # expect: device-module
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def memory_line():
    free, total = torch.cuda.mem_get_info()  # expect: device-module
    peak = torch.cuda.max_memory_reserved()  # expect: device-module
    return f"{peak / 2**20:.0f} MiB reserved at most, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def main():
    parser = argparse.ArgumentParser(description="FSDP2 on cuda")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8, help="over all ranks")
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()

    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(f"cuda:{local_rank}")  # expect: device-string
    torch.cuda.set_device(device)  # expect: device-module
    dist.init_process_group("nccl", device_id=device)  # expect: backend, device-ids
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cuda", (world_size,), mesh_dim_names=("fsdp",))  # expect: device-string
    torch.backends.cuda.matmul.allow_tf32 = False  # expect: torch-backends

    model = build(args, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = Batches(args.batch, args.length, rank, world_size)
    torch.cuda.reset_peak_memory_stats()  # expect: device-module
    started = time.perf_counter()
    for step in range(args.steps):
        tokens, targets = batches.next()
        loss = F.cross_entropy(model(tokens).flatten(0, 1).float(), targets.flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        if rank == 0:
            print(f"step {step} loss {mean.item():.6f} norm {norm.item():.6f}")
    torch.cuda.synchronize(device)  # expect: device-module
    if rank == 0:
        print(f"{time.perf_counter() - started:.2f} s; {memory_line()}")
    torch.cuda.empty_cache()  # expect: device-module
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
