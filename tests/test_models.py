"""A contract for every entry of ``NETWORKS``, and the networks of the reports against their tables."""

import copy
import re
from functools import cache
from itertools import chain, islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shake_norms
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from losses import bce_dice_loss
from models import ALIASES, NETWORKS, build_network, count_parameters, network_names
from models.blocks import pad_to_multiple
from models.resnet34_unet import smooth
from models.segformer import SegFormer
from models.unet_plus_plus import UNetPlusPlus
from predictor import fold_batchnorm

# ---------------------------------------------------------------------------------------------- the contract


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(network: str) -> nn.Module:
    """A network in evaluation mode, for tests that leave it as it is."""
    torch.manual_seed(0)
    return shake_norms(build_network(network)).eval()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (100, 36)])
def test_logits_have_the_size_of_the_images(model: nn.Module, height: int, width: int) -> None:
    with torch.inference_mode():
        assert model(torch.randn(2, 3, height, width)).shape == (2, 1, height, width)


@torch.inference_mode()
def test_logits_are_not_probabilities(model: nn.Module) -> None:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.mul_(1.5)  # new weights may give small logits
    logits = model(torch.randn(2, 3, 64, 32) * 100)
    assert logits.isfinite().all()
    assert logits.min() < 0 or logits.max() > 1


def test_an_image_is_padded_evenly_and_its_logits_cut_out_again(model: nn.Module) -> None:
    images = torch.randn(1, 3, 28, 60)
    padded, (rows, columns) = pad_to_multiple(images, 32)
    with torch.inference_mode():
        logits, expected = model(images), model(padded)[..., rows, columns]
    inside = (..., slice(8, -8), slice(8, -8))  # a network of stride 2 does not pad: it differs at the border
    torch.testing.assert_close(logits[inside], expected[inside], rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_gradient_reaches_every_parameter_and_lowers_the_loss(model: nn.Module) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(model).train()
    images, target = torch.randn(2, 3, 64, 64), torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    target[0, :, 4:40, 10:50] = target[1, :, 25:45, 3:35] = True
    images += target

    def loss() -> Tensor:
        outputs = model(images)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]  # deep supervision
        assert all(logits.shape == target.shape for logits in outputs)
        return sum(bce_dice_loss(logits, target, torch.ones_like(target)) for logits in outputs) / len(outputs)

    before = loss()
    before.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    with torch.no_grad():
        assert loss() < before


def test_the_seed_decides_the_weights_and_a_state_dict_restores_them(network: str, model: nn.Module) -> None:
    torch.manual_seed(0)
    again = build_network(network).eval()
    pairs = zip(again.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs if p.ndim > 1)  # the others have been shaken
    again.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


CLASSES = [network for network, build in NETWORKS.items() if isinstance(build, type)]  # not those with arguments


@pytest.mark.parametrize("network", CLASSES, indirect=True, scope="module")
def test_docstring_states_what_is_counted(model: nn.Module) -> None:
    text = type(model).__doc__
    stated = re.search(r"([\d,]+) parameters(?: in (\d+) tensors)?", text)
    assert stated, "the class's docstring does not state its number of parameters"
    assert stated[1] == f"{count_parameters(model):,}"
    assert stated[2] in (None, str(len(list(model.parameters()))))
    if gmacs := re.search(r"\d+\.(\d+) GMACs", text):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            copy.deepcopy(model).to("meta")(torch.zeros(1, 3, 256, 256, device="meta"))
        assert gmacs[0] == f"{counter.get_total_flops() / 2e9:.{len(gmacs[1])}f} GMACs"


def test_every_convolution_gets_channels_last(model: nn.Module) -> None:
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    kept = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[module] = inputs[0].is_contiguous(memory_format=torch.channels_last)

    convolutions = {m: name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
    for convolution in convolutions:
        convolution.register_forward_pre_hook(record)
    with torch.inference_mode():
        for side in (64, 47):
            model(torch.randn(1, 3, side, side).contiguous(memory_format=torch.channels_last))
            assert not [name for convolution, name in convolutions.items() if not kept[convolution]]


def test_folding_the_batchnorm_changes_nothing(network: str, model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_batchnorm(model)
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    behind_relu = {"lab3.ResNet34_UNet": ["head.3"]}  # cannot be folded
    assert left == behind_relu.get(network, []), "the network is predicted unfolded, which is slower"
    with torch.inference_mode():
        for images in (torch.randn(2, 3, 64, 32), torch.randn(1, 3, 33, 70)):
            expected = model(images)
            torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------------------------------- names and blocks


def test_names() -> None:
    assert network_names() == {"U": "UNet", "R": "ResNet34_UNet"} | {name: name for name in NETWORKS}
    assert set(ALIASES.values()) <= set(NETWORKS)
    with pytest.raises(ValueError, match=r"'unet'.*UNet, ResNet34_UNet"):
        build_network("unet")


@pytest.mark.parametrize(("height", "width"), [(64, 32), (33, 47), (95, 1)])
def test_padding_repeats_the_border_on_both_sides(height: int, width: int) -> None:
    images = torch.randn(2, 3, height, width)
    padded, crop = pad_to_multiple(images, 32)
    rows, columns = ((part.start, size - part.stop) for part, size in zip(crop, padded.shape[-2:], strict=True))
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), rows, columns), mode="edge")
    np.testing.assert_array_equal(padded.numpy(), expected)
    assert torch.equal(padded[..., crop[0], crop[1]], images)
    assert padded.shape[-2] % 32 == padded.shape[-1] % 32 == 0
    assert all(after - before in (0, 1) and before + after < 32 for before, after in (rows, columns))


def test_convolutions_start_as_in_he_et_al() -> None:
    torch.manual_seed(0)
    for module in SegFormer().stages.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:  # depthwise ones too
            fan_out = module.weight[:, 0].numel() / module.groups
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


# ---------------------------------------------------------------------------------------------- UNet++


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("training", [False, True])
def test_unet_plus_plus_is_that_of_figure_1_pruned_to_a_depth(depth: int, training: bool) -> None:
    torch.manual_seed(0)
    model, used, images = shake_norms(UNetPlusPlus(depth)).train(training), [], torch.randn(2, 3, 64, 96)

    @cache
    def node(i: int, j: int) -> Tensor:  # X^{i,j} of the paper's equation 1
        return model.rows[i][j - 1](node(i + 1, j - 1), *(node(i, k) for k in range(j))) if j else features[i]

    with torch.no_grad():
        features = model.encoder(images)
        expected = [head(node(0, j)) for j, head in enumerate(model.heads, start=1)]
        for module in chain(model.encoder.stages, *model.rows):
            module.register_forward_hook(lambda *_: used.append(1))
        outputs = model(images)
    assert [features[i].shape[-1] for i in range(5)] == [48, 24, 12, 6, 3]
    if training:
        torch.testing.assert_close(outputs, expected)
    else:
        torch.testing.assert_close(outputs, smooth(torch.stack(expected[:depth]).mean(0)))
        assert len(used) == depth + depth * (depth + 1) // 2  # stages of the encoder, nodes


def test_unet_plus_plus_has_no_other_depth() -> None:
    for depth in (0, 5, "2"):
        with pytest.raises(ValueError, match=f"depths 1 to 4, not {depth!r}"):
            UNetPlusPlus(depth)


# ---------------------------------------------------------------------------------------------- SegFormer


@pytest.mark.parametrize("network", ["SegFormer", "SegFormerB1"], indirect=True, scope="module")
def test_segformer_is_that_of_transformers(network: str, model: nn.Module) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers' SegFormer is the reference")
    widths = [stage.norm.normalized_shape[0] for stage in model.stages]
    config = transformers.SegformerConfig(hidden_sizes=widths, num_labels=1, decoder_hidden_size=256)
    ours = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in ours.parameters():  # new weights hide what is zero or one
            parameter.normal_(parameter.mean().item(), 0.1)
    theirs = transformers.SegformerForSemanticSegmentation(config).double().eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    for height, width in ((64, 64), (96, 160), (33, 70)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        padded, (rows, columns) = pad_to_multiple(images, 32)  # which theirs leaves to its caller
        with torch.inference_mode():
            logits = theirs(pixel_values=padded).logits  # (2, 1, H/4, W/4)
            expected = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear")[..., rows, columns]
            assert expected.std() > 0.1
            torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-8)


# ---------------------------------------------------------------------------------------------- the reports' networks


class Report:
    """The reports' forward passes up to the sigmoid, written from their tables with ``torch.nn.functional``.

    Each takes the tensors of a state dict in the order in which the report creates its layers.
    """

    def __init__(self, state: dict[str, Tensor], training: bool) -> None:
        self.state = [value.clone() for value in state.values()]  # BatchNorm changes its statistics in training
        self.rest = iter(self.state)
        self.training = training

    def take(self, count: int) -> list[Tensor]:
        return list(islice(self.rest, count))

    def conv(self, features: Tensor, stride: int = 1, bias: bool = True) -> Tensor:
        weight, *biases = self.take(1 + bias)
        return F.conv2d(features, weight, *biases, stride=stride, padding=weight.shape[-1] // 2)

    def up(self, features: Tensor) -> Tensor:
        return F.conv_transpose2d(features, *self.take(2), stride=2)

    def norm(self, features: Tensor, tensors: list[Tensor] | None = None) -> Tensor:
        weight, bias, mean, var, _ = tensors or self.take(5)
        return F.batch_norm(features, mean, var, weight, bias, self.training)

    def conv_norm_relu(self, features: Tensor, stride: int = 1, bias: bool = True) -> Tensor:
        return F.relu(self.norm(self.conv(features, stride, bias)))

    def double_conv(self, features: Tensor) -> Tensor:
        return self.conv_norm_relu(self.conv_norm_relu(features))

    def residual_block(self, features: Tensor, stride: int) -> Tensor:
        first, second, norm = self.take(2), self.take(2), self.take(5)
        residual = F.relu(self.norm(F.conv2d(features, *first, stride, padding=1), norm))
        residual = F.relu(self.norm(F.conv2d(residual, *second, padding=1), norm))
        return F.relu(residual + (features if stride == 1 else self.norm(self.conv(features, stride))))

    def lab2_unet(self, features: Tensor) -> Tensor:
        features = F.max_pool2d(F.relu(self.conv(F.relu(self.conv(features)))), 2)
        return self.conv(F.relu(self.up(F.relu(self.conv(features)))))

    def lab2_resnet(self, features: Tensor) -> Tensor:
        features = F.max_pool2d(self.conv_norm_relu(features, 2, bias=False), 3, 2, 1)
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                features = self.conv_norm_relu(features, 2 if stage > 0 and block == 0 else 1, bias=False)
        features = F.relu(self.conv(F.relu(self.up(F.relu(self.conv(features))))))
        for _ in range(4):
            features = F.relu(self.up(features))
        return self.conv(features)

    def lab3_unet(self, features: Tensor) -> Tensor:
        skips = []
        for _ in range(4):
            skips.append(self.double_conv(features))
            features = F.max_pool2d(skips[-1], 2)
        features = self.double_conv(features)
        for skip in reversed(skips):
            features = self.double_conv(torch.cat((skip, self.up(features)), 1))
        return self.norm(self.conv(features))

    def lab3_resnet(self, features: Tensor) -> Tensor:
        features = F.max_pool2d(self.conv_norm_relu(features, 2), 3, 2, 1)
        skips = []
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                features = self.residual_block(features, 2 if stage > 0 and block == 0 else 1)
            skips.append(features)
        features = self.double_conv(features)
        for skip in reversed(skips):
            features = self.double_conv(self.up(torch.cat((skip, features), 1)))
        return self.norm(self.double_conv(self.double_conv(self.up(features))))


@pytest.mark.parametrize(
    ("network", "forward", "parameters", "tensors"),
    [
        ("lab2.UNet", Report.lab2_unet, 92_161, 10),
        ("lab2.ResNet34_UNet", Report.lab2_resnet, 11_181_921, 67),
        ("lab3.UNet", Report.lab3_unet, 31_043_523, 84),
        ("lab3.ResNet34_UNet", Report.lab3_resnet, 24_722_081, 180),
    ],
    indirect=["network"],
    scope="module",
)
def test_a_reports_network_is_its_table(model: nn.Module, forward, parameters: int, tensors: int) -> None:
    assert (count_parameters(model), len(list(model.parameters()))) == (parameters, tensors)
    model = copy.deepcopy(model)
    images = torch.randn(2, 3, 64, 64)
    for training in (False, True):  # in this order, since training moves the statistics
        report = Report(model.state_dict(), training)
        with torch.no_grad():
            expected, logits = forward(report, images), model.train(training)(images)
        assert not report.take(1)
        assert expected.std() > 1e-3
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        for value, reference in zip(model.state_dict().values(), report.state, strict=True):
            if value.is_floating_point():  # the statistics too: lab3's shared BatchNorm moves twice a step
                torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["lab3.UNet", "lab3.ResNet34_UNet"])
def test_weights_of_lab3_start_as_specified(network: str) -> None:
    torch.manual_seed(0)
    for module in build_network(network).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            assert module.weight.std().item() == pytest.approx((2 / module.weight[0].numel()) ** 0.5, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
