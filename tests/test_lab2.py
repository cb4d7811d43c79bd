"""models/lab2.py, against a forward pass written from the report's table with torch.nn.functional."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.lab2 import ResNet34UNet, UNet


def conv_norm_relu(features: Tensor, p: list[Tensor], stride: int, padding: int, training: bool) -> Tensor:
    """Takes weight, BN weight, BN bias, running mean, running variance and a count from the front of ``p``."""
    features = F.conv2d(features, p.pop(0), stride=stride, padding=padding)
    weight, bias, mean, var = (p.pop(0) for _ in range(4))
    p.pop(0)
    return F.relu(F.batch_norm(features, mean, var, weight, bias, training))


def conv(features: Tensor, p: list[Tensor]) -> Tensor:
    weight, bias = p.pop(0), p.pop(0)
    return F.conv2d(features, weight, bias, padding=weight.shape[-1] // 2)


def transposed(features: Tensor, p: list[Tensor]) -> Tensor:
    return F.conv_transpose2d(features, p.pop(0), p.pop(0), stride=2)


def unet_output(state: dict[str, Tensor], images: Tensor, training: bool) -> Tensor:
    p = [value.clone() for value in state.values()]
    features = F.relu(conv(F.relu(conv(images, p)), p))
    features = F.max_pool2d(features, 2)
    features = F.relu(transposed(F.relu(conv(features, p)), p))
    features = conv(features, p)
    assert not p
    return torch.sigmoid(features)


def resnet_output(state: dict[str, Tensor], images: Tensor, training: bool) -> Tensor:
    p = [value.clone() for value in state.values()]
    features = conv_norm_relu(images, p, 2, 3, training)
    features = F.max_pool2d(features, 3, stride=2, padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            features = conv_norm_relu(features, p, 2 if stage > 0 and block == 0 else 1, 1, training)
    features = F.relu(conv(features, p))
    features = F.relu(transposed(features, p))
    features = F.relu(conv(features, p))
    for _ in range(4):
        features = F.relu(transposed(features, p))
    features = conv(features, p)
    assert not p
    return torch.sigmoid(features)


def shake_norms(model: nn.Module) -> None:
    """Give every BatchNorm weights, biases and statistics that cannot be mistaken for the defaults."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize(("network", "parameters", "tensors"), [(UNet, 92_161, 10), (ResNet34UNet, 11_181_921, 67)])
def test_counts(network: type[nn.Module], parameters: int, tensors: int) -> None:
    found = list(network().parameters())
    assert (sum(p.numel() for p in found), len(found)) == (parameters, tensors)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("network", "expected"), [(UNet, unet_output), (ResNet34UNet, resnet_output)])
def test_sigmoid_of_the_logits_is_the_reports_output(network: type[nn.Module], expected, training: bool) -> None:
    torch.manual_seed(0)
    model = network().train(training)
    shake_norms(model)
    images = torch.rand(2, 3, 64, 96) * (255 if network is UNet else 2)
    with torch.no_grad():
        reference = expected(model.state_dict(), images, training)
        output = model(images).sigmoid()
    assert reference.std() > 1e-4
    torch.testing.assert_close(output, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", [UNet, ResNet34UNet])
def test_a_gradient_reaches_every_parameter(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = network()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
