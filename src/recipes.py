"""The hyperparameters of a run, and the named recipes that choose them.

To add a recipe, write a function from a network's name to a ``Config``, and add it to ``RECIPES``.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from plumbing.cli import LARGEST_IMAGE, PRECISIONS, UserError

import torch

from augment import Augmentation
from losses import LOSSES
from models import NETWORKS
from trimap import BOUNDARIES

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
SCHEDULES = ("cosine", "exponential", "constant")

CHOICES = {
    "network": NETWORKS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "boundary": BOUNDARIES,
    "precision": PRECISIONS,
}
RANGES: dict[str, tuple[float, float]] = {  # lowest and highest value of a field of Config or Augmentation
    **dict.fromkeys(("epochs", "ramp_epochs", "batch_size", "limit", "train_images"), (1, 10**9)),
    **dict.fromkeys(("horizontal_flip", "vertical_flip", "shift", "brightness"), (0, 1)),
    **dict.fromkeys(("zoom", "stretch", "contrast"), (1, 100)),
    "rotation": (0, 180),
    "mean": (-1e6, 1e6),
    "std": (1e-6, 1e6),
    "learning_rate": (1e-12, 1e6),
    "weight_decay": (0, 1e6),
    "warmup": (0, 0.999),
    "decay": (1e-6, 1),
    "ema_steps": (0, 10**9),
    "image_size": (32, LARGEST_IMAGE),
    "seed": (0, 2**63 - 1),
    "stop_at_dice": (1e-9, 1),
}


@dataclass(frozen=True)
class Config:
    """Hyperparameters of a run, with their defaults.

    Raises:
        UserError: a value is impossible; the message names field and value.
    """

    network: str  # a key of models.NETWORKS
    recipe: str = "default"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet's red, green, blue; 0 to 255
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)  # of each channel
    augmentation: Augmentation = field(default_factory=Augmentation)
    ramp_epochs: int = 1  # until the augmentation has its full strength; flips always have
    loss: str = "bce_dice"  # losses.py
    optimizer: str = "adamw"  # sgd has a momentum of 0.9
    learning_rate: float = 2e-3  # peak
    weight_decay: float = 0.02  # not for BatchNorm and biases
    schedule: str = "cosine"  # cosine: half a cosine to 0; exponential: a factor each epoch
    warmup: float = 0.05  # fraction of all steps; linear from 0
    decay: float = 0.99  # factor of the exponential schedule
    ema_steps: int = 400  # EMA horizon = min(ema_steps, step / 10); 0: no EMA
    epochs: int = 200  # times that each training image is seen
    progressive: tuple[tuple[float, int], ...] = ()  # pairs (until this fraction of the epochs, divide image_size by)
    batch_size: int = 16  # images a step, over all processes
    pretrained: str = ""  # start the encoder from these weights: imagenet, or a file; empty: from scratch
    score_train: bool = False  # after each epoch, score the training images too
    export_weights: bool = False  # at the end, also write the final weights alone
    image_size: int = 256  # pixels of height and width
    boundary: str = "pet"  # what the trimap's boundary counts as (trimap.py)
    seed: int = 0  # of weights, order and augmentation
    limit: int | None = None  # number of images of each split, evenly spaced
    train_images: int | None = None  # number of training images, evenly spaced
    precision: str = "auto"  # dtype of the forward pass
    stop_at_dice: float | None = None  # end the run at this validation Dice

    def __post_init__(self) -> None:
        for owner in (self, self.augmentation):
            for name, kind in type(owner).__annotations__.items():
                value = getattr(owner, name)
                if not is_possible(name, kind, value):
                    raise UserError(f"recipe {self.recipe!r}: {name} cannot be {value!r}{possible_values(name)}")
        for name in ("mean", "std"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "progressive", tuple(map(tuple, self.progressive)))
        if self.batch_size * (self.image_size_at(1) // 32) ** 2 < 2:
            raise UserError("a batch of 1 below 64x64 pixels leaves BatchNorm a single value; take 2 or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Config":
        """Rebuild a config from ``to_dict``; a field that is missing gets its default value.

        Raises:
            TypeError: a field is unknown, or the network is missing.
            UserError: a value is impossible.
        """
        augmentation = dict(data.get("augmentation", {}))
        if "whole_degrees" in augmentation:  # the field's name in older checkpoints
            augmentation["integer_degrees"] = augmentation.pop("whole_degrees")
        return cls(**data | {"augmentation": Augmentation(**augmentation)})

    def augmentation_at(self, epoch: int) -> Augmentation:
        """The augmentation of an epoch, counted from 1. It ramps up: strong changes do not help early epochs."""
        return self.augmentation.scaled(min(1.0, epoch / self.ramp_epochs))

    def image_size_at(self, epoch: int) -> int:
        """Height and width of the network's input in an epoch, counted from 1."""
        divisor = next((divisor for until, divisor in self.progressive if epoch <= until * self.epochs), 1)
        return max(self.image_size // divisor, min(self.image_size, 32))

    def learning_rate_at(self, done: float) -> float:
        """The learning rate when a fraction ``done`` of all steps is done (0 to 1)."""
        if done < self.warmup:
            return self.learning_rate * done / self.warmup
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))
        if self.schedule == "exponential":
            epochs_done = math.floor(done * self.epochs + 1e-6)  # 1e-6: against rounding
            return self.learning_rate * self.decay**epochs_done
        return self.learning_rate  # constant


def is_possible(name: str, kind: Any, value: Any) -> bool:
    """True if the field ``name`` of ``Config`` or ``Augmentation``, of type ``kind``, can have this value."""
    if name in CHOICES:
        return isinstance(value, str) and value in CHOICES[name]
    if isinstance(value, bool):  # an int in Python
        return kind is bool
    lowest, highest = RANGES.get(name, (0, 0))
    try:
        if name == "progressive":
            return all(0 <= until <= 1 <= divisor and isinstance(divisor, int) for until, divisor in value)
        if name in ("mean", "std"):
            return len(value) == 3 and all(lowest <= channel <= highest for channel in value)
    except (TypeError, ValueError):  # not numbers, or not as many
        return False
    if value is None or name not in RANGES:
        return isinstance(value, (kind, int) if kind is float else kind)  # an int may stand for a float
    return isinstance(value, (kind, int)) and lowest <= value <= highest


def possible_values(name: str) -> str:
    """The values of a field, for an error message; empty if neither a list nor a range says them."""
    if name in CHOICES:
        return f"; there are {', '.join(CHOICES[name])}"
    low, high = RANGES.get(name, (None, 0))
    to = "" if high >= 1e6 else f" to {high:g}"
    return "" if low is None else f"; it can be from {low:g}{to or ' up'}"


# ---------------------------------------------------------------------------------------------- the recipes


def default(network: str) -> Config:
    """Train for the best final Dice, for any number of epochs.

    Progressive resizing scales with the epochs, the EMA horizon with the steps. The augmentation ramps up over 20
    epochs, so a short run sees little of it. The 200 epochs at 256x256 are for a GPU and not measured yet; see ``cpu``.
    """
    return Config(
        network,
        augmentation=Augmentation(
            horizontal_flip=0.5, rotation=15, zoom=1.33, stretch=1.2, shift=0.1, brightness=0.1, contrast=1.25
        ),
        ramp_epochs=20,
        progressive=((0.25, 4), (0.6, 2)),
        # Transformers trained from scratch gain from a longer warm-up (benchmarks/README.md).
        warmup=0.15 if network.startswith("SegFormer") else Config.warmup,
    )


def fast(network: str) -> Config:
    """Reach a validation Dice of 0.90 as soon as possible: ``default`` with half the augmentation.

    At 128x128, on one core of an AMD EPYC with bfloat16 (``--model R --recipe fast --stop_at_dice 0.90``): reached
    after 24 epochs, 21 minutes, test Dice 0.9058, with flips 0.9080.
    """
    config = default(network)
    return dataclasses.replace(
        config, recipe="fast", augmentation=config.augmentation.scaled(0.5), ramp_epochs=1, epochs=30
    )


def cpu(network: str) -> Config:
    """``default`` for an evening on a CPU: 128x128 images, 56 epochs.

    On the real data at 128x128, one core of an AMD EPYC with bfloat16 (``make reproduce MODEL=R``, or U): R, 66 epochs,
    75 minutes, test Dice 0.9171, with flips 0.9210; U, 13 epochs, 80 minutes, 0.9054 and 0.9068.
    """
    return dataclasses.replace(default(network), recipe="cpu", image_size=128, epochs=56)


def lab2(network: str) -> Config:
    """Report lab2 (test Dice 0.7491 and 0.9011), with its own UNet and ResNet34_UNet.

    The report gives no batch size, and "more than 80" epochs; 16 and 100 are our choice.

    At 128x128, on one core of an AMD EPYC with bfloat16 (``benchmarks/study.py --queue benchmarks/queue.txt --only
    lab2-R lab2-U``): ResNet34_UNet, 60 epochs, 46 minutes, test Dice 0.8600, with flips 0.8665; UNet, 25 epochs, 30
    minutes, 0.7226 and 0.7253.
    """
    network = {"UNet": "lab2.UNet", "ResNet34_UNet": "lab2.ResNet34_UNet"}.get(network, network)
    return Config(
        network,
        recipe="lab2",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        augmentation=Augmentation(horizontal_flip=0.5, vertical_flip=0.5, rotation=15, integer_degrees=True),
        loss="bce",
        optimizer="adam",
        learning_rate=1e-2 if network == "lab2.ResNet34_UNet" else 1e-3,
        weight_decay=0.0,
        schedule="exponential",
        warmup=0.0,
        ema_steps=0,
        epochs=100,
    )


def lab3(network: str) -> Config:
    """Report lab3 (test Dice 0.88 and 0.89), with its own UNet and ResNet34_UNet.

    The report gives no learning rate, batch size or epochs; 0.1, 16 and 50 are our choice. Its BatchNorm is frozen from
    the second epoch on; here it stays in training mode. Its threshold, probs >= 0.5 where ours is probs > 0.5, differs
    only at a logit of exactly 0 and is not kept.

    At 128x128, on one core of an AMD EPYC with bfloat16 (``benchmarks/study.py --queue benchmarks/queue.txt --only
    lab3-R lab3-U``): ResNet34_UNet, 25 epochs, 52 minutes, test Dice 0.7872, with flips 0.8054 (its shared BatchNorms
    fit neither of their convolutions: STUDY.md); UNet, 5 epochs, 51 minutes, 0.8683 and 0.8728.
    """
    return Config(
        {"UNet": "lab3.UNet", "ResNet34_UNet": "lab3.ResNet34_UNet"}.get(network, network),
        recipe="lab3",
        loss="mse",
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=0.0,
        schedule="constant",
        warmup=0.0,
        ema_steps=0,
        epochs=50,
        score_train=True,
        export_weights=True,
    )


RECIPES: dict[str, Callable[[str], Config]] = {recipe.__name__: recipe for recipe in (default, fast, cpu, lab2, lab3)}


def check_network(config: Config, network: str, what: str) -> None:
    """Raise UserError unless ``--model network`` stands for the config's network, by its recipe or by name."""
    if config.network not in (network, RECIPES.get(config.recipe, Config)(network).network):
        raise UserError(f"{what} holds the network {config.network}, not what --model {network} stands for")


def network_of(config: Config) -> str:
    """The network as ``--model`` names it: ``UNet`` for report lab2's own, ``lab2.UNet``."""
    return config.network.removeprefix(f"{config.recipe}.")
