"""On a GPU: a step against the CPU's, compiled against eager, no sync in a step, exact resume, memory, inference.

None of these tests has run yet on a GPU: test_fake_cuda.py is what stands in for them where there is none.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from plumbing.stop import StopSignal

import numpy as np
import pytest
import torch
from conftest import Train, terminate
from step_comparison import ROUGHLY, TOLERANCE, agree, movements, on_device, state_and_batches

import evaluate
import inference
import train
from checkpoint import load_checkpoint
from engine import compile_forward, refresh_batchnorm, train_step
from oxford_pet import Split, images_and_trimaps, load_split
from predictor import SMALL_WEIGHTS, Predictor
from recipes import RECIPES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.fixture
def split(drawn_pets: Path) -> Split:
    return load_split(drawn_pets, "train", 64)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", TOLERANCE), ("bf16", ROUGHLY)])
@pytest.mark.parametrize("network", ["UNet", "ResNet34_UNet"])
def test_a_step_agrees_with_the_cpus(split: Split, network: str, precision: str, tolerance: float) -> None:
    config = replace(RECIPES["default"](network), image_size=64, batch_size=8, precision="fp32", learning_rate=1e-3)
    state, (batch, stale) = state_and_batches(config, CPU, split)
    reference = movements(state, batch)
    on_gpu = on_device(state, GPU, precision=precision)
    batch, stale = ([part.to(GPU) for part in parts] for parts in (batch, stale))
    assert agree(movements(on_gpu, batch), reference, tolerance)
    assert not agree(movements(on_gpu, stale), reference, tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", TOLERANCE), ("bf16", ROUGHLY)])
def test_a_compiled_step_agrees_with_the_eager_one(
    split: Split, precision: str, tolerance: float, capsys: pytest.CaptureFixture
) -> None:
    config = RECIPES["default"]("ResNet34_UNet")
    config = replace(config, image_size=64, batch_size=8, precision=precision, learning_rate=1e-3)
    state, (batch, _) = state_and_batches(config, GPU, split)
    reference = movements(state, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's advice
        compile_forward(state)
        assert "using eager" not in capsys.readouterr().out
        assert agree(movements(state, batch), reference, tolerance)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_step_waits_for_the_gpu(split: Split, recipe: str) -> None:
    config = replace(RECIPES[recipe]("ResNet34_UNet"), image_size=64, batch_size=6)
    state, (batch, _) = state_and_batches(config, GPU, split, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(state, *batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_resumed_run_is_the_uninterrupted_one(
    run_train: Train, at_step: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit where cuDNN is held to deterministic algorithms, whose choice is made once in a process."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    flags = ("--device", "cuda", "--epochs", 3)
    run_train(*flags, "--name", "whole")
    at_step(8, terminate)  # in the second epoch
    with pytest.raises(SystemExit):
        run_train(*flags, "--name", "parts")
    run_train(*flags, "--name", "parts", "--resume")
    whole, parts = (load_checkpoint(tmp_path / name / f"{name}_last.pth") for name in ("whole", "parts"))
    for key in ("model", "training"):
        weights = [state[key] if key == "model" else state[key]["model"] for state in (whole, parts)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("network", ["UNet", "ResNet34_UNet"])
def test_nothing_takes_more_memory_than_a_step(drawn_pets: Path, network: str) -> None:
    config = replace(RECIPES["default"](network), image_size=128, batch_size=8)
    split = load_split(drawn_pets, "train", 128).to(GPU)
    state, (batch, _) = state_and_batches(config, GPU, split)
    predictor = Predictor.from_model(state.ema_model, config, GPU, state.precision)
    peaks = []
    for work in (
        lambda: train_step(state, *batch),
        lambda: refresh_batchnorm(state, StopSignal()),
        lambda: train.score_epoch(state, predictor, StopSignal()),
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
