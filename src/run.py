"""What a run leaves behind: its folder, when and how it is saved, its page, and what is printed about it."""

import copy
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from plumbing import ranks
from plumbing.cli import (
    REPO,
    SAVED_MODELS,
    UserError,
    choose_precision,
    default_run_name,
    describe,
    machine,
    plural,
    shell,
)
from plumbing.files import atomic_write, expendable, remove_stale_temp_files

import torch
from tqdm import tqdm

from checkpoint import FORMAT, checkpoint_path, provenance, save_checkpoint
from models import build_network, count_parameters, network_names
from recipes import Config, network_of
from report import curves, draw_curves, overlay, render_page, training_facts, write_arrays, write_history
from split import Split, images_and_trimaps, targets_lost
from trimap import target_and_weight

FEW_IMAGES = 10  # of validation: fewer choose the best epoch by chance
PAGE_SECONDS = 30  # between two writings of the page
FIXED_COST = 2800  # of an image beside its pixels, in pixels: R at 32x32 is 5 times as fast as at 128x128, not 16


class Run:
    """A run's folder ``saved_models/NAME``; of several ranks, only rank 0 writes."""

    def __init__(self, folder: Path, trainer: Any, log_tensorboard: bool = False) -> None:
        """
        Args:
            folder: its name is the run's, and the prefix of its files.
            trainer: a ``train.Trainer``.
        """
        self.folder, self.name, self.trainer = folder, folder.name, trainer
        self.fingerprints = [trainer.train.fingerprint, trainer.valid.fingerprint]
        self.source_side = trainer.train.source_side()
        root = trainer.train.root.resolve()
        self.data_path = (root.relative_to(REPO) if root.is_relative_to(REPO) else root).as_posix()
        self.provenance = provenance() | {"resumed": False}
        self.best: dict[str, Any] | None = None  # a checkpoint that the next save writes
        self.saved_at, self.published_at = time.monotonic(), -math.inf
        self.log_tensorboard = log_tensorboard and not ranks.rank()

    @staticmethod
    def refuse_to_replace(folder: Path) -> None:
        """Raise UserError if there is a run in the folder."""
        if any(folder.glob(f"{folder.name}_*.pth")):
            can_resume = checkpoint_path(folder.parent, folder.name, "last").is_file()
            raise UserError(
                f"{folder} holds a run already. {'Go on with it: --resume. ' if can_resume else ''}"
                "Replace it: --overwrite. Keep it, and train another: --name NAME"
            )

    # ------------------------------------------------------------------------------------------ start

    def restore(self, start: dict[str, Any], exactly: bool) -> None:
        """Take over a checkpoint of this run.

        Args:
            exactly: with the full training state, which ``last`` has; else the weights, the epoch and the history.

        Raises:
            UserError: the data is not the run's, or the checkpoint is damaged.
        """
        trainer, progress = self.trainer, self.trainer.progress
        try:
            trainer.ema.model.load_state_dict(start["model"])
            progress.epoch, progress.history = start["epoch"], list(start["history"])
            if exactly:
                training = start["training"]
                if training["fingerprints"] != self.fingerprints:
                    raise UserError(
                        f"cannot resume: the images in {self.data_path} differ from the run's (found "
                        f"{len(trainer.train)} training, {len(trainer.valid)} validation)"
                    )
                trainer.model.load_state_dict(training["model"])
                trainer.optimizer.load_state_dict(training["optimizer"])
                progress.step, progress.seconds = training["step"], training["seconds"]
                if not 0 <= progress.step <= trainer.steps:
                    raise ValueError(f"step {progress.step} of {trainer.steps}")
                progress.loss_sum.copy_(training["loss_sum"])
                self.provenance |= {"command": start.get("command"), "resumed": True}  # how the run began
            else:
                trainer.model.load_state_dict(start["model"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(repr(error).split())[:200]
            raise UserError(f"the training state of {self.path('last')} is damaged: {reason}") from error
        steps = f" and {progress.step} of {plural(trainer.steps, 'step')}" if progress.step else ""
        print(f"    goes on after {plural(progress.epoch, 'epoch')}{steps}", flush=True)

    def init_from(self, state: dict[str, Any]) -> None:
        """Take over the weights of a checkpoint of any run. Raises UserError if it is of another network."""
        network = self.trainer.config.network
        if state["config"].network != network:
            raise UserError(f"--init_from holds the network {state['config'].network}, not {network}")
        self.trainer.ema.model.load_state_dict(state["model"])
        self.trainer.model.load_state_dict(state["model"])

    def init_encoder(self, weights: dict[str, torch.Tensor]) -> None:
        """Start the encoder from ``checkpoint.pretrained_encoder``."""
        for model in (self.trainer.ema.model, self.trainer.model):
            model.encoder.load_state_dict(weights)

    def prepare_folder(self, is_new: bool) -> None:
        """Make the folder and write ``<name>_config.json``; a new run removes the files of an older one."""
        if ranks.rank():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_stale_temp_files(self.folder, f"{self.name}_*")
        if is_new:
            self.write("0")
            # Checkpoints last: on Windows, a history that is open in Excel cannot be removed.
            for path in sorted(self.folder.glob(f"{self.name}_*"), key=lambda path: path.suffix == ".pth"):
                if path.suffix in (".pth", ".npy", ".csv", ".png", ".json", ".html") and path != self.path("0"):
                    path.unlink()
            shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
        trainer = self.trainer
        content = {
            "config": trainer.config.to_dict(),
            "data_path": self.data_path,
            "device": describe(trainer.device, trainer.precision),
            **self.provenance,
        }
        with atomic_write(self.folder / f"{self.name}_config.json") as file:
            file.write(json.dumps(content, indent=1).encode())

    # ------------------------------------------------------------------------------------------ save

    def path(self, which: str) -> Path:
        return checkpoint_path(self.folder.parent, self.name, which)

    def checkpoint(self) -> dict[str, Any]:
        """The entries that every checkpoint has; see checkpoint.py."""
        progress = self.trainer.progress
        return {
            "format": FORMAT,
            "config": self.trainer.config.to_dict(),
            "model": self.trainer.ema.model.state_dict(),
            "data_path": self.data_path,
            "source_side": self.source_side,
            "epoch": progress.epoch,
            "scores": progress.history[-1] if progress.history else {},
            "history": list(progress.history),
            "train_names": list(self.trainer.train.names),
            **self.provenance,
        }

    def write(self, which: str, content: dict[str, Any] | None = None) -> None:
        if ranks.rank() == 0:
            save_checkpoint(self.path(which), content or self.checkpoint())

    def keep_as_best(self) -> None:
        """Keep the current weights as the best; the next save writes them."""
        if ranks.rank() == 0:
            self.best = copy.deepcopy(self.checkpoint())

    def save(self, every: float = 0.0) -> None:
        """Write ``best``, if there is a new one, then ``last``: full training state, for ``--resume``.

        Args:
            every: seconds; nothing is written earlier after the last save.
        """
        if ranks.rank() or time.monotonic() - self.saved_at < every:
            return
        if self.best:
            self.write("best", self.best)
            self.best = None
        trainer, progress = self.trainer, self.trainer.progress
        training = {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "step": progress.step,
            "seconds": progress.seconds,
            "loss_sum": progress.loss_sum,
            "fingerprints": self.fingerprints,
            "precision": "bf16" if trainer.precision == torch.bfloat16 else "fp32",
        }
        self.write("last", {**self.checkpoint(), "training": training})
        self.saved_at = time.monotonic()

    def export_weights(self) -> None:
        """Write the final weights alone: ``saved_models/UNet.pth`` as in report lab3; with --name, ``NAME.pth``."""
        config = self.trainer.config
        network = network_of(config)
        is_named = self.name != default_run_name(network_names(), network, config.recipe)
        path = self.folder.parent / f"{self.name if is_named else network}.pth"
        if ranks.rank() == 0:
            save_checkpoint(path, self.trainer.ema.model.state_dict())
        print(f"wrote {path} (the final weights alone)")

    # ------------------------------------------------------------------------------------------ publish

    @expendable("TensorBoard's log")
    def log(self, row: dict[str, float]) -> None:
        """With ``--tensorboard``, log an epoch's row and eight validation overlays, always of the same images."""
        if not self.log_tensorboard:
            return
        from torch.utils.tensorboard import SummaryWriter

        trainer, epoch = self.trainer, int(row["epoch"])
        order = torch.linspace(0, len(trainer.valid) - 1, min(8, len(trainer.valid))).round().long()
        # A resumed run hides what a stopped one logged of later epochs.
        with SummaryWriter(self.folder / "tensorboard", purge_step=epoch) as writer:
            for name in row.keys() - {"epoch"}:
                writer.add_scalar(name, row[name], epoch)
            for pixels in trainer.valid.batches(order, 1, trainer.device):
                images, _ = images_and_trimaps(pixels)
                mask = trainer.predictor.logits(images)[0, 0] > 0
                drawn = overlay(pixels[0, ..., :3].cpu().numpy(), mask.cpu().numpy())
                writer.add_image(trainer.valid.names[int(order[0])], drawn, epoch, dataformats="HWC")
                order = order[1:]

    @expendable("history, curves or page")
    def publish(self, at_end: bool = False) -> None:
        """Write the history and, at most every 30 s, the page; at the end the page and the curves."""
        trainer, progress = self.trainer, self.trainer.progress
        config, history = trainer.config, progress.history
        if ranks.rank() or not history:
            return
        write_history(self.folder, self.name, history)
        if not at_end and time.monotonic() - self.published_at < PAGE_SECONDS:
            return
        done = "Finished after" if trainer.is_finished else "After"
        render_page(
            self.folder / f"{self.name}_report.html",
            f"{self.name}, training",
            lead=f"{done} {progress.epoch} of {plural(config.epochs, 'epoch')}: "
            f"best validation Dice {progress.best_dice:.4f}.",
            facts=training_facts(config, self.provenance)
            | {
                "data": f"{self.data_path}, fingerprints {' and '.join(self.fingerprints)} (training, validation)",
                "device": f"{machine(trainer.device)}; {describe(trainer.device, trainer.precision)}",
                "training steps": tqdm.format_interval(sum(row["seconds"] for row in history)),
            },
            curves=curves({self.name: history}),
            is_live=not trainer.is_finished,
        )
        self.published_at = time.monotonic()
        if at_end:
            write_arrays(self.folder, self.name, history)
            draw_curves({self.name: history}, self.folder / f"{self.name}_curves.png")


# ---------------------------------------------------------------------------------------------- what is printed


def print_plan(config: Config, device: torch.device, precision: torch.dtype, folder: Path, root: Path) -> None:
    """Print what will be done, before anything that takes long."""
    with torch.device("meta"):
        parameters = count_parameters(build_network(config.network))
    sizes = [config.image_size_at(epoch) for epoch in range(1, config.epochs + 1)]
    stages = [f"{size}x{size} from epoch {sizes.index(size) + 1}" for size in dict.fromkeys(sizes)]
    print(
        f"{config.network}, {parameters:,} parameters; recipe {config.recipe}: {plural(config.epochs, 'epoch')}, "
        f"batch {config.batch_size}, learning rate {config.learning_rate}, seed {config.seed}\n"
        f"on {describe(device, precision)}; {config.image_size}x{config.image_size} pixels, boundary counted as "
        f"{config.boundary}\n"
        f"writes to {folder}\ndata {root}",
        flush=True,
    )
    if len(stages) > 1:
        print(f"    progressive resizing, slower with each stage: {', '.join(stages)}")
    if device.type == "cpu" and config.image_size > 128:
        print("note: this takes hours to days on a CPU; faster: --recipe cpu, on data shrunk by tools/shrink_data.py")
    if precision != choose_precision("auto", device) and config.precision == "auto":
        print(f"note: the run began in {str(precision).removeprefix('torch.')}, and resuming stays with it")


def print_data(train: Split, valid: Split, boundary: str) -> None:
    """Print how many images there are, and notes on splits that cannot train or choose well."""
    side = train.pixels.shape[1]
    print(f"    {plural(len(train), 'training image')}, {len(valid)} for validation", flush=True)
    if len(valid) < FEW_IMAGES:
        print(f"note: the best epoch is chosen by {plural(len(valid), 'validation image')} alone")
    if not has_foreground(valid, boundary):
        print("note: no foreground in the validation masks: the epoch with the lowest validation loss counts as best")
    if not has_foreground(train, boundary):
        print("note: no foreground in the training masks; tools/import_masks.py converts masks of 0 and 255")
    lost, enough = targets_lost(train, boundary)
    if lost:
        hint = f"; at {enough}x{enough} none does" if enough else ""
        print(f"note: {lost} of {len(train)} training targets lose all their foreground at {side}x{side}{hint}")


def has_foreground(split: Split, boundary: str) -> bool:
    return any(target_and_weight(part, boundary)[0].any() for part in split.pixels[..., 3].split(64))


def print_epoch(config: Config, row: dict[str, float], is_best: bool, first_epoch: int, seconds: float) -> None:
    """Print the line of an epoch; it begins as report lab2's does.

    Args:
        first_epoch, seconds: epochs done when this process began, and how long ago that was, for the time left.
    """
    costs = [config.image_size_at(epoch) ** 2 + FIXED_COST for epoch in range(1, config.epochs + 1)]
    done, left = sum(costs[first_epoch : int(row["epoch"])]), sum(costs[int(row["epoch"]) :])
    train_dice = f", Train Dice Score: {row['train_dice']:.4f}" if "train_dice" in row else ""
    print(
        f"Epoch {row['epoch']}/{config.epochs}, Training Loss: {row['train_loss']:.4f}, "
        f"Validation Loss: {row['valid_loss']:.4f}{train_dice}, "
        f"Dice Score: {row['valid_dice']:.4f}{' (best)' if is_best else ''}, LR: {row['learning_rate']:.6f}, "
        f"{row['images_per_second']:.1f} images/s, {tqdm.format_interval(seconds * left / done)} left",
        flush=True,
    )


def print_end(run: Run, signal_number: int) -> None:
    """Print what was written, and the next command."""
    trainer, progress, name = run.trainer, run.trainer.progress, run.name
    model = default_run_name(network_names(), network_of(trainer.config), None)
    flags: list[object] = ["--model", model, *(["--name", name] if name != model else [])]
    flags += ["--save_path", run.folder.parent] if run.folder.parent.resolve() != SAVED_MODELS else []
    print(f"wrote {run.folder} (checkpoints, {name}_config.json, {name}_history.csv, {name}_report.html)")
    if signal_number and not trainer.is_finished:
        steps = f" and {progress.step} of {plural(trainer.steps, 'step')}" if progress.step else ""
        command = shell("python", "src/train.py", *flags, "--resume")
        print(f"stopped after {plural(progress.epoch, 'epoch')}{steps}; go on with: {command}")
        return
    if progress.epoch < trainer.config.epochs:
        seconds = sum(row["seconds"] for row in progress.history)
        done = f"{plural(progress.epoch, 'epoch')}, {seconds:.1f} s"
        print(f"validation Dice {trainer.config.stop_at_dice} reached after {done}")
    print(f"best validation Dice {progress.best_dice:.4f}; next: {shell('python', 'src/inference.py', *flags)}")
