"""Predictor: a network with its preprocessing, ready for inference.

from predictor import Predictor

predictor = Predictor("saved_models/R/R_best.pth")
probs = predictor("photo.jpg")  # (H, W) float32, 0 to 1, at the photo's own size
mask = probs > 0.5
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from plumbing.cli import REPO, choose_device, choose_precision, memory_format
from plumbing.images import decode_photo, read_bytes, resize_image

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from augment import Normalise
from checkpoint import load_checkpoint
from models import build_network
from models.blocks import pad_to_multiple
from recipes import Config

MARGIN = 0.05  # around the pet in the second look, in parts of its height and width
SMALL_WEIGHTS = REPO / "weights" / "small.pth"
Image = np.ndarray | str | Path  # (H, W, 3) uint8 RGB, or an image file


class Predictor:
    """A network ready for inference: RGB images in, probabilities of pet out.

    Attributes:
        config: of the run that trained it; ``config.image_size`` is the size that ``__call__`` and ``masks`` resize to.
        source_side: the largest height or width of the training images as stored, in pixels; None if it is not known.
        flip_average: predict the mirrored image too, and average the logits (test-time augmentation).
        second_look: in ``__call__``, ``masks`` and ``predict``: predict again what lies around the pet that was found,
            larger, and average the logits there.
    """

    def __init__(
        self,
        checkpoint: str | Path | dict[str, Any],
        device: str | torch.device = "auto",
        flip_average: bool = False,
        image_size: int | None = None,
        precision: torch.dtype | None = None,
        second_look: bool = False,
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: the file of a checkpoint or of a bare state dict, or what ``load_checkpoint`` returned.
            device: as of ``--device``.
            image_size: pixels of the network's input; None takes that of the training.
            precision: dtype that the network computes in; None takes that of the config.

        Raises:
            UserError: no such file, not a checkpoint, no such device.
        """
        state = checkpoint if isinstance(checkpoint, dict) else load_checkpoint(Path(checkpoint))
        config: Config = state["config"]
        self.config = replace(config, image_size=image_size or config.image_size)
        self.device = choose_device(device) if isinstance(device, str) else device
        self.precision = precision or choose_precision(config.precision, self.device)
        self.source_side: int | None = state.get("source_side")
        self.flip_average, self.second_look = flip_average, second_look
        self.normalise = Normalise(config.mean, config.std).to(self.device)
        model = state["model"]  # weights, or the network of ``from_model``
        if not isinstance(model, nn.Module):
            model = load_for_inference(config.network, model, self.precision)
        self.model = model.to(self.device, memory_format=memory_format(self.device))

    @classmethod
    def from_model(cls, model: nn.Module, config: Config, device: torch.device, precision: torch.dtype) -> "Predictor":
        """A predictor around a network that goes on changing, as in training; its BatchNorm is not folded."""
        return cls({"config": config, "model": model}, device, precision=precision)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Predict a batch.

        Args:
            images: (N, 3, H, W) float, 0 to 255, RGB, on the predictor's device.

        Returns:
            (N, 1, H, W) float32 on the device; above 0 is pet.
        """
        self.model.eval()
        images = self.normalise(images)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits = self.model(images).float()
            if self.flip_average:
                logits = (logits + self.model(images.flip(-1)).float().flip(-1)) / 2
        return logits

    def __call__(self, image: Image) -> np.ndarray:
        """The probability of pet at each pixel of one image: (H, W) float32, 0 to 1, at the image's own size.

        Training images smaller than the network's input were enlarged, so the network knows no sharp ones: an image is
        shrunk to ``source_side`` first. The data set's own images are not larger, so this leaves them as scoring has
        them.

        Raises:
            UserError: the file cannot be read.
            ValueError: neither a file nor an array (H, W, 3) uint8.
        """
        return next(self.predict([image]))

    def masks(self, images: Iterable[Image], batch_size: int = 8) -> Iterator[np.ndarray]:
        """A mask, (H, W) bool at the image's own size, for each image, in order: where the probability is above 0.5."""
        for probs in self.predict(images, batch_size):
            yield probs > 0.5

    def predict(self, images: Iterable[Image], batch_size: int = 8) -> Iterator[np.ndarray]:
        """``__call__`` for many images, in order; they are read a batch at a time."""
        images = iter(images)
        while batch := list(map(load_photo, islice(images, batch_size))):
            found = self._logits_at_own_size(batch)
            if self.second_look:
                boxes = [box_around(logits > 0) for logits in found]
                again = self._logits_at_own_size([image[box] for image, box in zip(batch, boxes, strict=True)])
                for logits, box, closer in zip(found, boxes, again, strict=True):
                    logits[box] = (logits[box] + closer) / 2
            for logits in found:
                yield torch.from_numpy(logits).sigmoid_().numpy()

    def _logits_at_own_size(self, images: list[np.ndarray]) -> list[np.ndarray]:
        stacked = np.stack([self._resize(image) for image in images])
        pixels = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float()  # (N, 3, S, S)
        logits = self.logits(pixels)[:, 0].cpu().numpy()
        return [resize_logits(one, *image.shape[:2]) for one, image in zip(logits, images, strict=True)]

    def _resize(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) to the network's (S, S, 3), as sharp as the training images at most."""
        size = self.config.image_size
        if self.source_side and self.source_side < size:
            image = resize_image(image, *(min(side, self.source_side) for side in image.shape[:2]))
        return resize_image(image, size, size)

    def fingerprint(self) -> str:
        """SHA-256 of all that a prediction depends on besides the image."""
        config, options = self.config, (self.source_side, self.flip_average, self.second_look, self.precision)
        facts = (config.network, config.mean, config.std, config.image_size, *options)
        digest = hashlib.sha256(repr(facts).encode())
        for value in self.model.state_dict().values():
            digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_photo(photo: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, as a viewer shows it; such an array is returned as it is."""
    if isinstance(photo, str | Path):
        return np.ascontiguousarray(decode_photo(read_bytes(Path(photo)), photo)[..., :3])
    if isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.shape[2:] == (3,) and photo.size:
        return photo
    shape, dtype = getattr(photo, "shape", ""), getattr(photo, "dtype", "")
    found = f"{type(photo).__name__} {shape} {dtype}".strip()
    raise ValueError(f"expected an image file, or an RGB array (height, width, 3) of uint8; got {found}")


def box_around(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a mask, (H, W) bool, with a margin; all of them if it is empty."""
    height, width = mask.shape
    x, y, columns, rows = cv2.boundingRect(mask.astype(np.uint8))
    if not rows:
        return slice(height), slice(width)
    down, across = round(MARGIN * rows), round(MARGIN * columns)
    return slice(max(0, y - down), y + rows + down), slice(max(0, x - across), x + columns + across)


def resize_logits(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """(S, S) to (height, width), bilinear; threshold afterwards, so that the outline is smooth at any size."""
    return cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)


def load_for_inference(network: str, weights: dict[str, Tensor], precision: torch.dtype) -> nn.Module:
    """Build a network from its state dict, with BatchNorm folded and weights cast once instead of in every batch."""
    model = build_network(network)
    model.load_state_dict(weights)
    model = fold_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.to(precision)
    return model


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Fold each BatchNorm behind a convolution into that convolution's weights: the same function in evaluation mode.

    A network is returned as it is if torch.fx cannot trace it (its control flow depends on values) or if it uses a
    convolution twice.
    """
    from torch import fx
    from torch.fx.experimental.optimization import fuse

    tracer = fx.Tracer(autowrap_functions=(pad_to_multiple,))
    try:
        graph = tracer.trace(model.eval())
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return model
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if any(calls[name] > 1 for name in convolutions):  # different BatchNorms may follow: fuse would fold one into both
        return model
    return fuse(fx.GraphModule(tracer.root, graph), no_trace=True)
