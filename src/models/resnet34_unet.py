"""ResNet34_UNet: ResNet-34 (He et al., "Deep Residual Learning for Image Recognition", 2016) with a U-Net's decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import DoubleConv, init_convolutions, pad_to_multiple


class BasicBlock(nn.Module):
    """Residual block: two 3x3 convolutions and a shortcut (figure 5, left), 1x1 where the shape changes (option B)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        return self.relu(residual + self.shortcut(features))


class ResNet34Encoder(nn.Module):
    """ResNet-34 without its classifier; the state dict has the order of ``torchvision.models.resnet34``.

    Args:
        width: factor of the channels.
    """

    blocks = (3, 4, 6, 3)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.widths = [round(channels * width) for channels in (64, 64, 128, 256, 512)]  # at strides 2, 4, 8, 16, 32
        self.stem = nn.Sequential(
            nn.Conv2d(3, self.widths[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(self.widths[0]),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        for index, (count, width) in enumerate(zip(self.blocks, self.widths[1:], strict=True)):
            first = BasicBlock(self.widths[index], width, stride=1 if index == 0 else 2)
            self.stages.append(nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(count - 1))))

    def forward(self, images: Tensor, stages: int = 4) -> list[Tensor]:
        """(N, 3, H, W) to the features of the stem and the first ``stages`` stages, from fine to coarse."""
        features = [self.stem(images)]  # (N, 64, H/2, W/2)
        features.append(self.stages[0](self.pool(features[0])))  # (N, 64, H/4, W/4)
        for stage in self.stages[1:stages]:
            features.append(stage(features[-1]))  # (N, 128, 256, 512, H/8, 16, 32, ...)
        return features


class Up(nn.Module):
    """A decoder step: double the size by repeating pixels, concatenate the skips last, convolve.

    Args:
        skip_channels: of all skips together.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv = DoubleConv(in_channels + skip_channels, out_channels)

    def forward(self, features: Tensor, *skips: Tensor) -> Tensor:
        return self.conv(torch.cat((self.up(features), *skips), dim=1))  # (N, C, h, w) -> (N, out_channels, 2h, 2w)


class ResNet34UNet(nn.Module):
    """A residual encoder and a U-Net decoder: RGB images to the logits of one class, at the same size.

    24,430,404 parameters; 7.37 GMACs for one 256x256 image (``python benchmarks/networks.py`` counts both). The decoder
    ends at half resolution, where the head predicts the four pixels of each position at once. This leaves a jagged
    outline, so evaluation mode smooths the logits (not training: the network would learn to undo it, CHANGELOG.md).

    Args:
        width: factor of the channels: 64 to 512 in the encoder, 256 to 32 in the decoder.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.encoder = ResNet34Encoder(width)
        bottleneck, *skips = reversed(self.encoder.widths)
        decoder_widths = [bottleneck // divisor for divisor in (2, 4, 8, 16)]  # at strides 16, 8, 4, 2
        self.decoder = nn.ModuleList(
            Up(in_channels, skip_channels, out_channels)
            for in_channels, skip_channels, out_channels in zip(
                (bottleneck, *decoder_widths), skips, decoder_widths, strict=False
            )
        )
        self.head = full_size_head(decoder_widths[-1])
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images, H and W from 32 pixels up, to (N, 1, H, W) logits."""
        images, crop = pad_to_multiple(images, 32)
        *skips, features = self.encoder(images)  # (N, 512, H/32, W/32)
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            features = up(features, skip)
        logits = self.head(features)  # (N, 32, H/2, W/2) -> (N, 1, H, W)
        if not self.training:
            logits = smooth(logits)
        return logits[..., crop[0], crop[1]]


def full_size_head(channels: int) -> nn.Sequential:
    """Predict the four pixels of each position at once: (N, channels, H/2, W/2) to the logits, (N, 1, H, W)."""
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.PixelShuffle(2))


def smooth(logits: Tensor) -> Tensor:
    """Average each pixel with its neighbours, by weights 1, 2, 1 in both directions; the shape stays."""
    logits = F.pad(logits, (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(logits, 2, stride=1), 2, stride=1)
