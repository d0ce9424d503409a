"""Whose a run folder is, before a run writes there: nobody's files but those of a run of ours are overwritten."""

from __future__ import annotations

import os
from pathlib import Path

from shard.errors import FeedlineError
from train import checkpoint
from train.config import load
from train.pretrained import FROM_TIMM, weights_file
from train.run_folder import RunFolder


def require_free(folder: RunFolder) -> None:
    """Make sure that nothing but a run of ours is where a run writes and removes files.

    To be called before the folder is locked, which makes files in it.

    Raises:
        FeedlineError: somebody else's are there; names them.
    """
    try:
        theirs = [] if _is_run(folder) else [path for path in folder.written() if _in_the_way(path)]
    except OSError as error:
        raise FeedlineError(
            f"cannot read the run folder {folder.root}: {error.strerror}; mend its permissions, or choose another "
            "--run-dir"
        ) from error
    if theirs:
        names = ", ".join(f"{path.name}/" if path.is_dir() else path.name for path in theirs)
        raise FeedlineError(
            f"the run folder {folder.root} is no run of ours, and holds {names}, where a run writes; choose another "
            "--run-dir, or move them away"
        )


def require_kept(folder: RunFolder, pretrained: Path | None) -> None:
    """Make sure that a fresh run does not remove the weights that it is to start from.

    Raises:
        FeedlineError: the run that is to be cleared away holds them.
    """
    if pretrained is None or pretrained == FROM_TIMM:
        return
    path = weights_file(pretrained)
    lost = any(path.samefile(other) for other in folder.own_checkpoints() if other.exists())
    if lost or path.resolve().is_relative_to(folder.evaluations.resolve()):
        raise FeedlineError(
            f"pretrained is {str(pretrained)!r}, but a fresh run in {folder.root} would remove {path}; choose another "
            "--run-dir"
        )


def _is_run(folder: RunFolder) -> bool:
    """Whether a run of ours has been in the folder; a copy of one may lack what begins with a dot.

    A configuration alone says nothing, since it may be what somebody wrote for --config; nor does a checkpoint alone.
    """
    if folder.started.exists():
        return True
    if not folder.config.exists():
        return False
    try:
        load(folder.config)
    except (FeedlineError, ValueError):  # not our keys; not text
        return False
    return any(checkpoint.about(path) for path in folder.own_checkpoints() if path.is_file())


def _in_the_way(path: Path) -> bool:
    """Whether there is anything to lose: a run that was killed at once leaves an empty folder, mkfs a lost+found."""
    if path.is_dir() and not path.suffix:
        with os.scandir(path) as entries:
            return any(entry.name != "lost+found" for entry in entries)
    return os.path.lexists(path)
