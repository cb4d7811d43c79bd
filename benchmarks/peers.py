"""Peers to compare with: a plain training loop, the U-Net of segmentation_models_pytorch, the study's own networks.

As a script, it runs src/train.py or src/evaluate.py with these networks registered:
python benchmarks/peers.py train --model smp.Unet --epochs 10
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import argparse
from collections.abc import Callable

from plumbing.cli import ArgumentParser, UserError, run_script

import torch
from torch import Tensor, nn

from models import NETWORKS, build_network, lab3
from oxford_pet import evenly_spaced, load_dataset

# ---------------------------------------------------------------------------------------------- networks


def smp_unet() -> nn.Module:
    """segmentation_models_pytorch's U-Net with a ResNet-34 encoder, randomly initialised."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise UserError("smp.Unet needs segmentation_models_pytorch: pip install -r requirements-dev.txt") from None
    model = smp.Unet("resnet34", encoder_weights=None)
    model.requires_divisible_input_shape = False  # a check that branches: BatchNorm could not be folded
    return model


class OwnNorms(lab3.ResNet34UNet):
    """Report lab3's network, but with a BatchNorm for each convolution; lab3's two in a residual block share one."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.modules():
            if isinstance(block, lab3.ResidualBlock):
                block.conv1 = nn.Sequential(block.conv1, nn.BatchNorm2d(block.conv1.out_channels))
                block.conv2 = nn.Sequential(block.conv2, nn.BatchNorm2d(block.conv2.out_channels))
                block.norm = nn.Identity()


PEER_NETWORKS: dict[str, Callable[[], nn.Module]] = {"smp.Unet": smp_unet, "study.OwnNorms": OwnNorms}


def register() -> None:
    """Add them to NETWORKS of this process."""
    NETWORKS.update(PEER_NETWORKS)


# ---------------------------------------------------------------------------------------------- the plain loop


class PlainLoop:
    """The training loop of report lab2: a DataLoader, float32, Adam, cross-entropy, and the loss read after each step.

    Its data set decodes and augments each image when it is needed, with OpenCV and imutils.

    Args:
        network: a key of ``models.NETWORKS``.
        images: number of training images, evenly spaced.
    """

    def __init__(
        self, network: str, data_path: Path, image_size: int, batch_size: int = 16, images: int | None = None
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.model = build_network(network).to(self.device)
        self.criterion = nn.BCEWithLogitsLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        train = load_dataset(data_path, "train")
        train.image_size = image_size
        train.filenames = evenly_spaced(train.filenames, images)
        self.loader = torch.utils.data.DataLoader(train, batch_size, shuffle=True)

    def step(self, batch: dict[str, Tensor]) -> float:
        """One step; returns its loss."""
        images, masks = batch["image"].to(self.device).float(), batch["mask"].to(self.device)
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(images), masks)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def train_one_epoch(self) -> float:
        """Returns the mean loss over the steps."""
        self.model.train()
        losses = [self.step(batch) for batch in self.loader]
        return sum(losses) / len(losses)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) pixel values to (N, 1, S, S) logits, both on the CPU."""
        self.model.eval()
        return self.model(images.to(self.device).float()).cpu()


# ---------------------------------------------------------------------------------------------- the script


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(f"Run src/train.py or src/evaluate.py with these networks: {', '.join(PEER_NETWORKS)}")
    parser.add_argument("script", choices=("train", "evaluate"), help="which of the two")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="its flags")
    args = parser.parse_args(argv)
    register()
    if args.script == "train":
        from train import main as script
    else:
        from evaluate import main as script
    script(args.flags)


if __name__ == "__main__":
    run_script(main)
