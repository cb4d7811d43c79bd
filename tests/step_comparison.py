"""Compare two ways to do a training step, from one state: what the tests of CUDA and of --compile rely on."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from augment import draw_epoch
from engine import TrainingState, create_state, train_step
from oxford_pet import Split
from recipes import Config

Step = Callable[..., Tensor]
TOLERANCE, LEAST = 0.1, 0.9  # of a movement's norm; fraction of the tensors that must be within it
ROUGHLY = 0.6  # for bfloat16, which moves 90% of R's tensors within 0.3 of float32 (64x64, batch 8, on a CPU)


def state_and_batches(config: Config, device: torch.device, train: Split, steps: int = 3) -> tuple[TrainingState, list]:
    """A state some steps after the start, because Adam's first step is a sign, and two batches that it has not seen."""
    train = train.to(device)
    state = create_state(config, device, train, train)
    state.model.train()
    size = config.batch_size
    plan = draw_epoch(config.augmentation, len(train), size, seed=1, epoch=1).to(device)
    parts = [slice(start, start + size) for start in range(0, len(plan.order), size)]
    batches = [(train.pixels[plan.order[part]], plan.theta[part], plan.colour[part]) for part in parts]
    for index in range(steps):
        train_step(state, *batches[index % (len(batches) - 2)])
    return state, batches[-2:]


def on_device(state: TrainingState, device: torch.device, **changes: object) -> TrainingState:
    """The same state elsewhere, perhaps with other values in its config."""
    other = create_state(replace(state.config, **changes), device, state.train, state.valid)
    other.model.load_state_dict(state.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(state.optimizer.state_dict()))
    other.model.train()
    return other


def values(state: TrainingState) -> dict[str, Tensor]:
    """Every weight, buffer and number of the optimizer, copied to the CPU as float64."""
    moments = state.optimizer.state_dict()["state"]
    named = {f"{key} of weight {index}": value for index, kept in moments.items() for key, value in kept.items()}
    return {
        name: value.detach().to("cpu", torch.float64, copy=True)
        for name, value in [*state.model.state_dict().items(), *named.items()]
    }


def movements(state: TrainingState, batch: tuple[Tensor, ...], step: Step = train_step) -> dict[str, Tensor]:
    """The loss of a step, and what it adds to each of ``values``; the state is as before when it returns."""
    saved = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict()))
    before = values(state)
    loss = step(state, *batch)
    moved = {name: value - before[name] for name, value in values(state).items()}
    state.model.load_state_dict(saved[0])
    state.optimizer.load_state_dict(saved[1])
    return {"loss": loss.detach().double().cpu(), **moved}


def agreement(ours: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float = TOLERANCE) -> float:
    """The fraction of tensors that moved alike, by norm; 0 if the losses differ.

    Not all can: a gradient that is all rounding, as that of a bias before a BatchNorm, differs by chance.
    """
    assert ours.keys() == reference.keys()
    alike = [float((ours[name] - moved).norm()) <= tolerance * float(moved.norm()) for name, moved in reference.items()]
    return sum(alike) / len(alike) if alike[0] else 0.0


def agree(ours: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float = TOLERANCE) -> bool:
    return agreement(ours, reference, tolerance) > LEAST
