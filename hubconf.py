"""Entry points for torch.hub: the networks and the predictor.

model = torch.hub.load(PATH, "resnet34_unet", source="local", weights="saved_models/R/R_best.pth")
predictor = torch.hub.load(PATH, "predictor", source="local", checkpoint="saved_models/R/R_best.pth")

PATH is this folder. Weights are a checkpoint or a bare state dict; nothing is unpickled. The modules of src/ are
imported under plain names such as ``models``, so the caller must not have others of these names.
"""

import pathlib
import sys
import typing

if typing.TYPE_CHECKING:
    from torch import nn

    from predictor import Predictor

dependencies = ["torch", "numpy", "cv2", "PIL"]  # torch.hub names the modules that are missing

_SRC = str(pathlib.Path(__file__).resolve().parent / "src")
if _SRC not in sys.path:
    sys.path.insert(0, _SRC)


def unet(weights: str | None = None) -> "nn.Module":
    """UNet (Ronneberger et al., 2015): normalised RGB (N, 3, H, W) to logits (N, 1, H, W).

    Args:
        weights: a checkpoint file of this network; None leaves random weights.

    Returns:
        The network in evaluation mode.

    Raises:
        cli.UserError: the file is missing, is no checkpoint, or is of another network.
    """
    return _load("UNet", weights)


def resnet34_unet(weights: str | None = None) -> "nn.Module":
    """ResNet34_UNet, a ResNet-34 encoder with a U-Net decoder; otherwise as ``unet``."""
    return _load("ResNet34_UNet", weights)


def resnet34_unet_small(weights: str | None = None) -> "nn.Module":
    """ResNet34_UNet at a quarter of the width; otherwise as ``unet``."""
    return _load("ResNet34_UNet_small", weights)


def unet_plus_plus(weights: str | None = None) -> "nn.Module":
    """UNet++ with a ResNet-34 encoder (Zhou et al., 2020); otherwise as ``unet``."""
    return _load("UNetPlusPlus", weights)


def segformer(weights: str | None = None) -> "nn.Module":
    """SegFormer-B0 (Xie et al., 2021); otherwise as ``unet``."""
    return _load("SegFormer", weights)


def predictor(checkpoint: str, **options: typing.Any) -> "Predictor":
    """``predictor.Predictor(checkpoint, **options)``: RGB images or files in, probabilities at their own size out."""
    from plumbing.cli import existing_path

    from predictor import Predictor

    return Predictor(existing_path(str(checkpoint)), **options)


def _load(network: str, weights: str | None) -> "nn.Module":
    from plumbing.cli import UserError, existing_path

    from checkpoint import load_checkpoint
    from models import build_network

    model = build_network(network).eval()
    if weights is not None:
        state = load_checkpoint(existing_path(str(weights)))
        if state["config"].network != network:
            raise UserError(f"{weights} holds the network {state['config'].network}, not {network}")
        model.load_state_dict(state["model"])
    return model
