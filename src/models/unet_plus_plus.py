"""UNet++ (Zhou et al., "UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation",
2020, after "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", 2018) over a ResNet-34.
"""

import torch
from torch import Tensor, nn

from models.blocks import init_convolutions, pad_to_multiple
from models.resnet34_unet import ResNet34Encoder, Up, full_size_head, smooth


class UNetPlusPlus(nn.Module):
    """A residual encoder and nested skips: RGB images to the logits of one class, at the same size.

    25,771,600 parameters; 13.01 GMACs for one 256x256 image (``python benchmarks/networks.py`` counts both). Row i of
    the paper's figure 1 has stride 2^(i+1), because the encoder begins with a convolution of stride 2. The heads work
    as that of ResNet34_UNet.

    Each node X^{0,j} has a head. In training mode ``forward`` returns the logits of all (deep supervision), in
    evaluation mode their mean (the paper's accurate mode).

    Args:
        depth: in evaluation mode, 1 to 4: average the heads of X^{0,1} to X^{0,depth}, and compute only what they need
            (the paper's pruning). Weights and training are the same at any depth.

    Raises:
        ValueError: no such depth.
    """

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        if depth not in (1, 2, 3, 4):
            raise ValueError(f"UNet++ has depths 1 to 4, not {depth!r}")
        self.depth = depth
        self.encoder = ResNet34Encoder()
        widths = [width // 2 for width in self.encoder.widths[1:]]  # of the nodes of rows 0 to 3: ResNet34_UNet's
        self.rows = nn.ModuleList()
        for i, width in enumerate(widths):
            row = nn.ModuleList()
            for j in range(1, len(widths) + 1 - i):
                below = self.encoder.widths[i + 1] if j == 1 else widths[i + 1]
                row.append(Up(below, self.encoder.widths[i] + (j - 1) * width, width))
            self.rows.append(row)
        self.heads = nn.ModuleList(full_size_head(widths[0]) for _ in widths)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """(N, 3, H, W) normalised images, H and W from 32 pixels up, to (N, 1, H, W) logits; in training mode a list of
        these, from the shallowest head on."""
        depth = len(self.heads) if self.training else self.depth
        images, crop = pad_to_multiple(images, 32)
        x = [[features] for features in self.encoder(images, depth)]  # x[i][j] is node X^{i,j}
        for j in range(1, depth + 1):
            for i in range(depth + 1 - j):
                x[i].append(self.rows[i][j - 1](x[i + 1][j - 1], *x[i]))  # (N, 32 to 256, H/s, W/s), s = 2^(i+1)
        logits = [head(node) for head, node in zip(self.heads, x[0][1:], strict=False)]  # (N, 1, H, W) each
        if self.training:
            return [one[..., crop[0], crop[1]] for one in logits]
        return smooth(torch.stack(logits).mean(0))[..., crop[0], crop[1]]
