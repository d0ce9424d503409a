"""Table, sentence and picture, from constructed figures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.grid import cells
from bench.grid import table as grid_table
from bench.measure import Series
from bench.report import picture, table, verdict
from bench.roofline import narrowest, roof, roofline
from bench.throughput import Plan, ceiling
from train.config import Config


def record(device: str = "cuda:0", **rates: float) -> dict[str, Any]:
    """A record with these images/s per stage."""
    stages = [
        {
            "name": name,
            "title": f"title of {name}",
            "images_per_s": [rate * 0.9, rate, rate * 1.05],
            "mb_per_s": [rate / 10] * 3 if name in ("read", "decode") else [0.0] * 3,
            "cpu_s_per_1000": [1.5, 1.0, 2.0],
            "step_ms": [1.0] * 3,
            "step_ms_percentiles": {"p50": 1.0, "p95": 1.25, "p99": 2.0, "steps": 30},
            "ceiling": "decode" if name.startswith("loader") else None,
            "share_of_ceiling": {"value": rate / rates["decode"], "low": 0.7, "high": 0.8}
            if name.startswith("loader") and "decode" in rates
            else None,
        }
        for name, rate in rates.items()
    ]
    return {
        "stages": stages,
        "ratios": {
            "feed ratio (real / synthetic)": round(rates.get("real", 0) / rates.get("synthetic", 1), 3)
        },
        "default_loader": "loader_dali" if "loader_dali" in rates else None,
        "settings": {"device": device, "config": {"model": {"arch": "resnet50"}}},
        "environment": {"gpu": None, "cpu": "some CPU", "cores": 2},
        "gpu": None,
        "peak_gpu_memory_gib": None,
    }


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        (
            {"read": 3100, "decode": 9000, "loader_dali": 2900, "synthetic": 4000, "real": 2700},
            "reading limits the loader",
        ),
        (
            {"read": 9e4, "decode": 9000, "loader_dali": 2900, "synthetic": 4000, "real": 2700},
            "The loader limits",
        ),
        (
            {"read": 9e4, "decode": 9000, "loader_dali": 8000, "synthetic": 2500, "real": 2490},
            "The training step limits",
        ),
        (
            {"read": 9e4, "decode": 9000, "loader_dali": 8000, "synthetic": 2500, "real": 1500},
            "The hand-over limits",
        ),
        ({"read": 9e4}, "not known"),
    ],
)
def test_the_limiting_stage_is_named(rates: dict[str, float], expected: str) -> None:
    assert expected in verdict(record(**rates))


def test_where_the_gpu_decodes_the_cores_are_not_blamed() -> None:
    rates = {"read": 9e4, "decode": 3000, "loader_dali": 2900, "loader_torch": 2900, "synthetic": 4000}
    on_cores = record(**rates) | {"default_loader": "loader_torch"}
    assert "decoding limits the loader (ceiling 3,000)" in verdict(on_cores)
    assert verdict(record(**rates)).endswith("the training step could take 4,000.")
    slow_copy = rates | {"copy": 2950}
    assert "the copy to the GPU limits the loader (ceiling 2,950): decode on the GPU" in verdict(
        record(**slow_copy) | {"default_loader": "loader_torch"}
    )
    assert verdict(record(**slow_copy)).endswith("the training step could take 4,000.")
    found = {name: Series(name, name, images_per_s=[rate]) for name, rate in rates.items()}

    def above(name: str, device: str) -> str:
        one = ceiling(name, found, None, torch.device(device))
        assert one is not None
        return one.name

    assert [above(name, "cpu") for name in ("loader_dali", "loader_torch")] == ["decode", "decode"]
    assert [above(name, "cuda") for name in ("loader_dali", "dali", "loader_torch")] == [
        "read",
        "read",
        "decode",
    ]


def test_on_a_cpu_the_shared_cores_are_accounted_for() -> None:
    text = verdict(record("cpu", loader_dali=1000, synthetic=250, real=190))
    assert "The training step limits: it takes 250 images/s, the loader could give 1,000" in text
    assert "a feed ratio of about 0.80 is the best to expect, and 0.76 was measured" in text


def test_the_table_has_medians_spread_and_shares() -> None:
    lines = table(record(read=90000, decode=2000, loader_dali=1500)).splitlines()
    assert lines[0].split()[:4] == ["images/s", "interval", "MB/s", "CPU"]
    times = ["1.0", "/", "1.2", "/", "2.0"]
    assert lines[2].split()[3:] == ["2,000", "1,800", "–", "2,100", "200", "1.50", *times]
    assert lines[3].split()[3:] == ["1,500", "1,350", "–", "1,575", "1.50", *times, "0.75", "of", "decode"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[4] == "interval: holds the median with 75 %; 3 repeats"


def test_the_gpu_is_described_by_what_it_tells() -> None:
    found = record(synthetic=400, real=390)
    gpu = {"sm_utilisation_percent": 81.5, "jpeg_utilisation_percent": 40, "images_per_joule": 7.25}
    found |= {"gpu": gpu, "gpu_by_stage": {"synthetic": {}, "real": gpu}, "peak_gpu_memory_gib": 9.5}
    text = table(found)
    assert "GPU, real: 81.5 % of the SMs, 40 % of the JPEG engines, 7.25 images/J" in text
    assert "GPU, synthetic" not in text
    assert "peak of allocated GPU memory: 9.5 GiB" in text


def test_old_records_can_be_read() -> None:
    records = [
        json.loads(path.read_text()) for path in Path(__file__).parents[2].glob("bench/records/*.json")
    ]
    for record in [record for record in records if record["benchmark"] == "throughput"]:
        assert "loader (torch)" in table(record)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_roofline_names_the_narrowest_stage(device: str, tmp_path: Path) -> None:
    rates = {"read": 9e4, "decode": 2000, "loader_dali": 1500, "synthetic": 400, "real": 300}
    found = record(device, **rates)
    assert narrowest(found) == "synthetic"
    # On a CPU loader and step share the cores.
    assert roof(found)["real"] == pytest.approx(1500 * 400 / 1900 if device == "cpu" else 400)
    # DALI decodes on the GPU: the CPU's ceiling is none then.
    assert list(roof(found)) == [
        "read",
        *(["decode"] if device == "cpu" else []),
        "loader_dali",
        "synthetic",
        "real",
    ]
    assert [roof(found)[name] for name in ("read", "loader_dali", "synthetic")] == [9e4, 1500, 400]
    # Nor do finished batches cross the bus then.
    slow_copy = record(device, **rates, copy=100) | {"default_loader": "loader_dali"}
    assert narrowest(slow_copy) == ("copy" if device == "cpu" else "synthetic")
    roofline(found, tmp_path / "r.png")
    pixels = np.asarray(Image.open(tmp_path / "r.png").convert("RGB"))
    assert (np.abs(pixels.astype(int) - (0xC0, 0x39, 0x2B)).max(axis=2) < 4).sum() > 500


def test_the_picture_shows_one_bar_per_stage(tmp_path: Path) -> None:
    picture(record(read=90000, decode=2000, loader_dali=1500, synthetic=400, real=390), tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    for colour in ((0x1B, 0x6C, 0xA8), (0xC9, 0xA2, 0x27), (0x2E, 0x8B, 0x57)):
        assert (np.abs(pixels.astype(int) - colour).max(axis=2) < 4).sum() > 500


def test_a_grid_crosses_its_axes_and_an_axis_that_is_not_given_stays() -> None:
    images = dataclasses.replace(Config().input, size=64, batch_size=16)
    plan = Plan(
        config=dataclasses.replace(Config(), input=images), stages=(), repeats=1, seconds=1.0, threads=1
    )
    found = {name: cell.config.input for name, cell in cells(plan, [160, 224], [], ["torch", "dali"])}
    assert list(found) == [
        "160px-batch16-torch", "160px-batch16-dali", "224px-batch16-torch", "224px-batch16-dali",
    ]  # fmt: skip
    assert (found["160px-batch16-dali"].size, found["160px-batch16-dali"].loader_backend) == (160, "dali")
    text = grid_table({"a": record(loader_dali=1500, synthetic=400, real=300), "b": record(decode=2000)})
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["loader", "synthetic", "real", "decode", "feed", "ratio"],
        ["a", "1,500", "400", "300", "0.75"],
        ["b", "2,000", "0.00"],
    ]
