"""A run's history file, and what people look at: curves, overlays, contact sheets, and the HTML page."""

import base64
import csv
import io
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from plumbing.cli import plural
from plumbing.files import atomic_write
from plumbing.images import decode_image, decode_raw, resize_image

import cv2
import numpy as np
import torch

from evaluate import RESAMPLES, estimate
from oxford_pet import image_path, trimap_path
from recipes import RECIPES, Config
from trimap import decode_trimap, resize_trimap, split_boundary, target_and_weight

GREEN, BLACK, WHITE = (40, 200, 80), (0, 0, 0), (255, 255, 255)
PET_SIZES = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 1)  # edges of the page's groups, as fractions of the image
FLAGS: dict[str, Callable[[dict[str, Any]], bool]] = {  # what the page calls odd in an image's row of the score file
    "empty prediction": lambda row: row["pred_fraction"] == 0,
    "whole image predicted": lambda row: row["pred_fraction"] > 0.98,
    "fragmented prediction": lambda row: row["largest_part"] < 0.9,
    "no pet in the target": lambda row: row["empty_target"],
}


def write_history(folder: Path, name: str, history: list[dict[str, float]]) -> None:
    """Write ``<name>_history.csv``, and the reports' ``<name>_losses.npy`` and ``<name>_dice_scores.npy``.

    Args:
        history: a dict of ``checkpoint.HISTORY_COLUMNS`` for each epoch, with ``train_dice`` if the recipe scores the
            training images too. The arrays have one float64 per epoch.
    """
    with atomic_write(folder / f"{name}_history.csv") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        columns = dict.fromkeys(column for row in history for column in row)  # in order, each once
        writer = csv.DictWriter(text, columns, restval="nan")
        writer.writeheader()
        writer.writerows(history)
        text.detach()  # flushes, and leaves the file open


def write_arrays(folder, name, history):
    for suffix, column in (("losses", "train_loss"), ("dice_scores", "valid_dice")):
        with atomic_write(folder / f"{name}_{suffix}.npy") as file:
            np.save(file, np.array([row[column] for row in history], dtype=np.float64))


def read_history(path: Path) -> list[dict[str, float]]:
    """Read the history that ``write_history`` wrote; empty if there is no such file."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(file)]


def draw_curves(runs: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot training and validation loss above, Dice below; a column for each run, with common scales.

    Args:
        runs: title to history.
        path: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.5 * len(runs), 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(runs), squeeze=False, sharex="col", sharey="row")
    for column, (title, history) in enumerate(runs.items()):
        epochs = [row["epoch"] for row in history]
        marker = "o" if len(epochs) < 3 else None
        losses, dice = axes[:, column]
        for axis, kind in ((losses, "loss"), (dice, "dice")):
            for part, label, colour in (("train", "training", "C0"), ("valid", "validation", "C1")):
                values = [row.get(f"{part}_{kind}", np.nan) for row in history]
                if not np.isnan(values).all():
                    axis.plot(epochs, values, colour, label=label, marker=marker)
            axis.grid(alpha=0.3)
        best = max(history, key=lambda row: row["valid_dice"])
        text = f"best {best['valid_dice']:.4f}, epoch {best['epoch']:.0f}"
        dice.annotate(text, (0.98, 0.04), xycoords="axes fraction", ha="right")
        dice.plot(best["epoch"], best["valid_dice"], "C1o")
        losses.set_title(title)
        losses.legend()
        dice.set_xlabel("epoch")
        dice.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("Dice")
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
        side: height and width in pixels of the square that each image is fitted into.
        labels: of a tile's images, written once above each column of them.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from imutils import build_montages

    drawn = []
    for caption, images in tiles:
        fitted = np.hstack([_fit(image, side) for image in images])
        strip = _strip(fitted.shape[1], {4: caption})
        drawn.append(cv2.copyMakeBorder(np.vstack((strip, fitted)), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=WHITE))
    height, width = drawn[0].shape[:2]
    sheet = build_montages(drawn, (width, height), (columns, -(-len(drawn) // columns)))[0]
    if not labels:
        return sheet
    texts = {column * width + 6 + side * i: text for column in range(columns) for i, text in enumerate(labels)}
    return np.vstack((_strip(sheet.shape[1], texts), sheet))


def _strip(width: int, texts: dict[int, str]) -> np.ndarray:
    """A white strip, (20, width, 3), with each text beginning at its column."""
    strip = np.full((20, width, 3), WHITE, np.uint8)
    for left, text in texts.items():
        cv2.putText(strip, text, (left, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, BLACK, 1, cv2.LINE_AA)
    return strip


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    """Letterbox an image: scaled to fit a square, its aspect ratio kept, on grey."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    square = np.full((side, side, 3), 225, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = image
    return square


# ---------------------------------------------------------------------------------------------- the page


def render_page(path: Path, title: str, **sections: Any) -> Path:
    """Write an HTML page that needs no other file; ``report.html.jinja`` has a part for each section that is given."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    names = ("lead", "facts", "report", "curves", "tables", "histogram", "gallery", "is_live")
    known = {"flags": list(FLAGS), "resamples": RESAMPLES, "versions_of": versions_of, "title": title}
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
        entries: of ``gallery_entry``, one an image.
    """
    dice = np.array([row["dice"] for row in report["per_image"]])
    mean = report["conventions"][report["boundary"]]["model"]["dice"]
    lead = (
        f"Mean Dice {mean['mean']:.4f}, 95% interval {mean['low']:.4f} to {mean['high']:.4f}, over "
        f"{plural(len(dice), 'image')} of the {report['split']} split. Half of the images are above "
        f"{np.median(dice):.3f}; a tenth are below {np.percentile(dice, 10):.3f}."
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
    """What the page says of a training, label to text; of ``trained`` weights alone, which tell nothing, the network.

    Args:
        trained: what ``provenance`` of checkpoint.py gives, or None under each of its keys.
    """
    if trained["versions"] is None:
        return {"network": config.network}
    return {
        "network": config.network,
        "recipe": changed_from_default(config),
        "seed": str(config.seed),
        "trained by": trained["command"],
        "trained with": versions_of(trained),
    }


def versions_of(source: dict[str, Any]) -> str:
    """Versions and commit of what ``provenance`` of checkpoint.py gives: ``torch 2.15.0; commit 0123abc``."""
    return (
        ", ".join(f"{name} {version}" for name, version in source["versions"].items()) + f"; commit {source['commit']}"
    )


def curves(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """The page's charts: Dice, and loss, over the epochs; a line for each run and column, as (epoch, value) points."""
    charts = []
    parts = {"valid": "validation", "train": "training"} if len(runs) == 1 else {"valid": None}
    for title in ("Dice", "Loss"):
        lines = {}
        for (name, history), (part, label) in itertools.product(runs.items(), parts.items()):
            points = [(row["epoch"], row.get(f"{part}_{title.lower()}", np.nan)) for row in history]
            if points := [point for point in points if np.isfinite(point[1])]:
                lines[label or name] = points
        if lines:
            charts.append({"title": title, "lines": lines})
    return charts


def group_tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The page's tables of Dice by the pet's size, by flag, and by species and breed where the lists tell them."""
    tables = []

    def add(title: str, note: str, groups: dict[str, Callable[[dict[str, Any]], bool]], lowest_first: bool) -> None:
        dice = {name: np.array([row["dice"] for row in rows if belongs(row)]) for name, belongs in groups.items()}
        found = [[name, len(values), estimate(values)] for name, values in dice.items() if len(values)]
        if lowest_first:
            found.sort(key=lambda row: row[2]["mean"])
        if found:
            head = ["group", "images", "mean Dice"]
            tables.append({"title": f"Dice {title}", "note": note, "head": head, "rows": found, "axis": []})

    def is_between(low: float, high: float, row: dict[str, Any]) -> bool:
        return not row["empty_target"] and (low < row["target_fraction"] <= high or row["target_fraction"] == low == 0)

    sizes = {f"{low:.0%} to {high:.0%}": partial(is_between, low, high) for low, high in itertools.pairwise(PET_SIZES)}
    add("by the pet's size", "The pet's part of the image; without the targets that show no pet.", sizes, False)
    add(
        "by flag",
        "Whole: over 98% of the image. Fragmented: over a tenth of the predicted pixels are outside the largest "
        "part. Where the target shows no pet, an empty prediction scores 1, any other 0.",
        FLAGS | {"none of these": lambda row: not any(holds(row) for holds in FLAGS.values())},
        False,
    )
    for key, title in (("species", "of cats and dogs"), ("breed", "by breed")):
        names = dict.fromkeys(row[key] for row in rows if key in row)
        groups = {name: lambda row, key=key, name=name: row.get(key) == name for name in names}
        add(title, "Lowest mean first.", groups, True)
    return tables


def thumbnail(image: np.ndarray, trimap: np.ndarray, mask: np.ndarray, boundary: str, side: int = 96) -> dict[str, Any]:
    """An image and its map, shrunk and encoded for the page.

    Args:
        image: (H, W, 3) uint8 RGB.
        trimap: (H, W) uint8.
        mask: (H, W) bool, the prediction.
        boundary: what the trimap's boundary counts as.
        side: the longer one's pixels at most.

    Returns:
        ``image`` (JPEG) and ``map`` (lossless WebP), both in base64. The map is 32 times the sum of 1 (predicted), 2
        (pet in the target) and 4 (ignored), so that the page can draw any of them.
    """
    scale = min(1.0, side / max(image.shape[:2]))
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    small = cv2.cvtColor(resize_image(image, height, width), cv2.COLOR_RGB2BGR)
    pixels = torch.from_numpy(resize_trimap(trimap, height, width))
    target, weight = target_and_weight(pixels, boundary)
    pred = resize_trimap(mask.astype(np.uint8), height, width)
    bits = 32 * (pred + 2 * target.numpy() + 4 * ~weight.numpy())
    quality = [cv2.IMWRITE_JPEG_QUALITY, 65 if side < 200 else 80, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]
    encoded = cv2.imencode(".jpg", small, quality)[1], cv2.imencode(".webp", bits.astype(np.uint8), lossless)[1]
    return dict(zip(("image", "map"), (base64.b64encode(data).decode() for data in encoded), strict=True))


def gallery_entry(row: dict[str, Any], thumbnails: Sequence[dict[str, Any]], dice: list[float]) -> dict[str, Any]:
    """An image of the page's gallery.

    Args:
        row: of the score file.
        thumbnails: of each run; the first one's image is shown.
        dice: of each run.
    """
    return {
        "name": row["name"],
        "breed": row.get("breed", ""),
        "size": round(row["target_fraction"], 4),
        "flags": [number for number, holds in enumerate(FLAGS.values()) if holds(row)],
        "dice": [round(value, 4) for value in dice],
        "image": thumbnails[0]["image"],
        "maps": [one["map"] for one in thumbnails],
    }
