"""What the tests share: a tiny drawn data set, and a copy of it to break."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from models import NETWORKS
from recipes import RECIPES
from synthetic_pet import write_dataset

torch.set_num_threads(min(2, torch.get_num_threads()))  # the pictures are tiny: more threads wait for each other


@pytest.fixture(scope="session")
def drawn_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 40 drawn pets: 18 train, 2 valid, 20 test. Tests may read it, and leave it as it is."""
    return write_dataset(tmp_path_factory.mktemp("drawn") / "pets", count=40, seed=0, size=(48, 72))


@pytest.fixture
def pets(drawn_pets: Path, tmp_path: Path) -> Path:
    """A copy of the drawn data set, not yet decoded, for a test that changes something in it."""
    return shutil.copytree(drawn_pets, tmp_path / "pets", ignore=shutil.ignore_patterns(".cache"))


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """U and R are a network of two convolutions, for tests that are about the run and not about the network."""

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))

    monkeypatch.setitem(NETWORKS, "Tiny", build)
    tiny = dataclasses.replace(RECIPES["default"], networks={"U": "Tiny", "R": "Tiny"})
    monkeypatch.setitem(RECIPES, "default", tiny)
