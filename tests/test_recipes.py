"""recipes.py: configs survive plain data, impossible values are named, schedules are those of the reports."""

import json
from dataclasses import replace

from plumbing.cli import UserError

import pytest
import torch

from augment import Augmentation, draw_epoch
from recipes import RECIPES, Config


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_plain_data(name: str) -> None:
    config = replace(RECIPES[name]("UNet"), limit=5, stop_at_dice=0.9)
    assert config.recipe == name
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))).progressive == config.progressive


def test_older_configs_can_be_read() -> None:
    assert Config.from_dict({"network": "UNet"}) == Config("UNet")
    config = RECIPES["lab2"]("UNet")
    old = config.to_dict()
    old["augmentation"]["whole_degrees"] = old["augmentation"].pop("integer_degrees")
    assert Config.from_dict(old) == config


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "network": ("Net", ["UNet"]),
        "image_size": (-5, 31, "32", 10_000_000, 32.0, None),
        "learning_rate": (0, float("nan"), {"U": 1}, "fast"),
        "mean": ((0, 0), 0, "abc"),
        "std": ((1.0, 0.0, 1.0),),
        "warmup": (1,),
        "epochs": (0, 1.5),
        "batch_size": (0, None),
        "seed": (-1,),
        "limit": (0, 1.5),
        "stop_at_dice": (1.5,),
        "progressive": ([(0.5, 0)], (0.5, 2), [(0.5, 2.0)], 3),
        "score_train": ("yes",),
        "augmentation": (None,),
        "horizontal_flip": (2,),
        "zoom": (0.5,),
        "integer_degrees": (2,),
    }.items(),
)
def test_an_impossible_value_is_named(field: str, values: tuple) -> None:
    is_augmentation = field in Augmentation.__annotations__
    for value in values:
        with pytest.raises(UserError) as caught:
            if is_augmentation:
                Config("UNet", "mine", augmentation=Augmentation(**{field: value}))
            else:
                Config(**{"network": "UNet", "recipe": "mine", field: value})
        assert str(caught.value).startswith(f"recipe 'mine': {field} cannot be {value!r}")


def test_a_batch_that_leaves_batchnorm_one_value_is_refused() -> None:
    for values in ({"image_size": 32}, {"image_size": 64, "progressive": ((0.5, 2),)}):
        with pytest.raises(UserError, match="leaves BatchNorm a single value"):
            Config("UNet", batch_size=1, **values)
    assert Config("UNet", batch_size=1, image_size=64).batch_size == 1


def test_the_exponential_schedule_is_the_one_of_the_reports_log() -> None:
    """Report lab2, R: epoch 78 at 0.004612; the learning rate is constant within an epoch."""
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


def test_lab2_rotates_by_integer_degrees_and_flips_both_ways() -> None:
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
