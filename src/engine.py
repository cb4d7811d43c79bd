"""What training keeps besides the network: progress, EMA weights with their BatchNorm statistics, the optimizer."""

import copy
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from plumbing.cli import UserError, memory_format

import torch
from torch import Tensor, nn

from augment import Normalise, draw_epoch, recolour, warp
from losses import LOSSES
from models import build_network
from recipes import OPTIMIZERS, Config
from split import images_and_trimaps
from trimap import target_and_weight

EMA_EVERY = 8  # steps between two updates: as good as each step, at an eighth of the cost


@dataclass
class Progress:
    """Training progress, saved in ``last`` for exact resume."""

    loss_sum: Tensor  # over the steps of the current epoch, on the device
    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the current epoch
    seconds: float = 0.0  # spent on those steps
    history: list[dict[str, float]] = field(default_factory=list)  # a row for each epoch done

    @property
    def best_dice(self) -> float:
        """The best validation Dice so far, -1 before the first; NaN never counts."""
        return max((row["valid_dice"] for row in self.history if row["valid_dice"] >= 0), default=-1.0)

    def is_best(self, row: dict[str, float]) -> bool:
        """True if no epoch so far has a higher validation Dice or, at an equal one, as low a validation loss."""
        same = [before["valid_loss"] for before in self.history if before["valid_dice"] == row["valid_dice"]]
        return row["valid_dice"] >= self.best_dice and not any(loss <= row["valid_loss"] for loss in same)


class EMA:
    """An exponential moving average of a network's weights.

    Attributes:
        model: the averaged network; the trained network itself where ``horizon`` is 0.
    """

    def __init__(self, trained: nn.Module, horizon: int) -> None:
        """
        Args:
            horizon: of the average, in steps (``Config.ema_steps``); 0 for no average.
        """
        self.trained, self.horizon = trained, horizon
        self.model = copy.deepcopy(trained).requires_grad_(False) if horizon else trained

    @torch.no_grad()
    def update(self, step: int, steps_per_epoch: int, global_step: int) -> None:
        """Move the average towards the trained weights, after every ``EMA_EVERY`` steps of an epoch and after its last.

        EMA horizon = min(horizon, global_step / 10), so early weights are forgotten quickly.

        Args:
            step: steps done in the epoch.
            global_step: steps done in the run.
        """
        if not self.horizon or (step % EMA_EVERY and step < steps_per_epoch):
            return
        steps = step % EMA_EVERY or EMA_EVERY
        weight = min(1.0, steps / min(self.horizon, global_step / 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(self.trained.parameters()), weight)

    @torch.no_grad()
    def refresh_batchnorm(self, batches: Iterable[Tensor]) -> None:
        """Set the statistics of each BatchNorm to those over all images of the batches.

        The trained weights' statistics do not fit the averaged weights. If the loop over ``batches`` raises, the
        statistics are invalid; call it again.

        Args:
            batches: normalised images, (N, 3, H, W), in batches of any size.
        """
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        if not self.horizon or not norms:
            return
        sums: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}  # (3, C) for each batch

        def add_batch(norm: nn.Module, _: object, output: Tensor) -> None:
            count = output.numel() // output.shape[1]
            mean, variance = norm.running_mean, norm.running_var * ((count - 1) / count)
            sums[norm].append(len(output) * torch.stack((mean, mean.square() + variance, torch.ones_like(mean))))

        momenta = [norm.momentum for norm in norms]
        hooks = [norm.register_forward_hook(add_batch) for norm in norms]
        try:
            for norm in norms:
                norm.num_batches_tracked.zero_()
                norm.momentum = 1.0  # the running statistics are those of the last batch
            self.model.train()
            for images in batches:
                self.model(images)
        finally:
            for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
                norm.momentum = momentum
                hook.remove()
        for norm in norms:
            if sums[norm]:
                total, squares, images = torch.stack(sums[norm]).sum(0)
                norm.running_mean.copy_(total / images)
                norm.running_var.copy_(squares / images - norm.running_mean.square())


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The config's optimizer; weight decay is for weights, not for biases and BatchNorm.

    Fused optimizers on the CPU copy what is not contiguous, and channels_last weights are not: twice the time of the
    update. So it works on NHWC views of the weights, and a hook before each step hands it the gradients as such views.
    """
    nhwc_weights = [nn.Parameter(as_nhwc(parameter.detach())) for parameter in model.parameters()]
    decayed = [weight for weight in nhwc_weights if weight.ndim > 1]
    undecayed = [weight for weight in nhwc_weights if weight.ndim <= 1]
    optimizer = OPTIMIZERS[config.optimizer](
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=next(model.parameters()).device.type != "mps",  # has not run there
    )

    def hand_over_gradients(*_: object) -> None:
        for parameter, weight in zip(model.parameters(), nhwc_weights, strict=True):
            if parameter.grad is not None:
                weight.grad, parameter.grad = as_nhwc(parameter.grad), None

    optimizer.register_step_pre_hook(hand_over_gradients)
    return optimizer


def as_nhwc(weight: Tensor) -> Tensor:
    """View a convolution's (O, I, H, W) weight as (O, H, W, I), contiguous if channels_last; others as they are."""
    return weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight


def try_device(device: torch.device, config: Config) -> torch.device:
    """Try a training step before the data is read; the device or, with a note, the CPU if Apple's GPU errs.

    PyTorch had silent errors there, and this project has not run on one.

    Raises:
        UserError: the network or the loss returns another shape than training needs.
    """
    found = loss_and_gradient(device, config)
    if device.type != "mps":
        return device
    expected = loss_and_gradient(torch.device("cpu"), config)
    if torch.allclose(found, expected, rtol=0.01, atol=0):
        return device
    values = f"loss and gradient {found.tolist()}, and not {expected.tolist()}"
    print(f"note: the GPU computes {values}; training on the CPU (newer versions of PyTorch may help)", file=sys.stderr)
    return torch.device("cpu")


def loss_and_gradient(device: torch.device, config: Config) -> Tensor:
    """The loss of two random images at 64x64, and the norm of its gradient: (2,) float32 on the CPU."""
    pixels = torch.randint(0, 256, (2, 64, 64, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[..., 3] = 1 + pixels[..., 3] % 4
    plan = draw_epoch(config.augmentation, 2, 2, config.seed, 1).to(device)
    torch.manual_seed(config.seed)
    model = build_network(config.network).to(device, memory_format=memory_format(device)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()  # devices draw differently
    images, trimaps = warp(*images_and_trimaps(pixels.to(device)), plan.theta)
    target, weight = target_and_weight(trimaps, config.boundary)
    outputs = model(Normalise(config.mean, config.std).to(device)(recolour(images, plan.colour)))
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    check_shapes(config.network, outputs, (2, 1, 64, 64), "logits of the images' size, one channel, or a list of such")
    losses = [LOSSES[config.loss](logits, target, weight) for logits in outputs]
    check_shapes(f"the loss {config.loss}", losses, (), "a scalar tensor")
    sum(losses).backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack((sum(losses).detach(), torch.stack(norms).norm())).cpu()


def check_shapes(what: str, values: list[Any], shape: tuple[int, ...], needed: str) -> None:
    """Raise UserError unless all values are tensors of this shape."""
    for value in values:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if found != shape:
            raise UserError(f"{what} returns {found} for (2, 3, 64, 64) images; training needs {needed}")
