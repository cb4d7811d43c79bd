"""Train a network: one step, one epoch, one run.

python src/train.py --model R
"""

import argparse
import copy
import dataclasses
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from augment import Normalise, draw_epoch, recolour, warp
from checkpoint import (
    SETTINGS,
    BackgroundWriter,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
    save_state_dict,
    snapshot,
)
from evaluate import Predictor, evaluate, known_data_path
from losses import BOUNDARIES, LOSSES, truth_and_weight
from models import build_network, count_parameters
from options import (
    DATASET,
    PRECISIONS,
    REPO,
    SAVED_MODELS,
    ArgumentParser,
    StopSignal,
    UserError,
    choose_device,
    choose_precision,
    default_name,
    describe,
    image_side,
    positive_float,
    positive_int,
    run_script,
    share,
    which_checkpoint,
    whole_number,
)
from oxford_pet import Split, download, find_root, images_and_trimaps, load_split
from recipes import RECIPES, Recipe, find_recipe
from report import draw_curves, read_history, write_history

AVERAGE_EVERY = 8  # steps between two updates of the averaged weights: as good as each step, at an eighth of the cost
BATCHNORM_IMAGES = 512  # how many training images the averaged weights' BatchNorm statistics are taken from
BATCHNORM_BATCH = 64  # images, in that
SCORING_BATCH = 64  # images, on valid
WARM_UP_STEPS = 3  # before the step is captured
SECONDS_BETWEEN_LOOKS = 1.0  # how often the host looks at the device's loss, and moves the bar
OPTIMIZERS = {  # by the names of Recipe.optimizer
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


@dataclass
class Run:
    """A run: what it was asked for, what it works on, and what changes while it trains."""

    name: str
    letter: str
    folder: Path
    recipe: Recipe
    settings: dict[str, Any]  # those of checkpoint.SETTINGS, and data_path
    device: torch.device
    precision: torch.dtype
    train: Split
    valid: Split

    model: nn.Module
    average: nn.Module  # the weights that one would use: a moving average with its own BatchNorm statistics, or model
    normalise: Normalise
    optimizer: torch.optim.Optimizer
    learning_rate: Tensor  # a scalar on the device, the optimizer's own: a captured step reads it there

    epoch: int = 0  # done
    step: int = 0  # done in the epoch under way
    averaged_step: int = 0  # of the whole run, at which the average was last brought up to date
    seconds: float = 0.0  # that the epoch under way has trained
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))  # over the steps of the epoch under way
    first_bad: Tensor = field(default_factory=lambda: torch.tensor(-1))  # its first step with a loss that is not finite
    best_dice: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.batch_size)

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def side(self) -> int:
        """Height and width of what the network sees in the epoch under way."""
        return self.recipe.side_at(self.epoch + 1, self.settings["image_size"])

    def path(self, which: str) -> Path:
        return checkpoint_path(self.folder.parent, self.name, which)

    def autocast(self) -> torch.autocast:
        # Each weight is used once a forward, so a cache of cast weights holds memory and saves nothing.
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=enabled, cache_enabled=False)

    def criterion(self, logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
        extra = {"dice_weight": self.recipe.dice_weight} if self.recipe.loss == "bce_dice" else {}
        return LOSSES[self.recipe.loss](logits, truth, weight, **extra)


# ---------------------------------------------------------------------------------------------- one step


def train_step(run: Run, pixels: Tensor, theta: Tensor, colour: Tensor) -> Tensor:
    """Warp, normalise, forward, loss, backward, update. Nothing here waits for the device.

    Args:
        pixels: (N, S, S, 4) uint8, red, green, blue and trimap, on the device.
        theta, colour: the batch's part of ``augment.EpochPlan``, on the device.

    Returns:
        The loss, a scalar on the device.
    """
    images, trimaps = images_and_trimaps(pixels)
    images, trimaps = warp(images, trimaps, theta, run.side)
    truth, weight = truth_and_weight(trimaps, run.settings["boundary"])
    with run.autocast():
        logits = run.model(run.normalise(recolour(images, colour)))
    loss = run.criterion(logits, truth, weight)
    loss.backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss.detach()


class CapturedStep:
    """``train_step`` on CUDA, replayed as one graph: to launch its kernels one by one takes the host longer than to run
    them takes the device. Elsewhere it is ``train_step`` and nothing else.

    The first steps at each picture size are done as they are: they choose cuDNN's algorithms and create the optimizer's
    state, which a capture may not. They are steps of the run like all others. All batches have one shape, because the
    plan of an epoch fills up its last one. Source: PyTorch's notes on CUDA graphs, "Whole-network capture".
    """

    def __init__(self, run: Run, enabled: bool | None = None) -> None:
        self.run = run
        self.enabled = run.device.type == "cuda" if enabled is None else enabled
        self.warm_ups: dict[int, int] = {}  # by picture size
        self.graphs: dict[int, tuple[Any, Tensor]] = {}  # by picture size: the graph, and the loss that it writes
        self.inputs: list[Tensor] = []  # that every graph reads
        self.stream = torch.cuda.Stream() if self.enabled else None
        self.pool = torch.cuda.graph_pool_handle() if self.enabled else None  # of memory; no two graphs run at once

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not self.enabled:
            return train_step(self.run, *inputs)
        side = self.run.side
        if self.warm_ups.get(side, 0) < WARM_UP_STEPS:
            self.warm_ups[side] = self.warm_ups.get(side, 0) + 1
            return self._beside(inputs)
        if side not in self.graphs and not self._capture(side, inputs):
            return train_step(self.run, *inputs)
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        graph, loss = self.graphs[side]
        graph.replay()
        return loss

    def _beside(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """A step on the stream of the capture: what PyTorch keeps by stream is then warm."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = train_step(self.run, *inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _capture(self, side: int, inputs: tuple[Tensor, ...]) -> bool:
        """Record the step; nothing is done yet. False where the network does what no graph can hold."""
        self.inputs = self.inputs or [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                loss = train_step(self.run, *self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"note: the step cannot be a CUDA graph, and is slower without ({str(error).splitlines()[0]})")
            self.run.optimizer.zero_grad()
            self.enabled = False
            return False
        self.graphs[side] = graph, loss
        return True


@torch.no_grad()
def update_average(run: Run) -> None:
    """Move the averaged weights towards the trained ones, by a window of a tenth of the steps so far.

    It is ``average_steps`` at most. Starting short, it does not hold a run of a few epochs back.
    """
    if run.average is run.model:
        return
    steps = run.global_step - run.averaged_step
    window = min(run.recipe.average_steps, run.global_step / 10)
    torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), min(1.0, steps / window))
    run.averaged_step = run.global_step


# ---------------------------------------------------------------------------------------------- one epoch


def train_one_epoch(run: Run, step: Callable[..., Tensor], stop: StopSignal) -> None:
    """Do the steps that are left of the epoch after ``run.epoch``; a stop signal ends it between two of them.

    Args:
        step: ``train_step`` of this run, or its ``CapturedStep``.

    Raises:
        UserError: a loss was not finite.
    """
    recipe, steps, size = run.recipe, run.steps_per_epoch, run.recipe.batch_size
    epoch = run.epoch + 1
    plan = draw_epoch(recipe.augmentation_at(epoch), len(run.train), size, run.settings["seed"], epoch)
    on_device = plan.to(run.device)
    run.model.train()

    def look() -> None:
        """The one place where the host waits for the device within an epoch."""
        bad = int(run.first_bad)
        if bad >= 0:
            names = sorted({run.train.names[index] for index in plan.order[bad * size : (bad + 1) * size]})
            raise UserError(
                f"the loss was not finite at epoch {epoch}, step {bad + 1} of {steps}, on: {', '.join(names)}. "
                f"The checkpoints up to epoch {run.epoch} stay. Try a lower --learning_rate, or --precision fp32."
            )
        bar.update(run.step - bar.n)

    bar = tqdm(
        total=steps, initial=run.step, desc=f"epoch {epoch}/{recipe.epochs}", unit=" steps", leave=False, disable=None
    )
    started = looked = time.monotonic()
    seconds_before = run.seconds
    torch.backends.cudnn.benchmark = True  # all batches have one shape: the search for the fastest kernels pays
    with bar:
        for pixels in run.train.batches(plan.order[run.step * size :], size, run.device):
            if stop.number:
                break
            run.learning_rate.fill_(recipe.learning_rate_at(run.global_step / (recipe.epochs * steps)))
            slots = slice(run.step * size, (run.step + 1) * size)
            loss = step(pixels, on_device.theta[slots], on_device.colour[slots])
            run.loss_sum += loss
            run.first_bad.copy_(torch.where((run.first_bad < 0) & ~loss.isfinite(), run.step, run.first_bad))
            run.step += 1
            if run.global_step - run.averaged_step >= AVERAGE_EVERY or run.step == steps:
                update_average(run)
            if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
                look()
                looked = time.monotonic()
        look()
    torch.backends.cudnn.benchmark = False  # what follows has other shapes, and comes too rarely
    run.seconds = seconds_before + time.monotonic() - started


@torch.no_grad()
def refresh_batchnorm(run: Run) -> None:
    """Give the averaged weights BatchNorm statistics of their own: those of the trained weights do not fit them.

    Taken from evenly spaced training images as they are, which is also what is predicted later.
    """
    if run.average is run.model:
        return
    count = min(len(run.train), BATCHNORM_IMAGES)
    order = torch.linspace(0, len(run.train) - 1, count).round().long()
    uses: Counter[nn.Module] = Counter()

    def take_the_mean(norm: nn.Module, _: object) -> None:
        """Over all batches; what momentum=None does too, but that reads its count back from the device each time."""
        uses[norm] += 1
        norm.momentum = 1 / uses[norm]

    norms = [module for module in run.average.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_pre_hook(take_the_mean) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    run.average.train()
    with run.autocast():
        for part in run.train.batches(order, BATCHNORM_BATCH, run.device):
            if len(part) > 1 or count == 1:
                run.average(run.normalise(images_and_trimaps(part)[0]))
    for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
        norm.momentum = momentum
        hook.remove()


# ---------------------------------------------------------------------------------------------- one run


def fit(run: Run, stop: StopSignal, writer: BackgroundWriter) -> None:
    """Train to the recipe's last epoch, to a wanted Dice or to a stop signal; save after each epoch and at the stop."""
    recipe, steps = run.recipe, run.steps_per_epoch
    predictor = Predictor(run.average, run.normalise, run.device, run.precision)
    step = CapturedStep(run)
    work = [recipe.side_at(epoch + 1, run.settings["image_size"]) ** 2 for epoch in range(recipe.epochs)]
    started, first_epoch = time.monotonic(), run.epoch
    while run.epoch < recipe.epochs and not stop.number:
        train_one_epoch(run, step, stop)
        refresh_batchnorm(run)
        if run.step < steps:
            save_last(run, writer)
            return
        scores = evaluate(predictor, run.valid, run.settings["boundary"], SCORING_BATCH, run.criterion)
        row = {
            "epoch": run.epoch + 1,
            "train_loss": float(run.loss_sum) / steps,
            "valid_loss": scores.loss,
            "valid_dice": float(scores.dice.mean()),
            "learning_rate": recipe.learning_rate_at((run.global_step - 1) / (recipe.epochs * steps)),
            "seconds": run.seconds,
            "images_per_second": len(run.train) / run.seconds,
        }
        if recipe.score_train:
            on_train = evaluate(predictor, run.train, run.settings["boundary"], SCORING_BATCH)
            row["train_dice"] = float(on_train.dice.mean())
        run.history.append(row)
        run.epoch, run.step, run.seconds = run.epoch + 1, 0, 0.0
        run.loss_sum.zero_()
        is_best = row["valid_dice"] > run.best_dice  # never for NaN
        seconds = time.monotonic() - started
        left = clock(seconds / sum(work[first_epoch : run.epoch]) * sum(work[run.epoch :]))
        best = " (best)" if is_best else ""
        print(recipe.epoch_line.format(**row, epochs=recipe.epochs, best=best, left=left), flush=True)
        if is_best:
            run.best_dice = row["valid_dice"]
            save_weights(run, "best", writer)
        if run.epoch % 50 == 0:
            save_weights(run, str(run.epoch), writer)
        if is_finished(run):
            save_weights(run, "final", writer)
            if run.letter in recipe.state_dicts:
                path, state = run.folder.parent / recipe.state_dicts[run.letter], snapshot(run.average.state_dict())
                writer.put(path, partial(save_state_dict, path, state))
        writer.put(run.folder / "history", partial(write_history, run.folder, run.name, list(run.history)))
        save_last(run, writer)  # last, so that what it says is done has been written, whenever the power fails
        if is_finished(run) and run.epoch < recipe.epochs:
            print(
                f"valid Dice {run.settings['stop_at_dice']} is reached after {run.epoch} epochs, "
                f"{seconds:.1f} s after the first step began",
                flush=True,
            )
            return


def is_finished(run: Run) -> bool:
    """Whether all epochs are done, or the last of them has reached ``stop_at_dice``."""
    wanted = run.settings["stop_at_dice"] or math.inf
    return run.epoch == run.recipe.epochs or (bool(run.history) and run.history[-1]["valid_dice"] >= wanted)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def weights(run: Run) -> dict[str, Any]:
    """What every checkpoint holds; see checkpoint.py."""
    return {
        "network": run.recipe.networks[run.letter],
        "model": run.average.state_dict(),
        "recipe": run.recipe.to_dict(),
        "run": run.settings,
        "epoch": run.epoch,
        "scores": run.history[-1] if run.history else {},
        "history": run.history,
    }


def save_weights(run: Run, which: str, writer: BackgroundWriter) -> None:
    save(run.path(which), weights(run), writer)


def save(path: Path, state: dict[str, Any], writer: BackgroundWriter) -> None:
    """Save as it is now, while the training goes on."""
    writer.put(path, partial(save_checkpoint, path, snapshot(state)))


def save_last(run: Run, writer: BackgroundWriter) -> None:
    """Write ``<name>_last.pth``: everything that resuming exactly needs."""
    training = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "averaged_step": run.averaged_step,
        "seconds": run.seconds,
        "loss_sum": run.loss_sum,
        "best_dice": run.best_dice,
        "samples": [len(run.train), len(run.valid)],
    }
    save(run.path("last"), {**weights(run), "training": training}, writer)


def continue_from(run: Run, state: dict[str, Any]) -> None:
    """Take over a checkpoint: all of ``last``; of the others the weights and the epoch, with a fresh optimizer."""
    run.average.load_state_dict(state["model"])
    run.epoch, run.history = state["epoch"], state["history"]
    training = state.get("training")
    if training is not None:
        samples = [len(run.train), len(run.valid)]
        if samples != training["samples"]:
            raise UserError(
                f"the run trained on {training['samples']} images (train, valid), but {run.train.root} has {samples}: "
                "--load_model_epoch last resumes exactly, and so on the same data only"
            )
        run.model.load_state_dict(training["model"])
        run.optimizer.load_state_dict(training["optimizer"])
        for group in run.optimizer.param_groups:
            group["lr"] = run.learning_rate
            if "capturable" in group:  # as of this device, not of the one that the checkpoint was written on
                group["capturable"] = run.device.type == "cuda"
        run.step, run.averaged_step = training["step"], training["averaged_step"]
        run.seconds, run.best_dice = training["seconds"], training["best_dice"]
        run.loss_sum.copy_(training["loss_sum"])
        return
    run.model.load_state_dict(state["model"])
    run.averaged_step = run.global_step
    if run.path("best").is_file():  # which may be of a later epoch: it gives way only to a better one
        best = load_checkpoint(run.path("best"))
        same_scale = all(
            best["run"][key] == run.settings[key] for key in ("image_size", "boundary", "limit", "data_path")
        )
        run.best_dice = best["scores"]["valid_dice"] if same_scale else -1.0


# ---------------------------------------------------------------------------------------------- the script

RECIPE_FLAGS = ("epochs", "batch_size", "learning_rate")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; None where one is not typed, because then a loaded checkpoint's value goes before the default."""
    recipe = RECIPES["default"]
    parser = ArgumentParser("Train a network to separate pets from the background.")
    parser.add_run_options(RECIPES)
    add = parser.add_argument
    add(
        "--data_path",
        type=Path,
        help="the data set's folder, the one above it, or the one that holds dataset/ "
        f"(default: {DATASET.relative_to(REPO)}, downloaded if it is not there)",
    )
    add(
        "--image_size",
        type=image_side,
        help=f"height and width of what the network sees, in pixels (default: {SETTINGS['image_size']})",
    )
    add("--epochs", type=positive_int, help=f"passes over the training images (default: the recipe's, {recipe.epochs})")
    add("--batch_size", type=positive_int, help=f"images a step (default: the recipe's, {recipe.batch_size})")
    add("--learning_rate", type=positive_float, help=f"at its peak (default: the recipe's, {recipe.learning_rate})")
    add("--train_images", type=positive_int, help="train on so many only, evenly spaced; valid and test stay whole")
    add("--seed", type=whole_number, help=f"of weights, order and augmentation (default: {SETTINGS['seed']})")
    add(
        "--precision",
        choices=PRECISIONS,
        help="what the network computes in; auto takes bfloat16 where the device has it (default: auto)",
    )
    add("--boundary", choices=BOUNDARIES, help="what a trimap's boundary counts as, in loss and score (default: pet)")
    add(
        "--load_model_epoch",
        type=which_checkpoint,
        metavar="0|N|last|best|final",
        help="last resumes exactly; N, best and final continue from those weights with a fresh optimizer and the "
        "schedule at that epoch; 0 starts from scratch, over an older run too (default: from scratch if none is there)",
    )
    add(
        "--stop_at_dice",
        type=share,
        metavar="D",
        help="end the run, as if it were its last epoch, as soon as the valid Dice is at least this, 0 to 1",
    )
    add("--overwrite", action="store_true", help="start from scratch and remove the run that is there")
    args = parser.parse_run_args(argv)
    if not args.model:
        parser.error("say which network: --model U or --model R")
    if args.overwrite and args.load_model_epoch not in (None, "0"):
        parser.error("--overwrite starts from scratch, --load_model_epoch does not: give one of them")
    return args


def settle(args: argparse.Namespace, state: dict[str, Any] | None) -> tuple[Recipe, dict[str, Any]]:
    """The recipe and the settings: a typed flag goes before the loaded checkpoint, that before the defaults.

    Raises:
        UserError: the checkpoint is to be resumed exactly and a flag asks for something else.
    """
    typed = {key: value for key, value in vars(args).items() if value is not None}
    if state is None:
        recipe, settings = find_recipe(typed.get("recipe", "default")), dict(SETTINGS)
    else:
        recipe, settings = Recipe.from_dict(state["recipe"]), SETTINGS | state["run"]
        if typed.get("recipe", recipe.name) != recipe.name:
            recipe = find_recipe(typed["recipe"])
    recipe = recipe.for_letter(args.model)
    new_recipe = dataclasses.replace(recipe, **{key: typed[key] for key in RECIPE_FLAGS if key in typed})
    new_settings = settings | {key: typed[key] for key in SETTINGS if key in typed}
    if args.load_model_epoch == "last":
        loaded = Recipe.from_dict(state["recipe"]).to_dict()
        old, new = {**loaded, **settings}, {**new_recipe.to_dict(), **new_settings}
        changed = [
            f"--{key if key != 'name' else 'recipe'} {new[key]} (was {old[key]})" for key in new if new[key] != old[key]
        ]
        if changed:
            raise UserError(
                f"--load_model_epoch last resumes exactly, which {', '.join(changed)} would not be; leave that out, "
                "or continue from the weights alone with --load_model_epoch best, final or N"
            )
    return new_recipe, new_settings


def prepare(args: argparse.Namespace) -> Run:
    """Settle what to do, say it, and load what it takes. Nothing of an older run is touched.

    Raises:
        UserError: something is missing, or stands in the way.
    """
    folder = args.save_path / args.name
    start = args.load_model_epoch
    if start is None and not args.overwrite and any(folder.glob(f"{args.name}_*.pth")):
        raise UserError(
            f"{folder} holds a run already. Resume it: --load_model_epoch last. Replace it: --overwrite. "
            "Keep it, and train another: --name NAME"
        )
    state = load_checkpoint(checkpoint_path(args.save_path, args.name, start)) if start not in (None, "0") else None
    recipe, settings = settle(args, state)
    network = recipe.networks[args.model]
    if state and state["network"] != network:
        raise UserError(f"the run {args.name} is a {state['network']}, not a {network}: --model does not fit it")
    if state and recipe.epochs <= state["epoch"]:
        raise UserError(
            f"the run {args.name} has done {state['epoch']} of {recipe.epochs} epochs: nothing is left to do. "
            "To go on: --load_model_epoch final --epochs MORE"
        )
    if state and state["scores"] and state["scores"]["valid_dice"] >= (settings["stop_at_dice"] or math.inf):
        raise UserError(
            f"the run {args.name} has reached --stop_at_dice {settings['stop_at_dice']}: nothing is left to do. "
            "To go on: --load_model_epoch final --stop_at_dice HIGHER"
        )
    if recipe.batch_size * (recipe.side_at(1, settings["image_size"]) // 32) ** 2 < 2:
        raise UserError("a batch of 1 below 64x64 pixels leaves BatchNorm a single value; take 2 or more")
    device = choose_device(args.device)
    precision = choose_precision(settings["precision"], device)

    data_path = args.data_path or (known_data_path(settings) if state else DATASET)
    if args.data_path is None and data_path == DATASET and not (DATASET / "annotations").is_dir():
        download(DATASET)
    root = find_root(data_path)
    resolved = root.resolve()
    settings["data_path"] = str(resolved.relative_to(REPO) if resolved.is_relative_to(REPO) else resolved)

    torch.manual_seed(settings["seed"])
    model = build_network(network)
    average = model
    if recipe.average_steps:
        average = copy.deepcopy(model).requires_grad_(False)
    side = settings["image_size"]
    print(
        f"{network}, {count_parameters(model):,} parameters; recipe {recipe.name}: {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}, learning rate {recipe.learning_rate}, seed {settings['seed']}\n"
        f"on {describe(device, precision)}; {side}x{side} pixels, boundary counts as {settings['boundary']}\n"
        f"data {root}",
        flush=True,
    )
    limits = {"train": settings["train_images"] or settings["limit"], "valid": settings["limit"]}
    train, valid = (load_split(root, mode, side, limit).to(device) for mode, limit in limits.items())
    where = "on the device" if train.pixels.device.type == device.type else "in a memory map, as they do not fit"
    print(
        f"    train {len(train)}, valid {len(valid)} images, {where}\n"
        f"writes to {folder}" + (f", continues after epoch {state['epoch']} ({start})" if state else ""),
        flush=True,
    )

    model, average = (part.to(device, memory_format=torch.channels_last) for part in (model, average))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    undecayed = [p for p in model.parameters() if p.ndim <= 1]  # BatchNorm and biases
    learning_rate = torch.tensor(0.0, device=device)
    optimizer = OPTIMIZERS[recipe.optimizer](
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": undecayed, "weight_decay": 0.0}],
        lr=learning_rate,
        fused=True,
        **({"capturable": True} if device.type == "cuda" and recipe.optimizer != "sgd" else {}),
    )
    run = Run(
        args.name,
        args.model,
        folder,
        recipe,
        settings,
        device,
        precision,
        train,
        valid,
        model,
        average,
        Normalise(recipe.mean, recipe.std).to(device),
        optimizer,
        learning_rate,
    )
    run.loss_sum, run.first_bad = run.loss_sum.to(device), run.first_bad.to(device)
    if state:
        continue_from(run, state)
    return run


def clear_folder(run: Run) -> None:
    """Remove what an older run of that name left."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for path in run.folder.glob(f"{run.name}_*"):
        if path.suffix in (".pth", ".npy", ".csv", ".png", ".json"):
            path.unlink()


def draw_run(run: Run) -> None:
    """Draw the run's curves, and both networks' side by side where the other one's run stands beside this one."""
    draw_curves({run.name: run.history}, run.folder / f"{run.name}_curves.png")
    prefix = run.name.removesuffix(run.letter)
    if prefix != run.name:
        names = [prefix + letter for letter in ("U", "R")]
        histories = {name: read_history(run.folder.parent / name / f"{name}_history.csv") for name in names}
        if all(histories.values()):
            path = run.folder.parent / f"{prefix}UR_curves.png"
            draw_curves(histories, path)
            print(f"wrote {path}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    run = prepare(args)
    where = "" if args.save_path == SAVED_MODELS else f" --save_path {args.save_path}"
    again = f"--model {run.letter}"
    if args.recipe not in (None, "default"):
        again += f" --recipe {args.recipe}"
    if run.name != default_name(run.letter, args.recipe):
        again += f" --name {run.name}"
    again += where
    with StopSignal() as stop:
        try:
            with BackgroundWriter() as writer:
                if args.load_model_epoch in (None, "0"):
                    clear_folder(run)
                    save_weights(run, "0", writer)
                fit(run, stop, writer)
        finally:  # also of a run that fails
            if run.history:
                draw_run(run)
    curves = f", {run.name}_history.csv, {run.name}_curves.png" if run.history else ""
    print(f"wrote {run.folder} (checkpoints{curves})")
    if stop.number and not is_finished(run):
        done = f"epoch {run.epoch}" + (f" and {run.step} of {run.steps_per_epoch} steps" if run.step else "")
        print(f"stopped after {done}; go on with: python src/train.py {again} --load_model_epoch last")
        sys.exit(128 + stop.number)
    if run.letter in run.recipe.state_dicts:
        print(f"wrote {args.save_path / run.recipe.state_dicts[run.letter]} (the final weights alone)")
    print(f"best valid Dice {run.best_dice:.4f}; next: python src/inference.py {again}")


if __name__ == "__main__":
    run_script(main)
