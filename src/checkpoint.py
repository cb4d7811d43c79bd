"""Save and load checkpoints; nothing else writes or reads a .pth.

A checkpoint is plain data: tensors, numbers, strings, lists and dicts. Its entries:

    format      2
    config      Config.to_dict(); it names the network
    model       the state dict for inference: the EMA weights with BatchNorm statistics of their own
    data_path   the training data's folder, from the repo's root where it lies below that
    epoch       how many are done; 0 is the start
    scores      of this epoch: valid_dice, valid_loss, ...; empty at the start
    history     a list of one dict an epoch, up to this one
    versions, commit, command    what wrote it
    training    in R_last.pth only: everything else that resuming needs

Two other kinds of file are read as weights alone: a bare state dict (its tensors tell the network), and a checkpoint of
format 1, which earlier versions of this project wrote.
"""

import math
import pickle
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from plumbing.cli import (
    REPO,
    UserError,
    shell,
)
from plumbing.files import atomic_write

import cv2
import numpy as np
import torch
from torch import Tensor

from models import NETWORKS
from oxford_pet import DATASET
from recipes import RECIPES, Config

FORMAT = 2
HISTORY_COLUMNS = ("epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds", "images_per_second")


def checkpoint_path(save_path: Path, name: str, which: str) -> Path:
    """Where a run keeps a checkpoint.

    Args:
        name: of the run: its folder under ``save_path`` and its files' prefix.
        which: ``last``, ``best``, ``final``, or the number of an epoch.
    """
    stem = which if which in ("last", "best") else f"epoch_{which}"
    return save_path / name / f"{name}_{stem}.pth"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        OSError: the disk is full, the folder cannot be written; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # PyTorch's zip writer hides the system's error behind its own
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def provenance() -> dict[str, Any]:
    """What is running: versions, the checkout's commit (``+`` behind it where files differ from it), the command."""
    git = ["git", "-C", str(REPO), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        commit = None
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    return {"versions": versions, "commit": commit, "command": shell("python", *sys.argv)}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as plain data only.

    Returns:
        The entries listed above, ``config`` as a ``Config``. Files of weights alone get the config of the recipe that
        the network belongs to, and an epoch of None.

    Raises:
        UserError: not there (says what is), broken, or not a checkpoint of this project.
    """
    state = _read(path)
    is_bare = isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())
    version = state.get("format") if isinstance(state, dict) else None
    if not is_bare and not (type(version) is int and version in (1, FORMAT)):
        raise UserError(f"{path} is not a checkpoint of this project (it has no entry `format` of {FORMAT})")
    try:
        if is_bare:
            loaded = recognise(path, state)
        else:
            loaded = _read_format_1(path, state) if version == 1 else _check_entries(path, state)
        for name, value in loaded["model"].items():
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_complex() or value.is_quantized:
                raise UserError(f"{name} has a form that no network of this project has")
            if not value.isfinite().all():
                raise UserError(f"its weights are not finite, {name} first: its run diverged; take an earlier one")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as error:
        what = f"it lacks the entry {error}" if isinstance(error, KeyError) else str(error)
        what = " ".join(what.split())[:250]  # of whatever value is quoted there
        raise UserError(f"{path} is damaged or no checkpoint of this project: {what}") from error
    return loaded


def _read(path: Path) -> Any:
    """Read plain data, and verify its checksums; ``torch.load`` does not.

    Raises:
        UserError: not there (says what is), broken, or more than plain data.
    """
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise UserError(f"{path} is broken or no checkpoint: it is not a regular file")
    try:
        if zipfile.is_zipfile(path):  # as everything that we write
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise UserError(f"{path} is damaged: the checksum of its record {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.pth")))
        hint = f"there are {there}" if there else "that folder holds none; train first: `python src/train.py --help`"
        raise UserError(f"no checkpoint {path}; {hint}") from None
    except pickle.UnpicklingError:
        weights = str(path.with_stem(f"{path.stem}_weights"))
        raise UserError(
            f"{path} is broken, or holds more than plain data (a pickled model, say), and is not loaded, because "
            "unpickling such a file can run any code. A model that you trust is converted, where its classes can be "
            f"imported, by: torch.save(torch.load({str(path)!r}, weights_only=False).state_dict(), {weights!r})"
        ) from None
    except UserError:
        raise
    except Exception as error:  # of a damaged file, the readers' parsers raise errors of any type
        reason = str(error).splitlines()[0].split(". ")[0][:200] if str(error) else "it ends early"
        raise UserError(f"{path} is broken or no checkpoint ({reason})") from None


def _read_format_1(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    print(f"note: {path} was written by an earlier version: only its weights are read", file=sys.stderr)
    known = {key: state["run"][key] for key in ("image_size", "boundary")} | {"recipe": state["recipe"]["name"]}
    return recognise(path, dict(state["model"]), **known) | {"data_path": str(state["run"]["data_path"])}


def _check_entries(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Refuse entries that are missing or of other types and shapes than ``Run.checkpoint`` of train.py gives them.

    Raises:
        KeyError, TypeError, AttributeError, UserError: says which.
    """

    def check(entry: str, is_right: bool) -> None:
        if not is_right:
            raise UserError(f"its entry {entry} cannot be {str(state[entry])[:60]!r}")

    config = Config.from_dict(state["config"])
    check("history", isinstance(state["history"], list) and all(map(is_history_row, state["history"])))
    epochs = len(state["history"])  # 0 also of published weights, which come without their history
    is_possible = type(state["epoch"]) is int and 0 <= state["epoch"] < 10**6
    check("epoch", is_possible and epochs in (0, state["epoch"]))
    check("scores", is_history_row(state["scores"]) if state["epoch"] else state["scores"] == {})
    check("data_path", isinstance(state["data_path"], str) and state["data_path"].isprintable())
    versions = state.get("versions") or {}
    check("versions", isinstance(versions, dict) and all(isinstance(text, str) for text in versions.values()))
    for entry in ("commit", "command"):
        check(entry, isinstance(state.get(entry), str | None))
    with torch.device("meta"):  # shapes without numbers
        expected = NETWORKS[config.network]().state_dict()
    if not have_equal_shapes(state["model"], expected):
        raise UserError(f"its weights are not those of the network {config.network}")
    return state | {"config": config}


def is_history_row(row: Any) -> bool:
    """Whether this is an epoch's row of the history: ``HISTORY_COLUMNS`` and perhaps others, all numbers."""
    return (
        isinstance(row, dict)
        and row.keys() >= set(HISTORY_COLUMNS)
        and all(isinstance(column, str) for column in row)
        and all(type(value) is float or (type(value) is int and abs(value) < 2**53) for value in row.values())
        and math.isfinite(row["seconds"])
    )


def have_equal_shapes(tensors: dict[str, Any], expected: dict[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and shapes, and dtypes of one kind."""
    return tensors.keys() == expected.keys() and all(
        isinstance(tensors[name], Tensor)
        and tensors[name].shape == value.shape
        and torch.can_cast(tensors[name].dtype, value.dtype)  # published weights are of half precision
        for name, value in expected.items()
    )


def recognise(path: Path, weights: dict[str, Tensor], **known: Any) -> dict[str, Any]:
    """The checkpoint that weights alone stand for, by their tensors' names and shapes.

    Where the names differ but the shapes follow each other as the network's do, the order assigns them: so weights of
    the reports' own programs can be read, because the networks here create their tensors in the same order.

    Args:
        known: values of the config that the file tells.

    Raises:
        UserError: no network has such tensors.
    """
    shapes = {name: value.shape for name, value in weights.items()}
    for config in _recipe_of_each_network():
        with torch.device("meta"):  # shapes without numbers
            expected = NETWORKS[config.network]().state_dict()
        if shapes != {name: value.shape for name, value in expected.items()}:
            if list(shapes.values()) != [value.shape for value in expected.values()]:
                continue
            print(
                f"note: the tensors of {path} have other names than {config.network}'s and are taken in their order",
                file=sys.stderr,
            )
            weights = dict(zip(expected, weights.values(), strict=True))
        return {
            "config": replace(config, **known),
            "model": weights,
            "data_path": str(DATASET.relative_to(REPO)),
            "epoch": None,
            "scores": {},
            "history": [],
        }
    raise UserError(
        f"it holds {len(weights)} tensors, and their names and shapes are those of none of {', '.join(NETWORKS)}"
    )


def _recipe_of_each_network() -> Iterator[Config]:
    """A config of each network: a report's own network belongs to its recipe, all others to ``default``."""
    for network in NETWORKS:
        recipe, _, base = network.partition(".")
        yield RECIPES[recipe](base) if recipe in RECIPES else RECIPES["default"](network)
