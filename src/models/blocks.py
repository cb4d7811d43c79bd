"""Building blocks that the networks share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Two times conv 3x3, BatchNorm, ReLU: (N, in_channels, H, W) to (N, out_channels, H, W).

    Args:
        bias: of the convolutions, which need none, because the BatchNorm behind each has one.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def pad_to_multiple(images: Tensor, multiple: int) -> tuple[Tensor, tuple[slice, slice]]:
    """Pad height and width up to a multiple, by repeating the border, evenly on both sides.

    Args:
        images: (N, C, H, W).
        multiple: pixels; the encoder's largest stride.

    Returns:
        The padded images, and the slices (rows, columns) that cut the original out again.
    """
    height, width = images.shape[-2:]
    extra_height, extra_width = -height % multiple, -width % multiple
    top, left = extra_height // 2, extra_width // 2
    if extra_height or extra_width:
        padding = (left, extra_width - left, top, extra_height - top)
        images = F.pad(images, padding, mode="replicate").contiguous(memory_format=torch.channels_last)
    return images, (slice(top, top + height), slice(left, left + width))


def init_convolutions(model: nn.Module) -> None:
    """He et al., "Delving Deep into Rectifiers" (2015), eq. 14, for convolutions; BatchNorm starts as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
