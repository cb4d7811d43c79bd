"""The two networks of report lab3, as it specifies them, without the sigmoid: they return logits.

Both end in a BatchNorm of one channel, whose output is the logits.
"""

import torch
from torch import Tensor, nn

from models import unet
from models.blocks import DoubleConv, pad_to_multiple


def init_weights(model: nn.Module) -> None:
    """Kaiming normal, fan in, for convolutions; transposed ones, biases and BatchNorm keep PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


class UNet(unet.UNet):
    """The classic U-Net with biases, and with a BatchNorm after the head.

    31,043,523 parameters in 84 tensors, 48.17 GMACs at 256x256. Layers are created in this order: encoder, bottleneck,
    decoder from coarse to fine, head.
    """

    def __init__(self) -> None:
        super().__init__(bias=True, init=init_weights)
        self.head = nn.Sequential(self.head, nn.BatchNorm2d(1))


class ResidualBlock(nn.Module):
    """Residual block: two 3x3 convolutions, which share one BatchNorm, and a shortcut.

    The statistics of the shared BatchNorm mix both convolutions' outputs, and are updated twice per step.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride=stride))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu(self.norm(self.conv1(features)))
        residual = self.relu(self.norm(self.conv2(residual)))
        return self.relu(residual + self.shortcut(features))


class UpAfterSkip(nn.Module):
    """A decoder step: concatenate the skip first, double the size, halve the channels, convolve."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.conv = DoubleConv(channels // 2, out_channels, bias=True)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        features = self.up(torch.cat((skip, features), dim=1))  # (N, C, h, w) -> (N, C/2, 2h, 2w)
        return self.conv(features)  # -> (N, out_channels, 2h, 2w)


class ResNet34UNet(nn.Module):
    """A residual encoder, and a decoder of 32 channels that concatenates each skip before upsampling.

    24,722,081 parameters in 180 tensors. Layers are created in this order: stem, stages, bottleneck, decoder from
    coarse to fine, head.
    """

    blocks = (3, 4, 6, 3)
    widths = (64, 128, 256, 512)  # of the four stages, at strides 4, 8, 16, 32
    bottleneck_width = 256
    decoder_width = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, self.widths[0], 7, stride=2, padding=3),
            nn.BatchNorm2d(self.widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList()
        for index, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            first = ResidualBlock(self.widths[max(index - 1, 0)], width, stride=1 if index == 0 else 2)
            self.stages.append(nn.Sequential(first, *(ResidualBlock(width, width, 1) for _ in range(count - 1))))
        self.bottleneck = DoubleConv(self.widths[-1], self.bottleneck_width, bias=True)
        in_channels = (self.bottleneck_width, *[self.decoder_width] * (len(self.widths) - 1))
        self.decoder = nn.ModuleList(
            UpAfterSkip(skip_channels + channels, self.decoder_width)
            for skip_channels, channels in zip(reversed(self.widths), in_channels, strict=True)
        )
        width = self.decoder_width
        self.head = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            DoubleConv(width, width, bias=True),
            DoubleConv(width, 1, bias=True),
            nn.BatchNorm2d(1),
        )
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised, H and W from 32 pixels up, to (N, 1, H, W) logits."""
        images, crop = pad_to_multiple(images, 32)
        features = self.stem(images)  # (N, 64, H/4, W/4)
        skips = []
        for stage in self.stages:
            features = stage(features)  # (N, 64, 128, 256, 512, H/4, 8, 16, 32, ...)
            skips.append(features)
        features = self.bottleneck(features)  # (N, 256, H/32, W/32)
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            features = up(features, skip)  # (N, 32, H/16, 8, 4, 2, ...)
        return self.head(features)[..., crop[0], crop[1]]  # (N, 32, H/2, W/2) -> (N, 1, H, W)
