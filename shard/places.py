"""Where a build works, who holds it, and what an earlier build left there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shard.dataset import FORMAT, INDEX, MANIFEST, STAGING
from shard.errors import FeedlineError
from shard.index import CHECKSUMS, DUPLICATES, REJECTED, REPAIRED
from shard.storage import is_remote, location, names_in, storage_errors, write_whole

SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PLAN, _SPLITS = "plan", "splits"  # files among the records
_SHARD = re.compile(r"shard-\d{6,}\.(tar|idx)")
_RECORD = re.compile(r"([A-Za-z0-9_-]+)-shard-\d{6,}\.json")


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
    """Remove only what a build made, the manifest first: nobody shall open half a dataset.

    What this build has spooled of its source stays, and so do folders that are of no split.

    Raises:
        FeedlineError: the target's shards were made by somebody else, or it cannot be written to.
    """
    target = places.target
    require_ours(target)
    made = _made(places)
    # Kept until the next plan: whatever ends this, the same command goes on, and knows where shards may be left.
    _note_splits(places, made)
    with storage_errors("remove files in", target):
        for name in (MANIFEST, CHECKSUMS, REJECTED, REPAIRED, DUPLICATES):
            (target / name).unlink(missing_ok=True)
        # The plan first: see `removal_begun`. Records before the shards: none shall speak of one that is gone.
        (places.records / _PLAN).unlink(missing_ok=True)
        for name in sorted(filter(_is_record, names_in(places.records) - {_SPLITS})):
            (places.records / name).unlink()
        for split, names in made.items():
            for name in names:
                (target / split / name).unlink(missing_ok=True)


def removal_begun(places: Places) -> bool:
    """Whether `remove_earlier` was killed here: records that are left are of a plan that is not noted any more."""
    there = names_in(places.records)
    return _SPLITS in there and _PLAN not in there


def _made(places: Places) -> dict[str, set[str]]:
    """Files of an earlier dataset or unfinished build by split: as its manifest says, else by their names."""
    target = places.target
    listed = _shards_listed(target / MANIFEST)
    if listed is not None and not (places.records / _SPLITS).exists():
        return {
            split: {INDEX, *shards, *(f"{Path(shard).stem}.idx" for shard in shards)}
            for split, shards in listed.items()
        }
    splits = {*(listed or {}), *_splits_begun(places)}
    with storage_errors("read", target / CHECKSUMS):
        if listed is None and (target / CHECKSUMS).exists():  # of a dataset whose manifest is damaged
            lines = (target / CHECKSUMS).read_text(errors="replace").splitlines()
            splits |= {line[66:].partition("/")[0] for line in lines if "/" in line[66:]}
    return {
        split: {name for name in names_in(target / split) if name == INDEX or _SHARD.fullmatch(name)}
        for split in splits
        if SPLIT_NAME.fullmatch(split)
    }


def _shards_listed(path: Path) -> dict[str, list[str]] | None:
    """Names of the shards of each split in a manifest; None: there is none, or it is damaged."""
    if not path.exists():
        return None
    with storage_errors("read", path):
        text = path.read_bytes()
    try:
        found = {
            split: [str(shard["name"]) for shard in about["shards"]]
            for split, about in json.loads(text)["splits"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    names = [name for shards in found.values() for name in shards]
    whole = all(map(SPLIT_NAME.fullmatch, found)) and all(map(_SHARD.fullmatch, names))
    return found if whole else None


def _splits_begun(places: Places) -> set[str]:
    """Splits of an unfinished build, as noted, and as its records of finished shards say."""
    there = names_in(places.records)
    found = {match[1] for name in there if (match := _RECORD.fullmatch(name))}
    if _SPLITS in there:
        path = places.records / _SPLITS
        with storage_errors("read", path):
            found |= set(path.read_text().split())
    return found


def _is_record(name: str) -> bool:
    """Whether a file in a local build's only folder is of what is finished, and not spooled or under way."""
    return name in (_PLAN, _SPLITS) or _RECORD.fullmatch(name) is not None


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
    marker = places.records / _PLAN
    with storage_errors("read", marker):
        found = marker.read_text() if marker.exists() else identity
    if found != identity:
        raise FeedlineError(
            f"{places.target} holds an unfinished build of another source state or other settings; give the same "
            "ones, or --overwrite to start afresh"
        )


def begin_plan(places: Places, identity: str, splits: Iterable[str]) -> None:
    """Note whose the records in the target are, and in which folders its shards will lie."""
    _note_splits(places, splits)
    _note(places, _PLAN, identity)


def _note_splits(places: Places, splits: Iterable[str]) -> None:
    """Note in which folders there may be shards of an unfinished build or of a dataset that is being removed."""
    _note(places, _SPLITS, "\n".join(splits))


def _note(places: Places, name: str, text: str) -> None:
    with write_whole(places.records / name, places.staging) as file:
        file.write(text.encode())
