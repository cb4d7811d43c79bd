"""What the tests share: a tiny drawn data set, a tiny network, and runs of a few steps."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from plumbing.stop import StopSignal

import pytest
import torch
from torch import nn

import run
import train
from draw_pets import write_dataset
from models import NETWORKS

torch.set_num_threads(min(2, torch.get_num_threads()))  # the images are tiny: more threads wait for each other


@pytest.fixture(scope="session")
def drawn_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 40 drawn pets: 18 train, 2 valid, 20 test. Tests may read it, and leave it as it is."""
    return write_dataset(tmp_path_factory.mktemp("drawn") / "pets", count=40, seed=0, size=(48, 72))


@pytest.fixture
def pets(drawn_pets: Path, tmp_path: Path) -> Path:
    """A copy of the drawn data set, not yet decoded, for a test that changes something in it."""
    return shutil.copytree(drawn_pets, tmp_path / "pets", ignore=shutil.ignore_patterns(".cache"))


Train = Callable[..., None]
AtStep = Callable[[int, Callable[[], None]], None]


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network's name means two convolutions; RReLU draws numbers in training, as dropout does."""

    def build() -> nn.Sequential:
        first, last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        return nn.Sequential(first, nn.BatchNorm2d(4), nn.RReLU(), last)

    for name in NETWORKS:
        monkeypatch.setitem(NETWORKS, name, build)


@pytest.fixture
def run_train(tiny_network: None, drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """``train.main`` on 18 images of 32x32, 5 steps an epoch, saved below ``tmp_path``; further flags as arguments."""
    monkeypatch.setattr(run, "draw_curves", lambda _, path: path.touch())  # which takes longer than all the rest

    def call(*flags: object) -> None:
        data = ("--data_path", drawn_pets, "--image_size", 32, "--batch_size", 4)
        train.main([str(flag) for flag in ("--model", "R", *data, "--save_path", tmp_path, *flags)])

    return call


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> AtStep:
    """Call something before a training step, counted from here and from 1."""

    def arrange(number: int, action: Callable[[], None]) -> None:
        train_step, done = train.Trainer.train_step, []

        def counted(*args: object) -> torch.Tensor:
            done.append(1)
            if len(done) == number:
                action()
            return train_step(*args)

        monkeypatch.setattr(train.Trainer, "train_step", counted)

    return arrange


@pytest.fixture
def stop_train(run_train: Train, monkeypatch: pytest.MonkeyPatch) -> Train:
    """``run_train``, stopped by SIGTERM during a batch of which the number, from 1, precedes the flags.

    Each epoch has 5 steps, 5 batches for BatchNorm statistics, unless there is no EMA, and 1 of validation.
    """

    def call(number: int, *flags: object) -> None:
        between, done = StopSignal.between, []

        def counted(stop: StopSignal, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
            for batch in between(stop, batches):
                done.append(1)
                if len(done) == number:
                    terminate()
                yield batch

        with monkeypatch.context() as patched, pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            patched.setattr(StopSignal, "between", counted)
            run_train(*flags)

    return call


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def shake_norms(model: nn.Module) -> nn.Module:
    """Give every BatchNorm weights, biases and statistics that cannot be mistaken for the defaults."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model
