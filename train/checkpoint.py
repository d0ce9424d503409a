"""Checkpoints: written whole or not at all, verified when read, loaded without running code from them.

The file is the zip archive that `torch.save` writes. Its format holds a CRC-32 of every entry, which `torch.load`
does not look at: `load` does, before anything of it is used.
"""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shard.errors import FeedlineError

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveConfig:
    """Checkpoints."""

    checkpoint_every: int | None = None
    """Steps between two checkpoints within an epoch; None: one at each epoch's end."""
    keep_last: int = 2
    """Newest checkpoints kept: last.pt, and the ones before it as step-*.pt; best.pt comes on top."""

    def __post_init__(self) -> None:
        """Reject intervals that never end, and a run without a checkpoint."""
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise FeedlineError(f"checkpoint_every is {self.checkpoint_every}; it must be at least 1")
        if self.keep_last < 1:
            raise FeedlineError(f"keep_last is {self.keep_last}; it must be at least 1")


class DamagedError(FeedlineError):
    """The file is not what was written."""


def save(path: Path, content: dict[str, Any], *, keep_as: Path | None = None) -> None:
    """Write `content` to `path`; what was there stays until the new one is whole.

    Args:
        path: the file.
        content: tensors, numbers, strings, lists, dicts.
        keep_as: name that the file which was there gets, in the same folder; None: it is replaced.

    Raises:
        FeedlineError: the disk does not take it.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            path.replace(keep_as)
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        # Torch turns the disk's error into one about its archive's positions.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise FeedlineError(
            f"cannot write the checkpoint {path} ({reason}): make room or mend the permissions and give the same "
            "command again; an earlier checkpoint is kept"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory and verify its checksums.

    Raises:
        DamagedError: truncated, or some byte of it has changed.
        FeedlineError: missing, or not a checkpoint of ours.
    """
    if not path.is_file():
        raise FeedlineError(f"there is no checkpoint {path}")
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(f"the checkpoint {path} cannot be read: {first}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FeedlineError(
            f"{path} is not a feedline checkpoint of format {FORMAT}; use --pretrained for weights"
        )
    return content


def about(path: Path) -> dict[str, Any]:
    """Entries config and classes of a checkpoint of ours, without reading weights; {} of any other file."""
    if not zipfile.is_zipfile(path):
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError):
        return {}  # who reads the weights says what is wrong
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    return {name: content[name] for name in ("config", "classes")}


def verify(path: Path) -> None:
    """Compare the checksum of every entry of what `torch.save` wrote; reads the whole file.

    Raises:
        DamagedError: names the file, and the entry where it is known.
        FileNotFoundError: there is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except FileNotFoundError:
        raise
    # What zipfile says about damage, according to where it is: names, sizes, flags, methods, data.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(f"the checkpoint {path} cannot be read: it is damaged ({reason})") from error
    if entry is not None:
        raise DamagedError(f"the checkpoint {path} cannot be read: it is damaged (checksum of {entry})")


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
