"""engine.py: one step, one epoch, EMA weights and BatchNorm statistics."""

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

from plumbing.stop import StopSignal

import pytest
import torch
from conftest import Train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import engine
import oxford_pet
import train
from augment import draw_epoch
from engine import TrainingState, create_state, refresh_batchnorm, train_one_epoch, train_step, update_ema
from models import NETWORKS
from oxford_pet import images_and_trimaps, load_split, read_split
from predictor import Predictor
from recipes import RECIPES, Config
from trimap import target_and_weight

CPU = torch.device("cpu")


def state_of(config: Config, data: Path) -> TrainingState:
    return create_state(config, CPU, *(load_split(data, mode, config.image_size) for mode in ("train", "valid")))


@pytest.fixture
def state(tiny_network: None, drawn_pets: Path) -> TrainingState:
    """18 images of 32x32 in batches of 6: 3 steps an epoch, without augmentation."""
    return state_of(Config("UNet", image_size=32, batch_size=6, epochs=4), drawn_pets)


class HostSyncs(TorchDispatchMode):
    """Counts where the host reads a number from the device: .item(), float(), bool()."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> object:
        aten = torch.ops.aten
        syncing = (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default, aten.equal.default)
        self.count += function in syncing
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_host_syncs_once_an_epoch_and_never_in_a_step(
    tiny_network: None, drawn_pets: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_SYNCS", 1e9)
    state = state_of(replace(RECIPES[recipe]("UNet"), image_size=32, batch_size=6), drawn_pets)
    calls: list[int] = []
    with HostSyncs() as syncs:
        train_one_epoch(state, StopSignal(), lambda state: calls.append(state.step))
    assert (syncs.count, calls) == (1, [state.steps_per_epoch])
    with HostSyncs() as syncs:
        float(torch.ones(1))
    assert syncs.count == 1  # it does count


def test_the_losses_of_several_logits_are_averaged(drawn_pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Conv2d(3, 1, 1) for _ in range(3))

        def forward(self, images: Tensor) -> list[Tensor]:
            return [head(images) for head in self.heads]

    monkeypatch.setitem(NETWORKS, "Several", Several)
    state = state_of(Config("Several", image_size=32, batch_size=6, optimizer="sgd"), drawn_pets)
    pixels, plan = state.train.pixels[:6], draw_epoch(state.config.augmentation, 6, 6, seed=0, epoch=1)
    images, trimaps = images_and_trimaps(pixels)
    outputs = state.model(state.normalise(images))
    expected = sum(state.criterion(logits, *target_and_weight(trimaps, "pet")) for logits in outputs) / 3
    weight = state.model.heads[1].weight
    before, gradient = weight.detach().clone(), torch.autograd.grad(expected, weight)[0]
    loss = train_step(state, pixels, plan.theta, plan.colour)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=0)
    moved = (before - weight.detach()) / state.config.learning_rate
    torch.testing.assert_close(moved, gradient + state.config.weight_decay * before, rtol=1e-2, atol=1e-4)


def test_each_step_has_the_schedules_learning_rate_and_only_kernels_decay(
    state: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    monkeypatch.setattr(engine, "train_step", lambda state, *_: rates.append(groups[0]["lr"]) or torch.zeros(()))
    groups = state.optimizer.param_groups
    for state.epoch in range(4):
        state.step = 0
        train_one_epoch(state, StopSignal())
    assert rates == [state.config.learning_rate_at(step / 12) for step in range(12)]
    assert [{parameter.ndim for parameter in group["params"]} for group in groups] == [{4}, {1}]
    assert [group["weight_decay"] for group in groups] == [0.02, 0]


def test_early_epochs_of_fast_see_small_images(
    tiny_network: None, drawn_pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of(Config("UNet", image_size=128, epochs=4, progressive=((0.25, 4), (0.5, 2))), drawn_pets)
    sizes = []
    state.model.register_forward_pre_hook(lambda _, images: sizes.append(images[0].shape[-1]))
    for state.epoch in range(4):
        state.step = 0
        train_one_epoch(state, StopSignal())
    assert sizes == [32] * 2 + [64] * 2 + [128] * 4


@pytest.mark.parametrize(("recipe", "optimizer"), [("lab2", torch.optim.Adam), ("lab3", torch.optim.SGD)])
def test_the_reports_train_without_decay_and_ema(
    tiny_network: None, drawn_pets: Path, recipe: str, optimizer: type
) -> None:
    state = state_of(replace(RECIPES[recipe]("UNet"), image_size=32), drawn_pets)
    assert (type(state.optimizer), state.optimizer.param_groups[0].get("momentum", 0.9)) == (optimizer, 0.9)
    assert all(group["weight_decay"] == 0 for group in state.optimizer.param_groups)
    assert state.ema_model is state.model


@pytest.mark.parametrize(("epoch", "fraction"), [(4, 1), (100, 5 / 30), (2000, 5 / 400)])
def test_ema_weights_move_towards_the_trained_ones(state: TrainingState, epoch: int, fraction: float) -> None:
    """By the steps since the last time, 5, over the horizon: a tenth of all steps, 400 at most."""
    state.epoch, state.ema_step = epoch, epoch * 3 - 5
    before = [value.clone() for value in state.ema_model.parameters()]
    for value in state.model.parameters():
        nn.init.normal_(value)
    update_ema(state)
    assert state.ema_step == epoch * 3
    for ours, old, trained in zip(state.ema_model.parameters(), before, state.model.parameters(), strict=True):
        torch.testing.assert_close(ours, old.lerp(trained, fraction).detach())


@pytest.mark.parametrize("batch_size", [2, 5, 18])
def test_ema_weights_have_batchnorm_statistics_of_their_own(state: TrainingState, batch_size: int) -> None:
    """Over all images, however they are batched."""
    state.precision = torch.float32  # as the features below
    train_one_epoch(state, StopSignal())
    state.config = replace(state.config, batch_size=batch_size)
    refresh_batchnorm(state, StopSignal())
    features = state.ema_model[0](state.normalise(images_and_trimaps(state.train.pixels)[0]))
    norm = state.ema_model[1]
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, features.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.1
    assert not torch.allclose(norm.running_mean, state.model[1].running_mean, rtol=1e-3)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, {1, 2}), (6, {6}), (100, {18, 2})])
def test_no_batch_is_larger_than_a_training_step(
    tiny_network: None, drawn_pets: Path, batch_size: int, sizes: set[int]
) -> None:
    """But BatchNorm statistics come from two images at least."""
    state = state_of(replace(Config("UNet"), image_size=64, batch_size=batch_size, score_train=True), drawn_pets)
    state.valid = state.train if batch_size == 6 else state.valid
    state.ema_model = copy.deepcopy(state.model)
    seen = set()
    state.ema_model.register_forward_pre_hook(lambda _, images: seen.add(len(images[0])))
    refresh_batchnorm(state, StopSignal())
    assert state.ema_model[1].num_batches_tracked > 0
    state.step, state.loss_sum = 1, torch.zeros(())
    predictor = Predictor.from_model(state.ema_model, state.config, CPU, state.precision)
    train.score_epoch(replace(state, seconds=1.0), predictor, StopSignal())
    assert seen == sizes


def test_the_network_is_compiled_for_each_image_size(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []
    monkeypatch.setattr(train, "compile_forward", lambda state: epochs.append(state.epoch + 1))
    flags = ("--recipe", "fast", "--image_size", 128, "--epochs", 6)
    run_train(*flags)
    assert not epochs
    run_train(*flags, "--compile", "--overwrite")
    assert epochs == [1, 2, 4]  # at 32x32, 64x64, 128x128


def test_every_image_is_decoded_once_for_all_runs(
    run_train: Train, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str] = Counter()
    decode = oxford_pet.decode_image
    monkeypatch.setattr(oxford_pet, "decode_image", lambda path: (decoded.update([path.stem]), decode(path))[1])
    run_train("--data_path", pets, "--epochs", 2)
    assert decoded == Counter([*read_split(pets, "train"), *read_split(pets, "valid")])
    run_train("--data_path", pets, "--epochs", 1, "--overwrite")
    assert decoded.total() == 20
