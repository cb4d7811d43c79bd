"""History files, curves, overlays, contact sheets, and the HTML page."""

import base64
import bisect
import csv
import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plumbing.cli import plural
from plumbing.files import atomic_write
from plumbing.images import decode_image, decode_raw, resize_image

import cv2
import numpy as np
import torch

from metrics import RESAMPLES, mean_ci
from oxford_pet import image_path, trimap_path
from recipes import RECIPES, Config
from trimap import decode_trimap, resize_trimap, split_boundary, target_and_weight

GREEN, WHITE, GREY = (40, 200, 80), (255, 255, 255), (225, 225, 225)
COLOURS = ("#00599c", "#b35900", "#00795a", "#a63a75", "#59616b", "#7a5fbf")  # of the lines of charts
SIZES = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 1)  # edges of the page's size groups, as fractions of the image
FEW = 5  # images of a species or breed, on average: below, no table of them
IMAGE_TAGS: dict[str, Callable[[dict[str, Any]], bool]] = {  # by the image's row of the score file
    "empty prediction": lambda row: row["pred_fraction"] == 0,
    "whole image predicted": lambda row: row["pred_fraction"] > 0.98,
    "fragmented prediction": lambda row: row["largest_part"] < 0.9,
    "no foreground in the target": lambda row: row["empty_target"],
}


def write_history(folder: Path, name: str, history: list[dict[str, float]]) -> None:
    """Write ``<name>_history.csv``.

    Args:
        history: a dict of ``checkpoint.HISTORY_COLUMNS`` for each epoch, and ``train_dice`` where it was scored.
    """
    columns = dict.fromkeys(column for row in history for column in row)  # in order, each once
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="nan")
    writer.writeheader()
    writer.writerows(history)
    with atomic_write(folder / f"{name}_history.csv") as file:
        file.write(text.getvalue().encode())


def write_arrays(folder: Path, name: str, history: list[dict[str, float]]) -> None:
    """Write report lab2's ``<name>_losses.npy`` and ``<name>_dice_scores.npy``: (epochs,) float64."""
    for suffix, column in (("losses", "train_loss"), ("dice_scores", "valid_dice")):
        with atomic_write(folder / f"{name}_{suffix}.npy") as file:
            np.save(file, np.array([row[column] for row in history], dtype=np.float64))


def read_history(path: Path) -> list[dict[str, float]]:
    """Read the history that ``write_history`` wrote; empty if there is no such file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(file)]


def curves(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """The charts of Dice and loss over the epochs: ``title``, ``ticks`` of the vertical axis, and ``lines``, label to
    finite (epoch, value) points.

    Args:
        runs: name to history. One run has a line for training and one for validation; several have validation alone.
    """
    charts = []
    parts = {"valid": "validation", "train": "training"} if len(runs) == 1 else {"valid": None}
    for title in ("Dice", "Loss"):
        lines = {}
        for (name, history), (part, label) in itertools.product(runs.items(), parts.items()):
            points = [(row["epoch"], row.get(f"{part}_{title.lower()}", np.nan)) for row in history]
            if points := [point for point in points if np.isfinite(point[1])]:
                lines[label or name] = points
        if lines:
            values = [value for points in lines.values() for _, value in points]
            charts.append({"title": title, "lines": lines, "ticks": round_ticks(min(values), max(values))})
    return charts


def round_ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers, evenly spaced, that enclose the range."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    step = magnitude * max(factor for factor in (1, 2, 5) if factor * magnitude <= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]


def draw_curves(runs: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot the ``curves`` of each run, by its name, to a PNG: a column a run, with common scales."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(runs), 7), layout="constrained")
    axes = figure.subplots(2, len(runs), squeeze=False, sharex="col", sharey="row")
    for column, (name, history) in zip(axes.T, runs.items(), strict=True):
        best = max(history, key=lambda row: row["valid_dice"])
        column[0].set_title(f"{name}\nbest Dice {best['valid_dice']:.4f}, epoch {best['epoch']:.0f}")
        for axis, chart in zip(column, curves({name: history}), strict=False):
            for (label, points), colour in zip(chart["lines"].items(), COLOURS, strict=False):
                axis.plot(
                    *zip(*points, strict=True), label=label, color=colour, marker="o" if len(points) < 3 else None
                )
            axis.set_ylabel(chart["title"])
            axis.grid(alpha=0.3)
            axis.legend()
        column[1].set_xlabel("epoch")
        column[1].xaxis.get_major_locator().set_params(integer=True)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png")


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw a mask over an image: the pet tinted green and outlined, the background darkened.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    mask = mask.astype(np.uint8)
    drawn = cv2.convertScaleAbs(image, alpha=0.6)
    cv2.copyTo(cv2.addWeighted(image, 0.7, np.full_like(image, GREEN), 0.3, 0), mask, drawn)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(drawn, outlines, -1, WHITE, max(1, round(min(mask.shape) / 150)))


def read_prediction(folder: Path, root: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read an image of the data at ``root``, its trimap and its predicted mask.

    Args:
        folder: where ``inference.py`` wrote the mask.

    Returns:
        (H, W, 3) uint8 RGB, (H, W) uint8 of ``split_boundary``, (H, W) bool.

    Raises:
        UserError: one of them cannot be read.
    """
    mask = decode_raw(folder / f"{name}_mask.png") > 0
    return decode_image(image_path(root, name)), split_boundary(decode_trimap(trimap_path(root, name))), mask


def draw_contact_sheet(
    tiles: list[tuple[str, list[np.ndarray]]], columns: int, side: int = 176, labels: Sequence[str] = ()
) -> np.ndarray:
    """Draw captioned tiles on a sheet, row by row.

    Args:
        tiles: each tile's caption, and its images from left to right, (H, W, 3) uint8 RGB of any size.
        columns: tiles per row.
        side: height and width in pixels of the square that each image is letterboxed to.
        labels: of a tile's images, written once above each column of them.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from PIL import Image, ImageDraw, ImageOps

    width, height, head = side * len(tiles[0][1]) + 4, side + 24, 20 if labels else 0
    sheet = Image.new("RGB", (width * columns, head + height * -(-len(tiles) // columns)), "white")
    for index, (caption, images) in enumerate(tiles):
        tile = Image.new("RGB", (width, height), "white")  # of its own: it clips a long caption
        ImageDraw.Draw(tile).text((4, 3), caption, "black", font_size=13)
        for k, image in enumerate(images):
            square = ImageOps.pad(Image.fromarray(image), (side, side), color=GREY)
            tile.paste(square, (2 + side * k, 22))
        sheet.paste(tile, (width * (index % columns), head + height * (index // columns)))
    for column, (k, label) in itertools.product(range(columns), enumerate(labels)):
        ImageDraw.Draw(sheet).text((width * column + side * k + 4, 3), label, "black", font_size=13)
    return np.array(sheet)


# ---------------------------------------------------------------------------------------------- the page


def render_page(path: Path, title: str, **sections: Any) -> Path:
    """Write a self-contained HTML page; ``report.html.jinja`` has a part for each section that is given."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    names = ("lead", "facts", "report", "curves", "tables", "histogram", "gallery", "is_live")
    known = {
        "tags": list(IMAGE_TAGS),
        "resamples": RESAMPLES,
        "versions_of": versions_of,
        "title": title,
        "palette": COLOURS,
    }
    page = environment.get_template("report.html.jinja").render({**dict.fromkeys(names), **known, **sections})
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def write_run_page(
    path: Path, report: dict[str, Any], history: list[dict[str, float]], entries: list[dict[str, Any]]
) -> Path:
    """Write the page of a scored run.

    Args:
        report: the score file's content.
        history: of the training; may be empty.
        entries: one ``gallery_entry`` an image.
    """
    dice = np.array([row["dice"] for row in report["per_image"]])
    mean = report["conventions"][report["boundary"]]["model"]["dice"]
    lead = (
        f"Mean Dice {mean['mean']:.4f}, 95% interval {mean['low']:.4f} to {mean['high']:.4f}, over "
        f"{plural(len(dice), 'image')} of the {report['split']} split. Median {np.median(dice):.3f}, 10th percentile "
        f"{np.percentile(dice, 10):.3f}."
    )
    note = "The worst are kept at up to 320 pixels, the others at up to 96."
    return render_page(
        path,
        f"{report['name']}, {report['split']} split",
        lead=lead,
        facts=training_facts(Config.from_dict(report["config"]), report["trained"]),
        report=report,
        curves=curves({report["name"]: history}),
        tables=group_tables(report["per_image"]),
        histogram=np.histogram(dice, 20, (0, 1))[0].tolist(),
        gallery={"runs": [report["name"]], "note": note, "entries": entries},
    )


def changed_from_default(config: Config) -> str:
    """A config's recipe, and the fields that differ from the recipe ``default``: ``cpu: image_size 128, epochs 56``."""
    fields, default = (one.to_dict() for one in (config, RECIPES["default"](config.network)))
    for one in (fields, default):
        one |= one.pop("augmentation")
    changed = [f"{key} {value}" for key, value in fields.items() if value != default[key] and key != "recipe"]
    return config.recipe + (": " if changed else "") + ", ".join(changed)


def training_facts(config: Config, trained: dict[str, Any]) -> dict[str, str]:
    """Facts for the page, label to text. ``trained`` is a ``checkpoint.provenance()``, all None for bare weights."""
    facts = {"network": config.network}
    if trained["versions"] is None:
        return facts
    recipe = {"recipe": changed_from_default(config), "seed": str(config.seed)}
    command = trained["command"] + (" (resumed since)" if trained.get("resumed") else "")
    return facts | recipe | {"trained by": command, "trained with": versions_of(trained)}


def versions_of(source: dict[str, Any]) -> str:
    """Versions and commit of ``checkpoint.provenance()``: ``torch 2.15.0; commit 0123abc``."""
    versions = ", ".join(f"{name} {version}" for name, version in source["versions"].items())
    return f"{versions}; commit {source['commit']}"


def group_tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables of a score file's Dice by size and tag, and by species and breed if ``list.txt`` gives them."""
    sizes: dict[str, list[float]] = {f"{low:.0%} to {high:.0%}": [] for low, high in itertools.pairwise(SIZES)}
    tags: dict[str, list[float]] = {tag: [] for tag in (*IMAGE_TAGS, "none of these")}
    for row in rows:
        if not row["empty_target"]:
            list(sizes.values())[bisect.bisect_left(SIZES[1:], row["target_fraction"])].append(row["dice"])
        for tag in [tag for tag, holds in IMAGE_TAGS.items() if holds(row)] or ["none of these"]:
            tags[tag].append(row["dice"])
    tables = [
        _dice_table("by size", "The foreground's fraction of the image. Empty targets are left out.", sizes),
        _dice_table(
            "by tag",
            "Whole: over 98% of the image. Fragmented: over a tenth of the predicted pixels are outside the largest "
            "part. If the target is empty, an empty prediction scores 1, any other 0.",
            tags,
        ),
    ]
    for key, title in (("species", "by species"), ("breed", "by breed")):
        names = dict.fromkeys(row[key] for row in rows if key in row)
        groups = {name: [row["dice"] for row in rows if row.get(key) == name] for name in names}
        groups = dict(sorted(groups.items(), key=lambda group: np.mean(group[1])))
        if len(rows) >= FEW * len(groups):
            tables.append(_dice_table(title, "Lowest mean first.", groups))
    return [table for table in tables if table["rows"]]


def _dice_table(title: str, note: str, groups: dict[str, list[float]]) -> dict[str, Any]:
    rows = [[name, len(dice), mean_ci(np.array(dice))] for name, dice in groups.items() if dice]
    return {"title": f"Dice {title}", "note": note, "head": ["group", "images", "mean Dice"], "rows": rows}


def thumbnail(image: np.ndarray, trimap: np.ndarray, mask: np.ndarray, boundary: str, side: int = 96) -> dict[str, str]:
    """Shrink and encode an image and its masks for the page.

    Args:
        image, trimap, mask: as ``read_prediction`` returns them.
        boundary: the boundary convention.
        side: the longer side in pixels, at most.

    Returns:
        ``image`` (JPEG) and ``map`` (lossless WebP), both in base64. The map is 32 times the sum of 1 (predicted), 2
        (pet in the target) and 4 (ignored), so that the page can draw any of them.
    """
    scale = min(1.0, side / max(image.shape[:2]))
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    small = cv2.cvtColor(resize_image(image, height, width), cv2.COLOR_RGB2BGR)
    target, weight = target_and_weight(torch.from_numpy(resize_trimap(trimap, height, width)), boundary)
    pred = resize_trimap(mask.astype(np.uint8), height, width)
    bits = 32 * (pred + 2 * target.numpy() + 4 * ~weight.numpy())
    quality = [cv2.IMWRITE_JPEG_QUALITY, 65 if side < 200 else 80, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    jpeg = cv2.imencode(".jpg", small, quality)[1]
    webp = cv2.imencode(".webp", bits.astype(np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 101])[1]  # above 100: lossless
    return {"image": base64.b64encode(jpeg).decode(), "map": base64.b64encode(webp).decode()}


def gallery_entry(row: dict[str, Any], thumbnails: Sequence[dict[str, Any]], dice: list[float]) -> dict[str, Any]:
    """An image of the page's gallery, from its row of the score file, and each run's thumbnail and Dice."""
    return {
        "name": row["name"],
        "breed": row.get("breed", ""),
        "size": round(row["target_fraction"], 4),
        "tags": [number for number, holds in enumerate(IMAGE_TAGS.values()) if holds(row)],
        "dice": [round(value, 4) for value in dice],
        "image": thumbnails[0]["image"],
        "maps": [one["map"] for one in thumbnails],
    }
