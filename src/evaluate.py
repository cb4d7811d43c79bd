"""Dice and IoU per picture: the one scorer of training, evaluation and inference. As a script: of a checkpoint."""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from atomic import atomic_write
from augment import Normalise
from checkpoint import SETTINGS, checkpoint_path, load_checkpoint
from losses import truth_and_weight
from models import build_network
from models.blocks import pad_to_multiple
from options import (
    DATASET,
    REPO,
    ArgumentParser,
    UserError,
    choose_device,
    choose_precision,
    describe,
    image_side,
    positive_int,
    run_script,
    which_checkpoint,
)
from oxford_pet import (
    Split,
    cpu_cores,
    decode_trimap,
    find_root,
    image_path,
    images_and_trimaps,
    load_split,
    trimap_path,
)
from recipes import RECIPES, Recipe


def dice_and_iou(pred: Tensor, truth: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Dice = 2 |P and T| / (|P| + |T|) and IoU = |P and T| / |P or T| of each picture.

    With nothing in truth and nothing predicted both are 1; with only one of the two empty they are 0.

    Args:
        pred, truth: (N, 1, H, W) bool.
        weight: (N, 1, H, W) bool; pixels where it is false count nowhere.

    Returns:
        (N,) float64 each (float32 where the device has no float64).
    """
    dtype = torch.float32 if pred.device.type == "mps" else torch.float64
    pred, truth = (pred & weight).flatten(1), (truth & weight).flatten(1)
    both = (pred & truth).sum(1).to(dtype)
    total = pred.sum(1) + truth.sum(1)
    nothing = total == 0
    dice = torch.where(nothing, 1.0, 2 * both / total)
    iou = torch.where(nothing, 1.0, both / (total - both))
    return dice, iou


def dice_score(pred_mask: Tensor, gt_mask: Tensor) -> Tensor:
    """The reports' function: mean Dice of a batch of masks.

    Args:
        pred_mask: (N, 1, H, W) probabilities or a mask; above 0.5 is pet.
        gt_mask: (N, 1, H, W) of 0 and 1.
    """
    truth = gt_mask > 0.5
    return dice_and_iou(pred_mask > 0.5, truth, torch.ones_like(truth))[0].mean()


@dataclass
class Predictor:
    """A network that is ready to be asked.

    Attributes:
        normalise: what its training did to the pixels.
        flip_average: ask for the mirrored picture too, and take the mean of both logits.
    """

    model: nn.Module
    normalise: Normalise
    device: torch.device
    precision: torch.dtype
    flip_average: bool = False

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float, 0 to 255, on the device, to (N, 1, H, W) float32 logits."""
        self.model.eval()
        images = self.normalise(images)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits = self.model(images).float()
            if self.flip_average:
                logits = (logits + self.model(images.flip(-1)).float().flip(-1)) / 2
        return logits


@dataclass
class Scores:
    """One entry a sample, in the split's order."""

    names: list[str]
    boundary: str
    dice: np.ndarray  # (n,) float64
    iou: np.ndarray  # (n,) float64
    empty_truth: np.ndarray  # (n,) bool: no pixel of the truth is pet
    loss: float  # mean over the samples; NaN without a criterion


def evaluate(
    predictor: Predictor,
    split: Split,
    boundary: str,
    batch_size: int,
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Scores:
    """Score a network on a split, picture by picture, so that the batch size does not matter.

    Args:
        boundary: what the trimaps' boundary counts as; see ``losses.truth_and_weight``.
        criterion: the loss, of logits, truth and weight; the mean over a batch.
        visit: called with the index of a batch's first sample and its logits, (N, 1, S, S) float32 on the device.
    """
    results = []
    starts = range(0, len(split), batch_size)
    batches = split.batches(torch.arange(len(split)), batch_size, predictor.device)
    bar = tqdm(batches, f"scoring {split.mode}", len(starts), unit=" batches", leave=False, disable=None)
    for start, pixels in zip(starts, bar, strict=True):
        images, trimaps = images_and_trimaps(pixels)
        logits = predictor(images)
        truth, weight = truth_and_weight(trimaps, boundary)
        dice, iou = dice_and_iou(logits > 0, truth, weight)
        loss = criterion(logits, truth, weight) if criterion else torch.full_like(dice[0], float("nan"))
        empty = ~truth.flatten(1).any(1)
        results.append(torch.stack((dice, iou, empty.to(dice.dtype), loss.to(dice.dtype).expand_as(dice))))
        if visit:
            visit(start, logits)
    dice, iou, empty, loss = torch.cat(results, dim=1).cpu().double().numpy()  # one transfer
    return Scores(split.names, boundary, dice, iou, empty.astype(bool), float(loss.mean()))


# ---------------------------------------------------------------------------------------------- of a checkpoint


def load_predictor(state: dict[str, Any], device: torch.device, flip_average: bool = False) -> Predictor:
    """The network of a checkpoint, with its weights, on a device."""
    recipe = Recipe.from_dict(state["recipe"])
    model = build_network(state["network"])
    model.load_state_dict(state["model"])
    precision = choose_precision(state["run"]["precision"], device)
    model = fold_batchnorm(model).to(device, memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(precision)  # once, where autocast would do it for each batch
    return Predictor(model, Normalise(recipe.mean, recipe.std).to(device), device, precision, flip_average)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """The same function, ready to be asked, with each BatchNorm behind a convolution made part of its weights.

    A network that cannot be traced, because what it does depends on the numbers that it sees, is returned as it is.
    """
    from torch import fx
    from torch.fx.experimental.optimization import fuse

    tracer = fx.Tracer(autowrap_functions=(pad_to_multiple,))
    try:
        graph = tracer.trace(model.eval())
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return model
    return fuse(fx.GraphModule(tracer.root, graph), no_trace=True)


def resize_logits(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """(S, S) to (height, width), bilinear: the threshold comes after it, so that the outline is smooth at any size."""
    return cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)


def send_to_host(values: Tensor) -> tuple[Tensor, "torch.cuda.Event | None"]:
    """A copy on the host, which has arrived once the event has come (None: it is there already)."""
    if values.device.type != "cuda":
        return values.cpu(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return host, arrival


def score_checkpoint(
    args: argparse.Namespace, mode: str, see: Callable[[str, Path, np.ndarray], None] | None = None
) -> tuple[Scores, Split]:
    """Score a checkpoint on a split at the model's and at the pictures' resolution, print that, and write it as JSON.

    Args:
        args: the flags of ``evaluate.py`` or ``inference.py``.
        see: called from threads with a sample's name, its picture's file and the logits, (S, S) float32.
    """
    name = args.name
    path = checkpoint_path(args.save_path, name, args.load_model_epoch or "best")
    if args.file:
        path = next((path for path in (args.save_path / args.file, args.file) if path.is_file()), args.file)
    device = choose_device(args.device)
    state = load_checkpoint(path)
    recipe, run = Recipe.from_dict(state["recipe"]), state["run"]
    if args.recipe and recipe.name != args.recipe:
        raise UserError(f"{path} was trained by the recipe {recipe.name}, not by --recipe {args.recipe}")
    if args.model and recipe.networks[args.model] != state["network"]:
        raise UserError(f"{path} holds a {state['network']}, not what --model {args.model} stands for")
    predictor = load_predictor(state, device, args.flip_average)
    root = find_root(args.data_path or known_data_path(run))
    epoch = "bare state dict" if state["epoch"] is None else f"epoch {state['epoch']}"
    side = args.image_size or run["image_size"]
    print(
        f"Using {state['network'].split('.')[-1]} model, recipe {recipe.name}, "
        f"on {describe(device, predictor.precision)}\n"
        f"Loading model from {path} ({epoch})\n"
        f"Evaluating model on the {mode} split of {root}",
        flush=True,
    )
    split = load_split(root, mode, side, args.limit).to(device)
    print(
        f"    {len(split)} images at {side}x{side}, boundary counts as {run['boundary']}; writes to {path.parent}",
        flush=True,
    )

    def finish(sample: str, logits: np.ndarray) -> tuple[float, float]:
        """Score one sample at its own size."""
        trimap = decode_trimap(trimap_path(root, sample))
        mask = resize_logits(logits, *trimap.shape) > 0
        if see:
            see(sample, image_path(root, sample), logits)
        truth, weight = truth_and_weight(torch.from_numpy(trimap)[None, None], run["boundary"])
        dice, iou = dice_and_iou(torch.from_numpy(mask)[None, None], truth, weight)
        return dice.item(), iou.item()

    with ThreadPoolExecutor(cpu_cores()) as pool:  # beside the device's work
        pending: list[Future[tuple[float, float]]] = []
        on_their_way: list[tuple[Tensor, torch.cuda.Event | None]] = []

        def hand_out() -> None:
            """Give the batch that was sent to the host to the threads."""
            logits, arrival = on_their_way.pop()
            if arrival:
                arrival.synchronize()
            for one in logits[:, 0].numpy():
                index = len(pending)
                if index >= 256:
                    pending[index - 256].result()  # never further ahead than that
                pending.append(pool.submit(finish, split.names[index], one))

        def visit(_: int, logits: Tensor) -> None:
            """Send a batch to the host, and turn to the one before it while the device goes on."""
            sent = send_to_host(logits)
            if on_their_way:
                hand_out()
            on_their_way.append(sent)

        scores = evaluate(predictor, split, run["boundary"], args.batch_size, visit=visit)
        hand_out()
    dice_original, iou_original = np.array([future.result() for future in pending]).T
    report = {
        "dice": scores.dice.mean(),
        "iou": scores.iou.mean(),
        "dice_original": dice_original.mean(),
        "iou_original": iou_original.mean(),
        "images": len(split),
        "empty_truths": int(scores.empty_truth.sum()),
        "boundary": run["boundary"],
        "image_size": side,
        "checkpoint": path.name,
        "epoch": state["epoch"],
        "split": mode,
        "flip_average": args.flip_average,
        "per_image": [
            {"name": n, "dice": d, "iou": i, "dice_original": o, "empty_truth": bool(e)}
            for n, d, i, o, e in zip(
                split.names, scores.dice, scores.iou, dice_original, scores.empty_truth, strict=True
            )
        ],
    }
    print(
        f"{recipe.score_line.format(report['dice'])}\n"
        f"    mean over {len(split)} {mode} images at {side}x{side}, boundary counted as {run['boundary']}, {path.name}"
        f"{', mean with the mirrored picture' if args.flip_average else ''}\n"
        f"    {report['empty_truths']} of them have no pet in the truth (1 if none is predicted, else 0)\n"
        f"    IoU {report['iou']:.4f}; at the pictures' own size: "
        f"Dice {report['dice_original']:.4f}, IoU {report['iou_original']:.4f}"
    )
    target = path.with_name(f"{name}_{mode}_scores{'_flip' if args.flip_average else ''}.json")
    with atomic_write(target) as file:
        file.write(json.dumps(report, indent=1).encode())
    print(f"wrote {target}")
    return scores, split


def known_data_path(run: dict[str, Any]) -> Path:
    """Where a run's data lies: where it lay in training.

    Raises:
        UserError: it is no longer there; no other data takes its place unasked.
    """
    trained_on = REPO / run["data_path"]
    if not trained_on.is_dir() and trained_on != DATASET:
        raise UserError(f"the run's data {trained_on} is no longer there; say where it is with --data_path")
    return trained_on


def add_scoring_options(parser: ArgumentParser) -> None:
    """The flags that ``evaluate.py`` and ``inference.py`` share."""
    parser.add_run_options(RECIPES, files=True)
    parser.add_argument(
        "--load_model_epoch",
        type=which_checkpoint,
        metavar="best|last|final|N",
        help="which checkpoint of the run (default: best)",
    )
    parser.add_argument(
        "--image_size",
        type=image_side,
        help="pixels that the network sees in height and width (default: as in training; for a bare state dict, which "
        f"does not know, {SETTINGS['image_size']})",
    )
    parser.add_argument(
        "--data_path", type=Path, help="the data set's folder (default: the one that the run trained on)"
    )
    parser.add_argument(
        "--batch_size", type=positive_int, default=32, help="images; changes speed and memory, not the score"
    )
    parser.add_argument(
        "--flip_average", action="store_true", help="predict the mirrored picture too and take the mean"
    )


def parse_scoring_args(parser: ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    args = parser.parse_run_args(argv)
    if args.file and args.load_model_epoch:
        parser.error("--model FILE.pth names the checkpoint, and so does --load_model_epoch: give one of them")
    return args


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Score a checkpoint.")
    add_scoring_options(parser)
    parser.add_argument(
        "--split", choices=("valid", "test"), default="valid", help="which samples; look at test once, at the end"
    )
    return parse_scoring_args(parser, argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    score_checkpoint(args, args.split)


if __name__ == "__main__":
    run_script(main)
