"""The networks through torch.hub.

model = torch.hub.load(PATH, "resnet34_unet", source="local", weights="saved_models/R/R_best.pth")
predictor = torch.hub.load(PATH, "predictor", source="local", checkpoint="saved_models/R/R_best.pth")

PATH is this folder. A weights file is a checkpoint or a bare state dict, and nothing in it is unpickled. The modules of
src/ are imported by their plain names, such as ``models``, so the caller must not have others of these names.
"""

import pathlib
import sys
import typing

if typing.TYPE_CHECKING:
    from torch import nn

    from predictor import Predictor

dependencies = ["torch", "numpy", "cv2", "PIL"]  # names of modules; torch.hub says which are missing

_SRC = str(pathlib.Path(__file__).resolve().parent / "src")
if _SRC not in sys.path:
    sys.path.insert(0, _SRC)


def unet(weights: str | None = None) -> "nn.Module":
    """UNet (Ronneberger et al., 2015): normalised RGB (N, 3, H, W) to logits (N, 1, H, W).

    Args:
        weights: the file of a checkpoint of this network; None leaves random weights.

    Returns:
        The network in evaluation mode.

    Raises:
        cli.UserError: no such file, not a checkpoint, or one of another network.
    """
    return _load("UNet", weights)


def resnet34_unet(weights: str | None = None) -> "nn.Module":
    """ResNet34_UNet, a ResNet-34 with a U-Net's decoder; otherwise as ``unet``."""
    return _load("ResNet34_UNet", weights)


def resnet34_unet_small(weights: str | None = None) -> "nn.Module":
    """ResNet34_UNet of a quarter of the width; otherwise as ``unet``."""
    return _load("ResNet34_UNet_small", weights)


def unet_plus_plus(weights: str | None = None) -> "nn.Module":
    """UNetPlusPlus, nested skips over a ResNet-34 (Zhou et al., 2020); otherwise as ``unet``."""
    return _load("UNetPlusPlus", weights)


def segformer(weights: str | None = None) -> "nn.Module":
    """SegFormer-B0 (Xie et al., 2021); otherwise as ``unet``."""
    return _load("SegFormer", weights)


def predictor(checkpoint: str, **options: typing.Any) -> "Predictor":
    """A ``predictor.Predictor``: RGB images or files in, probabilities of pet at their own size out.

    Args:
        checkpoint: the file of a checkpoint or of a bare state dict.
        options: as of ``Predictor``: device, flip_average, image_size.
    """
    from plumbing.cli import existing_path

    from predictor import Predictor

    return Predictor(existing_path(str(checkpoint)), **options)


def _load(network: str, weights: str | None) -> "nn.Module":
    from plumbing.cli import UserError, existing_path

    from checkpoint import load_checkpoint
    from models import build_network

    if weights is None:
        return build_network(network).eval()
    state = load_checkpoint(existing_path(str(weights)))
    found = state["config"].network
    if found != network:
        raise UserError(f"{weights} holds the network {found}, not {network}")
    model = build_network(network).eval()
    model.load_state_dict(state["model"])
    return model
