"""The networks by name. Each is built without arguments: RGB in, logits of one class out, at the input's size."""

from torch import nn

from models import lab2, lab3
from models.resnet34_unet import ResNet34UNet
from models.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {
    "UNet": UNet,
    "ResNet34_UNet": ResNet34UNet,
    "lab2.UNet": lab2.UNet,
    "lab2.ResNet34_UNet": lab2.ResNet34UNet,
    "lab3.UNet": lab3.UNet,
    "lab3.ResNet34_UNet": lab3.ResNet34UNet,
}


def build_network(network: str) -> nn.Module:
    """A new network with fresh weights, drawn from PyTorch's global generator.

    Args:
        network: a key of ``NETWORKS``.

    Raises:
        ValueError: no network has that name.
    """
    if network not in NETWORKS:
        raise ValueError(f"no network is called {network!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[network]()


def count_parameters(model: nn.Module) -> int:
    """How many numbers the network learns."""
    return sum(parameter.numel() for parameter in model.parameters())
