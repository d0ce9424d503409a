"""What the loader finds out for itself: cores, queue depths; and what it tells: counters, traces."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch

from loader import Loader, RandomResizedCrop
from loader.affinity import Cores, pinned, rank_cores, usable_ids
from loader.tune import Tuner
from shard.dataset import Dataset
from shard.errors import FeedlineError

CPU = torch.device("cpu")


def machine(folder: Path, *nodes: str) -> Path:
    """What Linux says of NUMA nodes with these cores."""
    for number, cores in enumerate(nodes):
        (folder / f"node{number}").mkdir(parents=True)
        (folder / f"node{number}" / "cpulist").write_text(cores + "\n")
    (folder / "possible").write_text("0-1\n")
    return folder


def test_ranks_get_the_cores_of_their_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.affinity.usable_ids", lambda: frozenset(range(16)))
    nodes = machine(tmp_path, "0-3,8-11", "4-7,12-15", "")
    for ranks in (1, 2, 4, 8):
        found = [rank_cores(CPU, rank, ranks, nodes) for rank in range(ranks)]
        assert [min(cores.ids) for cores in found] == [0 if 2 * rank < ranks else 4 for rank in range(ranks)]
        assert {len(cores.ids) for cores in found} == {8}
        assert {cores.share for cores in found} == {min(8, 16 // ranks)}


def test_a_machine_without_nodes_is_shared_evenly(tmp_path: Path) -> None:
    found = rank_cores(CPU, 0, 1, tmp_path)
    assert found.ids == usable_ids()
    assert found.share == len(usable_ids())
    assert rank_cores(CPU, 3, 64, tmp_path).share == max(1, len(usable_ids()) // 64)


def test_threads_started_meanwhile_are_pinned_and_the_caller_is_not() -> None:
    one = min(usable_ids())
    before = os.sched_getaffinity(0)
    found: list[set[int]] = []
    with pinned(Cores(frozenset({one}), 1)):
        thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
    assert found == [{one}]
    assert os.sched_getaffinity(0) == before


def test_the_queue_deepens_for_unevenness_but_not_for_a_slow_loader() -> None:
    slow, uneven = Tuner(None), Tuner(None)
    for step in range(100):
        slow.observe(wait_s=0.5, read_wait_s=0.0, step_s=1.0)
        uneven.observe(wait_s=0.5 * (step % 2), read_wait_s=0.0, step_s=1.0)
    assert slow.depth == 2
    assert uneven.depth == 8
    assert slow.read_ahead == uneven.read_ahead == 2


def test_waiting_for_bytes_reads_further_ahead() -> None:
    tuner = Tuner(3)
    for _ in range(100):
        tuner.observe(wait_s=0.5, read_wait_s=0.4, step_s=1.0)
    assert tuner.read_ahead == 16
    assert tuner.depth == 3


def test_settings_stay_after_the_first_steps() -> None:
    tuner = Tuner(None)
    for _ in range(64):
        tuner.observe(0.0, 0.0, 1.0)
    for step in range(100):
        tuner.observe(wait_s=0.5 * (step % 2), read_wait_s=0.5, step_s=1.0)
    assert (tuner.depth, tuner.read_ahead) == (2, 2)


def test_counters_and_trace(dataset: Dataset, tmp_path: Path) -> None:
    split = dataset.split("train")
    with Loader(dataset, "train", RandomResizedCrop(size=24), batch_size=8, trace=True) as loader:
        for _ in zip(range(2), loader, strict=False):
            pass
        assert loader.counters.batches == 2
        for _ in loader:
            pass
        counters = loader.counters.as_dict()
        loader.export_trace(tmp_path / "trace.json")
    assert counters["samples"] == 16 + 47
    assert counters["batches"] == 2 + 6
    assert counters["bytes_read"] >= int(split.size.sum())
    assert counters["wait_s"] == loader.wait_s >= counters["read_wait_s"] + counters["decode_wait_s"] > 0
    assert counters["prefetch"] >= 2
    assert counters["queue"] >= 1
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"wait for pixels", "wait for bytes", "start reading", "read"} <= {
        event["name"] for event in events
    }
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)


@pytest.mark.parametrize(
    "wrong", [{"hw_decoder_load": 1.5}, {"timeout_s": 0}, {"max_bad": -1}, {"threads": 0}]
)
def test_wrong_settings_are_named(dataset: Dataset, wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(FeedlineError, match=f"{name} is {value}"):
        Loader(dataset, "train", RandomResizedCrop(size=24), batch_size=8, **wrong)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_the_hardware_decoder_is_tried_once(dataset: Dataset) -> None:
    with Loader(dataset, "train", RandomResizedCrop(size=24), batch_size=8, device="cuda") as loader:
        next(iter(loader))
        first = loader.hw_decoder_load
        assert first is not None
        next(iter(loader))
        assert loader.hw_decoder_load == first
