"""models/lab3.py, against a forward pass written from the report's table with torch.nn.functional."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.lab3 import ResNet34UNet, UNet


class Report:
    """The report's forward pass, which takes the state dict's tensors in their order."""

    def __init__(self, state: dict[str, Tensor], training: bool) -> None:
        self.tensors = [value.clone() for value in state.values()]
        self.training = training

    def take(self, count: int) -> list[Tensor]:
        taken, self.tensors = self.tensors[:count], self.tensors[count:]
        return taken

    def conv(self, features: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.take(2)
        return F.conv2d(features, weight, bias, stride, padding=weight.shape[-1] // 2)

    def transposed(self, features: Tensor) -> Tensor:
        return F.conv_transpose2d(features, *self.take(2), stride=2)

    def norm(self, features: Tensor, parameters: list[Tensor]) -> Tensor:
        weight, bias, mean, var, _ = parameters
        return F.batch_norm(features, mean, var, weight, bias, self.training)

    def double_conv(self, features: Tensor) -> Tensor:
        for _ in range(2):
            features = self.conv(features)
            features = F.relu(self.norm(features, self.take(5)))
        return features

    def block(self, features: Tensor, stride: int) -> Tensor:
        first, second, norm = self.take(2), self.take(2), self.take(5)
        residual = F.relu(self.norm(F.conv2d(features, *first, stride, padding=1), norm))
        residual = F.relu(self.norm(F.conv2d(residual, *second, padding=1), norm))
        if stride == 2:
            features = self.conv(features, 2)
            features = self.norm(features, self.take(5))
        return F.relu(residual + features)

    def unet(self, images: Tensor) -> Tensor:
        features, skips = images, []
        for _ in range(4):
            skips.append(self.double_conv(features))
            features = F.max_pool2d(skips[-1], 2)
        features = self.double_conv(features)
        for skip in reversed(skips):
            features = self.double_conv(torch.cat((skip, self.transposed(features)), 1))
        features = self.conv(features)
        return torch.sigmoid(self.norm(features, self.take(5)))

    def resnet(self, images: Tensor) -> Tensor:
        features = self.conv(images, 2)
        features = F.max_pool2d(F.relu(self.norm(features, self.take(5))), 3, 2, 1)
        skips = []
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                features = self.block(features, 2 if stage > 0 and block == 0 else 1)
            skips.append(features)
        features = self.double_conv(features)
        for skip in reversed(skips):
            features = self.double_conv(self.transposed(torch.cat((skip, features), 1)))
        features = self.double_conv(self.double_conv(self.transposed(features)))
        return torch.sigmoid(self.norm(features, self.take(5)))


def shake_norms(model: nn.Module) -> None:
    """Give every BatchNorm weights, biases and statistics that cannot be mistaken for the defaults."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize(
    ("network", "parameters", "tensors"), [(UNet, 31_043_523, 84), (ResNet34UNet, 24_722_081, 180)]
)
def test_counts(network: type[nn.Module], parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        found = list(network().parameters())
    assert (sum(p.numel() for p in found), len(found)) == (parameters, tensors)


@pytest.mark.parametrize(("network", "method"), [(UNet, "unet"), (ResNet34UNet, "resnet")])
def test_sigmoid_of_the_logits_is_the_reports_output(network: type[nn.Module], method: str) -> None:
    torch.manual_seed(0)
    model = network()
    shake_norms(model)
    images = torch.randn(2, 3, 64, 96)
    for training in (False, True):  # in this order, since training moves the statistics
        report = Report(model.state_dict(), training)
        with torch.no_grad():
            reference = getattr(report, method)(images)
            output = model.train(training)(images).sigmoid()
        assert not report.tensors
        assert reference.std() > 1e-3
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [UNet, ResNet34UNet])
def test_a_gradient_reaches_every_parameter_and_weights_start_as_specified(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = network()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / module.weight[0].numel()), rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    model(torch.randn(2, 3, 64, 64)).sigmoid().sub(0.3).square().mean().backward()
    # A bias before a BatchNorm in training mode has a gradient of nothing but rounding.
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_shared_batchnorm_moves_twice_a_step() -> None:
    model = ResNet34UNet()
    model(torch.randn(2, 3, 64, 64))
    assert model.stages[1][0].norm.num_batches_tracked == 2
    assert model.stages[1][0].shortcut[1].num_batches_tracked == 1
