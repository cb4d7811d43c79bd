"""A run's config: from its flags, ``--set``, ``--config``, a recipe, and the checkpoint that it goes on from."""

import argparse
import ast
import importlib.util
import json
import math
from argparse import ArgumentTypeError
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from plumbing import cli
from plumbing.cli import ArgumentParser, UserError

from augment import Augmentation
from models import network_names
from oxford_pet import DATASET
from recipes import CHOICES, RECIPES, Config, check_network, is_possible, network_of, possible_values

FIELDS: dict[str, Any] = {  # all that --set takes, with their types
    **Config.__annotations__,
    **{f"augmentation.{name}": kind for name, kind in Augmentation.__annotations__.items()},
}


def parse_field(name: str, text: str) -> Any:
    """Parse a typed value of a field, a key of ``FIELDS``: ``0.1``, ``true``, ``none``, ``1,2,3`` or a word.

    Raises:
        ArgumentTypeError: the field cannot have this value.
    """
    value: Any = text
    if FIELDS[name] is not str:
        try:
            value = ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
        except (SyntaxError, ValueError):
            value = text
    if not is_possible(name.rpartition(".")[2], FIELDS[name], value):
        raise ArgumentTypeError(f"{name} cannot be {text!r}{possible_values(name.rpartition('.')[2])}")
    return value


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse ``FIELD=VALUE``. Raises ArgumentTypeError, with the nearest name where there is no such field."""
    name, is_setting, value = text.partition("=")
    if name in ("network", "recipe"):
        raise ArgumentTypeError(f"--model and --recipe choose the {name}")
    if not is_setting or name not in FIELDS:
        fields = {field.rpartition(".")[2]: field for field in FIELDS}
        similar = get_close_matches(name.rpartition(".")[2], fields, 1)
        hint = f"; did you mean {fields[similar[0]]}={value or '...'}?" if similar else "; docs/training.md lists them"
        raise ArgumentTypeError(f"there is no setting {text!r}{hint}")
    return name, parse_field(name, value)


def replaced(config: Config, values: dict[str, Any]) -> Config:
    """A config with other values, by the names of ``FIELDS``: ``augmentation.rotation`` is a field of a field."""
    own = {name: value for name, value in values.items() if "." not in name}
    nested = {name.partition(".")[2]: value for name, value in values.items() if "." in name}
    return replace(config, **own, augmentation=replace(config.augmentation, **nested))


def read_config(path: Path) -> tuple[Config, str]:
    """Read a run's ``NAME_config.json``: its config and its data path.

    Raises:
        UserError: it is not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Config.from_dict(content["config"]), str(content["data_path"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--config {path} is not the ..._config.json of a run ({type(error).__name__}: {error})"
        ) from error


FLAGS = {  # fields of Config with a flag of their own; --set takes all others
    "image_size": "pixels of height and width",
    "epochs": "times that each training image is seen",
    "batch_size": "images a step",
    "learning_rate": "at its peak",
    "loss": "what is minimised",
    "train_images": "number of training images, evenly spaced; all if not given",
    "seed": "of weights, order and augmentation",
    "precision": "auto takes bfloat16 where it is faster",
    "boundary": "what a trimap's boundary counts as, in loss and score",
    "stop_at_dice": "end the run when the validation Dice reaches this, 0 to 1",
}


def make_parser() -> ArgumentParser:
    """The parser of train.py's flags."""
    recipe = RECIPES["default"]("UNet")
    parser = ArgumentParser("Train a network to separate pets from the background.")
    parser.add_run_options(network_names(), RECIPES)
    add = parser.add_argument
    data = DATASET.relative_to(cli.REPO)
    add("--data_path", type=cli.existing_path, help=f"the data set's folder (default: {data}, downloaded if missing)")
    for name, what in FLAGS.items():
        flags = [f"--{name}", "--lr"] if name == "learning_rate" else [f"--{name}"]
        kind = {"choices": CHOICES[name]} if name in CHOICES else {"type": partial(parse_field, name)}
        default = getattr(recipe, name)
        add(*flags, **kind, help=what if default is None else f"{what} (default: the recipe's, {default})")
    add(
        "--set",
        type=parse_setting,
        nargs="+",
        action="extend",
        metavar="FIELD=VALUE",
        help="any other setting: optimizer=sgd augmentation.rotation=30; docs/training.md lists them",
    )
    add(
        "--config",
        type=cli.existing_path,
        metavar="FILE",
        help="start as another run did, by its NAME_config.json",
    )
    add(
        "--pretrained",
        nargs="?",
        const="imagenet",
        metavar="FILE",
        help="start the ResNet-34 encoder from torchvision's ImageNet weights, or from a file of them",
    )
    add(
        "--save_every",
        type=cli.seconds,
        default=60.0,
        metavar="SECONDS",
        help="between two saves; 0: after each epoch",
    )
    add("--compile", action="store_true", help="compile the network by torch.compile")
    add("--tensorboard", action="store_true", help="log for TensorBoard too, to the run's folder")
    add("--overwrite", action="store_true", help="remove the run that is there, and start anew")
    start = parser.add_mutually_exclusive_group().add_argument
    start("--resume", action="store_true", help="continue the run exactly where it stopped")
    start("--init_from", type=cli.existing_path, metavar="FILE", help="start a new run from the weights of a file")
    start(
        "--load_model_epoch",
        type=cli.which_checkpoint,
        metavar="0|N|last|best|final",
        help="report lab2's flag: last is --resume, 0 is --overwrite; others continue after that epoch, weights alone",
    )
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse train.py's flags.

    Returns:
        Also ``typed``, what was typed of ``FIELDS``, and ``base`` and ``data_of_base``, which ``--config`` names.
    """
    parser = make_parser()
    args = parser.parse_run_args(argv)
    if args.config and (args.model or args.recipe or args.resume or args.load_model_epoch not in (None, "0")):
        parser.error("--config starts a new run: leave out --model, --recipe, --resume and --load_model_epoch")
    args.base, args.data_of_base = read_config(args.config) if args.config else (None, None)
    if args.config:
        args.model = network_of(args.base)
        args.name = args.name or cli.default_run_name(network_names(), args.model, args.base.recipe)
    if args.tensorboard and not importlib.util.find_spec("tensorboard"):
        parser.error("--tensorboard needs tensorboard: pip install tensorboard")
    if not args.model:
        parser.error("which network? --model U or --model R")
    if args.overwrite and (args.resume or args.load_model_epoch not in (None, "0")):
        parser.error("--overwrite starts anew, --resume and --load_model_epoch do not: give one of them")
    args.resume |= args.load_model_epoch == "last"
    args.overwrite |= args.load_model_epoch == "0"
    args.typed = {name: vars(args)[name] for name in Config.__annotations__ if vars(args).get(name) is not None}
    for name, value in args.set or []:
        if name in args.typed:
            parser.error(f"--set {name} is given twice, or has a flag that is given too")
        args.typed[name] = value
    if args.typed.get("pretrained") and (args.init_from or args.load_model_epoch not in (None, "0", "last")):
        parser.error("--pretrained starts a new run; --init_from and --load_model_epoch bring weights of their own")
    return args


def resolve_config(
    network: str | None,
    typed: dict[str, Any],
    start: dict[str, Any] | None = None,
    exactly: bool = False,
    base: Config | None = None,
) -> Config:
    """The run's config: a typed value precedes the checkpoint's, that precedes the base's or the recipe's.

    Args:
        typed: values by the names of ``FIELDS``, and the recipe.
        start: the checkpoint of the run that goes on; None for a new run.
        exactly: the run is resumed.
        base: of a new run, in place of a network and a recipe.

    Raises:
        UserError: what was typed contradicts the run.
    """
    if start is None:
        recipe = typed.get("recipe", "default")
        try:
            base = base or RECIPES[recipe](network)
        except TypeError as error:  # a misspelt field
            raise UserError(f"recipe {recipe!r}: {error}") from error
        if typed.get("pretrained"):  # the images as that encoder has seen them
            typed = {"mean": Config.mean, "std": Config.std, **typed}
        return replaced(base, typed)
    old: Config = start["config"]
    if start["epoch"] is None:
        raise UserError("the file holds weights alone: only --init_from can start from it")
    check_network(old, network, "the run")
    config = replaced(old, typed)
    fixed = typed.keys() - {"stop_at_dice"} if exactly else typed.keys() & {"recipe", "image_size", "boundary", "limit"}
    values = {key: (attrgetter(key)(old), attrgetter(key)(config)) for key in sorted(fixed)}
    if changed := [f"{key} changed from {was} to {now}" for key, (was, now) in values.items() if was != now]:
        more = "continue from the weights: --load_model_epoch final or N" if exactly else "start a new run: --init_from"
        verb = "resume" if exactly else "continue"
        raise UserError(f"cannot {verb}: {', '.join(changed)}. Leave that out, or {more}")
    if start["epoch"] >= config.epochs:
        raise UserError(f"all {config.epochs} epochs are done; to train more: --load_model_epoch final --epochs MORE")
    if start["scores"].get("valid_dice", 0.0) >= (config.stop_at_dice or math.inf):
        raise UserError(f"--stop_at_dice {config.stop_at_dice} is reached; to train more: --stop_at_dice HIGHER")
    return config
