"""Train a network: build or resume a run, fit, save.

python src/train.py --model R
"""

import argparse
import copy
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plumbing import cli, ranks
from plumbing.cli import (
    PRECISIONS,
    REPO,
    SAVED_MODELS,
    ArgumentParser,
    UserError,
    choose_precision,
    default_run_name,
    describe,
    machine,
    plural,
    run_script,
    shell,
)
from plumbing.files import atomic_write, locked, remove_stale_temp_files
from plumbing.stop import StopSignal

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint import FORMAT, checkpoint_path, have_equal_shapes, load_checkpoint, provenance, save_checkpoint
from engine import TrainingState, check_finite, compile_forward, create_state, refresh_batchnorm, train_one_epoch
from evaluate import Scores, evaluate
from models import build_network, count_parameters, network_names
from oxford_pet import DATASET, Split, download, find_root, load_split, training_data_path
from predictor import Predictor
from recipes import OPTIMIZERS, RECIPES, Config
from report import curves, draw_curves, read_history, render_page, training_facts, write_history
from trimap import BOUNDARIES, target_and_weight

SCORING_BATCH = 64  # images at most: no more than a training step's, whose memory is known to be there
PAGE_SECONDS = 30  # between two writings of the page
KEEP_EVERY = 50  # epochs between two checkpoints that stay (report lab2)
TIMED_STEPS = 5  # before the run's length is estimated
SLOW_HOURS = 2.0  # on a CPU, from which on a shorter run is suggested
OVERHEAD_PIXELS = 2800  # what an image costs beside its pixels: R at 32x32 is 5 times as fast as at 128x128, not 16


@dataclass
class Run:
    """A run: what it is called, where it is kept, and how far it is."""

    name: str
    network: str  # as named by --model
    folder: Path
    data_path: str
    state: TrainingState
    provenance: dict[str, Any]
    fingerprints: list[str]  # of the training and the validation images
    history: list[dict[str, float]] = field(default_factory=list)
    best_dice: float = -1.0
    unsaved_best: dict[str, Any] | None = None  # the best checkpoint since the last save

    @property
    def config(self) -> Config:
        return self.state.config

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the last of them has reached ``stop_at_dice``."""
        wanted = self.config.stop_at_dice or math.inf
        return self.state.epoch >= self.config.epochs or (
            bool(self.history) and self.history[-1]["valid_dice"] >= wanted
        )

    def path(self, which: str) -> Path:
        return checkpoint_path(self.folder.parent, self.name, which)

    def checkpoint(self) -> dict[str, Any]:
        """What every checkpoint holds; see checkpoint.py."""
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "model": self.state.ema_model.state_dict(),
            "data_path": self.data_path,
            "epoch": self.state.epoch,
            "scores": self.history[-1] if self.history else {},
            "history": list(self.history),
            **self.provenance,
        }

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Save a checkpoint; of several ranks, the first does."""
        if ranks.rank() == 0:
            save_checkpoint(path, content)

    def save(self) -> None:
        """Write ``best`` where there is a new one, then ``last``: everything that resuming exactly needs."""
        state = self.state
        if self.unsaved_best:
            self.write(self.path("best"), self.unsaved_best)
            self.unsaved_best = None
        training = {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "step": state.step,
            "ema_step": state.ema_step,
            "seconds": state.seconds,
            "loss_sum": state.loss_sum,
            "best_dice": self.best_dice,
            "fingerprints": self.fingerprints,
            "precision": "bf16" if state.precision == torch.bfloat16 else "fp32",
        }
        self.write(self.path("last"), {**self.checkpoint(), "training": training})


# ---------------------------------------------------------------------------------------------- fit


def fit(run: Run, stop: StopSignal, save_every: float, compiled: bool = False) -> None:
    """Train until the run is finished or stopped.

    Args:
        save_every: seconds; ``best`` and ``last`` are written when an epoch ends and as many have passed since they
            were written, at a stop, and at the end.
        compiled: whether the network is compiled, for each image size.
    """
    state, config = run.state, run.config
    predictor = Predictor.from_model(state.ema_model, config, state.device)
    predictor.precision = state.precision
    if not state.optimizer.state:  # no step yet, from fresh weights or from a checkpoint's
        run.save()
    started = saved = time.monotonic()
    first_epoch = state.epoch
    on_sync, page_written, compiled_size = estimate_length(run), -math.inf, None
    while not run.is_finished:
        if compiled and config.image_size_at(state.epoch + 1) != compiled_size:
            compiled_size = config.image_size_at(state.epoch + 1)
            compile_forward(state)
        row = train_and_score_epoch(state, predictor, stop, on_sync)
        if row is None:  # stopped
            break
        is_best = finish_epoch(run, row)
        spent = time.monotonic() - started
        left = spent / work(config, first_epoch, state.epoch) * work(config, state.epoch, config.epochs)
        print(epoch_line(config, row, is_best, left), flush=True)
        if ranks.rank() == 0:
            write_history(run.folder, run.name, run.history)
            if time.monotonic() - page_written >= PAGE_SECONDS:
                write_page(run)
                page_written = time.monotonic()
        if state.epoch % KEEP_EVERY == 0:
            run.write(run.path(str(state.epoch)), run.checkpoint())
        if not run.is_finished and time.monotonic() - saved >= save_every:
            run.save()
            saved = time.monotonic()
    if run.is_finished:  # before ``last``, which cannot be resumed once it says that all is done
        run.write(run.path("final"), run.checkpoint())
        if config.export_weights:
            run.write(exported_weights(run), state.ema_model.state_dict())
        if state.epoch < config.epochs:
            print(f"validation Dice {config.stop_at_dice} reached after {plural(state.epoch, 'epoch')}, {spent:.1f} s")
    run.save()


def train_and_score_epoch(
    state: TrainingState, predictor: Predictor, stop: StopSignal, on_sync: Callable[[TrainingState], None]
) -> dict[str, float] | None:
    """The history's row of the current epoch; None when stopped.

    Raises:
        UserError: a loss or a weight was not finite.
    """
    train_one_epoch(state, stop, on_sync)
    refresh_batchnorm(state, stop)
    check_finite(state)
    if state.step < state.steps_per_epoch:
        return None
    try:
        return score_epoch(state, predictor, stop)
    except StoppedError:
        return None


class StoppedError(Exception):
    """A signal came while a split was scored."""


def score_epoch(state: TrainingState, predictor: Predictor, stop: StopSignal) -> dict[str, float]:
    """The history's row of the epoch that has just been trained.

    Raises:
        StoppedError: a signal came.
    """

    config, steps = state.config, state.steps_per_epoch
    size = min(SCORING_BATCH, config.batch_size)

    def score(split: Split, criterion: Callable[..., Tensor] | None = None) -> Scores:
        rounds = -(-len(split) // size) // ranks.world()  # in which every rank has a batch

        def raise_if_stopped(start: int, *_: Tensor) -> None:
            if start // size < rounds * ranks.world():
                stop.number = ranks.largest(stop.number)
                if stop.number:
                    raise StoppedError

        return evaluate(predictor, split, config.boundary, size, criterion, raise_if_stopped)

    scores = score(state.valid, state.criterion)
    row = {
        "epoch": state.epoch + 1,
        "train_loss": float(state.loss_sum) / steps,
        "valid_loss": scores.loss,
        "valid_dice": float(scores.dice.mean()),
        "learning_rate": config.learning_rate_at((state.global_step - 1) / (config.epochs * steps)),
        "seconds": state.seconds,
        "images_per_second": len(state.train) / state.seconds,
    }
    if config.score_train:
        row["train_dice"] = float(score(state.train).dice.mean())
    return row


def finish_epoch(run: Run, row: dict[str, float]) -> bool:
    """Count the epoch as done, and keep its weights if they are the best so far; returns whether they are."""
    state = run.state
    run.history.append(row)
    state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
    state.loss_sum.zero_()
    is_best = row["valid_dice"] > run.best_dice  # never for NaN
    if is_best:
        run.best_dice = row["valid_dice"]
        run.unsaved_best = copy.deepcopy(run.checkpoint())
    return is_best


def work(config: Config, first: int, last: int) -> float:
    """How much the epochs after ``first`` up to ``last`` cost, in pixels."""
    return sum(config.image_size_at(epoch) ** 2 + OVERHEAD_PIXELS for epoch in range(first + 1, last + 1))


def epoch_line(config: Config, row: dict[str, float], is_best: bool, left: float) -> str:
    """What is printed after an epoch; it begins as report lab2's line does."""
    train_dice = f", Train Dice Score: {row['train_dice']:.4f}" if "train_dice" in row else ""
    return (
        f"Epoch {row['epoch']}/{config.epochs}, Training Loss: {row['train_loss']:.4f}, "
        f"Validation Loss: {row['valid_loss']:.4f}{train_dice}, "
        f"Dice Score: {row['valid_dice']:.4f}{' (best)' if is_best else ''}, LR: {row['learning_rate']:.6f}, "
        f"{row['images_per_second']:.1f} images/s, {tqdm.format_interval(left)} left"
    )


def estimate_length(run: Run) -> Callable[[TrainingState], None]:
    """A callback that says once, after the first steps, how long the run will take."""
    first_step, is_said = run.state.step, False

    def on_sync(state: TrainingState) -> None:
        nonlocal is_said
        steps = state.step - first_step
        if is_said or steps < TIMED_STEPS:
            return
        is_said = True
        config = run.config
        epoch = state.seconds / state.step * state.steps_per_epoch
        seconds = epoch / work(config, state.epoch, state.epoch + 1) * work(config, state.epoch, config.epochs)
        print(f"expected length {tqdm.format_interval(seconds)}", flush=True)
        if state.device.type == "cpu" and seconds > SLOW_HOURS * 3600 and config.recipe != "cpu":
            small = "dataset/oxford-iiit-pet-128"
            flags = ("--model", default_run_name(network_names(), run.network, None), "--recipe", "cpu")
            shrink = shell("python", "tools/shrink_data.py", run.data_path, small, "--size", 128)
            print(
                "for a CPU there is --recipe cpu, on small images; stop with Ctrl-C, then:\n"
                + (f"    {shrink}\n" if config.image_size > 128 else "")
                + f"    {shell('python', 'src/train.py', *flags, '--data_path', small)}",
                flush=True,
            )

    return on_sync


# ---------------------------------------------------------------------------------------------- build and resume


def start_checkpoint(args: argparse.Namespace) -> dict[str, Any] | None:
    """The checkpoint that the run starts from; None for fresh weights.

    Raises:
        UserError: it is not there, or a run is there that the flags do not speak of.
    """
    folder = args.save_path / args.name
    if args.start == "new" and not args.overwrite and any(folder.glob(f"{args.name}_*.pth")):
        can_resume = checkpoint_path(args.save_path, args.name, "last").is_file()
        raise UserError(
            f"{folder} holds a run already. {'Go on with it: --resume. ' if can_resume else ''}"
            "Replace it: --overwrite. Keep it, and train another: --name NAME"
        )
    which = args.checkpoint
    if which is None:
        return None
    path = which if isinstance(which, Path) else checkpoint_path(args.save_path, args.name, which)
    state = load_checkpoint(path)
    if state["epoch"] is None and args.start != "new":
        raise UserError(f"{path} holds weights alone: only --init_from can start from them")
    return state


def resolve_config(args: argparse.Namespace, start: dict[str, Any] | None) -> Config:
    """The run's config: a typed flag takes precedence over the checkpoint's value, that over the recipe's.

    Raises:
        UserError: a flag contradicts the checkpoint.
    """
    fields = {field.name for field in dataclasses.fields(Config)} - {"network", "recipe"}
    typed = {key: value for key, value in vars(args).items() if key in fields and value is not None}
    loaded: Config | None = start["config"] if start else None
    goes_on = args.start != "new"
    recipe = args.recipe or (loaded.recipe if goes_on else "default")
    wanted = RECIPES[recipe](args.model) if recipe in RECIPES else dataclasses.replace(loaded, network=args.model)
    config = dataclasses.replace(loaded if goes_on and recipe == loaded.recipe else wanted, **typed)
    is_asked_for = not goes_on or config.network in (wanted.network, args.model)
    if loaded and (loaded.network != config.network or not is_asked_for):
        raise UserError(f"the checkpoint holds the network {loaded.network}, which --model {args.model} does not fit")
    if not goes_on:
        return config
    if args.start == "resume":
        check_exact(config, loaded)
    if config.epochs <= start["epoch"]:
        done = plural(start["epoch"], "epoch")
        more = "--load_model_epoch final" if depends_on_epochs(config) else "--resume"
        raise UserError(f"{done} of {config.epochs} done; to go on: {more} --epochs MORE")
    if start["scores"].get("valid_dice", 0) >= (config.stop_at_dice or math.inf):
        raise UserError(f"--stop_at_dice {config.stop_at_dice} is reached: --resume --stop_at_dice HIGHER goes on")
    return config


def check_exact(config: Config, loaded: Config) -> None:
    """Refuse to resume with a config under which the epochs so far would have been others."""
    changed = {
        key: value
        for key, value in config.to_dict().items()
        if value != loaded.to_dict()[key] and key != "stop_at_dice"
    }
    if changed.keys() == {"epochs"}:
        if not depends_on_epochs(loaded):
            return
        raise UserError(
            f"the {loaded.schedule} schedule was laid out for {plural(loaded.epochs, 'epoch')}, so --resume cannot "
            "change them; continue from the weights alone: --load_model_epoch best --epochs MORE"
        )
    if "recipe" in changed:
        changed = {"recipe": config.recipe}
    if changed:
        flags = ", ".join(f"--{key} {value} (was {loaded.to_dict()[key]})" for key, value in changed.items())
        raise UserError(
            f"--resume goes on exactly, which it could not with {flags}; leave that out, or continue from the weights "
            "alone: --load_model_epoch best, final or N; or as a new run: --init_from FILE.pth --name NEW"
        )


def depends_on_epochs(config: Config) -> bool:
    """Whether a run of more epochs would have trained the first ones otherwise."""
    return bool(config.schedule == "cosine" or config.warmup or config.progressive)


def build_run(args: argparse.Namespace, device: torch.device) -> Run:
    """Resolve the flags, print what will be done, and load what it takes; nothing of an older run is touched.

    Raises:
        UserError: something is missing or contradicts itself.
    """
    folder = args.save_path / args.name
    start = ranks.from_first(lambda: start_checkpoint(args))
    config = resolve_config(args, start)
    data_path = args.data_path
    if data_path is None and args.start != "new":
        data_path = training_data_path(start["data_path"])
    if data_path is None:
        data_path = DATASET
        if not (DATASET / "annotations").is_dir():
            ranks.from_first(lambda: download(DATASET))
    root = find_root(data_path)
    started_in = start["training"].get("precision") if args.start == "resume" and "training" in start else None
    precision = ranks.from_first(lambda: choose_precision(started_in or config.precision, device))
    print_plan(args, config, device, precision, root)
    if started_in == "bf16" and choose_precision("auto", device) != precision:
        print("note: the run began in bfloat16, and --resume stays with it; float32 would be faster on this machine")
    limits = {"train": config.train_images or config.limit, "valid": config.limit}
    train, valid = (load_split(root, mode, config.image_size, limit) for mode, limit in limits.items())
    fingerprints = [train.fingerprint(), valid.fingerprint()]
    train, valid = train.to(device), valid.to(device)
    on_device = "on the device" if train.pixels.device.type == device.type else "in a memory map: too large for the GPU"
    print(f"    {plural(len(train), 'training image')}, {len(valid)} for validation, {on_device}", flush=True)
    if not any(target_and_weight(part, config.boundary)[0].any() for part in train.pixels[..., 3].split(64)):
        print("note: the training images show no pet; masks of 0 and 255 become trimaps by tools/import_masks.py")
    resolved = root.resolve()
    run = Run(
        args.name,
        args.model,
        folder,
        (resolved.relative_to(REPO) if resolved.is_relative_to(REPO) else resolved).as_posix(),
        create_state(config, device, train, valid),
        provenance(),
        fingerprints,
    )
    run.state.precision = precision
    if run.state.steps_per_epoch * config.epochs == 1 and config.warmup:
        raise UserError("one step in all would train nothing: warm-up begins at a learning rate of 0; take more epochs")
    if start:
        restore(run, start, args)
    return run


def print_plan(
    args: argparse.Namespace, config: Config, device: torch.device, precision: torch.dtype, root: Path
) -> None:
    """Print what will be done, before anything that takes long."""
    with torch.device("meta"):
        parameters = count_parameters(build_network(config.network))
    moments = 1 if config.optimizer == "sgd" else 2  # that the optimizer keeps for each parameter
    kept = 3 + config.epochs // KEEP_EVERY  # the start, the best, the end
    megabytes = parameters * 4e-6 * (kept + 2 + moments)
    side = config.image_size
    print(
        f"{config.network}, {parameters:,} parameters; recipe {config.recipe}: {plural(config.epochs, 'epoch')}, "
        f"batch {config.batch_size}, learning rate {config.learning_rate}, seed {config.seed}\n"
        f"on {describe(device, precision)}; {side}x{side} pixels, boundary counted as "
        f"{config.boundary}\n"
        f"writes to {args.save_path / args.name}, about {megabytes:,.0f} MB\n"
        f"data {root}",
        flush=True,
    )
    if config.progressive:
        sizes = [config.image_size_at(epoch) for epoch in range(1, config.epochs + 1)]
        stages = [f"{size}x{size} from epoch {sizes.index(size) + 1}" for size in dict.fromkeys(sizes)]
        print(f"    progressive resizing, slower with each stage: {', '.join(stages)}", flush=True)


def restore(run: Run, start: dict[str, Any], args: argparse.Namespace) -> None:
    """Take over a checkpoint: all of ``last`` to resume; else the weights and, but for ``--init_from``, the epoch.

    Raises:
        UserError: the data is not what the run trained on.
    """
    state = run.state
    state.ema_model.load_state_dict(start["model"])
    if args.start == "new":
        state.model.load_state_dict(start["model"])
        return
    state.epoch, run.history = start["epoch"], start["history"]
    if args.start == "resume":
        try:
            resume(run, start["training"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, OverflowError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{run.path('last')} is damaged; its training state cannot be resumed: {reason}") from error
        return
    state.model.load_state_dict(start["model"])
    state.ema_step = state.global_step
    if run.path("best").is_file():  # perhaps of a later epoch: only a better one replaces it
        best = load_checkpoint(run.path("best"))
        is_comparable = best["data_path"] == run.data_path and all(
            getattr(best["config"], key) == getattr(run.config, key) for key in ("image_size", "boundary", "limit")
        )
        run.best_dice = best["scores"]["valid_dice"] if is_comparable else -1.0


def resume(run: Run, training: dict[str, Any]) -> None:
    """Take over the training state that ``Run.save`` wrote.

    Raises:
        UserError: the data is not what the run trained on, or the weights are not finite.
        KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, OverflowError: the state is damaged.
    """
    state = run.state
    if run.fingerprints != training["fingerprints"]:
        raise UserError(
            f"{state.train.root} holds other data than the run trained on, here {len(state.train)} training and "
            f"{len(state.valid)} validation images: --resume goes on exactly, and so on the same data only"
        )
    if not have_equal_shapes(training["model"], state.model.state_dict()):
        raise ValueError("its weights are not those of the network")
    state.model.load_state_dict(training["model"])
    load_optimizer(state, training["optimizer"]["state"])
    state.step, state.ema_step, state.seconds = training["step"], training["ema_step"], training["seconds"]
    run.best_dice = training["best_dice"]
    state.loss_sum.copy_(training["loss_sum"])
    right = {
        "step": type(state.step) is int and 0 <= state.step <= state.steps_per_epoch,
        "ema_step": type(state.ema_step) is int and 0 <= state.ema_step <= state.global_step,
        "seconds": type(state.seconds) is float and 0 <= state.seconds < math.inf,
        "best_dice": type(run.best_dice) is float and -1 <= run.best_dice <= 1,
        "loss_sum": math.isfinite(state.loss_sum),
    }
    for name, is_right in right.items():
        if not is_right:
            raise ValueError(f"its {name} cannot be {training[name]!r}")
    check_finite(state)


def load_optimizer(state: TrainingState, moments: dict[int, dict[str, Tensor]]) -> None:
    """Take over what the optimizer keeps of each weight; all else about it follows from the config.

    Raises:
        ValueError: these are not what this optimizer keeps of these weights.
    """
    optimizer, weight = state.optimizer, torch.zeros(1, requires_grad=True)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    weight.grad = torch.zeros(1)
    sample = OPTIMIZERS[state.config.optimizer]([weight], lr=1.0)
    sample.step()
    for view in state.views if moments else ():  # none before the first step
        kept = {name: value.shape for name, value in optimizer.state[view].items()}
        if kept != {name: view.shape if value.ndim else () for name, value in sample.state[weight].items()}:
            raise ValueError("what its optimizer keeps does not fit the weights")


# ---------------------------------------------------------------------------------------------- the script


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; those of the config are None unless typed, because a checkpoint's value precedes the recipe's."""
    recipe = RECIPES["default"]("UNet")
    parser = ArgumentParser("Train a network to separate pets from the background.")
    parser.add_run_options(network_names(), RECIPES)
    add = parser.add_argument
    add(
        "--data_path",
        type=cli.existing_path,
        help="the data set's folder, the one above it, or the one that holds dataset/ "
        f"(default: {DATASET.relative_to(REPO)}, downloaded if it is not there)",
    )
    add("--image_size", type=cli.image_size, help=f"pixels of height and width (default: {recipe.image_size})")
    add("--epochs", type=cli.positive_int, help=f"(default: the recipe's, {recipe.epochs})")
    add("--batch_size", type=cli.positive_int, help=f"images a step (default: the recipe's, {recipe.batch_size})")
    add("--learning_rate", type=cli.positive_float, help=f"at its peak (default: the recipe's, {recipe.learning_rate})")
    add("--train_images", type=cli.positive_int, help="number of training images, evenly spaced (default: all)")
    add("--seed", type=cli.whole_number, help=f"of weights, order and augmentation (default: {recipe.seed})")
    add(
        "--seeds",
        nargs="+",
        type=cli.whole_number,
        metavar="N",
        help="train NAME-seed0, NAME-seed1, ... one after the other; the same command again resumes the list",
    )
    add("--precision", choices=PRECISIONS, help="auto takes bfloat16 where it is faster (default: auto)")
    add("--boundary", choices=BOUNDARIES, help="what a trimap's boundary counts as, in loss and score (default: pet)")
    add("--stop_at_dice", type=cli.fraction, metavar="D", help="end the run when the validation Dice reaches D, 0 to 1")
    add("--save_every", type=cli.seconds, default=60.0, metavar="SECONDS", help="between two saves; 0: each epoch")
    add("--compile", action="store_true", help="compile the network by torch.compile; eager if that fails")
    add("--resume", action="store_true", help="go on with the run exactly where it stopped")
    add(
        "--init_from",
        type=file_or_checkpoint,
        metavar="FILE|best|final|N",
        help="start a new run, at epoch 1, from the weights of a file or of this run's checkpoint",
    )
    add(
        "--load_model_epoch",
        type=cli.which_checkpoint,
        metavar="0|N|last|best|final",
        help="report lab2's flag: last is --resume, 0 is --overwrite; N, best and final continue after that epoch "
        "from the weights alone",
    )
    add("--overwrite", action="store_true", help="remove the run that is there, and start anew")
    args = parser.parse_run_args(argv)
    if not args.model:
        parser.error("which network? --model U or --model R")
    if args.seeds and (args.resume or args.load_model_epoch or args.seed is not None):
        parser.error("--seeds names the seeds and resumes by itself: leave --seed, --resume, --load_model_epoch out")
    resolve_start(parser, args)
    return args


def resolve_start(parser: ArgumentParser, args: argparse.Namespace) -> None:
    """Say how the run starts by ``args.start``, with ``args.checkpoint``: which of the run's, or a file.

    new         from fresh weights (None), or from a checkpoint's
    continue    after a checkpoint's epoch, from its weights alone
    resume      exactly, from ``last``
    """
    which = args.load_model_epoch
    if args.resume + bool(args.init_from) + bool(which) > 1:
        parser.error("--resume, --init_from and --load_model_epoch contradict each other: give one of them")
    args.start, args.checkpoint = "new", args.init_from
    if args.resume or which == "last":
        args.start, args.checkpoint = "resume", "last"
    elif which not in (None, "0"):
        args.start, args.checkpoint = "continue", which
    args.overwrite = args.overwrite or which == "0"
    if args.overwrite and args.start != "new":
        parser.error("--overwrite starts anew, --resume and --load_model_epoch do not: give one of them")


def file_or_checkpoint(text: str) -> str | Path:
    if "." in text and not text.endswith((".pth", ".pt")):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a file that ends in .pth or .pt nor best, last, final or N"
        )
    return cli.existing_path(text) if text.endswith((".pth", ".pt")) else cli.which_checkpoint(text)


def run_flags(run: Run) -> list[object]:
    """The flags that name a run in the next command."""
    names = network_names()
    short = default_run_name(names, run.network, None)
    flags: list[object] = ["--model", short]
    if run.config.recipe != "default":
        flags += ["--recipe", run.config.recipe]
    if run.name != default_run_name(names, run.network, run.config.recipe):
        flags += ["--name", run.name]
    if run.folder.parent != SAVED_MODELS:
        flags += ["--save_path", run.folder.parent]
    return flags


def exported_weights(run: Run) -> Path:
    """Where report lab3 keeps its final weights: saved_models/UNet.pth."""
    return run.folder.parent / f"{run.network}.pth"


def prepare_folder(run: Run, args: argparse.Namespace) -> None:
    """Make the run's folder, without the files of an older run unless it goes on; write ``<name>_config.json``."""
    run.folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temp_files(run.folder, f"{run.name}_*")
    if args.start == "new":
        save_checkpoint(run.path("0"), run.checkpoint())
        for path in run.folder.glob(f"{run.name}_*"):
            if path.suffix in (".pth", ".npy", ".csv", ".png", ".json", ".html") and path != run.path("0"):
                path.unlink()
    content = {
        "config": run.config.to_dict(),
        "data_path": run.data_path,
        "device": describe(run.state.device, run.state.precision),
        **run.provenance,
    }
    with atomic_write(run.folder / f"{run.name}_config.json") as file:
        file.write(json.dumps(content, indent=1).encode())


def write_page(run: Run) -> None:
    """Write ``<name>_report.html``: how far the run is, its curves, and where it comes from."""
    config, state = run.config, run.state
    done = "Finished after" if run.is_finished else "After"
    render_page(
        run.folder / f"{run.name}_report.html",
        f"{run.name}, training",
        lead=f"{done} {state.epoch} of {plural(config.epochs, 'epoch')}: best validation Dice {run.best_dice:.4f}.",
        facts=training_facts(config, run.provenance)
        | {
            "data": f"{run.data_path}, fingerprints {' and '.join(run.fingerprints)} (training, validation)",
            "device": f"{machine()}; {describe(state.device, state.precision)}",
            "training steps": tqdm.format_interval(sum(row["seconds"] for row in run.history)),
        },
        curves=curves({run.name: run.history}),
        is_live=not run.is_finished,
    )


def draw_run(run: Run) -> None:
    """Draw the run's curves, write its page, and draw U's and R's side by side where both have a run."""
    draw_curves({run.name: run.history}, run.folder / f"{run.name}_curves.png")
    write_page(run)
    short = default_run_name(network_names(), run.network, None)
    if not run.name.endswith(short) or short not in ("U", "R"):
        return
    prefix = run.name.removesuffix(short)
    names = [prefix + letter for letter in ("U", "R")]
    histories = {name: read_history(run.folder.parent / name / f"{name}_history.csv") for name in names}
    if all(histories.values()):
        path = run.folder.parent / f"{prefix}UR_curves.png"
        draw_curves(histories, path)
        print(f"wrote {path}")


def resume_after_restart(args: argparse.Namespace) -> None:
    """Have the processes that torchrun started anew, because one died, go on with the run, however it was started."""
    restarts = ranks.largest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))  # each machine counts its own
    if restarts and ranks.from_first(checkpoint_path(args.save_path, args.name, "last").is_file):
        args.start, args.checkpoint = "resume", "last"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.keep_freed_memory()
    device = ranks.join(args.device, args.threads)
    if args.compile and ranks.world() > 1:
        raise UserError("--compile takes one process only")
    if not args.seeds:
        train_run(args, device)
    for seed in dict.fromkeys(args.seeds or ()):
        one = argparse.Namespace(**vars(args) | {"seed": seed, "name": f"{args.name}-seed{seed}"})
        paths = [checkpoint_path(one.save_path, one.name, which) for which in ("final", "last")]
        final, last = ranks.from_first(lambda paths=paths: [path.is_file() for path in paths])
        if final and not args.overwrite:
            config = load_checkpoint(paths[0])["config"]
            for key, value in vars(one).items():
                if value is not None and (trained := getattr(config, key, value)) != value:
                    raise UserError(
                        f"{one.name} is finished, with --{key} {trained} and not {value}; to train others beside it: "
                        "--name NAME, to replace it: --overwrite"
                    )
            print(f"{one.name} is finished")
            continue
        if last and not args.overwrite:
            one.start, one.checkpoint = "resume", "last"
        if number := train_run(one, device):  # a signal that came when the last step was done
            sys.exit(128 + number)


def train_run(args: argparse.Namespace, device: torch.device) -> int:
    """Train the run that the flags name; exits if it is stopped before its end.

    Returns:
        The number of the signal that came, 0 if none did.
    """
    with locked(args.save_path / f".{args.name}.lock") if ranks.rank() == 0 else nullcontext():
        resume_after_restart(args)
        run = build_run(args, device)
        with StopSignal() as stop:
            try:
                if ranks.rank() == 0:
                    prepare_folder(run, args)
                fit(run, stop, args.save_every, args.compile)
            finally:  # also of a run that fails
                if run.history and ranks.rank() == 0:
                    draw_run(run)
    print(f"wrote {run.folder} (checkpoints, {run.name}_config.json, {run.name}_history.csv, {run.name}_report.html)")
    flags, state = run_flags(run), run.state
    if stop.number and not run.is_finished:
        steps = f" and {state.step} of {plural(state.steps_per_epoch, 'step')}" if state.step else ""
        print(
            f"stopped after {plural(state.epoch, 'epoch')}{steps}; go on with: "
            f"{shell('python', 'src/train.py', *flags, '--resume')}"
        )
        sys.exit(128 + stop.number)
    if run.config.export_weights:
        print(f"wrote {exported_weights(run)} (the final weights alone)")
    print(f"best validation Dice {run.best_dice:.4f}; next: {shell('python', 'src/inference.py', *flags)}")
    return stop.number


if __name__ == "__main__":
    run_script(main)
