"""Score what the position in the image tells by itself: the mean of the training targets, as the mask of every image.

python benchmarks/mean_mask.py --data_path dataset/oxford-iiit-pet-128 --image_size 128
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
from plumbing.cli import (
    ArgumentParser,
    existing_path,
    image_size,
    run_script,
)

import numpy as np
import torch
from torch import Tensor

from evaluate import dice_and_iou, overlap
from oxford_pet import DATASET, Split, load_split
from record import RESULTS, origin, write_json
from trimap import target_and_weight


def targets(split: Split) -> list[Tensor]:
    """The targets of a split, (N, 1, S, S) bool, in batches; the boundary counts as pet."""
    return [target_and_weight(part[:, None], "pet")[0] for part in split.pixels[..., 3].split(256)]


def mask_dice(mask: Tensor, split: Split) -> np.ndarray:
    """(n,) Dice of one mask, (1, 1, S, S) bool, on each image of a split."""
    scores = (overlap(mask.expand_as(part), part, torch.ones_like(part)) for part in targets(split))
    return torch.cat([dice_and_iou(*score)[0] for score in scores]).numpy()


def mean_mask(train: Split) -> tuple[Tensor, float]:
    """The mean of the training targets, (1, 1, S, S) float, and the threshold with the best Dice on them."""
    mean = sum(part.float().sum(0, keepdim=True) for part in targets(train)) / len(train)
    thresholds = [step / 20 for step in range(1, 20)]
    return mean, max(thresholds, key=lambda threshold: mask_dice(mean > threshold, train).mean())


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Score the mean of the training targets as the mask of every test image.")
    parser.add_argument("--data_path", type=existing_path, default=DATASET, help="the data set's folder")
    parser.add_argument("--image_size", type=image_size, default=128, help="pixels of height and width")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(argv)
    train, valid, test = (load_split(args.data_path, mode, args.image_size) for mode in ("train", "valid", "test"))
    mean, threshold = mean_mask(train)
    splits = {"train": train, "validation": valid, "test": test}
    dice = {name: mask_dice(mean > threshold, split) for name, split in splits.items()}
    all_pet = mask_dice(torch.ones_like(mean, dtype=torch.bool), test).mean()
    third, eighth = args.image_size // 3, args.image_size // 8
    inner = torch.zeros_like(mean, dtype=torch.bool)
    inner[..., eighth:-eighth, eighth:-eighth] = True
    row = {
        "system": "mean-mask",
        "seed": 0,
        "image_size": args.image_size,
        "epochs": 0,
        "minutes": 0,
        "images_per_second": 0,
        "dice": {name: round(float(values.mean()), 5) for name, values in dice.items()},
        **{score: {} for score in ("iou_set", "boundary_f", "perimeter_ratio")},
        "threshold": threshold,
        "all_pet_test_dice": round(float(all_pet), 5),
        "pet_in_the_middle_ninth": round(float(mean[..., third:-third, third:-third].mean()), 4),
        "pet_in_the_outer_eighths": round(float(mean[~inner].mean()), 4),
        **origin("mean_mask.py", sys.argv[1:] if argv is None else argv),
        "data": train.root.name,
        "history": [],
        "test_dice": [round(float(value), 4) for value in dice["test"]],
        "test_sizes": [round(float(size), 4) for part in targets(test) for size in part.float().mean((1, 2, 3))],
    }
    path = args.results / "run-mean-mask.json"
    write_json(path, row)
    print(f"mean mask above {threshold}: test Dice {row['dice']['test']}; all pet: {all_pet:.4f}\nwrote {path}")


if __name__ == "__main__":
    run_script(main)
