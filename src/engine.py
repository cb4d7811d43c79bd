"""The training engine: the state of a run, one step, one epoch, EMA weights, BatchNorm statistics."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from plumbing import ranks
from plumbing.cli import (
    UserError,
    choose_precision,
)
from plumbing.stop import StopSignal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from augment import EpochPlan, Normalise, draw_epoch, recolour, warp
from losses import LOSSES
from models import build_network
from oxford_pet import Split, images_and_trimaps
from recipes import OPTIMIZERS, Config
from trimap import target_and_weight

EMA_EVERY = 8  # steps between two updates of the EMA weights: as good as each step, at an eighth of the cost
BATCHNORM_IMAGES = 512  # training images from which the EMA weights' BatchNorm statistics are computed
BATCHNORM_BATCH = 64  # images at most: no more than a training step's, whose memory is known to be there
SECONDS_AFTER_STOP = 3.0  # that BatchNorm statistics may take then
SECONDS_BETWEEN_SYNCS = 1.0  # how often the host reads the device's loss, and moves the progress bar


@dataclass
class TrainingState:
    """What a step reads and changes."""

    config: Config
    device: torch.device
    precision: torch.dtype  # that the network computes in
    train: Split
    valid: Split

    model: nn.Module
    forward: Callable[[Tensor], Any]  # of ``model``, over all ranks; ``compile_forward`` may replace it
    ema_model: nn.Module  # EMA weights with BatchNorm statistics of their own; ``model`` itself where there is no EMA
    normalise: Normalise
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer  # of the model's weights ``in_memory_order``
    views: list[nn.Parameter]  # those, in the order of ``model.parameters()``

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the current epoch
    ema_step: int = 0  # global step of the last EMA update
    seconds: float = 0.0  # of training in the current epoch
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))  # over the steps of the current epoch
    first_bad: Tensor = field(default_factory=lambda: torch.tensor(-1))  # its first step with a loss that is not finite

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.config.batch_size)

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.config.learning_rate_at(self.global_step / (self.config.epochs * self.steps_per_epoch))

    def autocast(self) -> torch.autocast:
        # Each weight is used once in a forward pass, so a cache of cast weights holds memory and saves nothing.
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=enabled, cache_enabled=False)


def create_state(config: Config, device: torch.device, train: Split, valid: Split) -> TrainingState:
    """The state before the first step, everything on the device; the weights are drawn from ``config.seed``.

    Raises:
        UserError: the ranks cannot share a batch equally.
    """
    if config.batch_size % ranks.world():
        raise UserError(f"--batch_size {config.batch_size} cannot be shared by {ranks.world()} processes equally")
    torch.manual_seed(config.seed)
    model = build_network(config.network)
    ema_model = copy.deepcopy(model).requires_grad_(False) if config.ema_steps else model
    model, ema_model = (part.to(device, memory_format=torch.channels_last) for part in (model, ema_model))
    model, forward = ranks.distribute(model)
    views = [nn.Parameter(in_memory_order(parameter.detach())) for parameter in model.parameters()]
    decayed = [view for view in views if view.ndim > 1]
    undecayed = [view for view in views if view.ndim <= 1]  # BatchNorm and biases
    optimizer = OPTIMIZERS[config.optimizer](
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=True,
    )
    return TrainingState(
        config=config,
        device=device,
        precision=choose_precision(config.precision, device),
        train=train,
        valid=valid,
        model=model,
        forward=forward,
        ema_model=ema_model,
        normalise=Normalise(config.mean, config.std).to(device),
        criterion=LOSSES[config.loss],
        optimizer=optimizer,
        views=views,
        loss_sum=torch.zeros((), device=device),
        first_bad=torch.tensor(-1, device=device),
    )


def in_memory_order(weight: Tensor) -> Tensor:
    """A convolution's channels_last weight as the contiguous (O, H, W, I) that it is in memory; others as they are.

    A fused optimizer on the CPU copies all that is not contiguous, there and back: twice as long as its update takes.
    """
    return weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight


def check_finite(state: TrainingState) -> None:
    """Refuse to go on, and so to save, with weights that are not finite.

    Raises:
        UserError: says what to do.
    """
    weights = (*state.model.state_dict().values(), *state.ema_model.state_dict().values())
    if not torch.stack([value.isfinite().all() for value in weights]).all():
        raise UserError(
            f"the weights were not finite in epoch {state.epoch + 1}; the checkpoints of earlier epochs stay. "
            "Try a lower --learning_rate, or --precision fp32."
        )


def compile_forward(state: TrainingState) -> None:
    """Compile the network by ``torch.compile`` for the next epoch's image size, and try it forward and backward.

    If that fails, one line says so, and the network runs eagerly. Weights and BatchNorm statistics stay as they are.
    """
    side, before = state.config.image_size_at(state.epoch + 1), [value.clone() for value in state.model.buffers()]
    images = torch.zeros(state.config.batch_size, 3, side, side, device=state.device)
    state.model.train()
    try:
        state.forward = torch.compile(state.model, dynamic=False)
        with state.autocast():
            outputs = state.forward(images.contiguous(memory_format=torch.channels_last))
        sum(logits.float().sum() for logits in outputs).backward()  # of each image, or of each head
    except RuntimeError as error:  # of the compiler, and out of memory
        print(f"torch.compile failed ({str(error).strip().splitlines()[0]}); using eager", flush=True)
        state.forward = state.model
    state.model.zero_grad()
    with torch.no_grad():
        for value, old in zip(state.model.buffers(), before, strict=True):
            value.copy_(old)


def train_step(state: TrainingState, pixels: Tensor, theta: Tensor, colour: Tensor) -> Tensor:
    """Warp, normalise, forward, loss, backward, update, without a host sync.

    Args:
        pixels: (N, S, S, 4) uint8, red, green, blue and trimap, on the device.
        theta, colour: the batch's part of ``augment.EpochPlan``, on the device.

    Returns:
        The loss, a scalar on the device.
    """
    images, trimaps = images_and_trimaps(pixels)
    images, trimaps = warp(images, trimaps, theta, state.config.image_size_at(state.epoch + 1))
    target, weight = target_and_weight(trimaps, state.config.boundary)
    with state.autocast():
        outputs = state.forward(state.normalise(recolour(images, colour)))
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]  # several: deep supervision
    loss = sum(state.criterion(logits, target, weight) for logits in outputs) / len(outputs)
    loss.backward()
    for parameter, view in zip(state.model.parameters(), state.views, strict=True):
        if parameter.grad is not None:
            view.grad, parameter.grad = in_memory_order(parameter.grad), None
    state.optimizer.step()
    state.optimizer.zero_grad()
    return loss.detach()


def train_one_epoch(
    state: TrainingState, stop: StopSignal, on_sync: Callable[[TrainingState], None] | None = None
) -> None:
    """Do the steps that are left of the current epoch; returns early when stopped.

    Args:
        on_sync: called about once a second.

    Raises:
        UserError: a loss was not finite.
    """
    config, steps, size = state.config, state.steps_per_epoch, state.config.batch_size
    epoch = state.epoch + 1
    plan = draw_epoch(config.augmentation_at(epoch), len(state.train), size, config.seed, epoch)
    plan = EpochPlan(*(ranks.own_part(slots, size) for slots in (plan.order, plan.theta, plan.colour)))
    on_device, size = plan.to(state.device), size // ranks.world()
    state.model.train()

    def sync() -> None:
        """The one place where the host waits for the device within an epoch."""
        bad = int(state.first_bad)
        if bad >= 0:
            names = sorted({state.train.names[index] for index in plan.order[bad * size : (bad + 1) * size]})
            raise UserError(
                f"the loss was not finite at epoch {epoch}, step {bad + 1} of {steps}, on: {', '.join(names)}. "
                f"The checkpoints of earlier epochs stay. Try a lower --learning_rate, or --precision fp32."
            )
        bar.update(state.step - bar.n)
        if on_sync:
            on_sync(state)

    bar = tqdm(
        total=steps, initial=state.step, desc=f"epoch {epoch}/{config.epochs}", unit=" steps", leave=False, disable=None
    )
    started = synced = time.monotonic()
    seconds_before = state.seconds
    torch.backends.cudnn.benchmark = True  # all batches have one shape: the search for the fastest kernels pays
    with bar:
        for pixels in state.train.batches(plan.order[state.step * size :], size, state.device):
            stop.number = ranks.largest(stop.number)
            if stop.number:
                break
            for group in state.optimizer.param_groups:
                group["lr"] = state.learning_rate
            torch.manual_seed(config.seed + state.global_step)  # for dropout: a resumed run draws alike
            slots = slice(state.step * size, (state.step + 1) * size)
            loss = train_step(state, pixels, on_device.theta[slots], on_device.colour[slots])
            state.loss_sum += loss
            state.first_bad.copy_(torch.where((state.first_bad < 0) & ~loss.isfinite(), state.step, state.first_bad))
            state.step += 1
            if state.global_step - state.ema_step >= EMA_EVERY or state.step == steps:
                update_ema(state)
            state.seconds = seconds_before + time.monotonic() - started
            if time.monotonic() - synced > SECONDS_BETWEEN_SYNCS:
                sync()
                synced = time.monotonic()
        sync()
    ranks.average_(state.loss_sum)
    torch.backends.cudnn.benchmark = False  # what follows has other shapes, and comes too rarely
    state.seconds = seconds_before + time.monotonic() - started


@torch.no_grad()
def update_ema(state: TrainingState) -> None:
    """Move the EMA weights towards the trained ones.

    The horizon is a tenth of the steps so far, ``ema_steps`` at most: short at first, so that a run of a few epochs is
    not held back.
    """
    if state.ema_model is state.model:
        return
    steps = state.global_step - state.ema_step
    horizon = min(state.config.ema_steps, state.global_step / 10)
    torch._foreach_lerp_(list(state.ema_model.parameters()), list(state.model.parameters()), min(1.0, steps / horizon))
    state.ema_step = state.global_step


@torch.no_grad()
def refresh_batchnorm(state: TrainingState, stop: StopSignal) -> None:
    """Compute the EMA weights' own BatchNorm statistics: those of the trained weights do not fit them.

    They come from evenly spaced training images without augmentation, which is also what inference sees; when stopped,
    from those that ``SECONDS_AFTER_STOP`` are enough for.
    """
    if state.ema_model is state.model:
        return
    count = max(2, min(len(state.train), BATCHNORM_IMAGES))
    order = torch.linspace(0, len(state.train) - 1, count).round().long()
    moments: dict[nn.Module, list[Tensor]] = defaultdict(list)  # sum and sum of squares of each batch, and its images

    def keep_moments(norm: nn.Module, _: object, output: Tensor) -> None:
        """So that the variance is that over all images, however they are batched."""
        count = output.numel() // output.shape[1]
        mean, variance = norm.running_mean, norm.running_var * ((count - 1) / count)
        moments[norm].append(len(output) * torch.stack((mean, mean.square() + variance, torch.ones_like(mean))))

    norms = [module for module in state.ema_model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_hook(keep_moments) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # the running statistics are the last batch's
    state.ema_model.train()
    started = time.monotonic()
    with state.autocast():
        for pixels in state.train.batches(order, max(2, min(BATCHNORM_BATCH, state.config.batch_size)), state.device):
            if len(pixels) > 1:  # one pixel of one image has no variance
                state.ema_model(state.normalise(images_and_trimaps(pixels)[0]))
            if stop.number and time.monotonic() - started > SECONDS_AFTER_STOP:
                break
    for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
        if norm in moments:
            total, squares, images = torch.stack(moments[norm]).sum(0)
            mean = total / images
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(squares / images - mean.square())
        norm.momentum = momentum
        hook.remove()
