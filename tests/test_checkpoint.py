"""checkpoint.py: plain data in, the same out; complete files only; nothing but plain data is unpickled."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

from plumbing import files as atomic
from plumbing.cli import (
    UserError,
)

import numpy as np
import pytest
import torch

from checkpoint import HISTORY_COLUMNS, load_checkpoint, provenance, save_checkpoint
from models import NETWORKS, build_network
from predictor import SMALL_WEIGHTS
from recipes import RECIPES, Config

ROW = dict.fromkeys(HISTORY_COLUMNS, 0.5)


def contents() -> dict:
    """A checkpoint after one epoch; of few bytes, where the fixture tiny_network is used."""
    torch.manual_seed(0)
    return {
        "format": 2,
        "config": Config("lab2.UNet", image_size=64).to_dict(),
        "model": build_network("lab2.UNet").state_dict(),
        "data_path": "dataset/mine",
        "epoch": 1,
        "scores": ROW,
        "history": [ROW],
    }


def test_round_trip(tiny_network: None, tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.pth"
    save_checkpoint(path, contents() | provenance())
    loaded = load_checkpoint(path)
    assert loaded["config"] == Config("lab2.UNet", image_size=64)
    assert (loaded["epoch"], loaded["history"], loaded["data_path"]) == (1, [ROW], "dataset/mine")
    assert all(torch.equal(value, loaded["model"][name]) for name, value in contents()["model"].items())
    assert loaded["versions"]["torch"] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == ["x.pth"]  # no temporary file


def test_the_bundled_weights_can_be_read() -> None:
    """They come without their history."""
    loaded = load_checkpoint(SMALL_WEIGHTS)
    assert (loaded["config"].network, loaded["history"]) == ("ResNet34_UNet_small", [])


def test_a_full_disk_is_the_systems_own_error(
    tiny_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's writer reports a disk that becomes full as a RuntimeError; here it has to stay recognisable."""

    class AlmostFull(io.RawIOBase):
        writes = 0

        def write(self, data: bytes) -> int:
            self.writes += 1
            if self.writes > 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(data)

    monkeypatch.setattr(atomic, "open", lambda path, mode: AlmostFull(), raising=False)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "x.pth", contents())


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_missing_file_is_answered_with_what_is_there(tiny_network: None, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "R_epoch_0.pth", contents())
    with pytest.raises(UserError, match=r"R_best\.pth; there are R_epoch_0\.pth"):
        load_checkpoint(tmp_path / "R_best.pth")
    with pytest.raises(UserError, match="train first"):
        load_checkpoint(tmp_path / "nowhere" / "R_best.pth")


@pytest.mark.parametrize("kept", [0, 10, 500, 1500])
def test_a_truncated_file_is_broken(tiny_network: None, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, contents())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"x\.pth .*broken"):
        load_checkpoint(path)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tiny_network: None, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, contents())
    data, expected = path.read_bytes(), load_checkpoint(path)
    rng, refused = np.random.default_rng(0), 0
    for position in rng.choice(8 * len(data), 600, replace=False):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except UserError as error:
            assert str(error).startswith(f"{path} is ")
            assert "\n" not in str(error)
            refused += 1
            continue
        weights = loaded.pop("model")
        assert loaded == {key: value for key, value in expected.items() if key != "model"}
        assert all(torch.equal(value, weights[name]) for name, value in expected["model"].items())
    assert refused > 100  # the others hit what pads the tensors


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_what_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    (tmp_path / "folder.pth").mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match="it is not a regular file"):
            load_checkpoint(path)


def without(entry: str) -> Callable[[dict], object]:
    return lambda state: state.pop(entry)


def put(value: object, *keys: str) -> Callable[[dict], object]:
    def change(state: dict) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [without(key) for key in ("config", "model", "data_path", "epoch", "history")]
    + [
        put(value, *keys)
        for keys, values in {
            ("config",): (7, [], {}, {"recipe": "default"}),
            ("config", "network"): ("NoSuchNet", None, ["UNet"]),
            ("config", "recipe"): (None, 3, "\x1b[2J"),
            ("config", "progressive"): ([(0.5, torch.ones(2))], [(0.5, 2.0)], [(0.5, True)]),
            ("versions",): ("2.0", {"torch": 2}),
            ("command",): (["python"],),
            ("config", "image_size"): (
                10**5000,
                "3\n2",
                "3" * 5000,
                torch.zeros(99, 99),
                -5,
                "32",
                10_000_000,
                64.0,
                None,
            ),
            ("config", "boundary"): ("nosuch", 1),
            ("config", "learning_rate"): (float("nan"), "fast"),
            ("config", "augmentation"): (None, {"rotation": "much"}, {"nosuch": 1}),
            ("config", "state_dicts"): (["../../evil"],),
            ("model",): (None, [1, 2], {}, {"0.weight": torch.zeros(4, 3, 3, 3)}),
            ("model", "0.weight"): (torch.zeros(4, 3, 3, 2), torch.zeros(4, 3, 3, 3).to(torch.complex64), 1.0, "x"),
            ("model", "0.bias"): (
                torch.full((4,), float("nan")),
                torch.full((4,), float("inf")),
                torch.zeros(4, device="meta"),
                torch.zeros(4, layout=torch.sparse_coo),
            ),
            ("epoch",): (-1, 2, "1", 1.0, True, 10**30),
            ("history",): ({}, 1, [1], [{}], [ROW, ROW], [ROW | {"valid_dice": "0.9"}]),
            ("scores", "seconds"): (10**400, float("inf")),
            ("scores",): (1, {}, {"valid_dice": 0.5}),
            ("data_path",): (3, None, "a\0b", "\x1b[2J"),
            ("format",): (3, "2", None, torch.ones(2)),
        }.items()
        for value in values
    ],
)
def test_a_wrong_entry_is_one_line(tiny_network: None, tmp_path: Path, change: Callable[[dict], object]) -> None:
    state = contents()
    change(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "x.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'x.pth'} ")
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", ["run", "recipe", "model"])
def test_a_damaged_checkpoint_of_format_1_is_one_line(entry: str, tmp_path: Path) -> None:
    run = {"image_size": 64, "boundary": "pet", "data_path": "dataset/mine"}
    old = {"format": 1, "model": {}, "run": run, "recipe": {"name": "lab2"}}
    for value in (None, 3, {}, {"image_size": -5, "boundary": "x", "data_path": 1, "name": 3}):
        torch.save(old | {entry: value}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"x\.pth "):
            load_checkpoint(tmp_path / "x.pth")


def test_pickled_code_is_not_run(tiny_network: None, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "was-run"),))

    torch.save(contents() | {"model": Evil()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="unpickling such a file can run any code"):
        load_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "was-run").exists()


def test_a_pickled_model_is_refused_and_converted_by_the_line_that_is_said(tmp_path: Path) -> None:
    torch.save(build_network("lab2.UNet"), tmp_path / "x.pth")
    with pytest.raises(UserError, match="more than plain data") as caught:
        load_checkpoint(tmp_path / "x.pth")
    line = str(caught.value).split("by: ")[1]
    assert len(line.splitlines()) == 1
    exec(line, {"torch": torch})
    assert load_checkpoint(tmp_path / "x_weights.pth")["config"].network == "lab2.UNet"
    assert (tmp_path / "x.pth").exists()  # it does not overwrite the file


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([1, 2], "is not a checkpoint of this project"),
        ({"state_dict": {"weight": torch.zeros(2)}, "epoch": 3}, "is not a checkpoint of this project"),
        ({"weight": torch.zeros(2)}, r"holds 1 tensors.* none of UNet, .*lab3\.ResNet34_UNet"),
        ({"format": 2, "config": {"network": "UNetPP"}}, "network cannot be 'UNetPP'; there are UNet"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, state: object, said: str) -> None:
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=said):
        load_checkpoint(tmp_path / "x.pth")


# ---------------------------------------------------------------------------------------------- weights alone


@pytest.mark.parametrize("network", ["UNet", "ResNet34_UNet", "lab2.UNet", "lab2.ResNet34_UNet", "lab3.ResNet34_UNet"])
def test_a_bare_state_dict_is_recognised_by_its_names(network: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in NETWORKS[network]().state_dict().items()}
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path / "x.pth")
    state = load_checkpoint(tmp_path / "x.pth")
    recipe, _, base = network.rpartition(".")
    assert state["config"] == RECIPES[recipe or "default"](base)
    assert state["epoch"] is None
    assert {name: value.shape for name, value in state["model"].items()} == shapes


def test_weights_under_other_names_are_taken_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = build_network("lab2.ResNet34_UNet").state_dict()
    torch.save({f"net.{index}": value for index, value in enumerate(model.values())}, tmp_path / "x.pth")
    state = load_checkpoint(tmp_path / "x.pth")
    assert state["config"].network == "lab2.ResNet34_UNet"
    assert all(torch.equal(value, state["model"][name]) for name, value in model.items())
    assert "have other names than lab2.ResNet34_UNet's" in capsys.readouterr().err


def test_a_checkpoint_of_format_1_is_read_as_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = build_network("lab2.UNet").state_dict()
    run = {"image_size": 64, "boundary": "ignore", "seed": 5, "data_path": "dataset/mine"}
    old = {"format": 1, "network": "lab2.UNet", "model": model, "run": run, "recipe": {"name": "lab2"}, "epoch": 9}
    torch.save(old, tmp_path / "x.pth")
    state = load_checkpoint(tmp_path / "x.pth")
    config = state["config"]
    assert (config.network, config.recipe, config.image_size, config.boundary) == ("lab2.UNet", "lab2", 64, "ignore")
    assert (state["epoch"], state["data_path"], config.seed) == (None, "dataset/mine", 0)
    assert all(torch.equal(value, state["model"][name]) for name, value in model.items())
    assert len(capsys.readouterr().err.splitlines()) == 1
