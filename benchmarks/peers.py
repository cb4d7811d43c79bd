"""What others would use, to measure beside: a plain training loop, and the U-Net of segmentation_models_pytorch.

The plain loop is that of many tutorials: a data set that decodes each picture with Pillow whenever it is asked for it
and rotates it with imutils, a DataLoader, float32, PyTorch's default layout, and the loss read after each step.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import imutils
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from augment import BACKGROUND, Normalise
from losses import bce_dice_loss
from models import NETWORKS, build_network
from oxford_pet import evenly_spaced, find_root, image_path, read_split, trimap_path
from recipes import RECIPES

SMP = "smp.Unet(resnet34)"


def register_smp() -> str:
    """Add a recipe that is our default one with the network of segmentation_models_pytorch; its name."""
    import segmentation_models_pytorch as smp

    def build() -> nn.Module:
        model = smp.Unet("resnet34", encoder_weights=None)
        model.requires_divisible_input_shape = (
            False  # a check that branches, and would keep BatchNorm from being folded
        )
        return model

    NETWORKS[SMP] = build
    RECIPES["smp"] = dataclasses.replace(RECIPES["default"], name="smp", networks={"U": SMP, "R": SMP})
    return "smp"


class PlainPets(torch.utils.data.Dataset):
    """Pictures (3, S, S) float32 and masks (1, S, S) float32, decoded at each access, changed at random in training."""

    def __init__(self, data_path: Path, mode: str, side: int, limit: int | None = None) -> None:
        self.root = find_root(data_path)
        self.names = evenly_spaced(read_split(self.root, mode), limit)
        self.mode, self.side = mode, side
        self.normalise = Normalise(RECIPES["default"].mean, RECIPES["default"].std)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name, size = self.names[index], (self.side, self.side)
        image = np.array(Image.open(image_path(self.root, name)).convert("RGB").resize(size, Image.BILINEAR))
        trimap = np.array(Image.open(trimap_path(self.root, name)).resize(size, Image.NEAREST))
        mask = (trimap != BACKGROUND).astype(np.uint8)
        if self.mode == "train":
            if np.random.rand() < 0.5:
                image, mask = image[:, ::-1], mask[:, ::-1]
            angle = np.random.randint(-15, 15)
            image, mask = imutils.rotate(image.copy(), angle), imutils.rotate(mask.copy(), angle)
        image = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
        return self.normalise(image[None])[0].contiguous(), torch.from_numpy(mask.copy())[None].float()


class PlainLoop:
    """Train a network plainly.

    Args:
        letter: U or R, of the default recipe's networks.
    """

    def __init__(self, letter: str, data_path: Path, side: int, batch_size: int, limit: int | None = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.model = build_network(RECIPES["default"].networks[letter]).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        train = PlainPets(data_path, "train", side, limit)
        self.loader = torch.utils.data.DataLoader(train, batch_size, shuffle=True, drop_last=True)
        self.valid = PlainPets(data_path, "valid", side)

    def step(self, images: Tensor, masks: Tensor) -> float:
        images, masks = images.to(self.device), masks.to(self.device)
        self.optimizer.zero_grad()
        truth = masks > 0.5
        loss = bce_dice_loss(self.model(images), truth, torch.ones_like(truth))
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def train_one_epoch(self) -> int:
        """How many images it has trained on."""
        self.model.train()
        return sum(len(images) for images, masks in self.loader if self.step(images, masks) < float("inf"))

    @torch.no_grad()
    def valid_dice(self) -> float:
        """The mean Dice per picture."""
        self.model.eval()
        dice = []
        for image, mask in self.valid:
            pred = self.model(image[None].to(self.device)) > 0
            truth = mask[None].to(self.device) > 0.5
            total = (pred.sum() + truth.sum()).item()
            dice.append(2 * (pred & truth).sum().item() / total if total else 1.0)
        return float(np.mean(dice))

    def until(self, dice: float, epochs: int) -> Iterator[tuple[float, float]]:
        """Train until the valid Dice is that high; after each epoch, the seconds since the first step and the Dice."""
        started = time.monotonic()
        for _ in range(epochs):
            self.train_one_epoch()
            reached = self.valid_dice()
            yield time.monotonic() - started, reached
            if reached >= dice:
                return


def predict_plainly(model: nn.Module, images: Tensor) -> Tensor:
    """(N, 3, S, S) normalised float32 to (N, 1, S, S) logits, as a tutorial would."""
    with torch.no_grad():
        return model.eval()(images)
