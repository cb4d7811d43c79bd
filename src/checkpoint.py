"""Save and load checkpoints; nothing else writes or reads a .pth.

A checkpoint is plain data: tensors, numbers, strings, lists and dicts. Its entries:

    format      2
    config      Config.to_dict(); it names the network
    model       state dict for inference: the EMA weights with BatchNorm statistics of their own
    data_path   folder of the training data, relative to the repo's root if it lies below it
    source_side largest height or width of the training images as stored, in pixels; older checkpoints lack it
    epoch       number of finished epochs; 0 at the start
    scores      of this epoch: valid_dice, valid_loss, ...; empty at the start
    history     list of one dict an epoch, up to this one
    train_names list of the training images' names, so that scoring can say that it meets some again
    versions, commit, command    what wrote it; of a resumed run, the command that began it, and ``resumed``
    training    in <name>_last.pth only: the rest of the training state, for --resume

A bare state dict is read too: its tensors tell the network.
"""

import io
import pickle
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbing.cli import REPO, UserError, existing_path, shell
from plumbing.files import atomic_write

import cv2
import numpy as np
import torch
from torch import Tensor

from models import NETWORKS
from models.resnet34_unet import ResNet34Encoder
from oxford_pet import DATASET
from recipes import RECIPES, Config

FORMAT = 2
REQUIRED = {"config", "model", "data_path", "epoch", "scores", "history"}
HISTORY_COLUMNS = ("epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds", "images_per_second")


def checkpoint_path(save_path: Path, name: str, which: str) -> Path:
    """Path of a run's checkpoint.

    Args:
        name: of the run: its folder under ``save_path`` and its files' prefix.
        which: ``last``, ``best``, ``final``, or the number of an epoch.
    """
    stem = which if which in ("last", "best") else f"epoch_{which}"
    return save_path / name / f"{name}_{stem}.pth"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        OSError: the disk is full, or the folder is not writable. An existing file stays as it was.
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
    """Versions, the command, and the checkout's commit, which ends in ``+`` if files differ from it."""
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
    """Read a checkpoint to the CPU. Its weights fit the network that its config names.

    Returns:
        The entries listed above, ``config`` as a ``Config``. A bare state dict gets the config of its network's recipe,
        and an epoch of None.

    Raises:
        UserError: missing (lists what is there), damaged, diverged, or not a checkpoint of this project.
    """
    state = read_plain_data(path)
    if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
        state = recognise(path, state)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project (it has no entry `format` of {FORMAT})")
    try:
        if missing := REQUIRED - state.keys():
            raise UserError(f"it lacks the entry {min(missing)}")
        if not isinstance(state["epoch"], int | None) or not isinstance(state["scores"], dict):
            raise UserError(f"its epoch is {state['epoch']!r:.50} with the scores {state['scores']!r:.50}")
        side = state.get("source_side", 1)
        if not isinstance(side, int) or side < 1:
            raise UserError(f"its source_side is {side!r:.50}")
        config = Config.from_dict(state["config"])
        with torch.device("meta"):  # allocates no memory
            # A plain dict: PyTorch notes ``assign`` in a state dict, and would assign again where it is loaded next.
            NETWORKS[config.network]().load_state_dict(dict(state["model"]), assign=True)
    except (AttributeError, TypeError, ValueError, RuntimeError, UserError) as error:
        reason = " ".join(str(error).split())[:250]  # PyTorch lists each tensor
        raise UserError(f"{path} is damaged or no checkpoint of this project: {reason}") from error
    if not all(value.isfinite().all() for value in state["model"].values()):
        raise UserError(f"{path} holds weights that are not finite: its run diverged; take an earlier checkpoint")
    return state | {"config": config}


def read_plain_data(path: Path) -> Any:
    """Load a file with ``weights_only=True``, from records whose checksums were verified, as ``torch.load`` does not.

    PyTorch's reader and Python's can read a damaged header differently. So PyTorch gets a new archive of the records
    that Python has read and verified.

    Raises:
        UserError: missing (lists what is there), damaged, or more than plain data.
    """
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.pth")))
        none = "that folder holds none" if path.parent.is_dir() else "there is no such folder"
        hint = f"there are {there}" if there else f"{none}; train first: `python src/train.py --help`"
        raise UserError(f"no checkpoint {path}; {hint}")
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"  # the files of PyTorch before 1.6 are pickles
        return torch.load(verified_copy(path) if is_zip else path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        weights = str(path.with_stem(f"{path.stem}_weights"))
        raise UserError(
            f"{path} is broken, or holds more than plain data (a pickled model, say). It is not loaded, because "
            "unpickling can run any code. To convert a model that you trust, where its classes can be imported: "
            f"torch.save(torch.load({str(path)!r}, weights_only=False).state_dict(), {weights!r})"
        ) from None
    except Exception as error:  # the parsers of damaged files raise errors of any type
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0][:200]
        raise UserError(f"{path} is broken or no checkpoint ({reason})") from None


def verified_copy(path: Path) -> io.BytesIO:
    """Copy a zip archive record by record. Raises zipfile.BadZipFile where a checksum is wrong."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as target:
        for name in archive.namelist():
            target.writestr(name, archive.read(name))
    copy.seek(0)
    return copy


def pretrained_encoder(network: str, source: str) -> dict[str, Tensor]:
    """The ImageNet weights of torchvision's ResNet-34, as a state dict of ``ResNet34Encoder``.

    Args:
        network: a key of ``NETWORKS``.
        source: a file of ``torchvision.models.resnet34``; ``imagenet`` downloads IMAGENET1K_V1, once.

    Raises:
        UserError: the network has no such encoder; the weights cannot be downloaded or are others.
    """
    with torch.device("meta"):
        encoder = getattr(NETWORKS[network](), "encoder", None)
    if not isinstance(encoder, ResNet34Encoder) or encoder.widths != ResNet34Encoder().widths:
        raise UserError(f"--pretrained is for ResNet34_UNet and UNetPlusPlus, not for {network}")
    from torchvision.models import ResNet34_Weights, resnet34

    weights, path = ResNet34_Weights.IMAGENET1K_V1, existing_path(source)
    if source == "imagenet":
        path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        try:
            weights.get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot download {weights.url} ({error}); put it into {path.parent}") from error
    if not path.is_file():
        raise UserError(f"--pretrained: no file {path}; torchvision's weights are {weights.url}")
    with torch.device("meta"):
        model = resnet34()
    try:
        model.load_state_dict(read_plain_data(path), assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not hold the weights of torchvision's resnet34: {reason}") from error
    values = [value for name, value in model.state_dict().items() if not name.startswith("fc.")]
    return dict(zip(encoder.state_dict(), values, strict=True))


def recognise(path: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Make a checkpoint of a bare state dict, by the names and shapes of its tensors.

    Weights of the reports' own programs have other names. They are matched by the order of their shapes: the networks
    here create their tensors in the same order.

    Raises:
        UserError: no network has such tensors.
    """
    shapes = {name: value.shape for name, value in weights.items()}
    for config in recipe_of_each_network():
        with torch.device("meta"):  # allocates no memory
            expected = NETWORKS[config.network]().state_dict()
        if shapes != {name: value.shape for name, value in expected.items()}:
            if list(shapes.values()) != [value.shape for value in expected.values()]:
                continue
            print(f"note: {path} has other tensor names than {config.network}; matched by their order", file=sys.stderr)
            weights = dict(zip(expected, weights.values(), strict=True))
        data_path = str(DATASET.relative_to(REPO))
        entries = {"config": config.to_dict(), "model": weights, "data_path": data_path}
        return {"format": FORMAT, "epoch": None, "scores": {}, "history": [], **entries}
    raise UserError(f"{path} holds {len(weights)} tensors; their names and shapes fit none of {', '.join(NETWORKS)}")


def recipe_of_each_network() -> Iterator[Config]:
    """A config of each network: the reports' own networks belong to their recipes, all others to ``default``."""
    for network in NETWORKS:
        recipe, _, base = network.partition(".")
        yield RECIPES[recipe](base) if recipe in RECIPES else RECIPES["default"](network)
