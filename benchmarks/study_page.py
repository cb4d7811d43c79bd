"""The tables and figures of STUDY.md, made from results/run-*.json; the text below its marker is written by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plumbing.cli import UserError
from plumbing.files import atomic_write

import numpy as np

from metrics import RESAMPLES, paired_difference_ci
from report import draw_curves

SCORES = {  # name in rows: name in score files; all at the images' own size, so that input sizes can be compared
    "dice": "dice_original",
    "iou_set": "iou_set_original",
    "boundary_f": "boundary_f",
    "boundary_f_middle": "boundary_f_middle",
    "perimeter_ratio": "perimeter_ratio",
}
REPORTED = {"lab2-U": 0.7491, "lab2-R": 0.9011, "lab3-U": 0.88, "lab3-R": 0.89}  # test Dice, as the reports state it
COMPARISONS = (
    ("cpu-R", "lab2-R"),
    ("cpu-R", "lab3-R"),
    ("cpu-R", "cpu-U"),
    ("cpu-U", "lab2-U"),
    ("cpu-R-15", "smp-15"),
    ("cpu-R-15", "cpu-R-9-full-size"),
    ("cpu-R-15", "cpu-R-15-mean-pixels"),
    ("lab2-R", "lab2-U"),
    ("lab3-R", "lab3-U"),
    ("lab2-R", "lab2-unaugmented-R"),
    ("lab3-R", "lab3-bce-R"),
    ("lab3-own-norms-R", "lab3-R"),
    ("lab3-own-norms-R", "lab3-U"),
    ("lab3-own-norms-R", "lab3-own-norms-bce-R"),
    ("lab2-U", "mean-mask"),
    ("cpu-R", "cpu-UNetPlusPlus"),
    ("cpu-R", "cpu-SegFormer"),
    ("cpu-UNetPlusPlus", "cpu-SegFormer"),
    ("cpu-U", "cpu-SegFormer"),
    ("cpu-R-quarter", "cpu-U-quarter"),
    ("cpu-R-quarter", "cpu-UNetPlusPlus-quarter"),
    ("cpu-R-quarter", "cpu-SegFormer-quarter"),
    ("cpu-UNetPlusPlus-quarter", "cpu-SegFormer-quarter"),
    ("cpu-U-quarter", "cpu-SegFormer-quarter"),
    ("cpu-R", "cpu-R-quarter"),
    ("cpu-U", "cpu-U-quarter"),
    ("cpu-UNetPlusPlus", "cpu-UNetPlusPlus-quarter"),
    ("cpu-SegFormer", "cpu-SegFormer-quarter"),
)
SIZES = ("smallest", "small", "middle", "large", "largest")  # of pets, a fifth of the test images each
MARKER = "<!-- Above this line is written by hand; benchmarks/study.py writes what follows. -->"

Runs = dict[str, dict[int, dict[str, Any]]]  # the rows, by system and seed


def read_rows(results: Path) -> Runs:
    runs: Runs = {}
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("run-*.json"))]
    for row in sorted(rows, key=lambda row: row["seed"]):
        runs.setdefault(row["system"], {})[row["seed"]] = row
    return runs


def compare(runs: Runs, a: str, b: str, score: str = "test_dice") -> dict[str, Any] | None:
    """``paired_difference_ci`` of a score of each test image, its mean over the seeds that both systems have.

    Returns:
        It, with the number of seeds, and of both systems the epochs and the best validation Dice up to the last epoch
        of the shorter run; None if they share no seed, were not tested on the same images, or have no such score.
    """
    seeds = sorted(runs.get(a, {}).keys() & runs.get(b, {}).keys())
    pair = [[runs[system][seed] for seed in seeds] for system in (a, b)]
    tested_on = {(row["data"], row["image_size"], len(row.get(score, []))) for rows in pair for row in rows}
    if len(tested_on) != 1 or not pair[0][0].get(score):
        return None
    scores_a, scores_b = (np.mean([row[score] for row in rows], axis=0) for rows in pair)
    epochs = [min(row["epochs"] for row in rows) for rows in pair]
    histories = [[row["history"][: min(epochs)] for row in rows] for rows in pair]
    best = [[max(epoch["valid_dice"] for epoch in history) for history in part if history] for part in histories]
    return {
        **paired_difference_ci(scores_a, scores_b),
        "seeds": len(seeds),
        "epochs": epochs,
        "validation": [float(np.mean(values)) for values in best if values],
    }


def with_interval(ci: dict[str, Any]) -> str:
    return f"{ci['mean']:+.4f} ({ci['low']:+.4f} to {ci['high']:+.4f})"


def score_table(runs: Runs) -> list[str]:
    """Markdown, the best system first, means over the seeds."""
    dice = ("train", "validation", "test", "test_flip")
    columns = [("dice", key) for key in dice] + [(score, "test") for score in SCORES if score != "dice"]

    def mean(rows: dict[int, dict[str, Any]], score: str, key: str) -> float:
        return float(np.mean([row.get(score, {}).get(key, np.nan) for row in rows.values()]))

    lines = [
        "| system | seeds | epochs | minutes (threads) | images/s | reported | train | validation | test | test, flips "
        "| IoU over the set | boundary F | boundary F, middle | outline |",
        "| --- " * 14 + "|",
    ]
    for system, rows in sorted(runs.items(), key=lambda item: -mean(item[1], "dice", "test")):
        first = next(iter(rows.values()))
        minutes, rate = (np.mean([row[key] for row in rows.values()]) for key in ("minutes", "images_per_second"))
        cost = f"{first['epochs']} | {minutes:.1f} ({first['threads']}) | {rate:.1f}"
        scores = [REPORTED.get(system, np.nan), *(mean(rows, *column) for column in columns)]
        cells = " | ".join("" if np.isnan(score) else f"{score:.4f}" for score in scores)
        lines.append(f"| {system} | {len(rows)} | {cost} | {cells} |")
    return lines


def difference_table(runs: Runs) -> list[str]:
    """Markdown, a line for each of COMPARISONS that has been run."""
    lines = [
        "| difference of test Dice | mean | 95% interval | called | seeds | epochs | validation, equal epochs "
        "| boundary F (95% interval) |",
        "| --- " * 8 + "|",
    ]
    for a, b in COMPARISONS:
        dice, outline = compare(runs, a, b), compare(runs, a, b, "test_boundary_f")
        if dice:
            interval = f"{dice['mean']:+.4f} | {dice['low']:+.4f} to {dice['high']:+.4f} | {dice['verdict']}"
            epochs = " and ".join(map(str, dice["epochs"]))
            valid = " and ".join(f"{value:.4f}" for value in dice["validation"])
            boundary_f = with_interval(outline) if outline else ""
            lines.append(f"| {a} - {b} | {interval} | {dice['seeds']} | {epochs} | {valid} | {boundary_f} |")
    return lines


def size_table(runs: Runs) -> list[str]:
    """Markdown: test Dice and boundary F-score by the size of the pet, the fraction of the image in mean_mask.py's row.

    Then the differences of Dice of those COMPARISONS that are of our recipe alone. A system is left out if it was
    tested on other images than the mean mask.
    """
    about = runs.get("mean-mask", {}).get(0, {})
    sizes = np.array(about.get("test_sizes", []))
    if not len(sizes):
        return []
    parts = np.array_split(np.argsort(sizes, kind="stable"), len(SIZES))  # indices of images
    columns = " | ".join(f"{name}, to {sizes[part].max():.0%}" for name, part in zip(SIZES, parts, strict=True))
    lines = [f"| system | score | {columns} |", "| --- " * (2 + len(SIZES)) + "|"]

    def scores(system: str, score: str, seeds: Iterable[int]) -> np.ndarray | None:
        """(n,) means over the seeds."""
        rows = [runs[system][seed] for seed in seeds]
        found = [row.get(score, []) for row in rows if row["data"] == about["data"]]
        return np.mean(found, axis=0) if found and all(len(one) == len(sizes) for one in found) else None

    for system in runs:
        for score, name in (("test_dice", "Dice"), ("test_boundary_f", "boundary F")):
            if (values := scores(system, score, runs[system])) is not None:
                lines.append(f"| {system} | {name} | {' | '.join(f'{values[part].mean():.4f}' for part in parts)} |")
    for a, b in COMPARISONS:
        seeds = runs.get(a, {}).keys() & runs.get(b, {}).keys()
        pair = [scores(system, "test_dice", seeds) for system in (a, b) if system.startswith("cpu-")]
        if len(pair) == 2 and pair[0] is not None and pair[1] is not None:
            gains = [with_interval(paired_difference_ci(pair[0][part], pair[1][part])) for part in parts]
            lines.append(f"| {a} - {b} | Dice | {' | '.join(gains)} |")
    return lines


def panel(system: str) -> str:
    """The panel of the figure that a system belongs to."""
    if system.endswith("-quarter"):
        return "a quarter of the images"
    return system[:4] if system.startswith(("lab2", "lab3")) else "our recipe"


def draw(runs: Runs, path: Path) -> None:
    """Draw validation Dice of each system's first seed, by epoch above and by minutes of training below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = sorted({panel(system) for system in runs}, reverse=True)  # our recipe first
    figure = Figure(figsize=(4 * len(panels), 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(panels), squeeze=False, sharey=True)
    for system, rows in runs.items():
        by_epoch, by_minutes = axes[:, panels.index(panel(system))]
        history = next(iter(rows.values()))["history"]
        epochs, seconds, dice = ([row[key] for row in history] for key in ("epoch", "seconds", "valid_dice"))
        by_epoch.plot(epochs, dice, label=system, marker=".")
        by_minutes.plot(np.cumsum(seconds) / 60, dice, label=system, marker=".")
    for column, title in zip(axes.T, panels, strict=True):
        column[0].set_title(title)
        column[0].legend(fontsize="small", loc="lower right")
        for axis, label in zip(column, ("epoch", "minutes of training"), strict=True):
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("validation Dice")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=80, format="png")


INTRODUCTION = """\
## Tables

Dice is the mean over images, IoU over the set; boundary F-score and outline (its length over the target's) at the \
images' own size. The checkpoint is the best on validation; test was scored once for each run. Minutes are those of \
the training steps. Written by `python benchmarks/study.py` from `results/run-*.json`, which have each run's command, \
machine, versions and curves."""
ABOUT_DIFFERENCES = f"""\
Paired bootstrap over the test images, {RESAMPLES:,} resamples, of each image's mean over the seeds. Intervals cover \
the choice of images, not of seeds. "none" means no significant difference: the interval includes 0."""
ABOUT_SIZES = """\
Test scores by the size of the pet: a fifth of the images in each column, and the largest fraction of an image that \
is pet there."""


def write_page(results: Path, page: Path) -> None:
    """Draw the figures, and replace the page's text below the marker.

    Raises:
        UserError: no run has been recorded.
    """
    runs = read_rows(results)
    if not runs:
        raise UserError(f"{results} has no run-*.json; train first: python benchmarks/study.py --queue FILE")
    trained = {system: rows for system, rows in runs.items() if next(iter(rows.values()))["history"]}
    draw(trained, results / "study-curves.png")
    sections = [INTRODUCTION, "\n".join(score_table(runs)), "![Validation Dice](results/study-curves.png)"]
    histories = {system: next(iter(rows.values()))["history"] for system, rows in trained.items()}
    if both := {system: history for system, history in histories.items() if "train_dice" in history[0]}:
        draw_curves(both, results / "study-lab3-curves.png")
        sections.append("![The networks of lab3, training and validation](results/study-lab3-curves.png)")
    sections += [ABOUT_DIFFERENCES, "\n".join(difference_table(runs))]
    if sizes := size_table(runs):
        sections += [ABOUT_SIZES, "\n".join(sizes)]
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    by_hand = old.split(MARKER, 1)[0] if MARKER in old else ""
    text = "\n\n".join(sections)
    with atomic_write(page) as file:
        file.write(f"{by_hand}{MARKER}\n\n{text}\n".encode())
    print(f"{text}\n\nwrote {page}, and figures to {results}")
