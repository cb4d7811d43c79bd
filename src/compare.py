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
from oxford_pet import MODES, is_plain_name
from report import curves, gallery_entry, read_history, read_prediction, render_page, thumbnail
from trimap import target_and_weight

TYPES = {  # of a score file's entries
    "name": str,
    "data_path": str,
    "config": dict,
    "per_image": list,
    "dice": float,
    "iou": float,
    "images": int,
}
MUST_AGREE = ("split", "boundary", "image_size", "flip_average", "fingerprint")
GALLERY_IMAGES = 60

Report = dict[str, Any]  # the content of a run's score file


def group_name(run: str) -> str:
    """A run's name without its seed: ``R`` for ``R-seed3``."""
    return re.sub(r"-seed\d+$", "", run)


def find_runs(save_path: Path, typed: str) -> list[str]:
    """The run of this name or, if there is none, its seeds ``<typed>-seed0``, ``<typed>-seed1``, ...

    Raises:
        UserError: there are neither.
    """
    runs = [path.name for path in save_path.glob("[!.]*") if path.is_dir()]
    found = [typed] if typed in runs else [name for name in runs if group_name(name) == typed]
    if not found:
        raise UserError(f"no run {typed} in {save_path}; there are {', '.join(sorted(runs)) or 'none'}")
    return sorted(found, key=lambda name: (len(name), name))  # seed 2 before seed 10


def read_scores(save_path: Path, name: str, split: str, flip_average: bool) -> Report:
    """Read the score file of a run's best checkpoint.

    Raises:
        UserError: there is none; the message has the command that writes it.
    """
    path = save_path / name / f"{name}_{split}_scores{'_flip' if flip_average else ''}.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if missing := {*MUST_AGREE, *TYPES} - report.keys():
            raise ValueError(f"it lacks {min(missing)}: of an earlier version?")
        wrong = [key for key, kind in TYPES.items() if not isinstance(report[key], kind)]
        rows = {row["name"]: row for row in report["per_image"]}
        if wrong or report["name"] != name or not rows or not all(map(is_plain_name, rows)):
            raise ValueError(f"it is no score file of {name}")
        for row in rows.values():
            if not all(0 <= row[score] <= 1 for score in ("dice", "dice_original", "target_fraction")):
                raise ValueError(f"the scores of {row['name']} are not between 0 and 1")
            gallery_entry(row, [{"image": "", "map": ""}], [])  # has all that the page needs
        return report
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        flip = ["--flip_average"] if flip_average else []
        where = [] if save_path.resolve() == SAVED_MODELS else ["--save_path", save_path]
        command = shell("python", "src/evaluate.py", "--name", name, "--split", split, *flip, *where)
        reason = f"it lacks {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise UserError(f"no scores {path} ({reason}); to write them: {command}") from None


def group_by_seed(reports: list[Report]) -> dict[str, list[Report]]:
    """Group score files by their runs' names without the seed.

    Raises:
        UserError: there is one run alone; two are of different data, split, boundary or resolution; or the seeds of a
            group differ in more than the seed.
    """
    if len(reports) < 2:
        raise UserError(f"only one run, {reports[0]['name']}: name two runs, or one with several seeds")
    for a, b in itertools.combinations(reports, 2):
        pair = f"{a['name']} and {b['name']}"
        for key in MUST_AGREE:
            if a[key] != b[key]:
                raise UserError(f"cannot compare {pair}: {key} {a[key]} and {b[key]}")
        differing = [key for key, value in a["config"].items() if value != b["config"].get(key)]
        if group_name(a["name"]) == group_name(b["name"]) and differing != ["seed"]:
            raise UserError(f"{pair} are not two seeds of one run: they differ in {', '.join(differing) or 'nothing'}")
    groups: dict[str, list[Report]] = {}
    order = [row["name"] for row in reports[0]["per_image"]]
    for report in reports:  # paired by name
        rows = {row["name"]: row for row in report["per_image"]}
        if rows.keys() != set(order):
            raise UserError(f"cannot compare {reports[0]['name']} and {report['name']}: their images differ")
        report["per_image"] = [rows[name] for name in order]
        groups.setdefault(group_name(report["name"]), []).append(report)
    return groups


def dice_per_image(runs: list[Report]) -> np.ndarray:
    """(n,) float64: each image's mean Dice over the runs of a group."""
    return np.mean([[row["dice"] for row in report["per_image"]] for report in runs], axis=0)


def compare(groups: dict[str, list[Report]]) -> dict[str, Any]:
    """Statistics of each group and of each pair, as in the JSON file. ``std`` is over the means of the seeds."""
    rows = {
        group: {
            "runs": [report["name"] for report in runs],
            "std": float(np.std([report["dice"] for report in runs], ddof=1)) if len(runs) > 1 else None,
            "iou": float(np.mean([report["iou"] for report in runs])),
            "dice": mean_ci(dice_per_image(runs)),
        }
        for group, runs in groups.items()
    }
    pairs = [
        {"a": a, "b": b, **paired_difference_ci(dice_per_image(groups[a]), dice_per_image(groups[b]))}
        for a, b in itertools.combinations(groups, 2)
    ]
    return {"groups": rows, "pairs": pairs}


def make_tables(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables of the page and of the text, from what ``compare`` returns."""
    means = {
        "title": "Mean Dice",
        "note": f"95% confidence intervals: percentile bootstrap over the images, {RESAMPLES:,} resamples, seed 0.",
        "head": ["run", "seeds", "std over seeds", "IoU", "Dice"],
        "rows": [
            [group, len(row["runs"]), "-" if row["std"] is None else f"{row['std']:.4f}", row["iou"], row["dice"]]
            for group, row in result["groups"].items()
        ],
    }
    verdicts = {"above": "{a} better", "below": "{b} better", "none": "none"}
    pairs = {
        "title": "Paired differences",
        "note": 'Of each image\'s mean Dice over the seeds. "none" = no significant difference. Intervals cover the '
        "choice of images, not of seeds.",
        "head": ["pair", "verdict", "difference of Dice"],
        "rows": [
            [f"{pair['a']} - {pair['b']}", verdicts[pair["verdict"]].format_map(pair), pair] for pair in result["pairs"]
        ],
        "axis": [0],
    }
    return [means, pairs] if pairs["rows"] else [means]


def as_text(tables: list[dict[str, Any]]) -> str:
    lines = []
    for table in tables:
        cells = [table["head"]]
        for *values, interval in table["rows"]:
            short = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in values]
            sign = "+" if "verdict" in interval else ""
            values = [f"{interval[key]:{sign}.4f}" for key in ("mean", "low", "high")]
            cells.append([*short, "{} ({} to {})".format(*values)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += [f"{table['title']}. {table['note']}"]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def draw_predictions(report: Report, indices: np.ndarray) -> list[dict[str, str]] | None:
    """Thumbnails of the masks that ``inference.py`` wrote. Prints a note, and returns None, if they do not fit."""

    def draw(index: int) -> dict[str, str]:
        row, folder = report["per_image"][index], cli.shown(OUTPUTS / report["name"])
        image, trimap, mask = read_prediction(folder, Path(report["data_path"]), row["name"])
        if mask.shape == trimap.shape:
            target, weight = target_and_weight(torch.from_numpy(trimap)[None], report["boundary"])
            dice, _ = dice_and_iou(*overlap(torch.from_numpy(mask)[None], target, weight))
            if np.isclose(dice.item(), row["dice_original"]):
                return thumbnail(image, trimap, mask, report["boundary"], 320)
        raise UserError(f"{folder} holds another prediction of {row['name']} than was scored")

    try:
        return list(in_threads(draw, indices))
    except UserError as error:
        print(f"note: the page does not show {report['name']}'s masks ({error}); src/inference.py writes them")
        return None


def make_gallery(groups: dict[str, list[Report]]) -> dict[str, Any] | None:
    """The images on which the groups differ most, with the predictions of each one's first run; None without masks."""
    dice = {group: dice_per_image(runs) for group, runs in groups.items()}
    chosen = np.argsort(-np.ptp(list(dice.values()), axis=0), kind="stable")[:GALLERY_IMAGES]
    drawn = {group: images for group, (run, *_) in groups.items() if (images := draw_predictions(run, chosen))}
    if not drawn:
        return None
    rows = next(iter(groups.values()))[0]["per_image"]
    entries = [
        gallery_entry(rows[index], thumbnails, [float(dice[group][index]) for group in drawn])
        for index, *thumbnails in zip(chosen, *drawn.values(), strict=True)
    ]
    names = ", ".join(groups[group][0]["name"] for group in drawn)
    note = f"Where they differ most. Dice is the mean over the seeds; the predictions are those of {names}."
    return {"runs": list(drawn), "note": note, "entries": entries}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Compare runs that evaluate.py or inference.py has scored.")
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", type=cli.run_name, help="a run; R-seed0, R-seed1, ... are seeds of R")
    add("--split", choices=MODES, default="test", help="whose scores")
    add("--flip_average", action="store_true", help="the scores with test-time augmentation (flip)")
    add("--save_path", type=cli.existing_path, default=SAVED_MODELS, help="folder of all runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.save_path = cli.shown(args.save_path)
    names = dict.fromkeys(name for typed in args.names for name in find_runs(args.save_path, typed))  # each once
    reports = [read_scores(args.save_path, name, args.split, args.flip_average) for name in names]
    groups, first = group_by_seed(reports), reports[0]
    result = compare(groups)
    tables = make_tables(result)
    flips = ", test-time augmentation (flip)" if args.flip_average else ""
    lead = (
        f"Dice of {plural(first['images'], 'image')} of the {args.split} split at {first['image_size']}x"
        f"{first['image_size']}, boundary counted as {first['boundary']}{flips}."
    )
    text = f"{lead}\n{as_text(tables)}\n"
    histories = {name: read_history(args.save_path / name / f"{name}_history.csv") for name in names}
    for report in reports:
        best = max(histories[report["name"]], key=lambda row: (row["valid_dice"], -row["valid_loss"]), default=None)
        if best and best["epoch"] != report.get("epoch"):
            scored, now = report.get("epoch"), int(best["epoch"])
            text += f"note: {report['name']} was scored at epoch {scored}; its best is now {now}\n"
        if report.get("trained_on") and args.split != "train":
            text += f"note: {report['name']} was trained on {report['trained_on']} of these images\n"
    print(text, end="")
    folder, stem = (
        cli.shown(OUTPUTS / "compare"),
        "_".join([*groups, args.split, *(["flip"] if args.flip_average else [])]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: first[key] for key in MUST_AGREE} | result
    for suffix, written in (("txt", text), ("json", json.dumps(content, indent=1))):
        with atomic_write(folder / f"{stem}.{suffix}") as file:
            file.write(written.encode())
    page = render_page(
        folder / f"{stem}.html",
        " and ".join(groups),
        lead=lead,
        curves=curves(histories),
        tables=tables,
        gallery=make_gallery(groups) if args.split == "test" else None,  # the only split with masks on the disk
    )
    if args.split != "test":
        print("note: the page shows no images: masks are written of the test split only, by src/inference.py")
    print(f"wrote {page}, and the same as .txt and .json")


if __name__ == "__main__":
    run_script(main)
