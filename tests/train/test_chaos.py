"""A few kills of `tests/train/chaos.py`; run that itself for more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.chaos import chaos


@pytest.mark.timeout(900)
def test_random_kills_leave_no_trace(dataset_dir: Path, tmp_path: Path) -> None:
    text = chaos(dataset_dir, tmp_path, kills=2, seed=1, epochs=4)
    assert text.startswith("2 kills")
    assert "each with its samples once" in text
