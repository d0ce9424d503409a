"""Locks on files, which the kernel drops with the process that holds them. POSIX only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl

    EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
else:
    EXCLUSIVE = SHARED = 0  # to be imported; `ShardCache` refuses to start there


def open_lock(path: Path) -> int:
    """Descriptor of a lock's file, which is made if need be."""
    # Anew for every holder: a lock belongs to what open() returned, so it works among threads, too.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def try_lock(lock: int, kind: int) -> bool:
    """Whether the lock could be had at once; if not, the one held before is lost."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def drop(lock: int) -> None:
    """Unlock; the descriptor stays open."""
    fcntl.flock(lock, fcntl.LOCK_UN)


def unlock(lock: int) -> None:
    """Unlock and close."""
    drop(lock)  # close alone would leave it locked while a forked child has it open
    os.close(lock)
