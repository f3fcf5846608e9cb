"""Train a classifier with DistributedDataParallel on NVIDIA GPUs over nccl.

torchrun --nproc-per-node=8 ddp_classifier.py --epochs 3 --amp
"""

import argparse
import os
import random

import torch
import torch.backends.cudnn as cudnn  # expect: torch-backends
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.cuda.amp import GradScaler, autocast  # expect: device-module, device-module
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817 - its name in most programs
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

CLASSES = 4


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(width * 16, CLASSES)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def seed_everything(seed):
    random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)  # expect: device-module


def make_data(samples):
    """Return images in which one quarter is brighter than the others: which one is the class."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    images = torch.randn(samples, 1, 8, 8, generator=generator) * 0.5
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1.0
    return TensorDataset(images, labels)


def train_epoch(model, loader, optimizer, scaler, local_rank, args):
    model.train()
    total, batches = torch.zeros(1).cuda(local_rank), 0  # expect: device-method
    for images, labels in loader:
        images = images.cuda(local_rank, non_blocking=True)  # expect: device-method
        labels = labels.cuda(local_rank, non_blocking=True)  # expect: device-method
        optimizer.zero_grad(set_to_none=True)
        with autocast(enabled=args.amp):  # expect: device-module
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.detach()
        batches += 1
    dist.all_reduce(total)
    return total.item() / batches / dist.get_world_size()


@torch.no_grad()
def evaluate(model, dataset, rank):
    model.eval()
    device = next(model.parameters()).device
    right = torch.zeros(1, device=device)
    for index in range(rank, len(dataset), dist.get_world_size()):
        image, label = dataset[index]
        right += model(image[None].to(device)).argmax() == label.to(device)
    dist.all_reduce(right, op=dist.ReduceOp.SUM)
    return right.item() / len(dataset)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16, help="over all GPUs")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--amp", action="store_true", help="mixed precision on CUDA")
    args = parser.parse_args()

    rank = int(os.environ["RANK"])
    local_rank = int(os.environ["LOCAL_RANK"])
    world_size = int(os.environ["WORLD_SIZE"])
    os.environ.setdefault("NCCL_DEBUG", "WARN")  # expect: environment
    torch.cuda.set_device(local_rank)  # expect: device-module
    dist.init_process_group(backend="nccl", init_method="env://")  # expect: backend
    cudnn.benchmark = True  # expect: torch-backends
    seed_everything(0)

    dataset = make_data(args.samples)
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=args.batch_size // world_size, sampler=sampler, pin_memory=True)

    model = DDP(
        Net(args.width).cuda(local_rank),  # expect: device-method
        device_ids=[local_rank],  # expect: device-ids
        output_device=local_rank,  # expect: device-ids
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    scaler = GradScaler(enabled=args.amp)  # expect: device-module

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        loss = train_epoch(model, loader, optimizer, scaler, local_rank, args)
        if rank == 0:
            print(f"epoch {epoch} loss {loss:.6f}")

    accuracy = evaluate(model.module, dataset, rank)
    dist.barrier(device_ids=[local_rank])  # expect: device-ids
    torch.cuda.synchronize()  # expect: device-module
    if rank == 0:
        print(f"accuracy {accuracy:.4f}")
        peak = torch.cuda.max_memory_allocated(local_rank) / 2**20  # expect: device-module
        name = torch.cuda.get_device_name(local_rank)  # expect: device-module
        print(f"{name}: {peak:.1f} MiB of CUDA memory at most")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
