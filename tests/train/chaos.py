"""Random kills during one training, which has to end as if nothing had happened.

    python tests/train/chaos.py --data DATASET --kills 20 --work FOLDER

Trains twice with two ranks under torchrun: once undisturbed; once killed again and again at random moments, a rank or
torchrun itself with -9, or torchrun with SIGTERM. After torchrun has ended the same command is given again, as Slurm or
Kubernetes do. Then weights, optimiser, generators and metrics have to be bit-identical, and every sample of every epoch
trained on once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loader.order import Order
from shard.dataset import Dataset
from train import checkpoint
from train.telemetry import MEASURED

RANKS = 2
KINDS = ("rank -9", "torchrun -9", "torchrun SIGTERM")
_LOGGED = Path(__file__).with_name("logged.py")


@dataclass(slots=True)
class Run:
    """One training and what it leaves."""

    root: Path
    flags: list[str]

    def __post_init__(self) -> None:
        """Make the folder of the ids."""
        self.ids.mkdir(parents=True)

    @property
    def ids(self) -> Path:
        """Where the ranks write down their samples."""
        return self.root / "ids"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.root / "run"

    def start(self) -> subprocess.Popen[bytes]:
        """Start torchrun; what it says goes into a file."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "100"]
        program = [str(_LOGGED), str(self.ids), *self.flags, "--run-dir", str(self.folder)]
        with (self.root / "output.txt").open("ab") as out:
            return subprocess.Popen(
                [*torchrun, f"--nproc-per-node={RANKS}", *program], stdout=out, stderr=subprocess.STDOUT
            )

    def finished(self) -> bool:
        """Whether the training has come to its end."""
        return (self.folder / "summary.json").exists()

    def steps_logged(self) -> int:
        """Lines written so far."""
        return sum(path.read_bytes().count(b"\n") for path in self.ids.iterdir())

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics without what depends on the clock."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]

    def batches(self) -> dict[int, list[int]]:
        """Sample ids of every global batch, by step; a step that was done again must have had the same."""
        parts: dict[tuple[int, int], list[int]] = {}
        for path in self.ids.iterdir():
            for line in map(json.loads, path.read_text().splitlines()):
                key = (line["step"], line["rank"])
                assert parts.setdefault(key, line["ids"]) == line["ids"], (
                    f"step {key[0]} had other samples again"
                )
        ranks: dict[int, list[list[int]]] = defaultdict(list)
        for step, rank in sorted(parts):
            ranks[step].append(parts[step, rank])
        return {step: np.stack(rows, axis=1).ravel().tolist() for step, rows in ranks.items()}


def disturb(run: Run, kills: int, draw: random.Random, timeout_s: float = 600.0) -> list[str]:
    """Train with `kills` kills, and return what was killed."""
    done: list[str] = []
    agent, deadline = run.start(), time.monotonic() + timeout_s
    while len(done) < kills:
        _progress(run, agent, draw, deadline)
        if run.finished():
            break
        if agent.poll() is not None:
            agent = run.start()
            continue
        kind = draw.choices(KINDS, weights=(2, 1, 1))[0]
        if not _kill(agent, kind, draw):
            continue
        done.append(kind)
        if kind != "rank -9":
            agent.wait()
            agent = run.start()
    while not run.finished() or agent.poll() is None:
        assert time.monotonic() < deadline, f"no end in sight; see {run.root / 'output.txt'}"
        if agent.poll() is not None:
            agent = run.start()
        time.sleep(0.05)
    return done


def _progress(run: Run, agent: subprocess.Popen[bytes], draw: random.Random, deadline: float) -> None:
    """Wait until a random number of steps has been done, or, seldom, for some time only: no step may be done yet."""
    if draw.random() < 0.15:
        time.sleep(draw.uniform(0, 3))
        return
    goal = run.steps_logged() + RANKS * draw.randint(1, 14)
    while run.steps_logged() < goal and agent.poll() is None and not run.finished():
        assert time.monotonic() < deadline, f"no progress; see {run.root / 'output.txt'}"
        time.sleep(0.002)


def _kill(agent: subprocess.Popen[bytes], kind: str, draw: random.Random) -> bool:
    """Kill; False where there was nothing to kill."""
    if kind != "rank -9":
        agent.send_signal(signal.SIGKILL if kind.endswith("-9") else signal.SIGTERM)
        return True
    ranks = children(agent.pid)
    if not ranks:
        return False
    try:
        os.kill(draw.choice(ranks), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def children(pid: int) -> list[int]:
    """Processes that `pid` has started."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def compare(whole: Run, killed: Run, data: Path) -> str:
    """Compare the two runs, and say what is equal; AssertionError where something is not."""
    a, b = (checkpoint.load(run.folder / "checkpoints" / "last.pt") for run in (whole, killed))
    for part in ("step", "loader", "losses", "last_eval", "best_top1", "best_loss", "plateau"):
        assert a[part] == b[part], part
    for part in ("model", "optimizer", "scaler", "rng"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    assert whole.metrics() == killed.metrics()
    assert whole.batches() == killed.batches()
    split = Dataset.open(data).split("train")
    batches = killed.batches()
    assert sorted(batches) == list(range(1, a["step"] + 1))
    per_epoch = a["step"] // a["epoch"]
    for epoch in range(a["epoch"]):
        seen = [i for step in range(per_epoch) for i in batches[epoch * per_epoch + step + 1]]
        order = Order(shuffle="global").draws(split.shard, 0, epoch)[: len(seen)].tolist()
        assert seen == order, f"epoch {epoch + 1}"
        assert len(set(seen)) == len(seen)
    again = sum(len(p.read_text().splitlines()) for p in killed.ids.iterdir()) // RANKS - a["step"]
    return (
        f"equal: {len(a['model'])} tensors of the model, optimiser, generators, {len(whole.metrics())} metrics; "
        f"{a['step']} steps in {a['epoch']} epochs, each with its samples once ({again} steps were done again)"
    )


def chaos(data: Path, work: Path, kills: int, seed: int, epochs: int) -> str:
    """Run both trainings and compare them; returns what to print."""
    flags = (
        f"--data {data} --recipe digits --device cpu --arch test_efficientnet --batch-size 8 --size 24 --pad 2 "
        f"--eval-size 24 --eval-resize 24 --epochs {epochs} --warmup-epochs 1 --lr 0.02 --log-every 4 "
        "--loader-threads 1 --checkpoint-every 4 --keep-last 3 --join-timeout-s 30"
    ).split()
    whole, killed = Run(work / "whole", flags), Run(work / "killed", flags)
    agent = whole.start()
    assert agent.wait() == 0, whole.root / "output.txt"
    done = disturb(killed, kills, random.Random(seed))
    assert len(done) == kills, f"the training was over after {len(done)} kills: more --epochs are needed"
    counts = ", ".join(f"{done.count(kind)} × {kind}" for kind in KINDS)
    return f"{len(done)} kills ({counts})\n{compare(whole, killed, data)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="dataset with a few hundred small training images"
    )
    parser.add_argument("--work", type=Path, required=True, help="new folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    print(chaos(options.data, options.work, options.kills, options.seed, options.epochs))
