"""Entry points for torch.hub: the networks and the predictor.

model = torch.hub.load(PATH, "resnet34_unet", source="local", weights="saved_models/R/R_best.pth")
predictor = torch.hub.load(PATH, "predictor", source="local", checkpoint="saved_models/R/R_best.pth")

PATH is this folder. Weights are a checkpoint or a bare state dict; nothing is unpickled.

The modules of src/ have plain names such as ``models``. If the caller has modules of these names too, the caller keeps
them: ours are then hidden from ``import``, so that a network cannot be pickled (its state dict can).
"""

import contextlib
import importlib.util
import pathlib
import sys
import types
import typing

if typing.TYPE_CHECKING:
    from torch import nn

    from predictor import Predictor

dependencies = ["torch", "numpy", "cv2", "PIL"]  # torch.hub names the modules that are missing

_SRC = pathlib.Path(__file__).resolve().parent / "src"
_NAMES = {path.stem for path in _SRC.iterdir() if path.stem.isidentifier() and path.stem[0] != "_"}
_hidden: dict[str, types.ModuleType] = {}  # our modules, where the caller has others of their names


@contextlib.contextmanager
def _our_modules() -> typing.Iterator[None]:
    """Import from src/ within the block; afterwards, a name that the caller has too is the caller's."""
    specs = [importlib.util.find_spec(name) for name in _NAMES]
    clashes = any(spec and not str(spec.origin).startswith(str(_SRC)) for spec in specs)
    theirs = {name: sys.modules.pop(name) for name in _named()} if clashes else {}
    sys.modules.update(_hidden)
    sys.path.insert(0, str(_SRC))
    try:
        yield
    finally:
        sys.path.remove(str(_SRC))
        if clashes:
            _hidden.update((name, sys.modules.pop(name)) for name in _named())
            sys.modules.update(theirs)


def _named() -> list[str]:
    """The imported modules that have names of ours."""
    return [name for name in sys.modules if name.partition(".")[0] in _NAMES]


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


def resnet34_unet(weights: str | None = None, pretrained: str = "") -> "nn.Module":
    """ResNet34_UNet, a ResNet-34 encoder with a U-Net decoder; otherwise as ``unet``.

    Args:
        pretrained: ``imagenet``, or a file of torchvision's resnet34: the encoder's weights, as in training.
    """
    return _load("ResNet34_UNet", weights, pretrained)


def resnet34_unet_small(weights: str | None = None) -> "nn.Module":
    """ResNet34_UNet at a quarter of the width; otherwise as ``unet``."""
    return _load("ResNet34_UNet_small", weights)


def unet_plus_plus(weights: str | None = None, pretrained: str = "") -> "nn.Module":
    """UNet++ with a ResNet-34 encoder (Zhou et al., 2020); otherwise as ``resnet34_unet``."""
    return _load("UNetPlusPlus", weights, pretrained)


def segformer(weights: str | None = None) -> "nn.Module":
    """SegFormer-B0 (Xie et al., 2021); otherwise as ``unet``."""
    return _load("SegFormer", weights)


def predictor(checkpoint: str, **options: typing.Any) -> "Predictor":
    """``predictor.Predictor(checkpoint, **options)``: RGB images or files in, probabilities at their own size out."""
    with _our_modules():
        from plumbing.cli import existing_path

        from predictor import Predictor

        return Predictor(existing_path(str(checkpoint)), **options)


def _load(network: str, weights: str | None, pretrained: str = "") -> "nn.Module":
    with _our_modules():
        from plumbing.cli import UserError, existing_path

        from checkpoint import load_checkpoint, pretrained_encoder
        from models import build_network

        model = build_network(network).eval()
        if pretrained:
            model.encoder.load_state_dict(pretrained_encoder(network, pretrained))
        if weights is not None:
            state = load_checkpoint(existing_path(str(weights)))
            if state["config"].network != network:
                raise UserError(f"{weights} holds the network {state['config'].network}, not {network}")
            model.load_state_dict(state["model"])
        return model
