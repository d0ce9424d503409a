"""Every operation of both backends against timm and torchvision, within the bounds that the documentation states."""

from typing import Any

import pytest
import torch

from bench.operations import CASES, operations, table, within
from loader.ops import Op
from shard.dataset import Dataset


def other_on_small_images(row: dict[str, Any]) -> bool:
    # The border that sharpening leaves alone, and the saturated colours that hue is coarse in, have a larger share in
    # small made-up images than in photos, which the bounds are for.
    return row["backend"] == "dali" and row["operation"] in ("sharpness", "hue")


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_operations_keep_their_bounds(dataset: Dataset, backend: str) -> None:
    rows = operations(dataset.split("train"), 24, 96, torch.device("cpu"), [backend])
    assert [row["operation"] for row in rows] == list(CASES)
    assert [row for row in rows if not within(row) and not other_on_small_images(row)] == []
    assert f"| equalize | timm | {backend} |" in table(rows)


def test_every_operation_is_compared() -> None:
    assert {case.op for case in CASES.values()} == set(Op) - {Op.IDENTITY}


@pytest.mark.gpu
def test_operations_on_a_gpu_keep_their_bounds(dataset: Dataset) -> None:
    rows = operations(dataset.split("train"), 24, 96, torch.device("cuda", 0), ["dali"])
    assert [row for row in rows if not within(row) and not other_on_small_images(row)] == []
