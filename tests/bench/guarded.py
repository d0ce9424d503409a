"""How often `bench guard` finds a planted slow-down in its stage, and how often it finds one where there is none.

    python -m tests.bench.guarded --data DATASET --folder NEW --runs 10 --out record.json

takes a baseline, then runs the command on each kind of `tests.bench.slowed` in turn: `--runs` times, and twice as often
with nothing planted. The record holds every run with its ratios, and the load of the machine before it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.options import write
from tests.bench.slowed import STAGES
from train.environment import environment


def judge(kind: str, data: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Run the guard once on a planted slow-down."""
    out, load, began = folder / "run.json", os.getloadavg()[0], time.perf_counter()
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.bench.slowed", kind, "guard", "--data", str(data)]
    command += ["--baseline", str(folder / "guard.json"), "--seconds", str(seconds), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.exists():
        raise SystemExit(f"the guard ended with status {done.returncode}: {done.stderr[-2000:]}")
    record = json.loads(out.read_text())
    named = [finding["stage"] for finding in record["findings"]]
    return {
        "kind": kind,
        "named": named,
        "right": named == [STAGES[kind]] if STAGES[kind] else not named,
        "status": done.returncode,
        "took_s": round(time.perf_counter() - began, 1),
        "load": round(load, 2),
        "ratios": _medians(record["ratios"]),
        "again": _medians(record.get("again", {})),
    }


def _medians(ratios: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {stage: {signal: one["value"] for signal, one in found.items()} for stage, found in ratios.items()}


def main() -> int:
    """Run the campaign; 1 if a run was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the baseline")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    baseline = ["--baseline", str(options.folder / "guard.json"), "--seconds", str(options.seconds)]
    guard = [sys.executable, "-m", "bench", "guard", "--data", str(options.data), *baseline, "--update"]
    subprocess.run(guard, check=True)
    runs: list[dict[str, Any]] = []
    for _ in range(options.runs):
        for kind in ("none", "reader", "threads", "none", "resize", "step"):
            runs.append(judge(kind, options.data, options.folder, options.seconds))
            print({name: value for name, value in runs[-1].items() if name != "ratios"}, flush=True)
            record = {
                "benchmark": "guard-planted",
                "environment": environment(torch.device("cpu")),
                "settings": {"dataset": str(options.data), "seconds": options.seconds},
                "baseline": json.loads((options.folder / "guard.json").read_text())["classes"],
                "right": {k: sum(r["right"] for r in runs if r["kind"] == k) for k in STAGES},
                "of": {k: sum(r["kind"] == k for r in runs) for k in STAGES},
                "runs": runs,
            }
            write(record, options.out)
    print(record["right"], "of", record["of"])
    return 0 if all(run["right"] for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
