"""Predictor: a network with its preprocessing, ready for inference.

from predictor import Predictor

predictor = Predictor("saved_models/R/R_best.pth")
probs = predictor("photo.jpg")  # (H, W) float32, 0 to 1, at the photo's own size
mask = probs > 0.5
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from plumbing.cli import REPO, choose_device, choose_precision
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

SMALL_WEIGHTS = REPO / "weights" / "small.pth"
Image = np.ndarray | str | Path  # (H, W, 3) uint8 RGB, or an image file


class Predictor:
    """A network ready for inference: RGB images in, probabilities of pet out.

    Attributes:
        config: of the run that trained it; ``config.image_size`` is the size that ``__call__`` and ``masks`` resize to.
        flip_average: predict the mirrored image too, and average the logits (test-time augmentation).
    """

    def __init__(
        self,
        checkpoint: str | Path | dict[str, Any],
        device: str | torch.device = "auto",
        flip_average: bool = False,
        image_size: int | None = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: the file of a checkpoint or of a bare state dict, or what ``load_checkpoint`` returned.
            device: as of ``--device``.
            image_size: pixels of the network's input; None takes that of the training.

        Raises:
            UserError: no such file, not a checkpoint, no such device.
        """
        state = checkpoint if isinstance(checkpoint, dict) else load_checkpoint(Path(checkpoint))
        config: Config = state["config"]
        model = build_network(config.network)
        model.load_state_dict(state["model"])
        self._setup(fold_batchnorm(model), replace(config, image_size=image_size or config.image_size), device)
        self.flip_average = flip_average
        for module in self.model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.to(self.precision)  # once, where autocast would do it for each batch

    @classmethod
    def from_model(
        cls, model: nn.Module, config: Config, device: str | torch.device = "auto", precision=None
    ) -> "Predictor":
        """A predictor around a network that goes on changing, as in training; its BatchNorm is not folded.

        Args:
            config: its mean, std, precision and image size are used.
        """
        predictor = cls.__new__(cls)
        predictor._setup(model, config, device)
        predictor.precision = precision or predictor.precision
        return predictor

    def _setup(self, model: nn.Module, config: Config, device: str | torch.device) -> None:
        self.config = config
        self.device = choose_device(device) if isinstance(device, str) else device
        self.precision = choose_precision(config.precision, self.device)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.normalise = Normalise(config.mean, config.std).to(self.device)
        self.flip_average = False

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
        """The probability of pet at each pixel of an image.

        Args:
            image: (H, W, 3) uint8 RGB, or the path of an image file.

        Returns:
            (H, W) float32, 0 to 1, at the image's own size.

        Raises:
            UserError: the file cannot be read.
        """
        return next(self.predict([image]))

    def masks(self, images: Iterable[Image], batch_size: int = 8) -> Iterator[np.ndarray]:
        """A mask, (H, W) bool at the image's own size, for each image, in order: where the probability is above 0.5."""
        for probs in self.predict(images, batch_size):
            yield probs > 0.5

    def predict(self, images: Iterable[Image], batch_size: int = 8) -> Iterator[np.ndarray]:
        """``__call__`` for many images, in order; no more than a batch of them is held in memory."""
        batch: list[np.ndarray] = []
        for image in images:
            batch.append(image if isinstance(image, np.ndarray) else load_photo(Path(image)))
            if len(batch) == batch_size:
                yield from self._predict_batch(batch)
                batch = []
        if batch:
            yield from self._predict_batch(batch)

    def _predict_batch(self, images: list[np.ndarray]) -> Iterator[np.ndarray]:
        size = self.config.image_size
        stacked = np.stack([resize_image(image, size, size) for image in images])
        pixels = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float()
        for image, logits in zip(images, self.logits(pixels)[:, 0].cpu().numpy(), strict=True):
            yield torch.from_numpy(resize_logits(logits, *image.shape[:2])).sigmoid_().numpy()


def load_photo(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, as a viewer shows it."""
    return np.ascontiguousarray(decode_photo(read_bytes(path), path)[..., :3])


def resize_logits(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """(S, S) to (height, width), bilinear: the threshold comes after it, so that the outline is smooth at any size."""
    return cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """The same function in evaluation mode, each BatchNorm behind a convolution folded into that convolution's weights.

    A network that torch.fx cannot trace, because its control flow depends on values, or that uses a convolution twice
    is returned as it is.
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
