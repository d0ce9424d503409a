"""Checkpoints: written whole or not at all, loaded without running code from them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from shard.errors import FeedlineError

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`; what was there stays until the new one is whole.

    Args:
        path: the file.
        content: tensors, numbers, strings, lists, dicts.

    Raises:
        FeedlineError: the disk does not take it.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise FeedlineError(
            f"cannot write the checkpoint {path} ({error}): make room or mend the permissions and give the same "
            "command again; an earlier checkpoint is kept"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory.

    Raises:
        FeedlineError: missing, damaged, or not a checkpoint of ours.
    """
    if not path.is_file():
        raise FeedlineError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeedlineError(f"the checkpoint {path} cannot be read: {first}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FeedlineError(
            f"{path} is not a feedline checkpoint of format {FORMAT}; use --pretrained for weights"
        )
    return content


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of this process's generators (for dropout and the like; the loader has none)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
