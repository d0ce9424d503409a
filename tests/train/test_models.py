"""The networks of train/models, as timm makes them."""

import pytest
import timm
import torch

import train.models


@pytest.fixture
def model() -> train.models.CifarResNet:
    torch.manual_seed(0)
    made = timm.create_model("cifar_resnet9", num_classes=7)
    assert isinstance(made, train.models.CifarResNet)
    return made


def test_timm_makes_it_with_the_classes_asked_for(model: train.models.CifarResNet) -> None:
    assert model(torch.randn(3, 3, 32, 32)).shape == (3, 7)
    assert model(torch.randn(2, 3, 48, 40)).shape == (2, 7)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(
        1.87e6, rel=0.01
    )  # as its docstring says


def test_features_and_head_make_up_the_forward_pass(model: train.models.CifarResNet) -> None:
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 4, 4)
    assert torch.equal(model.forward_head(features), model(images))
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, features.flatten(2).amax(2))


def test_the_classifier_can_be_replaced(model: train.models.CifarResNet) -> None:
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert model.get_classifier().weight.shape == (3, model.num_features)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.num_features)


def test_every_parameter_gets_a_gradient_and_channels_last_gives_the_same(
    model: train.models.CifarResNet,
) -> None:
    images = torch.randn(4, 3, 32, 32)
    expected = model(images)
    expected.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


def test_there_are_no_weights_to_download() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("cifar_resnet9", pretrained=True)


def test_airbenchs_first_layer_whitens_and_does_not_learn() -> None:
    torch.manual_seed(0)
    net = timm.create_model("airbench94", num_classes=7)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(
        1.97e6, rel=0.01
    )  # as its docstring says
    images = torch.randn(64, 3, 32, 32) * torch.tensor([1.0, 0.1, 3.0]).view(3, 1, 1)
    images[:, 1] += 0.5 * images[:, 0]
    net.init_from_images(images)
    out = net.whiten(images)[:, :12].permute(1, 0, 2, 3).flatten(1)
    covariance = out @ out.T / out.shape[1]
    # Directions weaker than the epsilon of 5e-4 stay a little weaker.
    torch.testing.assert_close(covariance, torch.eye(12), rtol=0, atol=0.1)
    assert torch.equal(net.whiten.weight[12:], -net.whiten.weight[:12])
    assert not net.whiten.weight.requires_grad
    logits = net(images)
    assert logits.shape == (64, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    net.reset_classifier(0)
    assert net(images).shape == (64, 256)
