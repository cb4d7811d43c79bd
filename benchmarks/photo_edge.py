"""Score ways to bring a prediction to a photo's own size: squashed or letterboxed, with or without a guided filter.

python benchmarks/photo_edge.py --model R --data_path dataset/oxford-iiit-pet --split valid
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import cli

if __name__ == "__main__":
    cli.start()

from collections.abc import Callable

import cv2
import numpy as np
import torch

from cli import ArgumentParser, choose_device, run_script
from evaluate import (
    add_scoring_options,
    boundary_f_score,
    dice_and_iou,
    overlap,
    parse_scoring_args,
    requested_checkpoint,
)
from images import decode_image, resize_image
from oxford_pet import evenly_spaced, find_root, image_path, read_list, trimap_path
from predictor import Predictor, resize_logits
from record import RESULTS, origin, write_json
from trimap import decode_trimap, target_and_weight


def logits_of(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """(S, S) logits of an image that has the network's size."""
    pixels = torch.from_numpy(image).to(predictor.device).permute(2, 0, 1)[None].float()
    return predictor.logits(pixels)[0, 0].cpu().numpy()


def squash(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Logits at the image's own size; the network sees it as a square, as in training."""
    size = predictor.config.image_size
    return resize_logits(logits_of(predictor, resize_image(image, size, size)), *image.shape[:2])


def letterbox(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Logits at the image's own size; the network sees it with its aspect ratio, on black."""
    size = predictor.config.image_size
    height, width = (max(1, round(side * size / max(image.shape[:2]))) for side in image.shape[:2])
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = resize_image(image, height, width)
    return resize_logits(logits_of(predictor, square)[top : top + height, left : left + width], *image.shape[:2])


def guided_filter(image: np.ndarray, probs: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Have the edges of the probabilities follow those of the image (He et al., "Guided Image Filtering", 2010).

    Args:
        image: (H, W, 3) uint8; its grey values guide.
        probs: (H, W) float32.
        radius: pixels of the window.
        epsilon: contrast, squared, below which an edge is smoothed; grey values are 0 to 1.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (2 * radius + 1, 2 * radius + 1))

    mean_grey, mean_probs = mean(grey), mean(probs)
    slope = (mean(grey * probs) - mean_grey * mean_probs) / (mean(grey * grey) - mean_grey**2 + epsilon)
    return mean(slope) * grey + mean(mean_probs - slope * mean_grey)


def ways() -> dict[str, Callable[[Predictor, np.ndarray], np.ndarray]]:
    """Each takes a predictor and an image, and returns its mask, (H, W) bool."""

    def guided(radius_fraction: float, epsilon: float) -> Callable[[Predictor, np.ndarray], np.ndarray]:
        def way(predictor: Predictor, image: np.ndarray) -> np.ndarray:
            probs = 1 / (1 + np.exp(-squash(predictor, image)))
            radius = max(1, round(radius_fraction * np.hypot(*image.shape[:2])))
            return guided_filter(image, probs.astype(np.float32), radius, epsilon) > 0.5

        return way

    table = {
        "squashed": lambda predictor, image: squash(predictor, image) > 0,
        "letterboxed": lambda predictor, image: letterbox(predictor, image) > 0,
    }
    for radius in (0.005, 0.01, 0.02):
        for epsilon in (1e-4, 1e-3, 1e-2):
            table[f"squashed, guided filter, radius {radius:.1%} of the diagonal, epsilon {epsilon:g}"] = guided(
                radius, epsilon
            )
    return table


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Score ways to bring a prediction to a photo's own size.")
    add_scoring_options(parser)
    parser.add_argument("--split", choices=("trainval", "test"), default="trainval", help="choose on trainval")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parse_scoring_args(parser, argv)
    predictor = Predictor(requested_checkpoint(args), choose_device(args.device, args.threads), args.flip_average)
    root = find_root(args.data_path or cli.DATASET)
    names = evenly_spaced(read_list(root, args.split), args.limit)
    rows: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways()}
    for name in names:
        image, trimap = decode_image(image_path(root, name)), decode_trimap(trimap_path(root, name))
        target, weight = target_and_weight(torch.from_numpy(trimap)[None, None], "pet")
        for way, predict in ways().items():
            mask = predict(predictor, image)
            dice, iou = dice_and_iou(*overlap(torch.from_numpy(mask)[None, None], target, weight))
            rows[way].append((dice.item(), iou.item(), boundary_f_score(mask, target[0, 0].numpy())))
    table = {
        way: dict(zip(("dice", "iou", "boundary_f"), np.mean(scores, 0).round(4).tolist(), strict=True))
        for way, scores in rows.items()
    }
    print("| | Dice | IoU | boundary F |\n| --- | --- | --- | --- |")
    for way, scores in table.items():
        print(f"| {way} | " + " | ".join(f"{score:.4f}" for score in scores.values()) + " |")
    path = args.results / f"photo-edge-{args.name}-{args.split}.json"
    write_json(
        path, {**origin("photo_edge.py", sys.argv[1:] if argv is None else argv), "images": len(names), "rows": table}
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
