"""Data augmentation: an epoch's order and warps, drawn from (seed, epoch) alone, and the batched warp.

So a run that is resumed at any step gets the data of the uninterrupted run.
"""

from dataclasses import dataclass, replace

from plumbing.cli import memory_format

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimap import BACKGROUND


@dataclass(frozen=True)
class Augmentation:
    """Limits of the random changes to a training sample. The default values change nothing."""

    horizontal_flip: float = 0.0  # probability
    vertical_flip: float = 0.0  # probability
    rotation: float = 0.0  # degrees, uniform in both directions
    integer_degrees: bool = False  # only whole degrees: for rotation 15, from -15 to 14, all equally likely
    zoom: float = 1.0  # largest factor, log-uniform from its inverse; above 1 the pet grows
    stretch: float = 1.0  # largest ratio of width to height, log-uniform from its inverse
    shift: float = 0.0  # fraction of the side, uniform in both directions
    brightness: float = 0.0  # fraction of the full range, uniform in both directions
    contrast: float = 1.0  # largest factor about the image's own mean, log-uniform from its inverse

    def scaled(self, strength: float) -> "Augmentation":
        """The same augmentation, weaker: strength 1 changes nothing, 0 leaves only the flips."""
        return replace(
            self,
            rotation=self.rotation * strength,
            zoom=self.zoom**strength,
            stretch=self.stretch**strength,
            shift=self.shift * strength,
            brightness=self.brightness * strength,
            contrast=self.contrast**strength,
        )


@dataclass(frozen=True)
class EpochPlan:
    """The order and the augmentation of an epoch's samples, drawn before it starts.

    A slot is a place in a batch; there are ``steps * batch_size`` of them.

    Attributes:
        order: (slots,) int64, the index of the sample in each slot. Each sample once, then the epoch's first samples
            again until the last batch is full, so that all batches have one shape.
        theta: (slots, 2, 3) float32, the affine map from output to input coordinates (``warp``).
        colour: (slots, 2) float32, contrast factor and brightness offset (in pixel values).
    """

    order: Tensor
    theta: Tensor
    colour: Tensor

    def to(self, device: torch.device) -> "EpochPlan":
        return EpochPlan(self.order.to(device), self.theta.to(device), self.colour.to(device))


def draw_epoch(augmentation: Augmentation, samples: int, batch_size: int, seed: int, epoch: int) -> EpochPlan:
    """Draw the plan of an epoch, counted from 1. The same arguments give the same plan on any machine.

    Draw anything new after what is drawn already, or old runs would resume with other data.
    """
    rng = np.random.default_rng([seed, epoch])
    slots = -(-samples // batch_size) * batch_size
    order = np.resize(rng.permutation(samples), slots)

    def uniform(limit: float) -> np.ndarray:
        return rng.uniform(-limit, limit, slots)

    def log_uniform(limit: float) -> np.ndarray:
        return np.exp(uniform(np.log(limit)))

    a = augmentation
    mirrored = np.where(rng.random(slots) < a.horizontal_flip, -1.0, 1.0)
    inverted = np.where(rng.random(slots) < a.vertical_flip, -1.0, 1.0)
    zoom, stretch = log_uniform(a.zoom), np.sqrt(log_uniform(a.stretch))
    degrees = uniform(a.rotation)
    theta = affine(
        np.floor(degrees) if a.integer_degrees else degrees,
        mirrored * zoom * stretch,
        inverted * zoom / stretch,
        uniform(a.shift),
        uniform(a.shift),
    )
    colour = np.stack((log_uniform(a.contrast), uniform(a.brightness * 255)), axis=1)
    return EpochPlan(torch.from_numpy(order), torch.from_numpy(theta).float(), torch.from_numpy(colour).float())


def affine(
    degrees: np.ndarray, scale_x: np.ndarray, scale_y: np.ndarray, shift_x: np.ndarray, shift_y: np.ndarray
) -> np.ndarray:
    """Affine maps that scale an image, then rotate it counter-clockwise, then shift it, about its centre.

    Args:
        degrees: (n,) as in ``cv2.getRotationMatrix2D`` and ``imutils.rotate``.
        scale_x, scale_y: (n,) factors; a negative one mirrors.
        shift_x, shift_y: (n,) fractions of the side; positive values move the content right and down.

    Returns:
        (n, 2, 3), from output to input coordinates as in ``torch.nn.functional.affine_grid``: -1 to 1, edge to edge.
    """
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    # The content moves by out = R S in + t, so an output pixel is sampled at in = S^-1 R^-1 (out - t).
    linear = np.stack((np.stack((cos, -sin), -1) / scale_x[:, None], np.stack((sin, cos), -1) / scale_y[:, None]), 1)
    offset = -np.einsum("nij,nj->ni", linear, 2 * np.stack((shift_x, shift_y), -1))
    return np.concatenate((linear, offset[:, :, None]), axis=2)


def warp(images: Tensor, trimaps: Tensor, theta: Tensor, side: int | None = None) -> tuple[Tensor, Tensor]:
    """Warp a batch by affine maps: images bilinear, trimaps nearest.

    Pixels from outside the image are black, and background in the trimap. A much smaller result skips pixels, which
    costs no Dice (benchmarks/STUDY.md).

    Args:
        images: (N, C, H, W) float.
        trimaps: (N, 1, H, W) uint8.
        theta: (N, 2, 3) float32, from output to input coordinates.
        side: height and width of the result, in pixels; None keeps those of the images.

    Returns:
        Images and trimaps of the same dtypes as the arguments.
    """
    size = images.shape[2:] if side is None else (side, side)
    grid = F.affine_grid(theta, [*images.shape[:2], *size], align_corners=False)  # (N, H, W, 2)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    warped = F.grid_sample(trimaps.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return images, warped.masked_fill_(warped == 0, BACKGROUND).to(torch.uint8)


def recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Change contrast about each image's own mean, then brightness; values are clipped to 0 to 255.

    Args:
        images: (N, 3, H, W) float, 0 to 255.
        colour: (N, 2), contrast factor and brightness offset.
    """
    factor, offset = colour[:, 0].view(-1, 1, 1, 1), colour[:, 1].view(-1, 1, 1, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * factor + mean + offset).clamp_(0, 255)


class Normalise(nn.Module):
    """(x - mean) / std for each channel, all in pixel values (0 to 255): (N, 3, H, W) float to ``memory_format``."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return ((images - self.mean) * self.scale).contiguous(memory_format=memory_format(images.device))
