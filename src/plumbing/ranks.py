"""Distributed training under torchrun. Every function is a no-op in a single process."""

import os
import sys
from collections.abc import Callable
from typing import Any

from plumbing.cli import UserError, choose_device

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def join(wanted: str, threads: int | None = None) -> torch.device:
    """Choose this process's device, as ``choose_device``, and join the process group; only rank 0 prints from here on.

    Raises:
        UserError: no such device, or the processes were not started by torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return choose_device(wanted, threads)
    if missing := {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
        raise UserError(f"WORLD_SIZE is set and {min(missing)} is not: start the processes by torchrun, or unset it")
    if wanted in ("auto", "cuda") and torch.cuda.device_count():  # cuda:0 would take some of its memory at once
        wanted = f"cuda:{os.environ['LOCAL_RANK']}"
    device = choose_device(wanted, threads)
    store, own_rank, count = next(dist.rendezvous("env://"))
    # After an elastic restart the store still holds the dead workers' keys; use a fresh prefix. (The counts
    # of several machines differ: see README.)
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=count)
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr.isatty = lambda: False  # no progress bars
    return device


def is_restarted() -> bool:
    """True in processes that torchrun started anew after one had died."""
    return bool(all_max(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))))  # each machine counts its own


def distribute(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Any]]:
    """Make BatchNorm count the global batch; returns the model, and its forward pass wrapped to average gradients."""
    if world() == 1:
        return model, model
    device = next(model.parameters()).device
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNormOverRanks
    devices = [device] if device.type == "cuda" else None
    return model, DistributedDataParallel(model, devices, gradient_as_bucket_view=True)


class SumOverRanks(torch.autograd.Function):
    """All-reduce, in both directions."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return SumOverRanks.forward(_, gradient)


class BatchNormOverRanks(nn.BatchNorm2d):
    """BatchNorm over the equal batches of all ranks, for the CPU, whose tensors nn.SyncBatchNorm refuses."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        count = world() * features.numel() // features.shape[1]
        values = features.to(self.weight.dtype)  # in bfloat16, sums over the pixels would be too coarse
        mean = SumOverRanks.apply(values.sum((0, 2, 3))) / count  # (C,)
        centred = values - mean.view(1, -1, 1, 1)
        variance = SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(features.dtype)


def shard(slots: Tensor, batch_size: int) -> Tensor:
    """This rank's part of every batch: (n * batch_size, ...) to (n * batch_size / world, ...)."""
    return slots.unflatten(0, (-1, world(), batch_size // world()))[:, rank()].flatten(0, 1)


def all_sum(value: Tensor) -> Tensor:
    """The sum of a tensor over the ranks."""
    if world() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the ranks."""
    return all_sum(value / world())


def all_max(number: int) -> int:
    """The largest of the ranks' numbers."""
    if world() == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def broadcast(make: Callable[[], Any]) -> Any:
    """Call a function on rank 0 alone; all ranks return its result."""
    values = [make() if rank() == 0 else None]
    if world() > 1:
        dist.broadcast_object_list(values)
    return values[0]
