"""The two networks of report lab2, as it specifies them, without the sigmoid: they return logits."""

from torch import Tensor, nn

from models.blocks import pad_to_multiple


class UNet(nn.Module):
    """A U-Net of one encoder and one decoder step, without skips and without normalisation.

    92,161 parameters in 10 tensors, 3.41 GMACs at 256x256; layers are created in the order of the forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(64, 64, 2, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float, H and W from 32 pixels up, to (N, 1, H, W) logits."""
        images, crop = pad_to_multiple(images, 2)
        features = self.encoder(images)  # (N, 64, H/2, W/2)
        return self.decoder(features)[..., crop[0], crop[1]]  # (N, 1, H, W)


class ConvBlock(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Up(nn.Sequential):
    """Transposed convolution that doubles the size, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2), nn.ReLU(inplace=True))


class ResNet34UNet(nn.Module):
    """An encoder with the widths and strides of ResNet-34, but one convolution per block, no shortcuts and no skips.

    11,181,921 parameters in 67 tensors, 2.46 GMACs at 256x256; layers are created in the order of the forward pass.
    """

    blocks = (3, 4, 6, 3)
    widths = (64, 64, 128, 256, 512)  # of the stem and the four stages, at strides 2 (4 after the pool), 4, 8, 16, 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, self.widths[0], kernel_size=7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.Sequential()
        for index, (count, width) in enumerate(zip(self.blocks, self.widths[1:], strict=True)):
            first = ConvBlock(self.widths[index], width, stride=1 if index == 0 else 2)
            self.stages.append(nn.Sequential(first, *(ConvBlock(width, width) for _ in range(count - 1))))
        self.decoder = nn.Sequential(
            nn.Conv2d(512, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            Up(256, 128),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            Up(64, 32),
            Up(32, 16),
            Up(16, 8),
            Up(8, 4),
            nn.Conv2d(4, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float, H and W from 32 pixels up, to (N, 1, H, W) logits."""
        images, crop = pad_to_multiple(images, 32)
        features = self.pool(self.stem(images))  # (N, 64, H/4, W/4)
        features = self.stages(features)  # (N, 512, H/32, W/32)
        return self.decoder(features)[..., crop[0], crop[1]]  # (N, 1, H, W)
