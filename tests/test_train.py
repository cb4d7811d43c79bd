"""train.py and run.py: a run that cannot be lost. Most tests train a tiny network, because they are about the run."""

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
from pathlib import Path
from typing import Any

from plumbing.cli import REPO, UserError

import numpy as np
import pytest
import torch
from conftest import AtStep, Train, terminate
from pytest import CaptureFixture, MonkeyPatch
from torch import Tensor, nn

import evaluate
import inference
import run
import train
from checkpoint import HISTORY_COLUMNS, load_checkpoint
from models import NETWORKS
from split import Split


def read_checkpoint(folder: Path, which: str, name: str = "R") -> dict[str, Any]:
    return load_checkpoint(folder / name / f"{name}_{which}.pth")


def read_history(folder: Path) -> list[dict[str, str]]:
    with open(folder / "R" / "R_history.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "R").iterdir()}


def assert_equal(a: object, b: object) -> None:
    """Equal to the bit, but for times, the config, and that it was resumed."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "images_per_second", "config", "resumed"}:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def assert_same_run(a: Path, b: Path) -> None:
    """The same weights, EMA weights, optimizer, history and best checkpoint."""
    for which in ("last", "best", "epoch_final"):
        assert_equal(*(read_checkpoint(folder, which) for folder in (a, b)))


def assert_resumes_exactly(run_train: Train, folder: Path, *flags: object) -> None:
    """The run that was begun in ``folder``, resumed, ends as one that was not interrupted."""
    run_train(*flags, "--save_path", folder, "--resume")
    run_train(*flags, "--save_path", folder / "whole")
    assert_same_run(folder, folder / "whole")


# ---------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_what_the_readme_says(run_train: Train, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    assert train.KEEP_EVERY == 50
    monkeypatch.setattr(train, "KEEP_EVERY", 4)
    run_train("--epochs", 6)
    folder = tmp_path / "R"
    assert {path.name for path in folder.iterdir()} == {
        "R_config.json", "R_epoch_0.pth", "R_epoch_4.pth", "R_epoch_final.pth", "R_best.pth", "R_last.pth",
        "R_losses.npy", "R_dice_scores.npy", "R_history.csv", "R_curves.png", "R_report.html",
    }  # fmt: skip
    history = read_history(tmp_path)
    assert tuple(history[0]) == HISTORY_COLUMNS
    assert [int(row["epoch"]) for row in history] == list(range(1, 7))
    losses, dice = np.load(folder / "R_losses.npy"), np.load(folder / "R_dice_scores.npy")
    assert [float(row["train_loss"]) for row in history] == losses.tolist()
    assert [float(row["valid_dice"]) for row in history] == dice.tolist()
    assert losses[-3:].mean() < losses[:3].mean()  # it learns
    assert [read_checkpoint(tmp_path, f"epoch_{n}")["epoch"] for n in (0, 4, "final")] == [0, 4, 6]
    best, written = read_checkpoint(tmp_path, "best"), json.loads((folder / "R_config.json").read_text())
    assert (best["epoch"], best["scores"]["valid_dice"]) == (dice.argmax() + 1, dice.max())
    assert written["config"] == json.loads(json.dumps(best["config"].to_dict()))
    assert all(written[key] == best[key] for key in ("versions", "commit", "command", "data_path"))


def test_the_same_seed_gives_the_same_run(run_train: Train, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_train("--epochs", 2, "--seed", seed, "--save_path", tmp_path / folder)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "c")


def test_the_plan_is_printed_first_and_a_command_that_works_last(
    stop_train: Train, tmp_path: Path, capsys: CaptureFixture
) -> None:
    threads, saved = torch.get_num_threads(), tmp_path / "a b"
    flags = ("--recipe", "fast", "--image_size", 160, "--epochs", 5, "--threads", 3)
    stop_train(14, *flags, "--save_path", saved)
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ResNet34_UNet, 157 parameters; recipe fast: 5 epochs, batch 4, learning rate 0.002, seed 0"
    assert re.fullmatch("on cpu, 3 threads.*; 160x160 pixels, boundary counted as pet", lines[1])
    assert lines[2] == f"writes to {saved / 'fast-R'}"
    assert lines[4].endswith(": 40x40 from epoch 1, 80x80 from epoch 2, 160x160 from epoch 4")
    assert lines[5].startswith("note: this takes hours to days on a CPU; faster: --recipe cpu")
    assert lines[6] == "    18 training images, 2 for validation"
    done, command = lines[-1].split("; go on with: python src/train.py ")
    assert done == "stopped after 1 epoch and 3 of 5 steps"
    train.main(shlex.split(command))
    command = capsys.readouterr().out.splitlines()[-1].split("; next: python src/inference.py ")[1]
    inference.main([*shlex.split(command), "--output", str(tmp_path / "out"), "--limit", "1"])
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 1


def test_the_page_is_live_until_the_end_and_not_written_at_each_epoch(
    run_train: Train, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    pages, render_page = [], run.render_page
    monkeypatch.setattr(run, "render_page", lambda *args, **rest: pages.append(render_page(*args, **rest).read_text()))
    run_train("--epochs", 4)
    first, last = pages  # fewer than PAGE_SECONDS between the epochs
    dice = max(float(row["valid_dice"]) for row in read_history(tmp_path))
    assert ("After 1 of 4 epochs" in first, 'id="live"' in first) == (True, True)
    assert f"Finished after 4 of 4 epochs: best validation Dice {dice:.4f}." in last
    assert 'id="live"' not in last


def test_splits_that_cannot_train_or_choose_are_noted(monkeypatch: MonkeyPatch, capsys: CaptureFixture) -> None:
    for value, is_noted in ((1, False), (2, True)):
        split = Split(Path(), "train", ["a"], torch.full((1, 32, 32, 4), value, dtype=torch.uint8))
        monkeypatch.setattr(run, "targets_lost", lambda *_, count=value: (count - 1, 64))
        run.print_data(split, split, "pet")
        out = capsys.readouterr().out
        for said in ("training masks;", "validation masks:", "1 of 1 training targets lose all their foreground at 32"):
            assert (said in out) == is_noted
        assert "note: the best epoch is chosen by 1 validation image alone" in out


# ---------------------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize(
    ("recipe", "epochs", "batch", "done"),
    [
        ("default", 3, 2, (0, 2)),  # within the first epoch
        ("default", 3, 5, (0, 5)),  # in its last step
        ("default", 3, 7, (0, 5)),  # amid the images for BatchNorm
        ("default", 3, 10, (0, 5)),  # before the scoring
        ("default", 3, 11, (1, 0)),  # at the end of the epoch
        ("default", 20, 201, (18, 3)),  # where the EMA's horizon is longer than its interval
        ("lab3", 3, 6, (0, 5)),  # without EMA weights, between the scorings of both splits
        ("lab3", 3, 8, (0, 5)),  # amid the scoring of the training images
    ],
)
def test_a_stopped_run_resumes_exactly(
    run_train: Train, stop_train: Train, tmp_path: Path, recipe: str, epochs: int, batch: int, done: tuple
) -> None:
    flags = ["--recipe", recipe, "--name", "R", "--epochs", epochs]
    stop_train(batch, *flags)
    state = read_checkpoint(tmp_path, "last")
    assert (state["epoch"], state["training"]["step"]) == done
    assert (state["training"]["seconds"] > 0) == (done[1] > 0)
    assert_resumes_exactly(run_train, tmp_path, *flags)


class Killed(BaseException):
    """The process has gone."""


def kill(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize(("save_every", "where", "saved"), [(0, "step", 2), (3600, "step", 0), (0, "save", 1)])
def test_a_killed_run_resumes_from_its_last_save(
    run_train: Train, at_step: AtStep, tmp_path: Path, save_every: int, where: str, saved: int
) -> None:
    save = torch.save

    def save_and_be_killed(state: dict, file: object) -> None:
        save(state, file)
        if state["epoch"] == 2 and "training" in state:  # ``last``, before it is renamed
            raise Killed

    with MonkeyPatch.context() as patched, pytest.raises(Killed):
        if where == "save":
            patched.setattr(torch, "save", save_and_be_killed)
        else:
            at_step(13, kill)  # in the third epoch
        run_train("--epochs", 4, "--save_every", save_every)
    assert read_checkpoint(tmp_path, "last")["epoch"] == saved
    assert (tmp_path / "R" / "R_best.pth").exists() == (saved > 0)
    assert len(read_history(tmp_path)) == 2  # is written each epoch
    assert_resumes_exactly(run_train, tmp_path, "--epochs", 4)


@pytest.mark.parametrize(("save_every", "lasts"), [(0, 4), (3600, 2)])
def test_best_and_last_are_saved_together_and_best_first(
    run_train: Train, monkeypatch: MonkeyPatch, save_every: int, lasts: int
) -> None:
    """What ``last`` counts as done has to be on the disk before it; and ``last`` is there before the first step."""
    files: list[str] = []
    monkeypatch.setattr(run, "save_checkpoint", lambda path, _: files.append(path.stem.removeprefix("R_")))
    run_train("--epochs", 3, "--save_every", save_every)
    assert (files[:2], files[-1]) == (["epoch_0", "last"], "last")
    assert files.count("last") == lasts  # before the first step, after each epoch, at the end
    assert {after for file, after in itertools.pairwise(files) if file == "best"} == {"last"}


def test_a_stopped_run_is_saved_before_it_is_drawn(stop_train: Train, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Drawing takes seconds, in which a second signal may kill the process."""
    monkeypatch.setattr(run, "draw_curves", kill)
    with pytest.raises(Killed):
        stop_train(14, "--epochs", 2)
    assert read_checkpoint(tmp_path, "last")["training"]["step"] == 3


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
    assert read_checkpoint(saved, "last", "lab2.UNet")["epoch"] >= 1
    assert not list(saved.glob("*/.*"))  # no temporary files


def test_what_would_not_be_the_same_run_is_refused(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 2)
    before = read_files(tmp_path)
    for flags, message in {
        "--resume": r"^all 2 epochs are done; .*: --load_model_epoch final --epochs MORE$",
        "--resume --epochs 4 --seed 5": "^cannot resume: epochs changed from 2 to 4, seed changed from 0 to 5",
        "--resume --model U --name R": "^the run holds the network ResNet34_UNet, not what --model UNet stands for",
        "--resume --recipe lab3 --name R": "^cannot resume: recipe changed from default to lab3",
        "--load_model_epoch final --boundary ignore": "^cannot continue: boundary changed from pet to ignore",
        "--load_model_epoch 7 --epochs 4": r"^no checkpoint .*R_epoch_7\.pth; there are R_best\.pth, ",
    }.items():
        with pytest.raises(UserError, match=message):
            run_train(*flags.split())
    assert read_files(tmp_path) == before


def test_resume_takes_the_runs_own_data_and_no_other(stop_train: Train, pets: Path, tmp_path: Path) -> None:
    stop_train(3, "--epochs", 1, "--data_path", pets)
    again = ["--model", "R", "--save_path", str(tmp_path), "--resume"]
    listed = pets / "annotations" / "trainval.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match=r"differ from the run's \(found 17 training, 2 validation\)"):
        train.main(again)
    listed.write_text("\n".join(lines))
    moved = pets.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is no longer there; say where it is with --data_path"):
        train.main(again)
    train.main([*again, "--data_path", str(moved)])


def test_a_damaged_training_state_is_one_line(run_train: Train, stop_train: Train, tmp_path: Path) -> None:
    stop_train(3, "--epochs", 1)
    path = tmp_path / "R" / "R_last.pth"
    state = torch.load(path)
    training = state.pop("training")
    for damage in (
        {},
        {"training": {key: value for key, value in training.items() if key != "optimizer"}},
        {"training": training | {"model": training["model"] | {"0.weight": torch.zeros(4, 3, 3, 2)}}},
        {"training": training | {"fingerprints": ["00000000", "00000000"]}},
    ):
        torch.save(state | damage, path)
        before = read_files(tmp_path)
        with pytest.raises(UserError, match=r"\A.*\Z"):  # one line
            run_train("--resume")
        assert read_files(tmp_path) == before


def test_a_resumed_run_keeps_its_dtype_on_another_machine(
    run_train: Train, stop_train: Train, monkeypatch: MonkeyPatch, capsys: CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    stop_train(3, "--epochs", 1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    capsys.readouterr()
    run_train("--epochs", 1, "--resume")
    assert re.search("(?s), bfloat16; 32x32 pixels.*note: the run began in bfloat16", capsys.readouterr().out)


# ---------------------------------------------------------------------------------------------- start from weights


@pytest.mark.parametrize(
    ("flags", "which", "epoch"),
    [
        (["--load_model_epoch", "final"], "epoch_final", 2),  # continues after that epoch
        (["--load_model_epoch", "0002"], "epoch_2", 2),
        (["--init_from", "R/R_best.pth", "--overwrite"], "best", 0),  # a new run
        (["--init_from", "weights.pt", "--name", "new"], "best", 0),
    ],
)
def test_a_run_starts_from_weights_alone(
    run_train: Train, tmp_path: Path, monkeypatch: MonkeyPatch, flags: list[str], which: str, epoch: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "KEEP_EVERY", 2)
    run_train("--epochs", 2, "--seed", 7)
    weights = read_checkpoint(tmp_path, which)["model"]
    torch.save(dict(weights), "weights.pt")
    for name in NETWORKS.keys() - {"ResNet34_UNet"}:  # a file of weights alone tells the network by its tensors
        monkeypatch.setitem(NETWORKS, name, nn.Identity)
    trainers: list[train.Trainer] = []
    monkeypatch.setattr(train, "fit", lambda trainer, *_: trainers.append(trainer))
    run_train("--epochs", 4, *flags)
    (trainer,) = trainers
    assert_equal(trainer.model.state_dict(), weights)
    assert_equal(trainer.ema.model.state_dict(), weights)
    assert not trainer.optimizer.state_dict()["state"]
    progress, config = trainer.progress, trainer.config
    assert (progress.epoch, len(progress.history), config.epochs) == (epoch, epoch, 4)
    assert config.seed == (7 if epoch else 0)


def test_a_continued_run_learns_and_can_be_resumed_at_once(run_train: Train, tmp_path: Path, at_step: AtStep) -> None:
    run_train("--epochs", 2)
    before = read_checkpoint(tmp_path, "epoch_final")["model"]["0.weight"]
    at_step(1, kill)
    with pytest.raises(Killed):
        run_train("--epochs", 3, "--load_model_epoch", "final")
    run_train("--resume")
    assert [int(row["epoch"]) for row in read_history(tmp_path)] == [1, 2, 3]
    assert not torch.equal(read_checkpoint(tmp_path, "last")["training"]["model"]["0.weight"], before)


def test_a_run_that_is_there_is_not_lost_by_accident(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 1)
    before, best = read_files(tmp_path), tmp_path / "R" / "R_best.pth"
    for flags in ([], ["--init_from", best]):
        with pytest.raises(UserError, match=r"holds a run already.*--resume.*--overwrite.*--name NAME"):
            run_train("--epochs", 2, *flags)
    with pytest.raises(UserError, match=r"holds the network ResNet34_UNet, not UNet$"):
        run_train("--model", "U", "--name", "R", "--init_from", best, "--overwrite")
    assert read_files(tmp_path) == before
    (tmp_path / "R" / "R_last.pth").unlink()  # of a run that was killed before it wrote this one
    with pytest.raises(UserError, match=r"holds a run already\. Replace it: --overwrite"):
        run_train("--epochs", 1)
    for flags in (["--overwrite"], ["--load_model_epoch", "0"]):
        run_train("--epochs", 2, *flags)
        assert len(read_history(tmp_path)) == 2


# ---------------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(("what", "number"), [("loss", 7), ("weight", 10), ("weight, then stopped", 7)])
def test_what_is_not_finite_is_not_saved(
    run_train: Train, tmp_path: Path, monkeypatch: MonkeyPatch, what: str, number: int
) -> None:
    """If a run diverges in its last step, its loss was finite throughout."""
    train_step, calls = train.Trainer.train_step, []

    def diverge(trainer: train.Trainer, *args: object) -> Tensor:
        calls.append(train_step(trainer, *args))
        if len(calls) != number:
            return calls[-1]
        if "stopped" in what:
            terminate()
        next(trainer.model.parameters()).data[0] *= 1 if what == "loss" else float("inf")
        return calls[-1] * (float("nan") if what == "loss" else 1)

    monkeypatch.setattr(train.Trainer, "train_step", diverge)
    with pytest.raises(UserError, match=r"^a loss or a weight was not finite in epoch 2; "):
        run_train("--epochs", 2, "--save_every", 0)
    assert {read_checkpoint(tmp_path, which)["epoch"] for which in ("last", "best")} == {1}
    assert not (tmp_path / "R" / "R_epoch_final.pth").exists()
    assert (tmp_path / "R" / "R_curves.png").exists()  # of the epochs before


def test_a_full_disk_loses_nothing(run_train: Train, tmp_path: Path, at_step: AtStep, monkeypatch: MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        at_step(8, lambda: patched.setattr("plumbing.files.os.fsync", no_space))  # in the second epoch
        run_train("--epochs", 3, "--save_every", 0)
    assert not list((tmp_path / "R").glob(".*"))
    assert_resumes_exactly(run_train, tmp_path, "--epochs", 3)


def test_two_runs_in_one_folder_are_refused(run_train: Train, at_step: AtStep, tmp_path: Path) -> None:
    def start_another() -> None:
        with pytest.raises(BlockingIOError, match=rf"held by process {os.getpid()} on"):
            run_train("--epochs", 2, "--overwrite")

    at_step(7, start_another)
    run_train("--epochs", 2)
    assert len(read_history(tmp_path)) == 2
    assert not (tmp_path / ".R.lock").exists()


def test_stale_temp_files_are_removed(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 1)
    for flags in (["--load_model_epoch", "final", "--epochs", 2], ["--overwrite", "--epochs", 1]):
        (tmp_path / "R" / ".R_best.pth.0123abcd.part").write_bytes(bytes(100))
        run_train(*flags)
        assert not list((tmp_path / "R").glob(".*"))


def test_one_training_image_of_32_pixels_trains_but_not_in_one_step(drawn_pets: Path, tmp_path: Path) -> None:
    """The deepest features are one pixel, of which BatchNorm has no variance."""
    where = ["--model", "ResNet34_UNet_small", "--name", "R", "--data_path", drawn_pets, "--save_path", tmp_path]
    flags = [str(flag) for flag in (*where, "--limit", 1, "--image_size", 32, "--batch_size", 2, "--epochs")]
    with pytest.raises(UserError, match="a run of one step trains nothing"):
        train.main([*flags, "1"])
    assert not (tmp_path / "R").exists()
    train.main([*flags, "2"])
    assert len(read_history(tmp_path)) == 2


def test_stop_at_dice_ends_the_run(run_train: Train, tmp_path: Path, capsys: CaptureFixture) -> None:
    run_train("--epochs", 5, "--stop_at_dice", 0.01)
    assert "validation Dice 0.01 reached after 1 epoch, " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--stop_at_dice 0\.01 is reached"):
        run_train("--resume")
    assert_resumes_exactly(run_train, tmp_path, "--epochs", 5, "--stop_at_dice", 1)


# ---------------------------------------------------------------------------------------------- the command line


def test_wrong_flags_are_one_line(capsys: CaptureFixture) -> None:
    for flags, message in {
        "--name mine": "--model U or --model R",
        "--model R --overwrite --load_model_epoch last": "give one of them",
        "--model R --resume --init_from x.pth": "--init_from: not allowed with argument --resume",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            train.main(flags.split())
        assert re.fullmatch(f".*{message}.*\n", capsys.readouterr().err)


class TwoHeads(nn.Module):
    """A user's network: two outputs in training (deep supervision), one in use."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList((nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(3, 1, 1)))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        return [head(images) for head in self.heads] if self.training else self.heads[0](images)


def test_a_users_network_is_one_line_for_every_script(
    run_train: Train, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "TwoHeads", TwoHeads)  # the line
    flags, name = ["--model", "TwoHeads", "--recipe", "lab2", "--save_path", str(tmp_path)], "lab2-TwoHeads"
    run_train(*flags, "--epochs", 1)
    start, end = (read_checkpoint(tmp_path, f"epoch_{n}", name)["model"] for n in ("0", "final"))
    assert not any(torch.equal(start[key], end[key]) for key in start)  # both heads have learned
    evaluate.main(flags)
    inference.main([*flags, "--output", str(tmp_path / "out"), "--limit", "3"])
    assert (tmp_path / name / f"{name}_valid_scores.json").exists()
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 3


@pytest.mark.usefixtures("tiny_network")
def test_the_reports_commands(drawn_pets: Path, tmp_path: Path, capsys: CaptureFixture) -> None:
    """lab3's ``--data_path`` is the folder that holds dataset/, and its weights alone are all that inference needs."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "oxford-iiit-pet").symlink_to(drawn_pets, target_is_directory=True)
    saved, output = tmp_path / "saved_models", tmp_path / "out"
    where = ["--data_path", str(tmp_path), "--image_size", "32", "--save_path", str(saved)]
    for flags, start, line, weights in (
        (["--model", "U", "--recipe", "lab2"], "lab2.UNet, 157 parameters", "\nEpoch 1/1, Training L", []),
        (["--model_name", "UNet"], "lab3.UNet, 157 parameters", ", Train Dice Score: 0.", ["UNet.pth"]),
    ):
        train.main([*flags, *where, "--batch_size", "4", "--epochs", "1"])
        out = capsys.readouterr().out
        assert (out.startswith(start), line in out) == (True, True)
        assert [path.name for path in saved.glob("*.pth")] == weights
        for subject in ([*flags, "--load_model_epoch", "final"], *(["--model", file] for file in weights)):
            inference.main([*subject, *where, "--output", str(output)])
            out = capsys.readouterr().out
            assert re.match(rf"Using UNet model.*\nLoading model from {saved}.*\nEvaluating model", out)
            assert re.search(r"^Dice Score: 0\.\d{4}$", out, re.MULTILINE)
            assert len(list(output.glob("*_overlay.png"))) == 20
    train.main(["--model", "U", "--recipe", "lab3", "--name", "again", *where, "--batch_size", "4", "--epochs", "1"])
    assert {path.name for path in saved.glob("*.pth")} == {"UNet.pth", "again.pth"}
