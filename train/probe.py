"""Linear probe: a logistic regression on frozen features, and a new head that starts as it.

Source of the latter: Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution"
(LP-FT), 2022: a head that starts at random pulls the features about while it learns; one that fits them does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from train.features import Extractor, Features
from train.head import classifiers
from train.model import Normalized
from train.multi_label import average_precisions

# A head that is sure of the few images it was fitted to has little to learn from them but to be less sure, which spoils
# the features: fine-tuning on 500 images a class came to 78.9 % with C = 1, and to 85.1 % with 0.01 (docs/recipes.md).
HEAD_C = 0.01
_ITERATIONS = 100
_CLOSE = 1e-2  # of the largest logit


@dataclass(frozen=True, slots=True)
class Probe:
    """Attributes: weight, float32 [C, D], and bias, float32 [C], of features as the network gives them."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of features [B, D]."""
        return F.linear(values, self.weight, self.bias)

    def score(self, held_out: Features) -> float:
        """Percent of the samples whose label it gives; of a multi-label dataset mAP, percent."""
        logits = self(held_out.values).cpu()
        if held_out.labels.ndim == 2:
            found = average_precisions(held_out.labels.numpy() > 0, logits.numpy())
            return 100 * float(found.mean())
        right = logits.argmax(dim=1) == held_out.labels
        return 100 * float(right.double().mean())


def fit(train: Features, classes: int, c: float = 1.0) -> Probe:
    """Logistic regression on standardised features; multi-label: one for each class.

    Args:
        train: of labelled samples.
        classes: number of them.
        c: inverse strength of the penalty on the weights, as scikit-learn's C.
    """
    device = train.values.device
    deviation, mean = torch.std_mean(train.values, dim=0, correction=0)
    deviation = deviation.clamp(min=1e-6)
    x = (train.values - mean) / deviation
    y = train.labels.to(device)
    weight = torch.zeros(classes, x.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = F.linear(x, weight, bias)
        if y.ndim == 2:
            wrong = F.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(y)
        else:
            wrong = F.cross_entropy(logits, y)
        found = wrong + weight.square().sum() / (2 * c * len(y))
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        scaled = weight / deviation
        return Probe(scaled, bias - scaled @ mean)


@torch.no_grad()
def start_head(net: Normalized, probe: Probe, side: int) -> bool:
    """Make the classifier of `net` give the probe's logits.

    Networks that multiply what the classifier gives by a constant are met by its inverse. Whether it worked is tried on
    two images of noise.

    Args:
        net: in evaluation mode.
        probe: on the features of `net`.
        side: of an image that it takes, pixels.

    Returns:
        False, and leaves the head alone, if it is anything but one linear layer with bias on the features.
    """
    found = list(classifiers(net.model).values())
    if len(found) != 1 or not isinstance(found[0], (nn.Linear, nn.Conv2d)) or found[0].bias is None:
        return False
    weight, bias = found[0].weight, found[0].bias
    if weight.numel() != probe.weight.numel():
        return False
    before = weight.clone(), bias.clone()
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, side, side, 3), dtype=torch.uint8, generator=noise).to(weight.device)
    wanted = probe(Extractor(net)(images))
    weight.copy_(probe.weight.view_as(weight))
    bias.copy_(probe.bias)
    given = net(images)
    gain = (wanted * given).sum() / given.square().sum()
    weight.mul_(gain)
    bias.mul_(gain)
    if (net(images) - wanted).abs().max() <= _CLOSE * wanted.abs().max():
        return True
    weight.copy_(before[0])
    bias.copy_(before[1])
    return False
