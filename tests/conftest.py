"""Shared fixtures. Tests make their own small data; nothing outside the repository is read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# The same examples on every run, and no deadlines: the machine that runs the tests may be busy.
settings.register_profile("feedline", derandomize=True, deadline=None)
settings.load_profile("feedline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device (the only reason a test is ever skipped)."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))
