"""The benchmark scripts on tiny data: the queue and its rows, the study's page, the speed figures, the peers."""

import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from plumbing.cli import (
    REPO,
    UserError,
)
from plumbing.stop import StopSignal

import numpy as np
import pytest
import torch
from conftest import terminate

import choices
import engine
import evaluate
import gpu
import mean_mask
import networks
import peers
import photo_speed
import readme_picture
import roofline
import speed
import study
import train
from augment import draw_epoch
from engine import create_state
from evaluate import difference
from losses import LOSSES
from models import NETWORKS, lab3
from oxford_pet import load_split
from predictor import Predictor
from recipes import RECIPES
from report import read_history


@pytest.fixture(autouse=True)
def known_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered for one test only."""
    known = (NETWORKS, peers.PEER_NETWORKS), (RECIPES, peers.PEER_RECIPES), (LOSSES, choices.CHOICE_LOSSES)
    for table, entries in known:
        for name, value in entries.items():
            monkeypatch.setitem(table, name, value)


@pytest.mark.parametrize(
    "script", [choices, gpu, mean_mask, networks, peers, photo_speed, readme_picture, speed, study]
)
def test_help_names_each_flag_and_does_nothing_else(script, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        script.main(["--help"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


# ---------------------------------------------------------------------------------------------- the queue


@pytest.fixture
def start_queue(drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``study.main --queue`` on lines, each script called in this process; returns what was called."""
    monkeypatch.setattr(train, "draw_curves", lambda _, path: path.touch())

    def start(*lines: str, flags: tuple[str, ...] = ()) -> list[str]:
        called = []

        def call(command: list[str], stop: StopSignal) -> bool:
            at = next(index for index, part in enumerate(command) if part.startswith("--"))
            script = Path(command[at - 1]).stem
            called.append(" ".join([script, *(flag for flag in command[at:] if flag in ("--resume", "--overwrite"))]))
            {"train": train.main, "evaluate": evaluate.main}[script](command[at:])
            return True

        monkeypatch.setattr(study, "call", call)
        queue = tmp_path / "queue.txt"
        queue.write_text(f"--data_path {drawn_pets} --image_size 32 --batch_size 8 # for all\n\n" + "\n".join(lines))
        study.main(["--queue", str(queue), "--save_path", str(tmp_path), "--results", str(tmp_path), *flags])
        return called

    return start


def test_a_queue_is_trained_scored_and_recorded(
    start_queue: Callable[..., list[str]], tiny_network: None, pets: Path, tmp_path: Path
) -> None:
    lines = ["R 1 --model R --epochs 2", "claim 0.5 --model R --recipe lab3-bce --epochs 1 --seed 3"]
    once = ["train", *["evaluate"] * 4]
    assert start_queue(*lines) == once * 2
    row, history = json.loads((tmp_path / "run-R.json").read_text()), read_history(tmp_path / "R" / "R_history.csv")
    scores = json.loads((tmp_path / "R" / "R_test_scores_flip.json").read_text())
    assert row["dice"].keys() == row["boundary_f"].keys() == {"validation", "validation_flip", "test", "test_flip"}
    assert row["dice"]["test_flip"] == pytest.approx(scores["dice_original"], abs=1e-5)  # inputs may differ in size
    assert np.mean(row["test_boundary_f"]) == pytest.approx(row["boundary_f"]["test"], abs=1e-4)
    assert (row["system"], row["seed"], row["epochs"], row["image_size"], len(row["test_dice"])) == ("R", 0, 2, 32, 20)
    assert row["minutes"] == round(sum(epoch["seconds"] for epoch in history) / 60, 1)
    assert row["images_per_second"] == pytest.approx(36 / sum(epoch["seconds"] for epoch in history), abs=0.06)
    assert {"recipe", "threads", "iou_set", "versions", "machine", "commit"} <= row.keys()
    assert {path.name for path in (tmp_path / "R").glob("*.pth")} == {"R_best.pth", "R_epoch_final.pth"}
    claim = json.loads((tmp_path / "run-claim-seed3.json").read_text())
    assert (claim["system"], claim["seed"], claim["recipe"], claim["config"]["loss"]) == ("claim", 3, "lab3-bce", "bce")

    assert start_queue(*lines) == []
    (tmp_path / "run-R.json").unlink()
    assert start_queue(*lines, flags=("--only", "R", "--splits", "test")) == ["evaluate"] * 2  # it is trained
    with pytest.raises(UserError, match=r"run-R.json is of another run than R of the queue: epochs 2 \(asked 3\)"):
        start_queue("R 1 --model R --epochs 3")
    (tmp_path / "run-R.json").unlink()
    with pytest.raises(UserError, match=r"R_epoch_final.pth is of another run than R of the queue: not the data of"):
        start_queue(f"R 1 --model R --epochs 2 --data_path {pets}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("R 1 --modl R", "line 3 is not NAME MINUTES and flags of train.py: R 1 --modl R"),
        ("R --model R", "line 3 is not NAME MINUTES"),
        ("R", "line 3 is not NAME MINUTES"),
        ("R 1 --model R --seeds 0 1", "R of the queue: its flags cannot name"),
        ("R 1 --model R --overwrite", "R of the queue: its flags cannot name"),
        ("R 1 --model R\nR 2 --model R --epochs 3", "line 4: R is there twice"),
        ("R 1 --model R --data_path nowhere", "no data set at nowhere"),
    ],
)
def test_a_wrong_line_is_named_before_anything_runs(
    start_queue: Callable[..., list[str]], line: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        start_queue(line)


def test_an_interrupted_training_is_resumed(
    start_queue: Callable[..., list[str]], tiny_network: None, at_step: Callable[..., None], tmp_path: Path
) -> None:
    line = "R 1 --model R --epochs 3"
    at_step(4, terminate)  # the first of the second epoch
    with pytest.raises(SystemExit):
        start_queue(line)
    before = read_history(tmp_path / "R" / "R_history.csv")
    assert len(before) == 1
    assert start_queue(line) == ["train --resume", *["evaluate"] * 4]
    history = json.loads((tmp_path / "run-R.json").read_text())["history"]
    assert len(history) == 3
    assert history[0]["seconds"] == pytest.approx(before[0]["seconds"], abs=1e-5)  # what the minutes are summed of


def test_a_stop_is_passed_on_once_and_starts_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    code = f"""
import pathlib
from plumbing.stop import StopSignal
with StopSignal() as stop:  # a second signal would kill
    pathlib.Path({str(ready)!r}).touch()
    while not stop.number: pass
pathlib.Path({str(saved)!r}).touch()"""

    class Stop(StopSignal):
        number = property(lambda _: signal.SIGINT if ready.exists() else 0, lambda *_: None)

    monkeypatch.setenv("PYTHONPATH", str(REPO / "src"))
    assert study.call([sys.executable, "-c", code], Stop())
    assert saved.exists()
    assert not study.call([sys.executable, "-c", code], Stop())


def test_the_queue_files_have_what_the_page_compares(drawn_pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "find_root", lambda _: drawn_pets)
    entries = [entry for path in (REPO / "benchmarks").glob("*.txt") for entry in study.read_queue(path)]
    systems = {entry.system for entry in entries}
    assert {system for pair in study.COMPARISONS for system in pair} - {"mean-mask"} <= systems
    assert set(study.REPORTED) <= systems


# ---------------------------------------------------------------------------------------------- the page


def test_the_page_has_the_rows_and_keeps_what_is_written_by_hand(tmp_path: Path) -> None:
    rng, page = np.random.default_rng(0), tmp_path / "STUDY.md"
    dice = {("cpu-R", 0): rng.random(50), ("cpu-R", 1): rng.random(50), ("lab2-R", 0): rng.random(50) - 0.5}
    for index, ((system, seed), values) in enumerate(dice.items()):
        epochs = 4 - index  # the last run is the shortest
        history = [{"epoch": n + 1.0, "seconds": 60.0, "valid_dice": 0.1 * n + 0.05} for n in range(epochs)]
        scores = {"dice": {"test": values.mean()}, "iou_set": {}, "boundary_f": {}, "perimeter_ratio": {}}
        row = {"system": system, "seed": seed, "image_size": 32, "data": "d", "epochs": epochs, "minutes": epochs}
        row |= {"threads": 1, "images_per_second": 9.0, "history": history, "test_dice": list(values)}
        study.write_json(tmp_path / f"run-{system}-seed{seed}.json", row | scores)
    page.write_text(f"old\n{study.MARKER}\n\nBy hand.\n")
    study.main(["--results", str(tmp_path), "--page", str(page)])
    text = page.read_text()
    assert text.endswith(f"{study.MARKER}\n\nBy hand.\n")
    assert "old" not in text
    mean = (dice["cpu-R", 0].mean() + dice["cpu-R", 1].mean()) / 2
    assert f"| cpu-R | 2 | 4 | 3.5 (1) | 9.0 |  |  |  | {mean:.4f} |" in text
    gain = difference(dice["cpu-R", 0], dice["lab2-R", 0])  # over the seed that both have
    interval = f"{gain['mean']:+.4f} | {gain['low']:+.4f} to {gain['high']:+.4f}"
    assert f"| cpu-R less lab2-R | {interval} | above | 1 | 4 and 2 | " in text
    assert "| 4 and 2 | 0.1500 and 0.1500 |" in text
    assert (tmp_path / "study-curves.png").stat().st_size > 1000


def test_scores_by_size_of_the_pet(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).permutation(11) / 20  # 3 images in the first fifth, 2 in each other
    row = {"seed": 0, "data": "d", "image_size": 32, "epochs": 0, "history": []}
    dice, boundary = 1 - sizes, sizes
    scores = {"test_dice": list(dice), "test_boundary_f": list(boundary)}
    runs = {"a": {0: row | scores, 1: row | {"test_dice": list(dice - 0.2), "test_boundary_f": list(boundary)}}}
    runs |= {"b": {0: row | {"test_dice": list(dice)}}, "elsewhere": {0: row | scores | {"data": "other"}}}
    assert study.size_table(runs) == []
    runs["mean-mask"] = {0: row | {"test_dice": list(dice), "test_sizes": list(sizes)}}
    title, _, *lines = study.size_table(runs)
    assert title == (
        "| system | score | smallest, to 10% | small, to 20% | middle, to 30% | large, to 40% | largest, to 50% |"
    )
    assert lines == [
        "| a | Dice | 0.8500 | 0.7250 | 0.6250 | 0.5250 | 0.4250 |",
        "| a | boundary F | 0.0500 | 0.1750 | 0.2750 | 0.3750 | 0.4750 |",
        "| b | Dice | 0.9500 | 0.8250 | 0.7250 | 0.6250 | 0.5250 |",
        "| mean-mask | Dice | 0.9500 | 0.8250 | 0.7250 | 0.6250 | 0.5250 |",
    ]
    runs |= {"cpu-R": runs["a"], "cpu-U": {0: row | {"test_dice": list(dice - 0.3)}}}
    assert study.size_table(runs)[-1] == (
        "| cpu-R less cpu-U | Dice |" + " +0.3000 (+0.3000 to +0.3000) |" * 5  # over the seed that both have
    )
    assert study.compare(runs, "a", "b", "test_boundary_f") is None
    difference = study.compare(
        {"a": runs["a"], "b": {0: row | {"test_boundary_f": list(dice)}}}, "a", "b", "test_boundary_f"
    )
    assert difference["mean"] == pytest.approx((boundary - dice).mean())


def test_mean_mask_against_numpy(drawn_pets: Path, tmp_path: Path) -> None:
    mean_mask.main(["--data_path", str(drawn_pets), "--image_size", "32", "--results", str(tmp_path)])
    row = json.loads((tmp_path / "run-mean-mask.json").read_text())
    target = {mode: (load_split(drawn_pets, mode, 32).pixels[..., 3] != 2).numpy() for mode in ("train", "test")}
    mask = target["train"].mean(0) > row["threshold"]
    dice = {m: 2 * (mask & t).sum((1, 2)) / (mask.sum() + t.sum((1, 2))) for m, t in target.items()}
    assert row["dice"]["train"] == pytest.approx(dice["train"].mean(), abs=2e-3)
    np.testing.assert_allclose(row["test_dice"], dice["test"], atol=5e-3)
    np.testing.assert_allclose(row["test_sizes"], target["test"].mean((1, 2)), atol=1e-4)
    assert row["pet_in_the_middle_ninth"] > row["pet_in_the_outer_eighths"]


# ---------------------------------------------------------------------------------------------- speed and peers


def test_networks_are_counted_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "NETWORKS", ["lab2.UNet", "SegFormer"])
    networks.main(["--image_size", "32", "--results", str(tmp_path)])
    rows = json.loads((tmp_path / "networks-32.json").read_text())["networks"]
    assert rows["lab2.UNet"]["parameters"] == 92_161
    assert rows["lab2.UNet"]["gmacs"] == pytest.approx(3.406 / 64, abs=1e-3)  # convolutions only: by the pixels
    assert all(0 < row["milliseconds_a_photo"] < 10_000 for row in rows.values())


@pytest.fixture
def quick_speed(tiny_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ceilings_of", lambda *_: roofline.Ceilings(1e12, 1e12))
    monkeypatch.setattr(speed, "peak_memory", lambda *_: 1_500_000_000)


def test_contenders_take_turns_and_are_recorded(
    quick_speed: None, drawn_pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--image_size", "32", "--images", "6", "--batch_size", "3", "--predict_batch", "3", "--repeats", "2"]
    flags += ["--data_path", str(drawn_pets), "--device", "cpu", "--results", str(tmp_path), "--models", "R"]
    speed.main([*flags, "--what", "step", "train", "data", "infer", "--against", "plain", "fp32"])
    said = capsys.readouterr().out
    reports = {what: json.loads((tmp_path / f"{what}-cpu.json").read_text()) for what in speed.WHAT[:4]}
    for what, report in reports.items():
        assert {"machine", "threads", "versions", "commit", "command"} <= report.keys()
        assert str(drawn_pets) not in json.dumps(report)  # no paths of the machine
        rows = next(iter(report["rows"].values()))
        assert sum(row["times_as_fast_ours"] == 1 for row in rows.values()) == (
            2 if what == "infer" else 1
        )  # the bases
        for name, row in rows.items():
            assert len(row["seconds_per_image"]) == 2
            assert f"| {name} | {row['images_per_second']:,.1f} | {row['times_as_fast_ours']:.2f} | " in said
    step = reports["step"]["rows"]["ResNet34_UNet"]
    assert step.keys() == {"ours", "fp32", "plain"}
    assert f" | {step['ours']['fraction_of_roofline']:.2f} | 1.5 |" in said
    speed.main([*flags, "--what", "train", "--memory_of", "ours"])
    assert int(capsys.readouterr().out) > 1e8 or sys.platform != "linux"


def test_kernels_are_counted_by_hand() -> None:
    """A convolution of 3 to 8 channels with a 3x3 window on 2 images of 16x16, forward and backward, and its ReLU."""
    convolution, images = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.randn(2, 3, 16, 16)
    counted = roofline.count_kernels(lambda: convolution(images).relu().sum().backward())
    kernels = {kernel.name: kernel for kernel in counted}
    pixels, weights = 2 * 16 * 16, 8 * 3 * 9
    operations, inputs, outputs = 2 * pixels * weights, 4 * 3 * pixels, 4 * 8 * pixels
    assert kernels["convolution"] == roofline.Kernel("convolution", operations, inputs + outputs + 4 * weights)
    # the images need no gradient: one product, that of the weights
    assert kernels["convolution_backward"].operations == operations
    assert kernels["convolution_backward"].bytes == outputs + inputs + 4 * weights + 4 * weights
    assert kernels["relu"] == roofline.Kernel("relu", 0, 2 * outputs)
    ceilings = roofline.Ceilings(operations=1e6, bytes=1e9)
    shortest = roofline.shortest_seconds([kernels["convolution"], kernels["relu"]], ceilings)
    assert shortest == pytest.approx(operations / 1e6 + 2 * outputs / 1e9)


def test_the_plain_loop_learns(tiny_network: None, drawn_pets: Path) -> None:
    loop = peers.PlainLoop("UNet", drawn_pets, image_size=32, batch_size=6)
    losses = [loop.train_one_epoch() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert loop.logits(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(("network", "uses"), [(lab3.ResNet34UNet, {1, 2}), (peers.OwnNorms, {1})])
def test_own_norms_share_no_batchnorm(network: type[torch.nn.Module], uses: set[int]) -> None:
    model, calls = network(), Counter()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(lambda norm, *_: calls.update([norm]))
    model(torch.zeros(2, 3, 64, 64))
    assert len(calls) == len(norms)
    assert set(calls.values()) == uses


def state_of_choice(recipe: str, network: str, data: Path) -> engine.TrainingState:
    config = replace(choices.CHOICE_RECIPES[recipe](network), image_size=32, batch_size=4, progressive=())
    split = load_split(data, "train", 32)
    return create_state(config, torch.device("cpu"), split, split)


def loss_of_step(state: engine.TrainingState, step: Callable[..., torch.Tensor]) -> float:
    """The loss of the same step each time: the state's weights and generator are put back after it."""
    plan = draw_epoch(state.config.augmentation, len(state.train), 4, 0, state.epoch + 1)
    weights = {name: value.clone() for name, value in state.model.state_dict().items()}
    torch.manual_seed(0)
    state.model.train()
    loss = step(state, state.train.pixels[plan.order[:4]], plan.theta[:4], plan.colour[:4])
    state.model.load_state_dict(weights)
    return float(loss)


@pytest.mark.parametrize(
    ("recipe", "network", "epoch"),
    [("choice-breeds", "choice.WithBreeds", 0), ("choice-distil", "ResNet34_UNet_small", 1)],
)
def test_a_further_loss_is_added_to_the_step(recipe: str, network: str, epoch: int, drawn_pets: Path) -> None:
    state = state_of_choice(recipe, network, drawn_pets)
    state.epoch, before = epoch, (state.forward, state.criterion)
    plain, with_further = (loss_of_step(state, step) for step in (choices.plain_step, choices.train_step))
    assert with_further > plain + 1e-3
    assert (state.forward, state.criterion) == before
    state.config = replace(state.config, recipe="choice-none")
    assert loss_of_step(state, choices.train_step) == pytest.approx(plain)


def test_smaller_images_are_means_over_pixels(drawn_pets: Path) -> None:
    images, trimaps, still = torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32).byte(), torch.eye(2, 3).repeat(2, 1, 1)
    small, _ = choices.mean_warp(images, trimaps, still, 8)
    torch.testing.assert_close(small, images.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2)))
    state = state_of_choice("choice-mean-pixels", "ResNet34_UNet_small", drawn_pets)
    assert loss_of_step(state, choices.train_step) == pytest.approx(loss_of_step(state, choices.plain_step))
    state.config = replace(state.config, image_size=64, progressive=((1.0, 2),))  # 64 pixels would be 32
    state.train = load_split(drawn_pets, "train", 64)
    assert loss_of_step(state, choices.train_step) != loss_of_step(state, choices.plain_step)


def test_breeds_are_those_of_the_batch() -> None:
    names = ("Abyssinian_1", "great_pyrenees_10", "Abyssinian_2", "Bengal_3")
    assert choices.breeds(names).tolist() == [0, 2, 0, 1]
    with pytest.raises(UserError, match="of 38 breeds"):
        choices.breeds(tuple(f"breed{number}_1" for number in range(38)))


@pytest.mark.parametrize("network", choices.CHOICE_NETWORKS)
def test_a_variant_has_the_size_of_its_input_and_folds(network: str) -> None:
    model = choices.CHOICE_NETWORKS[network]()
    images = torch.zeros(2, 3, 64, 64)
    outputs = model.train()(images)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    assert {logits.shape for logits in outputs} == {(2, 1, 64, 64)}
    config = replace(RECIPES["cpu"](network), precision="fp32")
    folded = Predictor({"config": config, "model": model.state_dict()}, torch.device("cpu"))
    assert folded.logits(images).shape == (2, 1, 64, 64)


def test_losses_of_the_choices() -> None:
    logits, target = torch.randn(3, 1, 8, 8), torch.rand(3, 1, 8, 8) > 0.5
    weight = torch.ones_like(target)
    bce, both = (LOSSES[name](logits, target, weight) for name in ("bce", "bce_dice"))
    torch.testing.assert_close(choices.dice_3_loss(logits, target, weight), bce + 3 * (both - bce))
    even = torch.ones_like(target)
    torch.testing.assert_close(
        choices.soft_boundary_loss(logits, even, weight), LOSSES["bce_dice"](logits, even, weight)
    )
    assert choices.soft_boundary_loss(logits, target, weight) != both


def test_the_table_of_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    base = rng.random((2, 40)) / 2
    about = {"machine": "m", "versions": {}, "commit": "c", "threads": 1, "epochs": 20, "minutes": 10.04}
    gains = {"choice-none": 0.0, "choice-breeds": 0.01, "choice-no-ema": -0.1, "choice-ema-100": 0.002}
    for recipe, gain in gains.items():
        for seed, dice in enumerate(base if recipe != "choice-no-ema" else base[:1]):
            name = f"run-{recipe}.json" if seed == 0 else f"run-{recipe}-seed{seed}.json"
            network = "choice.WithBreeds" if recipe == "choice-breeds" else "ResNet34_UNet"
            row = {"recipe": recipe, "seed": seed, "validation_dice": list(dice + gain), "config": {"network": network}}
            study.write_json(tmp_path / name, about | row)
    choices.main([str(tmp_path), "--output", str(tmp_path / "choices.json")])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines[0].startswith("| ResNet34_UNet | the breed as an auxiliary target | 20 | 10.0 and 10.0 | ")
    assert lines[0].endswith("| +0.0100 (+0.0100 to +0.0100) | +0.0100 and +0.0100 | kept |")
    assert lines[1].endswith("| +0.0020 and +0.0020 | above |")
    assert lines[3].endswith("| -0.1000 (-0.1000 to -0.1000) | -0.1000 | below |")
    kept = json.loads((tmp_path / "choices.json").read_text())
    order = [
        f"ResNet34_UNet {recipe}" for recipe in ("choice-breeds", "choice-ema-100", "choice-none", "choice-no-ema")
    ]
    assert list(kept)[4:] == order
    assert kept[order[3]]["seeds"] == [0]
    (tmp_path / "run-choice-none.json").unlink()
    (tmp_path / "run-choice-none-seed1.json").unlink()
    with pytest.raises(UserError, match="no row of choice-none for ResNet34_UNet"):
        choices.main([str(tmp_path)])


def test_smp_runs_through_our_predictor() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    config = RECIPES["cpu"](speed.SMP)
    predictor = Predictor({"config": config, "model": NETWORKS[speed.SMP]().state_dict()}, torch.device("cpu"))
    assert predictor.logits(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in predictor.model.modules())  # folded


# ---------------------------------------------------------------------------------------------- all of a GPU


def test_every_part_is_done_once_in_order_and_recorded(
    quick_speed: None,
    drawn_pets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    called = []

    def run_for(seconds: float, command: list[object]) -> str:
        script, *flags = (str(word) for word in command)
        called.append(Path(script).stem)
        if script == "-m":
            return "25 passed in 61.0s\n"
        capsys.readouterr()
        {"train": train.main, "speed": speed.main, "study": study.main}[called[-1]](flags)
        return capsys.readouterr().out

    def call(command: list[str], stop: StopSignal) -> bool:
        at = next(index for index, part in enumerate(command) if part.startswith("--"))
        {"train": train.main, "evaluate": evaluate.main}[Path(command[at - 1]).stem](command[at:])
        return True

    for owner, name, value in (
        (gpu, "run_for", run_for),
        (gpu, "PEERS", ("plain",)),
        (gpu, "read_history", lambda _: [{"images_per_second": 1e-3}]),  # for a single epoch
        (study, "call", call),
        (train, "draw_curves", lambda _, path: path.touch()),
        (speed, "largest_costs", lambda _: []),
        (speed, "compile_forward", lambda _: None),
    ):
        monkeypatch.setattr(owner, name, value)
    flags = ["--data_path", str(drawn_pets), "--sizes", "32", "64", "--images", "16", "--dice", "0.000001"]
    flags += ["--device", "cpu", "--save_path", str(tmp_path / "runs"), "--results", str(tmp_path)]
    gpu.main([*flags, "--minutes", "0.01"])
    assert not called
    assert "left: tests, step, run-R-32, run-R-64, fast-R, train, " in capsys.readouterr().out
    gpu.main([*flags, "--minutes", "999"])
    said = capsys.readouterr().out
    assert called[:6] == ["-m", "speed", "train", "study", "train", "study"]
    assert said.endswith("left: nothing\n")
    assert "\nfast-R: validation Dice 1e-06 reached after 1 epoch, " in said
    assert "| lab3-U-64-cpu | 1 | " in said
    names = {path.name for path in tmp_path.glob("*-cpu.json")}
    assert names >= {"tests-cpu.json", "train-cpu.json", "infer-cpu.json", "fast-U-cpu.json", "run-U-64-cpu.json"}
    done = len(called)
    gpu.main([*flags, "--minutes", "999"])
    assert len(called) == done


def test_a_part_that_takes_too_long_is_stopped_and_failed_tests_are_not_done() -> None:
    code = "import signal, sys; print('at', flush=True); signal.sigwait([signal.SIGTERM]); print('saved')"
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); " + code
    assert gpu.run_for(2.0, ["-c", code]) == "at\nsaved\n"
    for output, passed in (("..\n12 passed, 1 skipped in 3.1s\n", True), ("1 failed, 11 passed in 3.1s\n", False)):
        assert bool(re.search(gpu.PASSED, output, re.MULTILINE)) == passed
    for output in ("11 passed, 1 error in 3.1s\n", "12 skipped in 0.1s\n"):
        assert not re.search(gpu.PASSED, output, re.MULTILINE)
