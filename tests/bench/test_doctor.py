"""`bench doctor` as a user runs it, on a link that was made slow; and what it suggests, from made-up figures."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.__main__ import main
from bench.bottleneck import BOTTLENECKS, Costs, Verdict, judge
from bench.doctor import Plan, _Clinic, diagnose
from bench.doctor_record import suggestion
from bench.page_cache import Eviction
from bench.prescription import prescription
from bench.remedies import Change, Remedies, Setup, fewer_operations
from bench.samples import Sample, pack, take_sample
from bench.slow_server import SlowServer
from bench.storage import Fetch
from shard.__main__ import main as shard_main
from shard.dataset import Dataset
from tests.bench.planted import TINY, slow_link
from tests.bench.test_bottleneck import CPU
from train.config import Config
from train.inputs import InputConfig
from train.losses import LossConfig
from train.model import ModelConfig


def test_a_slow_link_is_found_and_the_words_say_so(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(dataset.root), "--size", "32", "--batch-size", "4", "--model", TINY]
    flags += ["--augment", "rand-m9-n2", "--repeats", "1", "--seconds", "0.05", "--device", "cpu"]
    with slow_link(bytes_per_s=3e4):  # 102 ms per image: much more than all else, on a busy machine too
        assert main(["doctor", *flags, "--out", str(tmp_path / "record.json")]) == 0
    words = capsys.readouterr().out
    assert words.startswith("Copying to the device limits this training (1 of 1 repeats say so)")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["verdict"]["bottleneck"] == "host-to-device"
    assert [stage["name"] for stage in record["stages"]] == [
        "storage", "windows", "crop", "prepare", "copy", "synthetic", "real",
    ]  # fmt: skip
    larger, link, *_ = record["suggestions"]  # perhaps a deeper queue, too
    assert larger["how"].endswith("--batch-size 8")
    assert larger["gain"]["low"] <= larger["gain"]["value"] <= larger["gain"]["high"]
    assert larger["helps"] in (True, False)
    assert not link["can_be_tried"]
    assert "MB/s were measured" in link["rests_on"]
    assert record["settings"]["page_cache"] == "hot"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_on_a_gpu_copies_are_measured_and_cores_are_counted(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    flags = ["--data", str(dataset.root), "--size", "32", "--batch-size", "8", "--model", "test_resnet"]
    flags += ["--repeats", "1", "--seconds", "0.05", "--device", "cuda", "--backend", backend, "--json"]
    assert main(["doctor", *flags, "--no-verify"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verdict"]["bottleneck"] in BOTTLENECKS
    assert set(record["resources_ms_per_image"]) == {"storage", "host-to-device", "preparing", "model"}
    assert record["resources_ms_per_image"]["host-to-device"] > 0


@pytest.fixture
def sample(dataset: Dataset, tmp_path: Path) -> Sample:
    """All training images in memory."""
    return take_sample(dataset, dataset.split("train"), 100, tmp_path)


AS_IT_IS = Setup(
    config=Config(data="somewhere", input=InputConfig(batch_size=8, size=16, augment="rand-m9-n2-p1"))
)


def suggestions(
    sample: Sample,
    tmp_path: Path,
    costs: Costs,
    *,
    gpu: bool = False,
    backend: str = "torch",
    **images: object,
) -> list[Change]:
    setup = AS_IT_IS.input(**images)
    found = Remedies(setup, sample, tmp_path, backend=backend, gpu=gpu, compilation=False)
    return found.against(judge([costs]), costs)


COSTS = {
    "storage": replace(CPU, storage_s=9e-3),
    "decode": CPU,
    "augment": replace(CPU, augment_core_s=9e-3),
    "host-to-device": replace(CPU, copy_s=9e-3),
    "model": replace(CPU, model_s=9e-3),
}


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_every_bottleneck_has_something_to_try(sample: Sample, tmp_path: Path, bottleneck: str) -> None:
    assert COSTS[bottleneck].bottleneck() == bottleneck
    found = suggestions(sample, tmp_path, COSTS[bottleneck])
    assert any(change.setup is not None for change in found)
    assert all(change.setup is not None or change.rests_on for change in found)
    assert all(change.setup != AS_IT_IS for change in found)


def test_what_is_suggested_fits_the_training(sample: Sample, tmp_path: Path) -> None:
    decoding = [c.how for c in suggestions(sample, tmp_path, CPU, loader_threads=1)]
    assert any("--short-side 18 " in how for how in decoding)
    assert decoding[-2:] == ["--loader-backend dali", "more cores per accelerator"]
    policy = suggestions(sample, tmp_path, COSTS["augment"], augment="rand-m9-n2", erase=0.25)
    assert [c.how.rpartition("--")[2] for c in policy[:3]] == [
        "augment rand-m9-n1",
        "augment none",
        "erase 0",
    ]
    uneven = suggestions(sample, tmp_path, replace(COSTS["model"], real_s=20e-3))
    assert "prefetch" in uneven[-1].how
    gpu = replace(CPU, shared=False, prepare_s=1e-3, model_s=0.1e-3, real_s=1e-3)
    assert "50.0 cores have to prepare" in suggestions(sample, tmp_path / "gpu", gpu, gpu=True)[-1].rests_on


def test_fewer_operations() -> None:
    assert fewer_operations("rand-m9-mstd0.5-inc1") == "rand-m9-mstd0.5-inc1-n1"
    assert fewer_operations("rand-m9-n3-p1") == "rand-m9-n1-p1"
    assert fewer_operations("rand-m9-n1") is None
    assert fewer_operations("ta_wide") is None


@pytest.mark.parametrize(
    ("value", "low", "confidence", "helps"),
    [
        (1.2, 1.05, 0.94, True),
        (1.2, 0.99, 0.94, False),
        (1.02, 1.01, 0.94, False),
        (1.2, 1.05, 0.75, False),
        (2, 1.5, 0.75, True),
    ],
)
def test_what_helps(value: float, low: float, confidence: float, helps: bool) -> None:
    gain = {"value": value, "low": low, "high": 3.0, "confidence": confidence}
    setup = Setup(config=Config())
    assert suggestion(Change(how="x", setup=setup), {"gain": gain, "images_per_s": [1.0]})["helps"] is helps
    assert suggestion(Change(how="x", setup=setup), None)["helps"] is None


def test_images_are_packed_anew_smaller(sample: Sample, tmp_path: Path) -> None:
    small = Dataset.open(pack(sample, tmp_path / "small", 24)).split("train")
    assert len(small) == 63
    assert np.minimum(small.width, small.height).max() == 24
    same = Dataset.open(pack(sample, tmp_path / "same", None)).split("train")
    assert sorted(same.crc32) == sorted(sample.split.crc32)


def test_a_store_is_read_without_leaving_anything_behind(dataset: Dataset, tmp_path: Path) -> None:
    with SlowServer(Path(dataset.root)) as server:
        far = Dataset.open(server.url)
        split = far.split("train")
        taken = take_sample(far, split, 10, tmp_path)
        near = take_sample(dataset, dataset.split("train"), 63, tmp_path)
        with contextlib.closing(Fetch(far, split)) as fetch:
            images = sum(fetch.step()[0] for _ in range(len(split.shards)))
        assert set(server.requests.values()) >= {4}  # every time from the store, nothing is kept
    assert all(
        np.array_equal(one, near.encoded[i]) for i, one in zip(taken.ids.tolist(), taken.encoded, strict=True)
    )
    assert images == 4 * 63


def test_a_cold_page_cache_is_cold_for_training_too(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    evicted: list[str] = []
    monkeypatch.setattr("bench.page_cache.evict", lambda split: evicted.append("measurement"))
    monkeypatch.setattr("bench.page_cache.resident_share", lambda split: 0.0)
    monkeypatch.setattr("bench.doctor.evict", lambda split: evicted.append("epoch"))
    config = Config(
        data=str(dataset.root), input=InputConfig(batch_size=32, size=16), model=ModelConfig(arch=TINY)
    )
    plan = Plan(config=config, repeats=1, seconds=0.001, page_cache="cold", verify=False)
    record = diagnose(plan, torch.device("cpu"), lambda text: None)
    assert record["settings"]["page_cache"] == "cold: evicted before every measurement"
    assert evicted.count("measurement") == len(record["stages"])
    # An epoch is one batch: training has at least two rounds of a lead-in of six and a step.
    assert evicted.count("epoch") >= 2 * 7
    assert 0 <= record["waits"]["read_wait_share"] <= record["waits"]["wait_share"] <= 1


def clinic(data: str, folder: Path, **images: object) -> _Clinic:
    made = {"batch_size": 16, "size": 16, "loader_backend": "torch", **images}
    config = Config(data=data, input=InputConfig(**made), model=ModelConfig(arch=TINY))
    return _Clinic(Plan(config=config, repeats=1, seconds=0.001), torch.device("cpu"), folder)


def test_what_is_compared_has_epochs_as_long(dataset: Dataset, tmp_path: Path) -> None:
    one = clinic(str(dataset.root), tmp_path)
    repacked = one.remedies()._packed(pack(one.sample, tmp_path / "same", None))
    larger = one.setup.input(batch_size=32)
    for setup in (one.setup, repacked, larger):  # 63 images are 3 batches, or one
        with contextlib.closing(one.train("x", "x", setup)) as stage:
            assert len(stage.loader) >= 1000


def test_a_store_is_not_repeated_and_what_lies_beside_it_is_as_long(dataset: Dataset, tmp_path: Path) -> None:
    with SlowServer(Path(dataset.root)) as server:
        # Repeated, an epoch would hold all shards at the same time, which this cache cannot.
        size_gb = sum(dataset.split("train").shard_bytes) / 1e9  # half of a cache may be held
        few = {"shuffle": "window", "window": 1, "lanes": 1, "cache": tmp_path / "cache", "cache_gb": size_gb}
        one = clinic(server.url, tmp_path, **few)
        quarter = Sample(one.sample.ids[:17], one.sample.encoded[:17], one.sample.split)
        repacked = one.remedies()._packed(pack(quarter, tmp_path / "same", None))
        for setup, steps in ((one.setup, 63 // 16), (repacked, 4 * 17 // 16)):
            with contextlib.closing(one.train("x", "x", setup)) as stage:
                assert len(stage.loader) == steps
                assert stage.step() == (16, 0)


def test_a_split_that_is_repeated_is_evicted_after_every_pass(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evicted: list[int] = []
    monkeypatch.setattr("bench.doctor.evict", lambda split: evicted.append(len(split)))
    one = clinic(str(dataset.root), tmp_path)
    one._eviction = Eviction(one.split)
    with contextlib.closing(one.train("x", "x", one.setup)) as stage:
        found = [len(evicted) for _ in range(8) if stage.step()]
    assert found == [1, 1, 1, 2, 2, 2, 3, 3]  # 3 batches of 16 out of 63 images
    evicted.clear()
    repacked = one.remedies()._packed(pack(one.sample, tmp_path / "same", None))
    with contextlib.closing(one.train("x", "x", repacked)) as stage:
        assert [len(evicted) for _ in range(8) if stage.step()] == [1] * 8


@pytest.mark.parametrize("bottleneck", ["storage", "decode"])
def test_of_a_multi_label_dataset_what_would_be_packed_anew_is_not_tried(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bottleneck: str
) -> None:
    rows = [
        f"{path},{'ant|bee' if i % 2 else ''}" for i, path in enumerate(sorted(images.glob("train/*/*.jpg")))
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    data = tmp_path / "data"
    assert (
        shard_main(["build", str(tmp_path / "list.csv"), str(data), "--multi-label", "--workers", "1"]) == 0
    )
    monkeypatch.setattr("bench.doctor.judge", lambda costs: Verdict(bottleneck, 1, 1, 1.0, 1.0, uneven=False))
    config = Config(
        data=str(data), input=InputConfig(batch_size=16, size=16), model=ModelConfig(arch=TINY),
        loss=LossConfig(loss="bce"),
    )  # fmt: skip
    plan = Plan(config=config, repeats=1, seconds=0.001, verify=False)
    record = diagnose(plan, torch.device("cpu"), lambda text: None)
    assert record["verdict"]["bottleneck"] == bottleneck
    packed = [s for s in record["suggestions"] if s["how"].startswith(("faster storage", "smaller images"))]
    assert len(packed) == (3 if bottleneck == "storage" else 2)
    assert all(not s["can_be_tried"] and "several classes" in s["rests_on"] for s in packed)
    assert not any("measured with" in s["how"] for s in packed)
    assert len(record["suggestions"]) > len(packed)
    assert "Not to be tried here:\n  - " in prescription(record)


def test_a_suggestion_is_made_only_where_the_interval_says_so() -> None:
    def tried(how: str, value: float, low: float, helps: bool | None) -> dict[str, object]:
        gain = {"value": value, "low": low, "high": 2 * value, "confidence": 0.9375}
        return {
            "how": how, "caution": "look twice", "rests_on": "", "can_be_tried": True, "helps": helps, "gain": gain,
        }  # fmt: skip

    impossible = {"how": "more cores", "caution": "", "rests_on": "6 of 4 are needed", "can_be_tried": False}
    record = {
        "verdict": {
            "bottleneck": "decode", "agreeing": 4, "repeats": 5, "real": 123.4, "possible": 300.0, "uneven": True,
        },
        "environment": {"cores": 2},
        "waits": {"wait_share": 0.5, "read_wait_share": 0.01},
        "settings": {"page_cache": "cold"},
        "free_cores": 1.5,
        "resources_ms_per_image": {"storage": 0.01, "host-to-device": 0.0, "cores": 3.0},
        "parts_ms_per_image": {"decode": 4.0, "augment": 0.0, "model": 1.0},
        "stages": [
            {"title": "some stage", "images_per_s": [1.0, 3.0], "mb_per_s": [0.0, 0.0], "cpu_s_per_1000": [1.0, 1.0]}
        ],
        "suggestions": [
            tried("a good one", 1.2, 1.1, True), tried("a better one", 1.4, 1.3, True),
            tried("a bad one", 1.2, 0.9, False),
            {**impossible, "helps": None},
        ],
    }  # fmt: skip
    lines = prescription(record).splitlines()
    assert lines[0] == "Decoding limits this training (4 of 5 repeats say so): 123 images/s."
    assert "decode 4.00 CPU s, model 1.00 CPU s, with 1.5 of the 2 cores to be had" in lines[1]
    assert "page cache cold" in lines[2]
    assert "promise 300 images/s" in lines[3]
    bullets = [line for line in lines if line.startswith("  - ")]
    assert [line.partition(":")[0] for line in bullets] == [
        "  - a better one", "  - a good one", "  - more cores", "  - a bad one",
    ]  # fmt: skip
    assert bullets[0].endswith(
        "1.40 × the training's images/s (1.30 – 2.80, 94% interval). Mind: look twice."
    )
    assert bullets[2] == "  - more cores: 6 of 4 are needed."


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["--data", "/nowhere"], "/nowhere is no dataset"),
        (["--augment", "blur-9"], "augmentation policy is 'blur-9'"),
        (["--batch-size", "64", "--size", "32"], "has 63 samples, fewer than"),
    ],
)
def test_mistakes_end_in_one_line(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["doctor", "--data", str(dataset.root), "--model", TINY, *flags]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
