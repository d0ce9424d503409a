"""Memory, threads and file descriptors stay as they are, and a process that forgets to close a Loader ends cleanly.

Every script runs in a process of its own, where no other test leaves memory or threads behind.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from shard.dataset import Dataset

ROOT = Path(__file__).parents[2]

SOAK = """
import gc, json, os, sys, time
from loader import Compose, Loader, RandAugment, RandomErasing, RandomResizedCrop

data, backend, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
policies = (RandAugment(),) if backend == "torch" else ()  # DALI's graph of it takes seconds to build 100 times
transform = Compose(RandomResizedCrop(size=96), policies, RandomErasing())

def make():
    return Loader(data, "val", transform, batch_size=11, shuffle=True, backend=backend, threads=2)

def sizes():
    gc.collect()
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    threads = []
    for _ in range(10):  # a thread that was joined is still there for the kernel, for a moment
        threads.append(len(os.listdir("/proc/self/task")))
        time.sleep(0.01)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, min(threads), len(os.listdir("/proc/self/fd"))

def soak(times, every, once):
    found = []
    for i in range(times + 1):
        if i % every == 0:
            found.append(sizes())
        once()
    return found

def whole():
    for batch in loader:
        pass

def left_early():
    for batch in loader:
        break
    loader.rewind()  # so that others are in flight whenever it is left

def made_and_closed():
    with make() as one:
        next(iter(one))

def made_and_dropped():
    next(iter(make()))

gc.freeze()  # what was imported, else every look at it takes 0.1 s
record = {}
with make() as loader:
    for name, times, every, once in (("whole", epochs, 10, whole), ("left early", 50, 5, left_early)):
        for _ in range(10):
            once()
        record[name] = soak(times, every, once)
for name, once in (("closed", made_and_closed), ("dropped", made_and_dropped)):
    for _ in range(4):
        once()
    record[name] = soak(20, 2, once)
print(json.dumps(record))
"""


class Sizes(NamedTuple):
    """What a process held at the times it looked: MB, and numbers."""

    rss_mb: list[float]
    threads: list[int]
    files: list[int]


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # A bound for what must not hang, not a measurement.
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("backend", "epochs"), [("torch", 200), ("dali", 100)])
def test_memory_threads_and_files_stay(dataset: Dataset, backend: str, epochs: int) -> None:
    done = run(SOAK, dataset.root, backend, str(epochs))
    assert done.returncode == 0, done.stderr
    record = {name: Sizes(*zip(*rows, strict=True)) for name, rows in json.loads(done.stdout).items()}
    for name, sizes in record.items():
        assert len(set(sizes.threads)) == 1, (name, sizes.threads)
        assert len(set(sizes.files)) == 1, (name, sizes.files)
    mb_per_10_epochs = np.polyfit(np.arange(epochs // 10 + 1), record["whole"].rss_mb, 1)[0]
    assert mb_per_10_epochs < 1, record["whole"].rss_mb
    # A batch is 0.3 MB: over 50 loops left early and 20 loaders one kept each time is 15 MB and 6 MB.
    for name in ("left early", "closed", "dropped"):
        rss_mb = record[name].rss_mb
        assert rss_mb[-1] - rss_mb[0] < 4, (name, rss_mb)


UNCLOSED = """
import sys, time
import loader.reader
from loader import Loader, RandomResizedCrop
from shard.dataset import Dataset

data, backend, how = sys.argv[1:]
unlike = loader.reader._unlike
later = set(Dataset.open(data).split("train").crc32[12:].tolist())  # from the fourth batch on

def hanging(encoded, expected):
    if int(expected) in later:
        time.sleep(3600)
    return unlike(encoded, expected)

if how == "a hanging read":
    loader.reader._unlike = hanging
kept = Loader(data, "train", RandomResizedCrop(size=24), batch_size=4, threads=2, prefetch=4, backend=backend)
batches = iter(kept)
next(batches)
next(batches)
# What a killed process would leave behind, and the next one stumble over.
print(*{line.split()[-1] for line in open("/proc/self/maps") if "/dev/shm/" in line}, end="")
if how == "an exit status":
    sys.exit(3)
print("end of the script")
"""


@pytest.mark.parametrize(
    ("backend", "how"),
    [
        ("torch", "work in flight"),
        ("torch", "a hanging read"),
        ("dali", "an exit status"),
    ],
)
def test_a_script_that_never_closes_its_loader_ends_quietly(dataset: Dataset, backend: str, how: str) -> None:
    done = run(UNCLOSED, dataset.root, backend, how)
    status, said = (3, "") if how == "an exit status" else (0, "end of the script\n")
    assert (done.returncode, done.stdout, done.stderr) == (status, said, "")
