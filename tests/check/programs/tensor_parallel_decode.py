"""Serve a decoder whose heads lie on several GPUs: a prefill, then greedy decoding with a key-value cache.

torchrun --nproc-per-node=4 tensor_parallel_decode.py --new-tokens 32 --dtype float16
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F

RANK = int(os.environ.get("RANK", 0))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
VOCABULARY = 96


def log(message):
    if RANK == 0:
        print(message, flush=True)


class Layer(torch.nn.Module):
    """A transformer layer of which this GPU has some heads and some of the hidden units."""

    def __init__(self, weights, dim, heads, cache_shape, dtype):
        super().__init__()
        self.heads, self.head_dim = heads // WORLD_SIZE, dim // heads
        self.norms = [torch.ones(dim, dtype=dtype, device="cuda") for _ in range(2)]  # expect: device-string
        # Rows of q, k, v and the hidden units are dealt out by head; the rows that they meet again in are summed.
        q, k, v = weights(3 * dim, dim).chunk(3)
        mine = [each.chunk(WORLD_SIZE)[RANK] for each in (q, k, v)]
        self.qkv = torch.cat(mine).to(dtype).cuda()  # expect: device-method
        self.out = weights(dim, dim).chunk(WORLD_SIZE, 1)[RANK].to(dtype).cuda()  # expect: device-method
        self.up = weights(4 * dim, dim).chunk(WORLD_SIZE)[RANK].to(dtype).cuda()  # expect: device-method
        self.down = weights(dim, 4 * dim).chunk(WORLD_SIZE, 1)[RANK].to(dtype).cuda()  # expect: device-method
        batch, length = cache_shape
        shape = (batch, self.heads, length, self.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=f"cuda:{LOCAL_RANK}")  # expect: device-string
        self.values = torch.zeros_like(self.keys)

    def forward(self, x, start):
        batch, length, dim = x.shape
        end = start + length
        qkv = F.linear(F.rms_norm(x, (dim,), self.norms[0]), self.qkv)
        q, k, v = qkv.view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        self.keys[:, :, start:end], self.values[:, :, start:end] = k, v
        k, v = self.keys[:, :, :end], self.values[:, :, :end]
        seen = torch.ones(length, end, dtype=torch.bool, device=x.device).tril(start)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        y = F.linear(attended.transpose(1, 2).reshape(batch, length, -1), self.out)
        dist.all_reduce(y)
        x = x + y
        y = F.linear(F.silu(F.linear(F.rms_norm(x, (dim,), self.norms[1]), self.up)), self.down)
        dist.all_reduce(y)
        return x + y


class Decoder(torch.nn.Module):
    """The layers, and a vocabulary of which each GPU scores its part."""

    def __init__(self, args, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(args.seed)

        def weights(rows, columns):
            return torch.randn(rows, columns, generator=generator) * 1.5 / columns**0.5

        embedding = torch.randn(VOCABULARY, args.dim, generator=generator)
        self.embedding = embedding.to(dtype).cuda()  # expect: device-method
        scores = weights(VOCABULARY, args.dim).chunk(WORLD_SIZE)[RANK]
        self.scores = scores.to(dtype).cuda()  # expect: device-method
        shape = (args.batch, args.prompt_tokens + args.new_tokens)
        self.layers = torch.nn.ModuleList(
            Layer(weights, args.dim, args.heads, shape, dtype) for _ in range(args.layers)
        )

    def forward(self, tokens, start):
        x = self.embedding[tokens]
        for layer in self.layers:
            x = layer(x, start)
        mine = F.linear(x[:, -1], self.scores).contiguous()
        parts = [torch.empty_like(mine) for _ in range(WORLD_SIZE)]
        dist.all_gather(parts, mine)
        return torch.cat(parts, dim=-1).float()


@torch.inference_mode()
def generate(model, prompt, new_tokens):
    """Return the prompt and the `new_tokens` most likely tokens after it, one at a time."""
    tokens, seen, start = prompt, prompt, 0
    for _ in range(new_tokens):
        with torch.cuda.nvtx.range("decode" if start else "prefill"):  # expect: device-module
            following = model(tokens, start).argmax(-1, keepdim=True)
        start += tokens.shape[1]
        tokens, seen = following, torch.cat([seen, following], dim=1)
    return seen


def main():
    parser = argparse.ArgumentParser()
    for name, default in (("batch", 2), ("prompt-tokens", 5), ("new-tokens", 12), ("layers", 2), ("heads", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()

    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # expect: environment
    torch.cuda.set_device(LOCAL_RANK)  # expect: device-module
    dist.init_process_group(dist.Backend.NCCL)  # expect: backend
    torch.backends.cuda.enable_flash_sdp(True)  # expect: torch-backends
    properties = torch.cuda.get_device_properties(LOCAL_RANK)  # expect: device-module
    log(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, dtype {args.dtype}, nccl")

    model = Decoder(args, getattr(torch, args.dtype)).eval()
    prompt = torch.zeros(args.batch, args.prompt_tokens, dtype=torch.long, device="cuda")  # expect: device-string
    if RANK == 0:
        prompt.random_(VOCABULARY, generator=torch.Generator("cuda").manual_seed(1))  # expect: device-string
    dist.broadcast(prompt, src=0)
    begin = torch.cuda.Event(enable_timing=True)  # expect: device-module
    end = torch.cuda.Event(enable_timing=True)  # expect: device-module
    begin.record()
    seen = generate(model, prompt, args.new_tokens)
    end.record()
    torch.cuda.synchronize()  # expect: device-module
    for row in seen.tolist():
        log("tokens " + " ".join(map(str, row)))
    rate = args.batch * args.new_tokens / begin.elapsed_time(end) * 1000
    log(f"{rate:.0f} tokens/s, {torch.cuda.max_memory_allocated() / 2**20:.1f} MiB")  # expect: device-module
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
