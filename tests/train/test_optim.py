from __future__ import annotations

import pytest
import timm
import torch

from shard.errors import FeedlineError
from train.optim import ClipConfig, OptimConfig, clip, make_optimizer, set_lr


def test_norms_and_biases_have_no_weight_decay() -> None:
    model = timm.create_model("test_efficientnet", num_classes=3)
    optimizer = make_optimizer(model, OptimConfig(optimizer="adamw", weight_decay=0.05))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.0 if parameter.ndim <= 1 or name.endswith("bias") else 0.05
        assert decay[id(parameter)] == expected, name
    assert sorted(set(decay.values())) == [0.0, 0.05]


def test_set_lr_reaches_every_group() -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), OptimConfig())
    set_lr(optimizer, 0.125)
    assert [g["lr"] for g in optimizer.param_groups] == [0.125, 0.125]


def test_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(FeedlineError, match="did you mean 'adamw'"):
        make_optimizer(torch.nn.Linear(2, 2), OptimConfig(optimizer="adamww"))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lamb", "lion", "muon", "nadamw", "adopt"])
def test_optimizers_learn(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = make_optimizer(model, OptimConfig(optimizer=name, lr=0.01))
    x = torch.randn(64, 4)
    losses = []
    for _ in range(60):
        loss = (model(x) - x[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_moments_eps_and_further_arguments_reach_the_optimizer() -> None:
    config = OptimConfig(
        optimizer="lamb", betas=(0.8, 0.95), eps=1e-5, opt_args="trust_clip=true, max_grad_norm=2.5"
    )
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["trust_clip"]) == ((0.8, 0.95), 1e-5, True)
    assert optimizer.defaults["max_grad_norm"] == 2.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"optimizer": "sgd", "betas": (0.9, 0.99)},
            r"betas is \(0.9, 0.99\), but the optimizer 'sgd' has none",
        ),
        ({"optimizer": "lamb", "opt_args": "trustclip=true"}, "names 'trustclip'.*did you mean 'trust_clip'"),
        ({"optimizer": "lamb", "opt_args": "trust_clip"}, "opt_args is 'trust_clip'; give name=value"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 0.5, "bias_lr_scale": 2.0}, "exclude each other"),
    ],
)
def test_impossible_optimizers_are_errors(given: dict[str, object], message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        make_optimizer(torch.nn.Linear(2, 2), OptimConfig(**given))  # type: ignore[arg-type]


def scales(model: torch.nn.Module, config: OptimConfig) -> dict[str, float]:
    """Learning rate of every parameter at a peak of 1."""
    optimizer = make_optimizer(model, config)
    set_lr(optimizer, 1.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rate[id(p)] for name, p in model.named_parameters()}


def test_layer_decay_lets_each_layer_learn_slower_than_the_next() -> None:
    model = timm.create_model("test_vit", num_classes=3)  # embedding, 6 blocks, norm and head
    found = scales(model, OptimConfig(optimizer="adamw", layer_decay=0.5))
    assert found["head.weight"] == 1
    blocks = [found[f"blocks.{i}.mlp.fc1.weight"] for i in range(len(model.blocks))]
    assert blocks == pytest.approx([0.5 ** (len(blocks) - i) for i in range(len(blocks))])
    assert found["patch_embed.proj.weight"] == pytest.approx(blocks[0] / 2)
    plain = scales(model, OptimConfig(optimizer="adamw"))
    assert set(plain.values()) == {1.0}


def test_biases_of_norms_learn_faster_if_wanted() -> None:
    model = timm.create_model("test_efficientnet", num_classes=3)
    found = scales(model, OptimConfig(bias_lr_scale=64.0))
    assert {found[n] for n in found if n.startswith("bn1.bias")} == {64.0}
    assert {found[n] for n in ("bn1.weight", "classifier.bias", "conv_stem.weight")} == {1.0}
    assert len(found) == len(list(model.parameters()))


class WithPosition(torch.nn.Sequential):
    """A network with a parameter that timm's models name in `no_weight_decay`."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 2, 4))

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_scaled_biases_leave_the_models_own_exemptions_from_weight_decay(scale: float) -> None:
    model = WithPosition()
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.05, bias_lr_scale=scale))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.05, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "pos_embed": 0.0,
    }  # fmt: skip


def test_scaled_biases_without_a_batch_norm_are_an_error() -> None:
    with pytest.raises(FeedlineError, match=r"bias_lr_scale is 2\.0, but the model has no batch norm"):
        make_optimizer(timm.create_model("test_vit", num_classes=3), OptimConfig(bias_lr_scale=2.0))


def gradients(mode: str, bound: float | None) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3)
    (model(torch.randn(4, 3, 32, 32)).square().sum() * 100).backward()
    clip(model, ClipConfig(clip_grad=bound, clip_mode=mode))  # type: ignore[arg-type]
    return model, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_clipping_by_norm_and_by_value() -> None:
    _, raw = gradients("norm", None)
    norm = torch.cat([g.flatten() for g in raw.values()]).norm()
    assert norm > 1
    _, clipped = gradients("norm", 1.0)
    for name, grad in clipped.items():
        torch.testing.assert_close(grad, raw[name] / norm, rtol=1e-4, atol=1e-7)
    _, cut = gradients("value", 0.5)
    for name, grad in cut.items():
        torch.testing.assert_close(grad, raw[name].clamp(-0.5, 0.5))


def test_agc_bounds_each_filter_by_its_weights_and_leaves_the_head_alone() -> None:
    _, raw = gradients("norm", None)
    model, clipped = gradients("agc", 0.01)
    weight, grad = dict(model.named_parameters())["conv_stem.weight"], clipped["conv_stem.weight"]
    bound = 0.01 * weight.detach().flatten(1).norm(dim=1).clamp(min=1e-3)
    before = raw["conv_stem.weight"].flatten(1).norm(dim=1)
    torch.testing.assert_close(
        grad.flatten(1).norm(dim=1), torch.minimum(before, bound), rtol=1e-4, atol=1e-7
    )
    assert (before > bound).any()
    assert torch.equal(clipped["classifier.weight"], raw["classifier.weight"])
    with pytest.raises(FeedlineError, match=r"clip_grad is 0\.0"):
        ClipConfig(clip_grad=0.0)
