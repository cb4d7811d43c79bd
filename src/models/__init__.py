"""The networks by name. Each maps normalised RGB images to the logits of one class, at the size of the images.

To add one, write a class in a file of its own and add a line to ``NETWORKS``. In training mode, ``forward`` may return
a list of logits (deep supervision); their losses are averaged.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from models import lab2, lab3
from models.resnet34_unet import ResNet34UNet
from models.segformer import SegFormer
from models.unet import UNet
from models.unet_plus_plus import UNetPlusPlus

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet": UNet,
    "ResNet34_UNet": ResNet34UNet,
    "ResNet34_UNet_small": partial(ResNet34UNet, width=0.25),
    "ResNet34_UNet_medium": partial(ResNet34UNet, width=0.375),
    "UNetPlusPlus": UNetPlusPlus,
    "SegFormer": SegFormer,
    "SegFormerB1": partial(SegFormer, widths=(64, 128, 320, 512)),
    "lab2.UNet": lab2.UNet,
    "lab2.ResNet34_UNet": lab2.ResNet34UNet,
    "lab3.UNet": lab3.UNet,
    "lab3.ResNet34_UNet": lab3.ResNet34UNet,
}
ALIASES = {"U": "UNet", "R": "ResNet34_UNet"}


def network_names() -> dict[str, str]:
    """Map each name that ``--model`` takes, aliases included, to its key of ``NETWORKS``."""
    return ALIASES | {name: name for name in NETWORKS}


def build_network(network: str) -> nn.Module:
    """Build a network, a key of ``NETWORKS``, with weights drawn from PyTorch's global generator.

    Raises:
        ValueError: no network has that name.
    """
    if network not in NETWORKS:
        raise ValueError(f"no network is called {network!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[network]()


def count_parameters(model: nn.Module) -> int:
    """Count the trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
