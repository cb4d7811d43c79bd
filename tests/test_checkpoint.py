"""checkpoint.py: plain data in, the same out; whole files only; nothing but plain data is unpickled."""

import errno
import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import atomic
from checkpoint import BackgroundWriter, checkpoint_path, load_checkpoint, save_checkpoint, snapshot
from options import UserError


def state_dict() -> dict:
    return {"model": {"weight": torch.randn(3, 2), "count": torch.tensor(7)}, "run": {"seed": 3, "pair": (1, 2)}}


def test_background_writer_keeps_the_order_and_writes_the_newest(tmp_path: Path) -> None:
    written, gate = [], threading.Event()
    with BackgroundWriter() as writer:
        writer.put(tmp_path / "first", lambda: (gate.wait(10), written.append("first")))
        for name in ("best 1", "last 1", "best 2", "last 2", "last 3"):  # all while the first is being written
            writer.put(tmp_path / name.split()[0], partial(written.append, name))
        assert written == []
        gate.set()
    assert written == ["first", "best 2", "last 3"]  # all is written when the with is left


def test_background_writer_lets_every_file_have_its_turn(tmp_path: Path) -> None:
    """Also when all of them are put in again during each write."""
    written: list[str] = []
    with BackgroundWriter() as writer:

        def write(name: str, epoch: int) -> None:
            written.append(name)
            if epoch < 20:
                put(epoch + 1)

        def put(epoch: int) -> None:
            for name in ("best", "last"):
                writer.put(tmp_path / name, partial(write, name, epoch))

        put(0)
        while len(written) < 40:
            time.sleep(0.001)
    assert written[:40] == ["best", "last"] * 20


def test_background_writer_passes_on_what_went_wrong(tmp_path: Path) -> None:
    written = []

    def full_disk() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), BackgroundWriter() as writer:
        writer.put(tmp_path / "a", full_disk)
        writer._thread.join()
        with pytest.raises(OSError, match="No space"):
            writer.put(tmp_path / "b", lambda: written.append("b"))
    assert written == []
    with pytest.raises(KeyError, match="of the training"), BackgroundWriter() as writer:
        writer.put(tmp_path / "a", full_disk)
        raise KeyError("of the training")  # is not hidden by the disk's


def test_a_snapshot_stays_as_it_was() -> None:
    weight, history = torch.zeros(3, requires_grad=True), [{"epoch": 1}]
    taken = snapshot({"weight": weight, "history": history, "pair": (1, 2)})
    with torch.no_grad():
        weight += 1
    history[0]["epoch"] = 2
    assert taken["weight"].tolist() == [0, 0, 0]
    assert not taken["weight"].requires_grad
    assert (taken["history"], taken["pair"]) == ([{"epoch": 1}], (1, 2))


def test_round_trip(tmp_path: Path) -> None:
    path, state = tmp_path / "new" / "x.pth", state_dict()
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert loaded["run"] == state["run"]
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert [file.name for file in path.parent.iterdir()] == ["x.pth"]  # nothing is left aside


def test_paths() -> None:
    names = [checkpoint_path(Path("s"), "R", which).as_posix() for which in ("0", "50", "final", "best", "last")]
    assert names == [
        "s/R/R_epoch_0.pth", "s/R/R_epoch_50.pth", "s/R/R_epoch_final.pth", "s/R/R_best.pth", "s/R/R_last.pth"
    ]  # fmt: skip


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"run": {"seed": 1}})

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"run": {"seed": 2}})
    assert load_checkpoint(path)["run"]["seed"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_the_systems_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's writer reports a full disk as a RuntimeError; here it has to stay recognisable."""
    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(atomic, "open", lambda path, mode: full, raising=False)
        with pytest.raises(OSError) as caught:
            save_checkpoint(tmp_path / "x.pth", {"model": {"weight": torch.zeros(1_000_000)}})
    assert caught.value.errno == errno.ENOSPC


def test_missing_names_what_is_there(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "R_epoch_0.pth", {})
    with pytest.raises(UserError, match=r"R_best\.pth; there are R_epoch_0\.pth"):
        load_checkpoint(tmp_path / "R_best.pth")
    with pytest.raises(UserError, match="train first"):
        load_checkpoint(tmp_path / "nowhere" / "R_best.pth")


@pytest.mark.parametrize("kept", [0, 10, 500, 1500])
def test_truncated(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, state_dict())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"x\.pth .*broken"):
        load_checkpoint(path)


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(UserError, match="more than plain data"):
        load_checkpoint(tmp_path / "x.pth")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "was-run"),))

    torch.save({"format": 1, "model": Evil()}, tmp_path / "x.pth")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "was-run").exists()


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "x.pth")
