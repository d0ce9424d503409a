"""The formats: how each is written, and how what was written is read back to be compared with the run.

| format | what it is | normalisation |
|---|---|---|
| onnx | one file for ONNX Runtime and the like | inside: uint8 [N, H, W, 3] in |
| torch.export | one file, `torch.export.load` runs it without the code of the model | inside |
| safetensors | the bare timm model's weights | mean and std in the header |
| timm | folder of weights and config.json, as on the Hugging Face hub | in config.json |
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from shard.errors import FeedlineError
from train.export.timm_folder import check_arch, read_timm, save_weights, write_timm
from train.model import Normalized, make_model
from train.trained import Trained

Predict = Callable[[torch.Tensor], torch.Tensor]
About = dict[str, str]

METADATA = "feedline.json"  # entry of torch.export's archive
_MOST_ONNX = 2**31 - 2**24  # bytes of a protocol buffer, less room for the graph


@dataclass(frozen=True, slots=True)
class Format:
    """A format.

    Attributes:
        name: default name of the file or folder.
        write: writes a network, on the CPU with contiguous weights, with its description to a path.
        read: reads it back: gives uint8 [B, H, W, 3] to logits [B, classes].
        check: raises what stands against writing this run at all, before any work is done.
    """

    name: str
    write: Callable[[Trained, About, Path], None]
    read: Callable[[Trained, Path], Predict]
    check: Callable[[Trained], None] = lambda trained: None


def _example(trained: Trained) -> torch.Tensor:
    side = trained.config.input.eval_size
    return torch.zeros(2, side, side, 3, dtype=torch.uint8)  # not one: a batch of one would become a constant


@contextmanager
def _tracing(trained: Trained, kind: str) -> Iterator[None]:
    """Keep the exporter's notes to itself, and make one line of what it cannot do."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    # torch raises whatever it trips over in the model's code.
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise FeedlineError(
            f"--format {kind}: torch cannot trace {trained.config.model.arch!r} with any number of images ({first}); "
            "use --format timm or safetensors"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _trace(trained: Trained, kind: str) -> torch.export.ExportedProgram:
    with _tracing(trained, kind):
        batch = torch.export.Dim("batch", min=1)
        return torch.export.export(trained.net, (_example(trained),), dynamic_shapes=({0: batch},))


def _write_onnx(trained: Trained, about: About, path: Path) -> None:
    import onnx

    with _tracing(trained, "onnx"):
        program = torch.onnx.export(
            trained.net,
            (_example(trained),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None  # with dynamo
        model = program.model_proto
    onnx.helper.set_model_props(model, about)
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)


def _read_onnx(trained: Trained, path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _check_onnx(trained: Trained) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FeedlineError(f"--format onnx needs {error.name}: pip install 'feedline[export]'") from error
    size = sum(p.numel() * p.element_size() for p in trained.net.parameters())
    if size > _MOST_ONNX:
        raise FeedlineError(
            f"--format onnx: the weights take {size / 2**30:.1f} GiB, an ONNX file holds 2; use --format torch.export"
        )


def _write_exported(trained: Trained, about: About, path: Path) -> None:
    # By way of memory: torch.export.save wants a path to end in .pt2, and ends the process where a disk is full.
    buffer = io.BytesIO()
    torch.export.save(_trace(trained, "torch.export"), buffer, extra_files={METADATA: json.dumps(about)})
    path.write_bytes(buffer.getvalue())  # no copy; a view would crash Python 3.12.1 where the disk is full


def _read_exported(trained: Trained, path: Path) -> Predict:
    with path.open("rb") as file:
        module: Predict = torch.export.load(file).module()
    return module


def _write_safetensors(trained: Trained, about: About, path: Path) -> None:
    save_weights(trained, about, path)


def _read_safetensors(trained: Trained, path: Path) -> Predict:
    return load_safetensors(path)


def load_safetensors(path: Path) -> Normalized:
    """The network of a file that `--format safetensors` wrote, in evaluation mode; its header is all that it takes.

    Raises:
        FeedlineError: the file is another one's.
    """
    from train.model import ModelConfig

    with safetensors.safe_open(path, "pt") as file:
        about: dict[str, Any] = file.metadata() or {}
    if "arch" not in about:
        raise FeedlineError(f"{path} says nothing of its model: `python -m train export` did not write it")
    mean, std = (tuple(json.loads(about[name])) for name in ("mean", "std"))
    config = ModelConfig(
        arch=about["arch"],
        model_args=about["model_args"],
        blurpool=json.loads(about["blurpool"]),
        # Files that were written before there was a choice say nothing of it.
        head=about.get("head", "linear"),
        head_hidden=json.loads(about.get("head_hidden", "1")),
        mean=mean,
        std=std,
    )
    net = make_model(config, len(json.loads(about["classes"])), torch.device("cpu"), resumed=True)
    net.model.load_state_dict(safetensors.torch.load_file(path))
    return net.eval()


def _read_timm(trained: Trained, path: Path) -> Predict:
    model: nn.Module = read_timm(path)
    return Normalized(model, *_statistics(path)).eval()


def _statistics(path: Path) -> tuple[Any, Any]:
    found = json.loads((path / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    return tuple(found["mean"]), tuple(found["std"])


FORMATS: dict[str, Format] = {
    "onnx": Format("model.onnx", _write_onnx, _read_onnx, _check_onnx),
    "torch.export": Format("model.pt2", _write_exported, _read_exported),
    "safetensors": Format("model.safetensors", _write_safetensors, _read_safetensors),
    "timm": Format("timm", write_timm, _read_timm, check_arch),
}
