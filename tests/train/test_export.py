"""Exported files, read as their users read them: by other programs' own means."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shard.dataset import Dataset
from tests.train.outside import pixels_of
from tests.train.runs import MEAN, STD, make_run
from train.__main__ import main
from train.export import FORMATS
from train.export.about import describe
from train.export.formats import METADATA, load_safetensors
from train.export.timm_folder import crop_pct
from train.trained import load_trained

ARCH, SIDE = "test_efficientnet", 24
CLASSES = tuple(f"class{i}" for i in range(6))
DOCUMENT = Path(__file__).parents[2] / "docs" / "after-export.md"
# What the documented example may import beside the standard library, with what these packages bring along.
ALLOWED = ("numpy*", "PIL", "pillow*", "onnxruntime*")


@pytest.fixture(scope="module")
def run(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "mine", ARCH, CLASSES, SIDE, data=dataset_dir, ema=True)


@pytest.fixture(scope="module")
def photo(dataset_dir: Path) -> Path:
    """An image of another shape than the dataset's."""
    path = dataset_dir.parent / "photo.jpg"
    with Image.open(next((dataset_dir.parent / "images" / "val" / "class3").iterdir())) as image:
        image.resize((90, 61), Image.Resampling.BICUBIC).save(path, quality=95)
    return path


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def expected(run: Path, images: torch.Tensor) -> torch.Tensor:
    """Logits by timm's model alone, of the averaged weights."""
    model = timm.create_model(ARCH, num_classes=len(CLASSES)).eval()
    model.load_state_dict(torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model_ema"])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        logits: torch.Tensor = model((images.permute(0, 3, 1, 2) / 255 - mean) / std)
    return logits


def exported(run: Path, kind: str, folder: Path, *more: str) -> Path:
    path = folder / FORMATS[kind].name
    assert main(["export", str(run), "--format", kind, "--out", str(path), "--samples", "9", *more]) == 0
    assert [file.name for file in folder.iterdir()] == [path.name]
    return path


@pytest.fixture(scope="module")
def onnx_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(run, "onnx", tmp_path_factory.mktemp("onnx"))


def assert_described(about: dict[str, str], run: Path) -> None:
    assert json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["transform"]) == {"resize": 27, "crop": SIDE, "interpolation": "bilinear"}
    assert (about["arch"], about["checkpoint"], about["run"]) == (ARCH, "best.pt", run.name)
    assert (json.loads(about["averaged"]), json.loads(about["top1"])) == (True, 75.0)


def test_onnx_runs_elsewhere(
    run: Path, onnx_file: Path, images: torch.Tensor, expected: torch.Tensor
) -> None:
    session = onnxruntime.InferenceSession(onnx_file)
    (node,) = session.get_inputs()
    assert (node.type, node.shape[1:]) == ("tensor(uint8)", [SIDE, SIDE, 3])
    for part in (slice(0, 5), slice(2, 3)):
        (logits,) = session.run(None, {node.name: images[part].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected[part], rtol=1e-4, atol=1e-5)
    assert_described(session.get_modelmeta().custom_metadata_map, run)
    assert len(onnx.load(onnx_file).graph.initializer) > 0  # weights are in the file, not beside it


def test_the_documented_example_needs_nothing_else(
    run: Path, onnx_file: Path, photo: Path, tmp_path: Path
) -> None:
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len(code.splitlines()) <= 15
    (tmp_path / "classify.py").write_text(code, encoding="utf-8")
    packages = tmp_path / "packages"
    packages.mkdir()
    for pattern in ALLOWED:
        for found in Path(np.__file__).parents[1].glob(pattern):
            (packages / found.name).symlink_to(found)
    done = subprocess.run(
        # -S: without the environment's packages.
        [sys.executable, "-S", str(tmp_path / "classify.py"), str(onnx_file), str(photo)],
        env={"PYTHONPATH": str(packages), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = [(name, float(share)) for share, name in re.findall(r"(\S+) % (\S+)", done.stdout)]

    trained = load_trained(run)
    pixels = pixels_of(trained, photo)
    shares = trained.net(pixels)[0].softmax(0)
    assert printed == [
        (CLASSES[i], pytest.approx(100 * float(shares[i]), abs=0.5))
        for i in shares.argsort(descending=True)[:5]
    ]


def test_torch_export_needs_no_model_code(
    run: Path, tmp_path: Path, images: torch.Tensor, expected: torch.Tensor
) -> None:
    files = {METADATA: ""}
    with exported(run, "torch.export", tmp_path).open("rb") as file:
        module = torch.export.load(file, extra_files=files).module()
    torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(images[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    assert_described(json.loads(files[METADATA]), run)


def test_safetensors_are_timms_weights(
    run: Path, tmp_path: Path, images: torch.Tensor, expected: torch.Tensor
) -> None:
    path = exported(run, "safetensors", tmp_path)
    model = timm.create_model(ARCH, num_classes=len(CLASSES)).eval()
    timm.models.load_checkpoint(model, str(path))
    wanted = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model_ema"]
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in wanted.items()
    }
    with safetensors.safe_open(path, "pt") as file:
        assert_described(file.metadata(), run)
    with torch.no_grad():
        torch.testing.assert_close(load_safetensors(path)(images), expected, rtol=1e-4, atol=1e-5)


def test_timm_takes_the_folder(
    run: Path, tmp_path: Path, images: torch.Tensor, expected: torch.Tensor, photo: Path
) -> None:
    folder = exported(run, "timm", tmp_path)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        logits = model((images.permute(0, 3, 1, 2) / 255 - mean) / std)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    # timm's transform and ours are the same, but for a grey level of the resize.
    pixels = pixels_of(load_trained(run), photo)[0].permute(2, 0, 1) / 255
    with Image.open(photo) as image:
        theirs = timm.data.create_transform(**data, is_training=False)(image.convert("RGB")) * std + mean
    torch.testing.assert_close(theirs, pixels, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({".git/HEAD": "main", "README.md": "Our card"}, ".git, README.md"),
        ({"a": "", "b": "", "c": "", "d": ""}, "a, b, c, …"),
        ({"config.json": '{"architecture": "resnet18"}'}, "config.json, model.safetensors"),
    ],
)
def test_a_folder_is_replaced_if_it_holds_nothing_but_an_export(
    run: Path, tmp_path: Path, others: dict[str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(run, "timm", tmp_path, "--synthetic")
    (folder / "model.safetensors").write_text("an earlier one")
    exported(run, "timm", tmp_path, "--synthetic")
    assert (folder / "model.safetensors").stat().st_size > 10_000
    for name, text in others.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    before = contents(folder)
    capsys.readouterr()
    assert main(["export", str(run), "--format", "timm", "--out", str(folder), "--synthetic"]) == 1
    said = capsys.readouterr().err
    assert said == f"error: --out is {folder}, a folder with other things in it ({named}); give a new name\n"
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_hugging_face_takes_the_folder(
    run: Path, tmp_path: Path, images: torch.Tensor, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = exported(run, "timm", tmp_path)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert model.config.id2label == dict(enumerate(CLASSES))
    square = [Image.fromarray(image).resize((27, 27)) for image in images.numpy()]
    pixels = AutoImageProcessor.from_pretrained(folder)(square, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (5, 3, SIDE, SIDE)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        logits = model((images.permute(0, 3, 1, 2) / 255 - mean) / std).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_timm_takes_the_folder_of_our_own_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", "cifar_resnet9", CLASSES, 32)
    folder = exported(run, "timm", tmp_path / "out", "--synthetic")
    assert "`import train.models`" in capsys.readouterr().out
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    wanted = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert torch.equal(model.state_dict()["head.weight"], wanted["head.weight"])


def test_readable_class_names_are_those_of_the_same_classes(run: Path) -> None:
    trained = load_trained(run)
    for classes, named, expected in (
        (CLASSES, ["ant", "", "", "bee", "", ""], ["ant", "class1", "class2", "bee", "class4", "class5"]),
        (CLASSES, [""] * 6, list(CLASSES)),
        (CLASSES[::-1], ["f", "e", "d", "", "b", "a"], ["a", "b", "class2", "d", "e", "f"]),
        (("other",), ["ant"], list(CLASSES)),
    ):
        dataset = Dataset(run, classes, "", {"class_names": named})
        assert json.loads(describe(trained, dataset)["class_names"]) == expected


@given(st.integers(1, 1024), st.integers(1, 1024))
def test_timm_resizes_as_we_do(size: int, resize: int) -> None:
    """timm.data.transforms_factory: scale_size = math.floor(img_size / crop_pct)."""
    assert math.floor(size / crop_pct(size, resize)) == resize


def test_what_computes_something_else_gets_no_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exported(run, "safetensors", tmp_path)
    before = path.read_bytes()

    def spoil(trained: Any, about: dict[str, str], to: Path) -> None:
        weights = {k: v.clone() for k, v in trained.net.model.state_dict().items()}
        weights["classifier.bias"][2] += 3e-3
        safetensors.torch.save_file(weights, to, metadata=about)

    monkeypatch.setitem(FORMATS, "safetensors", replace(FORMATS["safetensors"], write=spoil))
    capsys.readouterr()
    assert main(["export", str(run), "--format", "safetensors", "--out", str(path), "--samples", "9"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: model.safetensors was not written: .* differ from the run's by 0.003, .*\n", said
    )
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--checkpoint", "last"], r"there is no checkpoint .*last.pt; give --checkpoint best$"),
        (["--checkpoint", "{run}/config.yaml"], r"config.yaml .* it is damaged .*; give --checkpoint best$"),
        (["--weights", "averaged"], r"best.pt holds no averaged weights: .*leave them out"),
        (["--synthetic", "--out", "{run}"], r"--out is .*, which is a folder; give another name"),
        (["--synthetic", "--format", "timm"], r"--format timm: the run has blurpool, .*use --format onnx"),
        ([], r"names no dataset; give --data DATASET"),
        (["--format", "onnx", "--synthetic"], r"--format onnx needs onnxscript: pip install 'feedline\[export\]'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(
    flags: list[str],
    said: str,
    plain_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    given = [flag.replace("{run}", str(plain_run)) for flag in flags]
    assert main(["export", str(plain_run), "--format", "safetensors", *given]) == 1
    printed = capsys.readouterr().err
    assert re.match("error: .*" + said, printed)
    assert printed.count("\n") == 1
    assert not (plain_run / "export").exists()


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with neither a dataset nor an average."""
    return make_run(tmp_path_factory.mktemp("plain") / "run", "test_resnet", CLASSES, 64, blurpool=True)


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, said in ((tmp_path / "none", "is no folder"), (tmp_path, "is no run folder")):
        assert main(["export", str(path), "--format", "onnx"]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["safetensors", "timm", "torch.export"])
def test_a_full_disk_is_told(run: Path, kind: str, tmp_path: Path, capsys: Any) -> None:
    flags = ["--format", kind, "--out", str(tmp_path / "out"), "--synthetic", "--samples", "1"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # of a file, bytes
    try:
        assert main(["export", str(run), *flags]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / 'out'}: File too large")
    assert not list(tmp_path.iterdir())
