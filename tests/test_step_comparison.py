"""step_comparison.py: it finds planted faults and bears rounding. The compiled step agrees with the eager one."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from step_comparison import agree, agreement, movements, state_and_batches
from torch import Tensor, nn

import engine
from engine import TrainingState, compile_forward, train_step
from models import NETWORKS
from oxford_pet import load_split
from recipes import OPTIMIZERS, RECIPES

CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=OPTIMIZERS)
def trained(drawn_pets: Path, request: pytest.FixtureRequest) -> tuple[TrainingState, list[Batch]]:
    config = RECIPES["default"]("ResNet34_UNet_small")
    config = replace(config, image_size=64, batch_size=4, optimizer=request.param, learning_rate=1e-3)
    return state_and_batches(config, CPU, load_split(drawn_pets, "train", 64))


def test_a_step_agrees_with_itself_and_leaves_the_state(trained: tuple[TrainingState, list[Batch]]) -> None:
    state, (batch, _) = trained
    assert agreement(movements(state, batch), movements(state, batch)) == 1


def test_gradient_noise_of_a_hundredth_agrees(trained: tuple[TrainingState, list[Batch]]) -> None:
    state, (batch, _) = trained
    reference = movements(state, batch)
    torch.manual_seed(0)
    for parameter in state.model.parameters():
        parameter.register_hook(lambda g: g + 1e-2 * g.norm() / g.numel() ** 0.5 * torch.randn_like(g))
    noisy = movements(state, batch)
    assert agree(noisy, reference)
    assert not any(torch.equal(noisy[name], reference[name]) for name, _ in state.model.named_parameters())


def other_learning_rate(state: TrainingState, *batch: Tensor) -> Tensor:
    rates = [group["lr"] for group in state.optimizer.param_groups]
    for group in state.optimizer.param_groups:
        group["lr"] *= 1.25
    loss = train_step(state, *batch)
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return loss


def in_evaluation_mode(state: TrainingState, *batch: Tensor) -> Tensor:
    state.model.eval()
    loss = train_step(state, *batch)
    state.model.train()
    return loss


def nothing(state: TrainingState, *batch: Tensor) -> Tensor:
    """Not even a loss of its own: the right one."""
    return movements(state, batch)["loss"].float()


def test_planted_faults_are_found(trained: tuple[TrainingState, list[Batch]]) -> None:
    state, (batch, stale) = trained
    reference = movements(state, batch)
    for fault in (other_learning_rate, in_evaluation_mode, nothing, lambda state, *_: train_step(state, *stale)):
        assert not agree(movements(state, batch, fault), reference)
        assert agree(movements(state, batch), reference)  # nothing is left of the fault


# ---------------------------------------------------------------------------------------------- --compile


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, drawn_pets: Path) -> tuple[TrainingState, Batch]:
    """No bias in front of BatchNorm: its gradient is rounding alone, which each compiler does its own way."""

    def build() -> nn.Sequential:
        first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))

    monkeypatch.setitem(NETWORKS, "UNet", build)
    config = replace(RECIPES["default"]("UNet"), image_size=32, batch_size=4, learning_rate=1e-3)
    state, (batch, _) = state_and_batches(config, CPU, load_split(drawn_pets, "train", 32))
    return state, batch


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_compiled_step_agrees_with_the_eager_one(
    tiny: tuple[TrainingState, Batch], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, batch = tiny
    reference = movements(state, batch)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compile_forward(state)
    assert state.forward is not state.model
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert all(parameter.grad is None for parameter in state.model.parameters())
    assert agree(movements(state, batch), reference)


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_failed_compilation_is_one_line_and_the_step_is_eager(
    tiny: tuple[TrainingState, Batch], when: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_, logits: Tensor) -> Tensor:
            if when == "forward":
                raise RuntimeError("no compiler\nat all")
            return logits.clone()

        @staticmethod
        def backward(_, gradient: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nat all")

    state, batch = tiny
    reference = movements(state, batch)
    monkeypatch.setattr(engine.torch, "compile", lambda model, dynamic: lambda images: Broken.apply(model(images)))
    compile_forward(state)
    assert capsys.readouterr().out == "torch.compile failed (no compiler); using eager\n"
    assert state.forward is state.model
    assert agreement(movements(state, batch), reference) == 1
