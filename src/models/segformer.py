"""SegFormer (Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", 2021).

Tensors are (N, C, H, W) in channels_last between the stages and (N, H, W, C) within them. Both are the same memory, so
linear layers and convolutions alternate without a copy. The state dict has the order of
``transformers.SegformerForSemanticSegmentation``. Stochastic depth is left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import init_convolutions, pad_to_multiple


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a coarser grid (section 3.1): (N, H, W, C) to (N, H, W, C).

    Args:
        reduction: of height and width for keys and values; 1 leaves them.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.reduce = PatchEmbedding(channels, channels, reduction, reduction, padding=0) if reduction > 1 else None

    def forward(self, tokens: Tensor) -> Tensor:
        coarse = self.reduce(tokens.permute(0, 3, 1, 2)) if self.reduce else tokens  # (N, H/r, W/r, C)
        query, key, value = (
            part.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, H*W or less, C/heads)
            for part in (self.query(tokens), self.key(coarse), self.value(coarse))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(1, 2).reshape(tokens.shape))


class MixFFN(nn.Module):
    """An MLP at each position, with a depthwise 3x3 convolution inside that encodes positions (eq. 3)."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.depthwise(self.expand(tokens).permute(0, 3, 1, 2))  # (N, 4C, H, W)
        return self.project(F.gelu(hidden).permute(0, 2, 3, 1))


class Block(nn.Module):
    """A transformer block, normalised before attention and MLP: (N, H, W, C) to (N, H, W, C)."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = EfficientAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MixFFN(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbedding(nn.Module):
    """Merge patches of pixels into tokens: (N, in_channels, H, W) to (N, H/stride, W/stride, channels)."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.conv(features).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Overlapping patches, two blocks, a norm: (N, in_channels, H, W) to (N, channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.embed = PatchEmbedding(in_channels, channels, 2 * stride - 1, stride, padding=stride - 1)
        self.blocks = nn.Sequential(*(Block(channels, heads, reduction) for _ in range(2)))
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(features))).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """The all-MLP decoder (section 3.2): the stages' features, from fine to coarse, to logits (N, 1, H/4, W/4).

    Args:
        widths: of the stages.
        width: of the decoder.
    """

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(widths) * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        unified = []
        for index, (linear, stage) in enumerate(zip(self.linears, features, strict=True)):
            projected = linear(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (N, width, h, w)
            unified.insert(0, enlarge(projected, 2**index))  # (N, width, H/4, W/4), the coarsest first
        return self.head(self.fuse(torch.cat(unified, dim=1)))


class SegFormer(nn.Module):
    """A hierarchical transformer (MiT) and an all-MLP decoder: RGB images to the logits of one class, at the same size.

    3,714,401 parameters; 1.75 GMACs for one 256x256 image (``python benchmarks/networks.py`` counts both). This is
    SegFormer-B0; B1 is twice as wide. As in the paper, the decoder ends at a quarter of the resolution, and its logits
    are upsampled.

    Args:
        widths: of the stages, at strides 4, 8, 16 and 32.
    """

    strides = (4, 2, 2, 2)
    heads = (1, 2, 5, 8)
    reductions = (8, 4, 2, 1)  # keys and values have 1/32 of the image's height and width in every stage

    def __init__(self, widths: tuple[int, ...] = (32, 64, 160, 256)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Stage(*arguments)
            for arguments in zip((3, *widths), widths, self.strides, self.heads, self.reductions, strict=False)
        )
        self.decoder = Decoder(widths, width=256)
        init_convolutions(self)
        nn.init.normal_(self.decoder.head.weight, std=0.01)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images, H and W from 32 pixels up, to (N, 1, H, W) logits."""
        images, crop = pad_to_multiple(images, 32)
        features = [images]
        for stage in self.stages:
            features.append(stage(features[-1]))  # (N, 32 to 256, H/s, W/s), s = 4, 8, 16, 32
        return enlarge(self.decoder(features[1:]), 4)[..., crop[0], crop[1]]


def enlarge(features: Tensor, factor: int) -> Tensor:
    """Enlarge height and width bilinearly."""
    return F.interpolate(features, scale_factor=factor, mode="bilinear") if factor > 1 else features
