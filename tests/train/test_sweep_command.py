"""`python -m train sweep` from the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from train.__main__ import main


def test_the_command(flags: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A real trial; then the same again, and a look at it."""
    base = (
        " ".join(flags)
        .replace("--lr 0.02 ", "")
        .replace("--epochs 3", "--epochs 1")
        .replace("--warmup-epochs 1", "--warmup 0ep")
    )
    words = [
        *base.split(),
        "--search",
        "lr=log(1e-3,1e-1)",
        "--trials",
        "1",
        "--study",
        str(tmp_path / "study"),
    ]
    assert main(["sweep", *words]) == 0
    out = capfd.readouterr()
    assert re.search(r"^trial 0: top-1 [\d.]+ % after 1 epoch$", out.err, re.MULTILINE)
    assert "1 trials (1 finished)" in out.out
    run_folder = tmp_path / "study" / "trial-0000"
    assert {"config.yaml", "metrics.jsonl", "summary.json", "output.log"} <= {
        p.name for p in run_folder.iterdir()
    }
    assert main(["sweep", *words]) == 0
    assert "trial 0: lr" not in capfd.readouterr().err
    assert main(["sweep", "--show", str(tmp_path / "study")]) == 0
    shown = capfd.readouterr()
    assert "best: trial 0" in shown.out
    assert "one flag alone was searched" in shown.err
    assert main(["sweep", *words, "--search", "weight-decay=log(1e-5,1e-3)"]) == 1
    assert (
        "--search weight-decay was not there → " in capfd.readouterr().err
    )  # beside the first, not in its place
    assert main(["sweep", *words, "--label-smoothing", "0.3"]) == 1
    assert "--label-smoothing 0.1 → 0.3" in capfd.readouterr().err
