"""Compare runs by their score files: means, spread over seeds, paired differences, and where they differ most.

python src/compare.py R U lab2-R
"""

import cli

if __name__ == "__main__":
    cli.start()

import argparse
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from atomic import atomic_write
from cli import OUTPUTS, SAVED_MODELS, ArgumentParser, UserError, plural, run_script, shell
from evaluate import RESAMPLES, dice_and_iou, difference, estimate, overlaps_by_convention
from images import decode_image, in_threads
from oxford_pet import MODES, image_path, trimap_path
from report import curves, gallery, gallery_entry, read_history, render_page, scale_of, thumbnail
from trimap import BOUNDARIES, decode_trimap

MUST_AGREE = ("split", "boundary", "image_size", "flip_average", "fingerprint")
IMAGES = 60  # in the page

Systems = dict[str, list[dict[str, Any]]]  # what is compared: the score files of its runs, one a seed


def read_scores(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Read the score file of a run's best checkpoint.

    Raises:
        UserError: there is none, or one of an earlier version; the message has the command that writes it.
    """
    path = args.save_path / name / f"{name}_{args.split}_scores.json"
    where = () if args.save_path == SAVED_MODELS else ("--save_path", args.save_path)
    command = shell("python", "src/evaluate.py", "--name", name, "--split", args.split, *where)
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no scores {path} ({error}); to write them: {command}") from None
    if "conventions" not in report:
        raise UserError(f"{path} is of an earlier version; to write it again: {command}")
    return report


def read_systems(args: argparse.Namespace) -> Systems:
    """The score files of the named runs; ``R-seed0``, ``R-seed1``, ... are seeds of ``R``, which means all of them.

    Raises:
        UserError: a score file is not there, or two are of different data, split, boundary or resolution.
    """
    systems: Systems = {}
    for typed in dict.fromkeys(args.names):
        seeds = sorted(path.name for path in args.save_path.glob("*-seed*") if system_of(path.name) == typed)
        for name in [typed] if (args.save_path / typed).is_dir() or not seeds else seeds:
            systems.setdefault(system_of(name), []).append(read_scores(args, name))
    first, *others = itertools.chain(*systems.values())
    for other in others:
        for key in MUST_AGREE:
            if other[key] != first[key]:
                what = "data (fingerprint)" if key == "fingerprint" else key.replace("_", " ")
                raise UserError(
                    f"{first['name']} and {other['name']} cannot be compared: {what} {first[key]} and {other[key]}"
                )
    return systems


def system_of(name: str) -> str:
    return re.sub(r"-seed\d+$", "", name)


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
            "dice": estimate(dice_of(runs)),
        }
    pairs = [
        {"a": a, "b": b, **difference(dice_of(systems[a]), dice_of(systems[b]))}
        for a, b in itertools.combinations(systems, 2)
    ]
    return {"systems": rows, "pairs": pairs}


def tables_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparison as tables, for the page and as text."""
    rows = [
        [system, len(row["runs"]), "-" if row["std"] is None else f"{row['std']:.4f}", row["iou"], row["dice"]]
        for system, row in result["systems"].items()
    ]
    pairs = [[f"{pair['a']} less {pair['b']}", pair["called"], pair] for pair in result["pairs"]]
    mean_note = f"With 95% intervals: percentile bootstrap over the images, {RESAMPLES:,} resamples, seed 0."
    pair_note = (
        "Of each image's mean over the seeds. None: the interval includes 0. It says what other images could have "
        "changed, not what other seeds could."
    )
    zero = {"low": 0.0, "high": 0.0}
    means = {"title": "Mean Dice", "note": mean_note, "head": ["system", "seeds", "std over seeds", "IoU", "Dice"]}
    paired = {"title": "Paired differences", "note": pair_note, "head": ["pair", "called", "difference of Dice"]}
    return [
        means | {"rows": rows, "scale": scale_of(rows)},
        paired | {"rows": pairs, "scale": scale_of([*pairs, [zero]])},
    ]


def as_text(tables: list[dict[str, Any]]) -> str:
    lines = []
    for table in tables:
        cells = [table["head"]]
        for row in table["rows"]:
            short = [f"{value:.4f}" if isinstance(value, float) else value for value in row[:-1]]
            cells.append([*map(str, short), "{mean:.4f} ({low:.4f} to {high:.4f})".format(**row[-1])])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += [f"{table['title']}. {table['note']}"]
        lines += ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def draw_predictions(report: dict[str, Any], indices: np.ndarray) -> list[dict[str, Any]] | None:
    """Thumbnails of a run's predictions, by the masks that ``inference.py`` wrote; None, and a note, without them."""
    root, boundary = Path(report["data_path"]), BOUNDARIES.index(report["boundary"])

    def draw(index: int) -> dict[str, Any]:
        row = report["per_image"][index]
        path = OUTPUTS / report["name"] / f"{row['name']}_mask.png"
        with Image.open(path) as file:
            mask = np.asarray(file) > 0
        trimap = decode_trimap(trimap_path(root, row["name"]))
        overlaps = overlaps_by_convention(*(torch.from_numpy(array)[None, None] for array in (mask, trimap)))
        if abs(dice_and_iou(*overlaps[0, boundary])[0].item() - row["dice_original"]) > 1e-6:
            raise UserError(f"{path} is another prediction than was scored")
        return thumbnail(decode_image(image_path(root, row["name"])), trimap, mask, 320)

    try:
        return list(in_threads(draw, indices))
    except (OSError, UserError) as error:
        print(f"note: the page does not show {report['name']}'s masks ({error}); src/inference.py writes them")
        return None


def gallery_of(systems: Systems) -> dict[str, Any] | None:
    """The images on which the systems differ most, with the predictions of each one's first run."""
    dice = np.array([dice_of(runs) for runs in systems.values()])  # (systems, n)
    chosen = np.argsort(dice.min(0) - dice.max(0), kind="stable")[:IMAGES]
    drawn = {number: draw_predictions(runs[0], chosen) for number, runs in enumerate(systems.values())}
    shown = [number for number, images in drawn.items() if images]
    rows, names = next(iter(systems.values()))[0]["per_image"], list(systems)
    entries = [
        gallery_entry(rows[index], [drawn[number][place] for number in shown], dice[shown, index].tolist())
        for place, index in enumerate(chosen)
        if shown
    ]
    boundary = next(iter(systems.values()))[0]["boundary"]
    return gallery(boundary, [names[number] for number in shown], entries) if shown else None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Compare runs that evaluate.py or inference.py has scored.")
    parser.add_argument(
        "names", nargs="+", metavar="NAME", type=cli.run_name, help="of a run; R-seed0, R-seed1, ... are seeds of R"
    )
    parser.add_argument("--split", choices=MODES, default="test", help="whose scores")
    parser.add_argument("--save_path", type=cli.existing_path, default=SAVED_MODELS, help="folder of all runs")
    args = parser.parse_args(argv)
    if len(set(args.names)) < 2 and not list(args.save_path.glob(f"{args.names[0]}-seed*")):
        parser.error("it takes two runs, or one with seeds")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    systems = read_systems(args)
    result = compare(systems)
    tables = [table for table in tables_of(result) if table["rows"]]
    first = next(iter(systems.values()))[0]
    lead = (
        f"Dice of {plural(first['images'], 'image')} of the {args.split} split at {first['image_size']}x"
        f"{first['image_size']}, boundary counted as {first['boundary']}."
    )
    text = f"{lead}\n{as_text(tables)}\n"
    print(text, end="")
    folder, stem = OUTPUTS / "compare", "_".join([*systems, args.split])
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
