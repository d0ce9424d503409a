"""What "auto" and None mean on this machine."""

from __future__ import annotations

import importlib.util
import warnings

import torch

from loader.affinity import Cores, usable_ids
from loader.backend import Backend
from loader.tune import Found
from shard.errors import FeedlineError

BACKENDS = ("auto", "dali", "torch")


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(usable_ids())


def resolve_device(device: str | torch.device) -> torch.device:
    """Give a device with its index.

    Raises:
        FeedlineError: neither CPU nor CUDA, or no such GPU.
    """
    try:
        resolved = torch.device(device)
    except RuntimeError:  # no kind that torch knows
        resolved = torch.device("meta")
    if resolved.type not in ("cpu", "cuda"):
        raise FeedlineError(
            f"device is {str(device)!r}; the loader feeds 'cpu' or 'cuda' (copy batches from the CPU)"
        )
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if (resolved.index or 0) >= count:
            others = f"'cuda:0' … 'cuda:{count - 1}'" if count else "'cpu'"
            raise FeedlineError(
                f"device is {str(device)!r}, and torch finds {count} GPUs here; give {others}"
            )
        if str(resolved) == "cuda":
            resolved = torch.device("cuda", torch.cuda.current_device())
    return resolved


def resolve_backend(backend: str, device: torch.device) -> str:
    """Give "dali" or "torch" for a backend's name.

    Raises:
        FeedlineError: unknown, or not installed.
    """
    if backend not in BACKENDS:
        raise FeedlineError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "torch" or (backend == "auto" and device.type == "cpu"):
        return "torch"  # on a CPU it measures faster: see docs/benchmarks.md
    if _dali_is_installed():
        return "dali"
    if backend == "dali":
        raise FeedlineError(
            "backend 'dali' needs the package nvidia-dali-cuda120 (Linux x86-64); use 'torch'"
        )
    warnings.warn(
        "nvidia-dali-cuda120 is not installed: images are decoded on the CPU, which may not keep up with a GPU",
        stacklevel=3,
    )
    return "torch"


def _dali_is_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # nothing at all of NVIDIA's
        return False


def make_backend(
    name: str,
    device: torch.device,
    threads: int,
    batch_size: int,
    *,
    timeout_s: float = 300.0,
    cores: Cores | None = None,
    found: Found | None = None,
) -> Backend:
    """Start a backend that `resolve_backend` named; see `Loader` for the arguments."""
    if name == "dali":
        from loader.dali_backend import DaliBackend  # only here: DALI has no wheel for some systems

        return DaliBackend(device, threads, batch_size, cores, found)
    from loader.torch_backend import TorchBackend

    return TorchBackend(device, threads, timeout_s, cores)
