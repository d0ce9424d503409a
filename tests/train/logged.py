"""`python -m train`, writing down which samples each rank trains on in which step: `logged.py FOLDER FLAGS…`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from train.__main__ import main
from train.distributed import env_rank
from train.telemetry import LossWindow, StepRecord


def log_ids(folder: Path) -> None:
    """Append a line per step to FOLDER/RANK-PROCESS.jsonl, in one write, so that a kill leaves no half of it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    out = os.open(folder / f"{env_rank()}-{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    add = LossWindow.add

    def spy(self: LossWindow, loss: torch.Tensor, record: StepRecord) -> None:
        ids = torch.cat(record.ids).tolist()
        line = {"step": record.step, "rank": env_rank(), "size": size, "ids": ids}
        os.write(out, (json.dumps(line) + "\n").encode())
        add(self, loss, record)

    LossWindow.add = spy  # type: ignore[method-assign]


if __name__ == "__main__":
    log_ids(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
