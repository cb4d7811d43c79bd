"""What each choice of the recipe `fast` is worth: train with it, and with each choice taken back by itself.

    python benchmarks/fast_recipe.py --data_path dataset/oxford-iiit-pet --image_size 256

Writes results/fast-<model>-<device>-<size>.json and prints a table. A variant whose figures stand there already, by the
same recipe, is not trained again. What counts is the work until a Dice is reached, in full-size epochs: unlike seconds,
it does not depend on what else the machine does.
"""

import argparse
import dataclasses
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "src"))

import train  # noqa: E402
from accuracy import processor  # noqa: E402
from atomic import atomic_write  # noqa: E402
from checkpoint import checkpoint_path, load_checkpoint  # noqa: E402
from options import SAVED_MODELS, ArgumentParser, image_side, model_letter, run_script, share  # noqa: E402
from recipes import RECIPES  # noqa: E402

FAST, DEFAULT = RECIPES["fast"], RECIPES["default"]
VARIANTS = {  # what is different from fast
    "fast": {},
    "full size throughout": {"smaller_until": ()},
    "half size, then full": {"smaller_until": ((0.5, 2),)},
    "augmented as default": {"augmentation": DEFAULT.augmentation, "ramp_epochs": DEFAULT.ramp_epochs},
    "batch 32": {"batch_size": 32},
    "twice the learning rate": {"learning_rate": 2 * FAST.learning_rate},
    "no averaged weights": {"average_steps": 0},
    "cross-entropy alone": {"dice_weight": 0.0},
}


SETTINGS = (
    "epochs",
    "smaller_until",
    "augmentation",
    "ramp_epochs",
    "batch_size",
    "learning_rate",
    "average_steps",
    "dice_weight",
)


def settings_of(name: str) -> dict[str, Any]:
    """What a variant is trained with, as JSON has it."""
    recipe = dataclasses.replace(FAST, **VARIANTS[name]).to_dict()
    return json.loads(json.dumps({key: recipe[key] for key in SETTINGS}))


def train_variant(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train to the recipe's end; how, and for each epoch the Dice and its work as a share of a full-size epoch's."""
    key = "fast-" + name.replace(" ", "-").replace(",", "")
    RECIPES[key] = dataclasses.replace(FAST, name=key, **VARIANTS[name])
    folder = args.save_path / f"{key}-{args.image_size}"
    train.main(
        [
            *("--model", args.model, "--recipe", key, "--name", folder.name, "--save_path", str(args.save_path)),
            *("--data_path", str(args.data_path), "--image_size", str(args.image_size), "--overwrite"),
        ]
    )
    state = load_checkpoint(checkpoint_path(args.save_path, folder.name, "final"))
    shutil.rmtree(folder)
    sides = [RECIPES[key].side_at(row["epoch"], args.image_size) for row in state["history"]]
    history = [
        {"valid_dice": row["valid_dice"], "seconds": row["seconds"], "work": (side / args.image_size) ** 2}
        for row, side in zip(state["history"], sides, strict=True)
    ]
    return {"recipe": settings_of(name), "history": history}


def until(history: list[dict[str, float]], dice: float) -> float:
    """How many full-size epochs' work it took until the valid Dice was first that high; NaN if it never was."""
    reached = next((i for i, row in enumerate(history) if row["valid_dice"] >= dice), None)
    return float("nan") if reached is None else sum(row["work"] for row in history[: reached + 1])


def main() -> None:
    parser = ArgumentParser("Measure what each choice of the recipe fast is worth.")
    parser.add_argument("--model", type=model_letter, default="R", help="the network, U or R")
    parser.add_argument("--data_path", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--image_size", type=image_side, default=256, help="pixels, height and width")
    parser.add_argument("--dice", type=share, default=0.9, help="the valid Dice to reach, in the printed table")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="which ones")
    parser.add_argument("--save_path", type=Path, default=SAVED_MODELS, help="folder for the runs, removed afterwards")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = REPO / "benchmarks" / "results" / f"fast-{args.model}-{device}-{args.image_size}.json"

    def read() -> dict:
        return json.loads(path.read_text()) if path.is_file() else {"variants": {}}

    for name in args.variants:
        if name in read()["variants"] and read()["variants"][name]["recipe"] == settings_of(name):
            continue
        variant = train_variant(name, args)
        report = {
            "machine": processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "command": f"benchmarks/fast_recipe.py --model {args.model} --data_path {args.data_path.name} "
            f"--image_size {args.image_size}",
            "variants": {**read()["variants"], name: variant},
        }
        with atomic_write(path) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())
    print(
        f"\n| {args.model} at {args.image_size}x{args.image_size} | full-size epochs' work to {args.dice} | last Dice |"
    )
    print("| --- | --- | --- |")
    for name, variant in read()["variants"].items():
        work = until(variant["history"], args.dice)
        print(f"| {name} | {work:.2f} | {variant['history'][-1]['valid_dice']:.4f} |")


if __name__ == "__main__":
    run_script(main)
