"""The study: train and score a queue of runs, then make STUDY.md from the recorded rows.

python benchmarks/study.py --queue benchmarks/queue.txt    # the same command again goes on where it stopped
python benchmarks/study.py                                 # STUDY.md, by study_page.py

Each finished run leaves results/run-NAME.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import json
import shlex
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from plumbing.cli import REPO, SAVED_MODELS, ArgumentParser, UserError, existing_path, machine, run_script, shell
from plumbing.stop import StopSignal

import torch

import train
from checkpoint import checkpoint_path, load_checkpoint
from oxford_pet import DATASET, find_root
from peers import PEER_NETWORKS, register
from recipes import Config
from record import RESULTS, write_json
from report import read_history
from settings import resolve_config
from study_page import SCORES, write_page

SPLITS = {"train": "train", "validation": "valid", "test": "test"}  # name in rows and tables: name in evaluate.py


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
        """How to start train.py or evaluate.py; peers.py registers networks that src does not know."""
        if self.config.network in PEER_NETWORKS:
            return [sys.executable, str(REPO / "benchmarks" / "peers.py"), script]
        return [sys.executable, str(REPO / "src" / f"{script}.py")]


def read_queue(path: Path) -> list[Entry]:
    """Read a queue file: a line ``NAME MINUTES FLAGS`` for each run, FLAGS being those of train.py.

    A line that begins with a flag holds flags for all lines below it. ``#`` begins a comment.

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
    if args.resume or args.overwrite or args.init_from or args.load_model_epoch:
        raise UserError(f"{system} of the queue: its flags cannot say how the run starts")
    config, root = resolve_config(args.model, args.typed, base=args.base), find_root(args.data_path or DATASET)
    return Entry(system, float(minutes), flags, config, root, args.threads or torch.get_num_threads())


def as_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_dict()))


def refuse_other(entry: Entry, path: Path, config: Config, data: str) -> None:
    """Raise UserError if the row or checkpoint at ``path`` is of another config, or of a data set of another name."""
    asked = as_json(entry.config) | {"data": entry.root.name}
    found = as_json(config) | {"data": data}
    other = [f"{key} {found[key]} (asked {asked[key]})" for key in asked if found[key] != asked[key]]
    if other:
        raise UserError(
            f"{path} is of another run than {entry.name} of the queue: {', '.join(other)}; move it away, or give the "
            "entry another name"
        )


@dataclass
class Queue:
    """Where the runs and rows of entries are kept, and the splits on which trained runs are scored."""

    save_path: Path
    results: Path
    splits: list[str]

    def row_path(self, entry: Entry) -> Path:
        return self.results / f"run-{entry.name}.json"

    def is_finished(self, entry: Entry) -> bool:
        """True if the entry has a row.

        Raises:
            UserError: the row, or the final checkpoint, of that name is of another config or of other data.
        """
        row_path, final = self.row_path(entry), checkpoint_path(self.save_path, entry.name, "final")
        if row_path.is_file():
            row = json.loads(row_path.read_text())
            refuse_other(entry, row_path, Config.from_dict(row["config"]), row["data"])
        elif final.is_file():  # of an interrupted run, train.py --resume checks this itself
            state = load_checkpoint(final)
            refuse_other(entry, final, state["config"], Path(state["data_path"]).name)
        return row_path.is_file()

    def finish(self, entry: Entry, stop: StopSignal) -> bool:
        """Do what is left of training, scoring and recording an entry; returns whether all of it succeeded."""
        final, last = (checkpoint_path(self.save_path, entry.name, which) for which in ("final", "last"))
        run = ["--name", entry.name, "--save_path", str(self.save_path)]
        resume = ["--resume"] if last.is_file() else []
        if not final.is_file() and not call([*entry.command("train"), *entry.flags, *run, *resume], stop):
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
        """What is recorded of a run: its scores, cost and curves, and the scores of each image."""
        folder, state = (
            self.save_path / entry.name,
            load_checkpoint(checkpoint_path(self.save_path, entry.name, "final")),
        )
        history = read_history(folder / f"{entry.name}_history.csv")
        seconds = sum(epoch["seconds"] for epoch in history)
        images = sum(epoch["seconds"] * epoch["images_per_second"] for epoch in history)
        reports = {}
        for split in self.splits:
            for suffix in ("", "_flip"):
                path = folder / f"{entry.name}_{SPLITS[split]}_scores{suffix}.json"
                reports[split + suffix] = json.loads(path.read_text())
        validation, test = (reports.get(split, {"per_image": []})["per_image"] for split in ("validation", "test"))
        by_boundary = {
            key: {boundary: round(sizes["own"]["dice"]["mean"], 5) for boundary, sizes in report["conventions"].items()}
            for key, report in reports.items()
        }
        return {
            "system": entry.system,
            "recipe": entry.config.recipe,
            "seed": entry.config.seed,
            "image_size": entry.config.image_size,
            "epochs": len(history),
            "threads": entry.threads,
            "minutes": round(seconds / 60, 1),
            **{row: {key: round(report[name], 5) for key, report in reports.items()} for row, name in SCORES.items()},
            "dice_by_boundary": by_boundary,
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


def run_queue(entries: list[Entry], queue: Queue, again: str) -> None:
    """Finish the entries in order; one that fails does not hold up the others.

    Args:
        again: the command that goes on after a stop.

    Raises:
        UserError: an entry's name is taken by another run (before anything is run), or an entry failed.
    """
    left = [entry for entry in entries if not queue.is_finished(entry)]
    minutes = sum(entry.minutes for entry in left)
    print(f"{len(left)} of {len(entries)} runs left, about {minutes:.0f} minutes from their start", flush=True)
    with StopSignal() as stop:
        failed = [entry.name for entry in left if not stop.number and not queue.finish(entry, stop)]
    if stop.number:
        print(f"stopped; go on with: {again}")
        sys.exit(128 + stop.number)
    if failed:
        raise UserError(f"these did not finish: {', '.join(failed)}; the same command tries them again")


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
    if not args.queue:
        write_page(args.results, args.page)
        return
    register()
    entries = read_queue(args.queue)
    if unknown := set(args.only or ()) - {entry.name for entry in entries}:
        raise UserError(f"{args.queue} has no {', '.join(sorted(unknown))}")
    entries = [entry for entry in entries if entry.name in (args.only or entry.name)]
    run_queue(entries, Queue(args.save_path, args.results, args.splits), shell("python", "benchmarks/study.py", *argv))


if __name__ == "__main__":
    run_script(main)
