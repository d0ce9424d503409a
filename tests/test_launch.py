"""The launch scripts: clean, and the Slurm script's behaviour with a played Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from train.cli import parse

LAUNCH = Path(__file__).parents[1] / "launch"


def test_shellcheck() -> None:
    for script in LAUNCH.glob("*.sh"):
        subprocess.run([Path(sys.executable).with_name("shellcheck"), str(script)], check=True)


def test_the_kubernetes_job_is_consistent() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "torchrun.yaml").read_text())
    spec = job["spec"]
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    (check,) = spec["template"]["spec"]["initContainers"]
    assert check["args"][:3] == ["-m", "train", "--check"]
    assert check["args"][3:] == arguments[arguments.index("train") + 1 :]
    assert parse(check["args"][2:]).check
    failing = [
        rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"
    ]
    # Never torchrun's, which is 1 after whatever could be tried again.
    assert failing == [{"containerName": check["name"], "operator": "In", "values": [1, 2]}]
    assert spec["completions"] == spec["parallelism"]
    assert f"--nnodes=1:{spec['completions']}" in arguments
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun runs `step`, and scontrol writes down what it is told."""
    programs = {
        "srun": f'#!/bin/bash\necho "$@" > {tmp_path}/srun.txt\nexec bash {tmp_path}/step\n',
        "scontrol": f'#!/bin/bash\n[ "$1" = show ] && printf "a\\nb\\n" || echo "$@" > {tmp_path}/scontrol.txt\n',
    }
    for name, text in programs.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "[a-b]", "SLURM_JOB_NUM_NODES": "2", "GPUS": "4",
           "SLURM_CPUS_PER_TASK": "32"}  # fmt: skip
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DATA": "d", "RUN": str(tmp_path / "run")}
    return {**os.environ, **job, **own}


def run(slurm: dict[str, str], tmp_path: Path, step: str, *, usr1: bool = False) -> tuple[int, bool]:
    """Exit status, and whether the job was queued again."""
    (tmp_path / "step").write_text(step)
    with subprocess.Popen(["bash", str(LAUNCH / "slurm.sh"), "--recipe", "digits"], env=slurm) as job:
        if usr1:
            deadline = time.monotonic() + 30
            while not (tmp_path / "ready").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            job.send_signal(signal.SIGUSR1)
        status = job.wait(60)
    queued = (tmp_path / "scontrol.txt").exists()
    assert not queued or (tmp_path / "scontrol.txt").read_text() == "requeue 77\n"
    return status, queued


def test_usr1_reaches_the_step_and_the_job_is_queued_again(slurm: dict[str, str], tmp_path: Path) -> None:
    saves = f"trap 'sleep .3; touch {tmp_path}/saved; exit 1' USR1; touch {tmp_path}/ready; while :; do sleep .02; done"
    assert run(slurm, tmp_path, saves, usr1=True) == (0, True)
    assert (tmp_path / "saved").exists(), "the job was queued again before the checkpoint was written"
    command = (tmp_path / "srun.txt").read_text()
    assert command.startswith("--kill-on-bad-exit=0 --cpus-per-task=32 python -m torch.distributed.run")
    assert "--nnodes 2:2 --nproc-per-node 4" in command
    assert "--rdzv-endpoint a:20077 --rdzv-id 77-0" in command
    assert "SIGUSR1 -m train --data d" in command
    assert command.endswith("--recipe digits\n")


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("exit 1", (1, False)),
        ("exit 75", (0, True)),
        ("mkdir $RUN; touch $RUN/summary.json", (0, False)),
        ("mkdir $RUN; touch $RUN/summary.json; exit 1", (1, False)),  # of an earlier training
        ("mkdir $RUN; touch $RUN/summary.json; exit 75", (0, True)),
    ],
)
def test_ends(slurm: dict[str, str], tmp_path: Path, step: str, expected: tuple[int, bool]) -> None:
    assert run(slurm, tmp_path, step) == expected
