"""On a GPU: a step against the CPU's, compiled against eager, no sync in a step, exact resume, memory, inference.

None of these tests has run yet on a GPU: test_fake_cuda.py is what stands in for them where there is none.
"""

import warnings
from dataclasses import replace
from pathlib import Path

from plumbing.stop import StopSignal

import numpy as np
import pytest
import torch
from conftest import Train
from torch import Tensor

import evaluate
import inference
import train
from augment import draw_epoch
from checkpoint import load_checkpoint
from predictor import SMALL_WEIGHTS, Predictor
from recipes import RECIPES, Config
from split import Split, images_and_trimaps, load_split
from train import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.fixture
def split(drawn_pets: Path) -> Split:
    return load_split(drawn_pets, "train", 64)


def make_trainer(split: Split, device: torch.device, config: Config, precision: torch.dtype = torch.float32) -> Trainer:
    split = split.to(device)
    trainer = Trainer(replace(config, image_size=64, batch_size=6), device, split, split, precision)
    trainer.model.train()
    return trainer


def make_batch(trainer: Trainer, number: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    """A batch of 6 of the first epoch, counted from 0, as ``train_step`` takes it."""
    plan = draw_epoch(trainer.config.augmentation, len(trainer.train), 6, seed=0, epoch=1).to(trainer.device)
    part = slice(6 * number, 6 * number + 6)
    return trainer.train.pixels[plan.order[part]], plan.theta[part], plan.colour[part], trainer.train.pixels.shape[1]


def movement(trainer: Trainer, number: int = 0) -> Tensor:
    """What a step adds to all weights, as one float64 vector on the CPU."""

    def weights() -> Tensor:
        return torch.cat([weight.detach().to("cpu", torch.float64).flatten() for weight in trainer.model.parameters()])

    before = weights()
    trainer.train_step(*make_batch(trainer, number))
    return weights() - before


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 0.1), (torch.bfloat16, 0.7)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("network", ["UNet", "ResNet34_UNet"])
def test_a_step_agrees_with_the_cpus(
    split: Split, network: str, compiled: bool, precision: torch.dtype, tolerance: float
) -> None:
    """Nearer than to the step of another batch; by SGD, whose first step is the gradient."""
    config = replace(RECIPES["default"](network), optimizer="sgd")
    expected, other = (movement(make_trainer(split, CPU, config), number) for number in (0, 1))
    trainer = make_trainer(split, GPU, config, precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's advice
        if compiled:
            trainer.forward = torch.compile(trainer.model, dynamic=False)
        ours = movement(trainer)
    assert (ours - expected).norm() < tolerance * (ours - other).norm()


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_step_waits_for_the_gpu(split: Split, recipe: str) -> None:
    trainer = make_trainer(split, GPU, RECIPES[recipe]("ResNet34_UNet"), torch.bfloat16)
    batch = make_batch(trainer)
    trainer.train_step(*batch)  # the first one makes the optimizer's state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_resumed_run_is_the_uninterrupted_one(
    run_train: Train, stop_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit where cuDNN is held to deterministic algorithms, whose choice is made once in a process."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    flags = ("--device", "cuda", "--epochs", 3)
    run_train(*flags, "--name", "whole")
    stop_train(14, *flags, "--name", "parts")  # in the second epoch
    run_train(*flags, "--name", "parts", "--resume")
    whole, parts = (load_checkpoint(tmp_path / name / f"{name}_last.pth") for name in ("whole", "parts"))
    for a, b in ((whole["model"], parts["model"]), (whole["training"]["model"], parts["training"]["model"])):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("network", ["UNet", "ResNet34_UNet"])
def test_nothing_takes_more_memory_than_a_step(drawn_pets: Path, network: str) -> None:
    trainer = make_trainer(load_split(drawn_pets, "train", 128), GPU, RECIPES["default"](network))
    batch = make_batch(trainer)
    trainer.train_step(*batch)
    trainer.progress.seconds = 1.0
    peaks = []
    for work in (
        lambda: trainer.train_step(*batch),
        lambda: trainer.ema.refresh_batchnorm(trainer.plain_batches()),
        lambda: trainer.score_epoch(StopSignal()),
    ):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] > max(peaks[1:])


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.01), ("bf16", 0.1)])
def test_probabilities_are_the_cpus(drawn_pets: Path, precision: str, tolerance: float) -> None:
    state = load_checkpoint(SMALL_WEIGHTS)
    images = images_and_trimaps(load_split(drawn_pets, "test", 128).pixels)[0]
    probs = []
    for device, computed in ((CPU, "fp32"), (GPU, precision)):
        predictor = Predictor(state | {"config": replace(state["config"], precision=computed)}, device)
        logits = predictor.logits(images.to(device))
        assert (logits.dtype, logits.device) == (torch.float32, device)
        probs.append(logits.sigmoid().cpu().numpy())
    assert np.abs(probs[1] - probs[0]).mean() < tolerance / 10
    assert np.quantile(np.abs(probs[1] - probs[0]), 0.99) < tolerance


@pytest.mark.parametrize("device", [f"cuda:{index}" for index in range(torch.cuda.device_count())])
def test_every_script_works(drawn_pets: Path, tmp_path: Path, device: str) -> None:
    where = ["--model", "R", "--save_path", str(tmp_path), "--device", device]
    sizes = ["--image_size", "64", "--batch_size", "4", "--epochs", "2"]
    train.main([*where, *sizes, "--data_path", str(drawn_pets)])
    evaluate.main([*where, "--flip_average"])
    inference.main([*where, "--output", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 20
    history = load_checkpoint(tmp_path / "R" / "R_last.pth")["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert torch.cuda.max_memory_allocated(device) > 0


def test_pixels_of_a_memory_map_arrive_on_the_gpu(split: Split) -> None:
    order = torch.randperm(len(split))
    fetched, there = (list(where.batches(order, 4, GPU)) for where in (split, split.to(GPU)))
    assert all(map(torch.equal, fetched, there))
