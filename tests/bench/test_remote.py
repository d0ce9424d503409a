"""`bench remote` trains from a store and from the disk, and reports both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.remote import RemotePlan, remote, table
from bench.slow_server import SlowServer
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


def test_an_outage_ends_with_its_repeat(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training may end first, with all that it needs in the cache; the next repeat begins with a store that answers."""
    servers, down = list[SlowServer](), list[bool]()

    class Watched(SlowServer):
        def __enter__(self) -> SlowServer:
            servers.append(self)
            return super().__enter__()

    def train(
        plan: RemotePlan, data: object, cache: object, cut_off: Callable[[], None] = lambda: None
    ) -> Any:
        down.append(servers[0].down)
        cut_off()
        down.append(servers[0].down)
        return {"images_per_s": 1.0, "wait_share": 0.0, "first_batch_s": 0.0}

    monkeypatch.setattr("bench.remote.SlowServer", Watched)
    monkeypatch.setattr("bench.remote._train", train)
    record = remote(RemotePlan(data=dataset.root, outage_s=60, repeats=2), lambda text: None)
    assert down == [False, True, *[False] * 4, False, True]  # store, disk, disk, store
    assert "interval (50%)" in table(record)


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
