"""Export a checkpoint to ONNX, and compare the file with PyTorch before it is written.

python tools/export_onnx.py --model R
python tools/export_onnx.py --model saved_models/R/R_best.pth --output pets.onnx --half

Input ``images``: (N, H, W, 3) uint8 RGB, the layout in which images are decoded. Output ``probability``: (N, H, W)
float32, 0 to 1. N is free, and so are H and W from 32 pixels up; results are best at the size of the training, which is
in the file's metadata. Normalisation, padding and sigmoid are inside.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import argparse
import copy
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec

from plumbing import cli
from plumbing.cli import REPO, ArgumentParser, UserError, choose_device, image_size, run_script, shell
from plumbing.files import atomic_write
from plumbing.images import decode_image, resize_image

import numpy as np
import torch
from torch import Tensor, nn

from augment import Normalise
from draw_pets import breed_of, draw_pet
from evaluate import open_checkpoint, parse_scoring_args
from models import build_network, count_parameters, network_names
from oxford_pet import evenly_spaced, find_root, image_path, read_split, training_data_path
from predictor import Predictor, fold_batchnorm
from recipes import RECIPES, Config

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.float16: 1e-2}  # of probabilities, from PyTorch's in float32

EXAMPLE = """\
import cv2, onnxruntime
session = onnxruntime.InferenceSession({file!r})
image = cv2.cvtColor(cv2.imread("photo.jpg"), cv2.COLOR_BGR2RGB)
pixels = cv2.resize(image, ({size}, {size}), interpolation=cv2.INTER_AREA)[None]
probs = cv2.resize(session.run(None, {{"images": pixels}})[0][0], image.shape[1::-1])
cv2.imwrite("photo_mask.png", (probs > 0.5).astype("uint8") * 255)"""


class PixelsToProbability(nn.Module):
    """A network with its normalisation in front of it and the sigmoid behind it; ``dtype`` is the network's own."""

    def __init__(self, model: nn.Module, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.normalise = Normalise(config.mean, config.std)
        self.model = copy.deepcopy(model).to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB to (N, H, W) float32, 0 to 1."""
        pixels = self.normalise(images.permute(0, 3, 1, 2).float())  # (N, 3, H, W)
        return self.model(pixels.to(self.dtype))[:, 0].float().sigmoid()


def export(model: PixelsToProbability, metadata: dict[str, str]) -> bytes:
    """Convert a network to the content of an ONNX file with a free batch, height and width.

    The example's sides are no multiples of any stride, so that the padding is part of the graph; where nothing is
    missing, it pads by 0. PyTorch defers conditions on the example's size to run time, and ONNX has none of these.
    """
    import onnx

    example = torch.zeros(2, 61, 83, 3, dtype=torch.uint8)  # a batch of 1 would be taken for a constant
    free = (dict.fromkeys(range(3), torch.export.Dim.DYNAMIC),)
    program = torch.export.export(
        model, (example,), dynamic_shapes=free, prefer_deferred_runtime_asserts_over_guards=True
    )
    axes, names = ({0: "batch", 1: "height", 2: "width"},), {"input_names": ["images"], "output_names": ["probability"]}
    proto = torch.onnx.export(program, dynamic_shapes=axes, **names, verbose=False).model_proto
    del proto.graph.value_info[:], proto.graph.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine
    onnx.helper.set_model_props(proto, metadata)
    return proto.SerializeToString()


def comparison_images(data_path: str) -> tuple[list[np.ndarray], str]:
    """Three images to compare on, and what they are: of the run's validation split or, where that is gone, drawn."""
    with suppress(UserError):
        root = find_root(training_data_path(data_path))
        names = (evenly_spaced(read_split(root, "valid"), 3) * 3)[:3]  # a small split has fewer
        if names:
            return [decode_image(image_path(root, name)) for name in names], f"validation images of {root}"
    drawn = [draw_pet(np.random.default_rng(index), breed_of(index))[0] for index in range(3)]
    return drawn, "drawn pets (the training's data is not here)"


def largest_difference(reference: Predictor, content: bytes, images: list[np.ndarray]) -> float:
    """The largest difference of a probability between an ONNX file, run by onnxruntime, and PyTorch; NaN if one is NaN.

    A batch of one and a batch of two images are compared, at three sizes each: the reference's, and two to be padded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    size = reference.config.image_size
    differences = []
    for height, width in ((size, size), (size * 3 // 4 + 9, size + 13), (size + 37, size // 2 + 32)):
        resized = np.stack([resize_image(image, height, width) for image in images])
        for batch in (resized[:1], resized[-2:]):
            probs = session.run(None, {"images": batch})[0]
            expected = reference.logits(torch.from_numpy(batch).permute(0, 3, 1, 2).float())[:, 0].sigmoid().numpy()
            differences.append(np.abs(probs - expected).max())
    return float(np.max(differences))


def onnx_file(text: str) -> Path:
    if not text.endswith(".onnx"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .onnx")
    return cli.new_path(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Export a checkpoint to ONNX: RGB uint8 (N, H, W, 3) in, probability (N, H, W) out.")
    parser.add_run_options(network_names(), RECIPES, files=True)
    add = parser.add_argument
    add(
        "--load_model_epoch",
        type=cli.which_checkpoint,
        metavar="best|last|final|N",
        help="which checkpoint of the run (default: best)",
    )
    add("--output", type=onnx_file, help="the file (default: beside the checkpoint: R_best.onnx or R_best_half.onnx)")
    add("--half", action="store_true", help="float16 weights: half the file; input and output stay as they are")
    add("--image_size", type=image_size, help="pixels that the metadata and the example name (default: as in training)")
    args = parse_scoring_args(parser, argv)
    if args.limit or args.device not in ("auto", "cpu"):
        parser.error("--limit and --device do not apply: three images are compared, on the CPU; the file runs anywhere")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        install = shell("python", "-m", "pip", "install", "-r", REPO / "requirements-onnx.txt")
        raise UserError(f"this needs {', '.join(missing)}: {install}")
    path = args.checkpoint
    state = open_checkpoint(path, args.model, args.recipe)
    size = args.image_size or state["config"].image_size
    config = replace(state["config"], precision="fp32", image_size=size)
    output = args.output or path.with_name(f"{path.stem}{'_half' if args.half else ''}.onnx")
    dtype = torch.float16 if args.half else torch.float32

    model = build_network(config.network).eval()
    model.load_state_dict(state["model"])
    reference = Predictor.from_model(model, config, choose_device("cpu", args.threads), torch.float32)
    images, which = comparison_images(state["data_path"])
    print(
        f"Exporting {config.network} ({count_parameters(model):,} parameters, {str(dtype).removeprefix('torch.')}) of "
        f"{path} to {output}\nComparing with PyTorch in float32 on {which}",
        flush=True,
    )
    metadata = {key: str(getattr(config, key)) for key in ("network", "recipe", "image_size", "boundary")}
    content = export(PixelsToProbability(fold_batchnorm(model), config, dtype).eval(), metadata)
    difference, bound = largest_difference(reference, content, images), LARGEST_DIFFERENCE[dtype]
    print(f"    largest difference of a probability {difference:.1e}, at 3 sizes and 2 batch sizes; bound {bound:.0e}")
    if not difference <= bound:  # NaN too
        raise UserError(f"ONNX and PyTorch differ by {difference:.1e}, over {bound:.0e}; {output} is not written")
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write(content)
    print(f"wrote {output} ({len(content) / 1e6:.1f} MB)\nnext, in Python, without PyTorch:\n")
    print(EXAMPLE.format(file=str(output), size=size))


if __name__ == "__main__":
    run_script(main)
