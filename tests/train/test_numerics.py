from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from shard.errors import FeedlineError
from train.build import make_step
from train.cli import parse
from train.config import Config, save
from train.distributed import World
from train.inputs import InputConfig
from train.model import ModelConfig, Normalized, make_model
from train.numerics import CompileWatch, prepare_compilation, set_numerics
from train.optim import OptimConfig
from train.step import StepConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Put torch's switches back."""
    yield
    set_numerics("fp32", CPU, deterministic=False)
    torch._dynamo.reset()


def test_determinism_and_tf32_are_switched_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    set_numerics("bf16", CPU, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    set_numerics("fp32", CPU, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    set_numerics("tf32", torch.device("cuda"), deterministic=False)
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    for precision in ("fp16", "tf32"):
        with pytest.raises(FeedlineError, match=f"precision is '{precision}', which needs a GPU"):
            set_numerics(precision, CPU, deterministic=False)


@pytest.mark.parametrize(
    ("capability", "precision", "missing"),
    [((7, 0), "bf16", True), ((7, 5), "tf32", True), ((7, 5), "fp16", False), ((8, 0), "bf16", False)],
)
def test_a_gpu_without_the_precision_is_an_error(
    capability: tuple[int, int], precision: str, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    if not missing:
        set_numerics(precision, torch.device("cuda"), deterministic=False)
        return
    with pytest.raises(
        FeedlineError, match=f"'{precision}', which Tesla T4 .* does not have; use --precision fp16"
    ):
        set_numerics(precision, torch.device("cuda"), deterministic=False)


def test_compiled_code_is_kept_in_a_cache_that_the_environment_may_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = Path.home() / ".cache" / "feedline" / "inductor"
    for before in (None, default_cache_dir()):  # torch writes the latter itself, when it is imported
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        if before is not None:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        prepare_compilation(1)
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) == ours
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    prepare_compilation(40)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    assert torch._dynamo.config.recompile_limit >= 40


def test_the_watch_tells_new_shapes_from_recompilation() -> None:
    watch = CompileWatch(warmup=2)
    compiled = torch.compile(lambda x, scale: x * scale, dynamic=False, backend="eager")

    def step(rows: int, scale: float) -> None:
        watch.start()
        compiled(torch.ones(rows), scale)
        watch.stop((rows,))

    for _ in range(4):
        step(2, 1.0)
    for _ in range(4):
        step(3, 1.0)  # a new size: compiled once, and meant so
    assert (watch.graphs, watch.recompiled, watch.warning()) == (2, 0, "")
    step(3, 2.0)  # a constant that changes
    assert (watch.graphs, watch.recompiled) == (3, 1)
    assert "made 1 more graph(s) after the warm-up" in watch.warning()
    watch.forget()
    step(3, 3.0)
    assert watch.recompiled == 1


def test_a_compiled_step_compiles_each_size_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With mixing and two sizes; the code generator is left out, it would take a minute."""
    original = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, **options: original(module, backend="aot_eager", dynamic=False)
    )
    config = Config(
        model=ModelConfig(arch="test_efficientnet"),
        step=StepConfig(precision="fp32", compile=True),
        optim=OptimConfig(),
    )
    step = make_step(config, 4, World(), sizes=2)
    step.train()
    valid = torch.ones(4, dtype=torch.bool)
    for size in (24, 32, 24, 32):
        for number in range(3):
            mix = torch.tensor([[0.1 * number, 0, 0, number, 5, 0.5]] * 4)
            step.forward_backward(
                torch.zeros(4, size, size, 3, dtype=torch.uint8), torch.arange(4), valid, mix=mix
            )
            step.update(0.01 * number)
    assert step.watch.graphs == 2
    assert step.watch.recompiled == 0


def test_activation_checkpointing_computes_the_same() -> None:
    images = torch.randint(
        0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        net = make_model(
            ModelConfig(arch="test_vit", grad_checkpointing=on, model_args="img_size=32"), 4, CPU
        ).train()
        assert net.model.grad_checkpointing is on
        net(images).square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_arguments_reach_timms_model() -> None:
    config = ModelConfig(
        arch="test_vit", drop_path=0.2, drop_rate=0.3, model_args="img_size=32, init_values=1e-4"
    )
    model = make_model(config, 4, CPU).model
    assert model.head_drop.p == 0.3
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.blocks[0].ls1.gamma.max().item() == pytest.approx(1e-4)
    for given, message in (("depth", "model_args is 'depth'; give name=value"), ("=3", "give name=value")):
        with pytest.raises(FeedlineError, match=message):
            ModelConfig(model_args=given)


def test_blurpool_on_a_network_without_strides_is_an_error() -> None:
    with pytest.raises(FeedlineError, match="blurpool is on, but 'test_vit' has no convolution"):
        make_model(ModelConfig(arch="test_vit", blurpool=True), 4, CPU)


def test_determinism_is_asked_for_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first product cuBLAS looks at the environment, and then never again."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen: list[str | None] = []
    forward = Normalized.forward

    def watched(self: Normalized, *given: torch.Tensor) -> torch.Tensor:
        seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        return forward(self, *given)

    monkeypatch.setattr(Normalized, "forward", watched)
    config = Config(model=ModelConfig(arch="test_efficientnet"), step=StepConfig(deterministic=True))
    make_step(config, 4, World())
    assert seen
    assert set(seen) == {":4096:8"}


def test_determinism_leaves_the_decoding_engine_out() -> None:
    """It rounds otherwise than the kernels, and its share of a batch is found out by the clock."""
    sure = StepConfig(deterministic=True)
    assert Config(step=sure).input.hw_decoder_load == 0
    assert Config(step=sure, input=InputConfig(hw_decoder_load=0.5)).input.hw_decoder_load == 0.5
    assert Config().input.hw_decoder_load is None


def test_what_came_with_determinism_goes_with_it(tmp_path: Path) -> None:
    """Or the engine would stay out, unasked, of every run that starts from such a run's file."""
    file = tmp_path / "config.yaml"
    save(Config(step=StepConfig(deterministic=True)), file)
    words = ["--config", str(file), "--data", "x", "--device", "cuda"]
    assert parse(words).settings.input.hw_decoder_load == 0
    assert parse([*words, "--no-deterministic"]).settings.input.hw_decoder_load is None
    wanted = ["--no-deterministic", "--hw-decoder-load", "0"]
    assert parse([*words, *wanted]).settings.input.hw_decoder_load == 0


@pytest.mark.gpu
def test_a_gpu_step_compiles_each_size_once_and_stays() -> None:
    device = torch.device("cuda", 0)
    config = Config(model=ModelConfig(arch="test_efficientnet"), step=StepConfig(precision="bf16"))
    step = make_step(config, 4, World(device=device), sizes=2)
    step.train()
    valid = torch.ones(8, dtype=torch.bool, device=device)
    for size in (64, 96, 64, 96):
        for _ in range(4):
            images = torch.zeros(8, size, size, 3, dtype=torch.uint8, device=device)
            step.forward_backward(images, torch.arange(8, device=device) % 4, valid)
            step.update(0.01)
    assert (step.watch.graphs, step.watch.recompiled) == (2, 0)
