"""A recipe: network, loss, optimizer, schedule, augmentation and their numbers. All named recipes stand here."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from augment import Augmentation


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The default values are the recipe called ``default``.

    Where U and R differ, a field is a dict by letter.
    """

    name: str = "default"
    networks: dict[str, str] = field(default_factory=lambda: {"U": "UNet", "R": "ResNet34_UNet"})
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # of ImageNet's red, green, blue, in pixel values
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    augmentation: Augmentation = field(default_factory=Augmentation)
    ramp_epochs: int = 1  # over which the augmentation, but for the flips, grows to its full reach
    dice_weight: float = 1.0  # of the Dice term of the loss, beside the cross-entropy's 1
    learning_rate: float = 2e-3  # at the peak
    weight_decay: float = 0.02
    warmup: float = 0.05  # share of all steps, linear from 0; then a half cosine to 0
    average_steps: int = 400  # the weights' moving average reaches back so many steps, and a tenth of the run so far
    epochs: int = 200
    batch_size: int = 16

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Recipe":
        return cls(**dict(data, augmentation=Augmentation(**data["augmentation"])))

    def augmentation_at(self, epoch: int) -> Augmentation:
        """What is drawn in an epoch, counted from 1: a short run gains nothing from pictures it has not yet learned."""
        return self.augmentation.scaled(min(1.0, epoch / self.ramp_epochs))

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate, by the share of all steps that are done (0 to 1)."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


RECIPES = {
    "default": Recipe(
        augmentation=Augmentation(
            horizontal_flip=0.5, rotation=15, zoom=1.33, stretch=1.2, shift=0.1, brightness=0.1, contrast=1.25
        ),
        ramp_epochs=30,
    ),
}
