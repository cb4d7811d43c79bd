"""What each choice of our recipe is worth at equal minutes, on validation: the variants, and their table.

python benchmarks/study.py --queue benchmarks/queue-choices.txt --splits validation \
    --save_path saved_models/choices --results saved_models/choices
python benchmarks/choices.py saved_models/choices

``peers.py`` makes the variants known to train.py. What proves itself moves to src; all else stays here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

from plumbing.cli import ArgumentParser, UserError, existing_path, run_script

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import engine
from augment import draw_epoch, warp
from engine import TrainingState
from evaluate import difference
from losses import bce_dice_loss, bce_loss
from models.resnet34_unet import ResNet34UNet
from recipes import RECIPES, Config
from record import RESULTS, write_json

BASELINE = "choice-none"
KEPT_FROM = 0.003  # a smaller gain is not worth its code
BREEDS = 37
BREED_WEIGHT = 0.2  # of the auxiliary loss
DISTIL_WEIGHT = 0.5  # in the last epoch; it grows from 0
# Of the last residual block, linear from 0 at the first: Huang et al., "Deep Networks with Stochastic Depth".
DROP = 0.1

# ---------------------------------------------------------------------------------------------- losses


def dice_3_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy and Dice loss 1:3, where ``bce_dice_loss`` has 1:1."""
    return 3 * bce_dice_loss(logits, target, weight) - 2 * bce_loss(logits, target, weight)


def soft_boundary_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """``bce_dice_loss`` of the target's mean over 3x3 pixels, which is between 0 and 1 at the outline."""
    soft = F.avg_pool2d(target.float(), 3, stride=1, padding=1, count_include_pad=False)
    return bce_dice_loss(logits, soft, weight)


# ---------------------------------------------------------------------------------------------- networks


class DeepSupervision(ResNet34UNet):
    """Two more heads in training, of logits at 1/4 and 1/2 of the size, enlarged to the target's."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(channels, 4, 1) for channels in (128, 64))  # at strides 8 and 4

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        if not self.training:
            return super().forward(images)
        *skips, features = self.encoder(images)
        decoded = []
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            decoded.append(features := up(features, skip))
        coarse = [F.pixel_shuffle(head(one), 2) for head, one in zip(self.heads, decoded[1:], strict=False)]
        return [self.head(features), *(F.interpolate(one, size=images.shape[-2:], mode="bilinear") for one in coarse)]


class WithBreeds(ResNet34UNet):
    """A classifier of the breeds, on the mean of the encoder's last features; ``breed_loss`` trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(512, BREEDS)
        self.encoder.register_forward_hook(keep_last_features)


def keep_last_features(encoder: nn.Module, _: object, features: list[Tensor]) -> None:
    encoder.last_features = features[-1] if encoder.training else None


class StochasticDepth(ResNet34UNet):
    """In training, residual branches are left out at random, later ones more often."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import StochasticDepth as Drop

        blocks = [block for stage in self.encoder.stages for block in stage]
        for index, block in enumerate(blocks):
            block.norm2 = nn.Sequential(block.norm2, Drop(DROP * index / (len(blocks) - 1), "row"))


# ---------------------------------------------------------------------------------------------- steps


def mean_warp(images: Tensor, trimaps: Tensor, theta: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """``augment.warp``, where the result is smaller of means over pixels: bilinear, it takes 4 and skips the others."""
    return warp(F.avg_pool2d(images, images.shape[-1] // side), trimaps, theta, side)


@lru_cache(maxsize=1)
def epoch_order(samples: int, batch_size: int, config: Config, epoch: int) -> Tensor:
    return draw_epoch(config.augmentation_at(epoch), samples, batch_size, config.seed, epoch).order


@lru_cache(maxsize=1)
def breeds(names: tuple[str, ...]) -> Tensor:
    """(n,) int64, the breed of each sample, which is its name without the number."""
    of_name = [name.rsplit("_", 1)[0] for name in names]
    known = sorted(set(of_name))
    if len(known) > BREEDS:
        raise UserError(f"the training images are of {len(known)} breeds by their names, not {BREEDS} at most")
    return torch.tensor([known.index(breed) for breed in of_name])


def breed_loss(state: TrainingState, images: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of the breeds of the current batch."""
    size = state.config.batch_size
    order = epoch_order(len(state.train), size, state.config, state.epoch + 1)
    labels = breeds(tuple(state.train.names))[order[state.step * size :][: len(images)]]
    scores = state.model.classify(state.model.encoder.last_features.float().mean((2, 3)))
    return BREED_WEIGHT * F.cross_entropy(scores, labels.to(scores.device))


def distil_loss(state: TrainingState, images: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy to the probabilities that the EMA weights give, from the second epoch on."""
    if state.epoch == 0:  # their BatchNorm statistics are computed at the end of an epoch
        return logits.new_zeros(())
    with torch.no_grad(), state.autocast():
        teacher = state.ema_model.eval()(images).float().sigmoid()
    weight = DISTIL_WEIGHT * state.epoch / state.config.epochs
    return weight * F.binary_cross_entropy_with_logits(logits.float(), teacher)


plain_step = engine.train_step


def train_step(state: TrainingState, *batch: Tensor) -> Tensor:
    """``engine.train_step``, with the warp or the further loss that the variant has."""
    if state.config.recipe == "choice-mean-pixels":
        with patch.object(engine, "warp", mean_warp):
            return plain_step(state, *batch)
    further = FURTHER_LOSSES.get(state.config.recipe)
    if not further:
        return plain_step(state, *batch)
    seen: list[Tensor] = []

    def forward(images: Tensor) -> Any:
        seen.append(images)
        return before.forward(images)

    def criterion(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return before.criterion(logits, target, weight) + further(state, seen[0], logits)

    before = replace(state)
    state.forward, state.criterion = forward, criterion
    try:
        return plain_step(state, *batch)
    finally:
        state.forward, state.criterion = before.forward, before.criterion


# ---------------------------------------------------------------------------------------------- the variants


def variant(name: str, changes: Callable[[Config], dict[str, Any]], network: str) -> Config:
    config = RECIPES["cpu"](network)
    return replace(config, recipe=name, **changes(config))


# By recipe: the change in words, and of the config's fields.
CHANGES: dict[str, tuple[str, Callable[[Config], dict[str, Any]]]] = {
    BASELINE: ("the recipe as it is", lambda _: {}),
    "choice-full-size": ("all epochs at full size", lambda _: {"progressive": ()}),
    "choice-half-35": ("half size until 35% of the epochs", lambda _: {"progressive": ((0.35, 2),)}),
    "choice-half-80": ("half size until 80% of the epochs", lambda _: {"progressive": ((0.8, 2),)}),
    "choice-mean-pixels": ("smaller images are means over pixels", lambda _: {}),
    "choice-batch-8": ("batches of 8", lambda _: {"batch_size": 8}),
    "choice-batch-32": ("batches of 32", lambda _: {"batch_size": 32}),
    "choice-batch-32-rate": (
        "batches of 32, 1.5 times the learning rate",
        lambda config: {"batch_size": 32, "learning_rate": 1.5 * config.learning_rate},
    ),
    "choice-rate-low": ("half the learning rate", lambda config: {"learning_rate": config.learning_rate / 2}),
    "choice-rate-high": ("twice the learning rate", lambda config: {"learning_rate": config.learning_rate * 2}),
    "choice-decay": ("weight decay 0.05", lambda _: {"weight_decay": 0.05}),
    "choice-warmup-5": ("warm-up over 5% of the steps", lambda _: {"warmup": 0.05}),
    "choice-warmup-15": ("warm-up over 15% of the steps", lambda _: {"warmup": 0.15}),
    "choice-no-ema": ("no EMA", lambda _: {"ema_steps": 0}),
    "choice-ema-100": ("EMA over 100 steps", lambda _: {"ema_steps": 100}),
    "choice-ema-1600": ("EMA over 1600 steps", lambda _: {"ema_steps": 1600}),
    "choice-half-augmentation": (
        "augmentation half as far",
        lambda config: {"augmentation": config.augmentation.scaled(0.5)},
    ),
    "choice-more-augmentation": (
        "augmentation half as far again",
        lambda config: {"augmentation": config.augmentation.scaled(1.5)},
    ),
    "choice-no-ramp": ("augmentation at full strength from the start", lambda _: {"ramp_epochs": 1}),
    "choice-dice-3": ("cross-entropy and Dice loss 1:3", lambda _: {"loss": "choice.dice-3"}),
    "choice-soft-boundary": ("the target's mean over 3x3 pixels", lambda _: {"loss": "choice.soft-boundary"}),
    "choice-deep-supervision": ("heads at 1/2 and 1/4 of the size too", lambda _: {}),
    "choice-breeds": ("the breed as an auxiliary target", lambda _: {}),
    "choice-stochastic-depth": (f"stochastic depth, up to {DROP}", lambda _: {}),
    "choice-distil": ("self-distillation from the EMA", lambda _: {}),
}
FURTHER_LOSSES = {"choice-breeds": breed_loss, "choice-distil": distil_loss}
CHOICE_LOSSES = {"choice.dice-3": dice_3_loss, "choice.soft-boundary": soft_boundary_loss}
CHOICE_NETWORKS = {
    "choice.DeepSupervision": DeepSupervision,
    "choice.WithBreeds": WithBreeds,
    "choice.StochasticDepth": StochasticDepth,
}
CHOICE_RECIPES: dict[str, Callable[[str], Config]] = {
    name: partial(variant, name, changes) for name, (_, changes) in CHANGES.items()
}


# ---------------------------------------------------------------------------------------------- the table


def gains(folder: Path) -> list[dict[str, Any]]:
    """Of each variant with a row in a folder: its cost, and its validation Dice less that of its network's baseline.

    Over the seeds that both have: each image's Dice is its mean over them. By network, the best variant first.

    Raises:
        UserError: a baseline has no row.
    """
    rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in folder.glob("run-choice-*.json"):
        row = json.loads(path.read_text())
        network = row["config"]["network"]
        network = "ResNet34_UNet" if network in CHOICE_NETWORKS else network
        rows.setdefault((network, row["recipe"]), {})[row["seed"]] = row
    found = []
    for (network, recipe), of_seed in rows.items():
        baseline = rows.get((network, BASELINE), {})
        seeds = sorted(of_seed.keys() & baseline.keys())
        if not seeds:
            raise UserError(
                f"{folder} has no row of {BASELINE} for {network}: that is what the others are compared with"
            )
        ours, base = (np.array([part[seed]["validation_dice"] for seed in seeds]) for part in (of_seed, baseline))
        found.append(
            {
                "network": network,
                "recipe": recipe,
                "epochs": of_seed[seeds[0]]["epochs"],
                "minutes": [of_seed[seed]["minutes"] for seed in seeds],
                "seeds": seeds,
                "dice": [round(float(dice), 5) for dice in ours.mean(1)],
                "gain": difference(ours.mean(0), base.mean(0)),
                "gain_of_seed": [round(float(gain), 5) for gain in (ours - base).mean(1)],
            }
        )
    return sorted(found, key=lambda row: (row["network"], -row["gain"]["mean"]))


def table(found: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| network | change | epochs | minutes | validation Dice | gain (95% interval) | of each seed | called |",
        "| --- " * 8 + "|",
    ]
    for row in found:
        gain = row["gain"]
        is_kept = len(row["seeds"]) > 1 and min(row["gain_of_seed"]) > KEPT_FROM
        cells = [
            row["network"],
            CHANGES[row["recipe"]][0],
            row["epochs"],
            " and ".join(f"{minutes:.1f}" for minutes in row["minutes"]),
            f"{np.mean(row['dice']):.4f}",
            f"{gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})",
            " and ".join(f"{one:+.4f}" for one in row["gain_of_seed"]),
            "kept" if is_kept else gain["called"],
        ]
        if row["recipe"] == BASELINE:
            cells[5:] = "", "", ""
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("The table of the variants that the queue has trained.")
    parser.add_argument("rows", type=existing_path, help="folder of the rows that study.py wrote")
    parser.add_argument("--output", type=Path, default=RESULTS / "choices.json", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    found = gains(args.rows)
    if not found:
        raise UserError(f"{args.rows} has no run-choice-*.json")
    print("\n".join(table(found)))
    one = json.loads(next(args.rows.glob("run-choice-*.json")).read_text())
    about = {key: one[key] for key in ("machine", "versions", "commit", "threads")}
    write_json(args.output, about | {f"{row.pop('network')} {row.pop('recipe')}": row for row in found})
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_script(main)
