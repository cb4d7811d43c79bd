"""train.py: a run that cannot be lost. Most tests train a tiny network, since what they are about is the run."""

import csv
import errno
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import REPO, UserError

import cv2
import numpy as np
import pytest
import torch
from conftest import Train, terminate
from torch import Tensor, nn

import engine
import evaluate
import inference
import train
from checkpoint import HISTORY_COLUMNS, load_checkpoint, save_checkpoint
from models import NETWORKS

AtStep = Callable[[int, Callable[[], None]], None]


def read_history(folder: Path) -> list[dict[str, str]]:
    with open(folder / "R" / "R_history.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_equal(a: object, b: object) -> None:
    """Equal to the bit, but for times, and the config, whose epochs a resumed run may raise."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "images_per_second", "config"}:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def assert_same_run(a: Path, b: Path, name: str = "R") -> None:
    """The same weights, EMA weights, optimizer, history and best checkpoint."""
    for which in ("last", "best", "epoch_final"):
        assert_equal(*(load_checkpoint(folder / name / f"{name}_{which}.pth") for folder in (a, b)))


# ---------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_what_the_readme_says(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 51)
    folder = tmp_path / "R"
    assert {path.name for path in folder.iterdir()} == {
        "R_config.json", "R_epoch_0.pth", "R_epoch_50.pth", "R_epoch_final.pth", "R_best.pth", "R_last.pth",
        "R_losses.npy", "R_dice_scores.npy", "R_history.csv", "R_curves.png", "R_report.html",
    }  # fmt: skip
    history = read_history(tmp_path)
    assert tuple(history[0]) == HISTORY_COLUMNS
    assert [int(row["epoch"]) for row in history] == list(range(1, 52))
    losses, dice = np.load(folder / "R_losses.npy"), np.load(folder / "R_dice_scores.npy")
    assert [float(row["train_loss"]) for row in history] == losses.tolist()
    assert [float(row["valid_dice"]) for row in history] == dice.tolist()
    assert losses[-5:].mean() < losses[:5].mean()  # it learns
    for row in history:
        assert float(row["images_per_second"]) == pytest.approx(18 / float(row["seconds"]))

    page = (folder / "R_report.html").read_text()
    assert f"Finished after 51 of 51 epochs: best validation Dice {dice.max():.4f}." in page
    assert 'id="live"' not in page
    assert [load_checkpoint(folder / f"R_epoch_{n}.pth")["epoch"] for n in (0, 50, "final")] == [0, 50, 51]
    best = load_checkpoint(folder / "R_best.pth")
    assert (best["epoch"], best["scores"]["valid_dice"]) == (dice.argmax() + 1, dice.max())
    written = json.loads((folder / "R_config.json").read_text())
    assert (best["config"].image_size, best["config"].batch_size, best["config"].epochs) == (32, 4, 51)
    assert written["config"] == json.loads(json.dumps(best["config"].to_dict()))
    assert all(written[key] == best[key] for key in ("versions", "commit", "command", "data_path"))


def test_the_same_seed_gives_the_same_run(run_train: Train, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_train("--epochs", 2, "--seed", seed, "--save_path", tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "c")


def test_curves_of_both_networks_side_by_side(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 1, "--recipe", "lab2")
    assert not list(tmp_path.glob("*.png"))
    run_train("--epochs", 1, "--recipe", "lab2", "--model", "U")
    assert [path.name for path in tmp_path.glob("*.png")] == ["lab2-UR_curves.png"]


def test_what_will_be_done_is_printed_first_and_what_to_type_next_last(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(train, "SLOW_HOURS", 0)
    threads = torch.get_num_threads()
    run_train("--recipe", "fast", "--image_size", 128, "--epochs", 5, "--threads", 3, "--save_path", tmp_path / "a b")
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ResNet34_UNet, 157 parameters; recipe fast: 5 epochs, batch 4, learning rate 0.002, seed 0"
    assert lines[1].startswith("on cpu, 3 threads")
    assert lines[1].endswith("; 128x128 pixels, boundary counted as pet")
    assert lines[2].startswith(f"writes to {tmp_path / 'a b' / 'fast-R'}, about ")
    assert lines[4].endswith(": 32x32 from epoch 1, 64x64 from epoch 2, 128x128 from epoch 4")
    assert lines[5] == "    18 training images, 2 for validation, on the device"
    assert lines[6].startswith("expected length 00:")
    name = ["--model", "R", "--recipe", "fast", "--save_path", str(tmp_path / "a b")]
    small = ["--recipe", "cpu", "--data_path", "dataset/oxford-iiit-pet-128"]
    assert shlex.split(lines[8])[1:] == ["src/train.py", "--model", "R", *small]  # where it would take hours on a CPU
    assert shlex.split(lines[-1].split("; next: ")[1])[1:] == ["src/inference.py", *name]


def test_the_page_is_there_from_the_first_epoch_on_and_not_written_at_each(
    run_train: Train, tmp_path: Path, at_step: AtStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, calls, write_page = [], [], train.write_page
    monkeypatch.setattr(train, "write_page", lambda run: (calls.append(run.state.epoch), write_page(run)))
    at_step(6, lambda: seen.append((tmp_path / "R" / "R_report.html").read_text()))
    run_train("--epochs", 4)
    assert "After 1 of 4 epochs" in seen[0]
    assert 'id="live"' in seen[0]
    assert calls == [1, 4]  # fewer than PAGE_SECONDS between the epochs
    monkeypatch.setattr(train, "PAGE_SECONDS", 0)
    run_train("--epochs", 3, "--overwrite")
    assert calls[2:] == [1, 2, 3, 3]


# ---------------------------------------------------------------------------------------------- seeds


def test_seeds_are_runs_of_their_own_and_the_list_is_resumed(
    run_train: Train, tmp_path: Path, at_step: AtStep, capsys: pytest.CaptureFixture
) -> None:
    flags = ("--epochs", 2, "--seeds", 3, 1, 2, "--save_every", 0)
    at_step(10 + 7, terminate)  # in the second epoch of the second run
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        run_train(*flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R-seed1", "R-seed3"]
    finished = (tmp_path / "R-seed3" / "R-seed3_last.pth").stat().st_mtime_ns
    capsys.readouterr()
    run_train(*flags)
    assert "R-seed3 is finished\n" in capsys.readouterr().out
    assert (tmp_path / "R-seed3" / "R-seed3_last.pth").stat().st_mtime_ns == finished
    for seed in (1, 2, 3):
        name = f"R-seed{seed}"
        run_train("--epochs", 2, "--seed", seed, "--name", name, "--save_path", tmp_path / "alone")
        assert_same_run(tmp_path, tmp_path / "alone", name)  # also the one that was stopped
    with pytest.raises(SystemExit, match="2"):
        run_train(*flags, "--resume")
    with pytest.raises(UserError, match="R-seed3 is finished, with --epochs 2 and not 4"):
        run_train("--epochs", 4, "--seeds", 3)


# ---------------------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize(
    ("recipe", "epochs", "steps", "again"),
    [
        ("default", 3, 2, ["--resume"]),  # within the first epoch of 5 steps
        ("default", 3, 5, ["--load_model_epoch", "last"]),  # at its end
        ("default", 20, 93, ["--resume", "--epochs", 20]),  # where the EMA's horizon is longer than its interval
        ("lab3", 3, 7, ["--resume"]),  # without EMA weights
    ],
)
def test_resumed_equals_uninterrupted(
    run_train: Train, at_step: AtStep, tmp_path: Path, recipe: str, epochs: int, steps: int, again: list
) -> None:
    flags = ["--recipe", recipe, "--name", "R", "--epochs", epochs]
    run_train(*flags, "--save_path", tmp_path / "whole")
    at_step(steps, terminate)
    with pytest.raises(SystemExit) as caught:
        run_train(*flags, "--save_path", tmp_path / "stopped")
    assert caught.value.code == 128 + signal.SIGTERM
    state = load_checkpoint(tmp_path / "stopped" / "R" / "R_last.pth")
    assert (state["epoch"], state["training"]["step"]) == ((steps - 1) // 5, (steps - 1) % 5 + 1)
    run_train("--recipe", recipe, "--name", "R", *again, "--save_path", tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


class Killed(BaseException):
    """The process has gone."""


def kill() -> None:
    raise Killed


@pytest.mark.parametrize(("save_every", "saved"), [(0, 2), (3600, 0)])
def test_a_killed_run_resumes_from_its_last_save(
    run_train: Train, at_step: AtStep, tmp_path: Path, save_every: int, saved: int
) -> None:
    run_train("--epochs", 4, "--save_path", tmp_path / "whole")
    at_step(13, kill)  # in the third epoch
    flags = ["--save_path", tmp_path / "killed", "--save_every", save_every]
    with pytest.raises(Killed):
        run_train("--epochs", 4, *flags)
    assert load_checkpoint(tmp_path / "killed" / "R" / "R_last.pth")["epoch"] == saved
    assert (tmp_path / "killed" / "R" / "R_best.pth").exists() == (saved > 0)
    assert len(read_history(tmp_path / "killed")) == 2  # is written each epoch
    run_train("--resume", *flags)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(("save_every", "lasts"), [(0, 4), (3600, 2)])
def test_best_and_last_are_saved_together_and_best_first(
    run_train: Train, monkeypatch: pytest.MonkeyPatch, save_every: int, lasts: int
) -> None:
    """What ``last`` counts as done has to be on the disk before it; and ``last`` is there before the first step."""
    files: list[str] = []

    def record(path: Path, state: dict) -> None:
        files.append(path.stem.removeprefix("R_"))
        save_checkpoint(path, state)

    monkeypatch.setattr(train, "save_checkpoint", record)
    run_train("--epochs", 3, "--save_every", save_every)
    assert (files[:2], files[-1]) == (["epoch_0", "last"], "last")
    assert files.count("last") == lasts  # before the first step, after each epoch, at the end
    assert {after for file, after in itertools.pairwise(files) if file == "best"} == {"last"}


def test_a_real_signal_to_a_real_process(drawn_pets: Path, tmp_path: Path) -> None:
    saved = tmp_path / "my models"
    command = [
        sys.executable, REPO / "src" / "train.py", "--model", "lab2.UNet", "--data_path", drawn_pets, "--image_size",
        "32", "--epochs", "100000", "--batch_size", "4", "--save_path", saved,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert any("Epoch 1/" in line for line in process.stdout)  # waits for it
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in err
    command = shlex.split(out.split("go on with: ")[1])
    assert command[2:] == ["--model", "lab2.UNet", "--save_path", str(saved), "--resume"]
    assert load_checkpoint(saved / "lab2.UNet" / "lab2.UNet_last.pth")["epoch"] >= 1
    assert not list(saved.glob("*/.*"))  # no temporary files


@pytest.mark.parametrize("recipe", ["lab2", "lab3"])
def test_a_finished_run_is_extended_where_the_schedule_allows_it(run_train: Train, tmp_path: Path, recipe: str) -> None:
    flags = ["--recipe", recipe, "--name", "R"]
    run_train(*flags, "--epochs", 4, "--save_path", tmp_path / "long")
    run_train(*flags, "--epochs", 2, "--save_path", tmp_path / "extended")
    run_train(*flags, "--epochs", 4, "--save_path", tmp_path / "extended", "--resume")
    assert_same_run(tmp_path / "long", tmp_path / "extended")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"^2 epochs of 2 done; to go on: --load_model_epoch final --epochs MORE$"),
        (["--epochs", 4], r"the cosine schedule was laid out for 2 epochs, .*--load_model_epoch best --epochs MORE$"),
        (["--epochs", 4, "--seed", 5], r"could not with --epochs 4 \(was 2\), --seed 5 \(was 0\); leave that out"),
        (["--train_images", 9], r"--train_images 9 \(was None\)"),
        (["--model", "U", "--name", "R"], "holds the network ResNet34_UNet, which --model UNet does not fit"),
        (["--recipe", "lab3", "--name", "R"], "holds the network ResNet34_UNet"),
    ],
)
def test_resume_refuses_what_would_not_be_the_same_run(run_train: Train, flags: list, message: str) -> None:
    run_train("--epochs", 2)
    with pytest.raises(UserError, match=message):
        run_train("--resume", *flags)


def test_resume_takes_the_runs_own_data_and_no_other(run_train: Train, pets: Path, tmp_path: Path) -> None:
    run_train("--recipe", "lab3", "--epochs", 1, "--data_path", pets)
    again = ["--model", "R", "--recipe", "lab3", "--save_path", str(tmp_path), "--resume", "--epochs", "2"]
    listed = pets / "annotations" / "trainval.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match="other data than the run trained on, here 17 training and 2"):
        train.main(again)
    listed.write_text("\n".join(lines))
    train.main(again)
    pets.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is no longer there; say where it is with --data_path"):
        train.main([*again[:-1], "3"])


# ---------------------------------------------------------------------------------------------- start from weights


@pytest.mark.parametrize(
    ("flags", "which", "epoch"),
    [
        (["--load_model_epoch", "final"], "epoch_final", 2),  # continues after that epoch
        (["--load_model_epoch", "0002"], "epoch_2", 2),
        (["--init_from", "best", "--overwrite"], "best", 0),  # a new run
        (["--init_from", "R/R_best.pth", "--name", "new"], "best", 0),
        (["--init_from", "weights.pt", "--name", "new"], "best", 0),
    ],
)
def test_a_run_starts_from_weights_alone(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], which: str, epoch: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "KEEP_EVERY", 2)
    run_train("--epochs", 2, "--seed", 7)
    weights = load_checkpoint(tmp_path / "R" / f"R_{which}.pth")["model"]
    torch.save(dict(weights), "weights.pt")
    for name in NETWORKS.keys() - {"ResNet34_UNet"}:  # a file of weights alone tells the network by its tensors
        monkeypatch.setitem(NETWORKS, name, nn.Identity)
    runs: list[train.Run] = []
    monkeypatch.setattr(train, "fit", lambda run, *_: runs.append(run))
    run_train("--epochs", 4, *flags)
    (run,) = runs
    assert_equal(run.state.model.state_dict(), weights)
    assert_equal(run.state.ema_model.state_dict(), weights)
    assert not run.state.optimizer.state_dict()["state"]
    assert (run.state.epoch, len(run.history), run.config.epochs) == (epoch, epoch, 4)
    assert run.config.seed == (7 if epoch else 0)


def test_a_continued_run_is_resumable_at_once_and_keeps_a_better_best(
    run_train: Train, tmp_path: Path, at_step: AtStep
) -> None:
    run_train("--epochs", 2)
    path = tmp_path / "R" / "R_best.pth"
    state = torch.load(path, weights_only=True)
    state["scores"]["valid_dice"] = 0.999
    save_checkpoint(path, state)
    at_step(1, kill)
    with pytest.raises(Killed):
        run_train("--epochs", 3, "--load_model_epoch", "final")
    run_train("--resume")
    assert load_checkpoint(path)["scores"]["valid_dice"] == 0.999
    assert [int(row["epoch"]) for row in read_history(tmp_path)] == [1, 2, 3]


def test_the_best_of_other_data_does_not_hold_up_a_continued_run(run_train: Train, pets: Path, tmp_path: Path) -> None:
    run_train("--epochs", 1)
    path = tmp_path / "R" / "R_best.pth"
    state = torch.load(path, weights_only=True)
    state["scores"]["valid_dice"] = 0.999
    save_checkpoint(path, state)
    run_train("--epochs", 2, "--load_model_epoch", "final", "--data_path", pets)
    assert load_checkpoint(path)["epoch"] == 2


def test_a_resumed_run_keeps_its_dtype_on_another_machine(
    run_train: Train, at_step: AtStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    at_step(3, terminate)
    with pytest.raises(SystemExit):
        run_train("--epochs", 1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    capsys.readouterr()
    run_train("--epochs", 1, "--resume")
    printed = capsys.readouterr().out
    assert ", bfloat16; 32x32 pixels" in printed
    assert "note: the run began in bfloat16" in printed


def test_a_run_that_is_there_is_not_lost_by_accident(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 1)
    before = (tmp_path / "R" / "R_best.pth").read_bytes()
    for flags in ([], ["--init_from", "best"]):
        with pytest.raises(UserError, match=r"holds a run already.*--resume.*--overwrite.*--name NAME"):
            run_train("--epochs", 2, *flags)
    assert (tmp_path / "R" / "R_best.pth").read_bytes() == before
    run_train("--epochs", 1, "--name", "other")  # beside it is fine
    (tmp_path / "other" / "other_last.pth").unlink()  # of a run that was killed before it wrote this one
    with pytest.raises(UserError, match=r"holds a run already\. Replace it: --overwrite"):
        run_train("--epochs", 1, "--name", "other")
    for flags in (["--overwrite"], ["--load_model_epoch", "0"]):
        run_train("--epochs", 2, *flags)
        assert len(read_history(tmp_path)) == 2


# ---------------------------------------------------------------------------------------------- what can go wrong


def test_a_loss_that_is_not_finite_is_named_and_saves_nothing(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said with the names of the batch that it came from first, although the host reads the loss only later."""
    step, calls = engine.train_step, []

    def train_step(*args: object) -> Tensor:
        calls.append(1)
        return step(*args) * (float("nan") if len(calls) >= 7 else 1)  # the second of the second epoch's five

    monkeypatch.setattr(engine, "train_step", train_step)
    with pytest.raises(UserError, match="not finite at epoch 2, step 2 of 5") as caught:
        run_train("--epochs", 3, "--save_every", 0)
    state = load_checkpoint(tmp_path / "R" / "R_last.pth")
    assert state["epoch"] == 1
    images = train.load_split(state["data_path"], "train", 32).names
    order = engine.draw_epoch(state["config"].augmentation_at(2), 18, 4, seed=0, epoch=2).order
    assert ", ".join(sorted(images[index] for index in order[4:8])) in str(caught.value)


def test_weights_that_are_not_finite_are_not_saved(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that diverges in its last step, the loss was finite throughout."""
    step, calls = engine.train_step, []

    def train_step(state: engine.TrainingState, *args: object) -> Tensor:
        calls.append(1)
        loss = step(state, *args)
        if len(calls) == 10:
            next(state.model.parameters()).data[0] = float("inf")
        return loss

    monkeypatch.setattr(engine, "train_step", train_step)
    with pytest.raises(UserError, match="weights were not finite in epoch 2"):
        run_train("--epochs", 2, "--save_every", 0)
    for which in ("last", "best"):
        assert load_checkpoint(tmp_path / "R" / f"R_{which}.pth")["epoch"] == 1


@pytest.mark.parametrize("where", ["refresh_batchnorm", "score_epoch"])
def test_a_signal_after_the_steps_leaves_the_epoch_to_the_resumed_run(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run_train("--epochs", 2, "--save_path", tmp_path / "whole")
    function = getattr(train, where)

    def stopped_in(*args: object) -> object:
        monkeypatch.setattr(train, where, function)
        terminate()
        return function(*args)

    monkeypatch.setattr(train, where, stopped_in)
    with pytest.raises(SystemExit):
        run_train("--epochs", 2, "--save_path", tmp_path / "stopped")
    state = load_checkpoint(tmp_path / "stopped" / "R" / "R_last.pth")
    assert (state["epoch"], state["training"]["step"]) == (0, 5)
    run_train("--resume", "--save_path", tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ((), None),
        (("model",), {}),
        (("model", "0.weight"), torch.zeros(4, 3, 3, 2)),
        (("model", "0.bias"), torch.full((4,), float("nan"))),
        (("optimizer",), {}),
        (("optimizer", "state", 0), {}),
        (("optimizer", "state", 0, "exp_avg"), torch.tensor(0.0)),
        (("optimizer", "state", 0, "step"), torch.zeros(4, 3, 3, 3)),
        (("ema_step",), -(10**400)),
        (("best_dice",), 10**400),
        (("best_dice",), float("nan")),
        (("optimizer", "state", 0), {"step": torch.tensor(2.0), "exp_avg": torch.zeros(9)}),
        (("optimizer", "state", 0), {"step": torch.tensor(2.0), "exp_avg": torch.zeros(4, 3, 3, 3)}),
        (("optimizer", "state"), {3: {name: torch.zeros(()) for name in ("step", "exp_avg", "exp_avg_sq")}}),
        (("ema_step",), 6),
        (("step",), 6),
        (("step",), "2"),
        (("loss_sum",), torch.zeros(3)),
        *((("seconds",), value) for value in (None, -1.0, float("nan"), float("inf"), 1)),
        *((("best_dice",), value) for value in ("x", 1)),
        (("fingerprints",), None),
    ],
)
def test_a_damaged_training_state_is_one_line(run_train: Train, tmp_path: Path, keys: tuple, value: object) -> None:
    run_train("--epochs", 1, "--recipe", "lab2", "--name", "R")
    state = torch.load(tmp_path / "R" / "R_last.pth")
    place = state["training"]
    for key in keys[:-1]:
        place = place[key]
    if keys:
        place[keys[-1]] = value
    else:
        del state["training"]
    torch.save(state, tmp_path / "R" / "R_last.pth")
    before = {path.name: path.read_bytes() for path in (tmp_path / "R").iterdir()}
    with pytest.raises(UserError) as caught:
        run_train("--recipe", "lab2", "--name", "R", "--resume", "--epochs", 2)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "R").iterdir()} == before


def test_the_optimizers_settings_are_those_of_the_config(run_train: Train, tmp_path: Path) -> None:
    for folder, groups in (("a", None), ("b", [{"params": [0, 2]}, {"params": [1, 3], "weight_decay": 9.0}])):
        run_train("--epochs", 1, "--recipe", "lab2", "--name", "R", "--save_path", tmp_path / folder)
        path = tmp_path / folder / "R" / "R_last.pth"
        state = torch.load(path)
        if groups:
            state["training"]["optimizer"]["param_groups"] = groups
        torch.save(state, path)
        run_train("--recipe", "lab2", "--name", "R", "--resume", "--epochs", 2, "--save_path", tmp_path / folder)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_of_several_ranks_only_the_first_downloads(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.ranks, "rank", lambda: 1)
    monkeypatch.setattr(train, "DATASET", REPO / "dataset" / "nothing")
    monkeypatch.setattr(train, "download", lambda _: pytest.fail("the second rank downloads"))
    with pytest.raises(UserError, match="no data set at"):
        train.main(["--model", "R", "--save_path", str(tmp_path)])


def test_two_runs_in_one_folder_are_refused(run_train: Train, at_step: AtStep, tmp_path: Path) -> None:
    said = []

    def start_another() -> None:
        for flags in (["--overwrite"], ["--resume"]):
            with pytest.raises(BlockingIOError, match=rf"held by process {os.getpid()} on") as caught:
                run_train("--epochs", 2, *flags)
            said.append(str(caught.value))

    at_step(7, start_another)
    run_train("--epochs", 2, "--save_path", tmp_path)
    assert len(said) == 2
    assert len(read_history(tmp_path)) == 2
    assert not (tmp_path / ".R.lock").exists()


def test_what_killed_saves_left_is_removed_at_the_next_start(run_train: Train, tmp_path: Path) -> None:
    for flags in (["--resume", "--epochs", 2], ["--overwrite"]):
        run_train("--epochs", 1, "--recipe", "lab2", "--name", "R", "--overwrite")
        (tmp_path / "R" / ".R_best.pth.0123abcd.part").write_bytes(bytes(100))
        run_train("--recipe", "lab2", "--name", "R", *flags, *([] if "--epochs" in flags else ["--epochs", 1]))
        assert not list((tmp_path / "R").glob(".*"))


def test_one_training_image_of_32_pixels_trains(
    drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deepest features are one pixel, of which BatchNorm has no variance."""
    monkeypatch.setattr(train, "draw_curves", lambda _, path: path.touch())
    flags = ["--limit", 1, "--image_size", 32, "--epochs", 2, "--batch_size", 2, "--save_path", tmp_path, "--name", "R"]
    train.main([str(flag) for flag in ("--model", "ResNet34_UNet_small", "--data_path", drawn_pets, *flags)])
    assert len(read_history(tmp_path)) == 2


def test_one_step_in_all_is_refused(run_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one step in all would train nothing"):
        run_train("--epochs", 1, "--limit", 1)
    assert not (tmp_path / "R").exists()


def test_training_images_without_a_pet_are_noted(run_train: Train, pets: Path, capsys: pytest.CaptureFixture) -> None:
    run_train("--epochs", 1, "--limit", 5)
    assert "show no pet" not in capsys.readouterr().out
    for path in (pets / "annotations" / "trimaps").glob("*.png"):
        trimap = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.full_like(trimap, 2))
    run_train("--epochs", 1, "--limit", 5, "--overwrite", "--data_path", pets)
    assert "note: the training images show no pet; masks of 0 and 255" in capsys.readouterr().out


def test_a_nan_score_is_never_the_best(run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_epoch = train.score_epoch
    monkeypatch.setattr(train, "score_epoch", lambda *args: score_epoch(*args) | {"valid_dice": float("nan")})
    run_train("--epochs", 1)
    assert {path.name for path in (tmp_path / "R").glob("*.pth")} == {
        "R_epoch_0.pth",
        "R_last.pth",
        "R_epoch_final.pth",
    }


def test_a_full_disk_loses_nothing(run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_train("--epochs", 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "R").iterdir()}

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("plumbing.files.os.fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            run_train("--epochs", 2, "--load_model_epoch", "final")
    assert {path.name: path.read_bytes() for path in (tmp_path / "R").iterdir()} == before


def test_stop_at_dice_ends_the_run(run_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_train("--epochs", 5, "--stop_at_dice", 0.01)
    assert "validation Dice 0.01 reached after 1 epoch, " in capsys.readouterr().out
    for flags in (["--resume"], ["--load_model_epoch", "final"]):
        with pytest.raises(UserError, match=r"--stop_at_dice 0\.01 is reached: --resume --stop_at_dice HIGHER"):
            run_train(*flags)
    run_train("--resume", "--stop_at_dice", 1)
    assert load_checkpoint(tmp_path / "R" / "R_epoch_final.pth")["epoch"] == 5
    run_train("--epochs", 5, "--save_path", tmp_path / "whole", "--stop_at_dice", 1)
    assert_same_run(tmp_path, tmp_path / "whole")


# ---------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "mine"], "--model U or --model R"),
        (["--model", "UNet.pth"], "no network is called 'UNet.pth'; there are U, R, UNet"),
        (["--model", "U", "--model_name", "UNet"], "give one of them"),
        (["--model", "R", "--load_model_epoch", "newest"], "'newest' is not last, best, final"),
        (["--model", "R", "--overwrite", "--load_model_epoch", "last"], "give one of them"),
        (
            ["--model", "R", "--resume", "--init_from", "best"],
            "--resume, --init_from and --load_model_epoch contradict",
        ),
    ],
)
def test_wrong_flags_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(flags)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "recipe", "network", "name"),
    [
        (["--model", "U"], None, "UNet", "U"),
        (["--model", "UNet", "--recipe", "default"], "default", "UNet", "U"),
        (["--model", "ResNet34_UNet", "--recipe", "lab2"], "lab2", "ResNet34_UNet", "lab2-R"),
        (["--model_name", "ResNet34_UNet"], "lab3", "ResNet34_UNet", "lab3-R"),
        (["--model_name", "UNet", "--recipe", "lab2"], "lab2", "UNet", "lab2-U"),
        (["--model", "R", "--recipe", "lab3", "--name", "mine"], "lab3", "ResNet34_UNet", "mine"),
        (["--model", "lab3.UNet"], None, "lab3.UNet", "lab3.UNet"),
        (["--model", "New", "--recipe", "fast"], "fast", "New", "fast-New"),
    ],
)
def test_every_script_gives_a_run_the_same_name(
    flags: list[str], recipe: str | None, network: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "New", nn.Identity)
    for parse_args in (train.parse_args, evaluate.parse_args, inference.parse_args):
        args = parse_args(flags)
        assert (args.recipe, args.model, args.name) == (recipe, network, name)


class TwoHeads(nn.Module):
    """A user's network: two outputs in training (deep supervision), one in use."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList((nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(3, 1, 1)))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        return [head(images) for head in self.heads] if self.training else self.heads[0](images)


@pytest.mark.parametrize(("recipe", "name"), [("default", "TwoHeads"), ("lab2", "lab2-TwoHeads")])
def test_a_users_network_is_one_line_for_every_script(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, name: str
) -> None:
    monkeypatch.setitem(NETWORKS, "TwoHeads", TwoHeads)  # the line
    flags = ["--model", "TwoHeads", "--recipe", recipe]
    run_train(*flags, "--epochs", 1)
    start, end = (load_checkpoint(tmp_path / name / f"{name}_epoch_{n}.pth")["model"] for n in ("0", "final"))
    assert not any(torch.equal(start[key], end[key]) for key in start)  # both heads have learned
    flags += ["--save_path", str(tmp_path)]
    evaluate.main(flags)
    inference.main([*flags, "--output", str(tmp_path / "out"), "--limit", "3"])
    assert (tmp_path / name / f"{name}_valid_scores.json").exists()
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 3


@pytest.mark.parametrize(
    ("flags", "start", "line", "weights"),
    [
        (["--model", "U", "--recipe", "lab2"], "lab2.UNet, 157 parameters; recipe lab2", "\nEpoch 1/1, Training L", []),
        (["--model_name", "UNet"], "lab3.UNet, 157 parameters; recipe lab3", ", Train Dice Score: 0.", ["UNet.pth"]),
    ],
)
def test_the_reports_commands(
    tiny_network: None,
    drawn_pets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    flags: list[str],
    start: str,
    line: str,
    weights: list[str],
) -> None:
    """lab3's ``--data_path`` is the folder that holds dataset/, and its weights alone are all that inference needs."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "oxford-iiit-pet").symlink_to(drawn_pets, target_is_directory=True)
    saved, output = tmp_path / "saved_models", tmp_path / "out"
    where = ["--data_path", str(tmp_path), "--image_size", "32", "--save_path", str(saved)]
    train.main([*flags, *where, "--batch_size", "4", "--epochs", "1"])
    out = capsys.readouterr().out
    assert out.startswith(start)
    assert line in out
    assert [path.name for path in saved.glob("*.pth")] == weights
    for subject in ([*flags, "--load_model_epoch", "final"], *(["--model", file] for file in weights)):
        inference.main([*subject, *where, "--output", str(output)])
        out = capsys.readouterr().out
        assert re.match(rf"Using UNet model.*\nLoading model from {saved}.*\nEvaluating model", out)
        assert re.search(r"^Dice Score: 0\.\d{4}$", out, re.MULTILINE)
        assert len(list(output.glob("*_overlay.png"))) == 20
