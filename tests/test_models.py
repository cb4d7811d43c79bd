import numpy as np
import pytest
import torch
from torch import nn

from losses import bce_dice_loss
from models import NETWORKS, build_network, count_parameters
from models.blocks import pad_to_multiple
from models.resnet34_unet import ResNet34Encoder

OURS = ("UNet", "ResNet34_UNet")  # test_lab2.py and test_lab3.py have more about the others
STRIDES = {
    "UNet": 16,
    "ResNet34_UNet": 32,
    "lab2.UNet": 2,
    "lab2.ResNet34_UNet": 32,
    "lab3.UNet": 16,
    "lab3.ResNet34_UNet": 32,
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def fresh(network: str) -> nn.Module:
    """A network in evaluation mode, for the tests that do not change it."""
    torch.manual_seed(0)
    return build_network(network).eval()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (100, 36)])
def test_logits_have_the_size_of_the_images(fresh: nn.Module, height: int, width: int) -> None:
    with torch.inference_mode():
        assert fresh(torch.randn(2, 3, height, width)).shape == (2, 1, height, width)


@pytest.mark.parametrize("network", OURS, scope="module", indirect=True)
def test_logits_are_not_probabilities(fresh: nn.Module) -> None:
    with torch.inference_mode():
        logits = fresh(torch.randn(2, 3, 64, 64) * 3)
    assert logits.min() < 0
    assert logits.max() > 1


def test_parameter_counts() -> None:
    counts = {network: count_parameters(build_network(network)) for network in OURS}
    assert counts["UNet"] == 31_037_633
    assert counts["ResNet34_UNet"] == 24_430_404


def test_same_seed_same_weights(network: str, fresh: nn.Module) -> None:
    torch.manual_seed(0)
    again = build_network(network)
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), again.parameters(), strict=True))


def test_no_network_of_that_name() -> None:
    with pytest.raises(ValueError, match=r"'unet'.*UNet, ResNet34_UNet"):
        build_network("unet")


@pytest.mark.parametrize("network", OURS, scope="module", indirect=True)
def test_one_batch_is_overfitted_through_every_parameter(network: str) -> None:
    torch.manual_seed(0)
    model = build_network(network).to(memory_format=torch.channels_last).train()
    side = 2 * STRIDES[network]
    images = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    truth = torch.zeros(2, 1, side, side, dtype=torch.bool)
    truth[0, :, 4:20, 10:30] = truth[1, :, 15:25, 3:15] = True
    images[truth.expand_as(images)] += 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    losses = []
    for step in range(40):
        logits = model(images)
        loss = bce_dice_loss(logits, truth, torch.ones_like(truth))
        losses.append(loss.item())
        if losses[-1] < losses[0] / 4 and ((logits > 0) == truth).float().mean() > 0.98:
            break
        loss.backward()
        if step == 0:
            without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            assert not without, f"no gradient reaches {without}"
        optimizer.step()
        optimizer.zero_grad()
    else:
        pytest.fail(f"the losses were {losses}")


def test_channels_last_is_kept_through_every_convolution(network: str) -> None:
    model = build_network(network).to(memory_format=torch.channels_last).eval()
    lost = []

    def look(name: str):
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if not inputs[0].is_contiguous(memory_format=torch.channels_last):
                lost.append(name)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_pre_hook(look(name))
    with torch.inference_mode():
        for side in (64, 47):
            model(torch.randn(1, 3, side, side).contiguous(memory_format=torch.channels_last))
    assert not lost


def test_encoder_is_resnet34() -> None:
    from torchvision.models import resnet34

    torch.manual_seed(0)
    ours, theirs = ResNet34Encoder().eval(), resnet34(weights=None).eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)))

    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        features = [theirs.relu(theirs.bn1(theirs.conv1(images)))]
        coarser = theirs.maxpool(features[0])
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            coarser = layer(coarser)
            features.append(coarser)
        for stage, (mine, reference) in enumerate(zip(ours(images), features, strict=True)):
            assert reference.std() > 0.01
            torch.testing.assert_close(mine, reference, msg=lambda text, stage=stage: f"stage {stage}: {text}")


@pytest.mark.parametrize(("height", "width"), [(64, 32), (33, 47), (95, 1)])
def test_padding_repeats_the_border_on_both_sides(height: int, width: int) -> None:
    images = torch.randn(2, 3, height, width)
    padded, crop = pad_to_multiple(images, 32)
    (above, below), (left, right) = (
        (part.start, whole - part.stop) for part, whole in zip(crop, padded.shape[-2:], strict=True)
    )
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (above, below), (left, right)), mode="edge")
    np.testing.assert_array_equal(padded.numpy(), expected)
    assert torch.equal(padded[..., crop[0], crop[1]], images)
    assert padded.shape[-2] % 32 == padded.shape[-1] % 32 == 0
    assert abs(above - below) <= 1 and abs(left - right) <= 1
    assert above + below < 32 and left + right < 32


def test_odd_size_is_the_padded_picture_cropped(network: str, fresh: nn.Module) -> None:
    images = torch.randn(1, 3, 39, 58)
    padded, crop = pad_to_multiple(images, STRIDES[network])
    with torch.inference_mode():
        torch.testing.assert_close(fresh(images), fresh(padded)[..., crop[0], crop[1]])


def test_size_that_fits_is_not_padded(network: str, fresh: nn.Module) -> None:
    side = max(STRIDES[network] * 2, 32)
    sizes = []
    first = next(module for module in fresh.modules() if isinstance(module, nn.Conv2d))
    hook = first.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    with torch.inference_mode():
        fresh(torch.randn(1, 3, side, side))
        fresh(torch.randn(1, 3, side, side + 1))
    hook.remove()
    assert sizes == [(side, side), (side, side + STRIDES[network])]
