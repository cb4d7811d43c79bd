"""UNet: the network of Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation" (2015).

As in most implementations, convolutions are padded, and BatchNorm follows each 3x3 convolution.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.blocks import DoubleConv, init_convolutions, pad_to_multiple


class Up(nn.Module):
    """A decoder step of figure 1: double the size, halve the channels, concatenate the skip first, convolve."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.conv = DoubleConv(channels, channels // 2, bias)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        features = self.up(features)  # (N, C, h, w) -> (N, C/2, 2h, 2w)
        return self.conv(torch.cat((skip, features), dim=1))  # (N, C, 2h, 2w) -> (N, C/2, 2h, 2w)


class UNet(nn.Module):
    """RGB images to the logits of one class, at the same size.

    31,037,633 parameters; 48.2 GMACs for one 256x256 image (``python benchmarks/networks.py`` counts both).
    Widths 64, 128, 256, 512 and 1024 at strides 1 to 16.

    Args:
        bias: of the 3x3 convolutions (``DoubleConv``).
        init: initialises the weights.
    """

    widths = (64, 128, 256, 512, 1024)

    def __init__(self, bias: bool = False, init: Callable[[nn.Module], None] = init_convolutions) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            DoubleConv(in_channels, out_channels, bias)
            for in_channels, out_channels in zip((3, *self.widths), self.widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.decoder = nn.ModuleList(Up(width, bias) for width in reversed(self.widths[1:]))
        self.head = nn.Conv2d(self.widths[0], 1, 1)
        init(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images, H and W from 32 pixels up, to (N, 1, H, W) logits."""
        features, crop = pad_to_multiple(images, 2 ** len(self.decoder))
        skips = []
        for stage in self.encoder[:-1]:
            skips.append(stage(features))  # (N, 64 to 512, H/s, W/s), s = 1, 2, 4, 8
            features = self.pool(skips[-1])
        features = self.encoder[-1](features)  # (N, 1024, H/16, W/16)
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            features = up(features, skip)
        return self.head(features)[..., crop[0], crop[1]]  # (N, 1, H, W)
