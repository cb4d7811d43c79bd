"""Save and load checkpoints; nothing else writes or reads a .pth.

A checkpoint is plain data: tensors, numbers, strings, lists and dicts. Its entries:

    format      1
    network     a key of models.NETWORKS
    model       the state dict that one would use: averaged weights with their own BatchNorm statistics
    recipe      Recipe.to_dict()
    run         the run's other settings: those of SETTINGS, and data_path
    epoch       how many are done; 0 is the start
    scores      of this epoch: valid_dice, valid_loss, ...; empty at the start
    history     a list of one dict an epoch, up to this one
    training    in R_last.pth only: everything else that resuming needs

A bare state dict, tensors by name and nothing else, is read too: its tensors tell the network, and so the recipe.
"""

import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atomic import atomic_write
from models import NETWORKS
from options import DATASET, REPO, UserError
from recipes import RECIPES

FORMAT = 1
SETTINGS = {  # of a run, where nothing else is said
    "image_size": 256,
    "boundary": "pet",
    "seed": 0,
    "limit": None,
    "train_images": None,
    "precision": "auto",
    "stop_at_dice": None,
}


def checkpoint_path(save_path: Path, name: str, which: str) -> Path:
    """Where a run keeps a checkpoint.

    Args:
        name: of the run: its folder under ``save_path`` and its files' prefix.
        which: ``last``, ``best``, ``final``, or the number of an epoch.
    """
    stem = which if which in ("last", "best") else f"epoch_{which}"
    return save_path / name / f"{name}_{stem}.pth"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that the old one stays until the new one is whole and on the disk.

    Raises:
        OSError: the disk is full, the folder cannot be written; the old file is as it was.
    """
    _save(path, {"format": FORMAT, **state})


def save_state_dict(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights alone, as report lab3 names them; raises as ``save_checkpoint`` does."""
    _save(path, {key: value.cpu() for key, value in weights.items()})


def _save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except RuntimeError as error:  # PyTorch's zip writer puts its own error over the system's
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def snapshot(state: Any) -> Any:
    """A copy of plain data that stays as it is when the training goes on; in CUDA's memory for what lies there."""
    if isinstance(state, Tensor):
        return state.detach().clone() if state.is_cuda else state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    return [snapshot(value) for value in state] if isinstance(state, list) else state


class BackgroundWriter:
    """Writes files in a thread beside the training, one by one, in the order that they were put in.

    What is put in again before its turn has come is written once, in its newest state: a disk that is slower than the
    training makes the files rarer, not the training slower. All that waits is written before what comes after it, so
    that each file has its turn. Leaving the ``with`` waits until all is on the disk.

    Raises:
        OSError: from ``put`` or at the end: the disk is full, say. Nothing is written after that.
    """

    def __enter__(self) -> "BackgroundWriter":
        self._waiting: dict[Path, Callable[[], None]] = {}
        self._error: Exception | None = None
        self._ends = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def put(self, path: Path, write: Callable[[], None]) -> None:
        """Have something written: ``write`` is called in the thread. ``path`` says what is the same thing, newer."""
        after = None
        if torch.cuda.is_initialized():
            after = torch.cuda.Event()
            after.record()  # the copies that are written were only asked for so far
        with self._changed:
            if self._error:
                raise self._error
            self._waiting.pop(path, None)
            self._waiting[path] = lambda: self._beside_the_step(after, write)
            self._changed.notify()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join()
        if self._error and kind is None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ends)
                if not self._waiting:
                    return
                round_of_writes, self._waiting = self._waiting, {}
            try:
                while round_of_writes:
                    round_of_writes.pop(next(iter(round_of_writes)))()  # popped: what is written is not kept in memory
            except Exception as error:
                with self._changed:
                    self._error = error
                return

    @staticmethod
    def _beside_the_step(after: "torch.cuda.Event | None", write: Callable[[], None]) -> None:
        if after is None:
            write()
            return
        stream = torch.cuda.Stream()  # one's own: the copies to the host do not wait for the steps that follow
        stream.wait_event(after)
        with torch.cuda.stream(stream):
            write()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as plain data only.

    A bare state dict becomes one of the recipe whose network it fits, with ``SETTINGS`` and an epoch of None.

    Raises:
        UserError: not there (says what is), broken, or not one of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.pth")))
        hint = f"there are {there}" if there else "that folder holds none; train first: `python src/train.py --help`"
        raise UserError(f"no checkpoint {path}; {hint}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is broken, or holds more than plain data (a pickled model, say), and is not loaded, "
            "because unpickling such a file can run any code. A model that you trust is converted, where its classes "
            f"can be imported, by: torch.save(torch.load({path.name!r}, weights_only=False).state_dict(), "
            f"{path.name!r})"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path} is broken or no checkpoint ({str(error).split('. ')[0] or 'it ends early'})") from None
    if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
        return recognise(path, state)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project (it has no entry `format` of {FORMAT})")
    return state


def recognise(path: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """The checkpoint that a bare state dict stands for, by its tensors' names and shapes.

    Where the names are others but the shapes follow each other as the network's do, the order tells which is which:
    so weights of the reports' own programs come in, as the networks here create their tensors in the same order.

    Raises:
        UserError: no network of any recipe has such tensors.
    """
    shapes = {name: value.shape for name, value in weights.items()}
    for recipe in RECIPES.values():
        for network in recipe.networks.values():
            with torch.device("meta"):  # shapes without numbers
                expected = NETWORKS[network]().state_dict()
            if shapes != {name: value.shape for name, value in expected.items()}:
                if list(shapes.values()) != [value.shape for value in expected.values()]:
                    continue
                print(
                    f"note: the tensors of {path} have other names than {network}'s and are taken in their order",
                    file=sys.stderr,
                )
                weights = dict(zip(expected, weights.values(), strict=True))
            return {
                "format": FORMAT,
                "network": network,
                "model": weights,
                "recipe": recipe.to_dict(),
                "run": {**SETTINGS, "data_path": str(DATASET.relative_to(REPO))},
                "epoch": None,
                "scores": {},
                "history": [],
            }
    networks = [network for recipe in RECIPES.values() for network in recipe.networks.values()]
    raise UserError(
        f"{path} is not a checkpoint of this project: it holds {len(weights)} tensors, and their names and shapes are "
        f"those of none of {', '.join(networks)}"
    )
