"""recipes.py, and the two reports by their own command lines."""

import csv
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import evaluate
import inference
import train
from augment import Augmentation, draw_epoch
from checkpoint import load_checkpoint, save_checkpoint, save_state_dict
from losses import LOSSES, bce_dice_loss
from models import NETWORKS, build_network
from cli import REPO, UserError
from recipes import RECIPES, Recipe

TINY = ["--image_size", "32", "--batch_size", "4"]


# ---------------------------------------------------------------------------------------------- fields and values


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_as_plain_data(name: str) -> None:
    assert Recipe.from_dict(RECIPES[name].to_dict()) == RECIPES[name]
    assert RECIPES[name].name == name


def test_a_field_that_an_older_checkpoint_lacks_has_its_default() -> None:
    old = Recipe().to_dict()
    for key in ("loss", "optimizer", "schedule", "epoch_line"):
        del old[key]
    del old["augmentation"]["whole_degrees"]
    assert Recipe.from_dict(old) == Recipe()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": "bse"}, "loss cannot be 'bse'; there are bce_dice, bce, mse"),
        ({"optimizer": "lion"}, "optimizer cannot be 'lion'; there are adamw, adam, sgd"),
        ({"schedule": "poly"}, "schedule cannot be 'poly'; there are cosine"),
        ({"networks": {"U": "UNet", "R": "Net"}}, "networks cannot be .*'Net'.*; there are UNet"),
        ({"networks": {"U": "UNet"}}, "networks cannot be"),
        ({"learning_rate": 0}, "learning_rate cannot be 0"),
        ({"learning_rate": float("nan")}, "learning_rate cannot be nan"),
        ({"learning_rate": {"U": 1e-3}}, "learning_rate cannot be {'U': 0.001}"),
        ({"learning_rate": "fast"}, "learning_rate cannot be 'fast'"),
        ({"mean": (0, 0)}, r"mean cannot be \(0, 0\)"),
        ({"std": (1.0, 0.0, 1.0)}, "std cannot be"),
        ({"warmup": 1}, "warmup cannot be 1"),
        ({"decay": 1.01}, "decay cannot be 1.01"),
        ({"average_steps": -1}, "average_steps cannot be -1"),
        ({"epochs": 1.5}, "epochs cannot be 1.5"),
        ({"batch_size": 0}, "batch_size cannot be 0"),
        ({"epoch_line": "Epoch {epoch}, {train_dice}"}, "epoch_line cannot be"),  # without score_train
        ({"score_line": "{dice}"}, "score_line cannot be"),
        ({"augmentation": Augmentation(horizontal_flip=2)}, "horizontal_flip cannot be 2"),
        ({"augmentation": Augmentation(zoom=0.5)}, "zoom cannot be 0.5"),
        ({"augmentation": None}, "augmentation is None"),
    ],
)
def test_an_impossible_value_names_itself(values: dict, said: str) -> None:
    with pytest.raises(UserError, match=f"recipe 'mine': {said}"):
        Recipe(name="mine", **values)


def test_an_unknown_field_names_itself() -> None:
    with pytest.raises(TypeError, match="lerning_rate"):
        Recipe(name="mine", lerning_rate=1e-3)
    for data in ({"name": "mine", "lerning_rate": 1e-3}, {"name": "mine", "augmentation": {"lerning_rate": 5}}):
        with pytest.raises(UserError, match="recipe 'mine': no field is called lerning_rate"):
            Recipe.from_dict(data)


# ---------------------------------------------------------------------------------------------- what a recipe does


def test_an_impossible_recipe_is_one_line_of_every_script(tmp_path: Path) -> None:
    shutil.copytree(REPO / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "src" / "recipes.py", "a") as file:
        file.write('RECIPES["mine"] = Recipe(name="mine", optimizer="lion")\n')
    command = [sys.executable, str(tmp_path / "src" / "train.py"), "--model", "R"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: recipe 'mine': optimizer cannot be 'lion'; there are adamw, adam, sgd\n"


def test_the_exponential_schedule_is_the_one_of_the_printed_log() -> None:
    """Report lab2, R: epoch 78 at 0.004612, and the learning rate stays within an epoch, whatever its steps."""
    recipe = dataclasses.replace(RECIPES["lab2"].for_letter("R"), epochs=80)
    for steps in (1, 7, 207):
        for epoch, rate in ((1, "0.010000"), (2, "0.009900"), (78, "0.004612"), (79, "0.004566"), (80, "0.004520")):
            for step in (0, steps - 1):
                progress = ((epoch - 1) * steps + step) / (80 * steps)
                assert f"{recipe.learning_rate_at(progress):.6f}" == rate
    assert RECIPES["lab2"].for_letter("U").learning_rate == 1e-3


def test_other_schedules() -> None:
    assert {RECIPES["lab3"].learning_rate_at(progress) for progress in (0, 0.01, 0.5, 1)} == {0.1}
    default = RECIPES["default"]
    assert default.learning_rate_at(0) == 0
    assert default.learning_rate_at(default.warmup) == default.learning_rate
    assert default.learning_rate_at(1) == pytest.approx(0)


def test_lab2_rotates_by_whole_degrees_from_minus_15_to_14_and_flips_both_ways() -> None:
    theta = draw_epoch(RECIPES["lab2"].augmentation, 6000, 10, seed=0, epoch=1).theta.double()
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
    for axis in (0, 1):
        assert (flips[:, axis] < 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert draw_epoch(RECIPES["lab3"].augmentation, 4, 2, 0, 1).theta.flatten(1).unique(dim=0).shape[0] == 1


def test_losses_are_the_means_over_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 6, 5, generator=generator) * 3
    truth = torch.rand(3, 1, 6, 5, generator=generator) < 0.4
    everything = torch.ones_like(truth)
    probs = logits.sigmoid()
    assert LOSSES["bce"](logits, truth, everything).item() == pytest.approx(
        nn.functional.binary_cross_entropy(probs, truth.float()).item(), rel=1e-5
    )
    assert LOSSES["mse"](logits, truth, everything).item() == pytest.approx(
        nn.functional.mse_loss(probs, truth.float()).item(), rel=1e-5
    )
    assert LOSSES["bce"](logits, truth, everything) == bce_dice_loss(logits, truth, everything, dice_weight=0)
    some = torch.rand(3, 1, 6, 5, generator=generator) < 0.5
    spoiled = torch.where(some, logits, torch.full_like(logits, 50.0))
    for loss in LOSSES.values():  # what has no weight counts nowhere
        assert loss(spoiled, truth, some).item() == pytest.approx(loss(logits, truth, some).item(), rel=1e-5)


def use_tiny(monkeypatch: pytest.MonkeyPatch, *recipes: str) -> None:
    """Both letters of some recipes are the tiny network, so that a test is about the recipe."""
    for name in recipes:
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], networks={"U": "Tiny", "R": "Tiny"}))


@pytest.mark.parametrize(
    ("recipe", "optimizer", "weights"),
    [("lab2", torch.optim.Adam, []), ("lab3", torch.optim.SGD, ["ResNet34_UNet.pth"])],
)
def test_a_report_is_trained_by_its_recipe_and_resumed(
    recipe: str,
    optimizer: type,
    weights: list[str],
    tiny_network: None,
    drawn_pets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_tiny(monkeypatch, recipe)
    runs: list[train.Run] = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda run, *rest: (runs.append(run), fit(run, *rest)))
    flags = ["--model", "R", "--recipe", recipe, "--data_path", str(drawn_pets), *TINY, "--save_path", str(tmp_path)]
    train.main([*flags, "--epochs", "2", "--train_images", "9"])
    run = runs[0]
    assert type(run.optimizer) is optimizer
    assert run.optimizer.param_groups[0].get("momentum", 0.9) == 0.9
    assert all(group["weight_decay"] == 0 for group in run.optimizer.param_groups)
    assert run.average is run.model  # the trained weights and their running statistics are the ones to use
    assert (len(run.train), len(run.valid)) == (9, 2)
    out = capsys.readouterr().out
    line = {
        "lab2": r"Epoch 2, Training Loss: \d+\.\d{4}, Dice Score: 0\.\d{4}, LR: 0\.009900\n",
        "lab3": r"Epoch \[2/2\], train dice score: 0\.\d{4}, valid dice score: 0\.\d{4}\n",
    }[recipe]
    assert re.search(line, out)
    assert f"next: python src/inference.py --model R --recipe {recipe} --save_path" in out
    assert [path.name for path in tmp_path.glob("*.pth")] == weights
    assert all(f"wrote {tmp_path / name} (the final weights alone)" in out for name in weights)
    with open(tmp_path / f"{recipe}-R" / f"{recipe}-R_history.csv", newline="") as file:
        assert all(("train_dice" in row) == (recipe == "lab3") for row in csv.DictReader(file))

    state = load_checkpoint(tmp_path / f"{recipe}-R" / f"{recipe}-R_epoch_final.pth")
    assert all(torch.equal(value, state["model"][name]) for name, value in run.model.state_dict().items())
    with pytest.raises(UserError, match=r"--train_images 8 \(was 9\)"):
        train.main([*flags, "--load_model_epoch", "last", "--train_images", "8"])
    train.main([*flags, "--load_model_epoch", "final", "--epochs", "3", "--learning_rate", "0.5"])
    assert runs[1].recipe.learning_rate == 0.5  # a typed one goes before the recipe's
    evaluate.main(["--model", "R", "--recipe", recipe, "--save_path", str(tmp_path)])
    said = {"lab2": "Dice Score: ", "lab3": "Dice score: "}[recipe]
    assert re.search(rf"^{said}[01]\.\d{{4}}$", capsys.readouterr().out, re.MULTILINE)


def test_resumed_without_an_average_equals_uninterrupted(
    tiny_network: None, drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny(monkeypatch, "lab3")
    flags = ["--model_name", "UNet", "--data_path", str(drawn_pets), *TINY, "--epochs", "3"]
    train.main([*flags, "--save_path", str(tmp_path / "whole")])
    step, done = train.train_step, []

    def train_step(*args: object) -> torch.Tensor:
        done.append(1)
        if len(done) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(train, "train_step", train_step)
    with pytest.raises(SystemExit):
        train.main([*flags, "--save_path", str(tmp_path / "stopped")])
    train.main([*flags, "--save_path", str(tmp_path / "stopped"), "--load_model_epoch", "last"])
    whole, stopped = (
        load_checkpoint(tmp_path / which / "lab3-U" / "lab3-U_last.pth") for which in ("whole", "stopped")
    )
    for part in (lambda state: state["model"], lambda state: state["training"]["model"]):
        assert all(torch.equal(value, part(stopped)[name]) for name, value in part(whole).items())


# ---------------------------------------------------------------------------------------------- the command lines


def script(name: str, *flags: object, cwd: Path = REPO) -> str:
    command = [sys.executable, str((REPO / "src" / name).relative_to(cwd)), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repo_like(drawn_pets: Path, tmp_path: Path) -> Path:
    """A folder that holds dataset/, as lab3's ``--data_path`` wants it."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "oxford-iiit-pet").symlink_to(drawn_pets, target_is_directory=True)
    return tmp_path


def test_lab2_by_its_own_commands(repo_like: Path) -> None:
    """From the repo's root, with the real network."""
    where = ["--save_path", repo_like / "saved_models"]
    flags = ["--model", "U", "--recipe", "lab2", *where]
    data = ["--data_path", repo_like / "dataset" / "oxford-iiit-pet", *TINY, "--learning_rate", "0.001"]
    out = script("train.py", *flags, *data, "--epochs", "1")
    assert re.search(r"^Epoch 1, Training Loss: \d+\.\d{4}, Dice Score: \d\.\d{4}, LR: 0\.001000$", out, re.MULTILINE)
    assert "lab2.UNet, 92,161 parameters; recipe lab2" in out
    out = script("inference.py", *flags, "--load_model_epoch", "final", "--output", repo_like / "out")
    path = repo_like / "saved_models" / "lab2-U" / "lab2-U_epoch_final.pth"
    for line in ("Using UNet model", f"Loading model from {path}", "Evaluating model", "Dice Score: "):
        assert re.search(f"^{line}", out, re.MULTILINE)
    assert len(list((repo_like / "out").glob("*_overlay.png"))) == 20


def test_lab3_by_its_own_commands(repo_like: Path) -> None:
    """From src/, with the real network: its weights alone, by the name of a file, are all that inference needs."""
    where = ["--data_path", repo_like, "--save_path", repo_like / "saved_models"]
    out = script("train.py", "--model_name", "ResNet34_UNet", *where, *TINY, "--epochs", "1", cwd=REPO / "src")
    assert re.search(r"^Epoch \[1/1\], train dice score: \d\.\d{4}, valid dice score: \d\.\d{4}$", out, re.MULTILINE)
    flags = ["--model", "ResNet34_UNet.pth", *where, "--image_size", "32", "--output", repo_like / "out"]
    out = script("inference.py", *flags, cwd=REPO / "src")
    assert "Using ResNet34_UNet model, recipe lab3" in out
    assert re.search(r"^Dice score: \d\.\d{4}$", out, re.MULTILINE)
    weights = torch.load(repo_like / "saved_models" / "ResNet34_UNet.pth", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


def test_names_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, recipe, name in (
        (["--model", "U"], None, "U"),
        (["--model", "U", "--recipe", "default"], "default", "U"),
        (["--model", "U", "--recipe", "lab2"], "lab2", "lab2-U"),
        (["--model_name", "ResNet34_UNet"], "lab3", "lab3-R"),
        (["--model_name", "UNet", "--recipe", "lab2"], "lab2", "lab2-U"),
        (["--model", "R", "--recipe", "lab3", "--name", "mine"], "lab3", "mine"),
    ):
        for parse in (train.parse_args, evaluate.parse_args, inference.parse_args):
            args = parse(flags)
            assert (args.recipe, args.name) == (recipe, name)
    for parse, flags, said in (
        (train.parse_args, ["--model", "U", "--model_name", "UNet"], "give one of them"),
        (train.parse_args, ["--model", "UNet.pth"], "'UNet.pth' is none of U"),
        (train.parse_args, ["--model", "U", "--recipe", "lab4"], "lab4"),
        (inference.parse_args, ["--model", "UNet.pth", "--load_model_epoch", "3"], "give one of them"),
    ):
        with pytest.raises(SystemExit):
            parse(flags)
        assert said in capsys.readouterr().err


def test_a_recipe_that_is_not_the_checkpoints_is_refused(tiny_network: None, drawn_pets: Path, tmp_path: Path) -> None:
    where = ["--model", "U", "--name", "mine", "--save_path", str(tmp_path)]
    train.main([*where, "--data_path", str(drawn_pets), *TINY, "--epochs", "1"])
    with pytest.raises(UserError, match="was trained by the recipe default, not by --recipe lab2"):
        evaluate.main([*where, "--recipe", "lab2"])


# ---------------------------------------------------------------------------------------------- files of weights


@pytest.mark.parametrize("network", ["UNet", "ResNet34_UNet", "lab2.UNet", "lab2.ResNet34_UNet", "lab3.ResNet34_UNet"])
def test_a_bare_state_dict_is_recognised(network: str, tmp_path: Path) -> None:
    model = build_network(network)
    save_state_dict(tmp_path / "x.pth", model.state_dict())
    state = load_checkpoint(tmp_path / "x.pth")
    assert (state["network"], state["epoch"]) == (network, None)
    assert state["recipe"]["name"] == (network.split(".")[0] if "." in network else "default")
    state["run"]["precision"] = "fp32"
    predictor = evaluate.load_predictor(state, torch.device("cpu"))
    images = torch.rand(1, 3, 64, 64) * 255
    expected = model.eval()(predictor.normalise(images)).detach()
    torch.testing.assert_close(predictor(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_weights_under_other_names_are_taken_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_network("lab2.ResNet34_UNet")
    renamed = {f"net.{index}": value for index, value in enumerate(model.state_dict().values())}
    save_state_dict(tmp_path / "x.pth", renamed)
    state = load_checkpoint(tmp_path / "x.pth")
    assert state["network"] == "lab2.ResNet34_UNet"
    assert all(torch.equal(value, state["model"][name]) for name, value in model.state_dict().items())
    assert "other names than lab2.ResNet34_UNet's" in capsys.readouterr().err


def test_a_state_dict_of_no_network_is_refused(tmp_path: Path) -> None:
    weights = NETWORKS["lab2.UNet"]().state_dict()
    save_state_dict(tmp_path / "x.pth", dict(list(weights.items())[:-1]))
    with pytest.raises(UserError, match=r"it holds 9 tensors.* none of UNet, .*lab3\.ResNet34_UNet"):
        load_checkpoint(tmp_path / "x.pth")


def test_a_pickled_model_is_refused_and_converted_by_the_line_that_is_said(
    drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(build_network("lab2.UNet"), "x.pth")
    flags = ["--model", "x.pth", "--data_path", str(drawn_pets), "--image_size", "32", "--limit", "3"]
    with pytest.raises(UserError, match="unpickling such a file can run any code") as caught:
        inference.main([*flags, "--output", "out"])
    line = str(caught.value).split("by: ")[1]
    assert len(line.splitlines()) == 1
    exec(line, {"torch": torch})
    inference.main([*flags, "--output", "out"])
    assert len(list(Path("out").glob("*_mask.png"))) == 3


def test_a_file_in_save_path_goes_before_one_here(
    drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_state_dict(tmp_path / "saved" / "x.pth", build_network("lab2.UNet").state_dict())
    save_checkpoint(tmp_path / "x.pth", {"network": "none"})
    flags = ["--data_path", str(drawn_pets), "--image_size", "32", "--save_path", "saved"]
    evaluate.main(["--model", "x.pth", *flags])
    assert f"Loading model from {Path('saved') / 'x.pth'} (bare state dict)" in capsys.readouterr().out
    evaluate.main(["--model", str(tmp_path / "saved" / "x.pth"), *flags])
    with pytest.raises(UserError, match=r"no checkpoint y\.pth"):
        evaluate.main(["--model", "y.pth", *flags])
