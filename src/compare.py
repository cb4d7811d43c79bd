"""Compare runs by their score files: means, spread over seeds, paired differences, and where they differ most.

python src/compare.py R U lab2-R
"""

import argparse
import itertools
import json
import re
from pathlib import Path
from typing import Any

from plumbing import cli
from plumbing.cli import OUTPUTS, SAVED_MODELS, ArgumentParser, UserError, plural, run_script, shell
from plumbing.files import atomic_write
from plumbing.images import in_threads

import numpy as np
import torch

from metrics import RESAMPLES, dice_and_iou, mean_ci, overlap, paired_difference_ci
from oxford_pet import MODES
from report import curves, gallery_entry, read_history, read_prediction, render_page, thumbnail
from trimap import target_and_weight

MUST_AGREE = ("split", "boundary", "image_size", "flip_average", "fingerprint")
IMAGES = 60  # in the page

Systems = dict[str, list[dict[str, Any]]]  # what is compared: the score files of its runs, one a seed


def system_of(name: str) -> str:
    return re.sub(r"-seed\d+$", "", name)


def runs_of(args: argparse.Namespace, typed: str) -> list[str]:
    """The run of this name or, where there is none, its seeds ``<typed>-seed0``, ``<typed>-seed1``, ...

    Raises:
        UserError: there are neither.
    """
    runs = [path.name for path in args.save_path.glob("[!.]*") if path.is_dir()]
    seeds = [name for name in runs if name != typed and system_of(name) == typed]
    if typed not in runs and not seeds:
        raise UserError(f"no run {typed} in {args.save_path}; there are {', '.join(sorted(runs)) or 'none'}")
    return [typed] if typed in runs else sorted(seeds, key=lambda name: (len(name), name))


def read_scores(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Read the score file of a run's best checkpoint.

    Raises:
        UserError: there is none, or one of an earlier version; the message has the command that writes it.
    """
    flip = ("--flip_average",) if args.flip_average else ()
    path = args.save_path / name / f"{name}_{args.split}_scores{'_flip' if flip else ''}.json"
    try:
        report = json.loads(path.read_text())
        if "conventions" not in report:
            raise ValueError("it is of an earlier version")
    except (OSError, ValueError, TypeError) as error:
        where = () if args.save_path == SAVED_MODELS else ("--save_path", args.save_path)
        command = shell("python", "src/evaluate.py", "--name", name, "--split", args.split, *flip, *where)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"no scores {path} ({reason}); to write them: {command}") from None
    return report


def read_systems(args: argparse.Namespace) -> Systems:
    """The score files of the named runs; ``R-seed0``, ``R-seed1``, ... are seeds of ``R``, which means all of them.

    Raises:
        UserError: a score file is not there, two are of different data, split, boundary or resolution, or the seeds of
            a system differ in more than the seed.
    """
    names = dict.fromkeys(name for typed in args.names for name in runs_of(args, typed))  # each once
    if len(names) < 2:
        raise UserError(f"it takes two runs, or one with seeds, and here is {', '.join(names)} alone")
    reports = [read_scores(args, name) for name in names]
    first, *others = reports
    for other, key in itertools.product(others, MUST_AGREE):
        if other[key] != first[key]:
            what = "data (fingerprint)" if key == "fingerprint" else key.replace("_", " ")
            raise UserError(
                f"{first['name']} and {other['name']} cannot be compared: {what} {first[key]} and {other[key]}"
            )
    systems: Systems = {}
    for report in reports:
        systems.setdefault(system_of(report["name"]), []).append(report)
    for system, runs in systems.items():
        for a, b in itertools.combinations(runs, 2):
            differing = [key for key, value in a["config"].items() if value != b["config"].get(key)]
            if differing != ["seed"]:
                what = f"in {', '.join(differing)}" if differing else "in nothing"
                raise UserError(f"{a['name']} and {b['name']} cannot be two seeds of {system}: they differ {what}")
    return systems


def dice_of(runs: list[dict[str, Any]]) -> np.ndarray:
    """(n,) float64: each image's Dice, its mean over the runs of a system."""
    return np.mean([[row["dice"] for row in report["per_image"]] for report in runs], axis=0)


def compare(systems: Systems) -> dict[str, Any]:
    """A row for each system and one for each pair, as the JSON file holds them; ``std`` is over the seeds' means."""
    rows = {}
    for system, runs in systems.items():
        means = [report["dice"] for report in runs]
        rows[system] = {
            "runs": [report["name"] for report in runs],
            "std": float(np.std(means, ddof=1)) if len(means) > 1 else None,
            "iou": float(np.mean([report["iou"] for report in runs])),
            "dice": mean_ci(dice_of(runs)),
        }
    pairs = [
        {"a": a, "b": b, **paired_difference_ci(dice_of(systems[a]), dice_of(systems[b]))}
        for a, b in itertools.combinations(systems, 2)
    ]
    return {"systems": rows, "pairs": pairs}


def tables_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparison as tables, for the page and as text."""
    rows = [
        [system, len(row["runs"]), "-" if row["std"] is None else f"{row['std']:.4f}", row["iou"], row["dice"]]
        for system, row in result["systems"].items()
    ]
    means = {
        "title": "Mean Dice",
        "note": f"With 95% intervals: percentile bootstrap over the images, {RESAMPLES:,} resamples, seed 0.",
        "head": ["system", "seeds", "std over seeds", "IoU", "Dice"],
        "rows": rows,
        "axis": [],
    }
    pairs = {
        "title": "Paired differences",
        "note": "Of each image's mean over the seeds. None: the interval includes 0. It says what other images could "
        "have changed, not what other seeds could.",
        "head": ["pair", "called", "difference of Dice"],
        "rows": [[f"{pair['a']} less {pair['b']}", pair["verdict"], pair] for pair in result["pairs"]],
        "axis": [0],
    }
    return [means, pairs] if pairs["rows"] else [means]


def as_text(tables: list[dict[str, Any]]) -> str:
    lines = []
    for table in tables:
        cells = [table["head"]]
        for row in table["rows"]:
            short = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row[:-1]]
            cells.append([*short, "{mean:.4f} ({low:.4f} to {high:.4f})".format(**row[-1])])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += [f"{table['title']}. {table['note']}"]
        lines += ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def draw_predictions(report: dict[str, Any], indices: np.ndarray) -> list[dict[str, Any]] | None:
    """Thumbnails of a run's predictions, by the masks that ``inference.py`` wrote; None, and a note, without them."""

    def draw(index: int) -> dict[str, Any]:
        row, folder = report["per_image"][index], OUTPUTS / report["name"]
        image, trimap, mask = read_prediction(folder, Path(report["data_path"]), row["name"])
        pred, pixels = (torch.from_numpy(array)[None] for array in (mask, trimap))
        if pred.shape != pixels.shape or not np.isclose(
            dice_and_iou(*overlap(pred, *target_and_weight(pixels, report["boundary"])))[0].item(), row["dice_original"]
        ):
            raise UserError(f"{folder} holds another prediction of {row['name']} than was scored")
        return thumbnail(image, trimap, mask, report["boundary"], 320)

    try:
        return list(in_threads(draw, indices))
    except UserError as error:
        print(f"note: the page does not show {report['name']}'s masks ({error}); src/inference.py writes them")
        return None


def gallery_of(systems: Systems) -> dict[str, Any] | None:
    """The images on which the systems differ most, with the predictions of each one's first run."""
    first = next(iter(systems.values()))[0]
    if first["split"] != "test":  # whose masks alone are written
        return None
    dice = {system: dice_of(runs) for system, runs in systems.items()}
    chosen = np.argsort(-np.ptp(list(dice.values()), axis=0), kind="stable")[:IMAGES]
    drawn = {system: draw_predictions(runs[0], chosen) for system, runs in systems.items()}
    shown = [system for system, images in drawn.items() if images]
    entries = [
        gallery_entry(
            first["per_image"][index],
            [drawn[system][place] for system in shown],
            [float(dice[system][index]) for system in shown],
        )
        for place, index in enumerate(chosen)
        if shown
    ]
    names = ", ".join(systems[system][0]["name"] for system in shown)
    note = f"Where they differ most. The Dice is the mean over the seeds; the predictions are those of {names}."
    return {"runs": shown, "note": note, "entries": entries} if shown else None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Compare runs that evaluate.py or inference.py has scored.")
    parser.add_argument(
        "names", nargs="+", metavar="NAME", type=cli.run_name, help="of a run; R-seed0, R-seed1, ... are seeds of R"
    )
    parser.add_argument("--split", choices=MODES, default="test", help="whose scores")
    parser.add_argument("--flip_average", action="store_true", help="the scores that were made with that flag")
    parser.add_argument("--save_path", type=cli.existing_path, default=SAVED_MODELS, help="folder of all runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    systems = read_systems(args)
    result = compare(systems)
    tables = tables_of(result)
    first = next(iter(systems.values()))[0]
    flips = ", flips averaged" if args.flip_average else ""
    lead = (
        f"Dice of {plural(first['images'], 'image')} of the {args.split} split at {first['image_size']}x"
        f"{first['image_size']}, boundary counted as {first['boundary']}{flips}."
    )
    text = f"{lead}\n{as_text(tables)}\n"
    print(text, end="")
    folder, stem = OUTPUTS / "compare", "_".join([*systems, args.split, *(["flip"] if args.flip_average else [])])
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: first[key] for key in MUST_AGREE} | result
    for suffix, written in (("txt", text), ("json", json.dumps(content, indent=1))):
        with atomic_write(folder / f"{stem}.{suffix}") as file:
            file.write(written.encode())
    histories = {
        report["name"]: read_history(args.save_path / report["name"] / f"{report['name']}_history.csv")
        for runs in systems.values()
        for report in runs
    }
    page = render_page(
        folder / f"{stem}.html",
        " and ".join(systems),
        lead=lead,
        curves=curves(histories),
        tables=tables,
        gallery=gallery_of(systems),
    )
    print(f"wrote {page}, and the same as .txt and .json")


if __name__ == "__main__":
    run_script(main)
