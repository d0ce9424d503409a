"""The build: scan, plan, pack in parallel, and only then show a dataset."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shard.dataset import INDEX, MANIFEST, Dataset
from shard.errors import FeedlineError
from shard.index import CHECKSUMS, REJECTED, REPAIRED, write_index, write_lines, write_manifest
from shard.pack import Record, pack, record_path, write_whole
from shard.plan import Settings, ShardJob, fingerprint, plan
from shard.source import SPLIT_NAMES, Source, scan

STAGING = ".build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a build did.

    Attributes:
        packed: samples in the dataset.
        repaired: images that were encoded anew.
        rejected: rows of rejected.jsonl.
        kept_shards: shards that an earlier, interrupted run had finished.
        shards: shards in all.
        complete_before: the dataset was already there and nothing was done.
    """

    packed: int
    repaired: int
    rejected: list[dict[str, str]]
    kept_shards: int
    shards: int
    complete_before: bool = False


Progress = Callable[[int, int], None]  # images done in this run, images to do in this run


def build(
    source: str | Path,
    destination: str | Path,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
    max_bad: str = "1%",
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Result:
    """Pack a folder of images into a dataset; a build that was killed goes on where it stopped.

    Args:
        source: class folders, or a folder with train/ (and val/, test/) of class folders.
        destination: folder for the dataset; made if missing.
        settings: seed and shard size.
        workers: processes; None: one per core. Does not change a single byte of the result.
        max_bad: rejected images allowed, a count or a percentage of all.
        overwrite: remove an earlier dataset or unfinished build in `destination` first.
        progress: called after every shard.

    Raises:
        FeedlineError: with one line that says what is wrong and what to do.
    """
    settings = settings or Settings()
    root, target = Path(source), Path(destination)
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1 or settings.shard_bytes < 1:
        raise FeedlineError(
            f"workers is {workers}, shard_bytes {settings.shard_bytes}; both must be at least 1"
        )
    if root.resolve() == target.resolve() or root.resolve() in target.resolve().parents:
        raise FeedlineError(f"destination {target} lies in the source {root}; choose a folder outside of it")
    scanned = scan(root)
    identity = fingerprint(scanned, settings, times=False)
    staging = target / STAGING
    with _locked(target, staging):
        if overwrite:
            _remove_earlier(target, staging)
        if (target / MANIFEST).exists():
            return _already_complete(target, staging, identity)
        _start_or_continue(target, staging, fingerprint(scanned, settings, times=True), scanned)
        jobs = plan(scanned, settings)
        allowed = _allowed_bad(max_bad, sum(len(job.items) for job in jobs))
        kept = sum(record_path(staging, job).exists() for job in jobs)
        _run(jobs, scanned, target, staging, workers, allowed, progress)
        records = [Record.from_json(record_path(staging, job).read_text()) for job in jobs]
        result = _finish(target, staging, scanned, settings, identity, records, kept)
        shutil.rmtree(staging)
    return result


@contextmanager
def _locked(target: Path, staging: Path) -> Iterator[None]:
    """Hold the build's lock; the system releases it when the process ends, however it ends."""
    if (
        target.exists()
        and not (target / MANIFEST).exists()
        and not staging.exists()
        and any(target.iterdir())
    ):
        raise FeedlineError(f"{target} is not empty and was not made by `shard build`; choose a new folder")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = (staging / "lock").open("w")
    except OSError as error:
        raise FeedlineError(f"cannot write to {target}: {error.strerror}") from error
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
            if staging.exists() and [path.name for path in staging.iterdir()] == ["lock"]:
                shutil.rmtree(staging)


def _remove_earlier(target: Path, staging: Path) -> None:
    """Remove only what a build makes, the manifest first: nobody shall open half a dataset."""
    for name in (MANIFEST, CHECKSUMS, REJECTED, REPAIRED):
        (target / name).unlink(missing_ok=True)
    for split in SPLIT_NAMES:
        for pattern in ("shard-*.tar", "shard-*.idx", INDEX):
            for path in (target / split).glob(pattern):
                path.unlink()
    for path in staging.iterdir():
        if path.name != "lock":
            path.unlink()


def _already_complete(target: Path, staging: Path, identity: str) -> Result:
    dataset = Dataset.open(target)
    if dataset.manifest["source"] != identity:
        raise FeedlineError(
            f"{target} holds a finished dataset of another source or other settings; "
            "use --overwrite to replace it, or choose another folder"
        )
    shutil.rmtree(staging)  # a build killed between its last two steps leaves it
    splits = dataset.manifest["splits"].values()
    return Result(
        packed=sum(s["samples"] for s in splits),
        repaired=sum(s["repaired"] for s in splits),
        rejected=[json.loads(line) for line in (target / REJECTED).read_text().splitlines()],
        kept_shards=sum(len(s["shards"]) for s in splits),
        shards=sum(len(s["shards"]) for s in splits),
        complete_before=True,
    )


def _start_or_continue(target: Path, staging: Path, identity: str, source: Source) -> None:
    marker = staging / "plan"
    if not marker.exists():
        for split in source.items:
            (target / split).mkdir(exist_ok=True)
        with write_whole(marker, staging) as file:
            file.write(identity.encode())
    elif marker.read_text() != identity:
        raise FeedlineError(
            f"{target} holds an unfinished build of another source state or other settings; give the same ones, "
            "or --overwrite to start afresh"
        )


def _allowed_bad(text: str, total: int) -> int:
    try:
        allowed = int(float(text[:-1]) / 100 * total) if text.endswith("%") else int(text)
    except ValueError as error:
        raise FeedlineError(
            f"max_bad is {text!r}; give a count such as 20 or a share such as 0.1%"
        ) from error
    if allowed < 0:
        raise FeedlineError(f"max_bad is {text!r}; it must not be negative")
    return allowed


def _run(
    jobs: list[ShardJob],
    source: Source,
    target: Path,
    staging: Path,
    workers: int,
    allowed_bad: int,
    progress: Progress,
) -> None:
    todo: list[ShardJob] = []
    bad: list[dict[str, str]] = []
    for job in jobs:
        path = record_path(staging, job)
        if path.exists():
            bad += Record.from_json(path.read_text()).rejected
        else:
            todo.append(job)
    total, done = sum(len(job.items) for job in todo), 0
    _check_bad(bad, allowed_bad)
    if not todo:
        return
    # Fresh interpreters: a fork of a process with threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=_start_worker)
    try:
        futures: dict[Future[Record], ShardJob] = {
            pool.submit(pack, job, source.root, source.classes, target, staging): job for job in todo
        }
        for future in as_completed(futures):
            bad += future.result().rejected
            done += len(futures[future].items)
            progress(done, total)
            _check_bad(bad, allowed_bad)
    except BrokenProcessPool as error:
        raise FeedlineError(
            "a worker process died (killed, or out of memory); finished shards are kept: run the same command "
            "again, perhaps with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # shards under way are finished and kept


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a worker without a parent process")

    def end_with_parent(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, args=(parent.sentinel,), daemon=True).start()


def _check_bad(bad: list[dict[str, str]], allowed: int) -> None:
    if len(bad) > allowed:
        named = "; ".join(f"{row['source']}: {row['reason']}" for row in bad[:5])
        raise FeedlineError(
            f"{len(bad)} images rejected, more than the {allowed} that --max-bad allows ({named}); repair or remove "
            "them, or run again with a higher --max-bad"
        )


def _finish(
    target: Path,
    staging: Path,
    source: Source,
    settings: Settings,
    identity: str,
    records: list[Record],
    kept: int,
) -> Result:
    """Write index, lists and manifest."""
    rejected = [row for record in records for row in record.rejected]
    repaired = [row for record in records for row in record.repaired]
    ignored = [
        {"source": path, "split": split, "reason": "not an image file name"}
        for split, paths in source.ignored.items()
        for path in paths
    ]
    for record in records:
        if not record.rows:  # every image of the shard was rejected
            for suffix in ("tar", "idx"):
                (target / record.split / f"{record.name}.{suffix}").unlink(missing_ok=True)
    full = [record for record in records if record.rows]
    for split in sorted(source.items):
        mine = [record for record in full if record.split == split]
        if not mine:
            raise FeedlineError(f"split {split} has no image left after checking; see --max-bad")
        write_index(target / split / INDEX, mine, staging)
    rows = sorted(rejected + ignored, key=lambda row: (row["split"], row["source"]))
    write_lines(target / REJECTED, rows, staging)
    write_lines(target / REPAIRED, sorted(repaired, key=lambda row: (row["split"], row["source"])), staging)
    write_manifest(target, staging, source.classes, settings, identity, full)
    packed = sum(len(record.rows) for record in full)
    return Result(packed=packed, repaired=len(repaired), rejected=rows, kept_shards=kept, shards=len(full))
