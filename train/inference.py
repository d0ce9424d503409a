"""The forward pass of a trained network, as its run evaluated it: precision and mirrored images included."""

from __future__ import annotations

import torch

from train.evaluate import mirrored
from train.numerics import autocast_dtype, set_numerics
from train.trained import Trained

TOP = 5  # classes kept of every sample


class Network:
    """Logits and probabilities of images. Not compiled: shapes may vary, and a pass over a split is short.

    Args:
        trained: the network, on `device`.
        device: where it computes.
        precision: bf16, fp16, tf32 or fp32; None: the run's.
        flip_tta: average the logits of every image and its mirror image; None: as the run did.

    Attributes:
        precision: what it came to.
        flip_tta: what it came to.

    Raises:
        FeedlineError: the device cannot compute in this precision.
    """

    def __init__(
        self,
        trained: Trained,
        device: torch.device,
        *,
        precision: str | None = None,
        flip_tta: bool | None = None,
    ) -> None:
        run = trained.config
        self.device, self._net = device, trained.net.to(device)
        self._multi_label = trained.multi_label
        self.precision = run.step.precision if precision is None else precision
        self.flip_tta = run.evaluation.flip_tta if flip_tta is None else flip_tta
        set_numerics(self.precision, device, deterministic=run.step.deterministic)
        torch.backends.cudnn.benchmark = (
            False  # ranks that find different kernels the fastest would round differently
        )
        self._predict = mirrored(self._forward) if self.flip_tta else self._forward

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B, classes] of uint8 images [B, H, W, 3]."""
        return self._predict(images).float()

    def likeliest(self, images: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `top_classes`, of uint8 images [B, H, W, 3]; of a multi-label run each class has its own probability."""
        return top_classes(self.logits(images), count, multi_label=self._multi_label)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        dtype = autocast_dtype(self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            logits: torch.Tensor = self._net(images)
        return logits


def top_classes(
    logits: torch.Tensor, count: int, *, multi_label: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest classes, all where there are fewer: probabilities float32 [B, k], labels int64 [B, k].

    By their logits, as training evaluates: probabilities that differ by less than they can say, or are all 0 beside a
    sure one, tell no order.
    """
    best = logits.topk(min(count, logits.shape[1]), dim=1).indices
    probabilities = logits.sigmoid() if multi_label else logits.softmax(1)
    return probabilities.gather(1, best), best
