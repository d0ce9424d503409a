"""How numbers are computed: precision, determinism, and what torch.compile compiles and keeps."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from shard.errors import FeedlineError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
_AMPERE = (8, 0)  # compute capability of the first GPUs with bf16 and TF32
_GPU_ONLY = {"fp16": "'bf16' or 'fp32'", "tf32": "'bf16' or 'fp32'"}


def autocast_dtype(precision: str) -> torch.dtype:
    """Type of matrix products and convolutions."""
    return _DTYPES[precision]


def set_numerics(precision: str, device: torch.device, *, deterministic: bool) -> None:
    """Set this process's switches for a precision.

    "fp32" means fp32: TF32, which cuDNN takes by default, is on for "tf32" only.

    Raises:
        FeedlineError: the precision needs a GPU, or a newer one.
    """
    if precision in _GPU_ONLY and device.type == "cpu":
        raise FeedlineError(
            f"precision is {precision!r}, which needs a GPU; on a CPU use {_GPU_ONLY[precision]}"
        )
    if precision in ("bf16", "tf32") and device.type == "cuda":
        _require_ampere(precision, device)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if deterministic:
        # Read once, at the process's first product on a GPU; see torch.use_deterministic_algorithms.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic  # shapes stay the same: let it find the fastest


def _require_ampere(precision: str, device: torch.device) -> None:
    """Torch would emulate bf16 slowly, and compute fp32 where TF32 is asked for, without a word."""
    capability = torch.cuda.get_device_capability(device)
    if capability < _AMPERE:
        other = "fp16" if precision == "bf16" else "fp16 or fp32"
        raise FeedlineError(
            f"precision is {precision!r}, which {torch.cuda.get_device_name(device)} (compute capability "
            f"{capability[0]}.{capability[1]}) does not have; use --precision {other}"
        )


def prepare_compilation(sizes: int) -> None:
    """Keep compiled code between runs, and let `sizes` image sizes be compiled.

    The cache lies in $TORCHINDUCTOR_CACHE_DIR, else in ~/.cache/feedline/inductor.
    """
    # Torch itself writes its default, a folder in /tmp, into the variable when it is imported.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path.home() / ".cache" / "feedline" / "inductor")
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, sizes + 8)  # beyond it a size would run uncompiled


class CompileWatch:
    """Counts graphs that torch.compile makes for a shape that it should know by now.

    Attributes:
        graphs: compiled within the watched stretches.
        recompiled: of them, those after the warm-up of their shape.
    """

    def __init__(self, warmup: int = 2) -> None:
        self.graphs = self.recompiled = 0
        self._warmup = warmup
        self._seen: dict[tuple[int, ...], int] = {}
        self._before = 0

    def start(self) -> None:
        """Begin a watched stretch."""
        self._before = _compiled()

    def stop(self, shape: tuple[int, ...]) -> None:
        """End it: a step on inputs of that shape. Reads a counter of this process, not the device."""
        new = _compiled() - self._before
        done = self._seen.get(shape, 0)
        self._seen[shape] = done + 1
        self.graphs += new
        if done >= self._warmup:
            self.recompiled += new

    def warning(self) -> str:
        """Line about steps that were compiled again, which costs minutes and has a cause; empty if none was."""
        if not self.recompiled:
            return ""
        return (
            f"warning: torch.compile made {self.recompiled} more graph(s) after the warm-up; "
            "TORCH_LOGS=recompiles says why"
        )

    def forget(self) -> None:
        """The step was compiled anew on purpose."""
        self._seen.clear()


def _compiled() -> int:
    return int(counters["stats"]["unique_graphs"])
