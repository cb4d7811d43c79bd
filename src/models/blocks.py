"""Building blocks that the networks share."""

from plumbing.cli import memory_format

import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Conv 3x3, BatchNorm, ReLU, twice: (N, in_channels, H, W) to (N, out_channels, H, W).

    Args:
        bias: of the convolutions; redundant, because BatchNorm has a bias.
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
    """Pad height and width evenly on both sides, by repeating the border pixels.

    Args:
        images: (N, C, H, W).
        multiple: pixels, of the padded height and width; the encoder's largest stride.

    Returns:
        The padded images, and the slices (rows, columns) that crop them to the original size.
    """
    height, width = images.shape[-2:]
    extra_height, extra_width = -height % multiple, -width % multiple
    top, left = extra_height // 2, extra_width // 2
    if extra_height or extra_width:
        padding = (left, extra_width - left, top, extra_height - top)
        images = F.pad(images, padding, mode="replicate").contiguous(memory_format=memory_format(images.device))
    return images, (slice(top, top + height), slice(left, left + width))


def init_convolutions(model: nn.Module) -> None:
    """Initialise convolutions as in He et al., "Delving Deep into Rectifiers" (2015), eq. 14, with biases of 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            module.weight.data *= module.groups**0.5  # PyTorch counts the outputs of all groups
            if module.bias is not None:
                nn.init.zeros_(module.bias)
