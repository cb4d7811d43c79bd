"""What makes it fast, guarded without timing anything."""

import dataclasses
import itertools
import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import oxford_pet
import peers
import roofline
import speed
import train
from cli import REPO, StopSignal
from oxford_pet import read_split
from recipes import RECIPES


@pytest.fixture
def prepare(drawn_pets: Path, tmp_path: Path) -> Callable[..., train.Run]:
    """A run that could begin: 18 images of 32x32 in batches of 6, 3 steps an epoch."""

    def call(*flags: str) -> train.Run:
        small = [
            "--image_size",
            "32",
            "--batch_size",
            "6",
            "--data_path",
            str(drawn_pets),
            "--save_path",
            str(tmp_path),
        ]
        return train.prepare(train.parse_args(["--model", "R", *small, *flags]))

    return call


class Waits(TorchDispatchMode):
    """Counts where the host reads a number from the device: .item(), float(), bool()."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> object:
        aten = torch.ops.aten
        waiting = (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default, aten.equal.default)
        self.count += function in waiting
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("flags", [[], ["--recipe", "lab3"]])
def test_the_host_waits_once_an_epoch_and_never_in_a_step(
    prepare: Callable[..., train.Run], flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SECONDS_BETWEEN_LOOKS", 1e9)
    run = prepare(*flags)
    with Waits() as waits:
        train.train_one_epoch(run, train.CapturedStep(run), StopSignal())
    assert run.step == 3
    assert waits.count == 1  # the look at the epoch's end
    with Waits() as waits:
        float(torch.ones(1))
    assert waits.count == 1  # it does count


def test_every_picture_is_decoded_once_a_run(
    tiny_network: None, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str] = Counter()
    decode = oxford_pet.decode_bgr
    monkeypatch.setattr(oxford_pet, "decode_bgr", lambda path: (decoded.update([path.stem]), decode(path))[1])
    flags = ["--model", "R", "--data_path", str(pets), "--image_size", "32", "--save_path", str(tmp_path)]
    train.main([*flags, "--epochs", "2"])
    assert decoded == Counter([*read_split(pets, "train"), *read_split(pets, "valid")])
    decoded.clear()
    train.main([*flags, "--epochs", "1", "--overwrite"])
    assert not decoded


MEMORY = """
import resource, sys, torch
from cli import choose_device
if sys.argv[1] == "kept":
    choose_device("cpu")
torch.set_num_threads(1)
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB, and freed
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """What is allocated again brings no new pages; without ``keep_freed_memory`` all its 16,384 are new."""
    faults = {}
    for what in ("kept", "given back"):
        command = [sys.executable, "-c", MEMORY, what]
        done = subprocess.run(command, cwd=REPO / "src", capture_output=True, text=True, check=True)
        faults[what] = int(done.stdout)
    assert faults["kept"] < 10
    assert faults["given back"] > 10 * (faults["kept"] + 1)  # so many at least, also where pages are huge: 2 MiB each


# ---------------------------------------------------------------------------------------------- the captured step


class FakeGraph:
    """What a CUDA graph does, as far as its user sees: capturing does nothing, replaying does what was captured."""

    def replay(self) -> None:
        self.replays += 1
        inputs, loss = self.captured
        loss.copy_(work(inputs))


def work(inputs: tuple[Tensor, ...]) -> Tensor:
    return sum(value.double().sum() for value in inputs)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Stand-ins for streams and graphs, on a machine without CUDA; the graphs that are captured."""
    graphs: list[FakeGraph] = []

    class Stream:
        def wait_stream(self, _: "Stream") -> None:
            pass

    @contextmanager
    def nothing(*_: object, **__: object):
        yield

    @contextmanager
    def capture(graph: FakeGraph, **_: object):
        graphs.append(graph)
        graph.replays = 0
        yield

    def train_step(run: train.Run, *inputs: Tensor) -> Tensor:
        if graphs and not hasattr(graphs[-1], "captured"):
            graphs[-1].captured = inputs, torch.full((), float("nan"), dtype=torch.float64)
            return graphs[-1].captured[1]
        return work(inputs)

    monkeypatch.setattr(train, "train_step", train_step)
    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": nothing,
        "graph": capture,
        "CUDAGraph": FakeGraph,
        "graph_pool_handle": object,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return graphs


def test_captured_step_warms_up_and_replays_what_it_is_given(
    prepare: Callable[..., train.Run], fake_cuda: list[FakeGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare()
    step = train.CapturedStep(run, enabled=True)
    for number in range(8):
        inputs = tuple(torch.rand(3) for _ in range(3))
        assert step(*inputs) == work(inputs)
        assert len(fake_cuda) == (number >= train.WARM_UP_STEPS)
    assert fake_cuda[0].replays == 8 - train.WARM_UP_STEPS
    monkeypatch.setattr(train.Run, "side", 16)  # another size of pictures is another graph
    for _ in range(8):
        inputs = tuple(torch.rand(3) for _ in range(3))
        assert step(*inputs) == work(inputs)
    assert [graph.replays for graph in fake_cuda] == [8 - train.WARM_UP_STEPS] * 2


def test_a_step_that_cannot_be_captured_goes_on_without(
    prepare: Callable[..., train.Run],
    fake_cuda: list[FakeGraph],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def refuse(*_: object, **__: object):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    step = train.CapturedStep(prepare(), enabled=True)
    for _ in range(8):
        inputs = tuple(torch.rand(3) for _ in range(3))
        assert step(*inputs) == work(inputs)
    assert capsys.readouterr().out.count("the step cannot be a CUDA graph") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("recipe", ["fast", "lab3"])
def test_captured_on_cuda_is_the_step_itself(
    drawn_pets: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights with and without the graph, at all sizes of pictures; and nothing in a replay waits."""
    ended = []
    monkeypatch.setattr(train, "SECONDS_BETWEEN_LOOKS", 1e9)
    for enabled in (False, True):
        flags = ["--model", "R", "--data_path", str(drawn_pets), "--image_size", "128", "--batch_size", "2"]
        flags += [
            "--recipe",
            recipe,
            "--epochs",
            "8",
            "--precision",
            "fp32",
            "--save_path",
            str(tmp_path / str(enabled)),
        ]
        run = train.prepare(train.parse_args(flags))
        began = torch.nn.utils.parameters_to_vector(run.model.parameters()).clone()
        step, done = train.CapturedStep(run, enabled), Counter()

        def watched(*inputs: Tensor, run=run, step=step, done=done) -> Tensor:
            done[run.side] += 1
            torch.cuda.set_sync_debug_mode("error" if done[run.side] > train.WARM_UP_STEPS + 1 else "default")
            try:
                return step(*inputs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        for run.epoch in range(8):
            run.step = 0
            train.train_one_epoch(run, watched, StopSignal())
        assert len(step.graphs) == (len(done) if enabled else 0)
        ended.append(torch.nn.utils.parameters_to_vector(run.model.parameters()))
    assert (ended[1] - ended[0]).norm() < 0.1 * (ended[0] - began).norm()


# ---------------------------------------------------------------------------------------------- the recipe fast


def test_fast_sees_small_pictures_first(
    tiny_network: None, drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = dataclasses.replace(
        RECIPES["fast"],
        networks=RECIPES["default"].networks,
        epochs=4,
        smaller_until=((0.25, 4), (0.5, 2)),
        batch_size=6,
    )
    monkeypatch.setitem(RECIPES, "fast", tiny)
    sides: list[int] = []
    normalise = train.Normalise.forward

    def spy(self: train.Normalise, images: Tensor) -> Tensor:
        sides.append(images.shape[-1])
        return normalise(self, images)

    monkeypatch.setattr(train.Normalise, "forward", spy)
    monkeypatch.setattr(train, "refresh_batchnorm", lambda run: None)
    flags = ["--model", "R", "--recipe", "fast", "--data_path", str(drawn_pets), "--image_size", "128"]
    train.main([*flags, "--save_path", str(tmp_path)])
    # 3 steps an epoch, then valid in one batch, at full size always
    assert [list(group) for _, group in itertools.groupby(sides)] == [[32] * 3, [128], [64] * 3, [128] * 9]


def test_stop_at_dice_ends_the_run_as_its_last_epoch(
    tiny_network: None, drawn_pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "R", "--data_path", str(drawn_pets), "--image_size", "32", "--save_path", str(tmp_path)]
    train.main([*flags, "--epochs", "5", "--stop_at_dice", "0.01"])
    said = capsys.readouterr().out
    assert "valid Dice 0.01 is reached after 1 epochs, " in said
    state = train.load_checkpoint(tmp_path / "R" / "R_epoch_final.pth")
    assert (state["epoch"], state["run"]["stop_at_dice"]) == (1, 0.01)
    assert [speed.reached(line)["epochs"] for line in said.splitlines() if speed.reached(line)] == [1]
    with pytest.raises(train.UserError, match=r"has reached --stop_at_dice 0.01.*--load_model_epoch final"):
        train.main([*flags, "--load_model_epoch", "last"])
    train.main([*flags, "--load_model_epoch", "final", "--stop_at_dice", "1", "--epochs", "2"])
    assert train.load_checkpoint(tmp_path / "R" / "R_epoch_final.pth")["epoch"] == 2


# ---------------------------------------------------------------------------------------------- what measures it


def test_kernels_are_counted_by_hand() -> None:
    """A convolution of 3 to 8 channels with a 3x3 window on 2 pictures of 16x16, forward and backward, and its ReLU."""
    convolution = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = torch.randn(2, 3, 16, 16)
    kernels = {
        kernel.name: kernel for kernel in roofline.count_kernels(lambda: convolution(images).relu().sum().backward())
    }
    pixels, weights = 2 * 16 * 16, 8 * 3 * 9
    operations = 2 * pixels * weights
    inputs, outputs = 4 * 3 * pixels, 4 * 8 * pixels
    assert kernels["convolution"] == roofline.Kernel("convolution", operations, inputs + outputs + 4 * weights)
    # the pictures need no gradient: one product, that of the weights
    assert kernels["convolution_backward"].operations == operations
    assert kernels["convolution_backward"].bytes == outputs + inputs + 4 * weights + 4 * weights
    assert kernels["relu"] == roofline.Kernel("relu", 0, 2 * outputs)
    assert kernels["threshold_backward"].bytes == 3 * outputs
    ceilings = roofline.Ceilings(operations=1e6, bytes=1e9)
    shortest = roofline.shortest_seconds([kernels["convolution"], kernels["relu"]], ceilings)
    assert shortest == pytest.approx(operations / 1e6 + 2 * outputs / 1e9)


def test_plain_loop_learns_what_ours_learns_from(tiny_network: None, drawn_pets: Path) -> None:
    loop = peers.PlainLoop("R", drawn_pets, side=32, batch_size=6)
    assert loop.train_one_epoch() == 18
    seconds, dice = zip(*loop.until(dice=0.99, epochs=3), strict=True)
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert all(0 < value < 1 for value in dice)
    image, mask = loop.valid[0]
    pixels = oxford_pet.load_split(drawn_pets, "valid", 32).pixels[0].numpy()
    assert image.shape == (3, 32, 32)
    assert (mask[0].bool().numpy() == (pixels[:, :, 3] != 2)).mean() > 0.97  # Pillow's nearest differs by half a pixel


def test_speed_script_writes_what_it_prints(drawn_pets: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, str(REPO / "benchmarks" / "speed.py"), "--what", "data", "--data_path", str(drawn_pets),
        "--image_size", "32", "--images", "8", "--repeats", "2", "--results", str(tmp_path), "--against", "",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(next(tmp_path.glob("data-*.json")).read_text())
    assert str(drawn_pets) not in json.dumps(report)  # no paths of the machine
    rows = report["rows"]["data"]
    assert len(rows) == 3
    for name, row in rows.items():
        assert len(row["seconds"]) == 2
        assert f"| {name} | {row['images_per_second']:,.1f} |" in done.stdout
