"""engine.py and train.Trainer: one step, one epoch, EMA weights and BatchNorm statistics."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from plumbing.stop import StopSignal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from augment import draw_epoch
from engine import EMA, Progress
from models import NETWORKS
from recipes import RECIPES, Config
from split import images_and_trimaps, load_split
from train import Trainer
from trimap import target_and_weight


def make_trainer(config: Config, data: Path) -> Trainer:
    splits = (load_split(data, mode, config.image_size) for mode in ("train", "valid"))
    return Trainer(config, torch.device("cpu"), *splits, torch.float32)


def train_epochs(trainer: Trainer, count: int) -> None:
    for trainer.progress.epoch in range(count):
        trainer.progress.step = 0
        trainer.train_epoch(StopSignal())


@pytest.fixture
def trainer(tiny_network: None, drawn_pets: Path) -> Trainer:
    """18 images of 32x32 in batches of 6: 3 steps an epoch, without augmentation."""
    return make_trainer(Config("UNet", image_size=32, batch_size=6, epochs=4), drawn_pets)


class HostSyncs(TorchDispatchMode):
    """Counts where the host reads a number from the device: .item(), float(), bool()."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> object:
        aten = torch.ops.aten
        syncing = (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default, aten.equal.default)
        self.count += function in syncing
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.usefixtures("tiny_network")
def test_the_host_syncs_once_an_epoch_and_never_in_a_step(drawn_pets: Path, recipe: str) -> None:
    trainer = make_trainer(replace(RECIPES[recipe]("UNet"), image_size=32, batch_size=6), drawn_pets)
    with HostSyncs() as syncs:
        trainer.train_epoch(StopSignal())
    assert syncs.count == 1
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
    config = Config("Several", image_size=32, batch_size=6, optimizer="sgd")
    trainer = make_trainer(config, drawn_pets)
    pixels, plan = trainer.train.pixels[:6], draw_epoch(config.augmentation, 6, 6, seed=0, epoch=1)
    images, trimaps = images_and_trimaps(pixels)
    outputs = trainer.model(trainer.normalise(images))
    expected = sum(trainer.criterion(logits, *target_and_weight(trimaps, "pet")) for logits in outputs) / 3
    weight = trainer.model.heads[1].weight
    before, gradient = weight.detach().clone(), torch.autograd.grad(expected, weight)[0]
    loss = trainer.train_step(pixels, plan.theta, plan.colour, 32)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=0)
    moved = (before - weight.detach()) / config.learning_rate
    torch.testing.assert_close(moved, gradient + config.weight_decay * before, rtol=1e-2, atol=1e-4)


def test_each_step_has_the_schedules_learning_rate_and_only_kernels_decay(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, groups = [], trainer.optimizer.param_groups
    monkeypatch.setattr(trainer, "train_step", lambda *_: rates.append(groups[0]["lr"]) or torch.zeros(()))
    train_epochs(trainer, 4)
    assert rates == [trainer.config.learning_rate_at(step / 12) for step in range(12)]
    assert [{parameter.ndim for parameter in group["params"]} for group in groups] == [{4}, {1}]
    assert [group["weight_decay"] for group in groups] == [0.02, 0]


@pytest.mark.usefixtures("tiny_network")
def test_early_epochs_of_fast_see_small_images(drawn_pets: Path) -> None:
    config = Config("UNet", image_size=128, epochs=4, progressive=((0.25, 4), (0.5, 2)))
    trainer, sizes = make_trainer(config, drawn_pets), []
    trainer.model.register_forward_pre_hook(lambda _, images: sizes.append(images[0].shape[-1]))
    train_epochs(trainer, 4)
    assert sizes == [32] * 2 + [64] * 2 + [128] * 4


@pytest.mark.parametrize(("recipe", "optimizer"), [("lab2", torch.optim.Adam), ("lab3", torch.optim.SGD)])
@pytest.mark.usefixtures("tiny_network")
def test_the_reports_train_without_decay_and_ema(drawn_pets: Path, recipe: str, optimizer: type) -> None:
    trainer = make_trainer(replace(RECIPES[recipe]("UNet"), image_size=32), drawn_pets)
    assert (type(trainer.optimizer), trainer.optimizer.param_groups[0].get("momentum", 0.9)) == (optimizer, 0.9)
    assert all(group["weight_decay"] == 0 for group in trainer.optimizer.param_groups)
    assert trainer.ema.model is trainer.model


@pytest.mark.parametrize(
    ("step", "global_step", "fraction"),
    [(8, 20, 1), (8, 800, 8 / 80), (8, 9000, 8 / 400), (19, 9000, 3 / 400), (7, 9000, 0)],
)
def test_ema_weights_move_towards_the_trained_ones(step: int, global_step: int, fraction: float) -> None:
    """After each 8th step and an epoch's last, here of 19: by the steps since, over the horizon, a tenth of all."""
    trained = nn.Linear(3, 3)
    ema = EMA(trained, 400)
    before = [value.clone() for value in ema.model.parameters()]
    nn.init.normal_(trained.weight)
    ema.update(step, 19, global_step)
    for ours, old, new in zip(ema.model.parameters(), before, trained.parameters(), strict=True):
        torch.testing.assert_close(ours, old.lerp(new, fraction).detach())


@pytest.mark.parametrize("batch_size", [2, 5, 18])
def test_ema_weights_have_batchnorm_statistics_of_their_own(trainer: Trainer, batch_size: int) -> None:
    """Over all images, however they are batched."""
    train_epochs(trainer, 1)
    images = trainer.normalise(images_and_trimaps(trainer.train.pixels)[0])
    trainer.ema.refresh_batchnorm(images.split(batch_size))
    conv, norm = trainer.ema.model[:2]
    features = conv(images)
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, features.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.1
    assert not torch.allclose(norm.running_mean, trainer.model[1].running_mean, rtol=1e-3)


def test_a_stop_leaves_the_momentum_of_batchnorm_as_it_was(trainer: Trainer) -> None:
    def stopped() -> Iterator[Tensor]:
        yield torch.ones(2, 3, 32, 32)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.ema.refresh_batchnorm(stopped())
    norm = trainer.ema.model[1]
    assert (norm.momentum, len(norm._forward_hooks)) == (0.1, 0)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, {1, 2}), (6, {6, 2}), (100, {18, 2})])
@pytest.mark.usefixtures("tiny_network")
def test_no_batch_is_larger_than_a_training_step(drawn_pets: Path, batch_size: int, sizes: set[int]) -> None:
    """But BatchNorm statistics come from two images at least."""
    trainer = make_trainer(Config("UNet", image_size=64, batch_size=batch_size, score_train=True), drawn_pets)
    seen = set()
    trainer.ema.model.register_forward_pre_hook(lambda _, images: seen.add(len(images[0])))
    train_epochs(trainer, 1)
    assert trainer.ema.model[1].num_batches_tracked > 0
    trainer.score_epoch(StopSignal())
    assert seen == sizes


def test_a_nan_score_is_never_the_best() -> None:
    progress = Progress(torch.zeros(()), history=[{"valid_dice": value} for value in (0.5, float("nan"))])
    assert progress.best_dice == 0.5
    progress.history.pop(0)
    assert progress.best_dice == -1


def test_of_equal_dice_the_lower_loss_is_the_best() -> None:
    rows = [{"valid_dice": dice, "valid_loss": loss} for dice, loss in ((0.0, 2.0), (0.0, 1.0), (0.0, 1.0), (0.1, 3.0))]
    rows += [{"valid_dice": float("nan"), "valid_loss": 0.0}, {"valid_dice": 0.0, "valid_loss": 0.0}]
    progress, found = Progress(torch.zeros(())), []
    for row in rows:
        found.append(progress.is_best(row))
        progress.history.append(row)
    assert found == [True, True, False, True, False, False]
