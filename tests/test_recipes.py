"""recipes.py: a config comes back as it was written, refuses what is impossible, and schedules as the reports did."""

import json
from dataclasses import fields, replace

from plumbing.cli import UserError

import pytest
import torch

from augment import Augmentation, draw_epoch
from recipes import AUGMENTATION_CHECKS, CHECKS, RECIPES, Config


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_comes_back_from_plain_data(name: str) -> None:
    config = replace(RECIPES[name]("UNet"), limit=5, stop_at_dice=0.9)
    assert config.recipe == name
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))).progressive == config.progressive


def test_a_field_that_an_older_checkpoint_lacks_has_its_default() -> None:
    assert Config.from_dict({"network": "UNet"}) == Config("UNet")
    old = Config("UNet").to_dict()
    del old["loss"], old["augmentation"]["integer_degrees"]
    assert Config.from_dict(old) == Config("UNet")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"network": "Net"}, "network cannot be 'Net'; there are UNet, ResNet34_UNet"),
        ({"network": ["UNet"]}, r"network cannot be \['UNet'\]"),
        ({"loss": "bse"}, "loss cannot be 'bse'; there are bce_dice, bce, mse"),
        ({"optimizer": "lion"}, "optimizer cannot be 'lion'; there are adamw, adam, sgd"),
        ({"schedule": "poly"}, "schedule cannot be 'poly'; there are cosine"),
        ({"boundary": "nosuch"}, "boundary cannot be 'nosuch'; there are pet, background, ignore"),
        ({"precision": "fp16"}, "precision cannot be 'fp16'"),
        *(({"image_size": size}, f"image_size cannot be {size!r}") for size in (-5, 31, "32", 10_000_000, 32.0, None)),
        *(({"learning_rate": rate}, "learning_rate cannot be ") for rate in (0, float("nan"), {"U": 1}, "fast", True)),
        ({"mean": (0, 0)}, r"mean cannot be \(0, 0\)"),
        ({"std": (1.0, 0.0, 1.0)}, "std cannot be"),
        ({"warmup": 1}, "warmup cannot be 1"),
        ({"decay": 1.01}, "decay cannot be 1.01"),
        ({"ema_steps": -1}, "ema_steps cannot be -1"),
        ({"epochs": 1.5}, "epochs cannot be 1.5"),
        ({"batch_size": 0}, "batch_size cannot be 0"),
        ({"seed": -1}, "seed cannot be -1"),
        ({"limit": 0}, "limit cannot be 0"),
        ({"stop_at_dice": 1.5}, "stop_at_dice cannot be 1.5"),
        ({"progressive": [(0.5, 3)]}, "progressive cannot be"),
        ({"score_train": "yes"}, "score_train cannot be 'yes'"),
        ({"augmentation": Augmentation(horizontal_flip=2)}, "horizontal_flip cannot be 2"),
        ({"augmentation": Augmentation(zoom=0.5)}, "zoom cannot be 0.5"),
        ({"augmentation": None}, "augmentation cannot be None"),
    ],
)
def test_an_impossible_value_names_itself(values: dict, said: str) -> None:
    with pytest.raises(UserError, match=f"^recipe 'mine': {said}") as caught:
        Config(**{"network": "UNet", "recipe": "mine"} | values)
    assert "\n" not in str(caught.value)


def test_every_field_is_checked() -> None:
    assert CHECKS.keys() == {field.name for field in fields(Config)}
    assert AUGMENTATION_CHECKS.keys() == {field.name for field in fields(Augmentation)}


def test_an_unknown_field_names_itself() -> None:
    for values in ({"lerning_rate": 1}, {"augmentation": {"lerning_rate": 5}}):
        with pytest.raises(UserError, match=r"^recipe 'mine': no field is called lerning_rate$"):
            Config.from_dict({"network": "UNet", "recipe": "mine"} | values)


def test_a_batch_that_leaves_batchnorm_one_value_is_refused() -> None:
    for values in ({"image_size": 32}, {"image_size": 64, "progressive": ((0.5, 2),)}):
        with pytest.raises(UserError, match="leaves BatchNorm a single value"):
            Config("UNet", batch_size=1, **values)
    assert Config("UNet", batch_size=1, image_size=64).batch_size == 1


# ---------------------------------------------------------------------------------------------- what a recipe does


def test_a_network_has_values_of_its_own_in_our_recipes_only() -> None:
    for name, recipe in RECIPES.items():
        warmups = {network: recipe(network).warmup for network in ("UNetPlusPlus", "SegFormer", "SegFormerB1")}
        ours = recipe("ResNet34_UNet_small").warmup
        assert warmups["UNetPlusPlus"] == ours
        assert warmups["SegFormer"] == warmups["SegFormerB1"] == (ours if name in ("lab2", "lab3") else 0.15)


def test_the_exponential_schedule_is_the_one_of_the_reports_log() -> None:
    """Report lab2, R: epoch 78 at 0.004612, and the learning rate stays within an epoch, whatever its steps."""
    config = replace(RECIPES["lab2"]("ResNet34_UNet"), epochs=80)
    for steps in (1, 7, 207):
        for epoch, rate in ((1, "0.010000"), (2, "0.009900"), (78, "0.004612"), (79, "0.004566"), (80, "0.004520")):
            for step in (0, steps - 1):
                progress = ((epoch - 1) * steps + step) / (80 * steps)
                assert f"{config.learning_rate_at(progress):.6f}" == rate
    assert RECIPES["lab2"]("UNet").learning_rate == 1e-3


def test_other_schedules() -> None:
    assert {RECIPES["lab3"]("UNet").learning_rate_at(progress) for progress in (0, 0.01, 0.5, 1)} == {0.1}
    config = Config("UNet", learning_rate=1.0, warmup=0.2)
    rates = [config.learning_rate_at(progress) for progress in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_progressive_resizing_goes_down_to_32_pixels() -> None:
    config = Config("UNet", epochs=10, image_size=96, progressive=((0.25, 4), (0.6, 2)))
    assert [config.image_size_at(epoch) for epoch in range(1, 11)] == [32] * 2 + [48] * 4 + [96] * 4


def test_lab2_rotates_by_integer_degrees_from_minus_15_to_14_and_flips_both_ways() -> None:
    theta = draw_epoch(RECIPES["lab2"]("UNet").augmentation, 6000, 10, seed=0, epoch=1).theta.double()
    linear = theta[:, :, :2]
    assert not theta[:, :, 2].any()
    # S^-1 R^-1, with S of +-1: the rows' signs are the flips, what is left is the rotation.
    flips = torch.stack([torch.where(linear[:, axis, axis] < 0, -1, 1) for axis in (0, 1)], 1)
    rotation = linear * flips[:, :, None]
    degrees = torch.rad2deg(torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]))
    assert (degrees - degrees.round()).abs().max() < 1e-4
    values, counts = degrees.round().int().unique(return_counts=True)
    assert values.tolist() == list(range(-15, 15))
    assert counts.min() > 100  # 200 each
    assert (flips < 0).double().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    lab3 = draw_epoch(RECIPES["lab3"]("UNet").augmentation, 4, 2, 0, 1).theta
    assert torch.equal(lab3, torch.eye(2, 3).expand(4, 2, 3))
