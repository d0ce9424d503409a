"""Two ranks: the same program, killed, resumed, and continued by one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loader.order import Order
from shard.dataset import Dataset
from shard.errors import FeedlineError
from tests.ports import free_port
from tests.train.chaos import children
from train import checkpoint
from train.__main__ import main
from train.config import load
from train.distributed import World, connect
from train.engine import Trainer
from train.evaluate import Result
from train.metrics import read_lines
from train.run_folder import RunFolder
from train.telemetry import MEASURED, LossWindow, StepRecord

Start = Callable[[list[str], int], list["subprocess.Popen[bytes]"]]


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def kill_after(run: Path, step: int, ranks: list[subprocess.Popen[bytes]]) -> None:
    """Kill -9 all ranks as soon as the metrics have come to `step`."""
    path, reached = run / "metrics.jsonl", 0
    deadline = time.monotonic() + 120
    while reached < step:
        assert time.monotonic() < deadline
        assert all(r.poll() is None for r in ranks), "ended before it could be killed"
        reached = max((line["step"] for line in read_lines(path)), default=0)
        time.sleep(0.002)
    for rank in ranks:
        rank.kill()
    assert [r.wait() for r in ranks] == [-signal.SIGKILL] * len(ranks)


def test_two_ranks_killed_and_resumed(
    flags: list[str], tmp_path: Path, start_ranks: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*flags, "--checkpoint-every", "4", "--epochs", "7"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = subprocess.run(
        [*torchrun, "-m", "train", *flags, "--run-dir", str(whole)], check=True, stderr=subprocess.PIPE
    )
    assert b"Warning" not in told.stderr
    kill_after(killed, 24, start_ranks([*flags, "--run-dir", str(killed)], 2))
    at_kill = checkpoint.load(killed / "checkpoints" / "last.pt")
    (tmp_path / "at_kill.pt").write_bytes((killed / "checkpoints" / "last.pt").read_bytes())
    # A step is in the metrics before its checkpoint is begun, and that waits for the one before, of step 20, alone.
    assert 16 <= at_kill["step"] < 90, "killed too late to show anything"
    assert [r.wait() for r in start_ranks([*flags, "--run-dir", str(killed)], 2)] == [0, 0]

    # Bit-identical: weights, optimiser, generators, metrics.
    a, b = (checkpoint.load(run / "checkpoints" / "last.pt") for run in (whole, killed))
    assert a["step"] == b["step"] == 105
    assert a["loader"] == b["loader"]
    for part in ("model", "optimizer", "rng"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    assert metrics(whole) == metrics(killed)

    # One rank evaluates the two ranks' model to the same figures.
    config = replace(load(whole / "config.yaml"), run_dir=tmp_path / "one")
    assert config.data is not None
    dataset, folder = Dataset.open(config.data), RunFolder(tmp_path / "one")
    folder.prepare(fresh=True)
    with Trainer(config, dataset, World(), folder, a, keep_metrics=False) as trainer:
        result = trainer.evaluate()
        assert isinstance(result, Result)
        assert (result.top1, result.samples) == (a["last_eval"]["top1"], 42)
        assert result.loss == pytest.approx(a["last_eval"]["loss"], rel=1e-4)

    # One rank goes on from what the two had left, with exactly the remaining samples.
    seen: list[int] = []
    add = LossWindow.add

    def spy(self: LossWindow, loss: torch.Tensor, record: StepRecord) -> None:
        seen.extend(torch.cat(record.ids).tolist())
        add(self, loss, record)

    monkeypatch.setattr(LossWindow, "add", spy)
    resume = ["--resume", str(tmp_path / "at_kill.pt"), "--run-dir", str(tmp_path / "fewer")]
    assert main([*flags, *resume]) == 0
    assert seen == left(at_kill["loader"], epochs=7)


def left(position: dict[str, int], epochs: int) -> list[int]:
    """Samples that a run still has to see after the loader's position."""
    order = Order(shuffle="global")
    whole = [
        i
        for e in range(position["epoch"], epochs)
        for i in order.draws(np.zeros(120, np.int32), 0, e).tolist()
    ]
    return whole[position["samples_consumed"] :]


def test_ranks_stop_together_on_sigterm(flags: list[str], tmp_path: Path, start_ranks: Start) -> None:
    ranks = start_ranks([*flags, "--epochs", "200", "--run-dir", str(tmp_path)], 2)
    path, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 120
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks[1].terminate()  # one is enough
    assert [r.wait() for r in ranks] == [143, 143]
    saved = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert saved["loader"]["samples_consumed"] % 8 == 0  # a whole step, the same on both
    assert not (tmp_path / "summary.json").exists()


def test_cuda_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(FeedlineError, match="no usable CUDA GPU"), connect("cuda"):
        pass


def test_more_ranks_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(FeedlineError, match="process 3 of a machine with 2 GPU"), connect("cuda"):
        pass


@pytest.mark.timeout(900)
def test_the_run_goes_on_with_a_node_fewer(flags: list[str], tmp_path: Path) -> None:
    """Two agents of one rank each stand for two nodes; the second is killed with its rank, for good."""
    ids, run = tmp_path / "ids", tmp_path / "run"
    ids.mkdir()
    port = free_port()
    torchrun = (
        "-m torch.distributed.run --nnodes 1:2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id fewer --max-restarts 3 "
        f"--rdzv-endpoint 127.0.0.1:{port} --rdzv-conf last_call_timeout=3"
    ).split()
    logged = str(Path(__file__).with_name("logged.py"))
    # --resume never: it must hold for the first start only.
    more = ["--checkpoint-every", "4", "--epochs", "5", "--resume", "never", "--run-dir", str(run)]
    command = [sys.executable, *torchrun, logged, str(ids), *flags, *more]
    environment = os.environ.copy()
    if torch.__version__.startswith(
        "2.11."
    ):  # its torchrun fails on a node that was not the first and becomes it
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    first, second = (subprocess.Popen(command, env=environment) for _ in range(2))

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for path in ids.iterdir() for line in path.read_text().splitlines()]

    deadline = time.monotonic() + 600
    while sum(line["size"] == 2 for line in lines()) < 40:
        assert first.poll() is None
        assert second.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The first one holds the store of the rendezvous only if it was there first.
    hosts = next(a for a in (first, second) if _listens(a.pid, port))
    lost = second if hosts is first else first
    for process in [*children(lost.pid), lost.pid]:
        os.kill(process, signal.SIGKILL)
    assert lost.wait() == -signal.SIGKILL
    assert hosts.wait(600) == 0

    by_step: dict[int, list[int]] = {}
    for step in range(1, 76):
        alone = [line["ids"] for line in lines() if line["step"] == step and line["size"] == 1]
        pair = sorted(
            (line["rank"], line["ids"]) for line in lines() if line["step"] == step and line["size"] == 2
        )
        by_step[step] = alone[0] if alone else np.stack([i for _, i in pair], axis=1).ravel().tolist()
        if alone and len(pair) == 2:  # done again after the restart: the same samples
            assert np.stack([i for _, i in pair], axis=1).ravel().tolist() == alone[0]
    assert {line["size"] for line in lines()} == {1, 2}
    for epoch in range(5):
        seen = [i for step in range(15 * epoch + 1, 15 * epoch + 16) for i in by_step[step]]
        assert seen == Order(shuffle="global").draws(np.zeros(120, np.int32), 0, epoch).tolist()


def _listens(pid: int, port: int) -> bool:
    """Whether the process has the listening socket of this port."""
    rows = [
        row.split()
        for file in ("tcp", "tcp6")
        for row in Path(f"/proc/net/{file}").read_text().splitlines()[1:]
    ]
    inodes = {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    names = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.add(os.readlink(descriptor))
    return bool(names & {f"socket:[{inode}]" for inode in inodes})
