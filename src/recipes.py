"""A recipe: network, loss, optimizer, schedule, augmentation and their numbers. All named recipes stand here."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from augment import Augmentation
from losses import LOSSES
from models import NETWORKS
from options import UserError

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "exponential", "constant")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The default values are the recipe called ``default``.

    Where U and R differ, a field is a dict by letter; ``for_letter`` picks one.

    Raises:
        UserError: a value is impossible; the message names the recipe and the field.
    """

    name: str = "default"
    networks: dict[str, str] = field(default_factory=lambda: {"U": "UNet", "R": "ResNet34_UNet"})
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # of ImageNet's red, green, blue, in pixel values
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    augmentation: Augmentation = field(default_factory=Augmentation)
    ramp_epochs: int = 1  # over which the augmentation, but for the flips, grows to its full reach
    loss: str = "bce_dice"  # a key of losses.LOSSES
    dice_weight: float = 1.0  # of the Dice term of bce_dice, beside the cross-entropy's 1
    optimizer: str = "adamw"  # adamw, adam, or sgd with momentum 0.9
    learning_rate: float | dict[str, float] = 2e-3  # at the peak
    weight_decay: float = 0.02  # not of BatchNorm and biases
    schedule: str = "cosine"  # half a cosine to 0; exponential: a factor an epoch; constant
    warmup: float = 0.05  # share of all steps, linear from 0, before the schedule
    decay: float = 0.99  # the exponential schedule's factor
    # The weights' moving average reaches back so many steps, and a tenth of the run so far. With 0 there is none: the
    # weights that one would use are the trained ones, with the BatchNorm statistics that gathered in training.
    average_steps: int = 400
    epochs: int = 200
    # Pairs of a share of the epochs and a divisor: until then, height and width of the pictures are divided by that.
    smaller_until: tuple[tuple[float, int], ...] = ()
    batch_size: int = 16
    score_train: bool = False  # after each epoch, also the Dice on the training images as they are
    state_dicts: dict[str, str] = field(default_factory=dict)  # file in the folder of all runs for the final weights
    epoch_line: str = (  # printed after each epoch
        "Epoch {epoch}/{epochs}, Training Loss: {train_loss:.4f}, Valid Loss: {valid_loss:.4f}, "
        "Valid Dice: {valid_dice:.4f}{best}, LR: {learning_rate:.6f}, {images_per_second:.1f} images/s, {left} left"
    )
    score_line: str = "Dice Score: {:.4f}"  # printed by evaluate and inference

    def __post_init__(self) -> None:
        def is_in(lowest: float, value: Any, highest: float = math.inf) -> bool:
            return isinstance(value, int | float) and lowest <= value <= highest and math.isfinite(value)

        def is_colour(value: Any, lowest: float) -> bool:
            return isinstance(value, tuple | list) and len(value) == 3 and all(is_in(lowest, part) for part in value)

        def is_by_letter(value: Any) -> bool:
            return isinstance(value, dict) and value.keys() == {"U", "R"}

        def can_be_filled(line: str, *values: float, **named: Any) -> bool:
            try:
                return bool(line.format(*values, **named))
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                return False

        a = self.augmentation
        if not isinstance(a, Augmentation):
            raise UserError(f"recipe {self.name!r}: augmentation is {a!r}, not an Augmentation(...)")
        rates = self.learning_rate if isinstance(self.learning_rate, dict) else dict.fromkeys("UR", self.learning_rate)
        row = dict.fromkeys(("train_loss", "valid_loss", "valid_dice", "learning_rate", "images_per_second"), 0.5)
        row |= {"epoch": 1, "epochs": 2, "best": "", "left": ""} | ({"train_dice": 0.5} if self.score_train else {})
        possible = {
            "networks": is_by_letter(self.networks) and set(self.networks.values()) <= NETWORKS.keys(),
            "mean": is_colour(self.mean, -math.inf),
            "std": is_colour(self.std, 1e-6),
            "ramp_epochs": is_in(1, self.ramp_epochs),
            "loss": self.loss in LOSSES,
            "dice_weight": is_in(0, self.dice_weight),
            "optimizer": self.optimizer in OPTIMIZERS,
            "learning_rate": is_by_letter(rates) and all(is_in(1e-12, rate) for rate in rates.values()),
            "weight_decay": is_in(0, self.weight_decay),
            "schedule": self.schedule in SCHEDULES,
            "warmup": is_in(0, self.warmup, 0.999),
            "decay": is_in(1e-6, self.decay, 1),
            "average_steps": is_in(0, self.average_steps),
            "epochs": is_in(1, self.epochs) and self.epochs == int(self.epochs),
            "smaller_until": isinstance(self.smaller_until, tuple | list)
            and all(len(pair) == 2 and is_in(0, pair[0], 1) and pair[1] in (1, 2, 4, 8) for pair in self.smaller_until),
            "batch_size": is_in(1, self.batch_size) and self.batch_size == int(self.batch_size),
            "state_dicts": isinstance(self.state_dicts, dict) and self.state_dicts.keys() <= {"U", "R"},
            "epoch_line": can_be_filled(self.epoch_line, **row),
            "score_line": can_be_filled(self.score_line, 0.5),
        }
        changes = {
            "horizontal_flip": is_in(0, a.horizontal_flip, 1),
            "vertical_flip": is_in(0, a.vertical_flip, 1),
            "rotation": is_in(0, a.rotation, 180),
            "zoom": is_in(1, a.zoom),
            "stretch": is_in(1, a.stretch),
            "shift": is_in(0, a.shift, 1),
            "brightness": is_in(0, a.brightness, 1),
            "contrast": is_in(1, a.contrast),
        }
        choices = {"networks": NETWORKS, "loss": LOSSES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
        for owner, checks in ((self, possible), (a, changes)):
            for key, is_possible in checks.items():
                if not is_possible:
                    hint = f"; there are {', '.join(choices[key])}" if key in choices else ""
                    raise UserError(f"recipe {self.name!r}: {key} cannot be {getattr(owner, key)!r}{hint}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Recipe":
        """What ``to_dict`` gave; a field that it lacks has its default value.

        Raises:
            UserError: a field is unknown, or a value impossible.
        """
        augmentation = data.get("augmentation", {})
        for kind, fields in ((cls, data), (Augmentation, augmentation)):
            unknown = sorted(fields.keys() - {known.name for known in dataclasses.fields(kind)})
            if unknown:
                raise UserError(f"recipe {data.get('name', 'default')!r}: no field is called {', '.join(unknown)}")
        return cls(**dict(data, augmentation=Augmentation(**augmentation)))

    def for_letter(self, letter: str) -> "Recipe":
        """The recipe with the learning rate of one network."""
        if not isinstance(self.learning_rate, dict):
            return self
        return dataclasses.replace(self, learning_rate=self.learning_rate[letter])

    def augmentation_at(self, epoch: int) -> Augmentation:
        """What is drawn in an epoch, counted from 1: a short run gains nothing from pictures it has not yet learned."""
        return self.augmentation.scaled(min(1.0, epoch / self.ramp_epochs))

    def side_at(self, epoch: int, side: int) -> int:
        """Height and width of what the network sees in an epoch, counted from 1, of a run at ``side`` pixels."""
        divisor = next((divisor for until, divisor in self.smaller_until if epoch <= until * self.epochs), 1)
        return max(side // divisor, min(side, 32))

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate of a recipe ``for_letter``, by the share of all steps that are done (0 to 1)."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        if self.schedule == "exponential":
            done = math.floor(progress * self.epochs + 1e-6)  # whole epochs, whatever the division has rounded
            return self.learning_rate * self.decay**done
        return self.learning_rate


# The reports train plainly: what default has beyond that is switched off.
PLAIN = Recipe(name="plain", dice_weight=0.0, weight_decay=0.0, warmup=0.0, average_steps=0)

RECIPES = {
    # R on the real data at 128x128, 12 epochs on 2 CPU cores, 29 minutes: 0.8953 on test (benchmarks/results/
    # accuracy-cpu-128.json). 200 epochs are for a GPU and not measured yet.
    "default": Recipe(
        augmentation=Augmentation(
            horizontal_flip=0.5, rotation=15, zoom=1.33, stretch=1.2, shift=0.1, brightness=0.1, contrast=1.25
        ),
        ramp_epochs=30,
    ),
    # To a valid Dice of 0.90 in the shortest time: benchmarks/README.md has what each choice is worth. 16 such epochs
    # of R at 128x128 ended at 0.8958; hence 20: a run whose learning rate has come to 0 below 0.90 never gets there.
    "fast": Recipe(
        name="fast",
        augmentation=Augmentation(horizontal_flip=0.5),
        epochs=20,
        smaller_until=((0.25, 4), (0.6, 2)),
    ),
    # Report lab2 (0.7491 and 0.9011 on test). It gives no batch size, and "more than 80" epochs: 16 and 100 are ours.
    "lab2": dataclasses.replace(
        PLAIN,
        name="lab2",
        networks={"U": "lab2.UNet", "R": "lab2.ResNet34_UNet"},
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        augmentation=Augmentation(horizontal_flip=0.5, vertical_flip=0.5, rotation=15, whole_degrees=True),
        loss="bce",
        optimizer="adam",
        learning_rate={"U": 1e-3, "R": 1e-2},
        schedule="exponential",
        epochs=100,
        epoch_line="Epoch {epoch}, Training Loss: {train_loss:.4f}, Dice Score: {valid_dice:.4f}, "
        "LR: {learning_rate:.6f}",
    ),
    # Report lab3 (0.88 and 0.89 on test). Learning rate, batch size and epochs were flags without given values: 0.1,
    # 16 and 50 are ours. It left BatchNorm frozen from the second epoch on; here it trains in training mode throughout.
    # Its threshold, from 0.5 up where the others' is above 0.5, differs at a logit of exactly 0 only, and is not kept.
    "lab3": dataclasses.replace(
        PLAIN,
        name="lab3",
        networks={"U": "lab3.UNet", "R": "lab3.ResNet34_UNet"},
        loss="mse",
        optimizer="sgd",
        learning_rate=0.1,
        schedule="constant",
        epochs=50,
        score_train=True,
        state_dicts={"U": "UNet.pth", "R": "ResNet34_UNet.pth"},
        epoch_line="Epoch [{epoch}/{epochs}], train dice score: {train_dice:.4f}, valid dice score: {valid_dice:.4f}",
        score_line="Dice score: {:.4f}",
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe that stands under a name in ``RECIPES``.

    Raises:
        UserError: it calls itself otherwise, so that its checkpoints would not be found again.
    """
    if RECIPES[name].name != name:
        raise UserError(f"RECIPES[{name!r}] has name={RECIPES[name].name!r}: the two must be the same")
    return RECIPES[name]
