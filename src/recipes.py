"""Config, which holds all that a run is, and the named recipes that make one.

To add a recipe: a function of the network's name that returns a ``Config``, and its line in ``RECIPES``.
"""

import dataclasses
import math
from collections.abc import Callable, Collection
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


@dataclass(frozen=True)
class Config:
    """All that decides a run's result. What a recipe does not say has the value given here.

    Raises:
        UserError: a value is impossible; the message names the field.
    """

    network: str  # a key of models.NETWORKS
    recipe: str = "default"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # of ImageNet's red, green, blue, in pixel values
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    augmentation: Augmentation = field(default_factory=Augmentation)
    ramp_epochs: int = 1  # over which the augmentation, except for the flips, grows to its full strength
    loss: str = "bce_dice"  # a key of losses.LOSSES
    optimizer: str = "adamw"  # a key of OPTIMIZERS
    learning_rate: float = 2e-3  # at the peak
    weight_decay: float = 0.02  # not of BatchNorm and biases
    schedule: str = "cosine"  # half a cosine to 0; exponential: a factor each epoch; constant
    warmup: float = 0.05  # fraction of all steps, linear from 0, before the schedule
    decay: float = 0.99  # the exponential schedule's factor
    ema_steps: int = 400  # horizon of the EMA weights, at most a tenth of the steps so far; 0: no EMA
    epochs: int = 200
    # Progressive resizing: pairs of a fraction of the epochs and a divisor of the image size until then.
    progressive: tuple[tuple[float, int], ...] = ()
    batch_size: int = 16
    score_train: bool = False  # after each epoch, score the training images too
    export_weights: bool = False  # at the end, also write the final weights alone
    image_size: int = 256  # pixels of height and width
    boundary: str = "pet"  # what a trimap's boundary counts as, one of trimap.BOUNDARIES
    seed: int = 0  # of weights, order and augmentation
    limit: int | None = None  # so many images of each split, evenly spaced
    train_images: int | None = None  # so many training images, evenly spaced
    precision: str = "auto"  # auto, bf16 or fp32
    stop_at_dice: float | None = None  # end the run when the validation Dice reaches it

    def __post_init__(self) -> None:
        for owner, checks in ((self, CHECKS), (self.augmentation, AUGMENTATION_CHECKS)):
            for name, allowed in checks.items():
                value = getattr(owner, name)
                is_allowed = allowed(value) if callable(allowed) else isinstance(value, str) and value in allowed
                if not is_allowed:
                    choices = "" if callable(allowed) else f"; there are {', '.join(allowed)}"
                    raise UserError(f"recipe {self.recipe!r}: {name} cannot be {value!r}{choices}")
        object.__setattr__(self, "progressive", tuple(map(tuple, self.progressive)))  # lists come from files
        if self.batch_size * (self.image_size_at(1) // 32) ** 2 < 2:
            raise UserError("a batch of 1 below 64x64 pixels leaves BatchNorm a single value; take 2 or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Config":
        """The config that ``to_dict`` gave; a field that it lacks has its default value.

        Raises:
            UserError: a field is unknown, or a value impossible.
        """
        augmentation = data.get("augmentation", {}) if isinstance(data, dict) else None
        if not isinstance(augmentation, dict) or "network" not in data:
            raise UserError("the config is not a dict with a network and an augmentation")
        for kind, fields in ((cls, data), (Augmentation, augmentation)):
            unknown = sorted(fields.keys() - {known.name for known in dataclasses.fields(kind)})
            if unknown:
                raise UserError(f"recipe {data.get('recipe', 'default')!r}: no field is called {', '.join(unknown)}")
        return cls(**data | {"augmentation": Augmentation(**augmentation)})

    def augmentation_at(self, epoch: int) -> Augmentation:
        """What is drawn in an epoch, counted from 1: early epochs gain nothing from strongly changed images."""
        return self.augmentation.scaled(min(1.0, epoch / self.ramp_epochs))

    def image_size_at(self, epoch: int) -> int:
        """Height and width of the network's input in an epoch, counted from 1."""
        divisor = next((divisor for until, divisor in self.progressive if epoch <= until * self.epochs), 1)
        return max(self.image_size // divisor, min(self.image_size, 32))

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when a fraction ``progress`` of all steps is done (0 to 1)."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        if self.schedule == "exponential":
            epochs_done = math.floor(progress * self.epochs + 1e-6)  # 1e-6: against rounding
            return self.learning_rate * self.decay**epochs_done
        return self.learning_rate


# ---------------------------------------------------------------------------------------------- allowed values


def number(lowest: float, highest: float, or_none: bool = False) -> Callable[[Any], bool]:
    """A check for a number in a range, both ends included; whole where the lowest is an int."""
    kinds = int if isinstance(lowest, int) else int | float

    def is_allowed(value: Any) -> bool:
        if value is None:
            return or_none
        return isinstance(value, kinds) and not isinstance(value, bool) and lowest <= value <= highest

    return is_allowed


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def colour(lowest: float) -> Callable[[Any], bool]:
    """A check for three numbers from ``lowest`` up."""
    return lambda value: isinstance(value, tuple | list) and len(value) == 3 and all(map(number(lowest, 1e6), value))


def is_stage(pair: Any) -> bool:
    """Whether this may be an entry of ``Config.progressive``."""
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    return is_pair and number(0.0, 1.0)(pair[0]) and number(1, 8)(pair[1]) and 8 % pair[1] == 0


# For each field, the names to choose from, or a check.
CHECKS: dict[str, Collection[str] | Callable[[Any], bool]] = {
    "recipe": lambda value: isinstance(value, str) and value.isprintable(),
    "augmentation": lambda value: isinstance(value, Augmentation),
    "network": NETWORKS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "boundary": BOUNDARIES,
    "precision": PRECISIONS,
    "mean": colour(-math.inf),
    "std": colour(1e-6),
    "ramp_epochs": number(1, 10**6),
    "learning_rate": number(1e-12, 1e6),
    "weight_decay": number(0.0, 1e6),
    "warmup": number(0.0, 0.999),
    "decay": number(1e-6, 1.0),
    "ema_steps": number(0, 10**9),
    "epochs": number(1, 10**6),
    "progressive": lambda value: isinstance(value, tuple | list) and all(map(is_stage, value)),
    "batch_size": number(1, 10**6),
    "score_train": is_bool,
    "export_weights": is_bool,
    "image_size": number(32, LARGEST_IMAGE),
    "seed": number(0, 2**63 - 1),
    "limit": number(1, 10**9, or_none=True),
    "train_images": number(1, 10**9, or_none=True),
    "stop_at_dice": number(1e-9, 1.0, or_none=True),
}
AUGMENTATION_CHECKS = {
    "horizontal_flip": number(0.0, 1.0),
    "vertical_flip": number(0.0, 1.0),
    "rotation": number(0.0, 180.0),
    "integer_degrees": is_bool,
    "zoom": number(1.0, 100.0),
    "stretch": number(1.0, 100.0),
    "shift": number(0.0, 1.0),
    "brightness": number(0.0, 1.0),
    "contrast": number(1.0, 100.0),
}


# ---------------------------------------------------------------------------------------------- the recipes


def default(network: str) -> Config:
    """Trains for the best Dice in the end, whatever the number of epochs.

    Progressive resizing follows the number of epochs, the EMA that of steps; the augmentation grows over 20 epochs, so
    that a short run sees little of it. The 200 epochs at 256x256 are for a GPU and not measured yet; ``cpu`` is.
    """
    return Config(
        network,
        augmentation=Augmentation(
            horizontal_flip=0.5, rotation=15, zoom=1.33, stretch=1.2, shift=0.1, brightness=0.1, contrast=1.25
        ),
        ramp_epochs=20,
        progressive=((0.25, 4), (0.6, 2)),
        # A transformer from fresh weights gains by a longer warm-up (benchmarks/README.md).
        warmup=0.15 if network.startswith("SegFormer") else Config.warmup,
    )


def fast(network: str) -> Config:
    """Trains to a validation Dice of 0.90 in the shortest time: ``default`` with half of its augmentation.

    At 128x128, on one core of an AMD EPYC with bfloat16 (``--model R --recipe fast --stop_at_dice 0.90``): reached
    after 24 epochs, 21 minutes, test Dice 0.9058, with flips 0.9080.
    """
    config = default(network)
    return dataclasses.replace(
        config, recipe="fast", augmentation=config.augmentation.scaled(0.5), ramp_epochs=1, epochs=30
    )


def cpu(network: str) -> Config:
    """``default`` as far as a CPU gets in an evening: 128x128 images, 56 epochs.

    On the real data at 128x128, one core of an AMD EPYC with bfloat16 (``make reproduce MODEL=R``, or U): R, 66 epochs,
    75 minutes, test Dice 0.9171, with flips 0.9210; U, 13 epochs, 80 minutes, 0.9054 and 0.9068.
    """
    return dataclasses.replace(default(network), recipe="cpu", image_size=128, epochs=56)


def lab2(network: str) -> Config:
    """Report lab2 (test Dice 0.7491 and 0.9011), with its own UNet and ResNet34_UNet.

    It gives no batch size, and "more than 80" epochs: 16 and 100 are ours. At 128x128, on one core of an AMD EPYC with
    bfloat16 (``benchmarks/study.py --queue benchmarks/queue.txt --only lab2-R lab2-U``): ResNet34_UNet, 60 epochs, 46
    minutes, test Dice 0.8600, with flips 0.8665; UNet, 25 epochs, 30 minutes, 0.7226 and 0.7253.
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

    Learning rate, batch size and epochs were flags without given values: 0.1, 16 and 50 are ours. It left BatchNorm
    frozen from the second epoch on; here it trains in training mode throughout. Its threshold, from 0.5 up where the
    others' is above 0.5, differs at a logit of exactly 0 only, and is not kept.

    At 128x128, on one core of an AMD EPYC with bfloat16 (``benchmarks/study.py --queue benchmarks/queue.txt --only
    lab3-R lab3-U``): ResNet34_UNet, 25 epochs, 52 minutes, test Dice 0.7872, with flips 0.8054, because its shared
    BatchNorms fit neither of their convolutions (STUDY.md); UNet, 5 epochs, 51 minutes, 0.8683 and 0.8728.
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


RECIPES: dict[str, Callable[[str], Config]] = {
    "default": default,
    "fast": fast,
    "cpu": cpu,
    "lab2": lab2,
    "lab3": lab3,
}
