"""Everything that a GPU is wanted for, in the order of worth, within a time budget; start it again to go on.

python benchmarks/gpu.py --minutes 9 --data_path dataset/oxford-iiit-pet

A part that has its file in results/ is not done again; one that ran out of time goes on (a training) or begins anew.
The tables so far are printed at the end. The minutes of a part have not been measured.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import argparse
import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from plumbing import cli
from plumbing.cli import (
    REPO,
    SAVED_MODELS,
    ArgumentParser,
    choose_device,
    run_script,
    shell,
)

import speed
from oxford_pet import DATASET, find_root, read_split
from record import RESULTS, device_slug, origin, write_json
from report import read_history
from study import read_rows, score_table

PEERS = ("plain", *(("smp",) if find_spec("segmentation_models_pytorch") else ()))
SPEED, STUDY, TRAIN = (REPO / path for path in ("benchmarks/speed.py", "benchmarks/study.py", "src/train.py"))
REACHED, PASSED = r"^validation Dice \S+ reached .*", r"^\d+ passed(?!.*error).*"


@dataclass
class Part:
    """A command, not begun with less than half of its ``minutes`` left, and done when its results/NAME-GPU.json is."""

    minutes: float  # that it should take
    name: str
    command: Callable[[], list[object]]
    success: str = ""  # a pattern of a line of its output, recorded with the seconds; empty: it writes the file itself


def parts(args: argparse.Namespace) -> Iterator[Part]:
    """All parts, by worth."""
    small, large = args.sizes
    common = ["--data_path", args.data_path, "--device", args.device]

    def measure(what: str, *more: object) -> Part:
        flags = [*common, "--image_size", large, "--images", args.images, "--results", args.results, *more]
        return Part(2, what, lambda: [SPEED, "--what", what, *flags])

    def accuracy(minutes: float, model: str, size: int, *more: object) -> Part:
        name = f"run-{'-'.join(map(str, more[1:]))}{'-' if more else ''}{model}-{size}"
        flags = ["--model", model, *more, *common, "--image_size", size]
        return Part(minutes, name, partial(training, args, f"{name[4:]}-{args.slug}", minutes, flags))

    def fast(model: str) -> Part:
        flags = ["--model", model, "--recipe", "fast", "--stop_at_dice", args.dice, "--image_size", large, *common]
        where = ["--name", f"fast-{model}", "--save_path", args.save_path, "--overwrite"]
        return Part(1, f"fast-{model}", lambda: [TRAIN, *flags, *where], REACHED)

    yield Part(2, "tests", lambda: ["-m", "pytest", "-m", "", REPO / "tests" / "test_cuda.py"], PASSED)
    yield measure("step", "--against", "compile", "fp32")
    yield from (accuracy(2, "R", small), accuracy(3, "R", large), fast("R"))
    yield measure("train", "--against", *PEERS, "--repeats", 2)
    yield from (accuracy(3, "U", small), fast("U"), accuracy(4, "U", large))
    yield measure("infer", "--against", *PEERS, "--repeats", 2)
    yield from (accuracy(2, model, large, "--recipe", recipe) for recipe in ("lab2", "lab3") for model in "RU")


def training(args: argparse.Namespace, name: str, minutes: float, flags: list[object]) -> list[object]:
    """Train and score by study.py, as many epochs as the minutes give: decided once, by the second epoch of a probe."""
    queue = args.save_path / f"{name}.txt"
    if not queue.is_file():
        probe = ["--limit", args.images, "--epochs", 2, "--name", "probe", "--save_path", args.save_path, "--overwrite"]
        run_for(math.inf, [TRAIN, *flags, *probe])
        rate = read_history(args.save_path / "probe" / "probe_history.csv")[-1]["images_per_second"]
        images = len(read_split(find_root(args.data_path), "train"))
        epochs = min(200, max(1, int(0.7 * 60 * minutes * rate / images)))  # 0.7: to score and to save
        queue.write_text(f"{name} {minutes} {shell(*flags, '--epochs', epochs)}\n")
    return [STUDY, "--queue", queue, "--save_path", args.save_path, "--results", args.results]


def run_for(seconds: float, command: list[object]) -> str:
    """Run a command and return what it prints; after so many seconds a SIGTERM, which a training answers by saving."""
    command, lines = [sys.executable, *map(str, command)], []
    print(f"\n+ {shell(*command)}", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(min(seconds, 1e6), process.terminate)
        timer.start()
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
        timer.cancel()
    return "".join(lines)


def print_tables(args: argparse.Namespace) -> None:
    """What results/ has of this GPU."""
    for path in sorted(args.results.glob(f"*-{args.slug}.json")):
        content = json.loads(path.read_text())
        what = path.name.removesuffix(f"-{args.slug}.json")
        if what in speed.WHAT:
            print(f"\n{what}, {content['machine']}\n\n{speed.table(what, content['rows'])}")
        elif not what.startswith("run-"):
            print(f"\n{what}: {content['said']}; the process took {content['seconds_of_process']} s")
    runs = {system: seeds for system, seeds in read_rows(args.results).items() if system.endswith(args.slug)}
    print("\n" + "\n".join(score_table(runs)))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    add = (parser := ArgumentParser("Measure all that a GPU is wanted for; start it again to go on.")).add_argument
    add("--minutes", type=cli.positive_float, default=9.0, help="when to stop; parts that are left are named")
    add("--data_path", type=cli.existing_path, default=DATASET, help="the data set's folder, or a shrunk copy")
    add("--sizes", nargs=2, type=cli.image_size, default=[128, 256], help="pixels; the second is the speed's too")
    add("--images", type=cli.positive_int, default=600, help="a turn, of the plain loop and others; of a probe")
    add("--dice", type=cli.fraction, default=0.90, help="validation Dice that `fast` is to reach")
    add("--device", default="auto", help="cuda, cuda:1; cpu takes days")
    add("--save_path", type=cli.existing_path, default=SAVED_MODELS / "gpu", help="folder of the runs")
    add("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(argv)
    args.slug = device_slug(choose_device(args.device))
    find_root(args.data_path)
    args.save_path.mkdir(parents=True, exist_ok=True)
    until, left = time.monotonic() + 60 * args.minutes, []
    for part in parts(args):
        path, started = args.results / f"{part.name}-{args.slug}.json", time.monotonic()
        if not path.is_file() and until - started > 30 * part.minutes:
            output = run_for(until - started, part.command())
            found = re.search(part.success, output, re.MULTILINE) if part.success else None
            if found:
                figures = {"said": found[0], "seconds_of_process": round(time.monotonic() - started, 1)}
                write_json(path, {**figures, **origin("gpu.py", argv)})
        left += [] if path.is_file() else [part.name]
    print_tables(args)
    print(f"\nleft: {', '.join(left) or 'nothing'}" + ("; the same command goes on" if left else ""))


if __name__ == "__main__":
    run_script(main)
