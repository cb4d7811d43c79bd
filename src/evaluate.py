"""Score a checkpoint: Dice, IoU and boundary F-score under every boundary convention, with intervals.

python src/evaluate.py --model R --split valid
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbing import cli
from plumbing.cli import REPO, ArgumentParser, UserError, choose_device, cpu_cores, describe, machine, run_script
from plumbing.files import atomic_write

import numpy as np
import torch
from torch import Tensor

import metrics
from checkpoint import checkpoint_path, load_checkpoint, provenance
from models import network_names
from oxford_pet import MODES, find_root, image_path, read_breeds, training_data_path, trimap_path
from predictor import Predictor, resize_logits
from recipes import RECIPES, Config, check_network
from split import Split, load_split
from trimap import BOUNDARIES, decode_trimap, split_boundary, target_and_weight

OnMask = Callable[[Path, np.ndarray, np.ndarray, str], None]  # image file, mask, trimap, boundary: see score_split
AHEAD = 256  # maximum number of images queued for scoring at their own size


@dataclass(frozen=True)
class ScoringOptions:
    """What to score and how. None is what the training used, or no limit."""

    name: str  # of the run, or of the file; the score file's prefix
    which: str  # of the run's checkpoints: best, last, final, or an epoch
    data_path: Path | None
    image_size: int | None
    limit: int | None
    batch_size: int
    flip_average: bool


# ---------------------------------------------------------------------------------------------- a split


def counts_by_boundary(pred: Tensor, trimaps: Tensor) -> Tensor:
    """``overlap`` under each of ``BOUNDARIES``: (N, 4, 2) float64 on the CPU.

    Args:
        pred: (N, 1, H, W) bool.
        trimaps: (N, 1, H, W) uint8, on the same device.
    """
    counts = [torch.stack(metrics.overlap(pred, *target_and_weight(trimaps, boundary)), -1) for boundary in BOUNDARIES]
    return torch.stack(counts, 1).cpu().double()


def score_at_own_size(mask: np.ndarray, trimap: np.ndarray, boundary: str) -> tuple[dict[str, float], np.ndarray]:
    """Score one prediction at the image's own size.

    Args:
        mask: (H, W) bool.
        trimap: (H, W) uint8, of ``split_boundary``.

    Returns:
        The scores, and (4, 2) float64 of ``counts_by_boundary``.
    """
    pred, pixels = torch.from_numpy(mask), torch.from_numpy(trimap)
    target, weight = target_and_weight(pixels, boundary)
    counts = counts_by_boundary(pred[None, None], pixels[None, None])[0]
    intersection, areas = counts[BOUNDARIES.index(boundary)]
    dice, iou = metrics.dice_and_iou(intersection, areas)
    outlined = torch.where(weight, pred, target).numpy()  # ignored pixels cannot be wrong
    scores = {
        "dice_original": dice.item(),
        "iou_original": iou.item(),
        "intersection": intersection.item(),
        "areas": areas.item(),
        "boundary_f": metrics.boundary_f_score(outlined, target.numpy()),
        "boundary_f_middle": metrics.boundary_f_score(mask, target_and_weight(pixels, "middle")[0].numpy()),
        "perimeter": metrics.perimeter(outlined),
        "target_perimeter": metrics.perimeter(target.numpy()),
        "target_fraction": target.double().mean().item(),
        "pred_fraction": pred.double().mean().item(),
        "largest_part": metrics.largest_part(mask),
    }
    return scores, counts.numpy()


def score_split(
    predictor: Predictor, split: Split, batch_size: int, on_mask: OnMask | None = None
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Score a split at the model's size and, in threads beside the device's work, each image at its own size.

    Args:
        on_mask: called in those threads with the image's file, the predicted mask, (H, W) bool at the image's own size,
            the trimap, (H, W) uint8 of ``split_boundary``, and what its boundary counts as.

    Returns:
        Each image's name and scores, as in the score file; (n, 2, 4, 2) float64: ``counts_by_boundary`` of each image
        at the model's size, then at its own.
    """
    boundary = predictor.config.boundary
    at_model_size: list[Tensor] = []
    at_own_size: list[Future[tuple[dict[str, float], np.ndarray]]] = []

    def finish(name: str, logits: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        trimap = split_boundary(decode_trimap(trimap_path(split.root, name)))
        mask = resize_logits(logits, *trimap.shape) > 0
        if on_mask:
            on_mask(image_path(split.root, name), mask, trimap, boundary)
        return score_at_own_size(mask, trimap, boundary)

    with ThreadPoolExecutor(cpu_cores()) as pool:

        def on_batch(indices: range, logits: Tensor, trimaps: Tensor) -> None:
            at_model_size.append(counts_by_boundary(logits > 0, trimaps))
            for index, one in zip(indices, logits[:, 0].cpu().numpy(), strict=True):
                at_own_size.append(pool.submit(finish, split.names[index], one))
            if len(at_own_size) > AHEAD:  # each pending image holds its logits
                at_own_size[-AHEAD].result()

        scores = metrics.evaluate(predictor, split, batch_size, on_batch=on_batch)
        own_scores, own_counts = zip(*(future.result() for future in at_own_size), strict=True)
    columns = zip(split.names, scores.dice, scores.iou, scores.empty_target, own_scores, strict=True)
    rows = [
        {"name": name, "dice": float(dice), "iou": float(iou), "empty_target": bool(empty), **own}
        for name, dice, iou, empty, own in columns
    ]
    return rows, np.stack((torch.cat(at_model_size).numpy(), np.stack(own_counts)), 1)


# ---------------------------------------------------------------------------------------------- all images


def scores_by_boundary(counts: np.ndarray) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Dice and IoU with 95% bootstrap intervals, as ``mean_ci`` gives them, under each boundary convention.

    Args:
        counts: (n, 2, 4, 2) float64, of ``score_split``.

    Returns:
        By convention, size (``model``, ``own``) and score: ``dice`` and ``iou`` are means over the images,
        ``dice_set`` and ``iou_set`` those of all pixels together.
    """
    per_image = torch.stack(metrics.dice_and_iou(*torch.from_numpy(counts).unbind(-1)), -1).numpy()  # (n, 2, 4, 2)
    columns = np.concatenate((per_image, counts), -1)
    drawn = np.concatenate((columns.mean(0)[None], metrics.bootstrap(columns)))  # the first one is the set itself
    over_set = torch.stack(metrics.dice_and_iou(*torch.from_numpy(drawn[..., 2:]).unbind(-1)), -1).numpy()
    scores = np.concatenate((drawn[..., :2], over_set), -1)  # (1 + RESAMPLES, 2, 4, 4)
    table = np.stack((scores[0], *np.percentile(scores[1:], (2.5, 97.5), axis=0)), -1)  # (2, 4, 4, 3)
    score_names = ("dice", "iou", "dice_set", "iou_set")
    return _labelled(table.swapaxes(0, 1), BOUNDARIES, ("model", "own"), score_names, ("mean", "low", "high"))


def _labelled(table: np.ndarray, *axes: tuple[str, ...]) -> Any:
    """An array as nested dicts, one level for each axis, with the given keys."""
    if not axes:
        return float(table)
    return {key: _labelled(part, *axes[1:]) for key, part in zip(axes[0], table, strict=True)}


def summarise(rows: list[dict[str, Any]], counts: np.ndarray, boundary: str) -> dict[str, Any]:
    """The score file's figures over all images, from what ``score_split`` returns."""
    conventions = scores_by_boundary(counts)
    outlines = {key: sum(row[key] for row in rows) for key in ("perimeter", "target_perimeter")}
    return {
        **{
            f"{score}{suffix}": ci["mean"]
            for size, suffix in (("model", ""), ("own", "_original"))
            for score, ci in conventions[boundary][size].items()
        },
        **{key: np.mean([row[key] for row in rows]) for key in ("boundary_f", "boundary_f_middle")},
        "perimeter_ratio": outlines["perimeter"] / max(outlines["target_perimeter"], 1),
        "conventions": conventions,
        "images": len(rows),
        "empty_targets": sum(row["empty_target"] for row in rows),
    }


def print_scores(report: dict[str, Any]) -> None:
    """Print a summary; its first line is the reports' ``Dice Score: 0.9011``."""
    flip = ", test-time augmentation (flip)" if report["flip_average"] else ""
    print(
        f"Dice Score: {report['dice']:.4f}\n"
        f"    mean over {report['images']} {report['split']} images at {report['image_size']}x{report['image_size']}, "
        f"boundary counted as {report['boundary']}, {report['checkpoint']}{flip}\n"
        f"    IoU {report['iou']:.4f}; over the set: Dice {report['dice_set']:.4f}, IoU {report['iou_set']:.4f}\n"
        f"    at the images' own size: Dice {report['dice_original']:.4f}, IoU {report['iou_original']:.4f}; "
        f"over the set: Dice {report['dice_set_original']:.4f}, IoU {report['iou_set_original']:.4f}\n"
        f"    boundary F-score {report['boundary_f']:.4f} (within {metrics.BOUNDARY_TOLERANCE:.2%} of the diagonal), "
        f"{report['boundary_f_middle']:.4f} against the middle line of the trimaps' boundary; outline "
        f"{report['perimeter_ratio']:.2f} times as long as the target's"
    )
    if report["empty_targets"]:
        print(f"    {report['empty_targets']} of the targets have no foreground (1 if none is predicted, else 0)")
    if report["trained_on"] and report["split"] != "train":
        print(f"note: {report['trained_on']} of these {report['images']} images were trained on")
    predicted = {row["pred_fraction"] for row in report["per_image"]}
    if len(predicted) == 1 and predicted <= {0.0, 1.0}:
        what = "no pixel" if predicted == {0.0} else "every pixel"
        print(f"note: {what} of any image is predicted as foreground: trained too briefly, diverged, or wrong images?")


# ---------------------------------------------------------------------------------------------- a checkpoint


def open_checkpoint(path: Path, network: str | None, recipe: str | None) -> dict[str, Any]:
    """``load_checkpoint``, and a check that the file is of the network and recipe that the user typed, if any.

    Raises:
        UserError: not there, broken, or of another recipe or network.
    """
    state = load_checkpoint(path)
    config: Config = state["config"]
    if recipe and config.recipe != recipe:
        raise UserError(f"{path} was trained by the recipe {config.recipe}, not by --recipe {recipe}")
    if network:
        check_network(config, network, str(path))
    return state


def scores_path(path: Path, state: dict[str, Any], root: Path, mode: str, options: ScoringOptions) -> Path:
    """The score file, beside the checkpoint; its name has every option that differs from the training."""
    config: Config = state["config"]
    differences = {
        "": options.which if options.which != "best" else None,
        "limit": options.limit,
        "size": options.image_size if options.image_size != config.image_size else None,
        "data-": root.name if root.resolve() != (REPO / state["data_path"]).resolve() else None,
    }
    variant = "".join(f"_{key}{value}" for key, value in differences.items() if value)
    flip = "_flip" if options.flip_average else ""
    return path.with_name(f"{options.name}{variant}_{mode}_scores{flip}.json")


def score_checkpoint(
    path: Path,
    state: dict[str, Any],
    mode: str,
    device: torch.device,
    options: ScoringOptions,
    on_mask: OnMask | None = None,
) -> dict[str, Any]:
    """Score a checkpoint on a split, print the scores, and write them as JSON beside the checkpoint.

    Args:
        path, state: the checkpoint's file, and what ``load_checkpoint`` returned.
        mode: train, valid or test.

    Returns:
        The content of the score file.
    """
    cli.keep_freed_memory()
    predictor = Predictor(state, device, options.flip_average, options.image_size)
    root = cli.shown(find_root(options.data_path or training_data_path(state["data_path"])))
    config = predictor.config
    epoch = "weights alone" if state["epoch"] is None else f"epoch {state['epoch']}"
    print(
        f"Using {config.network.split('.')[-1]} model, recipe {config.recipe}, "
        f"on {describe(device, predictor.precision)}\n"
        f"Loading model from {path} ({epoch})\n"
        f"Evaluating model on the {mode} split of {root}",
        flush=True,
    )
    split = load_split(root, mode, config.image_size, options.limit).to(device)
    print(
        f"    {len(split)} images at {config.image_size}x{config.image_size}, boundary counted as {config.boundary}; "
        f"writes to {path.parent}",
        flush=True,
    )
    started, breeds = time.monotonic(), read_breeds(root)
    rows, counts = score_split(predictor, split, options.batch_size, on_mask)
    report = {
        "split": mode,
        "limit": options.limit,
        "fingerprint": split.fingerprint,
        "trained_on": len(set(split.names) & set(state.get("train_names", ()))),  # of these images
        "seconds": time.monotonic() - started,
        **summarise(rows, counts, config.boundary),
        "boundary": config.boundary,
        "image_size": config.image_size,
        "config": config.to_dict(),
        "name": options.name,
        "checkpoint": path.name,
        "epoch": state["epoch"],
        "flip_average": options.flip_average,
        "data_path": str(root.resolve()),
        "machine": machine(device),
        **provenance(),
        "trained": {key: state.get(key) for key in ("versions", "commit", "command", "resumed", "history")},
        "per_image": [row | breeds.get(row["name"], {}) for row in rows],
    }
    write_report(scores_path(path, state, root, mode, options), report)  # first: `| head` ends the script at a print
    print_scores(report)
    return report


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write the score file; a folder that cannot be written is only noted, since scores and masks stand without it."""
    try:
        with atomic_write(path) as file:
            file.write(json.dumps(report, indent=1).encode())
        print(f"wrote {path}")
    except PermissionError as error:
        print(f"note: the score file {path} could not be written ({error.strerror})", file=sys.stderr)


# ---------------------------------------------------------------------------------------------- the script


def add_scoring_options(parser: ArgumentParser) -> None:
    """The flags that ``evaluate.py`` and ``inference.py`` share."""
    parser.add_run_options(network_names(), RECIPES, files=True)
    add, bare = parser.add_argument, f"as in training; {Config.image_size} for a bare state dict"
    which = "which checkpoint of the run (default: best)"
    add("--load_model_epoch", type=cli.which_checkpoint, metavar="best|last|final|N", help=which)
    add(
        "--image_size", type=cli.image_size, help=f"pixels of the network's input in height and width (default: {bare})"
    )
    add("--data_path", type=cli.existing_path, help="the data set's folder (default: that of the training)")
    add("--batch_size", type=cli.positive_int, default=32, help="images; changes speed and memory, not the score")
    flip = "test-time augmentation: average the logits with those of the flipped image"
    add("--flip_average", action="store_true", help=flip)


def parse_scoring_args(parser: ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse; ``checkpoint`` is the file that the flags name, None for photos without a named one."""
    args = parser.parse_run_args(argv)
    takes_default = getattr(args, "input", None) and not (args.recipe or args.load_model_epoch)
    if not args.name and not takes_default:
        photos = "; or --input PHOTO, to cut out photos" if hasattr(args, "input") else ""
        parser.error(f"which network? --model U or --model R{photos}")
    if args.file and args.load_model_epoch:
        parser.error("--model FILE.pth names the checkpoint, and so does --load_model_epoch: give one of them")
    args.which, args.checkpoint = args.load_model_epoch or "best", None
    if args.file:
        args.checkpoint = next((path for path in (args.file, args.save_path / args.file) if path.is_file()), args.file)
    elif args.name:
        args.checkpoint = checkpoint_path(args.save_path, args.name, args.which)
    return args


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Score a checkpoint.")
    add_scoring_options(parser)
    parser.add_argument("--split", choices=MODES, default="valid", help="which images; use test once, at the end")
    return parse_scoring_args(parser, argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    state = open_checkpoint(args.checkpoint, args.model, args.recipe)
    options = ScoringOptions(
        args.name, args.which, args.data_path, args.image_size, args.limit, args.batch_size, args.flip_average
    )
    score_checkpoint(args.checkpoint, state, args.split, choose_device(args.device, args.threads), options)


if __name__ == "__main__":
    run_script(main)
