"""The benchmark scripts on tiny data: the queue and its rows, the study's page, speed, peers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import REPO, UserError
from plumbing.stop import StopSignal

import numpy as np
import pytest
import torch
from conftest import Train, terminate

import distill
import evaluate
import gpu
import networks
import peers
import readme_picture
import roofline
import soak
import speed
import study
import train
from checkpoint import checkpoint_path, load_checkpoint
from metrics import paired_difference_ci
from models import NETWORKS, lab3
from predictor import Predictor
from recipes import RECIPES
from report import read_history
from split import load_split
from study_page import COMPARISONS, MARKER, REPORTED, size_table


@pytest.fixture(autouse=True)
def known_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered for one test only."""
    for name, build in peers.PEER_NETWORKS.items():
        monkeypatch.setitem(NETWORKS, name, build)


@pytest.mark.parametrize("script", [distill, gpu, networks, peers, readme_picture, soak, speed, study])
def test_help_is_shown(script, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        script.main(["--help"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


# ---------------------------------------------------------------------------------------------- the queue


@pytest.fixture
def start_queue(drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``study.main --queue`` on lines, each script called in this process; returns what was called."""

    def start(*lines: str, flags: tuple[str, ...] = ()) -> list[str]:
        called = []

        def call(command: list[str], stop: StopSignal) -> bool:
            at = next(index for index, part in enumerate(command) if part.startswith("--"))
            script = Path(command[at - 1]).stem
            called.append(script + " --resume" * ("--resume" in command))
            {"train": train.main, "evaluate": evaluate.main}[script](command[at:])
            return True

        monkeypatch.setattr(study, "call", call)
        queue = tmp_path / "queue.txt"
        queue.write_text(f"--data_path {drawn_pets} --image_size 32 --batch_size 8 # for all\n\n" + "\n".join(lines))
        study.main(["--queue", str(queue), "--save_path", str(tmp_path), "--results", str(tmp_path), *flags])
        return called

    return start


def test_a_queue_is_trained_scored_and_recorded(
    start_queue: Callable[..., list[str]], tiny_network: None, tmp_path: Path
) -> None:
    lines = ["R 1 --model R --epochs 2", "claim 0.5 --model R --recipe lab3 --loss bce --epochs 1 --seed 3"]
    assert start_queue(*lines) == ["train", *["evaluate"] * 4] * 2
    row, history = json.loads((tmp_path / "run-R.json").read_text()), read_history(tmp_path / "R" / "R_history.csv")
    scores = json.loads((tmp_path / "R" / "R_test_scores_flip.json").read_text())
    assert row["dice"].keys() == row["boundary_f"].keys() == {"validation", "validation_flip", "test", "test_flip"}
    assert row["dice"]["test_flip"] == pytest.approx(scores["dice_original"], abs=1e-5)  # inputs may differ in size
    assert (row["system"], row["seed"], row["epochs"], row["image_size"], len(row["test_dice"])) == ("R", 0, 2, 32, 20)
    assert row["minutes"] == round(sum(epoch["seconds"] for epoch in history) / 60, 1)
    assert {"recipe", "threads", "iou_set", "versions", "machine", "commit", "dice_by_boundary"} <= row.keys()
    assert {path.name for path in (tmp_path / "R").glob("*.pth")} == {"R_best.pth", "R_epoch_final.pth"}
    claim = json.loads((tmp_path / "run-claim-seed3.json").read_text())
    assert (claim["system"], claim["seed"], claim["recipe"], claim["config"]["loss"]) == ("claim", 3, "lab3", "bce")

    assert start_queue(*lines) == []
    (tmp_path / "run-R.json").unlink()
    assert start_queue(*lines, flags=("--only", "R", "--splits", "test")) == ["evaluate"] * 2  # it is trained
    for found in ("run-R.json", "R_epoch_final.pth"):
        with pytest.raises(UserError, match=rf"{found} is of another run than R of the queue: epochs 2 \(asked 3\)"):
            start_queue("R 1 --model R --epochs 3")
        (tmp_path / "run-R.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("R 1 --modl R", "line 3 is not NAME MINUTES and flags of train.py: R 1 --modl R"),
        ("R --model R", "line 3 is not NAME MINUTES"),
        ("R 1 --model R --overwrite", "R of the queue: its flags cannot say how the run starts"),
        ("R 1 --model R\nR 2 --model R --epochs 3", "line 4: R is there twice"),
    ],
)
def test_a_wrong_line_is_named(start_queue: Callable[..., list[str]], line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start_queue(line)


def test_an_interrupted_training_is_resumed(
    start_queue: Callable[..., list[str]], tiny_network: None, at_step: Callable[..., None], tmp_path: Path
) -> None:
    at_step(4, terminate)  # the first of the second epoch
    with pytest.raises(SystemExit):
        start_queue("R 1 --model R --epochs 3")
    assert start_queue("R 1 --model R --epochs 3") == ["train --resume", *["evaluate"] * 4]
    assert len(json.loads((tmp_path / "run-R.json").read_text())["history"]) == 3


def test_a_stop_is_passed_on_and_starts_nothing_more(tmp_path: Path) -> None:
    stop, ready, stopped = StopSignal(), tmp_path / "ready", tmp_path / "stopped"
    code = "import pathlib, signal, sys; signal.signal(2, lambda *_: (pathlib.Path(sys.argv[2]).touch(), sys.exit()))"
    code += "; pathlib.Path(sys.argv[1]).touch(); signal.pause()"

    class Stop(StopSignal):
        number = property(lambda _: 2 * ready.exists(), lambda *_: None)

    assert study.call([sys.executable, "-c", code, str(ready), str(stopped)], Stop())
    assert stopped.exists()
    stop.number = 2
    assert not study.call([sys.executable, "-c", "raise"], stop)


def test_the_queues_have_the_runs_that_are_compared_or_measured(
    drawn_pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "find_root", lambda _: drawn_pets)
    entries = [entry for path in (REPO / "benchmarks").glob("*.txt") for entry in study.read_queue(path)]
    systems = {entry.system for entry in entries} | {"mean-mask", "cpu-R-9-full-size", "cpu-R-15-mean-pixels"}
    assert {system for pair in COMPARISONS for system in pair} | REPORTED.keys() <= systems
    assert {command[-1] for command in gpu.COMMANDS.values() if gpu.STUDY[0] in command} <= systems


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
    page.write_text(f"By hand.\n\n{MARKER}\n\nold\n")
    study.main(["--results", str(tmp_path), "--page", str(page)])
    text = page.read_text()
    assert text.startswith(f"By hand.\n\n{MARKER}\n\n")
    assert "old" not in text
    mean = (dice["cpu-R", 0].mean() + dice["cpu-R", 1].mean()) / 2
    assert f"| cpu-R | 2 | 4 | 3.5 (1) | 9.0 |  |  |  | {mean:.4f} |" in text
    gain = paired_difference_ci(dice["cpu-R", 0], dice["lab2-R", 0])  # over the seed that both have
    interval = f"{gain['mean']:+.4f} | {gain['low']:+.4f} to {gain['high']:+.4f}"
    assert f"| cpu-R - lab2-R | {interval} | above | 1 | 4 and 2 | 0.1500 and 0.1500 |" in text
    assert (tmp_path / "study-curves.png").stat().st_size > 1000


def test_scores_by_size_of_the_pet() -> None:
    sizes = np.random.default_rng(0).permutation(10) / 20  # two images in each fifth
    row = {"seed": 0, "data": "d", "test_dice": list(1 - sizes)}
    runs = {"cpu-R": {0: row}, "cpu-U": {0: row | {"test_dice": list(0.7 - sizes)}}}
    assert size_table(runs) == []
    runs |= {"elsewhere": {0: row | {"data": "other"}}, "mean-mask": {0: row | {"test_sizes": list(sizes)}}}
    title, _, *lines = size_table(runs)
    assert (
        title
        == "| system | score | smallest, to 5% | small, to 15% | middle, to 25% | large, to 35% | largest, to 45% |"
    )
    assert lines == [
        "| cpu-R | Dice | 0.9750 | 0.8750 | 0.7750 | 0.6750 | 0.5750 |",
        "| cpu-U | Dice | 0.6750 | 0.5750 | 0.4750 | 0.3750 | 0.2750 |",
        "| mean-mask | Dice | 0.9750 | 0.8750 | 0.7750 | 0.6750 | 0.5750 |",
        "| cpu-R - cpu-U | Dice |" + " +0.3000 (+0.3000 to +0.3000) |" * 5,
    ]


# ---------------------------------------------------------------------------------------------- speed and peers


def test_networks_are_counted_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "NETWORKS", ["lab2.UNet"])
    networks.main(["--image_size", "32", "--results", str(tmp_path)])
    row = json.loads((tmp_path / "networks-32.json").read_text())["networks"]["lab2.UNet"]
    assert row["parameters"] == 92_161
    assert row["gmacs"] == pytest.approx(3.406 / 64, abs=1e-3)  # convolutions only: by the pixels
    assert row["milliseconds_a_photo"] > 0


def test_contenders_take_turns_and_are_recorded(
    tiny_network: None, drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(speed, "ceilings_of", lambda *_: roofline.Ceilings(1e12, 1e12))
    monkeypatch.setattr(speed, "peak_memory", lambda *_: 1_500_000_000)
    flags = ["--image_size", "32", "--images", "6", "--batch_size", "3", "--predict_batch", "3", "--repeats", "2"]
    flags += ["--data_path", str(drawn_pets), "--device", "cpu", "--results", str(tmp_path), "--models", "R"]
    speed.main([*flags, "--against", "plain", "fp32"])
    said = capsys.readouterr().out
    rows = {
        what: json.loads((tmp_path / f"{what}-cpu.json").read_text())["rows"]["ResNet34_UNet"] for what in speed.WHAT
    }
    for what, named in rows.items():
        bases = sum(row["times_as_fast_ours"] == 1 for row in named.values())
        assert bases == (2 if what == "infer" else 1)
        for name, row in named.items():
            assert len(row["seconds_per_image"]) == 2
            assert f"| {name} | {row['images_per_second']:,.1f} | {row['times_as_fast_ours']:.2f} | " in said
    assert rows["step"].keys() == {"ours", "fp32", "plain"}
    assert f" | {rows['step']['ours']['fraction_of_roofline']:.2f} | 1.5 |" in said
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
    backward = roofline.Kernel("convolution_backward", operations, outputs + inputs + 8 * weights)
    assert kernels["convolution_backward"] == backward
    assert kernels["relu"] == roofline.Kernel("relu", 0, 2 * outputs)
    ceilings = roofline.Ceilings(operations=1e6, bytes=1e9)
    shortest = roofline.shortest_seconds([kernels["convolution"], kernels["relu"]], ceilings)
    assert shortest == pytest.approx(operations / 1e6 + 2 * outputs / 1e9)


def test_own_norms_share_no_batchnorm() -> None:
    for network, most in ((lab3.ResNet34UNet, 2), (peers.OwnNorms, 1)):
        model, calls = network(), []
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.register_forward_hook(lambda norm, *_, calls=calls: calls.append(norm))
        model(torch.zeros(2, 3, 64, 64))
        assert max(map(calls.count, calls)) == most


def test_smp_runs_through_our_predictor() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    config = RECIPES["cpu"](speed.SMP)
    predictor = Predictor({"config": config, "model": NETWORKS[speed.SMP]().state_dict()}, torch.device("cpu"))
    assert predictor.logits(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in predictor.model.modules())  # folded


def test_gpu_commands_run_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    called = []

    def run_for(seconds: float, command: tuple[str, ...]) -> bool:
        called.append(command[-1])
        if command in gpu.COMMANDS.values():
            name = next(name for name, one in gpu.COMMANDS.items() if one == command)
            (tmp_path / name.replace("GPU", "cpu")).touch()
        return True

    for name, value in (("run_for", run_for), ("RESULTS", tmp_path), ("find_root", lambda _: None)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "choose_device", lambda _: torch.device("cpu"))
    gpu.main([])
    assert called == [gpu.TESTS[-1], *(command[-1] for command in gpu.COMMANDS.values())]
    gpu.main([])
    assert called[len(gpu.COMMANDS) + 1 :] == [gpu.TESTS[-1]]
    assert capsys.readouterr().out.endswith("left: nothing\n")


def test_a_student_learns_from_the_teachers_view_of_the_batch(
    run_train: Train, drawn_pets: Path, tmp_path: Path
) -> None:
    run_train("--epochs", 2, "--name", "teacher", "--image_size", 64)
    teacher = checkpoint_path(tmp_path, "teacher", "best")
    flags = ["--model", "R", "--data_path", drawn_pets, "--image_size", 32, "--batch_size", 4, "--epochs", 2]
    flags = [str(flag) for flag in (*flags, "--save_path", tmp_path, "--name")]
    distill.main(["--teacher", str(teacher), *flags, "student"])
    train.main([*flags, "plain"])
    states = [load_checkpoint(checkpoint_path(tmp_path, name, "final")) for name in ("student", "plain")]
    assert states[0]["config"] == states[1]["config"]
    assert not torch.equal(states[0]["model"]["3.weight"], states[1]["model"]["3.weight"])

    student, split = distill.Student.__new__(distill.Student), load_split(drawn_pets, "valid", 64)
    student.teacher = Predictor(teacher, "cpu")
    identity, colour = torch.eye(2, 3).expand(2, 2, 3), torch.tensor([[1.0, 0.0]] * 2)
    probs = student.ask_teacher(split.pixels[:2], identity, colour, 64)
    expected = student.teacher.logits(split.pixels[:2, ..., :3].permute(0, 3, 1, 2).float()).sigmoid()
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-5)
    assert student.ask_teacher(split.pixels[:2], identity, colour, 32).shape == (2, 1, 32, 32)
