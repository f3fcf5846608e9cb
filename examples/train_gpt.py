"""Train a small GPT on the sources of Python's own standard library, on one rank or on many.

    python examples/train_gpt.py
    torchrun --nproc-per-node=4 examples/train_gpt.py --tp 2
    torchrun --nproc-per-node=4 --max-restarts=3 examples/train_gpt.py --checkpoint run --resume auto

The ranks form a mesh, data parallel x tensor parallel. Weights and batches come from the seed alone, so the
losses are those of one rank whatever the mesh; they differ by the rounding of sums, no more.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

import devices

VOCABULARY = 256  # the text is read as bytes

# How the modules lie along the axis "tp". A Colwise layer splits its outputs and the Rowwise layer behind it its
# inputs, so that each pair of layers costs one all-reduce; what stands between them works on whole heads, or on
# single hidden units, and needs none. Modules that are not named (the norms) are kept whole on every rank.
PLAN = {
    "embedding": RowwiseParallel(input_layouts=Replicate()),
    "blocks.*.attention.qkv": ColwiseParallel(),
    "blocks.*.attention.out": RowwiseParallel(),
    "blocks.*.mlp.up": ColwiseParallel(),
    "blocks.*.mlp.down": RowwiseParallel(),
    "head": ColwiseParallel(output_layouts=Replicate()),
}


def rotate(x: Tensor) -> Tensor:
    """Return queries or keys turned by angles that grow with their position, which is how attention knows it."""
    half = x.shape[-1] // 2
    speed = 10_000.0 ** -(torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * speed
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The outputs of qkv are laid out head by head, (query, key, value) each, so that a shard of them is some
        # whole heads; how many there are on this rank is what -1 finds out.
        q, k, v = self.qkv(x).unflatten(-1, (-1, 3 * self.size)).transpose(1, 2).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.1)
        for block in self.blocks:  # at first, a block adds nothing to what it gets
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.mlp.down.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


def read_text() -> tuple[Tensor, Tensor]:
    """Return the text to train on and the held-out text, which is every tenth file, as bytes."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = files[::10]
    del files[::10]
    text, held_out_text = (bytearray(b"\n".join(file.read_bytes() for file in part)) for part in (files, held_out))
    return torch.frombuffer(text, dtype=torch.uint8), torch.frombuffer(held_out_text, dtype=torch.uint8)


class Batches:
    """The windows of a text that this rank's share of each global batch holds.

    The global batch depends on the seed and the step only: it is the same on any mesh and after any restart.
    """

    def __init__(self, text: Tensor, batch: int, context: int, seed: int, mesh: DeviceMesh, device: torch.device):
        self.text, self.batch, self.context, self.seed, self.device = text, batch, context, seed, device
        self.share, self.shares = mesh.get_local_rank("dp"), mesh["dp"].size()

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_000 + step)
        starts = torch.randint(len(self.text) - self.context, (self.batch,), generator=generator)
        mine = starts.tensor_split(self.shares)[self.share]
        windows = self.text[mine[:, None] + torch.arange(self.context + 1)].long().to(self.device)
        return windows[:, :-1], windows[:, 1:]


def loss_of(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def train_step(model: GPT, optimizer: Optimizer, inputs: Tensor, targets: Tensor, mesh: DeviceMesh) -> float:
    """Take one step of the optimizer and return the loss of the global batch."""
    optimizer.zero_grad()
    loss = loss_of(model, inputs, targets)
    loss.backward()
    # The ranks of one tp group hold equal or complementary gradients already; what is left is the mean over dp, of
    # all gradients and the loss in one call. It is weighted because dp need not divide the batch.
    gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
    means = [loss.detach(), *gradients]
    devices.all_reduce(means, mesh["dp"], op="avg", weight=len(inputs), out=means)
    optimizer.step()
    return means[0].item()


def learning_rate(step: int, steps: int, peak: float) -> float:
    warm_up = min(1.0, (step + 1) / 20)
    return peak * warm_up * (0.55 + 0.45 * math.cos(math.pi * step / steps))


@torch.no_grad()
def held_out_loss(model: GPT, batches: Batches, count: int, mesh: DeviceMesh) -> float:
    shares = [batches(step) for step in range(count)]
    mean = torch.stack([loss_of(model, *share) for share in shares]).mean()
    return devices.all_reduce(mean, mesh["dp"], op="avg", weight=len(shares[0][0])).item()


@torch.no_grad()
def sample(model: GPT, prompt: str, length: int, context: int, seed: int, device: torch.device) -> str:
    """Return `prompt` continued by the model. Every rank takes part, and rank 0 draws for all."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(list(prompt.encode()), device=device)
    for _ in range(length):
        logits = model(tokens[None, -context:])[0, -1]
        drawn = torch.multinomial((logits.cpu() / 0.8).softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, devices.broadcast(drawn.to(device), src=0)])
    return bytes(tokens.tolist()).decode(errors="replace")


def save(folder: Path, model: GPT, optimizer: Optimizer, losses: list[float], rank: int) -> None:
    """Save a checkpoint that any mesh can resume. It gets its name when it is complete, and two are kept."""
    unfinished = folder / "unfinished"
    if rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a crash
    devices.barrier()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=unfinished)
    if rank == 0:
        (unfinished / "losses.json").write_text(json.dumps(losses))
        unfinished.rename(folder / f"step-{len(losses):06}")
        for old in sorted(folder.glob("step-*"))[:-2]:
            shutil.rmtree(old)


def resume(path: Path, model: GPT, optimizer: Optimizer) -> list[float]:
    """Load a checkpoint into the model and the optimizer, and return the losses up to there.

    torch unpickles a checkpoint's metadata: resume only what you trust.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    return json.loads((path / "losses.json").read_text())


def where_to_resume(options: argparse.Namespace, device: torch.device) -> Path | None:
    """Return the checkpoint to start from, or None to start afresh."""
    saved = options.checkpoint.glob("step-*") if options.checkpoint else ()
    newest = max((int(path.name.removeprefix("step-")) for path in saved), default=0)
    # Ranks may see a shared folder at different times; rank 0's view counts.
    newest = int(devices.broadcast(torch.tensor(newest, device=device), src=0))
    if options.resume == "auto":
        return options.checkpoint / f"step-{newest:06}" if newest else None
    if newest:
        # A later --resume auto would take the newest of them, which this run may not have written.
        raise SystemExit(f"{options.checkpoint} holds checkpoints: add --resume auto, or name another folder")
    return Path(options.resume) if options.resume else None


def draw(path: Path, losses: list[float]) -> None:
    from matplotlib.figure import Figure  # without pyplot it draws by Agg, and needs no display

    figure = Figure()
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses)
    axes.set(xlabel="step", ylabel="loss (nats per byte)")
    figure.savefig(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=300)
    add("--batch", type=int, default=32, help="windows in a global batch")
    add("--context", type=int, default=128, help="bytes in a window")
    add("--layers", type=int, default=2)
    add("--width", type=int, default=128)
    add("--heads", type=int, default=4)
    add("--learning-rate", type=float, default=5e-3)
    add("--dtype", choices=["float32", "float64"], default="float32")
    add("--seed", type=int, default=0)
    add("--dp", type=int, default=-1, help="data parallel ranks (-1: all that tp leaves)")
    add("--tp", type=int, default=1, help="tensor parallel ranks")
    add("--process-group", choices=["devices", "gloo"], default="devices", help="gloo is there to compare with")
    add("--checkpoint", type=Path, metavar="DIR", help="save checkpoints here")
    add("--save-every", type=int, default=100, metavar="STEPS")
    add("--resume", metavar="auto|PATH", help="auto: from the newest checkpoint in --checkpoint, if there is one")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="for losses.json and loss.png")
    add("--sample", type=int, default=200, help="bytes of text to generate at the end")
    options = parser.parse_args()
    if options.heads % options.tp or options.width % options.heads:
        parser.error("--tp must divide --heads, and --heads must divide --width")
    if options.resume == "auto" and options.checkpoint is None:
        parser.error("--resume auto needs --checkpoint")
    return options


def train(world: devices.World, options: argparse.Namespace) -> None:
    mesh = world.mesh({"dp": options.dp, "tp": options.tp})
    if options.batch < mesh["dp"].size():
        raise SystemExit(f"--batch {options.batch} leaves some of {mesh['dp'].size()} data parallel ranks without work")
    torch.manual_seed(options.seed)
    model = GPT(options.layers, options.width, options.heads)
    model.to(world.device, getattr(torch, options.dtype))
    devices.place(model, mesh["tp"], PLAN)
    # Two groups, because torch updates a list of DTensors or a list of plain tensors at once, not a mixture.
    placed = [p for p in model.parameters() if isinstance(p, DTensor)]
    norms = [p for p in model.parameters() if not isinstance(p, DTensor)]
    groups = [{"params": placed, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = AdamW(groups, betas=(0.9, 0.99), foreach=True)

    losses: list[float] = []
    if start := where_to_resume(options, world.device):
        losses = resume(start, model, optimizer)

    text, held_out = read_text()
    batches = Batches(text, options.batch, options.context, options.seed, mesh, world.device)
    per_step = options.batch * options.context
    with tqdm(total=options.steps * per_step, initial=len(losses) * per_step, unit="tok", unit_scale=True,
              disable=world.rank != 0, desc=f"dp {mesh['dp'].size()} x tp {mesh['tp'].size()}") as bar:  # fmt: skip
        for step in range(len(losses), options.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, options.steps, options.learning_rate)
            losses.append(train_step(model, optimizer, *batches(step), mesh))
            bar.update(per_step)
            bar.set_postfix(step=step + 1, loss=f"{losses[-1]:.4f}", refresh=False)
            if options.checkpoint and (len(losses) % options.save_every == 0 or len(losses) == options.steps):
                save(options.checkpoint, model, optimizer, losses, world.rank)

    held = Batches(held_out, options.batch, options.context, options.seed, mesh, world.device)
    result = {
        "losses": losses,
        "held_out": held_out_loss(model, held, 4, mesh),
        "sample": sample(model, "def ", options.sample, options.context, options.seed, world.device),
    }
    if world.rank == 0:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "losses.json").write_text(json.dumps(result))
        draw(options.out / "loss.png", losses)
        print(f"\n{result['sample']}\n\nfinal loss {losses[-1]:.4f}, held-out loss {result['held_out']:.4f}")
        print(f"the loss curve is in {options.out / 'loss.png'}")


def main() -> None:
    options = parse()
    if options.process_group == "gloo":
        dist.init_process_group("gloo")  # devices.init() then adopts it
    with devices.init() as world:
        train(world, options)
    if options.process_group == "gloo":
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
