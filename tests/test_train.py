"""train.py: a run that cannot be lost. Most tests train a tiny network, since what they are about is the run."""

import csv
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoint
import train
from checkpoint import load_checkpoint
from options import REPO, UserError
from oxford_pet import images_and_trimaps
from recipes import RECIPES
from report import HISTORY_COLUMNS

Train = Callable[..., None]


@pytest.fixture
def run_train(tiny_network: None, drawn_pets: Path, tmp_path: Path) -> Train:
    """``train.main`` with small numbers; further flags as arguments."""

    def call(*flags: str) -> None:
        small = [
            "--data_path",
            str(drawn_pets),
            "--image_size",
            "32",
            "--batch_size",
            "4",
            "--save_path",
            str(tmp_path),
        ]
        train.main(["--model", "R", *small, *flags])

    return call


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make a SIGTERM come during a step, counted from the call."""

    def arrange(steps: int) -> None:
        step, done = train.train_step, []

        def train_step(*args: object) -> torch.Tensor:
            done.append(1)
            if len(done) == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*args)

        monkeypatch.setattr(train, "train_step", train_step)

    return arrange


def read_history(folder: Path) -> list[dict[str, str]]:
    with open(folder / "R" / "R_history.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_time(history: list[dict]) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in history
    ]


def assert_same_run(a: Path, b: Path) -> None:
    """The same weights to the bit, averaged and trained, the same optimizer and history."""
    a_state, b_state = load_checkpoint(a / "R" / "R_last.pth"), load_checkpoint(b / "R" / "R_last.pth")
    for one, other in (
        (a_state["model"], b_state["model"]),
        (a_state["training"]["model"], b_state["training"]["model"]),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    for one, other in zip(
        a_state["training"]["optimizer"]["state"].values(),
        b_state["training"]["optimizer"]["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert without_time(a_state["history"]) == without_time(b_state["history"])
    assert a_state["training"]["best_dice"] == b_state["training"]["best_dice"]


# ---------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_what_the_readme_says(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", "51")
    folder = tmp_path / "R"
    assert {path.name for path in folder.iterdir()} == {
        "R_epoch_0.pth", "R_epoch_50.pth", "R_epoch_final.pth", "R_best.pth", "R_last.pth",
        "R_losses.npy", "R_dice_scores.npy", "R_history.csv", "R_curves.png",
    }  # fmt: skip
    history = read_history(tmp_path)
    assert tuple(history[0]) == HISTORY_COLUMNS
    assert [int(row["epoch"]) for row in history] == list(range(1, 52))
    losses, dice = np.load(folder / "R_losses.npy"), np.load(folder / "R_dice_scores.npy")
    assert [float(row["train_loss"]) for row in history] == losses.tolist()
    assert [float(row["valid_dice"]) for row in history] == dice.tolist()
    assert losses[-5:].mean() < losses[:5].mean()  # it learns

    assert [load_checkpoint(folder / f"R_epoch_{n}.pth")["epoch"] for n in (0, 50, "final")] == [0, 50, 51]
    best = load_checkpoint(folder / "R_best.pth")
    assert best["scores"]["valid_dice"] == dice.max()
    assert best["epoch"] == dice.argmax() + 1
    assert best["run"]["image_size"] == 32
    assert best["recipe"]["batch_size"] == 4
    for row in history:  # images over training seconds
        assert float(row["images_per_second"]) == pytest.approx(18 / float(row["seconds"]))


def test_the_same_seed_gives_the_same_run(run_train: Train, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run_train("--epochs", "2", "--seed", seed, "--save_path", str(tmp_path / name))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "c")


def test_curves_of_both_networks_side_by_side(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", "1")
    assert not list(tmp_path.glob("*.png"))
    run_train("--epochs", "1", "--model", "U")
    assert [path.name for path in tmp_path.glob("*.png")] == ["UR_curves.png"]


# ---------------------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize("steps", [2, 5, 7])  # within the first epoch, at the end of one, within the second; 5 an epoch
def test_resumed_equals_uninterrupted(
    run_train: Train, stop_after: Callable[[int], None], tmp_path: Path, steps: int
) -> None:
    run_train("--epochs", "3", "--save_path", str(tmp_path / "whole"))
    stopped = ["--save_path", str(tmp_path / "stopped")]
    stop_after(steps)
    with pytest.raises(SystemExit) as caught:
        run_train("--epochs", "3", *stopped)
    assert caught.value.code == 128 + signal.SIGTERM
    state = load_checkpoint(tmp_path / "stopped" / "R" / "R_last.pth")
    assert (state["epoch"], state["training"]["step"]) == divmod(steps, 5)
    run_train("--load_model_epoch", "last", *stopped)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_resumed_with_the_real_network(drawn_pets: Path, tmp_path: Path, stop_after: Callable[[int], None]) -> None:
    """Convolutions, BatchNorm, fused AdamW and bfloat16 where there is any: also they are to the bit the same."""
    flags = ["--model", "R", "--data_path", str(drawn_pets), "--image_size", "32", "--batch_size", "8", "--limit", "16"]
    train.main([*flags, "--epochs", "2", "--save_path", str(tmp_path / "whole")])
    stop_after(3)
    with pytest.raises(SystemExit):
        train.main([*flags, "--epochs", "2", "--save_path", str(tmp_path / "stopped")])
    train.main([*flags, "--save_path", str(tmp_path / "stopped"), "--load_model_epoch", "last"])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_real_signal_to_a_real_process(drawn_pets: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, REPO / "src" / "train.py", "--model", "R", "--data_path", drawn_pets, "--image_size", "32",
        "--epochs", "100000", "--batch_size", "4", "--save_path", tmp_path,
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
    assert f"--save_path {tmp_path} --load_model_epoch last" in out
    assert load_checkpoint(tmp_path / "R" / "R_last.pth")["epoch"] >= 1
    assert not list(tmp_path.glob("R/.*"))  # nothing left aside


def test_best_is_there_when_last_says_so(run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be killed between two saves: what R_last.pth counts as done has to be on the disk before it."""
    saved: list[str] = []
    save = checkpoint.save_checkpoint
    monkeypatch.setattr(train, "save_checkpoint", lambda path, state: (saved.append(path.name), save(path, state)))
    run_train("--epochs", "1")
    assert saved == ["R_epoch_0.pth", "R_best.pth", "R_epoch_final.pth", "R_last.pth"]


def test_last_refuses_what_would_not_be_the_same_run(run_train: Train, stop_after: Callable[[int], None]) -> None:
    stop_after(5)
    with pytest.raises(SystemExit):
        run_train("--epochs", "3")
    with pytest.raises(UserError, match=r"--epochs 4 \(was 3\), --seed 5 \(was 0\)"):
        run_train("--epochs", "4", "--seed", "5", "--load_model_epoch", "last")
    run_train("--epochs", "3", "--load_model_epoch", "last")  # the command as it was is fine


def test_last_of_a_finished_run(run_train: Train) -> None:
    run_train("--epochs", "1")
    with pytest.raises(UserError, match=r"has done 1 of 1 epochs.*--load_model_epoch final --epochs MORE"):
        run_train("--load_model_epoch", "last")


@pytest.mark.parametrize("which", ["final", "best", "2"])
def test_continue_from_weights(run_train: Train, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_train("--epochs", "2")
    folder = tmp_path / "R"
    (folder / "R_epoch_2.pth").write_bytes((folder / "R_epoch_final.pth").read_bytes())
    state = load_checkpoint(folder / f"R_{'best' if which == 'best' else f'epoch_{which}'}.pth")
    starts: list[train.Run] = []
    fit = train.fit

    def spy(run: train.Run, *rest: object) -> None:
        for model in (run.model, run.average):
            assert all(torch.equal(value, state["model"][key]) for key, value in model.state_dict().items())
        assert not run.optimizer.state_dict()["state"]  # fresh
        assert run.epoch == state["epoch"]
        starts.append(run)
        fit(run, *rest)

    monkeypatch.setattr(train, "fit", spy)
    run_train("--epochs", "4", "--load_model_epoch", which)
    assert starts
    history = read_history(tmp_path)
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4]
    recipe = starts[0].recipe
    assert float(history[3]["learning_rate"]) == pytest.approx(recipe.learning_rate_at(19 / 20))


def test_a_better_best_is_not_overwritten(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", "2")
    path = tmp_path / "R" / "R_best.pth"
    state = load_checkpoint(path)
    state["scores"]["valid_dice"] = 0.999
    checkpoint.save_checkpoint(path, state)
    run_train("--epochs", "3", "--load_model_epoch", "final")
    assert load_checkpoint(path)["scores"]["valid_dice"] == 0.999


def test_an_old_run_is_not_lost_by_accident(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", "1")
    before = (tmp_path / "R" / "R_best.pth").read_bytes()
    with pytest.raises(UserError, match=r"holds a run already.*--load_model_epoch last.*--overwrite"):
        run_train("--epochs", "2")
    assert (tmp_path / "R" / "R_best.pth").read_bytes() == before
    run_train("--epochs", "1", "--name", "other")  # beside it is fine
    run_train("--epochs", "2", "--overwrite")
    assert len(read_history(tmp_path)) == 2
    run_train("--epochs", "1", "--load_model_epoch", "0")
    assert len(read_history(tmp_path)) == 1


# ---------------------------------------------------------------------------------------------- what can go wrong


def test_a_loss_that_is_not_finite(run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said with the names of the batch that it came from first, although the host looks only later."""
    step, calls, names = train.train_step, [], []

    def train_step(run: train.Run, images: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        loss = step(run, images, *rest)
        calls.append(1)
        return loss * float("nan") if len(calls) >= 7 else loss  # the second of the second epoch's five

    draw_epoch = train.draw_epoch

    def spy(*args: object) -> object:
        plan = draw_epoch(*args)
        if args[-1] == 2:
            names.extend(plan.order[4:8].tolist())
        return plan

    monkeypatch.setattr(train, "train_step", train_step)
    monkeypatch.setattr(train, "draw_epoch", spy)
    with pytest.raises(UserError, match="not finite at epoch 2, step 2 of 5") as caught:
        run_train("--epochs", "3")
    state = load_checkpoint(tmp_path / "R" / "R_last.pth")
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["training"]["model"].values())
    drawn = train.load_split(state["run"]["data_path"], "train", 32).names
    assert str(caught.value).split(" on: ")[1].split(". ")[0] == ", ".join(sorted(drawn[index] for index in names))


def test_a_nan_score_is_never_the_best(run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = train.evaluate

    def broken(*args: object) -> object:
        scores = evaluate(*args)
        scores.dice[:] = float("nan")
        return scores

    monkeypatch.setattr(train, "evaluate", broken)
    run_train("--epochs", "1")
    assert not (tmp_path / "R" / "R_best.pth").exists()
    assert (tmp_path / "R" / "R_last.pth").exists()


def test_a_full_disk_loses_nothing(run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_train("--epochs", "1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "R").iterdir()}

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("atomic.os.fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            run_train("--epochs", "2", "--load_model_epoch", "final")
    assert {path.name: path.read_bytes() for path in (tmp_path / "R").iterdir()} == before


def test_averaged_weights_have_batchnorm_statistics_of_their_own(
    run_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[train.Run] = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda run, *rest: (runs.append(run), fit(run, *rest)))
    run_train("--epochs", "2", "--precision", "fp32")
    run = runs[0]
    images, _ = images_and_trimaps(run.train.pixels)
    features = run.average[0](run.normalise(images))
    torch.testing.assert_close(run.average[1].running_mean, features.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(run.average[1].running_mean, run.model[1].running_mean, rtol=1e-3)


# ---------------------------------------------------------------------------------------------- the command line


def call(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "src" / "train.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model U or --model R"),
        (["--model", "X"], "'X' is none of U, UNet, R, ResNet34_UNet"),
        (["--model", "R", "--epochs", "0"], "'0' is not a whole number from 1 up"),
        (["--model", "R", "--learning_rate", "-1"], "'-1' is not a number above 0"),
        (["--model", "R", "--image_size", "16"], "16 is below 32 pixels"),
        (["--model", "R", "--load_model_epoch", "newest"], "'newest' is none of last, best, final"),
        (["--model", "R", "--name", "../x"], "'../x' is no name of a folder"),
        (["--model", "R", "--epoch", "3"], "unrecognized arguments: --epoch"),
        (["--model", "R", "--overwrite", "--load_model_epoch", "last"], "give one of them"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    done = call("--model", "R", "--data_path", tmp_path / "nothing", "--save_path", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no data set at ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_help_shows_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for default in (
        str(RECIPES["default"].learning_rate),
        "dataset/oxford-iiit-pet",
        "default: 256",
        "default: auto",
        "default: pet",
        "saved_models",
    ):
        assert default in text


def test_start_up_imports_nothing_slow() -> None:
    """``import torchvision`` costs over 3 s and matplotlib over 1 s: not on the way to a training step."""
    slow = ("torchvision", "matplotlib", "imutils", "PIL.Image")
    code = f"import sys, train; print([module for module in {slow} if module in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO / "src", env={**os.environ}
    )
    assert done.stdout.strip() == "[]"
