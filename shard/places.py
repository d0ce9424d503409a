"""Where a build works, who holds it, and what an earlier build left there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shard.dataset import FORMAT, INDEX, MANIFEST, STAGING
from shard.errors import FeedlineError
from shard.index import CHECKSUMS, DUPLICATES, REJECTED, REPAIRED
from shard.storage import is_remote, location, names_in, storage_errors, write_whole

_MARK = "overwritten"  # among the records: an earlier dataset is being removed


@dataclass(frozen=True, slots=True)
class Places:
    """Where a build works.

    Attributes:
        target: the dataset.
        records: records of finished shards, and the plan's fingerprint; in the target, so that any machine goes on.
        staging: local folder for files under way.
    """

    target: Path
    records: Path
    staging: Path

    @classmethod
    def of(cls, destination: str | Path, staging: str | Path | None) -> Places:
        """Places of a build into `destination`.

        Raises:
            FeedlineError: `staging` is given for a destination that needs none.
        """
        target = location(destination)
        if not is_remote(target):
            if staging is not None:
                raise FeedlineError(
                    f"staging is {staging}, but {target} is on a disk and needs none; leave it out"
                )
            return cls(target, target / STAGING, target / STAGING)
        # A folder of its own: it is removed at the end.
        name = f"feedline-{hashlib.sha256(str(target).encode()).hexdigest()[:16]}"
        return cls(target, target / STAGING, Path(staging or tempfile.gettempdir(), name))


@contextmanager
def locked(places: Places) -> Iterator[None]:
    """Hold the build's lock; the system releases it when the process ends, however it ends."""
    target, staging, new = places.target, places.staging, not places.target.exists()
    if not new and not is_remote(target) and not target.is_dir():
        raise FeedlineError(f"destination {target} is a file; choose a new folder")
    if not new and not (target / MANIFEST).exists() and not places.records.exists() and any(target.iterdir()):
        raise FeedlineError(f"{target} is not empty and was not made by `shard build`; choose a new folder")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = (staging / "lock").open("w")
    except OSError as error:
        raise FeedlineError(f"cannot write to {staging}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FeedlineError(
                f"another build is writing to {target}; wait for it or choose another folder"
            ) from error
        try:
            yield
        finally:
            # A refusal must leave the folder as it was.
            if names_in(staging) == {"lock"}:
                shutil.rmtree(staging)
                if new and not is_remote(target):
                    target.rmdir()


def forget_spooled(places: Places) -> None:
    """Remove what an earlier build laid out of its source; records stay, and with them its finished shards."""
    with storage_errors("remove files in", places.staging):
        for path in places.staging.iterdir():
            if path.name != "lock" and not _is_record(path.name):
                path.unlink()


def remove_earlier(places: Places) -> None:
    """Remove only what a build makes, the manifest first: nobody shall open half a dataset.

    What this build has spooled of its source stays.

    Raises:
        FeedlineError: the target's shards were made by somebody else, or it cannot be written to.
    """
    target = places.target
    require_ours(target)
    # Kept until the next plan: whatever ends this, the same command finds a build to go on from.
    _note(places, _MARK, "")
    with storage_errors("remove files in", target):
        for name in (MANIFEST, CHECKSUMS, REJECTED, REPAIRED, DUPLICATES):
            (target / name).unlink(missing_ok=True)
        # Records before the shards: none shall speak of one that is gone.
        for name in filter(_is_record, names_in(places.records) - {_MARK}):
            (places.records / name).unlink()
        for pattern in ("*/shard-*.tar", "*/shard-*.idx", f"*/{INDEX}"):
            for path in list(target.glob(pattern)):
                path.unlink()


def _is_record(name: str) -> bool:
    """Whether a file in a local build's only folder is of what is finished, and not spooled or under way."""
    return name in ("plan", _MARK) or name.endswith(".json")


def require_ours(target: Path) -> None:
    """Make sure that --overwrite may replace what is in the target.

    Raises:
        FeedlineError: it was made by somebody else.
    """
    path = target / MANIFEST
    with storage_errors("read", path):
        text = path.read_text(errors="replace") if path.exists() else "null"
    try:
        manifest = json.loads(text)
    except ValueError:
        return  # damaged; other programs' were whole
    if manifest is None:
        return
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FeedlineError(
            f"{path} is not of `shard build`, so nothing there is removed; choose another folder"
        )
    if manifest.get("source_kind") == "index":
        raise FeedlineError(
            f"{target} is of `shard index`, whose shards somebody else made, so nothing there is removed; choose "
            "another folder"
        )


def same_plan(places: Places, identity: str) -> None:
    """Make sure that an unfinished build in the target is of this plan.

    Raises:
        FeedlineError: it is of another.
    """
    marker = places.records / "plan"
    with storage_errors("read", marker):
        found = marker.read_text() if marker.exists() else identity
    if found != identity:
        raise FeedlineError(
            f"{places.target} holds an unfinished build of another source state or other settings; give the same "
            "ones, or --overwrite to start afresh"
        )


def begin_plan(places: Places, identity: str) -> None:
    """Note whose the records in the target are."""
    _note(places, "plan", identity)
    (places.records / _MARK).unlink(missing_ok=True)


def _note(places: Places, name: str, text: str) -> None:
    with write_whole(places.records / name, places.staging) as file:
        file.write(text.encode())
