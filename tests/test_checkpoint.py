"""checkpoint.py: plain data in, the same out; damaged files are refused; nothing but plain data is unpickled."""

import errno
import io
import os
from pathlib import Path

from plumbing import files
from plumbing.cli import UserError

import numpy as np
import pytest
import torch

from checkpoint import HISTORY_COLUMNS, load_checkpoint, provenance, save_checkpoint
from models import NETWORKS, build_network
from predictor import SMALL_WEIGHTS
from recipes import RECIPES, Config

ROW = dict.fromkeys(HISTORY_COLUMNS, 0.5)


def contents() -> dict:
    """A checkpoint after one epoch; small with the fixture tiny_network."""
    torch.manual_seed(0)
    entries = {"data_path": "/home/me/my\u00a0pets", "epoch": 1, "scores": ROW, "history": [ROW]}
    config = Config("lab2.UNet", image_size=64).to_dict()
    return {"format": 2, "config": config, "model": build_network("lab2.UNet").state_dict(), **entries}


def test_round_trip(tiny_network: None, tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.pth"
    save_checkpoint(path, contents() | provenance())
    loaded = load_checkpoint(path)
    assert loaded["config"] == Config("lab2.UNet", image_size=64)
    assert [loaded[key] for key in ("epoch", "history", "data_path")] == [1, [ROW], "/home/me/my\u00a0pets"]
    assert all(torch.equal(value, loaded["model"][name]) for name, value in contents()["model"].items())
    assert loaded["versions"]["torch"] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == ["x.pth"]  # no temporary file


def test_the_bundled_weights_can_be_read() -> None:
    state = load_checkpoint(SMALL_WEIGHTS)
    assert (state["config"].network, state["config"].boundary) == ("ResNet34_UNet_medium", "middle")


def test_a_full_disk_raises_the_systems_error(
    tiny_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AlmostFull(io.RawIOBase):
        writes = 0

        def write(self, data: bytes) -> int:
            self.writes += 1
            if self.writes > 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(data)

    monkeypatch.setattr(files, "open", lambda path, mode: AlmostFull(), raising=False)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "x.pth", contents())


def test_a_missing_file_lists_what_is_there(tiny_network: None, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "R_epoch_0.pth", contents())
    with pytest.raises(UserError, match=r"R_best\.pth; there are R_epoch_0\.pth"):
        load_checkpoint(tmp_path / "R_best.pth")
    with pytest.raises(UserError, match="train first"):
        load_checkpoint(tmp_path / "nowhere" / "R_best.pth")


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
            assert str(error).startswith(f"{path} is ") and "\n" not in str(error)
            refused += 1
            continue
        weights = loaded.pop("model")
        assert loaded == {key: value for key, value in expected.items() if key != "model"}
        assert all(torch.equal(value, weights[name]) for name, value in expected["model"].items())
    assert refused > 100  # the others hit what pads the tensors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("data_path"), "lacks the entry data_path"),
        (lambda state: state["config"].update(network="UNetPP"), "network cannot be 'UNetPP'; there are UNet"),
        (lambda state: state["config"].update(nosuch=1), "unexpected keyword argument 'nosuch'"),
        (lambda state: state.update(source_side=0), "its source_side is 0"),
        (lambda state: state.update(config=None), "NoneType"),
        (lambda state: state.update(format=1), "not a checkpoint of this project"),
        (lambda state: state["model"].pop("0.bias"), r'Missing key\(s\) in state_dict: "0.bias"'),
        (lambda state: state["model"].update({"0.bias": torch.zeros(5)}), "size mismatch for 0.bias"),
        (lambda state: state["model"]["0.bias"].fill_(float("nan")), "weights that are not finite"),
    ],
)
def test_what_does_not_fit_is_one_line(tiny_network: None, tmp_path: Path, change, said: str) -> None:
    state = contents()
    change(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"^{tmp_path / 'x.pth'} .*{said}") as caught:
        load_checkpoint(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


def test_a_pickled_model_is_not_run_and_the_message_converts_it(tmp_path: Path) -> None:
    class Evil(torch.nn.Module):
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "was-run"),))

    for model in (Evil(), build_network("lab2.UNet")):
        torch.save(model, tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"more than plain data.* can run any code") as caught:
            load_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "was-run").exists()
    line = str(caught.value).split("imported: ")[1]
    exec(line, {"torch": torch})
    assert load_checkpoint(tmp_path / "x_weights.pth")["config"].network == "lab2.UNet"


@pytest.mark.parametrize("network", ["UNet", "lab2.UNet", "lab2.ResNet34_UNet", "lab3.ResNet34_UNet"])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_bare_state_dict_is_recognised(network: str, renamed: bool, tmp_path: Path) -> None:
    """By its names and shapes, or by the order of its shapes."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in NETWORKS[network]().state_dict().items()}
    weights = {name: torch.full((), float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    torch.save({f"net.{key}" if renamed else key: value for key, value in weights.items()}, tmp_path / "x.pth")
    state = load_checkpoint(tmp_path / "x.pth")
    recipe, _, base = network.rpartition(".")
    assert (state["config"], state["epoch"]) == (RECIPES[recipe or "default"](base), None)
    assert all(torch.equal(state["model"][name], value) for name, value in weights.items())


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"holds 1 tensors.* none of UNet, .*lab3\.ResNet34_UNet"):
        load_checkpoint(tmp_path / "x.pth")
