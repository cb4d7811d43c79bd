"""Distillation: a teacher's probabilities mixed into the targets (Hinton et al., "Distilling the Knowledge in a Neural
Network", 2015).

python benchmarks/distill.py --teacher weights/small.pth --model ResNet34_UNet_small --recipe cpu --name distilled

All other flags are those of src/train.py; the run is an ordinary one, and evaluate.py scores it. To resume, type the
teacher again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
from typing import Any

from plumbing.cli import ArgumentParser, existing_path, fraction, run_script

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from augment import recolour, warp
from predictor import Predictor
from split import images_and_trimaps
from trimap import target_and_weight


class Student(train.Trainer):
    """A network in training; its target is a mean of the data's and the teacher's.

    Attributes:
        teacher: sees the same augmented batch, at its own input size.
        teacher_weight: the teacher's part of the target, 0 to 1.
    """

    teacher: Predictor
    teacher_weight: float

    @torch.no_grad()
    def ask_teacher(self, pixels: Tensor, theta: Tensor, colour: Tensor, side: int) -> Tensor:
        """The teacher's probabilities of an augmented batch; arguments as of ``train_step``, (N, 1, side, side)."""
        images, _ = warp(*images_and_trimaps(pixels), theta, self.teacher.config.image_size)
        probs = self.teacher.logits(recolour(images, colour)).sigmoid()
        return F.interpolate(probs, (side, side), mode="bilinear", antialias=True)

    def train_step(self, pixels: Tensor, theta: Tensor, colour: Tensor, side: int) -> Tensor:
        images, trimaps = warp(*images_and_trimaps(pixels), theta, side)  # (N, 3, side, side), (N, 1, side, side)
        target, weight = target_and_weight(trimaps, self.config.boundary)
        target = torch.lerp(target.float(), self.ask_teacher(pixels, theta, colour, side), self.teacher_weight)
        with self.autocast():
            outputs = self.forward(self.normalise(recolour(images, colour)))
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        loss = sum(self.criterion(logits, target, weight) for logits in outputs) / len(outputs)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Train a network by src/train.py, with a teacher's probabilities in the targets.")
    parser.add_argument("--teacher", type=existing_path, required=True, help="a checkpoint of any network and size")
    parser.add_argument("--weight", type=fraction, default=0.5, help="of the teacher in the target")
    args, flags = parser.parse_known_args(argv)

    def make_student(config: Any, device: torch.device, *more: Any) -> Student:
        student = Student(config, device, *more)
        student.teacher, student.teacher_weight = Predictor(args.teacher, device), args.weight
        return student

    original, train.Trainer = train.Trainer, make_student
    try:
        train.main(flags)
    finally:
        train.Trainer = original


if __name__ == "__main__":
    run_script(main)
