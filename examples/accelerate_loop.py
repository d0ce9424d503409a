"""Hugging Face Accelerate with the loader, which shards by rank and decodes on the device itself.

    python examples/accelerate_loop.py DATASET
    torchrun --nproc-per-node 2 examples/accelerate_loop.py DATASET

Only model and optimizer go through `accelerator.prepare`. The loader does not: it already gives each rank its share
of every global batch, on that rank's device, and what is prepared must not be sharded a second time. (`prepare` would
hand it back untouched anyway, because it is no `DataLoader`.) `--batch-size` is the global batch: any number of
processes that divides it trains on the same batches.
"""

import argparse
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from loader import Loader, RandomResizedCrop, ResizeCenterCrop, Transform


def make_loader(
    accelerator: Accelerator, data: str, split: str, transform: Transform, batch_size: int
) -> Loader:
    """Loader of this process's share."""
    training = split == "train"
    return Loader(
        data,
        split,
        transform,
        batch_size=batch_size // accelerator.num_processes,
        shuffle=training,
        drop_last=training,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        local_world_size=int(
            os.environ.get("LOCAL_WORLD_SIZE", "1")
        ),  # those on this machine share its cores
        device=accelerator.device,
    )


def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits [B, classes] of uint8 images [B, H, W, 3], as the loader gives them."""
    return model(images.permute(0, 3, 1, 2) / 255 - 0.5)


def evaluate(accelerator: Accelerator, model: nn.Module, loader: Loader) -> float:
    """Share of all samples that is classified correctly; padding does not count."""
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    loader.rewind()
    with torch.no_grad():
        for batch in loader:
            correct += ((predict(model, batch.images).argmax(1) == batch.labels) & batch.valid).sum()
    model.train()
    return int(accelerator.reduce(correct, "sum")) / loader.num_samples


def main() -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATASET")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together (default: 16)")
    parser.add_argument("--checkpoint", type=Path, help="folder; goes on from it if it exists")
    options = parser.parse_args()

    # Without `cpu`, Accelerate takes each of torchrun's processes on a machine without GPU for a run of its own.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    accelerator.print(f"processes: {accelerator.num_processes}")
    torch.manual_seed(0)
    crop = RandomResizedCrop(size=32, scale=(0.35, 1.0))
    train_loader = make_loader(accelerator, options.data, "train", crop, options.batch_size)
    val_loader = make_loader(
        accelerator, options.data, "val", ResizeCenterCrop(size=32, resize=32), options.batch_size
    )
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, train_loader.num_classes),
    )  # fmt: skip
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01))
    accelerator.register_for_checkpointing(train_loader)  # its position, the same on all ranks
    if options.checkpoint is not None and options.checkpoint.exists():
        accelerator.load_state(str(options.checkpoint))
    with train_loader, val_loader:
        while train_loader.epoch < options.epochs:
            total = torch.zeros((), device=accelerator.device)
            for batch in train_loader:
                loss = F.cross_entropy(predict(model, batch.images)[batch.valid], batch.labels[batch.valid])
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                total += loss.detach()
            mean = float(accelerator.reduce(total, "mean")) / len(train_loader)
            accelerator.print(f"epoch {train_loader.epoch}: loss {mean:.6f}")
            if options.checkpoint is not None:
                accelerator.save_state(str(options.checkpoint))
        accelerator.print(f"accuracy {evaluate(accelerator, model, val_loader):.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
