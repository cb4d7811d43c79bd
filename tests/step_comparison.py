"""Compare two ways to do a training step from one state, for the tests of CUDA and of --compile."""

import copy
from dataclasses import replace

from plumbing.cli import choose_precision

import torch
from torch import Tensor

from augment import draw_epoch
from recipes import Config
from split import Split
from train import Trainer

TOLERANCE, ROUGHLY = 0.1, 0.6  # of a movement's norm; bfloat16 moves 90% of R's tensors within 0.3 of float32
Batch = tuple[Tensor, Tensor, Tensor]  # pixels, theta, colour


def trainer_and_batches(config: Config, device: torch.device, train: Split, steps: int = 3) -> tuple[Trainer, list]:
    """A trainer some steps after the start (Adam's first step is a sign), and two batches that it has not seen."""
    train = train.to(device)
    trainer, size = Trainer(config, device, train, train, choose_precision(config.precision, device)), config.batch_size
    plan = draw_epoch(config.augmentation, len(train), size, seed=1, epoch=1).to(device)
    parts = [slice(start, start + size) for start in range(0, len(plan.order), size)]
    batches = [(train.pixels[plan.order[part]], plan.theta[part], plan.colour[part]) for part in parts]
    trainer.model.train()
    for index in range(steps):
        trainer.train_step(*batches[index % (len(batches) - 2)], config.image_size)
    return trainer, batches[-2:]


def on_device(trainer: Trainer, device: torch.device, **changes: object) -> Trainer:
    """The same weights and moments on a device, perhaps with other values in the config."""
    config = replace(trainer.config, **changes)
    other = Trainer(config, device, trainer.train, trainer.valid, choose_precision(config.precision, device))
    other.model.load_state_dict(trainer.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
    other.model.train()
    return other


def movements(trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
    """The loss of a step, and what it adds to each weight, buffer and moment; the state is put back afterwards."""

    def values() -> dict[str, Tensor]:
        moments = trainer.optimizer.state_dict()["state"]
        named = {f"{key} of weight {index}": value for index, kept in moments.items() for key, value in kept.items()}
        named |= trainer.model.state_dict()
        return {name: value.detach().to("cpu", torch.float64, copy=True) for name, value in named.items()}

    saved, before = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict())), values()
    loss = trainer.train_step(*batch, trainer.config.image_size)
    moved = {name: value - before[name] for name, value in values().items()}
    trainer.model.load_state_dict(saved[0])
    trainer.optimizer.load_state_dict(saved[1])
    return {"loss": loss.double().cpu(), **moved}


def agree(ours: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float = TOLERANCE) -> bool:
    """True if the loss and over 90% of the tensors moved alike, by norm; a gradient that is all rounding cannot."""
    assert ours.keys() == reference.keys()
    alike = [float((ours[name] - moved).norm()) <= tolerance * float(moved.norm()) for name, moved in reference.items()]
    return alike[0] and sum(alike) > 0.9 * len(alike)
