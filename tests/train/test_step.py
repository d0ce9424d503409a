from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from shard.errors import FeedlineError
from train.distributed import World
from train.losses import LossConfig
from train.model import ModelConfig, Normalized, make_model
from train.optim import OptimConfig, make_optimizer
from train.step import StepConfig, TrainStep

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


ALL = torch.ones(16, dtype=torch.bool)


def data(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 4, (n,), generator=generator)


def build(arch: str, accumulate: int = 1, smoothing: float = 0.1) -> TrainStep:
    torch.manual_seed(0)
    net = make_model(ModelConfig(arch=arch, mean=MEAN, std=STD), 4, CPU).train()
    optimizer = make_optimizer(net.model, OptimConfig(optimizer="momentum", momentum=0.9, weight_decay=1e-3))
    config = StepConfig(precision="fp32", accumulate=accumulate)
    return TrainStep(net, optimizer, config, World(), loss=LossConfig(label_smoothing=smoothing))


def by_hand(images: torch.Tensor) -> torch.Tensor:
    """Normalised NCHW floats the usual way."""
    pixels = images.permute(0, 3, 1, 2).double() / 255
    return ((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).float()


def test_equals_a_loop_written_by_hand() -> None:
    step = build("test_efficientnet")
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=4).train()
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("bias")]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or n.endswith("bias")]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": decay, "weight_decay": 1e-3}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    for i in range(4):
        images, labels = data(16, seed=i)
        lr = 0.01 * (i + 1)
        loss = step.forward_backward(images, labels, ALL[: len(labels)])
        step.update(lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        expected = F.cross_entropy(model(by_hand(images)), labels, label_smoothing=0.1)
        expected.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_masked_samples_have_no_part_in_the_loss() -> None:
    step = build("test_efficientnet_gn")  # group normalisation: samples do not mix
    images, labels = data(8)
    valid = torch.tensor([True, False, True, True, False, True, True, True])
    masked = step.forward_backward(images, labels, valid)
    step.optimizer.zero_grad()
    alone = step.forward_backward(images[valid], labels[valid], ALL[:6])
    assert masked.item() == pytest.approx(alone.item() * 6 / 8, rel=1e-5)  # each still weighs an eighth
    assert step.forward_backward(images, labels, ~ALL[:8]).item() == 0


def test_accumulation_equals_the_large_batch() -> None:
    whole, parts = build("test_efficientnet_gn"), build("test_efficientnet_gn", accumulate=4)
    for i in range(3):
        images, labels = data(16, seed=i)
        valid = torch.arange(16) % 16 >= 3 * i  # bad samples, more in one part than in another
        loss = whole.forward_backward(images, labels, valid)
        whole.update(0.05)
        shares = [
            parts.forward_backward(images[k : k + 4], labels[k : k + 4], valid[k : k + 4], last=k == 12)
            for k in range(0, 16, 4)
        ]
        parts.update(0.05)
        assert sum(s.item() for s in shares) == pytest.approx(loss.item(), rel=1e-4)
    for name, value in whole.net.state_dict().items():
        torch.testing.assert_close(parts.net.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_normalisation_and_its_gradient_equal_the_manual_ones() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 5, 3)
    net = Normalized(convolution, MEAN, STD)
    images, _ = data(4)
    (mine,) = torch.autograd.grad(net(images).square().mean(), convolution.weight)
    (expected,) = torch.autograd.grad(convolution(by_hand(images)).square().mean(), convolution.weight)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_the_model_sees_channels_last_without_a_copy_of_the_images() -> None:
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.shape, x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return x

    Normalized(Spy(), MEAN, STD)(data(2)[0])
    assert seen == [((2, 3, 32, 32), torch.float32, True)]


def test_bf16_computes_in_bf16_and_keeps_fp32_weights_and_loss() -> None:
    step = build("test_efficientnet")
    step.config = StepConfig(precision="bf16")
    images, labels = data(8)
    assert step.predict(images).dtype == torch.bfloat16
    assert step.forward_backward(images, labels, ALL[: len(labels)]).dtype == torch.float32
    assert {p.grad.dtype for p in step.net.parameters() if p.grad is not None} == {torch.float32}


def test_fp16_on_a_cpu_is_an_error() -> None:
    net = make_model(ModelConfig(arch="test_efficientnet"), 4, CPU)
    with pytest.raises(FeedlineError, match=r"fp16.*needs a GPU"):
        TrainStep(net, make_optimizer(net, OptimConfig()), StepConfig(precision="fp16"), World())


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(FeedlineError, match="did you mean 'resnet50'"):
        make_model(ModelConfig(arch="resnet5O"), 4, CPU)


def test_pretrained_weights_load_and_another_head_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = timm.create_model("test_efficientnet", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    config = ModelConfig(arch="test_efficientnet", pretrained=tmp_path / "w.pt")
    same = make_model(config, 7, CPU).model.state_dict()
    assert all(torch.equal(same[k], v) for k, v in source.state_dict().items())
    assert capsys.readouterr().err == ""
    other = make_model(config, 4, CPU).model.state_dict()
    assert torch.equal(other["conv_stem.weight"], source.state_dict()["conv_stem.weight"])
    assert other["classifier.weight"].shape[0] == 4
    assert "classifier.bias, classifier.weight" in capsys.readouterr().err


def test_pretrained_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FeedlineError, match=r"not a file; give weights .* None to start from scratch"):
        make_model(ModelConfig(arch="test_efficientnet", pretrained=tmp_path / "none.pt"), 4, CPU)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    with pytest.raises(FeedlineError, match="does not fit the model"):
        make_model(ModelConfig(arch="test_efficientnet", pretrained=tmp_path / "w.pt"), 4, CPU)


def test_running_statistics_are_not_sent_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """They change nothing in training, and are taken over once before each evaluation."""
    sent: list[int] = []
    monkeypatch.setattr(DistributedDataParallel, "_sync_buffers", lambda self: sent.append(1))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = make_model(ModelConfig(arch="test_resnet", mean=MEAN, std=STD), 4, CPU).train()
        optimizer = make_optimizer(net.model, OptimConfig())
        step = TrainStep(net, optimizer, StepConfig(precision="fp32"), World(size=2))  # it is told of another
        for _ in range(2):
            step.forward_backward(*data(16), ALL)
            step.update(0.1)
    finally:
        dist.destroy_process_group()
    assert sent == []
