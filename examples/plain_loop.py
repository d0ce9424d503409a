"""A plain PyTorch loop around the loader, which goes on where it was stopped.

    python examples/plain_loop.py DATASET [--stop-after STEPS]

Give the same command again after a stop: model and position come out of the state file, and the run ends with the
same weights as one that was never stopped. DATASET is a folder made by `python -m shard build`, with splits train
and val.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from loader import Loader, RandomResizedCrop, ResizeCenterCrop


def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits [B, classes] of uint8 images [B, H, W, 3], as the loader gives them."""
    return model(images.permute(0, 3, 1, 2) / 255 - 0.5)


def train(data: str, state: Path, epochs: int, batch_size: int, stop_after: int | None) -> nn.Module:
    """Train from the beginning, or from the state file on."""
    torch.manual_seed(0)
    crop = RandomResizedCrop(size=32, scale=(0.35, 1.0))
    with Loader(data, "train", crop, batch_size=batch_size, shuffle=True, drop_last=True) as loader:
        model = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, loader.num_classes),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        parts = {"model": model, "optimizer": optimizer, "loader": loader}
        if state.exists():
            saved = torch.load(state)
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            print(f"going on in epoch {loader.epoch} after {loader.samples_consumed} samples")
        steps = 0
        while loader.epoch < epochs:
            loss = None  # and stays it where the stop was at the end of an epoch
            for batch in loader:  # the rest of the epoch
                # Samples that could not be decoded are masked, and count for nothing.
                loss = F.cross_entropy(predict(model, batch.images)[batch.valid], batch.labels[batch.valid])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                if steps == stop_after:
                    torch.save({name: part.state_dict() for name, part in parts.items()}, state)
                    raise SystemExit(f"stopped after {steps} steps; the same command goes on")
            if loss is not None:
                print(f"epoch {loader.epoch}: loss {loss.item():.6f}")
    return model


def evaluate(model: nn.Module, data: str, batch_size: int) -> float:
    """Share of the split val that is classified correctly, every sample counted once."""
    correct = 0
    with (
        Loader(data, "val", ResizeCenterCrop(size=32, resize=32), batch_size=batch_size) as loader,
        torch.no_grad(),
    ):
        for batch in loader:
            right = predict(model, batch.images).argmax(1) == batch.labels
            correct += int((right & batch.valid).sum())  # the last batch is padded
        return correct / loader.num_samples


def main() -> None:
    """Read the flags, train and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATASET")
    parser.add_argument("--state", type=Path, default=Path("plain_loop.pt"), help="default: plain_loop.pt")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--stop-after", type=int, metavar="STEPS")
    options = parser.parse_args()
    model = train(options.data, options.state, options.epochs, options.batch_size, options.stop_after)
    print(f"accuracy {evaluate(model, options.data, options.batch_size):.4f}")


if __name__ == "__main__":
    main()
