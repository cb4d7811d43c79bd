"""Re-run both reports beside our default recipe on one budget, and answer what they claimed with measurements.

python benchmarks/study.py --image_size 128 --epochs 30 --seeds 0 1 2

Writes STUDY.md, results/study.json and two figures. Runs are kept in --work under their budget: a finished one is not
run again, an interrupted one is resumed. Several calls with --only add up to one study.
"""

import dataclasses
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "src"), str(REPO / "benchmarks")]

import train  # noqa: E402
from atomic import atomic_write  # noqa: E402
from augment import Augmentation  # noqa: E402
from checkpoint import checkpoint_path, load_checkpoint  # noqa: E402
from evaluate import dice_and_iou, evaluate, load_predictor  # noqa: E402
from losses import truth_and_weight  # noqa: E402
from models import build_network, count_parameters  # noqa: E402
from networks import count_gmacs  # noqa: E402
from options import (  # noqa: E402
    DATASET,
    DEVICES,
    SAVED_MODELS,
    ArgumentParser,
    UserError,
    choose_device,
    describe,
    image_side,
    positive_int,
    run_script,
    whole_number,
)
from oxford_pet import Split, cpu_cores, find_root, load_split  # noqa: E402
from recipes import RECIPES  # noqa: E402

ABLATIONS = {
    "lab2-unaugmented": dataclasses.replace(RECIPES["lab2"], name="lab2-unaugmented", augmentation=Augmentation()),
    "lab3-bce": dataclasses.replace(RECIPES["lab3"], name="lab3-bce", loss="bce", state_dicts={}),
}
SYSTEMS = {  # name: recipe and letter
    "default-U": ("default", "U"),
    "default-R": ("default", "R"),
    "lab2-U": ("lab2", "U"),
    "lab2-R": ("lab2", "R"),
    "lab3-U": ("lab3", "U"),
    "lab3-R": ("lab3", "R"),
    "lab2-unaugmented-R": ("lab2-unaugmented", "R"),
    "lab3-bce-R": ("lab3-bce", "R"),
}
TABLE = tuple(SYSTEMS)[:6]
REPORTED = {  # Dice of train / valid / test, as the reports state them
    "lab2-U": "- / - / 0.7491",
    "lab2-R": "- / - / 0.9011",
    "lab3-U": "0.92 / 0.88 / 0.88",
    "lab3-R": "0.90 / 0.89 / 0.89",
}
COMPARISONS = (
    ("default-R", "default-U"),
    ("lab2-R", "lab2-U"),
    ("lab3-R", "lab3-U"),
    ("default-U", "lab2-U"),
    ("default-U", "lab3-U"),
    ("default-R", "lab2-R"),
    ("default-R", "lab3-R"),
    ("lab2-R", "lab2-unaugmented-R"),
    ("lab3-R", "lab3-bce-R"),
    ("mean mask", "all pet"),
    ("lab2-U", "mean mask"),
)
EARLY = 10  # epochs: the reports' "under about 10"
FAR = 0.05  # Dice: from here on a difference is called far
RESAMPLES = 10_000
BOUNDARY = "pet"
SCORING_BATCH = 32
MARKER = "<!-- Below this line is written by hand; benchmarks/study.py keeps it. -->"


# ---------------------------------------------------------------------------------------------- runs


def budget_of(root: Path, image_size: int, epochs: int, train_images: int | None) -> dict[str, Any]:
    return {"data": root.name, "image_size": image_size, "epochs": epochs, "train_images": train_images}


def run_folder(work: Path, budget: dict[str, Any]) -> Path:
    images = budget["train_images"] or "all"
    return work / f"{budget['data']}-{budget['image_size']}px-{budget['epochs']}epochs-{images}images"


def result_path(folder: Path, system: str, seed: int) -> Path:
    return folder / f"{system}-seed{seed}" / "result.json"


def run_system(system: str, seed: int, folder: Path, root: Path, budget: dict[str, Any], device: str) -> None:
    """Train and score a system, or do what is left of that; the result is kept beside the run.

    Raises:
        UserError: there is a result of that name by a recipe that has changed since.
    """
    recipe_name, letter = SYSTEMS[system]
    recipe = dataclasses.replace(RECIPES[recipe_name].for_letter(letter), epochs=budget["epochs"])
    target = result_path(folder, system, seed)
    name = target.parent.name
    if target.is_file():
        if json.loads(target.read_text())["recipe"] != json.loads(json.dumps(recipe.to_dict())):
            raise UserError(f"the recipe {recipe_name} has changed since {target.parent} was run: move that away first")
        print(f"{name}: done before")
        return
    last = checkpoint_path(folder, name, "last")
    done = load_checkpoint(last)["epoch"] if last.is_file() else 0
    if done < budget["epochs"]:
        flags = {
            "model": letter,
            "recipe": recipe_name,
            "name": name,
            "save_path": folder,
            "data_path": root,
            "image_size": budget["image_size"],
            "epochs": budget["epochs"],
            "train_images": budget["train_images"],
            "boundary": BOUNDARY,
            "seed": seed,
            "device": device,
            "load_model_epoch": "last" if last.is_file() else "0",
        }
        print(f"{name}: {'resumed after epoch ' + str(done) if last.is_file() else 'begins'}", flush=True)
        train.main([text for flag, value in flags.items() if value is not None for text in (f"--{flag}", str(value))])
    write_json(target, score_system(system, seed, folder, root, budget, choose_device(device)))
    for path in target.parent.glob(f"{name}_*.pth"):  # a run has four checkpoints of up to 370 MB: the scored one stays
        if path != checkpoint_path(folder, name, "best"):
            path.unlink()


def score_system(
    system: str, seed: int, folder: Path, root: Path, budget: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """The scores of a run's best checkpoint on the three splits, its curves, and its cost."""
    state = load_checkpoint(checkpoint_path(folder, f"{system}-seed{seed}", "best"))
    history = load_checkpoint(checkpoint_path(folder, f"{system}-seed{seed}", "last"))["history"]
    predictor = load_predictor(state, device)
    scores = {
        mode: evaluate(predictor, load_budget_split(root, mode, budget), BOUNDARY, SCORING_BATCH)
        for mode in ("train", "valid", "test")
    }
    seconds = sum(row["seconds"] for row in history)
    curves = [column for column in ("train_dice", "valid_dice") if column in history[0]]
    return {
        "system": system,
        "network": state["network"],
        "seed": seed,
        "recipe": state["recipe"],
        "device": describe(device, predictor.precision),
        "parameters": count_parameters(predictor.model),
        "best_epoch": state["epoch"],
        "dice": {mode: float(score.dice.mean()) for mode, score in scores.items()},
        "images": {mode: len(score.names) for mode, score in scores.items()},
        "training_seconds": seconds,
        "images_per_second": len(scores["train"].names) * len(history) / seconds,
        "history": {column: [row[column] for row in history] for column in curves},
        "test_dice": scores["test"].dice.tolist(),
    }


def load_budget_split(root: Path, mode: str, budget: dict[str, Any]) -> Split:
    return load_split(root, mode, budget["image_size"], budget["train_images"] if mode == "train" else None)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


# ---------------------------------------------------------------------------------------------- place alone


@dataclass
class PlaceAlone:
    """What can be predicted without looking at the picture: the mean mask of train, above a threshold."""

    threshold: float  # the one with the best Dice on train
    train_dice: float
    middle: float  # share of pet in the middle ninth of train's mean mask
    border: float  # and in its outermost eighth on each side
    test_dice: np.ndarray  # (n,) of the mean mask
    all_pet: np.ndarray  # (n,) of a mask of nothing but pet


def place_alone(root: Path, budget: dict[str, Any]) -> PlaceAlone:
    """Measure the mean mask: made and thresholded on train, scored on test."""
    train_split, test_split = (load_budget_split(root, mode, budget) for mode in ("train", "test"))
    side = budget["image_size"]
    mean = sum(truth.float().sum(0, keepdim=True) for truth in truths(train_split)) / len(train_split)  # (1, 1, S, S)
    thresholds = np.arange(5, 100, 5) / 100
    on_train = [mask_dice(mean > threshold, train_split).mean() for threshold in thresholds]
    best = int(np.argmax(on_train))
    third, eighth = side // 3, side // 8
    inner = torch.zeros_like(mean, dtype=torch.bool)
    inner[..., eighth : side - eighth, eighth : side - eighth] = True
    return PlaceAlone(
        float(thresholds[best]),
        float(on_train[best]),
        float(mean[..., third : side - third, third : side - third].mean()),
        float(mean[~inner].mean()),
        mask_dice(mean > thresholds[best], test_split),
        mask_dice(torch.ones_like(mean, dtype=torch.bool), test_split),
    )


def truths(split: Split) -> list[torch.Tensor]:
    """The masks of a split, (N, 1, S, S) bool, in batches."""
    batches = split.pixels[..., 3:].permute(0, 3, 1, 2).split(256)
    return [truth_and_weight(trimaps, BOUNDARY)[0] for trimaps in batches]


def mask_dice(mask: torch.Tensor, split: Split) -> np.ndarray:
    """(n,) Dice of one and the same mask, (1, 1, S, S) bool, on each picture of a split."""
    return torch.cat(
        [dice_and_iou(mask.expand_as(truth), truth, torch.ones_like(truth))[0] for truth in truths(split)]
    ).numpy()


# ---------------------------------------------------------------------------------------------- statistics


@dataclass
class Difference:
    """Mean test Dice of ``a`` less that of ``b``, with a 95% interval over the test images."""

    a: str
    b: str
    mean: float
    low: float
    high: float
    seeds: int

    @property
    def word(self) -> str:
        """A difference whose interval holds 0 is called none."""
        return "none" if self.low <= 0 <= self.high else "above" if self.mean > 0 else "below"

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_bootstrap(a: np.ndarray, b: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of mean(a - b): pictures are drawn with replacement, the same ones for both.

    Args:
        a, b: (n,) scores of the same pictures.
    """
    rng, gain = np.random.default_rng(seed), a - b
    means = [gain[rng.integers(0, len(gain), (100, len(gain)))].mean(1) for _ in range(resamples // 100)]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def compare(scores: dict[str, dict[int, np.ndarray]]) -> dict[tuple[str, str], Difference]:
    """Every comparison of which both sides are there; over the seeds that both have, each picture's mean over them.

    Args:
        scores: for each system and seed the test Dice of every picture; place alone stands under each seed.
    """
    differences = {}
    for a, b in COMPARISONS:
        seeds = sorted(scores.get(a, {}).keys() & scores.get(b, {}).keys())
        if seeds:
            mean_a, mean_b = (np.mean([scores[system][seed] for seed in seeds], axis=0) for system in (a, b))
            low, high = paired_bootstrap(mean_a, mean_b)
            differences[a, b] = Difference(a, b, float((mean_a - mean_b).mean()), low, high, len(seeds))
    return differences


# ---------------------------------------------------------------------------------------------- what is written


class Study:
    """The finished runs of one budget, and the page about them."""

    def __init__(self, results: list[dict[str, Any]], place: PlaceAlone, budget: dict[str, Any], about: dict[str, Any]):
        self.place, self.budget, self.about = place, budget, about
        self.runs = {
            system: {r["seed"]: r for r in sorted(results, key=lambda r: r["seed"]) if r["system"] == system}
            for system in SYSTEMS
        }
        self.runs = {system: runs for system, runs in self.runs.items() if runs}
        scores = {
            system: {seed: np.array(run["test_dice"]) for seed, run in runs.items()}
            for system, runs in self.runs.items()
        }
        seeds = {seed for runs in self.runs.values() for seed in runs}
        scores["mean mask"], scores["all pet"] = (dict.fromkeys(seeds, d) for d in (place.test_dice, place.all_pet))
        self.differences = compare(scores)
        side = budget["image_size"]
        self.gmacs = {
            system: round(count_gmacs(build_network(next(iter(runs.values()))["network"]), side), 3)
            for system, runs in self.runs.items()
        }

    def mean(self, system: str, *keys: str) -> float:
        """Over the seeds."""
        values = []
        for run in self.runs[system].values():
            for key in keys:
                run = run[key]
            values.append(run)
        return float(np.mean(values))

    def curve(self, system: str, column: str) -> np.ndarray:
        """(epochs,) mean over the seeds."""
        return np.mean([run["history"][column] for run in self.runs[system].values()], axis=0)

    def spread(self, system: str) -> str:
        values = [run["dice"]["test"] for run in self.runs[system].values()]
        if len(values) < 2:
            return "one seed"
        return f"{min(values):.4f} to {max(values):.4f} ({len(values)} seeds, s.d. {np.std(values, ddof=1):.4f})"

    def table(self) -> list[str]:
        lines = [
            "| system | reported train / valid / test | train | valid | test | test over seeds | parameters "
            f"| GMACs at {self.budget['image_size']}x{self.budget['image_size']} | training s | images/s |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for system in TABLE:
            if system not in self.runs:
                continue
            lines.append(
                f"| {system} | {REPORTED.get(system, '-')} | "
                + " | ".join(f"{self.mean(system, 'dice', mode):.4f}" for mode in ("train", "valid", "test"))
                + f" | {self.spread(system)} | {self.mean(system, 'parameters'):,.0f} | {self.gmacs[system]:.2f} "
                f"| {self.mean(system, 'training_seconds'):.0f} | {self.mean(system, 'images_per_second'):.1f} |"
            )
        return lines

    def difference_table(self) -> list[str]:
        rows = (
            f"| {d.a} less {d.b} | {d.mean:+.4f} | {d.low:+.4f} to {d.high:+.4f} | {d.seeds} | {d.word} |"
            for d in self.differences.values()
        )
        head = ("| difference of test Dice | mean | 95% interval | seeds | called |", "| --- | --- | --- | --- | --- |")
        return [*head, *rows]

    def answers(self) -> list[tuple[str, str]]:
        """Each claim with what was measured."""
        return [
            ("(lab3) Under about 10 epochs the valid Dice is above the train Dice, after that below.", self.claim_1()),
            ("(lab3) Under 10 epochs ResNet34_UNet is ahead of UNet.", self.claim_2()),
            ("(lab3) Pets are nearly always in the middle, so place alone is a strong prior.", self.claim_3()),
            ("ResNet34_UNet ends a little above UNet (lab3), far above (lab2).", self.claim_4()),
            ("(lab2) Rotation and both flips make the result better.", self.gain("lab2-R", "lab2-unaugmented-R")),
            ("(lab3) MSE on the sigmoid works; against BCE per pixel, the fair rival:", self.claim_6()),
        ]

    def missing(self, *systems: str) -> str | None:
        missing = [system for system in systems if system not in self.runs]
        return f"Not measured: {' and '.join(missing)} did not run." if missing else None

    def claim_1(self) -> str:
        answers = []
        for system in ("lab3-U", "lab3-R"):
            if system not in self.runs:
                answers.append(f"{system}: not measured.")
                continue
            above = self.curve(system, "valid_dice") > self.curve(system, "train_dice")
            early, late = above[: EARLY - 1], above[EARLY - 1 :]
            answer = f"{system}: valid was above train in {early.sum()} of the {len(early)} epochs under {EARLY}"
            if len(late):
                answer += f", and in {late.sum()} of the {len(late)} from then on"
            holds = [early.mean() > 0.5] + ([late.mean() < 0.5] if len(late) else [])
            verdict = "holds" if all(holds) else "does not hold" if not any(holds) else "holds in part"
            answers.append(f"{answer}: {verdict}{'' if len(late) else f' as far as {len(above)} epochs tell'}.")
        return " ".join(answers)

    def claim_2(self) -> str:
        if missing := self.missing("lab3-U", "lab3-R"):
            return missing
        lead = (self.curve("lab3-R", "valid_dice") - self.curve("lab3-U", "valid_dice"))[: EARLY - 1]
        ahead = int((lead > 0).sum())
        verdict = "Holds" if ahead > len(lead) / 2 else "Does not hold"
        return (
            f"{verdict}: on valid it was ahead in {ahead} of the {len(lead)} epochs under {EARLY}, "
            f"by {lead.mean():+.4f} on average."
        )

    def claim_3(self) -> str:
        p, d = self.place, self.differences.get(("mean mask", "all pet"))
        rival = self.differences.get(("lab2-U", "mean mask"))
        answer = (
            f"Pet covers {p.middle:.0%} of the middle ninth and {p.border:.0%} of the outer eighths. The mean mask of "
            f"train above {p.threshold:.2f} (chosen on train) scores {p.test_dice.mean():.4f} on test, a mask of "
            f"nothing but pet {p.all_pet.mean():.4f}"
        )
        if d:
            verdict = "place tells something" if d.word == "above" else "place tells nothing more"
            answer += f": {d}, {verdict}"
        if rival:
            answer += f". lab2-U, which looks at the picture, less the mean mask: {rival}, {rival.word}"
        return answer + "."

    def claim_4(self) -> str:
        answers = []
        for system, claimed in (("lab3", "a little above"), ("lab2", "far above")):
            d = self.differences.get((f"{system}-R", f"{system}-U"))
            if d is None:
                answers.append(f"{system}: not measured.")
                continue
            found = d.word if d.word == "none" else f"{'far' if abs(d.mean) >= FAR else 'a little'} {d.word}"
            verdict = "holds" if found == claimed else "does not hold"
            answers.append(f"{system}: {d}, {found}: {verdict}.")
        return " ".join(answers) + f" (Far: {FAR} or more.)"

    def gain(self, a: str, b: str) -> str:
        d = self.differences.get((a, b))
        if d is None:
            return self.missing(a, b) or "Not measured: the two share no seed."
        verdict = {"above": "Holds", "below": "The contrary holds", "none": "Does not hold, no difference"}[d.word]
        return f"{verdict}: {d.a} less {d.b}, {d}."

    def claim_6(self) -> str:
        d = self.differences.get(("lab3-R", "lab3-bce-R"))
        if d is None:
            return self.missing("lab3-R", "lab3-bce-R") or "Not measured: the two share no seed."
        found = {"above": "MSE is better", "below": "BCE is better", "none": "there is no difference"}[d.word]
        dice = {"MSE": self.mean("lab3-R", "dice", "test"), "BCE": self.mean("lab3-bce-R", "dice", "test")}
        answers = (
            f"{loss} {value:.4f} ({'works' if value > self.place.test_dice.mean() else 'no better than place alone'})"
            for loss, value in dice.items()
        )
        return f"{', '.join(answers)}: {found} (lab3-R less lab3-bce-R, {d})."

    def expectations(self) -> list[str]:
        """What was expected before the study, and what came out."""
        lines = []
        if d := self.differences.get(("lab2-R", "lab2-U")):
            lines.append(f"lab2 U far below lab2 R: {'yes' if d.low > 0 and d.mean >= FAR else 'no'} ({d}).")
        if d := self.differences.get(("lab3-R", "lab3-U")):
            lines.append(f"lab3's two within 0.03 of each other: {'yes' if abs(d.mean) <= 0.03 else 'no'} ({d}).")
        ours = {s: self.mean(s, "dice", "test") for s in ("default-U", "default-R") if s in self.runs}
        theirs = {s: self.mean(s, "dice", "test") for s in REPORTED if s in self.runs}
        if ours and theirs:
            best = max(theirs, key=theirs.get)
            lines.extend(
                f"{system} above every report's system: {'yes' if dice > theirs[best] else 'no'} "
                f"({dice:.4f}; the best of theirs is {best}, {theirs[best]:.4f})."
                for system, dice in ours.items()
            )
        return lines

    def markdown(self) -> str:
        b = self.budget
        first = {system: next(iter(runs.values())) for system, runs in self.runs.items()}
        images = next(iter(first.values()))["images"]
        devices = "; ".join(sorted({run["device"] for runs in self.runs.values() for run in runs.values()}))
        numbers = "; ".join(
            f"{system} {run['recipe']['batch_size']} and {run['recipe']['learning_rate']:g}"
            for system, run in first.items()
        )
        sections = [
            "# The two reports, re-run",
            f"Written by `{self.about['command']}` on {self.about['machine']}, Python {self.about['python']}, PyTorch "
            f"{self.about['torch']}. One budget for all: {b['image_size']}x{b['image_size']} pixels, {b['epochs']} "
            f"epochs, {images['train']} training images; trained on {devices}. Batch size and learning rate are the "
            f"recipe's: {numbers}. The checkpoint is the best of the run on the {images['valid']} valid images; test "
            f"are {images['test']} images, looked at once a run. Dice is the mean over images, boundary counted as "
            f"{BOUNDARY}, with no averaging over flips. Training seconds are those of the steps.",
            "## The table",
            "\n".join(self.table()),
            "Reported figures are of the reports' own runs, at 256x256 and in full length.",
            "![Dice on valid, epoch by epoch](results/study-valid.png)",
            "## Differences",
            f"Paired bootstrap over the test images, {RESAMPLES:,} resamples; with several seeds, of each image's mean "
            "over them. It tells what other images could have changed, not what other seeds could: for that see the "
            "spread above. A difference whose interval holds 0 is called none.",
            "\n".join(self.difference_table()),
            "## The claims",
            "\n".join(f"{n}. *{claim}* {answer}" for n, (claim, answer) in enumerate(self.answers(), 1)),
        ]
        if any(system in self.runs for system in ("lab3-U", "lab3-R")):
            sections.append("![lab3's Dice on train and valid](results/study-lab3.png)")
        if expected := self.expectations():
            sections += ["## Expected, and found", "\n".join(f"- {line}" for line in expected)]
        return "\n\n".join(sections) + "\n"

    def to_dict(self) -> dict[str, Any]:
        def rounded(values: list[float]) -> list[float]:
            return [round(value, 4) for value in values]

        return {
            **self.about,
            "budget": self.budget,
            "runs": [
                {
                    **{key: value for key, value in run.items() if key != "test_dice"},
                    "history": {column: rounded(values) for column, values in run["history"].items()},
                    "gmacs": self.gmacs[system],
                }
                for system, runs in self.runs.items()
                for run in runs.values()
            ],
            "place_alone": {
                "threshold": self.place.threshold,
                "train_dice": self.place.train_dice,
                "test_dice": float(self.place.test_dice.mean()),
                "all_pet_test_dice": float(self.place.all_pet.mean()),
                "middle": self.place.middle,
                "border": self.place.border,
            },
            "differences": [{**dataclasses.asdict(d), "called": d.word} for d in self.differences.values()],
            "claims": [{"claim": claim, "answer": answer} for claim, answer in self.answers()],
        }

    def draw(self, folder: Path) -> None:
        """The curves, as small PNGs."""
        valid = {system: {"": self.curve(system, "valid_dice")} for system in TABLE if system in self.runs}
        if valid:
            draw({"Dice on valid": {system: curve[""] for system, curve in valid.items()}}, folder / "study-valid.png")
        lab3 = {
            system: {split: self.curve(system, f"{split}_dice") for split in ("train", "valid")}
            for system in ("lab3-U", "lab3-R")
            if system in self.runs
        }
        if lab3:
            draw(lab3, folder / "study-lab3.png")


def draw(panels: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Lines over epochs, one panel beside the other.

    Args:
        panels: for each title the lines by their label, (epochs,) each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6 if len(panels) == 1 else 4 * len(panels), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey="row")[0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, values in lines.items():
            axis.plot(np.arange(len(values)) + 1, values, label=label, marker="o" if len(values) < 3 else None)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axes[0].set_ylabel("Dice")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=80, format="png")


# ---------------------------------------------------------------------------------------------- the script


def machine(device: torch.device) -> str:
    """The device in words; of a CPU its maker's name too, where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{cpu_cores()} cores of {models[0] if models else platform.machine()}"


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Re-run both reports beside the default recipe and answer their claims.")
    add = parser.add_argument
    add("--data_path", type=Path, default=DATASET, help="the data set, as for train.py")
    add("--image_size", type=image_side, default=128, help="pixels of height and width")
    add("--epochs", type=positive_int, default=30, help="of every run")
    add("--train_images", type=positive_int, help="train on so many, evenly spaced (default: all)")
    add("--seeds", type=whole_number, nargs="+", default=[0], help="of every system")
    add("--only", nargs="+", choices=tuple(SYSTEMS), help="run these now; the page has all that have been run")
    add("--work", type=Path, default=SAVED_MODELS / "study", help="folder where the runs are kept")
    add("--output", type=Path, default=REPO / "benchmarks", help="folder of STUDY.md and results/")
    add("--device", choices=DEVICES, default="auto", help="auto takes a GPU if there is one")
    args = parser.parse_args(argv)

    RECIPES.update(ABLATIONS)
    root, device = find_root(args.data_path), choose_device(args.device)
    budget = budget_of(root, args.image_size, args.epochs, args.train_images)
    folder = run_folder(args.work, budget)
    for seed in args.seeds:  # a whole table of one seed first
        for system in args.only or SYSTEMS:
            run_system(system, seed, folder, root, budget, args.device)

    paths = (result_path(folder, system, seed) for system in SYSTEMS for seed in args.seeds)
    results = [json.loads(path.read_text()) for path in paths if path.is_file()]
    command = f"python benchmarks/study.py --image_size {args.image_size} --epochs {args.epochs}"
    command += f" --train_images {args.train_images}" if args.train_images else ""
    command += f" --seeds {' '.join(map(str, args.seeds))}"
    about = {
        "command": command,
        "machine": machine(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    study = Study(results, place_alone(root, budget), budget, about)
    page = args.output / "STUDY.md"
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    by_hand = old.split(MARKER, 1)[1] if MARKER in old else "\n"
    write_json(args.output / "results" / "study.json", study.to_dict())
    study.draw(args.output / "results")
    text = study.markdown()
    with atomic_write(page) as file:
        file.write(f"{text}\n{MARKER}{by_hand}".encode())
    print(f"\n{text}\nwrote {page}, and results/study.json and figures beside it; runs in {folder}")


if __name__ == "__main__":
    run_script(main)
