"""The study: train and score a queue of runs, then make the tables and figures of STUDY.md from what they recorded.

python benchmarks/study.py --queue benchmarks/queue.txt    # start it again to go on where it stopped
python benchmarks/study.py                                 # the tables and figures

Each finished run leaves results/run-NAME.json. What the tables mean is written by hand, below a marker in STUDY.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import argparse
import json
import shlex
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from plumbing.cli import (
    REPO,
    SAVED_MODELS,
    ArgumentParser,
    UserError,
    existing_path,
    machine,
    run_script,
    shell,
)
from plumbing.files import atomic_write
from plumbing.stop import StopSignal

import numpy as np
import torch

import train
from checkpoint import checkpoint_path, load_checkpoint
from evaluate import RESAMPLES, difference
from oxford_pet import DATASET, find_root
from peers import PEER_NETWORKS, PEER_RECIPES, register
from recipes import Config
from record import RESULTS, write_json
from report import draw_curves, read_history

SPLITS = {"train": "train", "validation": "valid", "test": "test"}  # as rows and tables name them, as evaluate.py does
SCORES = {  # as rows name them, and the score file: at the images' own size, which inputs of any size share
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
MARKER = "<!-- Below this line is written by hand; benchmarks/study.py keeps it. -->"


# ---------------------------------------------------------------------------------------------- the queue


@dataclass(frozen=True)
class Entry:
    """A training of the queue."""

    system: str  # what is compared; one run for each seed
    minutes: float  # expected
    flags: list[str]  # of train.py
    config: Config
    root: Path  # of the data
    threads: int

    @property
    def name(self) -> str:
        """Of its run and its row."""
        return self.system if self.config.seed == 0 else f"{self.system}-seed{self.config.seed}"

    def command(self, script: str) -> list[str]:
        """How to start train.py or evaluate.py: by way of peers.py if src does not know the network or recipe."""
        if self.config.network in PEER_NETWORKS or self.config.recipe in PEER_RECIPES:
            return [sys.executable, str(REPO / "benchmarks" / "peers.py"), script]
        return [sys.executable, str(REPO / "src" / f"{script}.py")]


def read_queue(path: Path) -> list[Entry]:
    """Read a queue file: a line ``NAME MINUTES FLAGS`` for each run, FLAGS being those of train.py.

    A line that begins with a flag holds flags of all lines below it. ``#`` begins a comment.

    Raises:
        UserError: a line is wrong, or two have the same name and seed.
    """
    entries: dict[str, Entry] = {}
    common: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = shlex.split(line, comments=True)
        if words and words[0].startswith("--"):
            common = words
        elif words:
            try:
                entry = parse_entry(words[0], words[1], [*common, *words[2:]])
            except (SystemExit, ValueError, IndexError):
                raise UserError(f"{path}, line {number} is not NAME MINUTES and flags of train.py: {line}") from None
            if entry.name in entries:
                raise UserError(f"{path}, line {number}: {entry.name} is there twice")
            entries[entry.name] = entry
    return list(entries.values())


def parse_entry(system: str, minutes: str, flags: list[str]) -> Entry:
    args = train.parse_args([*flags, "--name", system])
    if args.resume or args.overwrite or args.init_from or args.load_model_epoch or args.seeds:
        raise UserError(f"{system} of the queue: its flags cannot name several seeds, nor say whether it is resumed")
    config = train.resolve_config(args, None)
    root = find_root(args.data_path or DATASET)
    return Entry(system, float(minutes), flags, config, root, args.threads or torch.get_num_threads())


def as_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_dict()))


def refuse_other(entry: Entry, path: Path, config: dict[str, Any], is_same_data: bool) -> None:
    """Raise UserError if what is already there under an entry's name is of another config or of other data."""
    asked = as_json(entry.config)
    config = as_json(Config(entry.config.network)) | config  # an older file may lack fields: they had their defaults
    other = [f"{key} {config.get(key)} (asked {asked[key]})" for key in asked if config.get(key) != asked[key]]
    other += [] if is_same_data else [f"not the data of {entry.root}"]
    if other:
        raise UserError(
            f"{path} is of another run than {entry.name} of the queue: {', '.join(other)}; move it away, or give the "
            "entry another name"
        )


class Queue:
    """The entries of a queue file, and where their runs and rows are kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.entries = read_queue(args.queue)
        if args.only:
            unknown = set(args.only) - {entry.name for entry in self.entries}
            if unknown:
                raise UserError(f"{args.queue} has no {', '.join(sorted(unknown))}")
            self.entries = [entry for entry in self.entries if entry.name in args.only]
        self.save_path, self.results, self.splits = args.save_path, args.results, args.splits

    def row_path(self, entry: Entry) -> Path:
        return self.results / f"run-{entry.name}.json"

    def newest(self, entry: Entry) -> tuple[str | None, dict[str, Any]]:
        """Which checkpoint of an entry's run is the furthest, and its content; None where there is no run."""
        for which in ("final", "last", "0"):
            path = checkpoint_path(self.save_path, entry.name, which)
            if path.is_file():
                return which, load_checkpoint(path)
        return None, {}

    def check(self, entry: Entry) -> bool:
        """Whether an entry is finished.

        Raises:
            UserError: what is there under its name is of another config or of other data.
        """
        row_path = self.row_path(entry)
        if row_path.is_file():
            row = json.loads(row_path.read_text())
            refuse_other(entry, row_path, row["config"], row["data"] == entry.root.name)
            return True
        which, state = self.newest(entry)
        if which:
            path = checkpoint_path(self.save_path, entry.name, which)
            is_same_data = (REPO / state["data_path"]).resolve() == entry.root.resolve()
            refuse_other(entry, path, as_json(state["config"]), is_same_data)
        return False

    def finish(self, entry: Entry, stop: StopSignal) -> bool:
        """Do what is left of training, scoring and recording an entry; whether all of it succeeded."""
        which, state = self.newest(entry)
        run = ["--name", entry.name, "--save_path", str(self.save_path)]
        is_trained = which == "final"
        if which == "last":  # stopped between the last epoch and the final checkpoint?
            wanted = entry.config.stop_at_dice or 2.0
            is_trained = state["epoch"] >= entry.config.epochs or state["scores"].get("valid_dice", 0.0) >= wanted
        if not is_trained:
            how = {None: [], "0": ["--overwrite"], "last": ["--resume"]}[which]
            if not call([*entry.command("train"), *entry.flags, *run, *how], stop):
                return False
        for split in self.splits:
            flags = [*run, "--split", SPLITS[split], "--threads", str(entry.threads)]
            for more in ([], ["--flip_average"]):
                if not call([*entry.command("evaluate"), *flags, *more], stop):
                    return False
        write_json(self.row_path(entry), self.row(entry))
        print(f"wrote {self.row_path(entry)}", flush=True)
        for path in (self.save_path / entry.name).glob(f"{entry.name}_*.pth"):
            if path.stem.removeprefix(f"{entry.name}_") not in ("best", "epoch_final"):
                path.unlink()  # a row is there, so nothing will resume from it
        return True

    def row(self, entry: Entry) -> dict[str, Any]:
        """What is recorded of a run: its scores, its cost, its curves, and the scores of each image."""
        folder, (_, state) = self.save_path / entry.name, self.newest(entry)
        history = read_history(folder / f"{entry.name}_history.csv")
        seconds = sum(epoch["seconds"] for epoch in history)
        images = sum(epoch["seconds"] * epoch["images_per_second"] for epoch in history)
        reports = {}
        for split in self.splits:
            for key, suffix in ((split, ""), (f"{split}_flip", "_flip")):
                path = folder / f"{entry.name}_{SPLITS[split]}_scores{suffix}.json"
                reports[key] = json.loads(path.read_text())
        validation, test = (reports.get(split, {"per_image": []})["per_image"] for split in ("validation", "test"))
        return {
            "system": entry.system,
            "recipe": entry.config.recipe,
            "seed": entry.config.seed,
            "image_size": entry.config.image_size,
            "epochs": len(history),
            "threads": entry.threads,
            "minutes": round(seconds / 60, 1),
            **{
                score: {key: round(report[name], 5) for key, report in reports.items()}
                for score, name in SCORES.items()
            },
            "dice_by_boundary": {
                key: {
                    boundary: round(sizes["own"]["dice"]["mean"], 5)
                    for boundary, sizes in report["conventions"].items()
                }
                for key, report in reports.items()
            },
            "images_per_second": round(images / seconds, 1),
            "versions": state["versions"],
            "machine": machine(),
            "commit": state["commit"],
            "command": shell("python", "src/train.py", *entry.flags),
            "data": entry.root.name,
            "config": as_json(entry.config),
            "history": [{key: round(value, 5) for key, value in epoch.items()} for epoch in history],
            "validation_dice": [round(image["dice_original"], 4) for image in validation],
            "test_dice": [round(image["dice_original"], 4) for image in test],
            "test_boundary_f": [round(image["boundary_f"], 4) for image in test],
        }


def call(command: list[str], stop: StopSignal) -> bool:
    """Run a command, pass a stop signal on to it, and return whether it succeeded."""
    if stop.number:
        return False
    print(f"+ {shell(*command)}", flush=True)
    child = subprocess.Popen(command, start_new_session=True)  # else Ctrl-C would reach it twice, and kill it
    while child.poll() is None and not stop.number:
        time.sleep(0.2)
    if child.poll() is None:
        child.send_signal(stop.number)
    return child.wait() == 0


def run_queue(args: argparse.Namespace, argv: list[str]) -> None:
    """Finish the entries of a queue in their order; one that fails does not hold up the others.

    Raises:
        UserError: an entry's name is taken by another run (before anything is run), or an entry failed.
    """
    register()
    queue = Queue(args)
    left = [entry for entry in queue.entries if not queue.check(entry)]
    minutes = sum(entry.minutes for entry in left)
    print(f"{len(left)} of {len(queue.entries)} runs left, about {minutes:.0f} minutes from their start", flush=True)
    with StopSignal() as stop:
        failed = [entry.name for entry in left if not stop.number and not queue.finish(entry, stop)]
    if stop.number:
        print(f"stopped; go on with: {shell('python', 'benchmarks/study.py', *argv)}")
        sys.exit(128 + stop.number)
    if failed:
        raise UserError(f"these did not finish: {', '.join(failed)}; the same command tries them again")


# ---------------------------------------------------------------------------------------------- tables and figures

Runs = dict[str, dict[int, dict[str, Any]]]  # the rows, by system and seed


def read_rows(results: Path) -> Runs:
    runs: Runs = {}
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("run-*.json"))]
    for row in sorted(rows, key=lambda row: row["seed"]):
        runs.setdefault(row["system"], {})[row["seed"]] = row
    return runs


def compare(runs: Runs, a: str, b: str, score: str = "test_dice") -> dict[str, Any] | None:
    """Test Dice (or another score of each test image) of a system less that of another, over the seeds that both have.

    Each image's score is its mean over the seeds; a difference whose interval includes 0 is called none. The validation
    Dice of both is the best up to the last epoch of the shorter run.

    Returns:
        None if they share no seed, were not tested on the same images, or have no such score.
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
        **difference(scores_a, scores_b),
        "seeds": len(seeds),
        "epochs": epochs,
        "validation": [float(np.mean(values)) for values in best if values],
    }


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
        if d := compare(runs, a, b):
            interval = f"{d['low']:+.4f} to {d['high']:+.4f}"
            epochs, valid = " and ".join(map(str, d["epochs"])), " and ".join(f"{v:.4f}" for v in d["validation"])
            outline = ""
            if f := compare(runs, a, b, "test_boundary_f"):
                outline = f"{f['mean']:+.4f} ({f['low']:+.4f} to {f['high']:+.4f})"
            lines.append(
                f"| {a} less {b} | {d['mean']:+.4f} | {interval} | {d['called']} | {d['seeds']} "
                f"| {epochs} | {valid} | {outline} |"
            )
    return lines


def size_table(runs: Runs) -> list[str]:
    """Markdown: test Dice and boundary F-score by the size of the pet, the fraction of the image in mean_mask.py's row.

    Below them the differences of Dice of those COMPARISONS that are of our recipe alone, with their intervals. A system
    is left out if it was tested on other images than the mean mask.
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
            gains = [difference(pair[0][part], pair[1][part]) for part in parts]
            cells = [f"{gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})" for gain in gains]
            lines.append(f"| {a} less {b} | Dice | {' | '.join(cells)} |")
    return lines


def group_of(system: str) -> str:
    """The panel of the figure that a system belongs to."""
    if system.endswith("-quarter"):
        return "a quarter of the images"
    return system[:4] if system.startswith(("lab2", "lab3")) else "our recipe"


def draw(runs: Runs, path: Path) -> None:
    """Validation Dice of the first seed of each system, by epoch above and by minutes of training below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = sorted({group_of(system) for system in runs}, reverse=True)  # our recipe first
    figure = Figure(figsize=(4 * len(groups), 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(groups), squeeze=False, sharey=True)
    for system, rows in runs.items():
        by_epoch, by_minutes = axes[:, groups.index(group_of(system))]
        history = next(iter(rows.values()))["history"]
        epochs, seconds, dice = ([row[key] for row in history] for key in ("epoch", "seconds", "valid_dice"))
        by_epoch.plot(epochs, dice, label=system, marker=".")
        by_minutes.plot(np.cumsum(seconds) / 60, dice, label=system, marker=".")
    for column, group in enumerate(groups):
        axes[0, column].set_title(group)
        for axis, label in zip(axes[:, column], ("epoch", "minutes of training"), strict=True):
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
        axes[0, column].legend(fontsize="small", loc="lower right")
    for axis in axes[:, 0]:
        axis.set_ylabel("validation Dice")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=80, format="png")


def write_page(results: Path, page: Path) -> None:
    """Replace what stands above the marker of the page, and draw the figures.

    Raises:
        UserError: no run has been recorded.
    """
    runs = read_rows(results)
    if not runs:
        raise UserError(f"{results} has no run-*.json; train first: python benchmarks/study.py --queue FILE")
    trained = {system: rows for system, rows in runs.items() if next(iter(rows.values()))["history"]}
    draw(trained, results / "study-curves.png")
    histories = {system: next(iter(rows.values()))["history"] for system, rows in trained.items()}
    both = {system: history for system, history in histories.items() if "train_dice" in history[0]}
    if both:
        draw_curves(both, results / "study-lab3-curves.png")
    sections = [
        "# The two reports and our recipes, on the same data",
        "Dice is the mean over images, IoU over the set; boundary F-score and outline (its length over the target's) "
        "at the images' own size. The checkpoint is the best on validation; test was scored once for each run. Minutes "
        "are those of the training steps. Written by `python benchmarks/study.py` from `results/run-*.json`, which "
        "have each run's command, machine, versions and curves.",
        "\n".join(score_table(runs)),
        "![Validation Dice](results/study-curves.png)",
        *(["![The networks of lab3, training and validation](results/study-lab3-curves.png)"] if both else []),
        f"Paired bootstrap over the test images, {RESAMPLES:,} resamples, of each image's mean over the seeds. It says "
        "what other images could have changed, not what other seeds could. A difference whose interval includes 0 is "
        "called none.",
        "\n".join(difference_table(runs)),
    ]
    if sizes := size_table(runs):
        sections += [
            "Test scores by the size of the pet: a fifth of the images in each column, and the largest fraction of an "
            "image that is pet there.",
            "\n".join(sizes),
        ]
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    by_hand = old.split(MARKER, 1)[1] if MARKER in old else "\n"
    text = "\n\n".join(sections)
    with atomic_write(page) as file:
        file.write(f"{text}\n\n{MARKER}{by_hand}".encode())
    print(f"{text}\n\nwrote {page}, and figures to {results}")


# ---------------------------------------------------------------------------------------------- the script


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = ArgumentParser("Train, score and record a queue of runs; without --queue, make the study's page.")
    add = parser.add_argument
    add("--queue", type=existing_path, metavar="FILE", help="a line NAME MINUTES FLAGS-OF-TRAIN.PY for each run")
    add("--only", nargs="+", metavar="NAME", help="these runs of the queue")
    add("--splits", nargs="+", choices=SPLITS, default=["validation", "test"], help="what a trained run is scored on")
    add("--save_path", type=existing_path, default=SAVED_MODELS / "study", help="folder of the runs")
    add("--results", type=Path, default=RESULTS, help="folder of the rows and figures")
    add("--page", type=Path, default=REPO / "benchmarks" / "STUDY.md", help="written without --queue")
    args = parser.parse_args(argv)
    if args.queue:
        run_queue(args, argv)
    else:
        write_page(args.results, args.page)


if __name__ == "__main__":
    run_script(main)
