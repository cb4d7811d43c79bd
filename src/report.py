"""A run's history file, and the drawings: curves, overlays, contact sheets."""

import csv
import io
from pathlib import Path

import cv2
import numpy as np

from atomic import atomic_write

GREEN, BLACK, WHITE = (40, 200, 80), (0, 0, 0), (255, 255, 255)


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
        losses, dice = axes[0, column], axes[1, column]
        losses.plot(epochs, [row["train_loss"] for row in history], label="training", marker=marker)
        losses.plot(epochs, [row["valid_loss"] for row in history], label="validation", marker=marker)
        if any("train_dice" in row for row in history):
            train_dice = [row.get("train_dice", float("nan")) for row in history]
            dice.plot(epochs, train_dice, "C0", label="training", marker=marker)
        dice.plot(epochs, [row["valid_dice"] for row in history], "C1", label="validation", marker=marker)
        best = max(history, key=lambda row: row["valid_dice"])
        dice.annotate(
            f"best {best['valid_dice']:.4f}, epoch {best['epoch']:.0f}",
            (0.98, 0.04),
            xycoords="axes fraction",
            ha="right",
        )
        dice.plot(best["epoch"], best["valid_dice"], "C1o")
        losses.set_title(title)
        losses.legend()
        dice.legend(loc="center right")
        dice.set_xlabel("epoch")
        dice.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (losses, dice):
            axis.grid(alpha=0.3)
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


def draw_contact_sheet(tiles: list[tuple[str, list[np.ndarray]]], columns: int, side: int = 176) -> np.ndarray:
    """Draw captioned tiles on a sheet, row by row.

    Args:
        tiles: each tile's caption, and its images from left to right, (H, W, 3) uint8 RGB of any size.
        columns: tiles per row.
        side: height and width in pixels of the square that each image is fitted into.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from imutils import build_montages

    drawn = []
    for caption, images in tiles:
        fitted = np.hstack([_fit(image, side) for image in images])
        strip = np.full((20, fitted.shape[1], 3), WHITE, np.uint8)
        cv2.putText(strip, caption, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, BLACK, 1, cv2.LINE_AA)
        drawn.append(cv2.copyMakeBorder(np.vstack((strip, fitted)), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=WHITE))
    height, width = drawn[0].shape[:2]
    return build_montages(drawn, (width, height), (columns, -(-len(drawn) // columns)))[0]


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
