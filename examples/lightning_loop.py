"""PyTorch Lightning with the loader as its dataloaders.

    python examples/lightning_loop.py DATASET [--devices N] [--stop-after STEPS]

Lightning takes the loader as it is, and puts its position (`state_dict`) into every checkpoint, so that
`fit(ckpt_path=…)` goes on in the middle of an epoch with exactly the samples that are left. A few hooks are needed:
`on_train_start` and `on_train_epoch_start` set the epoch, because Lightning ends an epoch without asking for more
than its last batch, and restores no position after an epoch's end; `on_validation_epoch_start` rewinds;
`transfer_batch_to_device` does nothing. Each rank makes its own loader with its rank and the world size. Lightning,
which would give a `DataLoader` a distributed sampler, leaves it alone.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from loader import Batch, Loader, RandomResizedCrop, ResizeCenterCrop, Transform
from shard.dataset import Dataset


class Data(L.LightningDataModule):
    """Training and validation loaders of this rank."""

    def __init__(self, data: str, batch_size: int) -> None:
        super().__init__()
        self.data, self.batch_size = data, batch_size

    def train_dataloader(self) -> Loader:
        """Shuffled, only whole global batches."""
        return self._loader(
            "train", RandomResizedCrop(size=32, scale=(0.35, 1.0)), shuffle=True, drop_last=True
        )

    def val_dataloader(self) -> Loader:
        """Every sample once; the last batch is padded."""
        return self._loader("val", ResizeCenterCrop(size=32, resize=32))

    def _loader(self, split: str, transform: Transform, **settings: Any) -> Loader:
        trainer = self.trainer
        return Loader(
            self.data,
            split,
            transform,
            batch_size=self.batch_size // trainer.world_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            local_world_size=trainer.num_devices,
            device=trainer.strategy.root_device,
            **settings,
        )


class Classifier(L.LightningModule):
    """A very small network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, num_classes),
        )  # fmt: skip
        self.losses: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of uint8 images [B, H, W, 3], as the loader gives them."""
        return self.net(images.permute(0, 3, 1, 2) / 255 - 0.5)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave it: the loader decodes on the device."""
        return batch

    def on_train_start(self) -> None:
        """Go to the epoch that is resumed; a position in it is kept."""
        self.trainer.train_dataloader.set_epoch(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Go to the epoch's start; Lightning does not call this for an epoch that is resumed."""
        self.trainer.train_dataloader.set_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Samples that could not be decoded are masked, and count for nothing."""
        loss = F.cross_entropy(self(batch.images)[batch.valid], batch.labels[batch.valid])
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Print the mean loss of this run's part of the epoch."""
        mean = self.trainer.strategy.reduce(torch.stack(self.losses).mean())
        self.losses.clear()
        if self.trainer.is_global_zero:
            print(f"epoch {self.current_epoch + 1}: loss {mean:.6f}")

    def on_validation_epoch_start(self) -> None:
        """Begin at the first sample, also after Lightning's sanity check, which stops after two batches."""
        self.trainer.val_dataloaders.rewind()
        self.right = torch.zeros(2, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what is right; padding does not count."""
        right = (self(batch.images).argmax(1) == batch.labels) & batch.valid
        self.right += torch.stack((right.sum(), batch.valid.sum()))

    def on_validation_epoch_end(self) -> None:
        """Add the ranks up."""
        right, count = self.trainer.strategy.reduce(self.right, reduce_op="sum").tolist()
        self.log("accuracy", right / count, sync_dist=True)
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            print(f"accuracy {right / count:.4f} of {count:.0f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main() -> None:
    """Train, from the beginning or from a checkpoint on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATASET")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16, help="of all ranks together (default: 16)")
    parser.add_argument("--devices", type=int, default=1, help="processes, or GPUs (default: 1)")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("lightning_loop.ckpt"), help="go on from it, if it is there"
    )
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="write the checkpoint then, and stop")
    options = parser.parse_args()
    if options.batch_size % options.devices:
        parser.error(f"--batch-size {options.batch_size} does not divide into {options.devices} processes")

    L.seed_everything(0, verbose=False)
    callbacks = []
    if options.stop_after is not None:
        file = {"dirpath": options.checkpoint.parent, "filename": options.checkpoint.stem}
        every = options.stop_after
        callbacks.append(ModelCheckpoint(**file, every_n_train_steps=every, enable_version_counter=False))
    trainer = L.Trainer(
        max_epochs=options.epochs,
        max_steps=options.stop_after or -1,
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    resume = options.checkpoint if options.checkpoint.exists() else None
    model = Classifier(len(Dataset.open(options.data).classes))
    trainer.fit(model, datamodule=Data(options.data, options.batch_size), ckpt_path=resume)


if __name__ == "__main__":
    main()
