"""The metrics, evaluate(), and as a script: score a checkpoint.

python src/evaluate.py --model R --split valid
"""

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbing import cli, ranks
from plumbing.cli import (
    REPO,
    ArgumentParser,
    UserError,
    choose_device,
    cpu_cores,
    describe,
    machine,
    run_script,
)
from plumbing.files import atomic_write

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint import checkpoint_path, load_checkpoint, provenance
from models import network_names
from oxford_pet import (
    MODES,
    Split,
    find_root,
    image_path,
    images_and_trimaps,
    load_split,
    read_breeds,
    training_data_path,
    trimap_path,
)
from predictor import Predictor, resize_logits
from recipes import RECIPES, Config
from trimap import BOUNDARIES, decode_trimap, split_boundary, target_and_weight

BOUNDARY_TOLERANCE = 0.0075  # of the boundary F-score, as a fraction of the image's diagonal
RESAMPLES = 10_000  # of the bootstrap


# ---------------------------------------------------------------------------------------------- metrics


def overlap(pred: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection |P and T| and the sum of areas |P| + |T| of each image, in pixels.

    Args:
        pred, target: (N, 1, H, W) bool.
        weight: (N, 1, H, W) bool; pixels where it is false do not count.

    Returns:
        (N,) float64 each (float32 where the device has no float64).
    """
    dtype = torch.float32 if pred.device.type == "mps" else torch.float64
    pred, target = (pred & weight).flatten(1), (target & weight).flatten(1)
    return (pred & target).sum(1).to(dtype), (pred.sum(1) + target.sum(1)).to(dtype)


def dice_and_iou(intersection: Tensor, areas: Tensor) -> tuple[Tensor, Tensor]:
    """Dice = 2 |P and T| / (|P| + |T|) and IoU = |P and T| / |P or T|, from what ``overlap`` returns.

    Where target and prediction are both empty, both scores are 1; where one of them is, they are 0.
    """
    empty = areas == 0
    return torch.where(empty, 1.0, 2 * intersection / areas), torch.where(
        empty, 1.0, intersection / (areas - intersection)
    )


def perimeter(mask: np.ndarray) -> int:
    """The length of a mask's outline: how many pairs of neighbouring pixels differ. (H, W) bool."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def boundary_f_score(pred: np.ndarray, target: np.ndarray) -> float:
    """F-score of the outline (Csurka et al., "What is a good evaluation measure for semantic segmentation?", 2013).

    Precision is the fraction of the predicted outline's pixels within ``BOUNDARY_TOLERANCE`` of the diagonal from the
    target's outline, recall the reverse. An outline pixel is one of the mask with a 4-neighbour outside it; the border
    of the image is no outline.

    Args:
        pred, target: (H, W) bool.

    Returns:
        0 to 1; 1 where neither has an outline, 0 where one of them has none.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    outlines = [mask.astype(np.uint8) for mask in (pred, target)]
    outlines = [mask - cv2.erode(mask, cross) for mask in outlines]
    if not all(outline.any() for outline in outlines):
        return float(not any(outline.any() for outline in outlines))
    tolerance = BOUNDARY_TOLERANCE * np.hypot(*pred.shape)
    near = [cv2.distanceTransform(1 - outline, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= tolerance for outline in outlines]
    precision = near[1][outlines[0] > 0].mean()
    recall = near[0][outlines[1] > 0].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def largest_part(mask: np.ndarray) -> float:
    """The fraction of a mask's pixels in its largest 8-connected part, 1 for an empty mask. (H, W) bool."""
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = statistics[1:, cv2.CC_STAT_AREA]  # without the background
    return float(areas.max() / areas.sum()) if len(areas) else 1.0


# ---------------------------------------------------------------------------------------------- bootstrap


def bootstrap(columns: np.ndarray) -> np.ndarray:
    """The means of ``RESAMPLES`` resamples: images drawn with replacement, the same ones for all columns; seeded.

    Args:
        columns: (n, ...) float64, one row an image.

    Returns:
        (RESAMPLES, ...) float64.
    """
    rng, n, part = np.random.default_rng(0), len(columns), 100
    means = []
    for _ in range(RESAMPLES // part):
        drawn = rng.integers(0, n, (part, n)) + n * np.arange(part)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=part * n).reshape(part, n)  # how often each image was drawn
        means.append(counts @ columns.reshape(n, -1) / n)
    return np.concatenate(means).reshape(RESAMPLES, *columns.shape[1:])


def estimate(values: np.ndarray) -> dict[str, float]:
    """The mean of (n,) values, and ``low`` and ``high`` of its 95% bootstrap interval (percentiles)."""
    low, high = np.percentile(bootstrap(values), (2.5, 97.5))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def difference(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """``estimate`` of a - b, (n,) scores of the same images each, and as ``called`` what it amounts to.

    That is ``none`` where the interval includes 0, or of fewer than 6 images, of which even differences of one sign
    are found by chance in over 5% (2 / 2^n, the sign test); else ``above`` or ``below``.
    """
    gain = estimate(a - b)
    is_none = len(a) < 6 or gain["low"] <= 0 <= gain["high"]
    return {**gain, "called": "none" if is_none else "above" if gain["mean"] > 0 else "below"}


def estimate_conventions(overlaps: np.ndarray) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Dice and IoU under each boundary convention, at both sizes, per image and over the set, as ``estimate`` does.

    Args:
        overlaps: (n, sizes, conventions, 2) float64, what ``overlap`` counts: at the model's size, then at the own.

    Returns:
        By convention, size (``model``, ``own``), and score (``dice``, ``iou``, ``dice_set``, ``iou_set``).
    """
    per_image = torch.stack(dice_and_iou(*torch.from_numpy(overlaps).unbind(-1)), -1).numpy()  # (n, 2, 4, 2)
    columns = np.concatenate((per_image, overlaps), -1)
    drawn = np.concatenate((columns.mean(0)[None], bootstrap(columns)))  # the first one is the set itself
    over_set = torch.stack(dice_and_iou(*torch.from_numpy(drawn[..., 2:]).unbind(-1)), -1).numpy()
    scores = np.concatenate((drawn[..., :2], over_set), -1)  # (1 + RESAMPLES, 2, 4, 4)
    table = np.stack((scores[0], *np.percentile(scores[1:], (2.5, 97.5), axis=0)), -1)  # (2, 4, 4, mean low high)

    return {
        boundary: {
            size: {
                score: dict(zip(("mean", "low", "high"), table[at_size, under, kind].tolist(), strict=True))
                for kind, score in enumerate(("dice", "iou", "dice_set", "iou_set"))
            }
            for at_size, size in enumerate(("model", "own"))
        }
        for under, boundary in enumerate(BOUNDARIES)
    }


# ---------------------------------------------------------------------------------------------- a split


@dataclass
class Scores:
    """One entry an image, in the split's order; float64 unless said."""

    dice: np.ndarray  # (n,)
    iou: np.ndarray  # (n,)
    empty_target: np.ndarray  # (n,) bool: no pixel of the target is pet
    loss: float  # mean over the images; NaN without a criterion


def evaluate(
    predictor: Predictor,
    split: Split,
    boundary: str,
    batch_size: int,
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    on_batch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Scores:
    """Score a network on a split, image by image, so that the batch size does not matter.

    Args:
        boundary: what the trimaps' boundary counts as, one of ``trimap.BOUNDARIES``.
        criterion: the loss, of logits, target and weight; the mean over a batch.
        on_batch: called with the index of a batch's first image, its logits, (N, 1, S, S) float32, and its trimaps,
            (N, 1, S, S) uint8, both on the device.

    Of several ranks, each scores a part of the batches, and all return all scores.
    """
    results = [torch.empty((4, 0), device=predictor.device)]
    starts = range(0, len(split), batch_size)[ranks.rank() :: ranks.world()]
    order = [index for start in starts for index in range(len(split))[start : start + batch_size]]
    batches = split.batches(torch.tensor(order, dtype=torch.long), batch_size, predictor.device)
    bar = tqdm(batches, f"scoring {split.mode}", len(starts), unit=" batches", leave=False, disable=None)
    for start, pixels in zip(starts, bar, strict=True):
        images, trimaps = images_and_trimaps(pixels)
        logits = predictor.logits(images)
        target, weight = target_and_weight(trimaps, boundary)
        intersection, areas = overlap(logits > 0, target, weight)
        loss = criterion(logits, target, weight) if criterion else torch.full_like(areas[0], float("nan"))
        empty = ~target.flatten(1).any(1)
        columns = (*dice_and_iou(intersection, areas), empty.to(areas.dtype))
        results.append(torch.stack((*columns, loss.to(areas.dtype).expand_as(areas))))
        if on_batch:
            on_batch(start, logits, trimaps)
    scores = np.empty((4, len(split)))
    for indices, values in ranks.gather((order, torch.cat(results, dim=1).cpu().numpy())):  # one transfer
        scores[:, indices] = values
    dice, iou, empty, loss = scores
    return Scores(dice, iou, empty.astype(bool), float(loss.mean()))


def overlaps_by_convention(pred: Tensor, trimaps: Tensor) -> Tensor:
    """What ``overlap`` counts under each of ``BOUNDARIES``: (N, 4, 2) on the CPU.

    Args:
        pred: (N, 1, H, W) bool.
        trimaps: (N, 1, H, W) uint8, on the same device.
    """
    counts = [torch.stack(overlap(pred, *target_and_weight(trimaps, boundary)), -1) for boundary in BOUNDARIES]
    return torch.stack(counts, 1).cpu().double()


def score_at_own_size(logits: np.ndarray, trimap: np.ndarray, boundary: str) -> tuple[dict[str, float], np.ndarray]:
    """The scores of one prediction at the image's own size.

    Args:
        logits: (S, S) float32; enlarged, then thresholded.
        trimap: (H, W) uint8, of ``split_boundary``.

    Returns:
        The scores, and (4, 2) float64 of ``overlaps_by_convention``.
    """
    mask, pixels = torch.from_numpy(resize_logits(logits, *trimap.shape) > 0), torch.from_numpy(trimap)
    target, weight = target_and_weight(pixels, boundary)
    overlaps = overlaps_by_convention(mask[None, None], pixels[None, None])[0]
    intersection, areas = overlaps[BOUNDARIES.index(boundary)]
    dice, iou = dice_and_iou(intersection, areas)
    outlined = torch.where(weight, mask, target).numpy()  # ignored pixels cannot be wrong
    scores = {
        "dice_original": dice.item(),
        "iou_original": iou.item(),
        "intersection": intersection.item(),
        "areas": areas.item(),
        "boundary_f": boundary_f_score(outlined, target.numpy()),
        "boundary_f_middle": boundary_f_score(mask.numpy(), target_and_weight(pixels, "middle")[0].numpy()),
        "perimeter": perimeter(outlined),
        "target_perimeter": perimeter(target.numpy()),
        "target_fraction": target.double().mean().item(),
        "pred_fraction": mask.double().mean().item(),
        "largest_part": largest_part(mask.numpy()),
    }
    return scores, overlaps.numpy()


def score_split(
    predictor: Predictor,
    split: Split,
    batch_size: int,
    on_sample: Callable[[Path, np.ndarray, np.ndarray, str], None] | None = None,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Score a split at the model's size and, by threads beside the device's work, each image at its own size.

    Args:
        on_sample: called from those threads with an image's file, the logits, (S, S) float32, its trimap, (H, W) uint8,
            and what the trimap's boundary counts as.

    Returns:
        Each image's name and scores, as the score file holds them; (n, 2, 4, 2) for ``estimate_conventions``.
    """
    boundary = predictor.config.boundary

    def finish(name: str, logits: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        trimap = split_boundary(decode_trimap(trimap_path(split.root, name)))
        if on_sample:
            on_sample(image_path(split.root, name), logits, trimap, boundary)
        return score_at_own_size(logits, trimap, boundary)

    at_model_size: list[Tensor] = []
    own_size: list[tuple[dict[str, float], np.ndarray]] = []
    pending: deque[Future[tuple[dict[str, float], np.ndarray]]] = deque()
    with ThreadPoolExecutor(cpu_cores()) as pool:

        def on_batch(start: int, logits: Tensor, trimaps: Tensor) -> None:
            at_model_size.append(overlaps_by_convention(logits > 0, trimaps))
            for name, one in zip(split.names[start:], logits[:, 0].cpu().numpy(), strict=False):
                pending.append(pool.submit(finish, name, one))
            while len(pending) > 256:  # so that the device is never further ahead than that
                own_size.append(pending.popleft().result())

        scores = evaluate(predictor, split, boundary, batch_size, on_batch=on_batch)
        own_size += [future.result() for future in pending]
    rows = [
        {"name": name, "dice": float(dice), "iou": float(iou), "empty_target": bool(empty), **own}
        for name, dice, iou, empty, (own, _) in zip(
            split.names, scores.dice, scores.iou, scores.empty_target, own_size, strict=True
        )
    ]
    at_own_size = np.stack([overlaps for _, overlaps in own_size])
    return rows, np.stack((torch.cat(at_model_size).numpy(), at_own_size), 1)


# ---------------------------------------------------------------------------------------------- a checkpoint


def requested_checkpoint(args: argparse.Namespace) -> Path:
    """The file of the checkpoint that the flags name."""
    if args.file:
        return next((path for path in (args.file, args.save_path / args.file) if path.is_file()), args.file)
    return checkpoint_path(args.save_path, args.name, args.load_model_epoch or "best")


def open_checkpoint(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Load what the flags of ``evaluate.py`` or ``inference.py`` name: its file, and what ``load_checkpoint`` returns.

    Raises:
        UserError: not there, or of another recipe or network than the flags say.
    """
    path = requested_checkpoint(args)
    state = load_checkpoint(path)
    config: Config = state["config"]
    if args.recipe and config.recipe != args.recipe:
        raise UserError(f"{path} was trained by the recipe {config.recipe}, not by --recipe {args.recipe}")
    if args.model and config.network not in (args.model, RECIPES.get(config.recipe, Config)(args.model).network):
        raise UserError(f"{path} holds the network {config.network}, not what --model {args.model} stands for")
    return path, state


def scores_path(args: argparse.Namespace, state: dict[str, Any], root: Path, mode: str) -> Path:
    """The score file: beside the checkpoint, what differs from scoring the run as it was trained in its name."""
    config, path = state["config"], requested_checkpoint(args)
    differences = {
        "": "" if args.file else (args.load_model_epoch or "best").replace("best", ""),
        "limit": (args.limit or "none") if args.limit != config.limit else None,
        "size": args.image_size if args.image_size != config.image_size else None,
        "data-": root.name if root.resolve() != (REPO / state["data_path"]).resolve() else None,
    }
    variant = "".join(f"_{key}{value}" for key, value in differences.items() if value)
    return path.with_name(f"{args.name}{variant}_{mode}_scores{'_flip' if args.flip_average else ''}.json")


def summarise(rows: list[dict[str, Any]], overlaps: np.ndarray, boundary: str) -> dict[str, Any]:
    """The score file's figures of all images: means per image and over the set, at both sizes.

    Args:
        rows, overlaps: what ``score_split`` returns.
        boundary: the run's convention.
    """
    conventions = estimate_conventions(overlaps)
    columns = ("boundary_f", "boundary_f_middle", "perimeter", "target_perimeter")
    column = {key: np.array([row[key] for row in rows]) for key in columns}
    return {
        **{
            f"{score}{suffix}": estimated["mean"]
            for size, suffix in (("model", ""), ("own", "_original"))
            for score, estimated in conventions[boundary][size].items()
        },
        "boundary_f": column["boundary_f"].mean(),
        "boundary_f_middle": column["boundary_f_middle"].mean(),
        "perimeter_ratio": column["perimeter"].sum() / max(column["target_perimeter"].sum(), 1),
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
        f"    boundary F-score {report['boundary_f']:.4f} (within {BOUNDARY_TOLERANCE:.2%} of the diagonal), "
        f"{report['boundary_f_middle']:.4f} against the middle line of the trimaps' boundary; outline "
        f"{report['perimeter_ratio']:.2f} times as long as the target's"
    )
    if report["empty_targets"]:
        print(f"    {report['empty_targets']} of the targets show no pet (1 if none is predicted, else 0)")
    predicted = {row["pred_fraction"] for row in report["per_image"]}
    if len(predicted) == 1 and predicted <= {0.0, 1.0}:
        what = "no pixel" if predicted == {0.0} else "every pixel"
        print(f"note: {what} of any image is predicted as pet: trained too shortly, diverged, or given other images?")


def score_checkpoint(
    args: argparse.Namespace, mode: str, on_sample: Callable[[Path, np.ndarray, np.ndarray, str], None] | None = None
) -> dict[str, Any]:
    """Score a checkpoint on a split, print the scores, and write them as JSON beside the checkpoint.

    Args:
        args: the flags of ``evaluate.py`` or ``inference.py``.
        on_sample: as of ``score_split``.

    Returns:
        What the score file holds.
    """
    cli.keep_freed_memory()
    path, state = open_checkpoint(args)
    predictor = Predictor(state, choose_device(args.device, args.threads), args.flip_average, args.image_size)
    root, config = find_root(args.data_path or training_data_path(state["data_path"])), predictor.config
    epoch = "weights alone" if state["epoch"] is None else f"epoch {state['epoch']}"
    print(
        f"Using {config.network.split('.')[-1]} model, recipe {config.recipe}, "
        f"on {describe(predictor.device, predictor.precision)}\n"
        f"Loading model from {path} ({epoch})\n"
        f"Evaluating model on the {mode} split of {root}",
        flush=True,
    )
    split = load_split(root, mode, config.image_size, args.limit).to(predictor.device)
    print(
        f"    {len(split)} images at {config.image_size}x{config.image_size}, boundary counted as {config.boundary}; "
        f"writes to {path.parent}",
        flush=True,
    )
    started, breeds = time.monotonic(), read_breeds(root)
    rows, overlaps = score_split(predictor, split, args.batch_size, on_sample)
    report = {
        "split": mode,
        "limit": args.limit,
        "fingerprint": split.fingerprint(),
        "seconds": time.monotonic() - started,
        **summarise(rows, overlaps, config.boundary),
        "boundary": config.boundary,
        "image_size": config.image_size,
        "config": config.to_dict(),
        "name": args.name,
        "checkpoint": path.name,
        "epoch": state["epoch"],
        "flip_average": args.flip_average,
        "data_path": str(root.resolve()),
        "machine": machine(),
        **provenance(),
        "trained": {key: state.get(key) for key in ("versions", "commit", "command", "history")},
        "per_image": [row | breeds.get(row["name"], {}) for row in rows],
    }
    print_scores(report)
    target = scores_path(args, state, root, mode)
    try:
        with atomic_write(target) as file:
            file.write(json.dumps(report, indent=1).encode())
        print(f"wrote {target}")
    except OSError as error:  # somebody else's checkpoint, say: the scores and the masks are worth having all the same
        print(f"note: the score file {target} could not be written ({error.strerror})", file=sys.stderr)
    return report


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
    args = parser.parse_run_args(argv)
    takes_default = getattr(args, "input", None) and not (args.recipe or args.load_model_epoch)
    if not args.name and not takes_default:  # photos have one
        parser.error("which network? --model U or --model R")
    if args.file and args.load_model_epoch:
        parser.error("--model FILE.pth names the checkpoint, and so does --load_model_epoch: give one of them")
    return args


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Score a checkpoint.")
    add_scoring_options(parser)
    parser.add_argument("--split", choices=MODES, default="valid", help="which images; use test once, at the end")
    return parse_scoring_args(parser, argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    score_checkpoint(args, args.split)


if __name__ == "__main__":
    run_script(main)
