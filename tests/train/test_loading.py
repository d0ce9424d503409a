"""Our checkpoints in bare timm, timm's weights here, and files that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from shard.errors import FeedlineError
from train import checkpoint
from train.__main__ import main
from train.model import ModelConfig, Normalized, make_model

ARCH, CPU = "test_efficientnet", torch.device("cpu")


@pytest.fixture(scope="module")
def trained(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a short training on 6 classes."""
    run = tmp_path_factory.mktemp("trained")
    assert main([*flags, "--epochs", "1", "--run-dir", str(run)]) == 0
    return run / "checkpoints" / "last.pt"


def test_bare_timm_opens_our_checkpoint_with_the_same_logits(trained: Path) -> None:
    theirs = timm.create_model(ARCH, num_classes=6, checkpoint_path=str(trained)).eval()
    ours = timm.create_model(ARCH, num_classes=6)
    ours.load_state_dict(checkpoint.load(trained)["model"], strict=True)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    images = torch.randint(
        0, 256, (4, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    with torch.no_grad():
        torch.testing.assert_close(
            Normalized(ours, mean, std).eval()(images), theirs(pixels), rtol=1e-4, atol=1e-5
        )


def _pth(model: torch.nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def _wrapped(model: torch.nn.Module, path: Path) -> None:
    """As timm's train script saves it from DDP."""
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, path)


def _safetensors(model: torch.nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


@pytest.mark.parametrize(
    ("name", "write"), [("w.pth", _pth), ("w.pth.tar", _wrapped), ("w.safetensors", _safetensors)]
)
def test_timms_weights_fine_tune_here(
    name: str,
    write: Callable[[torch.nn.Module, Path], None],
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(5)
    source = timm.create_model(ARCH, num_classes=1000)
    write(source, tmp_path / name)
    tune = ["--pretrained", str(tmp_path / name), "--lr", "0", "--weight-decay", "0", "--epochs", "1"]
    assert main([*flags, *tune, "--run-dir", str(tmp_path / "run")]) == 0
    assert "its head is of another size and is left out" in capsys.readouterr().err
    tuned = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["model"]
    parameters = {n for n, _ in source.named_parameters() if "classifier" not in n}
    assert all(torch.equal(source.state_dict()[n], tuned[n]) for n in parameters)
    assert tuned["classifier.weight"].shape[0] == 6


def load(path: Path, classes: int = 6) -> None:
    make_model(ModelConfig(arch=ARCH, pretrained=path), classes, CPU)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_an_error_that_names_it(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    model = timm.create_model(ARCH, num_classes=6)
    (_safetensors if suffix == ".safetensors" else _pth)(model, path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>404</html>"):
        path.write_bytes(damaged)
        with pytest.raises(FeedlineError, match=rf"w\{suffix}' *, which cannot be read"):
            load(path)


def test_a_changed_byte_in_a_pth_is_found(trained: Path, tmp_path: Path) -> None:
    whole = bytearray(trained.read_bytes())
    whole[len(whole) // 2] ^= 1
    path = tmp_path / "w.pth"
    path.write_bytes(whole)
    with pytest.raises(
        FeedlineError, match=r"pretrained: .*w\.pth cannot be read: it is damaged \(checksum of"
    ):
        load(path)


def test_misfits_say_what_is_wrong(tmp_path: Path) -> None:
    state = timm.create_model(ARCH, num_classes=6).state_dict()
    path = tmp_path / "w.pth"
    renamed = {("conv_stm.weight" if k == "conv_stem.weight" else k): v for k, v in state.items()}
    cases = {
        r"1 are unknown to it, the first 'conv_stm\.weight' \(nearest: 'conv_stem\.weight'\)": renamed,
        r"1 of its \d+ tensors are missing, the first 'bn1\.bias'": {
            k: v for k, v in state.items() if k != "bn1.bias"
        },
        r"first 'conv_stem\.weight': \(1, 2\) instead of \(": {
            **state,
            "conv_stem.weight": torch.zeros(1, 2),
        },
    }
    for message, weights in cases.items():
        torch.save(weights, path)
        with pytest.raises(FeedlineError, match=message):
            load(path)
    torch.save([1, 2], path)
    with pytest.raises(FeedlineError, match=r"w\.pth"):
        load(path)


def test_going_on_with_other_classes_is_refused(
    trained: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class count is part of the dataset, whose fingerprint a checkpoint holds."""
    from shard.build import build
    from shard.plan import Settings
    from tests.conftest import write_images

    write_images(tmp_path / "images" / "train", 8)
    write_images(tmp_path / "images" / "val", 3, seed=1)
    build(tmp_path / "images", tmp_path / "data", Settings(), workers=1)
    other = [str(tmp_path / "data") if i and flags[i - 1] == "--data" else f for i, f in enumerate(flags)]
    assert main([*other, "--epochs", "2", "--resume", str(trained), "--run-dir", str(tmp_path / "run")]) == 1
    assert "was trained on another dataset" in capsys.readouterr().err
