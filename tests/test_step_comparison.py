"""step_comparison.py bears rounding and finds planted faults; a compiled step agrees with the eager one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from step_comparison import agree, movements, trainer_and_batches
from torch import nn

from models import NETWORKS
from recipes import RECIPES
from split import load_split


def build_tiny() -> nn.Module:
    """No bias in front of BatchNorm: its gradient is all rounding, which no two ways to compute it share."""
    first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))


def test_rounding_agrees_and_faults_do_not(drawn_pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "UNet", build_tiny)
    config = replace(RECIPES["default"]("UNet"), image_size=32, batch_size=4, learning_rate=1e-3)
    trainer, (batch, stale) = trainer_and_batches(config, torch.device("cpu"), load_split(drawn_pets, "train", 32))
    reference = movements(trainer, batch)
    assert not agree(movements(trainer, stale), reference)
    eager, trainer.forward = trainer.forward, torch.compile(trainer.model, dynamic=False, backend="aot_eager")
    assert agree(movements(trainer, batch), reference)
    trainer.forward = eager
    for factor in (1.25, 0.8):
        for group in trainer.optimizer.param_groups:
            group["lr"] *= factor
        assert agree(movements(trainer, batch), reference) == (factor < 1)
