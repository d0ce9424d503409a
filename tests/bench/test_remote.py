"""`bench remote` trains from a store and from the disk, and reports both."""

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from shard.dataset import Dataset


def test_both_are_measured(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--model",
        "test_resnet",
        "--size",
        "32",
        "--latency-s",
        "0",
        "--cache-share",
        "1",
        "--epochs",
        "2",
    ]
    out = tmp_path / "record.json"
    more = ["--batch-size", "8", "--window", "1", "--lanes", "1", "--mb-per-s", "100", "--outage-s", "0.2"]
    more += ["--repeats", "2", "--out", str(out)]
    assert main(["remote", "--data", str(dataset.root), *flags, *more]) == 0
    record = json.loads(out.read_text())
    assert [len(record["repeats"][name]) for name in ("store", "disk")] == [2, 2]
    for one in record["repeats"]["store"]:  # each with a cache of its own
        assert record["shards"] <= one["fetched_shards"] <= 2 * record["shards"]
    assert 0 <= record["store"]["wait_share"] <= 1
    assert record["disk"]["images_per_s"] > 0
    text = capsys.readouterr().out
    assert "store: 0 ms, 100 MB/s, cut off for 0.2 s" in text
    assert "times an epoch" in text


def test_a_cache_too_small_is_one_line(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["remote", "--data", str(dataset.root), "--cache-share", "0.1"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: this order reads shards of")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "resnet5000"], "--model is 'resnet5000', which timm does not have"),
        (
            ["--batch-size", "1"],
            "--batch-size is 1, of which batch norm may have no variance; give 2 or more",
        ),
        (["--latency-s", "-1"], "--latency-s is -1.0; it cannot be negative"),
        (["--mb-per-s", "0"], "--mb-per-s is 0.0; it must be positive"),
        (["--cache-share", "nan"], "--cache-share is nan; it must be positive"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["remote", "--data", str(dataset.root), *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
