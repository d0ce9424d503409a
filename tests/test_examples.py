"""The examples as their readers run them: in a process of their own, on a small dataset."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shard.dataset import Dataset

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(folder: Path, *arguments: str, status: int = 0) -> str:
    """Run Python in `folder` and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout


def example(name: str) -> str:
    return str(ROOT / "examples" / name)


def losses(printed: str) -> dict[int, str]:
    return {
        int(epoch): loss for epoch, loss in re.findall(r"^epoch (\d+): loss (\S+)$", printed, re.MULTILINE)
    }


def accuracy(printed: str) -> float:
    return float(re.findall(r"^accuracy (\S+)", printed, re.MULTILINE)[-1])


def assert_learnt(printed: str, epochs: int) -> None:
    found = losses(printed)
    assert list(found) == list(range(1, epochs + 1))
    assert float(found[epochs]) < 0.8 * float(found[1])
    assert accuracy(printed) > 0.9


def test_plain_loop_learns_and_goes_on_after_a_stop(dataset: Dataset, tmp_path: Path) -> None:
    command = (example("plain_loop.py"), str(dataset.root))
    whole = run(tmp_path, *command)
    assert_learnt(whole, 5)
    first = run(tmp_path, *command, "--stop-after", "5", status=1)
    second = run(tmp_path, *command, "--stop-after", "1", status=1)  # the last step of its epoch
    third = run(tmp_path, *command)
    assert "going on in epoch 1 after 32 samples" in second
    assert "going on in epoch 1 after 48 samples" in third
    assert losses(first) | losses(third) | {2: losses(whole)[2]} == losses(whole)
    assert accuracy(third) == accuracy(whole)


@pytest.fixture(scope="module")
def lightning(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What Lightning prints of a whole run in one process."""
    return run(tmp_path_factory.mktemp("lightning"), example("lightning_loop.py"), str(dataset.root))


def test_lightning_learns_and_validates_every_sample(lightning: str) -> None:
    assert_learnt(lightning, 5)
    assert len(re.findall(r"^accuracy \S+ of 21$", lightning, re.MULTILINE)) == 5


def test_lightning_goes_on_after_stops(dataset: Dataset, lightning: str, tmp_path: Path) -> None:
    """In the middle of the second epoch, and at its end."""
    command = (example("lightning_loop.py"), str(dataset.root), "--epochs", "3")
    assert list(losses(run(tmp_path, *command, "--stop-after", "5"))) == [1, 2]
    assert list(losses(run(tmp_path, *command, "--stop-after", "6"))) == [2]
    assert losses(run(tmp_path, *command)) == {3: losses(lightning)[3]}


def test_accelerate_trains_on_the_same_batches_whatever_the_processes(
    dataset: Dataset, lightning: str, tmp_path: Path
) -> None:
    """Two epochs on two processes, then one on one: losses are those of Lightning's run, with the same model."""
    command = (example("accelerate_loop.py"), str(dataset.root), "--checkpoint", "state")
    two = run(tmp_path, *TORCHRUN, *command, "--epochs", "2")
    one = run(tmp_path, *command, "--epochs", "3")
    assert "processes: 2" in two
    assert "processes: 1" in one
    found = {epoch: float(loss) for epoch, loss in [*losses(two).items(), *losses(one).items()]}
    assert found == {epoch: pytest.approx(float(losses(lightning)[epoch]), rel=1e-3) for epoch in (1, 2, 3)}
    assert accuracy(one) > 0.9
