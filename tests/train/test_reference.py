"""Our step against a loop written by hand, and against losses of the day it was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def reference_alone() -> list[float]:
    """Golden losses of one process."""
    losses: list[float] = json.loads((HERE / "golden_losses.json").read_text())["1"][0]
    return losses


@pytest.mark.parametrize("ranks", [1, 2])
def test_fifty_steps_give_the_losses_of_the_reference_loop(ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "losses.json"
    script = [str(HERE / "numerics.py"), str(out)]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *(TORCHRUN if ranks > 1 else []), *script]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    found = json.loads(out.read_text())
    ours, reference = np.array(found["ours"]), np.array(found["reference"])
    assert ours.shape == (ranks, 50)
    assert ours[:, -5:].mean() < 0.7 * ours[:, :5].mean()  # it learns, or the comparison would say little
    np.testing.assert_allclose(ours, reference, rtol=1e-5)
    # The network has no batch norm: the ranks together do what one does alone.
    np.testing.assert_allclose(ours.mean(axis=0), reference_alone(), rtol=1e-3)
    # Other CPUs and versions of torch add up in another order: a hundred times the tolerance.
    golden = json.loads((HERE / "golden_losses.json").read_text())[str(ranks)]
    np.testing.assert_allclose(ours, golden, rtol=1e-3)
