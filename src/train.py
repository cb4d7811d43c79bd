"""Train a network: config, data, model, loop, save.

python src/train.py --model R
"""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from plumbing import cli, ranks
from plumbing.cli import UserError, choose_precision, run_script
from plumbing.files import locked
from plumbing.stop import Stopped, StopSignal

import torch
from torch import Tensor
from tqdm import tqdm

from augment import EpochPlan, Normalise, draw_epoch, recolour, warp
from checkpoint import checkpoint_path, load_checkpoint, pretrained_encoder
from engine import EMA, Progress, make_optimizer, try_device
from losses import LOSSES
from metrics import evaluate
from models import build_network
from oxford_pet import DATASET, download, find_root, training_data_path
from predictor import Predictor
from recipes import Config
from run import Run, print_data, print_end, print_epoch, print_plan
from settings import parse_args, resolve_config
from split import Split, images_and_trimaps, load_split
from trimap import target_and_weight

KEEP_EVERY = 50  # epochs between two checkpoints that stay (report lab2)
EVAL_BATCH = 64  # largest evaluation batch; never above batch_size, which is known to fit
BATCHNORM_IMAGES = 512  # training images that the EMA weights' BatchNorm statistics are computed from


# ---------------------------------------------------------------------------------------------- one epoch


class Trainer:
    """A network in training.

    Attributes:
        progress: how far the training is.
        precision: the dtype that the network computes in.
        predictor: the network as it is scored: EMA weights, with their own BatchNorm statistics.
    """

    def __init__(
        self, config: Config, device: torch.device, train: Split, valid: Split, precision: torch.dtype
    ) -> None:
        """Build the network from ``config.seed``. Raises UserError where the ranks cannot share a batch equally."""
        if config.batch_size % ranks.world():
            raise UserError(f"--batch_size {config.batch_size} cannot be divided by {ranks.world()} processes")
        self.steps = math.ceil(len(train) / config.batch_size)  # of an epoch
        if self.steps * config.epochs == 1 and config.warmup:
            raise UserError("a run of one step trains nothing: warm-up begins at a learning rate of 0; add epochs")
        self.config, self.device, self.train, self.valid, self.precision = config, device, train, valid, precision
        torch.manual_seed(config.seed)
        model = build_network(config.network).to(device, memory_format=cli.memory_format(device))
        self.ema = EMA(model, config.ema_steps)
        self.model, self.forward = ranks.distribute(model)
        self.optimizer = make_optimizer(self.model, config)
        self.normalise = Normalise(config.mean, config.std).to(device)
        self.criterion = LOSSES[config.loss]
        self.predictor = Predictor.from_model(self.ema.model, config, device, precision)
        self.progress = Progress(torch.zeros((), device=device))

    @property
    def is_finished(self) -> bool:
        """True when all epochs are done, or the last one reached ``stop_at_dice``."""
        wanted, history = self.config.stop_at_dice or math.inf, self.progress.history
        return self.progress.epoch >= self.config.epochs or bool(history and history[-1]["valid_dice"] >= wanted)

    @property
    def global_step(self) -> int:
        return self.progress.epoch * self.steps + self.progress.step

    def autocast(self) -> torch.autocast:
        # Each weight is used once in a forward pass, so a cache of cast weights holds memory and saves nothing.
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=enabled, cache_enabled=False)

    def train_step(self, pixels: Tensor, theta: Tensor, colour: Tensor, side: int) -> Tensor:
        """Augment, forward, loss, backward, update; nothing waits for the device.

        Args:
            pixels: (N, S, S, 4) uint8: red, green, blue, trimap.
            theta, colour: the batch's part of ``augment.EpochPlan``, (N, 2, 3) and (N, 2).
            side: height and width of the network's input.

        Returns:
            The loss, a scalar on the device.
        """
        images, trimaps = warp(*images_and_trimaps(pixels), theta, side)  # (N, 3, side, side), (N, 1, side, side)
        target, weight = target_and_weight(trimaps, self.config.boundary)
        with self.autocast():
            outputs = self.forward(self.normalise(recolour(images, colour)))
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]  # several: deep supervision
        loss = sum(self.criterion(logits, target, weight) for logits in outputs) / len(outputs)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def train_epoch(self, stop: StopSignal) -> None:
        """Train the rest of the current epoch. Its randomness follows from (seed, epoch) alone.

        Raises:
            UserError: a loss or a weight is not finite.
            Stopped: a signal came.
        """
        config, progress, epoch = self.config, self.progress, self.progress.epoch + 1
        plan = draw_epoch(config.augmentation_at(epoch), len(self.train), config.batch_size, config.seed, epoch)
        plan = EpochPlan(*(ranks.shard(part, config.batch_size) for part in (plan.order, plan.theta, plan.colour)))
        on_device, size, side = plan.to(self.device), config.batch_size // ranks.world(), config.image_size_at(epoch)
        batches = self.train.batches(plan.order[progress.step * size :], size, self.device)
        self.model.train()
        started = time.perf_counter() - progress.seconds
        with tqdm(
            total=self.steps, initial=progress.step, desc=f"epoch {epoch}/{config.epochs}", leave=False, disable=None
        ) as bar:
            for pixels in stop.between(batches):
                for group in self.optimizer.param_groups:
                    group["lr"] = config.learning_rate_at(self.global_step / (config.epochs * self.steps))
                torch.manual_seed(config.seed + self.global_step)  # for dropout: a resumed run draws alike
                part = slice(progress.step * size, (progress.step + 1) * size)
                progress.loss_sum += self.train_step(pixels, on_device.theta[part], on_device.colour[part], side)
                progress.step += 1
                progress.seconds = time.perf_counter() - started
                self.ema.update(progress.step, self.steps, self.global_step)
                bar.update()
        self.check_finite()
        progress.seconds = time.perf_counter() - started
        with self.autocast():
            self.ema.refresh_batchnorm(stop.between(self.plain_batches()))

    def check_finite(self) -> None:
        """Raise UserError if a loss or a weight is not finite; waits for the device."""
        values = (self.progress.loss_sum, *self.model.state_dict().values(), *self.ema.model.state_dict().values())
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise UserError(
                f"a loss or a weight was not finite in epoch {self.progress.epoch + 1}; the checkpoints of earlier "
                "epochs stay. Try a lower --learning_rate, or --precision fp32."
            )

    def plain_batches(self) -> Iterator[Tensor]:
        """Evenly spaced training images as inference sees them, without augmentation: (N, 3, S, S), normalised."""
        count = max(2, min(len(self.train), BATCHNORM_IMAGES))
        order = torch.linspace(0, len(self.train) - 1, count).round().long()
        for pixels in self.train.batches(order, max(2, min(EVAL_BATCH, self.config.batch_size)), self.device):
            if len(pixels) > 1:  # one pixel of one image has no variance
                yield self.normalise(images_and_trimaps(pixels)[0])

    def score_epoch(self, stop: StopSignal) -> dict[str, float]:
        """Score the epoch that has just been trained; returns its row of the history.

        Raises:
            Stopped: a signal came.
        """
        size, progress = min(EVAL_BATCH, self.config.batch_size), self.progress
        scores = evaluate(self.predictor, self.valid, size, self.criterion, between=stop.between)
        row = {
            "epoch": progress.epoch + 1,
            "train_loss": float(ranks.mean(progress.loss_sum)) / self.steps,
            "valid_loss": scores.loss,
            "valid_dice": float(scores.dice.mean()),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": progress.seconds,
            "images_per_second": len(self.train) / progress.seconds,
        }
        if self.config.score_train:
            train_scores = evaluate(self.predictor, self.train, size, between=stop.between)
            row["train_dice"] = float(train_scores.dice.mean())
        return row


# ---------------------------------------------------------------------------------------------- the loop


def fit(trainer: Trainer, run: Run, save_every: float, stop: StopSignal) -> None:
    """Train until the run is finished or stopped.

    Args:
        save_every: seconds between two saves of ``best`` and ``last``, at the end of an epoch.
    """
    progress = trainer.progress
    started, first_epoch = time.monotonic(), progress.epoch
    try:
        while not trainer.is_finished:
            trainer.train_epoch(stop)
            row = trainer.score_epoch(stop)
            is_best = progress.is_best(row)
            progress.history.append(row)
            progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, 0.0
            progress.loss_sum.zero_()
            print_epoch(trainer.config, row, is_best, first_epoch, time.monotonic() - started)
            run.log(row)
            if is_best:
                run.keep_as_best()
            if progress.epoch % KEEP_EVERY == 0:
                run.write(str(progress.epoch))
            if not trainer.is_finished:
                run.save(every=save_every)
                run.publish()
        run.write("final")  # first: a finished ``last`` cannot be resumed to write it
        if trainer.config.export_weights:
            run.export_weights()
        run.save()
    except Stopped:
        trainer.check_finite()
        progress.loss_sum = ranks.mean(progress.loss_sum)
        run.save()
    finally:  # also of a run that fails
        run.publish(at_end=True)


# ---------------------------------------------------------------------------------------------- the script


def find_data(typed: Path | None, known: str | None) -> Path:
    """The data set's folder: the typed one, the one that the run was trained on, or the default, downloaded."""
    if typed is None and known is not None:
        typed = training_data_path(known)
    if typed is None:
        ranks.broadcast(lambda: (DATASET / "annotations").is_dir() or download(DATASET))
    return cli.shown(find_root(typed or DATASET))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.keep_freed_memory()
    device = ranks.join(args.device, args.threads)
    if args.compile and ranks.world() > 1:
        raise UserError("--compile takes one process only")
    folder = args.save_path / args.name
    with nullcontext() if ranks.rank() else locked(folder.parent / f".{folder.name}.lock"):
        last = checkpoint_path(args.save_path, args.name, "last")
        exactly = args.resume or (ranks.is_restarted() and ranks.broadcast(last.is_file))
        which = "last" if exactly else None if args.overwrite else args.load_model_epoch
        start = which and ranks.broadcast(lambda: load_checkpoint(checkpoint_path(args.save_path, args.name, which)))
        if not start and not args.overwrite:
            ranks.broadcast(lambda: Run.refuse_to_replace(folder))
        weights = load_checkpoint(args.init_from) if args.init_from and not start else None
        config = resolve_config(args.model, args.typed, start, exactly, args.base)
        device = try_device(device, config)
        training = start.get("training") if exactly else None
        wanted = training.get("precision", config.precision) if isinstance(training, dict) else config.precision
        precision = ranks.broadcast(lambda: choose_precision(wanted, device))
        encoder = None
        if config.pretrained and not start:
            encoder = ranks.broadcast(lambda: pretrained_encoder(config.network, config.pretrained))
        root = find_data(args.data_path, start["data_path"] if start else args.data_of_base)
        print_plan(config, device, precision, folder, root)
        train = load_split(root, "train", config.image_size, config.train_images or config.limit)
        valid = load_split(root, "valid", config.image_size, config.limit)
        print_data(train, valid, config.boundary)
        trainer = Trainer(config, device, train.to(device), valid.to(device), precision)
        torch.backends.cudnn.benchmark = True  # all training batches have one shape: finding the fastest kernels pays
        if args.compile:
            trainer.forward = torch.compile(trainer.model, dynamic=False)

        run = Run(folder, trainer, args.tensorboard)
        if start:
            run.restore(start, exactly)
        elif weights:
            run.init_from(weights)
        elif encoder:
            run.init_encoder(encoder)
        with StopSignal() as stop:
            run.prepare_folder(is_new=not start)
            if not exactly:
                run.save()
            fit(trainer, run, args.save_every, stop)
        print_end(run, stop.number)
    if stop.number and not trainer.is_finished:
        sys.exit(128 + stop.number)


if __name__ == "__main__":
    run_script(main)
