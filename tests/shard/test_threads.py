"""Opening a dataset starts no threads: Arrow's may abort a program that ends right afterwards (std::terminate)."""

import subprocess
import sys

import pytest

from shard.dataset import Dataset

_COUNT = """
import os, sys
from shard.dataset import Dataset
before = len(os.listdir("/proc/self/task"))
Dataset.open(sys.argv[1]).split("train")
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_opening_a_dataset_starts_no_thread(dataset: Dataset) -> None:
    words = [sys.executable, "-c", _COUNT, str(dataset.root)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
