"""How much memory a step takes: of the parts on a CPU, measured on a GPU; and the largest batch that fits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from loader import Batch
from train.step import TrainStep
from train.synthetic import synthetic_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one rank's training.

    Attributes:
        weights: parameters and buffers.
        gradients: of the parameters.
        optimizer: its state.
        activations: what the forward pass of one micro-batch keeps for the backward pass, the batch included.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; what kernels take for themselves in between comes on top."""
        return self.weights + self.gradients + self.optimizer + self.activations


def measure_memory(step: TrainStep, batch: Batch) -> Memory:
    """Count the bytes of one step of training on `batch`, by doing one with learning rate 0."""
    storages: dict[int, int] = {}
    fixed = {p.untyped_storage().data_ptr() for p in step.net.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step.forward_backward(batch.images, batch.labels, batch.valid)
    gradients = _bytes(p.grad for p in step.net.parameters())
    step.update(0.0)
    state = [
        t for entry in step.optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)
    ]
    return Memory(
        weights=_bytes([*step.net.parameters(), *step.net.buffers()]),
        gradients=gradients,
        optimizer=_bytes(state),
        activations=sum(storages.values()) + _bytes([batch.images]),
    )


def largest(fits: Callable[[int], bool], limit: int, multiple: int = 8, least: int = 1) -> tuple[int, int]:
    """Find the largest power of two, and the largest multiple of `multiple` (or that power), that `fits`.

    Args:
        fits: whether a batch of this size fits; of a larger one it is not asked once it was False.
        limit: no larger one is tried.
        multiple: step of the finer search.
        least: the first that is tried, a power of two.

    Returns:
        Both sizes; (0, 0) if not even `least` fit.
    """
    power, size = 0, least
    while size <= limit and fits(size):
        power, size = size, 2 * size
    low, high = power // multiple, (min(size - 1, limit)) // multiple
    while low < high:
        middle = (low + high + 1) // 2
        if middle * multiple <= power or fits(middle * multiple):
            low = middle
        else:
            high = middle - 1
    return power, max(power, low * multiple)


def fits_on_gpu(step: TrainStep, side: int, classes: int) -> Callable[[int], bool]:
    """Try a whole step on the GPU with a batch of noise; out of memory means that it does not fit."""

    def fits(batch_size: int) -> bool:
        try:
            _one_step(step, synthetic_batch(batch_size, side, classes, step.world.device))
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            step.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()

    return fits


def fits_in_budget(step: TrainStep, side: int, classes: int, budget_bytes: int) -> Callable[[int], bool]:
    """Compare what a step takes with a budget: for a CPU, where too much memory ends in a killed process.

    Sizes are extrapolated from one of 8 samples: activations grow with the batch, the rest does not.
    """
    probe = 8
    found = measure_memory(step, synthetic_batch(probe, side, classes, step.world.device))
    fixed = found.total - found.activations
    return lambda batch_size: fixed + found.activations * batch_size / probe <= budget_bytes


def _one_step(step: TrainStep, batch: Batch) -> None:
    step.forward_backward(batch.images, batch.labels, batch.valid)
    step.update(0.0)
    torch.cuda.synchronize()


def _bytes(tensors: object) -> int:
    return sum(t.nbytes for t in tensors if t is not None)  # type: ignore[attr-defined]
