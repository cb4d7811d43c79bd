"""Save and load checkpoints; nothing else writes or reads a .pth.

A checkpoint is plain data: tensors, numbers, strings, lists and dicts. Its entries:

    format      1
    network     a key of models.NETWORKS
    model       the state dict that one would use: averaged weights with their own BatchNorm statistics
    recipe      Recipe.to_dict()
    run         the run's other settings: image_size, boundary, seed, limit, precision, data_path
    epoch       how many are done; 0 is the start
    scores      of this epoch: valid_dice, valid_loss, ...; empty at the start
    history     a list of one dict an epoch, up to this one
    training    in R_last.pth only: everything else that resuming needs
"""

import pickle
from pathlib import Path
from typing import Any

import torch

from atomic import atomic_write
from options import UserError

FORMAT = 1


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
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except RuntimeError as error:  # PyTorch's zip writer puts its own error over the system's
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as plain data only.

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
            "because unpickling such a file can run any code"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path} is broken or no checkpoint ({str(error).split('. ')[0] or 'it ends early'})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project (it has no entry `format` of {FORMAT})")
    return state
