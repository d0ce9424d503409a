"""`python -m train predict`: the pixels and predictions of the evaluation, and images that are none."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from loader import Loader, ResizeCenterCrop
from shard.dataset import Dataset, read_sources
from shard.image import Checked
from tests.train.judged import SIDE, lively_run
from train.__main__ import main
from train.commands.predict import main as predict_command
from train.inference import Network, top_classes
from train.predict import Bad, Given, Prediction, Predictor, load_image
from train.predict import predict as predict_all
from train.trained import Trained, load_trained


@pytest.fixture(scope="module")
def run(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_run(tmp_path_factory.mktemp("run") / "mine", dataset_dir)


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return load_trained(run)


class Watching(Network):
    """Keeps the pixels that it is given."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images.clone()
        return super().logits(images)


def predictor(trained: Trained, batch_size: int, network: Network | None = None) -> Predictor:
    network = network or Network(trained, torch.device("cpu"))
    return Predictor(trained, network, batch_size=batch_size)


def test_pixels_are_those_of_the_evaluation(trained: Trained, images: Path, dataset: Dataset) -> None:
    transform = ResizeCenterCrop(size=SIDE, resize=SIDE * 8 // 7)
    with Loader(dataset, "val", transform, batch_size=21, threads=1) as loader:
        batch = next(iter(loader))
    sources = read_sources(dataset.split("val").root).to_pylist()
    names = [str(images / sources[i]) for i in batch.ids.tolist()]
    loaded = [load_image(name, trained.images) for name in names]
    good = [one for one in loaded if isinstance(one, Checked)]
    network = Watching(trained, torch.device("cpu"))
    with predictor(trained, 21, network) as predict:
        predict(names, good)
    torch.testing.assert_close(network.seen, batch.images, rtol=0, atol=0)


def test_predictions_are_those_of_the_evaluation(run: Path, dataset_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "predicted.parquet"
    assert main(["eval", str(run), "--device", "cpu", "--batch-size", "42", "--out", str(tmp_path)]) == 0
    judged = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    # In the same rows of a batch of the same shape, so that nothing is rounded otherwise.
    names = [str(dataset_dir.parent / "images" / row["source"]) for row in judged]
    flags = ["--device", "cpu", "--batch-size", "42", "--out", str(out)]
    assert main(["predict", str(run), *names, *flags]) == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["image"] for row in rows] == names
    assert [row["classes"] for row in rows] == [row["top5"] for row in judged]
    assert [row["probabilities"] for row in rows] == [row["top5_probabilities"] for row in judged]
    assert len({row["classes"][0] for row in rows}) > 1


def test_formats_agree(
    run: Path, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [str(dataset_dir.parent / "images" / "val" / "class2" / f"{i}.jpg") for i in (3, 1)]
    start = ["predict", str(run), *some, "--device", "cpu", "--top", "2"]
    assert main([*start, "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == some
    assert main([*start, "--out", str(tmp_path / "p.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["image"] for row in rows] == some
    assert main([*start, "--out", str(tmp_path / "p.parquet")]) == 0
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    capsys.readouterr()
    assert main(start) == 0
    text = capsys.readouterr().out.splitlines()
    for line, row, columns, shown in zip(lines, rows, table, text, strict=True):
        said = [(p["class"], np.float32(p["probability"])) for p in line["predictions"]]
        assert said == [(row[f"class_{i}"], np.float32(row[f"probability_{i}"])) for i in (1, 2)]
        assert said == list(zip(columns["classes"], map(np.float32, columns["probabilities"]), strict=True))
        assert f"{said[0][0]} {100 * said[0][1]:.1f} %" in shown
        assert 0 < said[1][1] <= said[0][1] < 1


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"0"))
        + chunk(b"IEND", b"")
    )


def encode(pixels: Any, form: str, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form)
    return buffer.getvalue()


def test_hostile_images_are_named_and_the_others_predicted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    jpeg = encode(noise, "JPEG")
    good = {
        "a.jpg": jpeg,
        "cmyk.jpg": encode(noise, "JPEG", "CMYK"),
        "deep.png": encode(noise[..., 0].astype(np.uint16) * 257, "PNG"),
        "gray.webp": encode(noise, "WEBP", "L"),
        "one.png": encode(noise[:1, :1], "PNG"),
        "palette.gif": encode(noise, "GIF", "P"),
    }
    bad = {
        "bomb.png": (bomb(), "more than"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"I am no image\n", "not an image"),
        "thin.png": (encode(np.zeros((1, 60_000, 3), np.uint8), "PNG"), ""),
        "z\x1b[31m.jpg": (b"no", "not an image"),
    }
    for name, content in {**good, **{k: v for k, (v, _) in bad.items()}}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("left out by its suffix")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert (
        main(["predict", str(run), str(tmp_path), "/nowhere.jpg", "--device", "cpu", "--format", "jsonl"])
        == 1
    )
    said = capsys.readouterr()
    named = [Path(json.loads(line)["image"]).name for line in said.out.splitlines()]
    assert set(good) <= set(named) <= {*good, "thin.png"}
    for name, (_, reason) in bad.items():
        if name != "thin.png":
            line = next(x for x in said.err.splitlines() if name.replace("\x1b", "\\x1b") in x)
            assert reason in line
    assert "pipe.jpg: not a regular file" in said.err
    assert "/nowhere.jpg: No such file or directory" in said.err
    assert "\x1b" not in said.err
    assert said.err.splitlines()[-1] == "7 could not be predicted"


def test_what_is_too_narrow_to_be_resized_whole_is_predicted(trained: Trained) -> None:
    """Its shorter side to 256 pixels would make the other one 16 million."""
    thin = encode(np.full((1, 65_000, 3), 90, np.uint8), "JPEG")
    plain = encode(np.zeros((30, 30, 3), np.uint8), "JPEG")
    wide = replace(trained.config.input, eval_size=224, eval_resize=256)
    trained = replace(trained, config=replace(trained.config, input=wide))
    network = Watching(trained, torch.device("cpu"))
    with predictor(trained, 2, network) as predict:
        found = predict(["thin", "plain"], [Checked(thin, 65_000, 1), Checked(plain, 30, 30)])
    assert not [one for one in found if isinstance(one, Bad)]
    assert (network.seen[0] == 90).all()


def test_more_images_than_a_batch_in_order(
    run: Path, dataset_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dataset_dir.parent / "images" / "val" / "class4"
    flags = ["--device", "cpu", "--format", "jsonl"]
    assert main(["predict", str(run), str(folder), "--batch-size", "3", *flags]) == 0
    by_three = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(one["image"]).name for one in by_three] == [f"{i}.jpg" for i in range(7)]
    assert main(["predict", str(run), f"{folder}/*.jpg", *flags]) == 0
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, other in zip(by_three, whole, strict=True):
        assert one["image"] == other["image"]
        a, b = ([p["probability"] for p in x["predictions"]] for x in (one, other))
        # This network's logits are scaled up a thousandfold, and with them what another row of a batch rounds.
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_a_list_on_stdin(run: Path, dataset_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    name = dataset_dir.parent / "images" / "val" / "class0" / "0.jpg"
    stdin = io.TextIOWrapper(io.BytesIO(f"{name}\n/caf\udce9.jpg\n".encode("utf-8", "surrogateescape")))
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["predict", str(run), "-", "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(str(name))
    assert said.err.startswith("/caf\ufffd.jpg: No such file")


@pytest.mark.parametrize(
    "flags",
    [["--top", "0"], ["--format", "xml"], ["--format", "parquet"], ["--out", "a.xlsx"], ["--data", "x"], []],
)
def test_wrong_flags(run: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        predict_command([str(run), "a.jpg", *flags] if flags else [str(run)])
    assert error.value.code == 2
    if flags == ["--format", "parquet"]:
        assert "--format parquet needs --out FILE" in capsys.readouterr().err


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "none"), "a.jpg"]) == 1
    assert "which is no folder; give the --run-dir of a training" in capsys.readouterr().err


def test_many_processes_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["predict", str(run), "a.jpg"]) == 1
    assert "predict is one process" in capsys.readouterr().err


def test_a_few_images_are_not_filled_up_to_a_batch(trained: Trained, photos: list[bytes]) -> None:
    found = {}
    for batch_size, shape in ((128, 5), (4, 4)):
        network = Watching(trained, torch.device("cpu"))
        given = [Given(str(i), photo) for i, photo in enumerate(photos[:5])]
        with predictor(trained, batch_size, network) as predict:
            found[batch_size] = list(predict_all(given, predict))
        assert len(network.seen) == shape
    for one, other in zip(found[128], found[4], strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=2e-3)


def test_order_is_that_of_the_logits() -> None:
    """Of probabilities that are all 0 beside a sure one, or alike in the last digit, none would be known."""
    logits = torch.arange(40.0)[None] * 200
    logits[0, 3] = 1e6
    probabilities, labels = top_classes(logits, 5)
    assert labels.tolist() == [[3, 39, 38, 37, 36]]
    assert probabilities.tolist() == [[1, 0, 0, 0, 0]]
    probabilities, labels = top_classes(logits, 5, multi_label=True)
    assert labels.tolist() == [[3, 39, 38, 37, 36]]
    assert probabilities.tolist() == [[1, 1, 1, 1, 1]]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_out_is_looked_at_before_the_work(
    suffix: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("an image was predicted")

    monkeypatch.setattr(Network, "logits", never)
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / "file").touch()
    for name, why in (
        (f"folder{suffix}", "which is a folder; give a file in it"),
        (f"pipe{suffix}", "it is no file that could be replaced"),
        (f"file/out{suffix}", "cannot write"),
        (f"{'n' * 254}{suffix}", "File name too long"),
    ):
        assert main(["predict", str(run), __file__, "--device", "cpu", "--out", str(tmp_path / name)]) == 1
        assert why in capsys.readouterr().err
    assert (tmp_path / f"pipe{suffix}").is_fifo()


def test_a_link_stays_a_link(run: Path, dataset_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "there.csv")
    name = dataset_dir.parent / "images" / "val" / "class0" / "0.jpg"
    flags = ["--device", "cpu", "--out", str(tmp_path / "link.csv")]
    assert main(["predict", str(run), str(name), *flags]) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there.csv").read_text().startswith("image,class_1,")


def test_a_full_disk_behind_stdout_is_told(
    run: Path, dataset_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    name = dataset_dir.parent / "images" / "val" / "class0" / "0.jpg"
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["predict", str(run), str(name), "--device", "cpu", "--format", "csv"]) == 1
    assert capsys.readouterr().err == "error: cannot write the predictions: No space left on device\n"
