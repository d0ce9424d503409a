"""Where datasets lie: a folder, or any fsspec URL (s3://, gs://, …). Paths are `pathlib` or `upath` ones alike."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.utils import infer_compression

from shard.errors import FeedlineError

_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit on files


def location(name: str | Path) -> Path:
    """Path object of a folder or URL.

    Raises:
        FeedlineError: no such kind of storage, or its package is not installed.
    """
    if "://" not in str(name):
        return Path(name)
    from upath import UPath  # only here: importing it takes as long as the rest of this package

    with storage_errors("open", str(name)):
        # Without its cache of listings: other processes write here, too.
        found = UPath(str(name), use_listings_cache=False)
        found.exists()  # says early what is missing: a package, credentials, a bucket
    return cast(Path, found)  # it has pathlib's methods, but is no pathlib.Path


def is_remote(path: Path) -> bool:
    """Whether it is a URL."""
    return "://" in str(path)


def path_of(url: str) -> str:
    """A URL without its query, such as the signature of a link that somebody was given."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


@contextmanager
def storage_errors(verb: str, what: str | Path) -> Iterator[None]:
    """Turn what file systems raise into one line.

    Raises:
        FeedlineError: in place of whatever the storage raised.
    """
    try:
        yield
    except ImportError as error:
        raise FeedlineError(
            f"cannot {verb} {what}: {error}; install the package, such as feedline[s3]"
        ) from error
    except (OSError, ValueError) as error:
        raise FeedlineError(f"cannot {verb} {what}: {_text(error)}") from error
    except Exception as error:
        # botocore's and google's errors derive from Exception alone, and only they are expected here.
        if type(error).__module__.split(".")[0] in (
            "botocore",
            "aiobotocore",
            "aiohttp",
            "gcsfs",
            "google",
            "s3fs",
        ):
            raise FeedlineError(f"cannot {verb} {what}: {_text(error)}") from error
        raise


def _text(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError) and not isinstance(error.errno, int):  # fsspec's, saying the URL
        why = _text(error.__cause__) if error.__cause__ else ""
        return why if why.startswith("not found") else f"not found ({why})" if why else "not found"
    return (
        (error.strerror if isinstance(error, OSError) else None)
        or " ".join(str(error).split())
        or repr(error)
    )


@contextmanager
def write_whole(path: Path, staging: Path) -> Iterator[BinaryIO]:
    """Write a file aside in `staging`, and give it its name only when it is complete.

    A local file is synced to disk and renamed (`staging` must be on the same file system); `sync_folder` makes the
    name durable, too. A remote one is uploaded and read back, and its SHA-256 compared.

    Raises:
        FeedlineError: it could not be written (disk full, no permission, upload failed); nothing is left behind.
    """
    # The process number, because a worker that outlives a killed build must not share a file with the next.
    aside = staging / f"{path.parent.name}-{path.name}.{os.uname().nodename}.{os.getpid()}.part"
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            if not is_remote(path):
                os.fsync(file.fileno())
        if is_remote(path):
            _upload(aside, path)
        else:
            aside.replace(path)
    except OSError as error:
        remedy = "make room" if error.errno in _FULL else "mend that"
        raise FeedlineError(
            f"cannot write {path}: {_text(error)}; what is finished is kept, {remedy} and run the same command again"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _upload(local: Path, path: Path) -> None:
    with storage_errors("write", path):
        fs, inside = _fs(path)
        fs.put_file(str(local), inside)
        if file_sha256(path) != file_sha256(local):
            fs.rm_file(inside)
            raise FeedlineError(
                f"{path} came back different from what was uploaded; it was removed: run the same command again"
            )


def _fs(path: Path) -> tuple[Any, str]:
    """File system of a remote path, and the path within it."""
    remote = cast(Any, path)
    return remote.fs, remote.path


def sync_folder(folder: Path) -> None:
    """Make the names of new files durable, on a local disk."""
    if is_remote(folder):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _compression(url: str) -> str | None:
    """By the path; where that says nothing by the end of the query, as in `…/get?file=train.tar.gz`."""
    path = path_of(url)
    for name in (path,) if path.lower().endswith(".tar") else (path, url):
        if found := "gzip" if name.lower().endswith(".tgz") else infer_compression(name):
            return str(found)
    return None


def fetch(url: str, to: Path) -> Path:
    """Copy a remote or compressed file to `to`, decompressed as its name says, unless it is there already.

    Raises:
        FeedlineError: the storage does not give it, or the disk does not take it.
    """
    if to.exists():
        return to
    aside = to.with_name(f"{to.name}.{os.uname().nodename}.{os.getpid()}.part")
    try:
        with storage_errors("read", url):
            with fsspec.open(url, "rb", compression=_compression(url)) as source, aside.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
                expected = getattr(
                    source, "size", None
                )  # not known of a compressed file, which has a checksum
            if expected is not None and aside.stat().st_size != expected:
                raise FeedlineError(
                    f"{url} broke off after {aside.stat().st_size} of {expected} bytes; run it again"
                )
            aside.replace(to)
    finally:
        aside.unlink(missing_ok=True)
    return to


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Give a file on this machine: `path` itself, or a temporary copy of it if it is remote."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield fetch(str(path), Path(folder, path.name))


def remove_tree(path: Path) -> None:
    """Remove a folder or everything below a URL, if it is there."""
    if not is_remote(path):
        if path.exists():
            shutil.rmtree(path)
        return
    with storage_errors("remove", path):
        fs, inside = _fs(path)
        if fs.exists(inside):
            fs.rm(inside, recursive=True)


def names_in(folder: Path) -> set[str]:
    """Names of the files in a folder; none if it does not exist."""
    with storage_errors("list", folder):
        if is_remote(folder):
            fs, inside = _fs(folder)
            return {entry.rsplit("/", 1)[-1] for entry in fs.find(inside, maxdepth=1)}
        return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
