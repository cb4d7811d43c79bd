"""A whole epoch on tensors that have a device, a dtype and a layout, but no numbers: what can be known without a GPU.

PyTorch's FakeTensorMode refuses to mix devices in an operation, as a GPU does, and shapes that depend on numbers.
``FakeGpu`` records each transfer and each read of a number, and refuses both within a training step.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from plumbing.stop import StopSignal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import train
from losses import LOSSES
from predictor import Predictor
from recipes import OPTIMIZERS, RECIPES
from split import Split
from train import Trainer

GPU = torch.device("cuda:0")
SIDE, BATCH = 32, 4


class FakeGpu(TorchDispatchMode):
    """Sees every operation; ``events`` counts the transfers and reads outside of steps, ``convolutions`` the dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.in_step = self.in_loss = False
        self.events: Counter[str] = Counter()
        self.convolutions: Counter[torch.dtype] = Counter()

    def note(self, event: str) -> None:
        assert not self.in_step, f"within a training step: {event}"
        self.events[event] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> object:
        kwargs, name = kwargs or {}, function._overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        if name == "_local_scalar_dense" and on_gpu:  # .item(), float(), int(), if
            self.note("number read")
            return -1 if args[0].dtype == torch.int64 else 0.5
        result = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        kinds = {tensor.device.type for tensor in [*tensors, *outputs] if tensor.ndim or name == "_to_copy"}
        if kinds == {"cuda", "cpu"}:
            self.note(f"{name} {'from' if on_gpu and name == '_to_copy' else 'to'} the GPU")
        if self.in_loss:
            assert all(tensor.dtype == torch.float32 for tensor in outputs if tensor.is_floating_point()), name
        if name == "convolution" and self.in_step:
            self.convolutions[outputs[0].dtype] += 1
        return result


def replace_tensors(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """As ``nn.Module._apply``, which would swap the insides of fake tensors and cannot."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(change(value.detach()), value.requires_grad)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else change(value)
    return module


def copy_tensor(tensor: Tensor, memo: dict[int, object]) -> Tensor:
    """As ``copy.deepcopy``, which would copy the memory of fake tensors, and there is none."""
    copied = tensor.detach().clone()
    memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    return memo[id(tensor)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """Everything in the test is on fake tensors; ``backward()`` gives gradients of the parameters' layout."""
    for owner, name, value in (
        (torch.cuda, "is_bf16_supported", lambda: True),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (nn.Module, "_apply", replace_tensors),
        (Tensor, "__deepcopy__", copy_tensor),
        (nn.Parameter, "__deepcopy__", copy_tensor),
        (Tensor, "numpy", lambda tensor: np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))),
        (Tensor, "pin_memory", lambda tensor: tensor),
    ):
        monkeypatch.setattr(owner, name, value)
    train_step, watch = Trainer.train_step, FakeGpu()

    def watched(trainer: Trainer, *batch: Any) -> Tensor:
        def backward(loss: Tensor) -> None:
            assert loss.shape == ()
            for parameter in trainer.model.parameters():
                parameter.grad = torch.empty_like(parameter)

        def criterion(*arguments: Tensor) -> Tensor:
            watch.in_loss = True
            loss = LOSSES[trainer.config.loss](*arguments)
            watch.in_loss = False
            return loss

        monkeypatch.setattr(Tensor, "backward", backward)
        monkeypatch.setattr(trainer, "criterion", criterion)
        watch.in_step = True
        loss = train_step(trainer, *batch)
        watch.in_step = False
        assert (loss.dtype, loss.device, loss.shape) == (torch.float32, GPU, ())
        return loss

    monkeypatch.setattr(Trainer, "train_step", watched)
    with FakeTensorMode(allow_non_fake_inputs=True), watch:
        yield watch


def make_trainer(network: str, precision: torch.dtype, images: int = 2 * BATCH - 1, **changes: object) -> Trainer:
    config = replace(RECIPES["default"](network), image_size=SIDE, batch_size=BATCH, **changes)
    pixels = torch.empty(images, SIDE, SIDE, 4, dtype=torch.uint8, device=GPU)
    split = Split(Path("pets"), "train", [f"pet {index}" for index in range(images)], pixels)
    trainer = Trainer(config, GPU, split, split, precision)
    if config.optimizer == "sgd":  # its fused kernel alone has no fake version
        for group in trainer.optimizer.param_groups:
            group.update(fused=False, foreach=True)
    return trainer


def check_training(gpu: FakeGpu, trainer: Trainer) -> None:
    """An epoch with its BatchNorm statistics: where weights, gradients and optimizer state lie, and how."""
    gpu.events.clear()
    gpu.convolutions.clear()
    trainer.train_epoch(StopSignal())
    copies = 5 if trainer.config.ema_steps else 4  # the plan's three parts, the order, the images for BatchNorm
    assert gpu.events == {"_to_copy to the GPU": copies, "number read": 1}
    assert gpu.convolutions.keys() == {trainer.precision}
    for parameter in trainer.model.parameters():
        assert parameter.ndim < 4 or parameter.is_contiguous(memory_format=torch.channels_last)
    for weight, kept in trainer.optimizer.state.items():
        moments = [value for name, value in kept.items() if name != "step"]
        assert moments
        assert all((value.device, value.stride()) == (GPU, weight.stride()) for value in [weight, *moments])
        assert weight.is_contiguous()
    assert len(trainer.optimizer.state) == len(list(trainer.model.parameters()))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("network", ["UNet", "ResNet34_UNet"])
def test_an_epoch_stays_on_the_gpu(
    gpu: FakeGpu, network: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build, train, EMA, BatchNorm statistics, scores, folded inference; the other optimizers with the same weights."""
    trainer = make_trainer(network, precision)
    check_training(gpu, trainer)

    gpu.events.clear()
    trainer.score_epoch(StopSignal())
    assert gpu.events == {
        "_to_copy to the GPU": 1,  # the order
        "_to_copy from the GPU": 1,  # all scores at once
        "number read": 1,  # the epoch's loss
    }

    gpu.events.clear()
    config = replace(trainer.config, precision="bf16" if precision == torch.bfloat16 else "fp32")
    predictor = Predictor({"config": config, "model": trainer.ema.model.state_dict()}, GPU, flip_average=True)
    logits = predictor.logits(torch.empty(2, 3, SIDE, SIDE, device=GPU))
    assert (logits.dtype, logits.device, logits.shape) == (torch.float32, GPU, (2, 1, SIDE, SIDE))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in predictor.model.modules())
    assert gpu.events.keys() <= {"copy_ to the GPU", "_to_copy to the GPU"}  # of the weights

    saved = tree_map_only(Tensor, lambda value: value.to("cpu"), trainer.optimizer.state_dict())
    trainer.optimizer.load_state_dict(saved)  # to resume
    assert all(value.device == GPU for kept in trainer.optimizer.state.values() for value in kept.values())

    if precision == torch.float32:  # which is of no interest to an optimizer: the weights are float32
        monkeypatch.setattr(train, "build_network", lambda _: trainer.model)
        for optimizer in OPTIMIZERS.keys() - {trainer.config.optimizer}:
            check_training(gpu, make_trainer(network, precision, BATCH, optimizer=optimizer, ema_steps=0))
